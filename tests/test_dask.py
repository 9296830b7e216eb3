"""Generalised linear models on Dask collections: the same model, fitted where the rows lie."""

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose

from sklearn_margdrop import MarginalizedDropoutGLMClassifier, MarginalizedDropoutGLMRegressor

da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")
CHUNKS = ((50, 0, 90, 60), 6)


@pytest.fixture(scope="module")
def client():
    options = {"processes": True, "n_workers": 2, "threads_per_worker": 1}
    with (
        distributed.LocalCluster(**options, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


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
    return X, y, np.where(np.arange(200) % 7, rng.uniform(0.5, 2, size=200), 0)


def glm(family, **options):
    options = {"tol": 1e-10, **options}
    if family in ("normal", "poisson"):
        return MarginalizedDropoutGLMRegressor(family=family, **options)
    return MarginalizedDropoutGLMClassifier(**options, class_weight="balanced")


def check(family, method, sparse=False):
    X, y, weight = data(family)
    rows = da.from_array(X, chunks=CHUNKS)
    if sparse:
        rows = rows.map_blocks(sp.csr_array)
    blocks = [da.from_array(each, chunks=CHUNKS[:1]) for each in (y, weight)]
    there = glm(family, method=method).fit(rows, *blocks, X_unlabeled=rows[:140])
    X = sp.csr_array(X) if sparse else X
    here = glm(family, method=method).fit(X, y, weight, X_unlabeled=X[:140])
    assert_allclose(there.coef_, here.coef_, rtol=0, atol=1e-8)
    assert_allclose(there.intercept_, here.intercept_, rtol=0, atol=1e-8)
    assert_allclose(there.fisher_diagonal_, here.fisher_diagonal_, atol=1e-8)


@pytest.mark.parametrize("family", ["bernoulli", "categorical", "normal", "poisson"])
@pytest.mark.parametrize("method", ["moments", "quadratic"])
@pytest.mark.parametrize("sparse", [False, True])
def test_threads_find_the_same_coefficients(family, method, sparse):
    check(family, method, sparse)


@pytest.mark.parametrize("family", ["bernoulli", "categorical", "normal", "poisson"])
def test_workers_find_the_same_coefficients(client, family):
    check(family, "moments", sparse=family == "bernoulli")
