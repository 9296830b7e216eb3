"""The public classes: their parameters, and what their defaults learn."""

import inspect

import numpy as np
import pytest
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.metrics import d2_tweedie_score
from sklearn.model_selection import train_test_split

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)

ESTIMATORS = [MarginalizedDropoutClassifier, MarginalizedDropoutRegressor]
PAIRS = [ESTIMATORS, [MarginalizedDropoutGLMClassifier, MarginalizedDropoutGLMRegressor]]
ignore_max_iter = pytest.mark.filterwarnings("ignore:Training stopped at max_iter")


def parameter_sections(cls):
    lines = inspect.cleandoc(cls.__doc__).split("Parameters\n")[1].split("Attributes\n")[0]
    sections, name = {}, None
    for line in lines.splitlines():
        if line and not line.startswith(("    ", "-")):
            name, _, kind = line.partition(" : ")
            sections[name] = [kind]
        elif name:
            sections[name].append(line)
    return {name: "\n".join(text).strip() for name, text in sections.items()}


@pytest.mark.parametrize("cls", [cls for pair in PAIRS for cls in pair])
def test_docstring_names_every_parameter_and_its_default(cls):
    parameters = inspect.signature(cls).parameters
    sections = parameter_sections(cls)
    assert list(sections) == list(parameters)
    for name, parameter in parameters.items():
        default = sections[name].splitlines()[0].rpartition("default=")[2]
        assert eval(default) == parameter.default, name


@pytest.mark.parametrize("pair", PAIRS)
def test_shared_parameters_are_described_alike(pair):
    first, second = (parameter_sections(cls) for cls in pair)
    # What they are the same as in scikit-learn, and in what units, depends on the target.
    for name in first.keys() & second.keys() - ({"alpha", "tol"} if pair is PAIRS[1] else set()):
        assert first[name] == second[name], name


@pytest.mark.parametrize("method", ["diagonal", "moments", "quadratic"])
def test_defaults_are_good_on_digits(digits, method):
    X, X_test, y, y_test = digits
    model = MarginalizedDropoutClassifier(method=method, random_state=0).fit(X, y)
    # A tuned MLPClassifier reaches 0.978 on average; one split of 450 rows moves by 0.005.
    assert model.score(X_test, y_test) >= 0.97


@ignore_max_iter
@pytest.mark.parametrize("family", ["normal", "poisson"])
@pytest.mark.parametrize("method", ["diagonal", "moments", "quadratic", "sampling"])
@pytest.mark.parametrize("columns", [1, 3])
def test_regressor_learns(family, method, columns):
    rng = np.random.RandomState(0)
    X = rng.uniform(-1, 1, (200, 4))
    eta = X @ rng.uniform(-1, 1, (4, columns))
    y = rng.poisson(3 * np.exp(eta)) if family == "poisson" else eta
    y = y[:, 0] if columns == 1 else y
    model = MarginalizedDropoutRegressor(
        family=family, method=method, retain_rate=0.98, learning_rate_init=0.01, random_state=0
    ).fit(X, y)
    assert model.predict(X).shape == y.shape
    # Counts are noisy: even the true mean does not explain much of their deviance.
    bound = 0.5 * model_free_score(y, 3 * np.exp(eta)) if family == "poisson" else 0.9
    assert model.score(X, y) > bound


def model_free_score(y, mean):
    y, mean = y.reshape(len(y), -1), mean.reshape(len(y), -1)
    return np.mean([d2_tweedie_score(a, b, power=1) for a, b in zip(y.T, mean.T, strict=True)])


@pytest.mark.parametrize(("load", "least"), [(load_wine, 0.85), (load_breast_cancer, 0.88)])
@ignore_max_iter
def test_defaults_cope_with_raw_features(load, least):
    X, X_test, y, y_test = train_test_split(*load(return_X_y=True), random_state=0)
    model = MarginalizedDropoutClassifier(random_state=0).fit(X, y)
    assert model.score(X_test, y_test) > least


def test_partial_fit_regressor_learns():
    rng = np.random.RandomState(0)
    X = rng.normal(size=(300, 3))
    y = X[:, 0]
    model = MarginalizedDropoutRegressor(retain_rate=0.99, learning_rate_init=0.02, random_state=0)
    for _ in range(60):
        for start in range(0, 300, 100):
            model.partial_fit(X[start : start + 100], y[start : start + 100])
    assert model.score(X, y) > 0.9


@ignore_max_iter
def test_tolerance_of_a_regressor_follows_the_scale_of_the_target():
    rng = np.random.RandomState(0)
    X = rng.normal(size=(200, 3))
    for scale in (0.01, 1):
        model = MarginalizedDropoutRegressor(retain_rate=0.99, random_state=0)
        assert model.fit(X, scale * X[:, 0]).score(X, scale * X[:, 0]) > 0.9
