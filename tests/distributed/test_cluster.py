"""A cluster of two processes: searches and fits on it, and workers that are killed."""

import contextlib
import importlib.util
import itertools
import os
import signal
from pathlib import Path

import joblib
import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.model_selection import GridSearchCV, StratifiedKFold

from sklearn_margdrop import MarginalizedDropoutGLMClassifier, MarginalizedDropoutGLMRegressor
from sklearn_margdrop.distributed.partitions import Bundles

da = pytest.importorskip("dask.array")
distributed = pytest.importorskip("distributed")


@contextlib.contextmanager
def cluster(n_workers=2):
    """The client of a cluster of processes."""
    options = {"processes": True, "n_workers": n_workers, "threads_per_worker": 1}
    with (
        distributed.LocalCluster(**options, dashboard_address=":0") as workers,
        distributed.Client(workers) as client,
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


def killing_a_worker(client, monkeypatch, at):
    """At an evaluation; the returned list tells which have been."""
    send, evaluations = Bundles.sum, []

    def sum_and_kill(bundles, method, *arguments):
        evaluations.append(method)
        if len(evaluations) == at:
            os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
        return send(bundles, method, *arguments)

    monkeypatch.setattr(Bundles, "sum", sum_and_kill)
    return evaluations


def test_a_fit_where_the_rows_lie_survives_a_worker(monkeypatch):
    X, y, counts = data()
    rows = da.from_array(X, chunks=(90, 6))
    poisson = {"family": "poisson", "tol": 1e-10, "unlabeled_discount": 0.5}
    model, there = MarginalizedDropoutGLMRegressor(**poisson), MarginalizedDropoutGLMClassifier()
    with cluster() as client:
        sparse = rows.map_blocks(sp.csr_array)
        model.fit(sparse, da.from_array(counts, chunks=90), X_unlabeled=sparse[:100])
        evaluations = killing_a_worker(client, monkeypatch, at=8)
        there.fit(rows, da.from_array(y, chunks=90))
    here = MarginalizedDropoutGLMRegressor(**poisson)
    assert_same(model, here.fit(sp.csr_array(X), counts, X_unlabeled=sp.csr_array(X[:100])))
    assert len(evaluations) > 10
    assert_same(there, MarginalizedDropoutGLMClassifier().fit(X, y))


def test_a_fit_says_that_rows_were_lost(monkeypatch):
    """Rows that nobody can compute again."""
    X, y, _ = data()
    model = MarginalizedDropoutGLMClassifier()
    with cluster(n_workers=1) as client:
        blocks = [client.scatter(X[k : k + 100], hash=False) for k in range(0, 400, 100)]
        rows = da.concatenate([da.from_delayed(block, (100, 6), X.dtype) for block in blocks])
        killing_a_worker(client, monkeypatch, at=8)
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


def test_a_search_survives_a_worker(tmp_path):
    X, y, _ = data()
    cv = list(StratifiedKFold(2).split(X, y))
    options = {"param_grid": {"retain_rate": [0.3, 0.6, 1.0]}, "cv": cv}
    here = GridSearchCV(MarginalizedDropoutGLMClassifier(), **options).fit(X, y)
    marker = tmp_path / "killed"
    there = GridSearchCV(MarginalizedDropoutGLMClassifier(), **options, scoring=KillsOnce(marker))
    scatter = [X, y, *itertools.chain(*cv)]
    with cluster(), joblib.parallel_config(backend="dask", scatter=scatter):
        there.fit(X, y)
    assert marker.exists()
    assert there.best_params_ == here.best_params_
    for name in ("split0_test_score", "split1_test_score"):
        assert_array_equal(there.cv_results_[name], here.cv_results_[name])
    assert_allclose(there.best_estimator_.coef_, here.best_estimator_.coef_, rtol=1e-12)


@pytest.mark.parametrize(
    ("name", "printed"), [("dask_search", "retain_rate"), ("dask_glm", "accuracy 0.8")]
)
def test_examples_run(name, printed, capsys):
    path = Path(__file__).parents[2] / "examples" / f"{name}.py"
    spec = importlib.util.spec_from_file_location(name, path)
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    example.main()
    assert printed in capsys.readouterr().out
