"""Two CPU processes fit what one fits; run as a script, this file is one of the processes."""

import contextlib
import copy
import io
import os
import pickle
import socket
import subprocess
import sys
import time
import warnings
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning
from sklearn.model_selection import cross_val_score
from sklearn.neural_network import BernoulliRBM
from skorch.callbacks import Callback, Checkpoint, EpochScoring, LRScheduler

from sklearn_margdrop import MarginalizedDropoutClassifier, MarginalizedDropoutRegressor
from sklearn_margdrop.families import Categorical
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.noise import Dropout
from sklearn_margdrop.objective import Objective
from sklearn_margdrop.weighting import WeightedRows

accelerate = pytest.importorskip("accelerate")

ROOT = Path(__file__).parents[2]
X, Y = (a[:90] for a in load_digits(return_X_y=True))
X = X / 16
U = load_digits().data[90:130] / 16
WEIGHT = np.random.RandomState(0).randint(0, 4, len(X)).astype(float)
SHORT = {"hidden_layer_sizes": (8,), "max_iter": 4, "batch_size": 20, "random_state": 0}
# Random signs differ by process, as drawn noise does.
SHORT |= {"method": "diagonal", "retain_rate": 0.8, "learning_rate": "constant"}
SHORT |= {"validation_fraction": 0.2}


class Spy(Callback):
    """Notes the seed of the noise of each process."""

    seeds = []

    def on_batch_end(self, net, **kwargs):
        Spy.seeds.append(net.engine_.generator.initial_seed())


class StopEarly(Callback):
    """Stops at the end of the second epoch, or raises then."""

    def __init__(self, error=None):
        self.error = error

    def on_epoch_end(self, net, **kwargs):
        if len(net.history) == 2:
            net.ending_ = "stopped"
            if self.error is not None:
                raise self.error


class StopTask:
    """The same as a callback of scikit-learn's."""

    n_ends = 0

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context, *, X=None, y=None, fitted_estimator=None):
        self.n_ends += 1
        if fitted_estimator is not None:  # without a word to the other processes
            assert fitted_estimator.predict(X).shape == y.shape
        return self.n_ends == 2


def quietly(call):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return call()


def fit(accelerator, *, model=MarginalizedDropoutClassifier, X=X, y=Y, data=None, **settings):
    estimator = model(**SHORT | settings, accelerator=accelerator)
    return quietly(lambda: estimator.fit(X, y, **data or {}))


def partial_fit(accelerator):
    model = MarginalizedDropoutClassifier(**SHORT, accelerator=accelerator)
    for chunk in (slice(0, 45), slice(45, 88), slice(88, 89), slice(0, 90)):
        model.partial_fit(X[chunk], Y[chunk], np.arange(10), WEIGHT[chunk] + 1, U)
    return model


def warm_start(accelerator):
    model = fit(accelerator, warm_start=True)
    quietly(lambda: model.set_params(alpha=1e-2).fit(X, Y))
    return model


def regressor(accelerator, y, **settings):
    return fit(accelerator, model=MarginalizedDropoutRegressor, y=y, **settings)


#: Each fits with an accelerator or with None, and comes to the same.
CASES = {
    "diagonal": lambda a: fit(a),
    "odd parts": lambda a: fit(a, batch_size=7),
    "quadratic": lambda a: fit(
        a, method="quadratic", n_probes=None, activation="tanh", max_iter=2
    ),
    "moments": lambda a: fit(a, method="moments", n_probes=None),
    "two hidden layers": lambda a: fit(a, hidden_layer_sizes=(8, 6), noise="gaussian"),
    "no hidden layer": lambda a: fit(a, hidden_layer_sizes=()),
    "sgd, centred": lambda a: fit(
        a, solver="sgd", activation="logistic", learning_rate_init=0.1, learning_rate_decay=0.1
    ),
    "weights": lambda a: fit(a, data={"sample_weight": WEIGHT}, class_weight="balanced"),
    "unlabelled rows": lambda a: fit(a, data={"sample_weight": WEIGHT, "X_unlabeled": U}),
    "sparse rows": lambda a: fit(a, X=sparse.csr_array(X)),
    "early stopping": lambda a: fit(a, early_stopping=True, max_iter=30, n_iter_no_change=2),
    "fewer rows than processes": lambda a: fit(a, batch_size=1, max_iter=1),
    "no part of both": lambda a: fit(
        a, batch_size=1, max_iter=1, data={"X_unlabeled": U}, shuffle=False
    ),
    "pretrainer": lambda a: fit(
        a, activation="logistic", pretrainer=BernoulliRBM(n_iter=2), data={"X_unlabeled": U}
    ),
    "schedule": lambda a: fit(a, callbacks=[LRScheduler("ExponentialLR", gamma=0.5)]),
    "cosine": lambda a: fit(a, learning_rate="cosine"),
    "warm start": warm_start,
    "partial_fit": partial_fit,
    "several labels": lambda a: fit(a, y=Y[:, None] >> np.arange(3) & 1, early_stopping=True),
    "normal": lambda a: regressor(a, np.c_[X[:, 20], 3 * X[:, 30]]),
    "poisson": lambda a: regressor(a, Y, family="poisson", early_stopping=True),
    "explosion": lambda a: fit(a, solver="sgd", learning_rate_init=3.0, alpha=0.7, max_iter=3),
    "float32": lambda a: fit(a, X=X.astype("float32")),
}


