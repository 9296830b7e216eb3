"""Rows for Dask, and what is compared of two fits."""

import numpy as np
from numpy.testing import assert_allclose

from sklearn_margdrop import MarginalizedDropoutGLMClassifier, MarginalizedDropoutGLMRegressor

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
