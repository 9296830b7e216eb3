"""The extensions that docs/extending.rst shows pass what the package's own models do.

They are judged by the tests of the built-in ones, called with the extensions' names.
"""

import importlib
import pickle
import sys

import numpy as np
import pytest
import scipy.sparse as sp
import test_backprop
import test_families
import test_layers
import test_moments
import test_noise
import test_penalties
import torch
from numpy.testing import assert_allclose, assert_array_equal
from oracles import make_noise, randn
from sklearn.model_selection import GridSearchCV
from torch import nn

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)
from sklearn_margdrop.families import FAMILIES, Categorical
from sklearn_margdrop.inspection import effective_penalty, penalty_per_sample
from sklearn_margdrop.layers import ACTIVATIONS, linearize
from sklearn_margdrop.methods import GLM_METHODS, NETWORK_METHODS, Method
from sklearn_margdrop.networks import trace
from sklearn_margdrop.noise import NOISE_MODELS, Dropout, Noise
from sklearn_margdrop.penalties import diagonal, quadratic
from sklearn_margdrop.training.solvers import GLM_SOLVERS, NETWORK_SOLVERS

NOISE, FAMILY, ACTIVATION, SOLVER = "gaussian-dropout", "proportion", "softplus", "signs"
PENALTIES = pytest.mark.parametrize("penalty", [diagonal, quadratic])


@pytest.fixture(autouse=True, scope="module")
def extensions():
    """The module, whose names other tests are not to see in the registries."""
    registries = NOISE_MODELS, FAMILIES, ACTIVATIONS, NETWORK_METHODS, GLM_METHODS
    registries += NETWORK_SOLVERS, GLM_SOLVERS
    before = [dict(registry) for registry in registries]
    yield importlib.import_module("extensions")
    del sys.modules["extensions"]
    for registry, content in zip(registries, before, strict=True):
        registry.clear()
        registry.update(content)


@pytest.fixture
def proportion(extensions):
    return extensions.Proportion()


@pytest.fixture(scope="module")
def shares():
    """Features, the share of successes and the number of trials."""
    rng = np.random.RandomState(0)
    X, trials = rng.normal(size=(200, 4)), rng.randint(1, 6, size=200)
    success = rng.binomial(trials, 1 / (1 + np.exp(-X @ [1.0, -1.0, 0.5, 0.0])))
    return X, success / trials, trials


def draw(noise, n_draws=40_000):
    z = test_noise.Z.expand(n_draws, -1)
    return noise.sample(z, torch.Generator().manual_seed(0)) - test_noise.Z


# [oracles]
def test_noise_is_what_it_says():
    test_noise.test_unbiased_with_the_stated_variance(NOISE, draw)
    test_noise.test_units_and_rows_are_independent(NOISE, draw)
    test_noise.test_null_is_exactly_no_noise(NOISE)
    test_noise.test_reproducible_without_the_global_state(NOISE, torch.float32)
    test_noise.test_variance_is_differentiable(NOISE)
    test_noise.test_slopes_are_the_derivatives(NOISE)


def test_family_is_what_it_says(proportion, monkeypatch):
    test_families.test_derivatives_of_the_log_partition(proportion)
    test_families.test_one_output(proportion)
    test_families.test_loss_is_log_partition_minus_linear_term(proportion)
    test_families.test_curvature_trace(proportion)
    test_families.test_divergence(proportion)
    test_families.test_extreme_logits_stay_finite(proportion, torch.float32)
    test_families.test_wide_outputs_in_low_precision(proportion, 10.0, monkeypatch)


def test_activation_is_what_it_says():
    test_layers.test_linearisation(nn.Softplus)


# [end of oracles]


def test_loss_is_zero_for_a_perfect_prediction(proportion):
    y = torch.tensor([[0.2, 0.9], [0.5, 1e-3]], dtype=torch.float64)
    loss = proportion.loss(proportion.link(y), y)
    torch.testing.assert_close(loss, torch.zeros_like(loss), rtol=0, atol=1e-12)
    certain = torch.tensor([[0.0, 1.0]], dtype=torch.float64)
    assert proportion.loss(1000 * (2 * certain - 1), certain) == 0


@pytest.mark.parametrize("layout", ["glm", "2-both", "2-middle"])
@pytest.mark.parametrize("noise", [NOISE, "dropout"])
@pytest.mark.parametrize("activation", [ACTIVATION, "tanh"])
def test_penalties_against_the_definitions(proportion, layout, noise, activation):
    test_penalties.test_against_the_definitions(proportion, activation, noise, layout)