def outcome(model):
    """What a fit leaves behind, but for the seconds that it took."""
    net = model.net_
    return {
        "coefs": model.coefs_,
        "intercepts": model.intercepts_,
        "curves": [model.loss_curve_, model.penalty_curve_, model.validation_scores_],
        "numbers": (model.n_iter_, net.n_explosions_, net.stop_reason_, type(net).__name__),
        "optimizer": [
            value
            for state in net.optimizer_.state_dict()["state"].values()
            for value in (state.values() if isinstance(state, dict) else [state])
            if value is not None
        ],
    }


# What each of the processes does


def common(accelerator, folder):
    """What several processes come to, and how they behave, by name."""
    main = accelerator.is_main_process
    index = accelerator.process_index
    found = {name: outcome(case(accelerator)) for name, case in CASES.items()}

    found["sampling"] = outcome(fit(accelerator, method="sampling", callbacks=[Spy]))
    found["probes"] = outcome(fit(accelerator, method="quadratic", n_probes=2))
    found["pairs"] = outcome(
        fit(accelerator, method="moments", retain_rate="auto", data={"X_unlabeled": U})
    )
    found["seeds"] = list(Spy.seeds)
    found["drawn seed"] = outcome(fit(accelerator, random_state=None))

    def one_stops(**settings):
        return fit(accelerator, **settings).n_iter_

    stop = [StopEarly()] if index == 1 else []
    found["stopped by one"] = one_stops(callbacks=stop, max_iter=6)
    model = MarginalizedDropoutClassifier(**SHORT, accelerator=accelerator)
    if main:
        model.set_callbacks(StopTask())
    found["stopped by a task"] = model.fit(X, Y).n_iter_

    scores = EpochScoring("accuracy", lower_is_better=False, name="acc", on_train=True)
    best = Checkpoint(dirname=f"{folder}/best", load_best=True, monitor="valid_loss_best")
    model = fit(accelerator, early_stopping=True, callbacks=[scores, best])
    found["callbacks"] = outcome(model) | {"scores": model.net_.history[:, "acc"]}

    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        model = MarginalizedDropoutClassifier(**SHORT, accelerator=accelerator, verbose=True)
        model.fit(X, Y)
    found["printed"], found["warned"] = printed.getvalue(), [str(w.message) for w in warned]

    found["shared"] = [
        other.accelerator.num_processes
        for other in (clone(model), copy.deepcopy(model), copy.deepcopy(clone(model)))
    ]
    found["pickle"] = pickle.dumps(model)
    found["predictions"] = model.predict_proba(X)
    if main:  # alone
        found["by hand"] = model.net_.partial_fit(X, Y).predict(X[:3])
    model = MarginalizedDropoutClassifier(**SHORT, accelerator=accelerator)
    found["cross-validation"] = quietly(lambda: cross_val_score(model, X, Y, cv=3))

    found["errors"] = {}
    part = slice(0, 50 - index)

    def error_of(name, call):
        try:
            call()
        except ValueError as error:
            found["errors"][name] = str(error)

    error_of("rows", lambda: fit(accelerator, X=X[part], y=Y[part]))
    error_of("X", lambda: fit(accelerator, X=X + index))
    error_of("parameters", lambda: fit(accelerator, alpha=0.1 * index))
    error_of("random_state", lambda: fit(accelerator, random_state=index))
    error_of("diverged", lambda: fit(accelerator, solver="sgd", learning_rate_init=1e300))
    error_of("device", lambda: fit(accelerator, device="cuda" if main else "meta"))
    found["after errors"] = outcome(fit(accelerator))
    return found


