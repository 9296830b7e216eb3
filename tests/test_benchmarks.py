"""The benchmarks' own bookkeeping: they run, store, and notice what has become worse."""

import importlib
import json
import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
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
            # By far more than a busy machine would change them.
            times = 1000 * (factor if not only else factor**4)
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


@pytest.fixture
def scripts(monkeypatch):
    """The modules of the benchmarks by name."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_cells_are_measured_once_and_survive_a_killed_run(scripts, tmp_path, capsys):
    cells = scripts("cells")
    path = tmp_path / "results" / "cells.jsonl"
    todo = [{"q": q, "setting": {"rates": [q, 0.5]}} for q in (0.1, 0.3, 0.3, 0.5)]
    measured = []

    def measure(cell):
        if len(measured) == 2:
            raise KeyboardInterrupt
        measured.append(cell["q"])
        return {"error": 2 * cell["q"]}

    with pytest.raises(KeyboardInterrupt):
        cells.Cells(path).measure(todo, measure)
    assert measured == [0.1, 0.3]
    # The second line was cut short while it was written.
    path.write_bytes(path.read_bytes()[:-20])
    stored = cells.Cells(path)
    assert [cell["q"] for cell in stored.missing(todo)] == [0.3, 0.5]
    measured.clear()
    stored.measure(todo, measure)
    assert measured == [0.3, 0.5]
    again = cells.Cells(path)
    assert not again.missing(todo)
    (record,) = (r for r in again.records.values() if r["cell"]["q"] == 0.3)
    assert record["result"] == {"error": 0.6}
    assert {"processor", "torch", "sklearn_margdrop"} <= record["environment"].keys()
    assert len(again.environments()) == 1
    output = capsys.readouterr().out
    assert "[2/2] q 0.5" in output
    assert "left" in output


def test_mnist_tables_resume_and_report(tmp_path):
    path = tmp_path / "mnist.jsonl"
    options = ("--quick", "--data", "digits", "--results", path)
    rows = ("--tables", 1, 3, "--rows", "L2", "input, diagonal")
    first = run("mnist_tables.py", *options, *rows)
    assert first.returncode == 0, first.stderr
    assert "5 of 5 cells to do" in first.stdout
    assert "digits, 1198 images to train and validate, seed 0" in first.stdout
    assert "5 runs of at most 3 epochs" in first.stdout
    assert "A QUICK RUN" in first.stdout
    again = run("mnist_tables.py", *options, *rows)
    assert "0 of 5 cells to do" in again.stdout
    report = run("mnist_tables.py", *options, "--report")
    assert "| L2 | 1.37 |" in report.stdout
    assert "| both, diagonal | 1.25 | not run |" in report.stdout
    for line in path.read_text().splitlines():
        result = json.loads(line)["result"]
        assert min(result["valid_errors"]) < 80
        assert result["test_errors"]


def test_table_3_counts_what_failed(scripts, tmp_path):
    tables = scripts("mnist_tables")
    grid = tables.settings(3, "diagonal")
    assert len(grid) == len({json.dumps(setting) for setting in grid}) == 200
    stored = scripts("cells").Cells("none")
    common = {"table": 3, "row": "diagonal", "data": "mnist", "rows": 60000, "epochs": 4}
    common |= {"patience": 2, "passes": 1, "seed": 0}
    errors = [[3.0, 1.0, 2.0], [4.0, 3.0, 3.0]]
    for number, setting in enumerate(grid[:3]):
        result = {"error": "no"}
        if number < 2:
            result = {"valid_errors": errors[number], "test_errors": [1.5], "rate_factor": 0.5}
            result["seconds_per_epoch"] = 1.0
        cell = common | {"setting": setting}
        stored.records[str(number)] = {"cell": cell, "result": result, "environment": {}}
    ((title, _, rows, notes),) = tables.tables(stored)
    assert title.endswith("mnist, 60000 images to train and validate, seed 0")
    ours = next(row for row in rows if row[:2] == ["diagonal", "ours"])
    assert ours == ["diagonal", "ours", "2 of 3", 2, "2 ± 0", "2.00 ± 1.00", "1.00", "0.002"]
    assert notes[0].startswith("3 runs of at most 4 epochs")
    assert notes[1].startswith("2 runs went back")
    tables.figure(stored, tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0


def test_text_tables_resume_and_report(scripts, tmp_path, monkeypatch, capsys):
    tables = scripts("text_tables")
    rng = np.random.RandomState(0)
    words = np.array(["good", "fine", "bad", "dull", "a", "the", "film", "plot"])

    def documents(name):
        y = np.arange(90) % 2
        odds = np.where(y[:, None], [4, 4, 1, 1, 2, 2, 2, 2], [1, 1, 4, 4, 2, 2, 2, 2])
        return [" ".join(rng.choice(words, 6, p=o / o.sum())) for o in odds], y

    monkeypatch.setattr(tables.text_data, "load", documents)
    command = ["text_tables.py", "--names", "RT", "--quick", "--splits", "2", "--systems"]
    command += ["LogisticRegression", "moments + unlabelled", "--results", str(tmp_path / "t")]
    monkeypatch.setattr(sys, "argv", command)
    tables.main()
    first = capsys.readouterr().out
    assert "4 of 4 cells to do" in first
    tables.main()
    again = capsys.readouterr().out
    assert "0 of 4 cells to do" in again
    assert again.split("###")[1] == first.split("###")[1]
    row = next(line for line in again.splitlines() if line.startswith("| moments + unl"))
    assert float(row.split("|")[4].split("±")[0]) > 60
    assert "RT: 30 x" in again


def test_choices_compare_models_on_the_seeds_that_all_of_them_have(scripts, tmp_path):
    choices, cells = scripts("choices"), scripts("cells")
    stored = cells.Cells(tmp_path / "choices.jsonl")
    names = choices.QUESTIONS["placement"]
    todo = [{"data": "wine", "model": name, "seed": seed} for name in names for seed in (0, 1, 2)]
    few = {"data": "RT", "labels": 50, "alpha": 1e-4, "model": "+ unlabelled", "seed": 0}
    # The last model was killed before its last seed.
    stored.measure([*todo[:-1], few], lambda cell: {"score": cell["seed"] / 10, "log_loss": 0.25})
    tables = choices.tables(stored)
    _, head, rows, notes = tables["placement"]
    assert head == ["", "wine"]
    assert [row[0] for row in rows] == names
    assert {row[1].replace("\N{NO-BREAK SPACE}", " ") for row in rows} == {"5.0 ± 5.0 (0.250)"}
    assert notes == ["Means over 2 seeds; the log loss in brackets."]
    _, head, rows, _ = tables["few labels"]
    assert head == ["", "+ unlabelled, alpha=0.0001"]
    assert rows == [["RT,\N{NO-BREAK SPACE}50 labels", "0.0 (0.250)"]]


@pytest.mark.parametrize("kind", ["label", "normal", "poisson"])
def test_choices_make_every_model_they_name(scripts, kind):
    choices = scripts("choices")
    X = np.random.RandomState(0).uniform(size=(60, 3))
    y = (X[:, 0] > 0.5).astype(int)
    for name in {name for names in choices.QUESTIONS.values() for name in names}:
        model = choices.model_of(name, kind, 0)
        for parameter in {"max_iter", "hidden_layer_sizes"} & model.get_params().keys():
            model.set_params(**{parameter: 3})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fits that are this short
            result = choices.score(model, kind, (X, y), (X, y))
        assert result["score"] <= 1, name


def test_cluster_measures_and_projects(tmp_path):
    pytest.importorskip("distributed")
    path = tmp_path / "cluster.json"
    done = run("cluster.py", "--quick", "--json", path)
    assert done.returncode == 0, done.stderr
    assert "projected to 100 workers" in done.stdout
    assert "Measured is none of it" in done.stdout
    cases = json.loads(path.read_text())["cases"]
    messages = cases["messages"]["2 workers"]
    assert messages["overhead"] > 0
    # A coefficient and an intercept for each class, the loss and the penalty.
    assert messages["received"] == 8 * (3 * 21 + 2)
    assert messages["sent"] > 8 * 3 * 21
