"""Bad input is refused before any work, by name."""

import numpy as np
import pytest
import scipy.sparse as sp
from linear import counts

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)


def test_bad_input_is_refused_before_any_work():
    X, y = counts(50)
    poisson = MarginalizedDropoutGLMRegressor(family="poisson")
    with pytest.raises(ValueError, match=r"y has negative values.*poisson"):
        poisson.fit(X, y - 5)
    with pytest.raises(ValueError, match="X_unlabeled is not like X"):
        poisson.fit(X, y, X_unlabeled=X[:, :2])
    with pytest.raises(ValueError, match="NaN"):
        poisson.fit(sp.csr_array(np.where(X > 1.4, np.nan, X)), y)
    with pytest.raises(ValueError, match="family must be one of"):
        MarginalizedDropoutGLMRegressor(family="bernoulli").fit(X, y)
    with pytest.raises(ValueError, match="noise must be one of"):
        MarginalizedDropoutGLMRegressor(noise="salt").fit(X, y)
    for options in (
        {"retain_rate": 0.0},
        {"retain_rate": "most"},
        {"retain_rate": [0.5]},
        {"noise_std": -1.0},
        {"method": "diagonal"},
        {"alpha": -1.0},
        {"alpha": "some"},
        {"unlabeled_discount": "all"},
        {"solver": "newton"},
        {"n_restarts": -1},
        {"learning_rate_init": 0.0},
        {"batch_size": 0},
        {"max_iter": 0},
        {"tol": -1.0},
        {"fit_intercept": "yes"},
    ):
        with pytest.raises(ValueError, match=next(iter(options))):
            MarginalizedDropoutGLMRegressor(**options).fit(X, y)


ignore_max_iter = pytest.mark.filterwarnings("ignore:Training stopped at max_iter")


ESTIMATORS = [MarginalizedDropoutClassifier, MarginalizedDropoutRegressor]


BAD_PARAMETERS = [
    ({"hidden_layer_sizes": (10, 0)}, "hidden_layer_sizes"),
    ({"hidden_layer_sizes": (10, 2.5)}, "hidden_layer_sizes"),
    ({"hidden_layer_sizes": 0}, "hidden_layer_sizes"),
    ({"activation": "gelu"}, "activation.*relu"),
    ({"noise": "salt"}, "noise.*dropout.*gaussian"),
    ({"noise_placement": "inputs"}, "noise_placement.*'both'.*'input'"),
    ({"noise_placement": [0, 2]}, r"noise_placement.*sites are the integers \[0, 1\]"),
    ({"noise_placement": [-1]}, "noise_placement.*does not exist"),
    ({"noise_placement": [1, 1]}, "noise_placement.*twice"),
    ({"noise_placement": [True]}, "noise_placement"),
    ({"noise_placement": "hidden", "hidden_layer_sizes": ()}, "noise_placement.*hidden layer"),
    ({"retain_rate": 0}, r"retain_rate.*\(0"),
    ({"retain_rate": 1.5}, "retain_rate"),
    ({"retain_rate": [0.5, 0.0]}, "retain_rate"),
    ({"retain_rate": [0.5, np.nan]}, "retain_rate"),
    ({"retain_rate": [0.5]}, "retain_rate has 1 values for 2 noisy sites"),
    ({"retain_rate": [0.5, "high"]}, "retain_rate"),
    ({"retain_rate": [True, 0.5]}, "retain_rate"),
    ({"noise": None}, "noise.*dropout"),
    ({"noise": "gaussian", "noise_std": 1e20}, "noise_std"),
    ({"noise_placement": ["input"]}, "noise_placement.*integers"),
    ({"hidden_layer_sizes": "100"}, "hidden_layer_sizes"),
    ({"noise_std": -1}, "noise_std"),
    ({"noise": "gaussian", "noise_std": [0.1, -0.1]}, "noise_std"),
    ({"noise": "gaussian", "noise_std": np.inf}, "noise_std"),
    ({"method": "exact"}, "method.*diagonal"),
    ({"n_probes": 0}, "n_probes"),
    ({"alpha": -1}, "alpha"),
    ({"unlabeled_discount": -1}, "unlabeled_discount"),
    ({"solver": "lbfgs"}, "solver.*adam.*GLM"),
    ({"batch_size": 0}, "batch_size"),
    ({"learning_rate": "adaptive"}, "learning_rate.*constant"),
    ({"learning_rate_init": 0}, "learning_rate_init"),
    ({"learning_rate_decay": -1}, "learning_rate_decay"),
    ({"momentum": 1.1}, "momentum"),
    ({"max_iter": 0}, "max_iter"),
    ({"tol": -1}, "tol"),
    ({"n_iter_no_change": 0}, "n_iter_no_change"),
    ({"validation_fraction": 1.0}, "validation_fraction"),
    ({"validation_fraction": 0, "early_stopping": True}, "validation_fraction"),
    ({"device": "abacus"}, "device"),
    ({"device": "cuda:77"}, "device.*'auto' or 'cpu'"),
    ({"random_state": "x"}, "random_state"),
    ({"early_stopping": True, "validation_fraction": 0.001}, "early_stopping.*validation"),
]


