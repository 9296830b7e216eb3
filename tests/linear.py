"""Targets of each family that a linear model explains, and the model."""

import numpy as np
import pytest
from sklearn.datasets import load_diabetes, load_wine
from sklearn.preprocessing import StandardScaler

from sklearn_margdrop import MarginalizedDropoutGLMClassifier, MarginalizedDropoutGLMRegressor


def counts(n=300, d=6, columns=1, seed=0):
    rng = np.random.RandomState(seed)
    X = rng.binomial(1, 0.3, size=(n, d)) * rng.uniform(0.5, 1.5, size=(n, d))
    eta = 0.3 + X @ rng.uniform(-1, 1, size=(d, columns))
    return X, rng.poisson(np.exp(eta)).squeeze()


def targets(family):
    """Rows and a target of the family that a linear model explains."""
    if family == "poisson":
        return counts()
    if family == "normal":
        X, y = load_diabetes(return_X_y=True)
        return StandardScaler().fit_transform(X), (y - y.mean()) / y.std()
    X, y = load_wine(return_X_y=True)
    keep = y < (2 if family == "bernoulli" else 3)
    return StandardScaler().fit_transform(X[keep]), y[keep]


def glm(family, **options):
    if family in ("normal", "poisson"):
        return MarginalizedDropoutGLMRegressor(family=family, **options)
    return MarginalizedDropoutGLMClassifier(**options)


FAMILY_NAMES = ["bernoulli", "categorical", "normal", "poisson"]

families = pytest.mark.parametrize("family", FAMILY_NAMES)