def lost(accelerator, index, failure):
    """What the first process is told when the second one fails."""
    start = time.perf_counter()
    try:
        if failure == "absent" and index == 1:
            return None
        error = {"error": OSError("no"), "Ctrl-C": KeyboardInterrupt()}.get(failure)
        failing = [StopEarly(error)] if index == 1 else []
        fit(accelerator, max_iter=10, callbacks=failing)
    except (OSError, RuntimeError, KeyboardInterrupt) as raised:
        return type(raised).__name__, str(raised), time.perf_counter() - start
    return "nothing"


def process(folder, ports):
    """One of the processes; stores what it found."""
    torch.set_num_threads(1)
    index = int(os.environ["RANK"])
    found = common(accelerate.Accelerator(), folder)
    for failure, port in zip(("absent", "error", "Ctrl-C"), ports, strict=True):
        torch.distributed.destroy_process_group()
        accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
        os.environ["MASTER_PORT"] = port
        # Closed connections tell the others at once; only who is absent is waited for.
        seconds = 5 if failure == "absent" else 100
        wait = accelerate.InitProcessGroupKwargs(timeout=timedelta(seconds=seconds))
        accelerator = accelerate.Accelerator(kwargs_handlers=[wait])
        found[failure] = lost(accelerator, index, failure)
        gone = Path(folder, f"{failure} {index}")
        gone.touch()
        while failure == "absent" and not gone.with_name("absent 0").exists():
            time.sleep(0.05)  # alive, but elsewhere
    Path(folder, f"{index}.pickle").write_bytes(pickle.dumps(found))


# The tests


