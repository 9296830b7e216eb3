"""Extreme data, parameters and sizes: finite results, or an error that says what to change."""

import warnings
from functools import partial

import numpy as np
import pytest
import torch
from scipy import sparse
from sklearn.datasets import load_digits
from sklearn.exceptions import ConvergenceWarning

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)
from sklearn_margdrop.families import Bernoulli, Categorical, Normal, Poisson
from sklearn_margdrop.inspection import effective_penalty, penalty_per_sample
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.noise import Dropout
from sklearn_margdrop.numerics import memory
from sklearn_margdrop.objective import Objective
from sklearn_margdrop.penalties import quadratic
from sklearn_margdrop.training.lbfgs import FisherLBFGS
from sklearn_margdrop.training.net import MarginalizedNet
from sklearn_margdrop.weighting import WeightedRows

NETWORKS = [
    (MarginalizedDropoutClassifier, {"hidden_layer_sizes": 8, "max_iter": 20, **options})
    for options in (
        {"method": "diagonal"},
        {"method": "quadratic", "n_probes": None},
        {"method": "moments"},
        {"method": "quadratic", "n_probes": 1, "activation": "tanh", "solver": "sgd"},
        {"method": "sampling", "activation": "logistic"},
    )
] + [
    (MarginalizedDropoutRegressor, {"hidden_layer_sizes": (6, 4), "max_iter": 20}),
    (
        MarginalizedDropoutRegressor,
        {"hidden_layer_sizes": (), "family": "poisson", "max_iter": 20},
    ),
]
GLMS = [
    (MarginalizedDropoutGLMClassifier, {"method": method, "solver": solver})
    for method, solver in (
        ("moments", "lbfgs"),
        ("quadratic", "lbfgs"),
        ("moments", "fisher"),
        ("sampling", "adagrad"),
        ("moments", "sgd"),
    )
] + [(MarginalizedDropoutGLMRegressor, {"family": family}) for family in ("normal", "poisson")]
MODELS = NETWORKS + GLMS
all_models = pytest.mark.parametrize(("cls", "options"), MODELS, ids=str)


def parameters(model):
    return [*model.coefs_, *model.intercepts_] if hasattr(model, "coefs_") else [model.coef_]


