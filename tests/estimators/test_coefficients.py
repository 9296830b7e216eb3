"""Coefficients predict, dense or sparse, whatever becomes of the net."""

import pickle

import numpy as np
import pytest
import scipy.sparse as sp
from linear import families, glm, targets
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.feature_extraction.text import HashingVectorizer
from sklearn.pipeline import make_pipeline

from sklearn_margdrop import MarginalizedDropoutGLMClassifier

ONLINE = ["sgd", "adagrad", "fisher"]


@pytest.mark.parametrize("solver", ["lbfgs", "adagrad"])
@families
def test_sparsify(family, solver):
    X, y = targets(family)
    X = np.column_stack([X, np.zeros((len(X), 5))])
    model = glm(family, solver=solver, warm_start=True, random_state=0, tol=1e-2).fit(X, y)
    assert_array_equal(np.atleast_2d(model.coef_)[:, -5:], 0)
    expected, shape = model.predict(X), model.coef_.shape
    size = len(pickle.dumps(model))
    assert model.sparsify() is model
    assert sp.issparse(model.coef_)
    assert len(pickle.dumps(model)) < size
    assert_allclose(model.predict(X), expected)
    assert_allclose(model.predict(sp.csr_array(X)), expected)
    model.score(X, y)
    model.fit(X, y)
    assert not sp.issparse(model.coef_)
    assert model.sparsify().densify().coef_.shape == shape
    assert_allclose(clone(model).fit(X, y).densify().predict(X), expected)


def test_hashed_features(text):
    texts = ["good film", "fine fun film", "bad film", "dull and bad"] * 3
    model = make_pipeline(HashingVectorizer(), MarginalizedDropoutGLMClassifier(max_iter=20))
    model.fit(texts, [1, 1, 0, 0] * 3)
    assert model[-1].coef_.shape == (1, 2**20)
    assert model[-1].sparsify().coef_.nnz < 10
    assert model.score(texts, [1, 1, 0, 0] * 3) == 1


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_coefficients_are_not_those_of_the_net(iris):
    model = MarginalizedDropoutGLMClassifier(solver="sgd", max_iter=5, random_state=0).fit(*iris)
    coef, intercept = model.coef_.copy(), model.intercept_.copy()
    model.net_.partial_fit(*iris)
    assert_array_equal(model.coef_, coef)
    assert_array_equal(model.intercept_, intercept)