def free_ports(n):
    sockets = [socket.socket() for _ in range(n)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [str(each.getsockname()[1]) for each in sockets]
    for each in sockets:
        each.close()
    return ports


def launch(folder, cpu=True, limit=400):
    """What two processes found."""
    first, *others = free_ports(4)
    common = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": first}
    common |= {"ACCELERATE_USE_CPU": str(cpu), "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    children, logs = [], [Path(folder, f"{k}.log") for k in range(2)]
    for index, path in enumerate(logs):
        rank = {"RANK": str(index), "LOCAL_RANK": str(index), "LOCAL_WORLD_SIZE": "2"}
        command = [sys.executable, __file__, str(folder), *others]
        with path.open("w") as log:
            environment = {**os.environ, **common, **rank}
            children.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
    end = time.monotonic() + limit
    try:
        codes = [child.wait(max(1.0, end - time.monotonic())) for child in children]
    except subprocess.TimeoutExpired:
        codes = "not in time"
    finally:
        for child in children:
            child.kill()
            child.wait()
    assert codes == [0, 0], "\n".join(path.read_text() for path in logs)
    return [pickle.loads(Path(folder, f"{k}.pickle").read_bytes()) for k in range(2)]


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    return launch(tmp_path_factory.mktemp("processes"))


def assert_close(actual, expected, rtol):
    assert actual["numbers"] == expected["numbers"]
    for name in ("coefs", "intercepts", "optimizer"):
        for a, b in zip(actual[name], expected[name], strict=True):
            b = np.asarray(b)
            np.testing.assert_allclose(np.asarray(a), b, rtol=rtol, atol=rtol * np.abs(b).max())
    for a, b in zip(actual["curves"], expected["curves"], strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            np.testing.assert_allclose(a, b, rtol=rtol)


def assert_equal(a, b):
    assert a["numbers"] == b["numbers"]
    np.testing.assert_array_equal(np.concatenate(a["curves"][:2]), np.concatenate(b["curves"][:2]))
    for name in ("coefs", "intercepts", "optimizer"):
        for one, other in zip(a[name], b[name], strict=True):
            np.testing.assert_array_equal(np.asarray(one), np.asarray(other))


@pytest.mark.parametrize("case", CASES)
def test_two_processes_fit_what_one_fits(found, case):
    expected = outcome(CASES[case](None))
    # Rounding grows a little with the epochs.
    assert_close(found[0][case], expected, 1e-3 if case == "float32" else 1e-10)
    if case == "explosion":
        assert expected["numbers"][1] > 0


@pytest.mark.parametrize(
    "case", [*CASES, "sampling", "probes", "pairs", "drawn seed", "callbacks"]
)
def test_both_processes_hold_the_same_to_the_last_bit(found, case):
    assert_equal(found[0][case], found[1][case])


def test_noise_differs_by_process(found):
    seeds = [set(each["seeds"]) for each in found]
    assert [len(each) for each in seeds] == [1, 1]
    assert seeds[0] != seeds[1]


@pytest.mark.parametrize("case", ["stopped by one", "stopped by a task"])
def test_where_one_process_stops_both_stop(found, case):
    assert [each[case] for each in found] == [2, 2]


def test_callbacks_score_whole_batches(found):
    scores = EpochScoring("accuracy", lower_is_better=False, name="acc", on_train=True)
    model = fit(None, early_stopping=True, callbacks=[scores])
    for each in found:
        np.testing.assert_allclose(each["callbacks"]["scores"], model.net_.history[:, "acc"])


def test_only_the_main_process_prints_and_warns(found):
    assert len(found[0]["printed"].splitlines()) == 1 + SHORT["max_iter"]
    assert len(found[0]["warned"]) == 1
    assert "max_iter" in found[0]["warned"][0]
    assert (found[1]["printed"], found[1]["warned"]) == ("", [])


def test_copies_share_the_accelerator(found):
    assert [each["shared"] for each in found] == [[2, 2, 2]] * 2


def test_pickles_load_without_accelerate(found, tmp_path):
    path = tmp_path / "model.pickle"
    path.write_bytes(found[1]["pickle"])
    code = (
        "import pickle, sys; sys.modules['accelerate'] = None\n"
        f"model = pickle.load(open({str(path)!r}, 'rb'))\n"
        "assert model.accelerator is None and model.net_.initialized_\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    model = pickle.loads(found[1]["pickle"])
    np.testing.assert_array_equal(model.predict_proba(X), found[0]["predictions"])
    model.partial_fit(X, Y)
    assert model.n_iter_ == SHORT["max_iter"] + 1
    assert "by hand" in found[0]


def test_cross_validation_in_step(found):
    model = MarginalizedDropoutClassifier(**SHORT)
    expected = quietly(lambda: cross_val_score(model, X, Y, cv=3))
    for each in found:
        np.testing.assert_allclose(each["cross-validation"], expected)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("rows", "differ: the number of rows, X, y\\. "),
        ("X", "differ: X\\. "),
        ("parameters", "differ: the parameters\\. "),
        ("random_state", "differ: random_state\\. "),
        ("diverged", "learning_rate_init"),
        ("device", "not that of the accelerator"),
    ],
)
def test_all_processes_get_the_same_error(found, name, words):
    for each in found:
        with pytest.raises(ValueError, match=words):
            raise ValueError(each["errors"][name])
        assert_equal(each["after errors"], each["diagonal"])


@pytest.mark.parametrize("failure", ["absent", "error", "Ctrl-C"])
def test_a_process_that_fails_leaves_the_others_with_an_error(found, failure):
    kind, message, seconds = found[0][failure]
    assert kind == "RuntimeError"
    assert "in vain" in message
    assert seconds < 30
    own = {"absent": None, "error": "OSError", "Ctrl-C": "KeyboardInterrupt"}[failure]
    assert found[1][failure] is None if own is None else found[1][failure][0] == own


def test_the_example_as_the_page_launches_it():
    """Two processes come to the objective that one comes to."""
    script = str(ROOT / "examples" / "data_parallel.py")
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    environment |= {"PYTHONPATH": str(ROOT), "PYTHONWARNINGS": "ignore"}
    launcher = ["-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2"]
    launcher += ["--main_process_port", free_ports(1)[0]]
    printed = []
    for prefix in ([], launcher):
        command = [sys.executable, *prefix, script]
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=300
        )
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout.splitlines())
    assert [lines[0][:13] for lines in printed] == ["1 process(es)", "2 process(es)"]
    assert printed[0][1:] == printed[1][1:]
    assert len(printed[1]) == 3


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
def test_two_gpus_fit_what_one_fits(tmp_path):
    found = launch(tmp_path, cpu=False)
    for case in CASES:
        assert_equal(found[0][case], found[1][case])
        expected = outcome(CASES[case](None))
        assert_close(found[0][case], expected, 1e-3 if case == "float32" else 1e-8)


