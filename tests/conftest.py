"""Settings that all tests share."""

import os

# It registers what other tests are not to see; `test_extending.py` imports it.
collect_ignore = ["extensions.py"]
# Doctests are looked for in modules, and these would have one name.
collect_ignore_glob = ["*/conftest.py"]

# The tests' arrays are tiny, and threads that wait for each other cost far more than they save,
# above all when pytest-xdist runs a worker on each core. Nothing has imported torch or numpy yet,
# and the processes that tests start inherit it.
os.environ["OMP_NUM_THREADS"] = "1"