@pytest.mark.parametrize(("parameters", "message"), BAD_PARAMETERS, ids=str)
@pytest.mark.parametrize("cls", ESTIMATORS)
def test_bad_parameters(data, no_training, cls, parameters, message):
    with pytest.raises(ValueError, match=f"(?s){message}"):
        cls(**parameters).fit(*data)


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_bad_parameters_of_a_subclass(data, no_training, cls):
    special = {"class_weight": "even"} if cls is ESTIMATORS[0] else {"family": "gamma"}
    with pytest.raises(ValueError, match=next(iter(special))):
        cls(**special).fit(*data)


@pytest.mark.parametrize("cls", ESTIMATORS)
@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda X, y: {"X": np.where(X > 1, np.nan, X)}, "NaN"),
        (lambda X, y: {"X": np.where(X > 1, np.inf, X)}, "infinity"),
        (lambda X, y: {"X": X[:0], "y": y[:0]}, "0 sample"),
        (lambda X, y: {"X": X[:, :0]}, "0 feature"),
        (lambda X, y: {"y": y[:-1]}, "inconsistent"),
        (lambda X, y: {"y": np.where(y > 1, np.nan, y)}, "NaN"),
        (lambda X, y: {"X": [*X.tolist()[1:], [1, 2]]}, "inhomogeneous"),
        (lambda X, y: {"X": X + 1j}, "Complex"),
        (lambda X, y: {"sample_weight": -np.ones(60)}, "[Nn]egative"),
        (lambda X, y: {"sample_weight": np.zeros(60)}, "zero"),
        (lambda X, y: {"sample_weight": np.ones(59)}, "sample_weight"),
        (lambda X, y: {"sample_weight": np.full(60, np.nan)}, "sample_weight"),
        (lambda X, y: {"sample_weight": np.full(60, 1e308)}, "sample_weight is too large"),
        (lambda X, y: {"X_unlabeled": X[:, :2]}, r"X_unlabeled.*2 features"),
        (lambda X, y: {"X_unlabeled": X[:0]}, r"X_unlabeled.*0 sample"),
        (lambda X, y: {"X_unlabeled": np.full((2, 4), np.nan)}, r"X_unlabeled.*NaN"),
    ],
)
def test_bad_data(data, no_training, cls, change, message):
    X, y = data
    with pytest.raises(ValueError, match=message):
        cls().fit(**({"X": X, "y": y} | change(X, y)))


def test_bad_targets(data, no_training):
    X, y = data
    with pytest.raises(ValueError, match="only one class"):
        MarginalizedDropoutClassifier().fit(X, np.zeros(60))
    with pytest.raises(ValueError, match="MultiOutputClassifier"):
        MarginalizedDropoutGLMClassifier().fit(X, np.column_stack([y > 0, y > 1]))
    with pytest.raises(ValueError, match="MultiOutputClassifier"):
        MarginalizedDropoutClassifier().fit(X, np.column_stack([y, y]))
    with pytest.raises(ValueError, match="continuous"):
        MarginalizedDropoutClassifier().fit(X, X[:, 0])
    with pytest.raises(ValueError, match=r"negative.*poisson"):
        MarginalizedDropoutRegressor(family="poisson").fit(X, -y)


def test_partial_fit_errors(data, no_training):
    X, y = data
    with pytest.raises(ValueError, match="classes must be passed"):
        MarginalizedDropoutClassifier().partial_fit(X, y)
    with pytest.raises(ValueError, match=r"labels array\(\[2\]\)"):
        MarginalizedDropoutClassifier().partial_fit(X, y, classes=[0, 1])
    with pytest.raises(ValueError, match="early_stopping"):
        MarginalizedDropoutClassifier(early_stopping=True).partial_fit(X, y, classes=[0, 1, 2])
    with pytest.raises(ValueError, match="class_weight='balanced'"):
        MarginalizedDropoutClassifier(class_weight="balanced").partial_fit(X, y, classes=[0, 1, 2])
    with pytest.raises(ValueError, match="class_weight"):
        MarginalizedDropoutClassifier(class_weight={7: 1}).fit(X, y)
