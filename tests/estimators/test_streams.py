"""Streams: chunks give what a fit gives with the same batches, and memory stays flat."""

import copy
import os
import pickle
import subprocess
import sys
import textwrap
import warnings

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.exceptions import ConvergenceWarning
from skorch.callbacks import Callback

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)
from sklearn_margdrop.inspection import TrainingCurveDisplay, penalty_per_sample

SIZE, N_BATCHES, D = 10, 6, 4
NETWORKS = (MarginalizedDropoutClassifier, MarginalizedDropoutRegressor)
GLMS = (MarginalizedDropoutGLMClassifier, MarginalizedDropoutGLMRegressor)


@pytest.fixture(scope="module")
def data():
    rng = np.random.default_rng(0)
    X = rng.normal(size=(SIZE * N_BATCHES, D))
    return X, {"Classifier": rng.integers(3, size=len(X)), "Regressor": 3 * X[:, 0] + 1}


def target_of(cls, y):
    """The target, and what the first call has to be told."""
    is_classifier = cls.__name__.endswith("Classifier")
    name = "Classifier" if is_classifier else "Regressor"
    return y[name], {"classes": [0, 1, 2]} if is_classifier else {}


def network(cls, **settings):
    constant = {"learning_rate": "constant", "learning_rate_init": 0.01}
    settings = {"shuffle": False, **constant, **settings}
    return cls((5,), batch_size=SIZE, random_state=0, **settings)


def fit(model, X, y, **kwargs):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # of a single epoch
        return model.fit(X, y, **kwargs)


def weights_of(model):
    if hasattr(model, "coef_"):
        return [model.coef_, model.intercept_]
    return [*model.coefs_, *model.intercepts_]


def assert_same(fitted, stream, n_before=0):
    for left, right in zip(weights_of(fitted), weights_of(stream), strict=True):
        np.testing.assert_array_equal(left, right)
    losses = stream.loss_curve_[n_before:]
    np.testing.assert_allclose(fitted.loss_curve_[-1], np.mean(losses), rtol=1e-12)


def begun(model, X, y, first_call):
    """A common start: of the first batch, or of all rows where these decide on the units of y."""
    if hasattr(model, "family"):
        return fit(model.set_params(max_iter=1), X, y)
    return model.partial_fit(X[:SIZE], y[:SIZE], **first_call)


def chunks(n_rows, size):
    return (slice(start, start + size) for start in range(0, n_rows, size))


SETTINGS = [
    {"solver": "adam"},
    {"solver": "adam", "activation": "logistic"},
    {"solver": "sgd", "method": "sampling"},
    {"solver": "sgd", "method": "diagonal"},
    {"solver": "adam", "method": "quadratic", "n_probes": None},
    {"solver": "sgd", "method": "quadratic", "n_probes": 1},
]


@pytest.mark.parametrize("n_together", [1, 3])
@pytest.mark.parametrize("settings", SETTINGS)
@pytest.mark.parametrize("cls", NETWORKS)
def test_networks_learn_from_chunks_what_an_epoch_teaches(cls, settings, n_together, data):
    """To the last bit, from the same state; the scales of a first chunk are those of both."""
    X, y = data
    y, first_call = target_of(cls, y)
    start = begun(network(cls, **settings), X, y, first_call)
    fitted, stream = copy.deepcopy(start), copy.deepcopy(start)
    fit(fitted.set_params(warm_start=True, max_iter=1), X, y)
    for chunk in chunks(len(X), n_together * SIZE):
        stream.partial_fit(X[chunk], y[chunk])
    assert_same(fitted, stream, n_before=1)
    assert not np.array_equal(weights_of(start)[0], weights_of(stream)[0])


