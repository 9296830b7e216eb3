"""scikit-learn's own checks, for several settings of every estimator and without exceptions."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)

SETTINGS = [
    {},
    {"method": "quadratic", "hidden_layer_sizes": (20, 10), "activation": "tanh"},
    {"noise": "gaussian", "noise_placement": "hidden", "activation": "logistic"},
    {"hidden_layer_sizes": (), "noise_placement": "input", "learning_rate_init": 0.05},
    {"noise_placement": "none", "hidden_layer_sizes": (20,), "n_iter_no_change": 20},
]

GLM_SETTINGS = [
    {},
    {"method": "quadratic", "noise": "gaussian", "n_restarts": 1},
    {"retain_rate": 1.0, "alpha": 0.01},
    {"solver": "sgd", "retain_rate": 0.8},
    {"solver": "adagrad"},
    {"solver": "fisher", "method": "quadratic"},
]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(
    [MarginalizedDropoutClassifier(**setting) for setting in SETTINGS]
    + [MarginalizedDropoutRegressor(**setting) for setting in SETTINGS]
    + [MarginalizedDropoutClassifier(solver="sgd", hidden_layer_sizes=(20,))]
    + [MarginalizedDropoutRegressor(family="poisson")]
    + [MarginalizedDropoutGLMClassifier(**setting) for setting in GLM_SETTINGS]
    + [MarginalizedDropoutGLMRegressor(**setting) for setting in GLM_SETTINGS]
    + [MarginalizedDropoutGLMRegressor(family="poisson")]
    + [MarginalizedDropoutGLMRegressor(family="poisson", method="quadratic")]
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)
