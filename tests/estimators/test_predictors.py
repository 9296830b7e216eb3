"""Predictions, probabilities and scores are those of the fitted family."""

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.exceptions import NotFittedError
from sklearn.metrics import r2_score

from sklearn_margdrop import MarginalizedDropoutClassifier, MarginalizedDropoutRegressor

ESTIMATORS = [MarginalizedDropoutClassifier, MarginalizedDropoutRegressor]
ignore_ending = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@ignore_ending
def test_two_classes_have_one_logit(small):
    X, y = small
    model = MarginalizedDropoutClassifier((4,), max_iter=5, random_state=0).fit(X, y > 0)
    assert model.coefs_[-1].shape == (4, 1)
    logit = model.decision_function(X)
    assert logit.shape == (60,)
    assert_allclose(model.predict_proba(X)[:, 1], 1 / (1 + np.exp(-logit)))
    assert_array_equal(model.predict(X), logit > 0)
    assert model.predict(X).dtype == bool


@ignore_ending
def test_log_probabilities_do_not_underflow(small):
    X, y = small
    model = MarginalizedDropoutClassifier((4,), max_iter=2, random_state=0).fit(X, y > 0)
    assert np.isfinite(model.predict_log_proba(1e6 * X)).all()


@ignore_ending
def test_prediction_is_the_fitted_familys():
    rng = np.random.RandomState(0)
    X, y = rng.normal(size=(50, 3)), rng.poisson(3, 50)
    model = MarginalizedDropoutRegressor((5,), max_iter=3, random_state=0).fit(X, y)
    expected = model.predict(X), model.score(X, y)
    model.set_params(family="poisson")
    assert_array_equal(model.predict(X), expected[0])
    assert model.score(X, y) == expected[1]


@ignore_ending
@pytest.mark.parametrize("family", ["normal", "poisson"])
def test_score_of_constant_targets_and_of_overflow(family):
    X = np.random.RandomState(0).normal(size=(60, 3)).astype(np.float32)
    y = np.zeros(60)
    y[5] = 3
    model = MarginalizedDropoutRegressor(
        (5,), family=family, early_stopping=True, max_iter=3, random_state=0
    ).fit(X, y)
    assert model.score(X, np.zeros(60)) == 0.0
    if family == "normal":
        assert not model.score(X * 1e6, y) > 0
    else:
        with pytest.raises(ValueError, match="Predictions overflow"):
            model.score(X * 1e6, y)


@ignore_ending
def test_score_is_r2_for_the_normal_family():
    rng = np.random.RandomState(0)
    X, y, weight = rng.normal(size=(50, 3)), rng.normal(size=(50, 2)), rng.uniform(size=50)
    model = MarginalizedDropoutRegressor((5,), max_iter=3, random_state=0).fit(X, y)
    assert_allclose(
        model.score(X, y, sample_weight=weight),
        r2_score(y, model.predict(X), sample_weight=weight),
    )


@ignore_ending
@pytest.mark.parametrize("cls", ESTIMATORS)
def test_prediction_checks_its_input(data, cls):
    with pytest.raises(NotFittedError):
        cls().predict(data[0])
    model = cls((3,), max_iter=1).fit(*data)
    with pytest.raises(ValueError, match="2 features"):
        model.predict(data[0][:, :2])