def assert_finite_or_says_what_to_change(model, X, y, **fit_params):
    """Nothing but documented errors, and nothing that is not finite after a fit."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warnings.simplefilter("ignore", ConvergenceWarning)
        try:
            model.fit(X, y, **fit_params)
        except ValueError as error:
            assert "Scale" in str(error) or "scale the features" in str(error)  # noqa: PT017
            return False
        values = [*parameters(model), model.loss_curve_, model.predict(X), model.score(X, y)]
        values += [penalty_per_sample(model, X), *effective_penalty(model, X).values()]
        if hasattr(model, "predict_proba"):
            values += [model.predict_proba(X), model.decision_function(X)]
        assert all(np.isfinite(each).all() for each in values)
        return True


def features(kind, dtype):
    X = np.random.RandomState(0).standard_normal((20, 4))
    if kind == "constant":
        X[:, 1:] = [1.0, 0.0, -1e8]
    elif kind == "zero":
        X[:] = 0
    elif kind == "duplicates":
        X[:] = X[[0, 1] * 10]
    elif kind == "mixed":
        X *= 10.0 ** np.array([-12, -4, 4, 12])
    elif isinstance(kind, float):
        X *= kind
    return X.astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("kind", ["constant", "zero", "duplicates", "mixed", 1e-14, 1e14, 1e30])
@all_models
def test_extreme_features(cls, options, kind, dtype):
    X = features(kind, dtype)
    y = np.arange(20) % 2
    fitted = assert_finite_or_says_what_to_change(cls(random_state=0, **options), X, y)
    if kind in ("zero", "duplicates"):
        assert fitted


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@all_models
def test_few_rows_and_hardly_any_retained(cls, options, dtype):
    X = np.array([[1.0, 2.0], [-1.0, 0.5]], dtype=dtype)
    for rate in (0.5, 0.01):
        model = cls(random_state=0, retain_rate=rate, batch_size=500, **options)
        assert assert_finite_or_says_what_to_change(model, X, [0, 1], X_unlabeled=X)


@pytest.mark.parametrize("rate", [1e3, 1e30])
@all_models
def test_rates_that_are_far_too_large(cls, options, rate):
    X = features("plain", np.float32)
    model = cls(random_state=0, learning_rate_init=rate, **options)
    assert_finite_or_says_what_to_change(model, X, np.arange(20) % 2)


@pytest.mark.parametrize("make", [np.asarray, sparse.csr_array])
@pytest.mark.parametrize(("scale", "word"), [(1e20, "large"), (1e30, "large"), (1e-25, "small")])
@pytest.mark.parametrize("cls", [MarginalizedDropoutClassifier, MarginalizedDropoutGLMClassifier])
def test_units_that_float32_cannot_square(cls, scale, word, make, monkeypatch):
    X, y = make(features(scale, np.float32)), np.arange(20) % 2
    monkeypatch.setattr(MarginalizedNet, "train", None)  # before any training
    with pytest.raises(ValueError, match=f"too {word} for float32.*MaxAbsScaler.*float64"):
        cls().fit(X, y)
    if word == "large":
        with pytest.raises(ValueError, match="X_unlabeled has values"):
            cls().fit(make(features("plain", np.float32)), y, X_unlabeled=X)


@pytest.mark.parametrize("cls", [MarginalizedDropoutRegressor, MarginalizedDropoutGLMRegressor])
@pytest.mark.parametrize(
    ("dtype", "location", "spread", "message"),
    [
        (np.float32, 0, 1e36, "too large for float32.*Scale y.*float64"),
        (np.float32, 0, 1e-37, "too small for float32.*Scale y.*float64"),
        (np.float32, 1e9, 1.0, "cannot resolve.*Scale y.*float64"),
        (np.float64, 0, 1e306, "too large for float64. Scale y"),
        (np.float64, 0, 1e-306, "too small for float64. Scale y"),
    ],
)
def test_targets_whose_predictions_are_no_numbers(
    cls, dtype, location, spread, message, monkeypatch
):
    X = features("plain", dtype)
    monkeypatch.setattr(MarginalizedNet, "train", None)  # before any training
    with pytest.raises(ValueError, match=message):
        cls().fit(X, location + X[:, 0].astype(float) * spread)


def test_weights_of_a_stream_that_float32_cannot_hold():
    X, y = features("plain", np.float32), np.arange(20) % 2
    model = MarginalizedDropoutGLMClassifier(solver="sgd")
    with pytest.raises(ValueError, match="sample_weight is too large for float32"):
        model.partial_fit(X, y, classes=[0, 1], sample_weight=np.full(20, 1e200))


def test_predictions_that_overflow_are_an_error():
    X = features("plain", np.float32)
    glm = MarginalizedDropoutGLMRegressor(family="poisson").fit(X, np.exp(X[:, 0]))
    for call in (glm.predict, lambda rows: glm.score(rows, np.ones(20))):
        with pytest.raises(ValueError, match=r"Predictions overflow .*StandardScaler"):
            call(1e6 * X)
    options = {"retain_rate": 0.5, "learning_rate": "constant", "tol": 1, "random_state": 0}
    clf = MarginalizedDropoutClassifier(8, **options).fit(X, np.arange(20) % 2)
    weights = clf.coefs_[0]
    unit = np.abs(weights).sum(0).argmax()  # which adds up to more than one
    row = np.finfo(np.float32).max * np.sign(weights[None, :, unit])
    for method in (clf.predict, clf.predict_proba, clf.predict_log_proba, clf.decision_function):
        with pytest.raises(ValueError, match="Predictions overflow float32"):
            method(row)
    with pytest.raises(ValueError, match="Penalties overflow float32"):
        penalty_per_sample(clf, 1e25 * X)


def test_rounding_does_not_make_penalties_negative():
    X = 1e-14 * features("plain", np.float32)
    glm = MarginalizedDropoutGLMRegressor(family="poisson").fit(X, np.arange(20) % 3)
    assert (penalty_per_sample(glm, X) >= 0).all()
    eta = torch.rand(1000, 3, generator=torch.Generator().manual_seed(0))
    assert (Categorical().divergence(eta * (1 + 1e-6), eta) >= 0).all()


def test_curvature_of_a_confident_prediction_keeps_its_digits():
    eta = torch.tensor([[0.0, 20.0, -1.0], [0.0, 60.0, 59.5], [2.0, 2.0, 2.0]])
    got, exact = Categorical().curvature(eta), Categorical().curvature(eta.double())
    by_hand = eta.double().softmax(-1)
    torch.testing.assert_close(exact[2], (by_hand * (1 - by_hand))[2], rtol=1e-12, atol=0)
    torch.testing.assert_close(got.double(), exact, rtol=1e-5, atol=0)


@pytest.mark.parametrize("n_classes", [5, 30])  # with and without the sum over pairs of classes
def test_moments_of_confident_predictions_in_float32(n_classes):
    """The ratio of two variances that are nearly nothing once was rounding alone."""
    found = []
    for dtype in (torch.float32, torch.float64):
        network = NoisyNetwork([8, n_classes], noise={0: Dropout(0.5)}, seed=3)
        network = network.to(dtype)
        with torch.no_grad():
            network.linears[0].weight.mul_(8)
        x = torch.randn(200, 8, generator=torch.Generator().manual_seed(0)).to(dtype)
        objective = Objective(Categorical(), "moments")
        terms = objective.backward(network, WeightedRows.of(x, torch.arange(200) % n_classes))
        found.append([terms.penalty.double(), network.linears[0].weight.grad.double()])
    for single, double in zip(*found, strict=True):
        assert (single - double).norm() < 2e-3 * double.norm()


def test_a_fit_in_float32_ends_where_float64_does():
    X, y = load_digits(return_X_y=True)
    X, y = X[:400] / 16, y[:400]
    double = MarginalizedDropoutGLMClassifier().fit(X, y)
    single = MarginalizedDropoutGLMClassifier().fit(X.astype(np.float32), y)
    assert abs(single.objective_ - double.objective_) < 1e-3


def test_curvature_that_is_hardly_a_number_is_none():
    optimizer = FisherLBFGS([{"params": [torch.nn.Parameter(torch.zeros(2))]}])
    optimizer.precondition([torch.tensor([1e-42, 4.0])])
    assert optimizer._inverse.diagonal.tolist() == [0.0, 0.25]


FAMILIES = [(Categorical(), 7), (Poisson(), 3), (Normal(), 3), (Bernoulli(), 1)]


@pytest.fixture
def tight(monkeypatch):
    """Bounds that cut everything, down to a row of the curvature."""

    def bound(n_bytes):
        monkeypatch.setattr(memory, "_FEW_BYTES", 0)
        monkeypatch.setattr(memory, "_USUAL_BYTES", n_bytes)

    return bound


@pytest.mark.parametrize("by_hand", [True, False])
@pytest.mark.parametrize("unlabeled", [0, 7])
@pytest.mark.parametrize(("family", "n_outputs"), FAMILIES, ids=str)
def test_slices_change_neither_value_nor_gradient(family, n_outputs, unlabeled, by_hand, tight):
    rng = torch.Generator().manual_seed(0)
    x = torch.randn(13, 5, generator=rng, dtype=torch.float64)
    y = torch.arange(13) % 7
    if n_outputs < 7:
        y = torch.randint(2, (13, n_outputs), generator=rng).double()
    batch = WeightedRows.of(x, y[: 13 - unlabeled], unlabeled_share=0.4 if unlabeled else 0.0)

    def value_and_gradient():
        noise = {0: Dropout(0.8), 1: Dropout(0.5), 2: Dropout(0.5)}
        network = NoisyNetwork([5, 6, 4, n_outputs], "tanh", noise, dtype=torch.float64)
        objective = Objective(family, "quadratic", alpha=1e-3)
        if by_hand:
            terms = objective.backward(network, batch)
        else:
            terms = objective(network, batch)
            terms.total.backward()
        return [*terms, *(p.grad for p in network.parameters())]

    whole = value_and_gradient()
    for n_bytes in (1, 500, 3000):  # a row of U at a time, a few, and several samples
        tight(n_bytes)
        for part, expected in zip(value_and_gradient(), whole, strict=True):
            torch.testing.assert_close(part, expected, rtol=1e-12, atol=1e-14)


def test_slices_bound_what_is_pulled_back(tight, monkeypatch):
    """The largest cotangents of a step, counted where they pass the rectifier."""
    seen = []
    network = NoisyNetwork([4, 32, 20], noise={0: Dropout(0.8), 1: Dropout(0.5)})
    jacobian = type(network.trace(torch.ones(1, 4)).jacobians[1])
    pull_back = jacobian.pull_back
    monkeypatch.setattr(
        jacobian, "pull_back", lambda self, c: seen.append(c.numel() * 4) or pull_back(self, c)
    )
    objective = Objective(Categorical(), "quadratic")
    batch = WeightedRows.of(torch.randn(50, 4), torch.arange(50) % 20)
    objective.backward(network, batch)
    assert max(seen) == 50 * 19 * 32 * 4
    seen.clear()
    tight(20_000)
    objective.backward(network, batch)
    assert max(seen) < 20_000
    assert sum(seen) == 50 * 19 * 32 * 4  # none is computed twice
    seen.clear()
    with torch.no_grad():
        quadratic(network.trace(batch.x), Categorical())
    assert max(seen) < 20_000


OUT_OF_MEMORY = [
    (MarginalizedDropoutClassifier, {}, r"lower batch_size \(now 100\); lower hidden_layer"),
    (
        MarginalizedDropoutRegressor,
        {"method": "quadratic", "n_probes": None},
        r"set n_probes=1 \(now None\).*batch",
    ),
    (MarginalizedDropoutClassifier, {"method": "moments", "n_probes": 8}, "n_probes=1"),
    (MarginalizedDropoutGLMClassifier, {"solver": "sgd"}, r"lower batch_size \(now \d+\)"),
    (MarginalizedDropoutGLMRegressor, {"solver": "lbfgs"}, "float32; set solver to 'sgd'"),
]


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError, RuntimeError])
@pytest.mark.parametrize(("cls", "options", "message"), OUT_OF_MEMORY, ids=str)
def test_full_memory_names_what_to_lower(cls, options, message, kind, monkeypatch):
    def step(self, batch, **fit_params):
        raise kind("DefaultCPUAllocator: can't allocate memory: you tried 7 bytes")

    monkeypatch.setattr(MarginalizedNet, "train_step", step)
    expected = torch.OutOfMemoryError if kind is torch.OutOfMemoryError else MemoryError
    with pytest.raises(expected, match=rf"(?s){message}.*n_jobs.*7 bytes") as caught:
        cls(**options).fit(features("plain", np.float64), np.arange(20) % 2)
    assert ("GPU" in str(caught.value)) == ("device='cpu'" in str(caught.value))
    assert ("GPU" in str(caught.value)) == (kind is torch.OutOfMemoryError)
    assert isinstance(caught.value.__cause__, kind)


@pytest.mark.parametrize(("cls", "options"), [NETWORKS[1], GLMS[1]], ids=str)
def test_a_thousand_classes_and_a_hundred_thousand_columns(cls, options):
    rng = np.random.RandomState(0)
    model = cls(**options | {"max_iter": 1, "random_state": 0})
    wide = rng.standard_normal((10, 100_000)).astype(np.float32)
    assert assert_finite_or_says_what_to_change(model, wide, np.arange(10) % 2)
    X = rng.standard_normal((1000, 3)).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn's, of a target with so many classes
        model.fit(X, np.arange(1000))
    assert np.isfinite(model.predict_proba(X)).all()
    assert model.classes_.shape == (1000,)


@pytest.mark.parametrize("name", ["alpha", "learning_rate_init", "unlabeled_discount"])
@pytest.mark.parametrize("cls", [MarginalizedDropoutClassifier, MarginalizedDropoutGLMClassifier])
def test_parameters_that_float32_cannot_hold_are_refused(name, cls):
    X = np.random.RandomState(0).normal(size=(8, 2)).astype(np.float32)
    model = cls(solver="sgd", **{name: 1e39})
    for call in (model.fit, partial(model.partial_fit, classes=[0, 1])):
        with pytest.raises(ValueError, match=f"{name}=1e\\+39 is too large for float32 data"):
            call(X, np.arange(8) % 2)


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("cls", [MarginalizedDropoutRegressor, MarginalizedDropoutGLMRegressor])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("scale", [1e-170, 1e-30, 1e30, 1e170])
def test_targets_in_units_whose_squares_are_no_numbers(cls, dtype, scale):
    scale = scale if dtype == np.float64 else scale ** (1 / 6)
    X = np.random.RandomState(0).normal(size=(40, 2)).astype(dtype)
    y = X[:, 0].astype(float)
    scores = [cls(random_state=0).fit(X, y * each).score(X, y * each) for each in (1, scale)]
    assert scores[1] == pytest.approx(scores[0], abs=1e-2)
