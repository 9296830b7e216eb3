"""Pipelines and searches are looked into, and what cannot be says so."""

import numpy as np
import pytest
from numpy.testing import assert_allclose
from sklearn.base import clone
from sklearn.datasets import load_iris
from sklearn.exceptions import NotFittedError
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
)
from sklearn_margdrop.inspection import (
    effective_penalty,
    penalty_per_sample,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

QUICK = {"hidden_layer_sizes": (6, 5), "max_iter": 5, "random_state": 0}


def test_pipelines_and_searches_transform_the_data(iris):
    X, y = load_iris(return_X_y=True)
    model = MarginalizedDropoutGLMClassifier(alpha=1e-4, retain_rate=0.5)
    pipe = make_pipeline(StandardScaler(), model)
    expected = penalty_per_sample(clone(model).fit(*iris), iris[0])
    assert_allclose(penalty_per_sample(pipe.fit(X, y), X), expected)
    nested = make_pipeline("passthrough", pipe)
    grid = {"pipeline__marginalizeddropoutglmclassifier__alpha": [1e-4]}
    search = GridSearchCV(nested, grid, cv=2).fit(X, y)
    assert_allclose(penalty_per_sample(search, X), expected)
    assert_allclose(effective_penalty(search, X)[0].sum(), expected.mean())


@pytest.mark.parametrize("function", [penalty_per_sample, effective_penalty])
def test_what_cannot_be_looked_into(iris, function):
    X, y = iris
    network = MarginalizedDropoutClassifier(**QUICK)
    with pytest.raises(NotFittedError):
        function(network, X)
    with pytest.raises(TypeError, match=r"sklearn_margdrop.s.*LogisticRegression"):
        function(LogisticRegression().fit(X, y), X)
    with pytest.raises(TypeError, match="Fit the search first"):
        function(GridSearchCV(network, {}), X)
    network.fit(X, y)
    for method in ("sampling", "exact"):
        with pytest.raises(ValueError, match=r"\['diagonal', 'moments', 'quadratic'\]"):
            function(network, X, method=method)
    glm = MarginalizedDropoutGLMClassifier().fit(X, y)
    with pytest.raises(ValueError, match=r"\['moments', 'quadratic'\]"):
        function(glm, X, method="diagonal")
    with pytest.raises(ValueError, match="features"):
        function(network, X[:, :2])
    with pytest.raises(ValueError, match="NaN"):
        function(glm, np.full_like(X, np.nan))
