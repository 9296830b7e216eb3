"""scikit-learn's own checks, for several settings of every estimator and without exceptions."""

import pytest
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklearn_margdrop import MarginalizedDropoutClassifier, MarginalizedDropoutRegressor

SETTINGS = [
    {},
    {"method": "quadratic", "hidden_layer_sizes": (20, 10), "activation": "tanh"},
    {"noise": "gaussian", "noise_placement": "hidden", "activation": "logistic"},
    {"hidden_layer_sizes": (), "noise_placement": "input", "learning_rate_init": 0.05},
    {"noise_placement": "none", "hidden_layer_sizes": (20,), "n_iter_no_change": 20},
]


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(
    [MarginalizedDropoutClassifier(**setting) for setting in SETTINGS]
    + [MarginalizedDropoutRegressor(**setting) for setting in SETTINGS]
    + [MarginalizedDropoutClassifier(solver="sgd", hidden_layer_sizes=(20,))]
    + [MarginalizedDropoutRegressor(family="poisson")]
)
def test_scikit_learn_checks(estimator, check):
    check(estimator)
