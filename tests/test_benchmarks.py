"""The benchmarks' own bookkeeping: they run, store, and notice what has become worse."""

import importlib
import json
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

ROOT = Path(__file__).parents[1]


@pytest.fixture
def scripts(monkeypatch):
    """The modules of the benchmarks by name."""
    monkeypatch.syspath_prepend(str(ROOT))
    return lambda name: importlib.import_module(f"benchmarks.{name}")


@pytest.fixture
def run(scripts, monkeypatch, capsys):
    """Runs a script here, as a new process would spend seconds on importing torch."""

    def run(name, *options):
        script = scripts(name)
        monkeypatch.setattr(sys, "argv", [name, *map(str, options)])
        # Only figures that are to be compared need processors that have cooled down.
        monkeypatch.setattr(scripts("harness").time, "sleep", lambda seconds: None)
        try:
            script.main()
            code = 0
        except SystemExit as end:
            code = end.code
        return code, capsys.readouterr().out

    return run


def run_process(name, *options):
    """Runs a script as its command does."""
    command = [sys.executable, "-m", f"benchmarks.{name}", *map(str, options)]
    environment = {**os.environ, "PYTHONWARNINGS": "ignore"}
    return subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT)


STEPS = ("--layers", "8-6-3", "--turns", 2, "--steps", 1)


@pytest.fixture(scope="module")
def stored(tmp_path_factory):
    """What the command itself stores."""
    path = tmp_path_factory.mktemp("results") / "steps.json"
    done = run_process("speed.step_cost", *STEPS, "--json", path)
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
def test_check_fails_where_a_ratio_has_risen(stored, run, tmp_path, factor, code):
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
    found, output = run("speed.step_cost", *STEPS, "--check", path)
    assert found == code, output
    assert ("WORSE" in output) == bool(code)


def test_processes_take_turns_with_one(tmp_path):
    pytest.importorskip("accelerate")
    path = tmp_path / "processes.json"
    shape = ("--layers", "8-6-3", "--turns", 2, "--steps", 1)
    done = run_process("speed.data_parallel", *shape, "--json", path)
    assert done.returncode == 0, done.stderr
    (peers,) = json.loads(path.read_text())["cases"].values()
    assert peers.keys() == {"one process", "2 processes", "the exchange alone"}
    assert all(figures["seconds"] > 0 for figures in peers.values())


def test_check_fails_where_nothing_can_be_compared(stored, run):
    options = ("--layers", "8-7-3", "--turns", 1, "--steps", 1, "--check", stored)
    code, output = run("speed.step_cost", *options)
    assert code == 1
    assert "0 ratios compared" in output


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


def test_mnist_tables_resume_and_report(scripts, run, tmp_path, monkeypatch):
    monkeypatch.setattr(scripts("quality.mnist_tables"), "HIDDEN", {1: [64], 2: [64, 64], 3: [64]})
    path = tmp_path / "mnist.jsonl"
    options = ("quality.mnist_tables", "--quick", "--data", "digits", "--results", path)
    rows = ("--tables", 1, 3, "--rows", "L2", "input, diagonal")
    code, first = run(*options, *rows)
    assert code == 0
    assert "5 of 5 cells to do" in first
    assert "digits, 1198 images to train and validate, seed 0" in first
    assert "5 runs of at most 3 epochs" in first
    assert "A QUICK RUN" in first
    assert "0 of 5 cells to do" in run(*options, *rows)[1]
    _, report = run(*options, "--report")
    assert "| L2 | 1.37 |" in report
    assert "| both, diagonal | 1.25 | not run |" in report
    for line in path.read_text().splitlines():
        result = json.loads(line)["result"]
        assert min(result["valid_errors"]) < 80
        assert result["test_errors"]


def test_table_3_counts_what_failed(scripts, tmp_path):
    tables = scripts("quality.mnist_tables")
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
    tables = scripts("quality.text_tables")
    rng = np.random.RandomState(0)
    words = np.array(["good", "fine", "bad", "dull", "a", "the", "film", "plot"])

    def documents(name):
        y = np.arange(90) % 2
        odds = np.where(y[:, None], [4, 4, 1, 1, 2, 2, 2, 2], [1, 1, 4, 4, 2, 2, 2, 2])
        return [" ".join(rng.choice(words, 6, p=o / o.sum())) for o in odds], y

    monkeypatch.setattr(tables.text_data, "load", documents)
    model, grid, sees_unlabeled = tables.SYSTEMS["moments + unlabelled"]
    small = {name: values[-1:] for name, values in grid.items()} | {"retain_rate": [0.35, 0.5]}
    monkeypatch.setitem(tables.SYSTEMS, "moments + unlabelled", (model, small, sees_unlabeled))
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
    choices, cells = scripts("quality.choices"), scripts("cells")
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
    choices = scripts("quality.choices")
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