def one_process(**settings):
    """What a fit looks at of an accelerator."""
    values = {"num_processes": 1, "process_index": 0, "is_main_process": True, "device": "cpu"}
    values |= {"mixed_precision": "no", "gradient_accumulation_steps": 1}
    values |= {"distributed_type": "NO", "reduce": sum, "wait_for_everyone": sum}
    return SimpleNamespace(**values | settings)


def test_one_process_is_an_ordinary_fit():
    accelerator = accelerate.Accelerator(cpu=True)
    assert accelerator.num_processes == 1
    model = fit(accelerator)
    assert_equal(outcome(model), outcome(fit(None)))
    assert clone(model).accelerator is not None


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"mixed_precision": "bf16"}, "mixed_precision='bf16'"),
        ({"gradient_accumulation_steps": 4}, "over 4 steps"),
        ({"distributed_type": "FSDP"}, "type FSDP"),
        ({"device": "cuda:0"}, "device='cpu' is not that of the accelerator, 'cuda:0'"),
    ],
)
def test_what_is_not_supported_is_an_error(settings, words):
    with pytest.raises(ValueError, match=words):
        fit(one_process(**settings), device="cpu")
    with pytest.raises(ValueError, match="'accelerator' parameter"):
        fit("auto")


def test_checkpoints_are_of_one_process(tmp_path):
    with pytest.raises(ValueError, match="state of one process"):
        fit(one_process(num_processes=2), checkpoint=tmp_path / "folder")


def test_processes_that_do_not_know_of_each_other_are_an_error(monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ValueError, match="ACCELERATE_USE_CPU=true"):
        fit(one_process())


# The parts of a batch, without processes


@pytest.mark.parametrize("n_parts", [2, 3, 7])
@pytest.mark.parametrize("n_unlabeled", [0, 1, 4])
@pytest.mark.parametrize("method", ["diagonal", "moments", "quadratic"])
@pytest.mark.parametrize("sizes", [(4, 5, 3), (4, 3)], ids=["network", "linear"])
def test_parts_sum_to_the_whole(sizes, method, n_unlabeled, n_parts):
    torch.manual_seed(0)
    noise = dict(enumerate([Dropout(0.8), Dropout(0.5)][: len(sizes) - 1]))
    network = NoisyNetwork(sizes, "tanh", noise, dtype=torch.float64)
    x = torch.randn(5 + n_unlabeled, 4, dtype=torch.float64)
    batch = WeightedRows.of(
        x, torch.tensor([0, 2, 1, 1, 0]), torch.rand(5, dtype=torch.float64), 0.3, 0.7
    )
    objective = Objective(Categorical(), method, alpha=0.1)
    whole = objective.backward(network, batch)
    expected = [p.grad for p in network.parameters()]
    network.zero_grad()
    parts = [objective.backward(network, batch, part=(k, n_parts)) for k in range(n_parts)]
    for each, term in zip(zip(*parts, strict=True), whole, strict=True):
        torch.testing.assert_close(sum(each), term, rtol=1e-12, atol=1e-15)
    for parameter, gradient in zip(network.parameters(), expected, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-15)
    values = [objective(network, batch, None, (k, n_parts)).total for k in range(n_parts)]
    torch.testing.assert_close(sum(values), whole.total, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("n_unlabeled", [0, 3])
def test_sampled_parts_have_the_expectation_of_the_whole(n_unlabeled):
    """A z-score of the difference of two means of independent draws."""
    network = NoisyNetwork([4, 6, 3], noise={0: Dropout(0.8), 1: Dropout(0.5)})
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4 + n_unlabeled, 4, generator=generator)
    batch = WeightedRows.of(x, torch.tensor([0, 2, 1, 1]), unlabeled_share=0.4)
    objective = Objective(Categorical(), "sampling", alpha=0.1)
    draws = torch.stack(
        [
            torch.stack(
                [
                    sum(objective(network, batch, generator, (k, n)).total for k in range(n))
                    for n in (1, 2)
                ]
            )
            for _ in range(200)
        ]
    ).detach()
    difference = draws[:, 0].mean() - draws[:, 1].mean()
    assert difference.abs() < 4 * (draws.var(0).sum() / len(draws)).sqrt()


if __name__ == "__main__":
    process(sys.argv[1], sys.argv[2:])