@PENALTIES
def test_signs_and_gradients_of_the_penalties(proportion, penalty):
    test_penalties.test_never_negative_and_zero_without_noise(proportion, NOISE, penalty)
    test_penalties.test_gradient(proportion, ACTIVATION, penalty)


def test_expectation_itself(proportion):
    """By Gauss-Hermite nodes, which the family has for nothing."""
    noise = make_noise(NOISE)
    test_moments.test_gradients(proportion, noise)
    test_moments.test_penalty_is_not_negative_and_zero_without_noise(proportion, noise)
    test_moments.test_error_of_the_second_order_falls_with_the_square_of_the_variance(
        proportion, noise
    )
    test_moments.test_gaussian_noise_equals_adaptive_quadrature(proportion, 0.1)


@pytest.mark.parametrize("method", ["diagonal", "sampling"])
@pytest.mark.parametrize("sizes", test_backprop.SIZES, ids=str)
def test_gradient_in_one_pass_is_autograds(proportion, sizes, method, monkeypatch):
    test_backprop.test_same_as_autograd(proportion, ACTIVATION, NOISE, sizes, method, monkeypatch)


def test_layer_is_what_it_says():
    """Against autograd's Jacobian, and below a penalty."""
    layer, z = nn.AvgPool1d(2), randn(4, 6)
    out, local = linearize(layer, z)
    jacobian = torch.func.jacrev(layer)(z[:1])[0, :, 0]
    torch.testing.assert_close(out, layer(z), rtol=0, atol=0)
    cotangent, variance = randn(4, 2, 3, seed=1), randn(4, 6, seed=2).square()
    torch.testing.assert_close(local.pull_back(cotangent), cotangent @ jacobian)
    torch.testing.assert_close(local.push_variance(variance), variance @ jacobian.square().T)
    layers = nn.Sequential(layer, nn.Linear(3, 3, dtype=torch.float64))
    at = trace(layers, z, {0: Dropout(0.5)})
    weight = layers[1].weight @ jacobian
    curvature = Categorical().curvature_factor(at.eta)
    by_hand = 0.5 * ((curvature @ weight).square().sum(1) * z.square()).sum(1)
    torch.testing.assert_close(quadratic(at, Categorical()), by_hand)


# [estimators]
@pytest.mark.filterwarnings("ignore:Training stopped at max_iter")
@pytest.mark.parametrize("method", ["diagonal", "moments", "quadratic", "sampling", "tikhonov"])
def test_networks_take_them_by_name(iris, shares, method):
    options = {"noise": "gaussian-dropout", "noise_std": 0.5, "method": method, "random_state": 0}
    clf = MarginalizedDropoutClassifier(activation="softplus", **options).fit(*iris)
    assert clf.score(*iris) > 0.9

    X, share, trials = shares
    reg = MarginalizedDropoutRegressor(family="proportion", **options)
    reg.fit(X, share, sample_weight=trials)
    assert reg.score(X, share, sample_weight=trials) > 0.3
    assert 0 < reg.predict(X).min() < reg.predict(X).max() < 1


# [end of estimators]


@pytest.mark.filterwarnings("ignore:Training stopped at max_iter")
@pytest.mark.parametrize(
    ("cls", "options"),
    [(MarginalizedDropoutRegressor, {"n_probes": None}), (MarginalizedDropoutGLMRegressor, {})],
    ids=["network", "glm"],
)
def test_a_method_of_ones_own(iris, cls, options):
    """That of the squared error is the quadratic one, of which the parts of units are known."""
    X, y = iris[0][:, :3], iris[0][:, 3]
    first, second = (
        cls(method=method, max_iter=20, random_state=0, **options).fit(X, y)
        for method in ("tikhonov", "quadratic")
    )
    assert_allclose(first.predict(X), second.predict(X), rtol=1e-5)
    each = penalty_per_sample(first, X)
    assert_allclose(each, penalty_per_sample(first, X, method="quadratic"))
    parts = effective_penalty(first, X)
    assert_allclose(sum(part.sum() for part in parts.values()), each.mean())


@pytest.mark.filterwarnings("ignore:Training stopped at max_iter")
def test_a_method_is_for_the_estimators_whose_table_has_it(iris, monkeypatch):
    monkeypatch.setitem(NETWORK_METHODS, "for networks", Method("", quadratic))
    MarginalizedDropoutClassifier(method="for networks", max_iter=1).fit(*iris)
    with pytest.raises(ValueError, match=r"'method'.*'tikhonov'.*Got 'for networks'"):
        MarginalizedDropoutGLMClassifier(method="for networks").fit(*iris)