def test_out_of_the_box_compares_models_and_resumes(run, scripts, tmp_path):
    name, path = "quality.out_of_the_box", tmp_path / "models.jsonl"
    options = (name, "--quick", "--results", path)
    code, output = run(
        *options, "--models", "linear model", "HistGradientBoosting", "MLPClassifier"
    )
    assert code == 0
    assert "6 of 6 cells to do" in output
    candidate = ("--label", "short", "--settings")
    code, output = run(*options, *candidate, '{"max_iter": 3}')
    assert code == 0
    assert "2 of 2 cells to do" in output
    assert output.count("| short |") == 4  # two sets and two summaries
    assert run(*options, *candidate, '{"max_iter": 3}')[1].startswith("0 of 2 cells to do")
    code, _ = run(*options, *candidate, '{"max_iter": 4}')
    assert "choose a new label" in code
    assert run(*options, "--models", "linear modle")[0] == 2
    _, report = run(*options, "--report", "--data", "iris", "--models", "linear model", "short")
    assert "diabetes" not in report
    assert "MLPClassifier" not in report
    stored = scripts("cells").Cells(path)
    result = scripts(name).collected(stored)["iris"]["short"][0]
    assert result["epochs"] == 3
    assert 0 < result["score"] <= 1


def test_out_of_the_box_ranks_models_and_finds_their_worst_set(scripts):
    script = scripts("quality.out_of_the_box")

    def results(**figures):
        return {
            model: [{"score": score, "loss": loss, "epochs": None, "seconds": seconds}]
            for model, (score, loss, seconds) in figures.items()
        }

    title, _, rows, _ = script.summary(
        "Labels",
        {
            "iris": results(default=(0.9, 0.2, 1.0), peer=(0.8, 0.3, 2.0)),
            "wine": results(default=(0.95, 0.5, 4.0), peer=(1.0, 0.1, 2.0))
            | {script.LINEAR: results(it=(0.97, 0.05, 1.0))["it"]},
        },
    )
    assert title == "Labels: 2 sets"
    assert rows == [
        ["default", 2, "2.00", "2.00", "5.0 (wine)", "5.00 (wine)", "2.00"],
        ["peer", 2, "1.50", "2.00", "10.0 (iris)", "1.50 (iris)", "2.00"],
        [script.LINEAR, 1, "2.00", "1.00", "3.0 (wine)", "0.50 (wine)", "1.00"],
    ]


def test_calibration_error_weighs_the_gap_of_each_bin_by_its_rows(scripts):
    error = scripts("quality.out_of_the_box").calibration_error
    probability = np.array([[0.9, 0.1], [0.9, 0.1], [0.3, 0.7], [0.3, 0.7]])
    # Half right at 0.9, and all right at 0.7.
    assert error(probability, np.array([0, 1, 1, 1])) == pytest.approx((0.4 + 0.3) / 2)


@pytest.mark.parametrize("kind", ["label", "normal", "poisson"])
def test_out_of_the_box_makes_every_peer(scripts, kind):
    script = scripts("quality.out_of_the_box")
    X = np.random.RandomState(0).uniform(size=(60, 3))
    y = (X[:, 0] > 0.5).astype(int if kind == "label" else float)
    for name in script.MODELS:
        if name in (script.REALMLP, script.TUNED):  # not installed here; slow
            continue
        model = script.model_of(name, kind, 0, X, y)
        if "max_iter" in model.get_params() and name != script.LINEAR:
            model.set_params(max_iter=3)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of fits that are this short
            result = script.score(model.fit(X, y), kind, X, y)
        assert result["score"] <= 1, name
        assert result["loss"] >= 0, name
        assert script.epochs(model) in (None, 3, 20), name


@pytest.mark.parametrize("name", ["iris", "diabetes", "rare features", "census", "unbalanced"])
def test_sets_are_drawn_by_the_seed_and_scaled(scripts, name):
    data = scripts("suite_data")
    X, y, X_test, y_test, kind = data.load(name, 0)
    assert X.shape[0] == len(y) == data.DATA[name].n_train
    assert X_test.shape[0] == len(y_test) <= data.N_TEST
    assert hasattr(X, "toarray") == data.DATA[name].sparse
    if kind == "label":
        np.testing.assert_array_equal(np.unique(y), np.arange(y_test.max() + 1))
    else:
        assert y.mean() == pytest.approx(0, abs=1e-12)
        assert y.std() == pytest.approx(1)
    again, other = data.load(name, 0), data.load(name, 1)
    np.testing.assert_array_equal(again[3], y_test)
    assert not np.array_equal(other[0].sum(0), X.sum(0))


