"""Dask collections: the same linear models, fitted where the rows lie, and what others say."""

import pickle

import pytest
import scipy.sparse as sp
import torch
from collected import CHUNKS, ROWS, assert_same, data, glm
from numpy.testing import assert_allclose

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)
from sklearn_margdrop.distributed.partitions import pack, unpack
from sklearn_margdrop.noise import Dropout

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")


def check(family, method, sparse):
    """With weights of 0, a partition without rows, and unlabelled rows."""
    X, y, weight = data(family)
    rows = da.from_array(X, chunks=CHUNKS)
    if sparse:
        rows = rows.map_blocks(sp.csr_array)
    blocks = [da.from_array(each, chunks=ROWS) for each in (y, weight)]
    options = {"method": method, "unlabeled_discount": 0.5}
    there = glm(family, **options).fit(rows, *blocks, X_unlabeled=rows[:140])
    X = sp.csr_array(X) if sparse else X
    here = glm(family, **options).fit(X, y, weight, X_unlabeled=X[:140])
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


def test_workers_get_classes_that_a_script_defines():
    """Whose module they cannot import."""
    script = {"__name__": "a_script", "Dropout": Dropout}
    exec("class Mine(Dropout):\n    pass", script)
    made = unpack(pack({0: script["Mine"](0.5)}))[0]
    assert type(made).__name__ == "Mine"
    assert made.variance(torch.ones(1)) == Dropout(0.5).variance(torch.ones(1))
    with pytest.raises(pickle.PicklingError):
        pickle.dumps(script["Mine"](0.5))
