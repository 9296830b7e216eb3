"""A cluster of two processes: searches and fits on it, and workers that are killed."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import joblib
import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose
from sklearn.model_selection import GridSearchCV

from sklearn_margdrop import MarginalizedDropoutGLMClassifier, MarginalizedDropoutGLMRegressor
from sklearn_margdrop.partitions import Bundles

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
    return X, np.digitize(eta, [-0.5, 0.5]), rng.poisson(np.exp(eta / 2))


def assert_same(there, here):
    for name in ("coef_", "intercept_", "fisher_diagonal_", "objective_"):
        assert_allclose(getattr(there, name), getattr(here, name), rtol=0, atol=1e-8)


def test_a_fit_where_the_rows_lie(client):
    X, _, y = data()
    rows = da.from_array(X, chunks=(90, 6)).map_blocks(sp.csr_array)
    options = {"family": "poisson", "tol": 1e-10}
    there = MarginalizedDropoutGLMRegressor(**options)
    there.fit(rows, da.from_array(y, chunks=90), X_unlabeled=rows[:100])
    here = MarginalizedDropoutGLMRegressor(**options)
    assert_same(there, here.fit(sp.csr_array(X), y, X_unlabeled=sp.csr_array(X[:100])))


def kill_a_worker(client, monkeypatch, at):
    """At an evaluation; the returned list tells which have been."""
    send, evaluations = Bundles.sum, []

    def sum_and_kill(bundles, method, *arguments):
        evaluations.append(method)
        if len(evaluations) == at:
            os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
        return send(bundles, method, *arguments)

    monkeypatch.setattr(Bundles, "sum", sum_and_kill)
    return evaluations


def test_a_fit_survives_a_worker(client, monkeypatch):
    X, y, _ = data()
    client.wait_for_workers(2)
    evaluations = kill_a_worker(client, monkeypatch, at=8)
    there = MarginalizedDropoutGLMClassifier(tol=1e-10)
    there.fit(da.from_array(X, chunks=(90, 6)), da.from_array(y, chunks=90))
    assert len(evaluations) > 10
    assert_same(there, MarginalizedDropoutGLMClassifier(tol=1e-10).fit(X, y))


def test_a_fit_says_what_is_lost_with_a_worker(client, monkeypatch):
    """Rows that nobody can compute again."""
    X, y, _ = data()
    client.wait_for_workers(2)
    blocks = [client.scatter(X[k : k + 100], hash=False) for k in range(0, 400, 100)]
    rows = da.concatenate([da.from_delayed(block, (100, 6), X.dtype) for block in blocks])
    workers = list(client.scheduler_info()["workers"])
    client.rebalance(blocks)
    assert {w for each in client.who_has(blocks).values() for w in each} == set(workers)
    kill_a_worker(client, monkeypatch, at=8)
    model = MarginalizedDropoutGLMClassifier(tol=1e-10)
    with pytest.raises(RuntimeError, match="Rows were lost with a worker"):
        model.fit(rows, y)
    assert not hasattr(model, "coef_")


class KillsOnce:
    """Accuracy; the first process that is asked for it is killed."""

    def __init__(self, marker):
        self.marker = marker

    def __call__(self, model, X, y):
        try:
            self.marker.touch(exist_ok=False)
        except FileExistsError:
            return model.score(X, y)
        os.kill(os.getpid(), signal.SIGKILL)


def test_a_search_survives_a_worker(client, tmp_path):
    X, y, _ = data()
    client.wait_for_workers(2)
    grid = {"retain_rate": [0.3, 0.6, 1.0]}
    here = GridSearchCV(MarginalizedDropoutGLMClassifier(), grid, cv=2).fit(X, y)
    marker = tmp_path / "killed"
    there = GridSearchCV(MarginalizedDropoutGLMClassifier(), grid, cv=2, scoring=KillsOnce(marker))
    with joblib.parallel_config(backend="dask", scatter=[X, y]):
        there.fit(X, y)
    assert marker.exists()
    assert there.best_params_ == here.best_params_
    for name in ("split0_test_score", "split1_test_score"):
        assert_allclose(there.cv_results_[name], here.cv_results_[name])
    assert_allclose(there.best_estimator_.coef_, here.best_estimator_.coef_)


@pytest.mark.parametrize(
    ("name", "printed"), [("dask_search", "retain_rate"), ("dask_glm", "0.99")]
)
def test_examples_run(name, printed):
    path = Path(__file__).parents[1] / "examples" / f"{name}.py"
    done = subprocess.run([sys.executable, str(path)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert printed in done.stdout
