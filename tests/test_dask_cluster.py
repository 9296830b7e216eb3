"""A cluster of two processes, and a fit on it."""

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose

from sklearn_margdrop import MarginalizedDropoutGLMRegressor

da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")


@pytest.fixture(scope="module")
def client():
    options = {"processes": True, "n_workers": 2, "threads_per_worker": 1}
    with (
        distributed.LocalCluster(**options, dashboard_address=None) as cluster,
        distributed.Client(cluster) as client,
    ):
        yield client


def data():
    rng = np.random.RandomState(0)
    X = rng.normal(size=(400, 6)) * (rng.uniform(size=(400, 6)) < 0.6)
    eta = X @ rng.uniform(-1, 1, size=6)
    return X, rng.poisson(np.exp(eta / 2))


def assert_same(there, here):
    for name in ("coef_", "intercept_", "fisher_diagonal_", "objective_"):
        assert_allclose(getattr(there, name), getattr(here, name), rtol=0, atol=1e-8)


def test_a_fit_where_the_rows_lie(client):
    X, y = data()
    rows = da.from_array(X, chunks=(90, 6)).map_blocks(sp.csr_array)
    options = {"family": "poisson", "tol": 1e-10}
    there = MarginalizedDropoutGLMRegressor(**options)
    there.fit(rows, da.from_array(y, chunks=90), X_unlabeled=rows[:100])
    here = MarginalizedDropoutGLMRegressor(**options)
    assert_same(there, here.fit(sp.csr_array(X), y, X_unlabeled=sp.csr_array(X[:100])))
