"""The scripts behind each figure of the documentation.

`speed` measures seconds and memory, `quality` what is predicted, and `robustness` what must not
happen. They share `harness`, tables of stored cells (`cells`) and data (`image_data`,
`text_data`). Each is run from the root of a checkout, ``python -m benchmarks.speed.step_cost``,
and what it measured lies in `results` under its name.
"""