@pytest.mark.parametrize("method", ["quadratic", "moments"])
def test_shares_are_logistic_regression_on_the_trials(shares, method):
    """Some trials, of which a share succeeds, are as many rows with a class each."""
    X, share, trials = shares
    options = {"noise": NOISE, "noise_std": 0.5, "method": method, "tol": 1e-8}
    reg = MarginalizedDropoutGLMRegressor(family=FAMILY, **options)
    reg.fit(X, share, sample_weight=trials)
    success = np.round(share * trials).astype(int)
    rows = np.concatenate([np.repeat(X, success, 0), np.repeat(X, trials - success, 0)])
    labels = np.repeat([1, 0], [success.sum(), (trials - success).sum()])
    clf = MarginalizedDropoutGLMClassifier(**options).fit(rows, labels)
    # The expectation of the one has 20 nodes, that of the other is exact to 1e-10.
    tolerance = 1e-4 if method == "moments" else 1e-6
    assert_allclose(reg.coef_, clf.coef_[0], atol=tolerance)
    assert_allclose(reg.intercept_, clf.intercept_[0], atol=tolerance)
    assert_allclose(reg.predict(X), clf.predict_proba(X)[:, 1], atol=tolerance)


@pytest.mark.parametrize("solver", ["sgd", "adagrad", "fisher"])
@pytest.mark.parametrize("method", ["moments", "sampling"])
def test_online_solvers_and_sparse_data(shares, solver, method):
    X, share, trials = shares
    X = np.where(np.abs(X) < 0.5, 0, X)
    model = MarginalizedDropoutGLMRegressor(
        family=FAMILY, noise=NOISE, method=method, solver=solver, random_state=0
    )
    model.fit(sp.csr_array(X), share, sample_weight=trials)
    assert model.score(X, share, sample_weight=trials) > 0.3
    assert_allclose(model.predict(sp.csr_array(X)), model.predict(X))


def test_shares_that_are_all_one(shares):
    X, share, _ = shares
    model = MarginalizedDropoutGLMRegressor(family=FAMILY).fit(X, np.ones_like(share))
    assert model.predict(X).min() > 0.99


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
def test_solver_fits_networks_and_linear_models(iris):
    options = {"solver": SOLVER, "max_iter": 50, "random_state": 0}
    network = MarginalizedDropoutClassifier(learning_rate_init=0.01, **options).fit(*iris)
    linear = MarginalizedDropoutGLMClassifier(**options).fit(*iris)
    for model in (network, linear):
        assert type(model.net_.optimizer_).__name__ == "SignDescent"
        assert model.score(*iris) > 0.85
    linear.partial_fit(*iris)
    again = pickle.loads(pickle.dumps(linear))
    assert_array_equal(again.partial_fit(*iris).coef_, linear.partial_fit(*iris).coef_)


# [errors]
def test_what_a_user_sees_who_forgot_something(iris, shares):
    class Nameless(Noise):  # which has no name is not registered
        """A base class for others, say."""

    assert Nameless not in NOISE_MODELS.values()
    with pytest.raises(TypeError, match=r"abstract class Nameless .*sample.*variance"):
        Nameless(0.5)
    with pytest.raises(ValueError, match=r"noise must be one of \[.*'gaussian-dropout'\]"):
        MarginalizedDropoutClassifier(noise="uniform").fit(*iris)
    with pytest.raises(ValueError, match=r"activation.*'softplus'"):
        MarginalizedDropoutClassifier(activation="gelu").fit(*iris)
    with pytest.raises(NotImplementedError, match=r"No linearisation.*GELU.*@linearize\.register"):
        linearize(nn.GELU(), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=r"solver.*'signs'"):
        MarginalizedDropoutClassifier(solver="sings").fit(*iris)
    X, share, trials = shares
    with pytest.raises(ValueError, match=r"family must be one of \[.*'proportion'\]"):
        MarginalizedDropoutGLMRegressor(family="binomial").fit(X, share)
    with pytest.raises(ValueError, match=r"y has values above 1, .*'proportion'"):
        MarginalizedDropoutGLMRegressor(family="proportion").fit(X, share * trials)


# [end of errors]


def test_workers_of_a_search_know_them(extensions, iris):
    model = extensions.Classifier(noise=NOISE, max_iter=20, tol=0.1, random_state=0)
    grid = {"noise_std": [0.1, 0.5]}
    search = GridSearchCV(model, grid, cv=2, n_jobs=2, error_score="raise").fit(*iris)
    alone = GridSearchCV(model, grid, cv=2).fit(*iris)
    assert_array_equal(search.cv_results_["mean_test_score"], alone.cv_results_["mean_test_score"])
