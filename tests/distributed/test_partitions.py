"""Dask collections: the same linear models, fitted where the rows lie, and what others say."""

import pickle

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from numpy.testing import assert_allclose

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)
from sklearn_margdrop.distributed.collections import share_out
from sklearn_margdrop.distributed.partitions import pack, unpack
from sklearn_margdrop.noise import Dropout

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")
CHUNKS = ((50, 0, 90, 60), 6)
ROWS = CHUNKS[:1]


def data(family):
    rng = np.random.RandomState(0)
    X = rng.normal(size=(200, 6)) * (rng.uniform(size=(200, 6)) < 0.6)
    eta = X @ rng.uniform(-1, 1, size=6)
    y = {
        "bernoulli": (eta > 0).astype(int),
        "categorical": np.digitize(eta, [-0.5, 0.5]),
        "normal": eta + rng.normal(size=200),
        "poisson": rng.poisson(np.exp(eta / 2)),
    }[family]
    weight = np.where(np.arange(200) % 7, rng.uniform(0.5, 2, size=200), 0)
    return X, y, weight


def glm(family, **options):
    options = {"tol": 1e-10, **options}
    if family in ("normal", "poisson"):
        return MarginalizedDropoutGLMRegressor(family=family, **options)
    return MarginalizedDropoutGLMClassifier(**options, class_weight="balanced")


def assert_same(there, here, atol=1e-8):
    for name in ("coef_", "intercept_", "fisher_diagonal_", "objective_", "penalty_"):
        assert_allclose(getattr(there, name), getattr(here, name), rtol=0, atol=atol)


def check(family, method, sparse):
    """With weights of 0, a partition without rows, and unlabelled rows."""
    X, y, weight = data(family)
    rows = da.from_array(X, chunks=CHUNKS)
    if sparse:
        rows = rows.map_blocks(sp.csr_array)
    blocks = [da.from_array(each, chunks=ROWS) for each in (y, weight)]
    there = glm(family, method=method).fit(rows, *blocks, X_unlabeled=rows[:140])
    X = sp.csr_array(X) if sparse else X
    here = glm(family, method=method).fit(X, y, weight, X_unlabeled=X[:140])
    assert_same(there, here)


@pytest.mark.parametrize("family", ["bernoulli", "categorical", "normal", "poisson"])
@pytest.mark.parametrize("method", ["moments", "quadratic"])
@pytest.mark.parametrize("sparse", [False, True])
def test_coefficients_are_the_same(family, method, sparse):
    check(family, method, sparse)


@pytest.mark.parametrize("family", ["bernoulli", "normal"])
@pytest.mark.parametrize("options", [{"fit_intercept": False}, {"n_restarts": 1}])
def test_options(family, options):
    X, y, _ = data(family)
    there = glm(family, **options, random_state=0).fit(
        da.from_array(X, chunks=CHUNKS), da.from_array(y, chunks=ROWS)
    )
    here = glm(family, **options, random_state=0).fit(X, y)
    assert_same(there, here)
    assert_allclose(there.restart_objectives_, here.restart_objectives_, atol=1e-8)


def test_warm_start_goes_on():
    X, y, _ = data("categorical")
    rows, labels = da.from_array(X, chunks=CHUNKS), da.from_array(y, chunks=ROWS)
    model = glm("categorical", warm_start=True).fit(rows, labels)
    first = model.n_iter_
    assert model.fit(rows, labels).n_iter_ <= first + 1
    assert_same(model, glm("categorical").fit(X, y))
    with pytest.raises(ValueError, match="y contains"):
        model.fit(rows, labels + 1)
    fewer = y != y[0]
    with pytest.raises(ValueError, match="warm_start can only"):
        model.fit(da.from_array(X[fewer]), y[fewer])


def test_frames_have_feature_names_and_others_may_be_arrays():
    dd = pytest.importorskip("dask.dataframe")
    X, y, weight = data("bernoulli")
    frame = pd.DataFrame(X, columns=list("abcdef"))
    labels = pd.Series(np.where(y, "yes", "no"))
    here = glm("bernoulli").fit(frame, labels, weight)
    rows = dd.from_pandas(frame, npartitions=3)
    series = dd.from_pandas(labels, npartitions=3)
    for there in (
        glm("bernoulli").fit(rows, labels, weight),
        glm("bernoulli").fit(rows, series, weight),
    ):
        assert_same(there, here)
        assert list(there.feature_names_in_) == list("abcdef")
        assert list(there.classes_) == ["no", "yes"]
        assert_allclose(there.predict_proba(frame), here.predict_proba(frame), atol=1e-8)
    with pytest.raises(ValueError, match="X_unlabeled is not like X"):
        glm("bernoulli").fit(rows, series, X_unlabeled=rows[list("abcde")])


