"""scikit-learn's own checks, for several settings of every estimator and without exceptions.

The settings cover every pair of choices. Where the environment variable `MARGDROP_ALL_SETTINGS`
is set, as in the weekly workflow, there are more. The default settings are checked as they come,
with all their epochs.
"""

import os
from itertools import combinations, product

import pytest
from sklearn.base import clone
from sklearn.utils.estimator_checks import parametrize_with_checks

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)

#: Whether the checks run for more settings, which takes twice as long.
ALL = "MARGDROP_ALL_SETTINGS" in os.environ

#: What is chosen of a network and of a linear model, the defaults first. "sampling" is no such
#: choice: its noise differs from row to row, so that a weight of two is not the row twice.
NETWORK = {
    "family": ["categorical", "normal"],
    "method": ["moments", "diagonal", "quadratic"],
    "noise_placement": ["both", "input", "hidden"],
    "activation": ["relu", "tanh"],
    "noise": ["dropout", "gaussian"],
    "solver": ["adam", "sgd"],
}
LINEAR_MODEL = {
    "family": ["categorical", "normal"],
    "method": ["moments", "quadratic"],
    "solver": ["lbfgs", "sgd", "adagrad", "fisher"],
    "noise": ["dropout", "gaussian"],
}

#: The fewest settings that have the defaults and every pair of these choices; "poisson" takes the
#: place of "normal" in one of them.
NETWORKS = [
    ("categorical", "moments", "both", "relu", "dropout", "adam"),
    ("normal", "moments", "both", "relu", "dropout", "adam"),
    ("categorical", "moments", "input", "relu", "gaussian", "sgd"),
    ("normal", "moments", "hidden", "tanh", "gaussian", "sgd"),
    ("normal", "diagonal", "both", "relu", "dropout", "sgd"),
    ("categorical", "diagonal", "input", "tanh", "dropout", "adam"),
    ("categorical", "diagonal", "hidden", "relu", "gaussian", "sgd"),
    ("categorical", "quadratic", "both", "tanh", "gaussian", "adam"),
    ("normal", "quadratic", "input", "relu", "dropout", "sgd"),
    ("poisson", "quadratic", "hidden", "tanh", "dropout", "adam"),
]
LINEAR_MODELS = [
    ("categorical", "moments", "lbfgs", "dropout"),
    ("normal", "moments", "lbfgs", "dropout"),
    ("categorical", "moments", "sgd", "dropout"),
    ("categorical", "moments", "adagrad", "gaussian"),
    ("categorical", "quadratic", "lbfgs", "gaussian"),
    ("categorical", "quadratic", "fisher", "dropout"),
    ("poisson", "moments", "fisher", "gaussian"),
    ("normal", "quadratic", "sgd", "gaussian"),
    ("normal", "quadratic", "adagrad", "dropout"),
]

#: More settings, of other parameters too, for classifiers and regressors.
MORE_NETWORKS = [
    {"method": "quadratic", "hidden_layer_sizes": (20, 10), "activation": "tanh"},
    {"noise": "gaussian", "noise_placement": "hidden", "activation": "logistic"},
    {"hidden_layer_sizes": (), "noise_placement": "input", "learning_rate_init": 0.05},
    {"noise_placement": "none", "hidden_layer_sizes": (20,), "n_iter_no_change": 20},
]
MORE_LINEAR_MODELS = [
    {"method": "quadratic", "noise": "gaussian", "n_restarts": 1},
    {"retain_rate": 1.0, "alpha": 0.01},
    {"solver": "sgd", "retain_rate": 0.8},
    {"solver": "adagrad"},
    {"solver": "fisher", "method": "quadratic"},
]
MORE = [
    MarginalizedDropoutClassifier(solver="sgd", hidden_layer_sizes=(20,)),
    MarginalizedDropoutRegressor(family="poisson"),
    MarginalizedDropoutGLMRegressor(family="poisson"),
    MarginalizedDropoutGLMRegressor(family="poisson", method="quadratic"),
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


def estimators(choices, settings, more, classifier, regressor):
    """An estimator for each setting."""
    for values in settings:
        setting = dict(zip(choices, values, strict=True))
        if setting["family"] == "categorical":
            del setting["family"]
            yield classifier(**setting)
        else:
            yield regressor(**setting)
    if ALL:
        for setting in more:
            yield classifier(**setting)
            yield regressor(**setting)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@parametrize_with_checks(
    [
        *estimators(
            NETWORK,
            NETWORKS,
            MORE_NETWORKS,
            MarginalizedDropoutClassifier,
            MarginalizedDropoutRegressor,
        ),
        *estimators(
            LINEAR_MODEL,
            LINEAR_MODELS,
            MORE_LINEAR_MODELS,
            MarginalizedDropoutGLMClassifier,
            MarginalizedDropoutGLMRegressor,
        ),
        *(MORE if ALL else []),
    ]
)
def test_scikit_learn_checks(estimator, check):
    name = check.func.__name__
    if estimator.get_params() != type(estimator)().get_params() and name not in ENDS:
        estimator = clone(estimator).set_params(max_iter=10)
    if "equivalence" in name and estimator.solver == "adagrad":
        # The intercept starts where its gradient is rounding, which adagrad divides by its size.
        estimator = clone(estimator).set_params(fit_intercept=False)
    if "equivalence" in name and "n_probes" in estimator.get_params():
        # Signs are drawn for each row, and so are the rows that judge which retain rates are best.
        estimator = clone(estimator).set_params(n_probes=None, retain_rate=0.8)
    check(estimator)


@pytest.mark.parametrize(
    ("choices", "settings"), [(NETWORK, NETWORKS), (LINEAR_MODEL, LINEAR_MODELS)]
)
def test_every_pair_of_choices_is_checked(choices, settings):
    every = [dict(zip(choices, values, strict=True)) for values in product(*choices.values())]
    checked = [dict(zip(choices, values, strict=True)) for values in settings]
    for setting in checked:
        setting["family"] = {"poisson": "normal"}.get(setting["family"], setting["family"])
    assert pairs_of(checked) == pairs_of(every)


def pairs_of(settings):
    return {pair for setting in settings for pair in combinations(setting.items(), 2)}