STUCK = """
import os
import time

def perform_all(sender, scales, numbers):
    for number in numbers:
        if number == 11:
            time.sleep(1000)
        if number == 13:
            os._exit(3)
        sender.send(({"fits": 2}, "not so" if number == 10 else None))
"""


def test_soak_goes_on_after_what_hangs_or_dies(scripts, tmp_path, monkeypatch, capsys):
    soak = scripts("robustness.soak")
    (tmp_path / "stuck.py").write_text(STUCK)
    monkeypatch.syspath_prepend(str(tmp_path))
    cell = {"part": "configurations", "scales": "wide", "first": 10, "configurations": 5}
    result = soak.run_block(cell, patience=8, target=importlib.import_module("stuck").perform_all)
    assert result["seen"] == {"fits": 2 * 3}
    assert result["failures"] == {
        10: "not so",
        11: "hung for 8 s, and was killed",
        13: "the process died with 3",
    }
    assert "  13: the process died" in capsys.readouterr().out


def test_soak_resumes_and_reports(scripts, tmp_path, monkeypatch, capsys):
    soak = scripts("robustness.soak")

    def block(cell):
        seen = {"fits": 7, "error: refused, nan": 1, "warning: convergence": 2}
        return {"seen": seen, "failures": {cell["first"]: "not so"}, "seconds": 30.0}

    monkeypatch.setattr(soak, "run_block", block)
    monkeypatch.setattr(soak.harness, "in_fresh_process", lambda call, *args: call(*args))
    command = ["soak.py", "--quick", "--parts", "configurations", "fits"]
    monkeypatch.setattr(sys, "argv", [*command, "--results", str(tmp_path / "soak.jsonl")])
    soak.main()
    first = capsys.readouterr().out
    assert "3 of 3 cells to do" in first
    assert "| wide | 5 | 7 | 1 | 2 | 1 | 0 |" in first
    assert "wide 5: not so" in first
    assert "| error: an invalid parameter or invalid data | 1 | 1 |" in first
    assert "| fits | 40 | " in first
    soak.main()
    again = capsys.readouterr().out
    assert "0 of 3 cells to do" in again
    assert again.split("###")[1:] == first.split("###")[1:]


def test_soak_compares_fits_in_threads_with_the_same_alone(scripts):
    soak, threads = scripts("robustness.soak"), torch.get_num_threads()
    try:
        with warnings.catch_warnings():
            result = soak.in_threads(1)
    finally:
        torch.set_num_threads(threads)
    assert result == {"fits": 4, "threads": 4, "different": 0}


def test_streams_measure_time_and_memory(scripts, tmp_path, monkeypatch, capsys):
    streams = scripts("speed.streams")
    monkeypatch.setattr(streams, "CHUNK", 64)
    monkeypatch.setattr(streams, "N_FEATURES", 8)
    monkeypatch.setattr(streams, "in_fresh_process", lambda call, *args: call(*args))
    path = tmp_path / "streams.json"
    command = ["streams.py", "--quick", "--json", str(path), "--folder", str(tmp_path)]
    sizes = ["--gigabytes", "1e-9", "--file-gigabytes", "1e-9"]
    monkeypatch.setattr(sys, "argv", [*command[:1], *command[2:], *sizes])
    streams.main()
    stream, file = json.loads(path.read_text())["cases"].values()
    for figures in stream.values():
        assert figures["rows_per_second"] > 0
        assert figures["peak_megabytes"] > 50
        assert figures["accuracy"] > 0.5
        assert figures["ratios"]["SGDClassifier.partial_fit"][0] > 0
    for figures in file.values():
        assert figures["anonymous_megabytes"] >= figures["growth_megabytes"]
    assert "times SGDClassifier's seconds" in capsys.readouterr().out
    assert [each.name for each in tmp_path.iterdir()] == ["streams.json"]


def test_resuming_kills_a_fit_and_compares_what_it_ends_at(scripts):
    resuming = scripts("robustness.resuming")
    expected, seconds = resuming.fit("glm, fisher", max_iter=20)
    chance = random.Random(0)
    killed, equal = resuming.run_killed("glm, fisher", 20, 1, expected, seconds / 2, chance)
    assert killed == equal == 1


def test_cluster_measures_and_projects(tmp_path):
    pytest.importorskip("distributed")
    path = tmp_path / "cluster.json"
    done = run_process("speed.cluster", "--quick", "--json", path)
    assert done.returncode == 0, done.stderr
    assert "projected to 100 workers" in done.stdout
    cases = json.loads(path.read_text())["cases"]
    messages = cases["messages"]["2 workers"]
    assert messages["overhead"] > 0
    assert messages["largest difference"] < 1e-8
    # A coefficient and an intercept for each class, the loss and the penalty.
    assert messages["received"] == 8 * (3 * 21 + 2)
    assert messages["sent"] > 8 * 3 * 21