def test_float32_stays():
    X, y, _ = data("poisson")
    rows = da.from_array(X.astype(np.float32), chunks=CHUNKS)
    there = glm("poisson", tol=1e-4).fit(rows, y)
    here = glm("poisson", tol=1e-4).fit(X.astype(np.float32), y)
    assert there.coef_.dtype == np.float32
    assert_same(there, here, atol=1e-3)


def test_partitions_may_hold_one_class_or_no_weight():
    X, y, weight = data("categorical")
    order = np.argsort(y, kind="stable")
    X, y, weight = X[order], y[order], weight[order]
    counts = tuple(np.bincount(y))
    weight[: counts[0] // 2] = 0
    chunks = (counts[0] // 2, counts[0] - counts[0] // 2, *counts[1:])
    rows, blocks = da.from_array(X, chunks=(chunks, 6)), da.from_array(weight, chunks=(chunks,))
    assert_same(glm("categorical").fit(rows, y, blocks), glm("categorical").fit(X, y, weight))


def bad_value(values, value):
    values = values.astype(float)
    values[130] = value
    return values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": np.nan}, "Input X contains NaN"),
        ({"y": np.inf}, "Input y contains infinity"),
        ({"X": 1e200}, r"X has values of up to 1e\+200, whose squares are too large"),
        ({"weight": -1}, "sample_weight"),
        ({"y": da.zeros(200, chunks=100)}, "y has 2 blocks of rows, X has 4: rechunk it like X"),
        ({"y": np.zeros(199)}, "y has 199 rows, and X has 200"),
        ({"weight": da.zeros(200, chunks=ROWS)}, "sample_weight must be positive"),
    ],
)
def test_bad_data(change, message):
    whole = dict(zip(("X", "y", "weight"), data("normal"), strict=True))
    for name, value in change.items():
        whole[name] = bad_value(whole[name], value) if np.isscalar(value) else value
    rows = da.from_array(whole["X"], chunks=CHUNKS)
    model = glm("normal")
    with pytest.raises(ValueError, match=message):
        model.fit(rows, whole["y"], whole["weight"])
    assert not hasattr(model, "coef_")


def test_all_are_collections_or_none():
    X, y, _ = data("normal")
    rows = da.from_array(X, chunks=CHUNKS)
    with pytest.raises(TypeError, match="X must be a Dask array or frame"):
        glm("normal").fit(X, da.from_array(y, chunks=ROWS))
    with pytest.raises(TypeError, match="X_unlabeled must be a Dask array or frame"):
        glm("normal").fit(rows, y, X_unlabeled=X)


class Counted:
    """Rows that count how often they are looked at."""

    def __init__(self, values):
        self.values, self.n_reads = values, 0
        self.shape, self.dtype, self.ndim = values.shape, values.dtype, values.ndim

    def __getitem__(self, index):
        self.n_reads += 1
        return self.values[index]


