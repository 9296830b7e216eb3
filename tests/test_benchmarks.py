"""The benchmarks' own bookkeeping: they run, store, and notice what has become worse."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"


def run(script, *options):
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    return subprocess.run(
        [sys.executable, str(BENCHMARKS / script), *map(str, options)],
        capture_output=True,
        text=True,
        env=environment,
    )


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    path = tmp_path_factory.mktemp("results") / "steps.json"
    done = run("step_cost.py", "--layers", "8-6-3", "--turns", 2, "--steps", 1, "--json", path)
    assert done.returncode == 0, done.stderr
    assert "diagonal" in done.stdout
    return path


def test_results_name_processor_versions_and_ratios(stored):
    results = json.loads(stored.read_text())
    assert {"processor", "torch", "sklearn", "sklearn_margdrop"} <= results["environment"].keys()
    (peers,) = results["cases"].values()
    for figures in peers.values():
        median, low, high = figures["sampling"]
        assert 0 < low <= median <= high
        assert figures["seconds"] > 0
    assert peers["sampling"]["sampling"] == [1, 1, 1]


@pytest.mark.parametrize(("factor", "code"), [(0.5, 1), (100, 0)])
def test_check_fails_where_a_ratio_has_risen(stored, tmp_path, factor, code):
    """Against stored ratios a hundred times, or half, what they were."""
    results = json.loads(stored.read_text())
    (peers,) = results["cases"].values()
    for figures in peers.values():
        for name, quartiles in figures.items():
            if isinstance(quartiles, list):
                figures[name] = [factor * q for q in quartiles]
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(results))
    done = run("step_cost.py", "--layers", "8-6-3", "--turns", 2, "--steps", 1, "--check", path)
    assert done.returncode == code, done.stdout + done.stderr
    assert ("WORSE" in done.stdout) == bool(code)


def test_check_fails_where_nothing_can_be_compared(stored):
    done = run("step_cost.py", "--layers", "8-7-3", "--turns", 1, "--steps", 1, "--check", stored)
    assert done.returncode == 1
    assert "0 ratios compared" in done.stdout
