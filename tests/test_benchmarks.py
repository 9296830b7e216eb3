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
    for name, figures in peers.items():
        assert figures["seconds"] > 0
        assert ("sampling" in figures["ratios"]) == (name != "sampling")
        for median, low, high in figures["ratios"].values():
            assert 0 < low <= median <= high


@pytest.mark.parametrize(("factor", "code"), [(0.01, 1), (1, 0)])
def test_check_fails_where_a_ratio_has_risen(stored, tmp_path, factor, code):
    """Against ratios a thousand times what they were, but for one."""
    results = json.loads(stored.read_text())
    (peers,) = results["cases"].values()
    for name, figures in peers.items():
        for reference, quartiles in figures["ratios"].items():
            only = (name, reference) == ("diagonal", "sampling")
            times = 1000 * (factor if not only else factor**2)
            figures["ratios"][reference] = [times * q for q in quartiles]
    path = tmp_path / "changed.json"
    path.write_text(json.dumps(results))
    done = run("step_cost.py", "--layers", "8-6-3", "--turns", 2, "--steps", 1, "--check", path)
    assert done.returncode == code, done.stdout + done.stderr
    assert ("WORSE" in done.stdout) == bool(code)


def test_check_fails_where_nothing_can_be_compared(stored):
    done = run("step_cost.py", "--layers", "8-7-3", "--turns", 1, "--steps", 1, "--check", stored)
    assert done.returncode == 1
    assert "0 ratios compared" in done.stdout