def test_weights_of_mean_one_and_unlabelled_rows_agree(data):
    X, y = data
    y, first_call = target_of(MarginalizedDropoutClassifier, y)
    weight = np.tile([0.5, 1.5], len(y) // 2)
    start = begun(network(MarginalizedDropoutClassifier, solver="sgd"), X, y, first_call)
    fitted, stream = copy.deepcopy(start), copy.deepcopy(start)
    fitted.set_params(warm_start=True, max_iter=1)
    fit(fitted, X, y, sample_weight=weight, X_unlabeled=-X)
    for chunk in chunks(len(X), SIZE):
        extra = {"sample_weight": weight[chunk], "X_unlabeled": -X[chunk]}
        stream.partial_fit(X[chunk], y[chunk], **extra)
    assert_same(fitted, stream, n_before=1)


def order_of(state, n_rows, size):
    """In which the rows of chunks of this size are visited, from the state of the order."""
    order = torch.Generator().manual_seed(0)
    order.set_state(state)
    visited = []
    for chunk in chunks(n_rows, size):
        rows = torch.arange(n_rows)[chunk]  # shuffled, unless they are a single batch
        visited.append(rows if size == SIZE else rows[torch.randperm(size, generator=order)])
    return torch.cat(visited).numpy()


def whole_order(state, n_rows):
    order = torch.Generator().manual_seed(0)
    order.set_state(state)
    return torch.randperm(n_rows, generator=order).numpy()


@pytest.mark.parametrize("n_together", [1, 3])
@pytest.mark.parametrize("method", ["moments", "quadratic", "sampling"])
@pytest.mark.parametrize("solver", ["sgd", "adagrad", "fisher"])
@pytest.mark.parametrize("cls", GLMS)
def test_glms_learn_from_chunks_what_an_epoch_teaches(cls, solver, method, n_together, data):
    """To the last bit: `fit` is given the rows so that it visits them in the chunks' order."""
    X, y = data
    y, first_call = target_of(cls, y)
    start = cls(
        solver=solver,
        method=method,
        batch_size=SIZE,
        retain_rate=0.5,
        alpha=1e-4,
        random_state=0,
    )
    start = begun(start, X, y, first_call)
    fitted, stream = copy.deepcopy(start), copy.deepcopy(start)
    for chunk in chunks(len(X), n_together * SIZE):
        stream.partial_fit(X[chunk], y[chunk])
    state = start.net_.order_generator_.get_state()
    rows = order_of(state, len(X), n_together * SIZE)[np.argsort(whole_order(state, len(X)))]
    fit(fitted.set_params(warm_start=True, max_iter=1), X[rows], y[rows])
    assert_same(fitted, stream, n_before=1)
    assert not np.array_equal(start.coef_, stream.coef_)


@pytest.mark.parametrize("solver", ["sgd", "adagrad", "fisher"])
@pytest.mark.parametrize("cls", GLMS)
def test_glms_need_no_common_start_with_a_rate_and_no_intercept(cls, solver, data):
    X, y = data
    y, first_call = target_of(cls, y)
    settings = {"learning_rate_init": 0.05, "fit_intercept": False}
    settings |= {"retain_rate": 0.5, "alpha": 1e-4}
    if cls is MarginalizedDropoutGLMRegressor:  # whose units depend on the rows otherwise
        y, settings["family"] = np.abs(y), "poisson"
    stream, fitted = (
        cls(solver=solver, batch_size=SIZE, random_state=0, max_iter=1, **settings)
        for _ in range(2)
    )
    for chunk in chunks(len(X), SIZE):
        stream.partial_fit(X[chunk], y[chunk], **first_call)
    # The order generator of a stream of single batches is where it began.
    rows = np.argsort(whole_order(stream.net_.order_generator_.get_state(), len(X)))
    assert_same(fit(fitted, X[rows], y[rows]), stream)


@pytest.mark.parametrize("solver", ["sgd", "adagrad"])
def test_the_first_rows_decide_on_an_automatic_rate(solver):
    X = np.random.default_rng(0).normal(size=(20, 3))
    y = 100 * np.exp(X[:, 0])
    model = MarginalizedDropoutGLMRegressor(family="poisson", solver=solver, random_state=0)
    model.partial_fit(X, y)
    rate = model.net_.lr
    assert model.partial_fit(X, y / 50).net_.lr == rate
    assert pickle.loads(pickle.dumps(model)).partial_fit(X, y / 9).net_.lr == rate
    model.set_params(solver="sgd" if solver == "adagrad" else "adagrad").partial_fit(X, y)
    assert model.net_.lr != rate
    assert model.set_params(learning_rate_init=0.5).partial_fit(X, y).net_.lr == 0.5


@pytest.mark.parametrize("cls", [MarginalizedDropoutRegressor, MarginalizedDropoutGLMRegressor])
def test_the_history_of_a_stream_is_bounded_and_its_curves_are_whole(cls, data, monkeypatch):
    X, y = data
    y, _ = target_of(cls, y)
    decay = {"learning_rate": "constant", "learning_rate_decay": 0.5}
    special = {"solver": "adagrad"} if cls in GLMS else decay
    models = [cls(random_state=0, max_iter=3, **special) for _ in range(2)]
    for _ in range(12):
        models[0].partial_fit(X, y)
    monkeypatch.setattr("sklearn_margdrop.training.recording._STREAM_HISTORY", 5)
    for call in range(12):
        models[1].partial_fit(X, y)
        net = models[1].net_
        assert len(net.history) == min(call + 1, 5)
        assert net.history[-1, "epoch"] == models[1].n_iter_ == call + 1
    whole, bounded = models
    assert bounded.loss_curve_ == whole.loss_curve_
    assert bounded.net_.history[:, "train_loss"] == whole.loss_curve_[-5:]
    best = whole.net_.history[-5:, "train_loss_best"]
    assert bounded.net_.history[:, "train_loss_best"] == best
    assert_same(whole, bounded, n_before=11)
    plt = pytest.importorskip("matplotlib.pyplot")
    (objective, penalty) = TrainingCurveDisplay.from_estimator(bounded).lines_
    plt.close()
    assert len(objective.get_xdata()) == len(penalty.get_xdata()) == 12
    again = pickle.loads(pickle.dumps(bounded)).partial_fit(X, y)
    assert (again.n_iter_, len(again.loss_curve_), len(again.net_.history)) == (13, 13, 5)
    # A warm start goes on with what there is, and a new fit starts anew.
    curve = list(again.loss_curve_)
    fit(again.set_params(warm_start=True), X, y)
    assert (again.n_iter_, len(again.net_.history)) == (16, 8)
    assert again.loss_curve_[:13] == curve
    assert fit(again.set_params(warm_start=False), X, y).n_iter_ == len(again.loss_curve_) == 3


class Failing(Callback):
    def on_epoch_end(self, net, **kwargs):
        raise RuntimeError("on purpose")


def test_a_call_that_fails_leaves_the_curves(data):
    X, _ = data
    model = MarginalizedDropoutRegressor((3,), random_state=0).partial_fit(X, X[:, 0])
    curve = list(model.loss_curve_)
    with pytest.raises(RuntimeError, match="on purpose"):
        model.set_params(callbacks=[Failing()]).partial_fit(X, X[:, 0])
    assert model.loss_curve_ == curve
    assert model.set_params(callbacks=None).partial_fit(X, X[:, 0]).n_iter_ == 2


LAYOUTS = {
    "C": lambda X: X,
    "F": np.asfortranarray,
    "int": lambda X: np.rint(3 * X).astype(np.int16),
    "half": lambda X: X.astype(np.float16),
}


@pytest.fixture(params=["r", "r+", "c"])
def mapped(request, tmp_path):
    """A function that stores an array and maps it; the file is the same at the end."""
    stored = {}

    def store(X):
        path = tmp_path / f"{len(stored)}.npy"
        np.save(path, X)
        stored[path] = path.read_bytes()
        return np.load(path, mmap_mode=request.param)

    yield store
    for path, before in stored.items():
        assert path.read_bytes() == before


MODELS = [
    MarginalizedDropoutClassifier((5,), early_stopping=True, max_iter=3, random_state=0),
    MarginalizedDropoutRegressor((5,), activation="logistic", max_iter=3, random_state=0),
    MarginalizedDropoutGLMClassifier(max_iter=20, random_state=0),
    MarginalizedDropoutGLMRegressor(solver="fisher", max_iter=3, random_state=0),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("model", MODELS, ids=lambda model: type(model).__name__[19:])
def test_memory_maps_give_what_arrays_give(model, dtype, layout, mapped, data):
    X, y = data
    y, _ = target_of(type(model), y)
    X = LAYOUTS[layout](X.astype(dtype))
    file, unlabeled = mapped(X), mapped(X[::-1])
    weight = np.arange(len(y)) % 3
    for each in ({}, {"sample_weight": weight, "X_unlabeled": X[::-1]}):
        given = each | ({"X_unlabeled": unlabeled} if each else {})
        fitted = fit(copy.deepcopy(model), X, y, **each)
        ours = fit(copy.deepcopy(model), file, y, **given)
        for left, right in zip(weights_of(ours), weights_of(fitted), strict=True):
            assert left.dtype == right.dtype
            np.testing.assert_allclose(left, right, rtol=1e-5 if dtype == np.float32 else 1e-9)
    tight = {"rtol": 1e-5, "atol": 1e-6}
    np.testing.assert_allclose(ours.predict(file), fitted.predict(X), **tight)
    np.testing.assert_allclose(ours.score(file, y), fitted.score(X, y), **tight)
    np.testing.assert_allclose(
        penalty_per_sample(ours, file), penalty_per_sample(fitted, X), **tight
    )
    np.testing.assert_allclose(ours.net_.predict(file), fitted.net_.predict(X), **tight)


def test_memory_maps_are_validated(mapped, data):
    X, _ = data
    X = X.copy()
    X[-1, -1] = np.nan
    for model in MODELS:
        with pytest.raises(ValueError, match="contains NaN"):
            model.fit(mapped(X), np.arange(len(X)) % 2)
    with pytest.raises(ValueError, match="Complex"):
        MODELS[0].fit(mapped(X.astype(complex)), np.arange(len(X)) % 2)


#: Fits on a file of 40 MB; prints how much the memory that is no file's grows in each.
CHILD = """
import sys, threading, time, warnings
import numpy as np
from scipy import sparse
import sklearn_margdrop.training.batches
from sklearn_margdrop import *

warnings.simplefilter("ignore")
sklearn_margdrop.numerics.memory._BLOCK_ELEMENTS = 2**17
sklearn_margdrop.estimators.strengths.N_STEPS = 3

def anonymous():
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1e3

most, running = [0.0], [True]

def watch():
    while running[0]:
        most[0] = max(most[0], anonymous())
        time.sleep(0.002)

def grows(call):
    before = most[0] = anonymous()
    call()
    most[0] = max(most[0], anonymous())
    return most[0] - before

path = sys.argv[1]
n, d = 20_000, 250
for start in range(0, n, 5000):
    X = np.lib.format.open_memmap(path, "w+" if start == 0 else "r+", "f8", (n, d))
    X[start:start + 5000] = np.random.default_rng(start).normal(size=(5000, d))
    del X
y = np.arange(n) % 2
weight = np.arange(n) % 3 / 1.0
small = {"max_iter": 1, "batch_size": 200, "random_state": 0}
net = lambda **kw: MarginalizedDropoutClassifier((8,), **small, **kw)
glm = lambda **kw: MarginalizedDropoutGLMClassifier(**(small | kw))
warm = np.random.default_rng(0).normal(size=(3000, d))
for model in (net(), glm(), glm(solver="fisher")):
    model.fit(warm, y[:3000]).predict(warm)
threading.Thread(target=watch, daemon=True).start()
for mode in ("r", "r+"):
    X = np.load(path, mmap_mode=mode)
    for name, model, extra in [
        ("adam", net(early_stopping=True), {"sample_weight": weight}),
        ("fisher", glm(solver="fisher"), {}),
        ("lbfgs", glm(max_iter=3), {"sample_weight": weight, "X_unlabeled": X}),
    ]:
        print(mode, name, "fit", grows(lambda: model.fit(X, y, **extra)))
        print(mode, name, "predict", grows(lambda: model.score(X, y)))
# The same bytes as columns, and as integers.
F = np.memmap(path, "f8", "r", 128, (n, d), order="F")
I = np.memmap(path, "i4", "r", 128, (n, 2 * d))
print("fortran adam", grows(lambda: net().fit(F, y)))
print("fortran lbfgs", grows(lambda: glm(max_iter=2).fit(F, y)))
print("int adam", grows(lambda: net().fit(I, y)))
print("int predict", grows(lambda: model.predict(I[:, :d])))
# Half precision, whose sum overflows.
H = np.lib.format.open_memmap(path + ".half", "w+", "f2", (n, 4 * d))
H[:] = 300
H[::2, 0] = 200
print("half adam", grows(lambda: net().fit(H, y)))
running[0] = False
"""


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="reads Linux' /proc")
def test_fits_on_memory_maps_never_copy_them(tmp_path):
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "MALLOC_TRIM_THRESHOLD_": "0"}
    path = tmp_path / "X.npy"
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(CHILD), str(path)],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert run.returncode == 0, run.stderr
    growth = dict(line.rsplit(" ", 1) for line in run.stdout.splitlines())
    assert len(growth) == 17
    assert path.stat().st_size >= 4e7
    assert max(map(float, growth.values())) < 15, growth