@pytest.mark.parametrize(
    ("model", "target"),
    [
        (MarginalizedDropoutClassifier(hidden_layer_sizes=3, max_iter=2, tol=0), "bernoulli"),
        (MarginalizedDropoutRegressor(hidden_layer_sizes=3, max_iter=2, tol=0), "normal"),
        (MarginalizedDropoutGLMClassifier(solver="adagrad", max_iter=2, tol=0), "bernoulli"),
        (MarginalizedDropoutGLMRegressor(solver="sgd", max_iter=2, tol=0), "normal"),
    ],
)
@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_others_name_what_takes_collections(model, target):
    wrappers = pytest.importorskip("dask_ml.wrappers")
    X, y, _ = data(target)
    options = {"classes": [0, 1]} if target == "bernoulli" else {}
    counted = Counted(X)
    rows = da.from_array(counted, chunks=CHUNKS)
    counted.n_reads = 0
    with pytest.raises(TypeError, match=r"dask_ml\.wrappers\.Incremental"):
        model.fit(rows, y)
    with pytest.raises(TypeError, match=r"dask_ml\.wrappers\.Incremental"):
        model.partial_fit(rows, y, **options)
    model.set_params(random_state=0).fit(X, y)
    for name in ("predict", "predict_proba", "predict_log_proba", "decision_function", "score"):
        if hasattr(model, name):
            arguments = (rows, y) if name == "score" else (rows,)
            with pytest.raises(TypeError, match=r"ParallelPostFit.*map_blocks"):
                getattr(model, name)(*arguments)
    assert not counted.n_reads
    # What they name does it.
    rows = da.from_array(X, chunks=(50, 6))
    there = rows.map_blocks(model.predict, drop_axis=1, dtype=model.predict(X).dtype)
    assert_allclose(there.compute(), model.predict(X))
    wrapped = wrappers.ParallelPostFit(model)
    assert_allclose(wrapped.predict(rows).compute(), model.predict(X))
    incremental = wrappers.Incremental(model, shuffle_blocks=False)
    there = incremental.fit(rows, da.from_array(y, chunks=50), **options).estimator_
    here = type(model)(**model.get_params())
    for k in range(0, 200, 50):
        here.partial_fit(X[k : k + 50], y[k : k + 50], **options)
    assert_allclose(there.predict(X), here.predict(X))


def test_no_checkpoint_is_written(tmp_path):
    X, y, _ = data("normal")
    with pytest.raises(ValueError, match="set checkpoint=None"):
        glm("normal", checkpoint=tmp_path / "fit").fit(da.from_array(X, chunks=CHUNKS), y)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("dtype", "scale"), [(np.float64, 1e-160), (np.float32, 1e-25)])
def test_features_in_tiny_units_are_refused_as_elsewhere(dtype, scale):
    X, y, _ = data("normal")
    X = (X * scale).astype(dtype)
    for rows, targets in ((X, y), (da.from_array(X, chunks=CHUNKS), y)):
        with pytest.raises(ValueError, match=r"X has values of up to .* too small"):
            glm("normal").fit(rows, targets)


def test_workers_get_classes_that_a_script_defines():
    """Whose module they cannot import."""
    script = {"__name__": "a_script", "Dropout": Dropout}
    exec("class Mine(Dropout):\n    pass", script)
    made = unpack(pack({0: script["Mine"](0.5)}))[0]
    assert type(made).__name__ == "Mine"
    assert made.variance(torch.ones(1)) == Dropout(0.5).variance(torch.ones(1))
    with pytest.raises(pickle.PicklingError):
        pickle.dumps(script["Mine"](0.5))


def test_blocks_are_loaded_once():
    X, y, _ = data("normal")
    loaded = []

    def load(block):
        loaded.append(len(block))
        return block

    rows = da.from_array(X, chunks=CHUNKS).map_blocks(load, meta=X[:0])
    glm("normal").fit(rows, y)
    assert len(loaded) == rows.numblocks[0]


def test_a_delayed_value_is_no_collection():
    X, y, _ = data("normal")
    with pytest.raises(TypeError, match="X must be a Dask array or frame"):
        glm("normal").fit(dask.delayed(X), y)


def test_partitions_are_shared_out_evenly_and_stay_where_they_can():
    slots = [("a", 0), ("a", 1), ("b", 0)]
    rng = np.random.RandomState(0)
    for _ in range(50):
        sizes = rng.randint(1, 50, size=rng.randint(1, 12)).tolist()
        homes = [[["a"], ["b"], ["a", "b"], []][k] for k in rng.randint(0, 4, size=len(sizes))]
        groups = share_out(slots, homes, sizes)
        assert sorted(k for group in groups.values() for k in group) == list(range(len(sizes)))
        loads = [sum(sizes[k] for k in group) for group in groups.values()]
        busiest = groups[slots[int(np.argmax(loads))]]
        assert max(loads) - min(loads) <= min(sizes[k] for k in busiest)
    stay = share_out(slots, [["a"], ["a"], ["b"]], [5, 5, 7])
    assert stay == {("a", 0): [0], ("a", 1): [1], ("b", 0): [2]}