@pytest.mark.parametrize("solver", ["lbfgs", "adagrad"])
def test_sparse_data_of_memory_maps(solver, mapped, data):
    X, y = data
    y, _ = target_of(MarginalizedDropoutGLMClassifier, y)
    X = sparse.csr_array(np.where(X > 0, X, 0))
    file = sparse.csr_array((mapped(X.data), mapped(X.indices), mapped(X.indptr)), shape=X.shape)
    models = [
        fit(MarginalizedDropoutGLMClassifier(solver=solver, max_iter=9, random_state=0), rows, y)
        for rows in (X, file)
    ]
    np.testing.assert_array_equal(models[0].coef_, models[1].coef_)
    np.testing.assert_array_equal(models[0].predict(X), models[1].predict(file))


@pytest.mark.parametrize("cls", [*NETWORKS, *GLMS])
def test_incremental_of_dask_calls_block_by_block(cls, data):
    da = pytest.importorskip("dask.array")
    wrappers = pytest.importorskip("dask_ml.wrappers")
    X, y = data
    y, first_call = target_of(cls, y)
    model = network(cls) if cls in NETWORKS else cls(solver="adagrad", random_state=0)
    blocks = da.from_array(X, chunks=(SIZE, D)), da.from_array(y, chunks=SIZE)
    scoring = "accuracy" if first_call else "neg_mean_squared_error"
    incremental = clone(wrappers.Incremental(model, scoring=scoring, shuffle_blocks=False))
    incremental.fit(*blocks, **first_call)
    by_hand = clone(model)
    for chunk in chunks(len(X), SIZE):
        by_hand.partial_fit(X[chunk], y[chunk], **first_call)
    assert_same(by_hand, incremental.estimator_, n_before=N_BATCHES - 1)
    predicted = incremental.predict(blocks[0]).compute()
    np.testing.assert_allclose(predicted, by_hand.predict(X), rtol=1e-12)
    assert incremental.score(*blocks) > -np.inf
    assert not hasattr(model, "n_iter_")
    assert incremental.partial_fit(*blocks, **first_call).n_iter_ == 2 * N_BATCHES


@pytest.mark.parametrize("library", ["pandas", "polars"])
def test_record_batches_of_parquet(library, data, tmp_path):
    pytest.importorskip(library)
    pq = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    X, y = data
    y, first_call = target_of(MarginalizedDropoutClassifier, y)
    names = [f"x{j}" for j in range(D)]
    columns = dict(zip([*names, "y"], [*X.T, y], strict=True))
    pq.write_table(pa.table(columns), tmp_path / "rows.parquet", row_group_size=25)
    model, by_hand = (network(MarginalizedDropoutClassifier) for _ in range(2))
    with pq.ParquetFile(tmp_path / "rows.parquet") as file:
        for batch in file.iter_batches(batch_size=20):
            if library == "pandas":
                frame = batch.to_pandas()
            else:
                frame = pytest.importorskip("polars").from_arrow(batch)
            model.partial_fit(frame[names], frame["y"], **first_call)
    for chunk in chunks(len(X), 20):
        by_hand.partial_fit(X[chunk], y[chunk], **first_call)
    assert list(model.feature_names_in_) == names
    assert_same(by_hand, model, n_before=2)
