"""The network estimators: what they learn, and the parameters that say how."""

import warnings

import numpy as np
import pytest
import scipy.sparse as sp
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.datasets import load_breast_cancer, load_diabetes
from sklearn.linear_model import LogisticRegression, PoissonRegressor, Ridge
from sklearn.model_selection import train_test_split
from sklearn.preprocessing import StandardScaler

from sklearn_margdrop import MarginalizedDropoutClassifier, MarginalizedDropoutRegressor
from sklearn_margdrop.noise import NOISE_MODELS

ignore_ending = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.mark.parametrize("method", ["diagonal", "moments", "quadratic"])
def test_penalty_is_not_negative_at_any_scale(digits, method):
    X, _, y, _ = digits
    options = {"method": method, "retain_rate": 0.8, "max_iter": 5, "random_state": 0}
    for scale in (1, 1000):
        model = MarginalizedDropoutClassifier((64,), **options)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model.fit((scale * X).astype(np.float32), y)
        assert min(model.penalty_curve_) >= 0


def test_fewer_epochs_than_sampling_to_the_same_accuracy(digits):
    X, X_test, y, y_test = digits
    options = {"learning_rate": "constant", "learning_rate_init": 0.004, "random_state": 0}
    options |= {"retain_rate": [0.8, 0.5], "alpha": 1e-4}
    fitted = {
        method: MarginalizedDropoutClassifier(method=method, **options).fit(X, y)
        for method in ("diagonal", "sampling")
    }
    accuracy = {method: model.score(X_test, y_test) for method, model in fitted.items()}
    assert accuracy["diagonal"] >= accuracy["sampling"] - 0.005
    assert fitted["diagonal"].n_iter_ < fitted["sampling"].n_iter_


@ignore_ending
@pytest.mark.parametrize("activation", ["relu", "logistic", "tanh", "identity"])
@pytest.mark.parametrize("noise", sorted(NOISE_MODELS))
@pytest.mark.parametrize("method", ["diagonal", "moments", "quadratic", "sampling"])
@pytest.mark.parametrize("placement", ["both", "input", "hidden", "none", [1], [2, 0]])
def test_every_combination_learns(small, activation, noise, method, placement):
    X, y = small
    model = MarginalizedDropoutClassifier(
        hidden_layer_sizes=(20, 10),
        activation=activation,
        noise=noise,
        method=method,
        noise_placement=placement,
        retain_rate=0.8,
        learning_rate="constant",
        learning_rate_init=0.04,
        max_iter=40,
        n_iter_no_change=100,
        random_state=0,
    )
    assert model.fit(X, y).score(X, y) > 0.85
    assert all(np.isfinite(model.loss_curve_))


CONVEX = {
    "hidden_layer_sizes": (),
    "noise_placement": "none",
    "batch_size": 10**6,
    "learning_rate": "constant",
    "learning_rate_init": 0.1,
    "learning_rate_decay": 0.01,
    "max_iter": 4000,
    "tol": 0,
    "n_iter_no_change": 4000,
}


@ignore_ending
def test_without_noise_and_layers_equals_logistic_regression():
    X, y = load_breast_cancer(return_X_y=True)
    X, y = StandardScaler().fit_transform(X)[::3], y[::3]
    alpha = 0.01
    peer = LogisticRegression(C=1 / (len(y) * alpha), tol=1e-10, max_iter=10**4).fit(X, y)
    model = MarginalizedDropoutClassifier(alpha=alpha, random_state=0, **CONVEX).fit(X, y)
    assert_allclose(model.coefs_[0].T, peer.coef_, atol=1e-4)
    assert_allclose(model.intercepts_[0], peer.intercept_, atol=1e-4)


@ignore_ending
def test_gaussian_noise_without_layers_equals_ridge():
    X, y = load_diabetes(return_X_y=True)
    X, y = StandardScaler().fit_transform(X), (y - y.mean()) / y.std()
    std = 0.5
    # mean(1/2 (y - Xw)^2) + std^2/2 ||w||^2 is Ridge's objective over 2n, with alpha = n std^2.
    peer = Ridge(alpha=len(y) * std**2).fit(X, y)
    options = CONVEX | {"noise_placement": "input", "noise": "gaussian", "noise_std": std}
    model = MarginalizedDropoutRegressor(alpha=0, random_state=0, **options).fit(X, y)
    assert_allclose(model.coefs_[0][:, 0], peer.coef_, atol=1e-4)


@ignore_ending
def test_poisson_without_noise_and_layers_equals_poisson_regressor():
    rng = np.random.RandomState(0)
    X = rng.normal(size=(300, 3))
    y = rng.poisson(np.exp(0.5 + X @ [0.5, -0.3, 0.0]))
    peer = PoissonRegressor(alpha=0.1, tol=1e-10).fit(X, y)
    model = MarginalizedDropoutRegressor(family="poisson", alpha=0.1, random_state=0, **CONVEX)
    model.fit(X, y)
    assert_allclose(model.coefs_[0][:, 0], peer.coef_, atol=1e-4)
    assert_allclose(model.intercepts_[0], peer.intercept_, atol=1e-4)
    assert_allclose(model.score(X, y), peer.score(X, y), atol=1e-6)


@ignore_ending
def test_fitted_attributes(small):
    X, y = small
    model = MarginalizedDropoutClassifier(
        (7, 5), early_stopping=True, max_iter=3, random_state=0
    ).fit(X, y)
    assert [w.shape for w in model.coefs_] == [(8, 7), (7, 5), (5, 3)]
    assert [b.shape for b in model.intercepts_] == [(7,), (5,), (3,)]
    assert model.n_features_in_ == 8
    assert model.n_iter_ == 3 == len(model.loss_curve_) == len(model.penalty_curve_)
    assert len(model.validation_scores_) == 3
    assert model.best_validation_score_ == max(model.validation_scores_)
    assert_array_equal(model.classes_, [0, 1, 2])
    hidden = np.maximum(X @ model.coefs_[0] + model.intercepts_[0], 0)
    hidden = np.maximum(hidden @ model.coefs_[1] + model.intercepts_[1], 0)
    eta = hidden @ model.coefs_[2] + model.intercepts_[2]
    assert_allclose(model.decision_function(X), eta)
    assert_allclose(model.predict_proba(X).sum(1), 1)
    assert_allclose(np.exp(model.predict_log_proba(X)), model.predict_proba(X))
    assert_array_equal(model.predict(X), eta.argmax(1))


@ignore_ending
def test_penalty_curve_is_nan_for_sampling(small):
    X, y = small
    options = {"retain_rate": 0.8, "max_iter": 3, "random_state": 0}
    assert np.isnan(
        MarginalizedDropoutClassifier(method="sampling", **options).fit(X, y).penalty_curve_
    ).all()
    for method in ("diagonal", "moments", "quadratic"):
        model = MarginalizedDropoutClassifier(method=method, **options).fit(X, y)
        assert min(model.penalty_curve_) > 0
    none = MarginalizedDropoutClassifier(noise_placement="none", **options).fit(X, y)
    assert none.penalty_curve_ == [0.0] * none.n_iter_


@ignore_ending
def test_learning_rate_decay_is_the_papers(small):
    X, y = small
    options = {"solver": "sgd", "momentum": 0.0, "shuffle": False, "random_state": 0, "tol": 0}
    options |= {"learning_rate": "constant", "retain_rate": 0.8}
    rates = []

    class Recording(MarginalizedDropoutClassifier):
        def _build_net(self, *args):
            net = super()._build_net(*args)
            original = net.optimizer_.step

            def step(*args, **kwargs):
                rates.append(net.optimizer_.param_groups[-1]["lr"])
                return original(*args, **kwargs)

            net.optimizer_.step = step
            return net

    Recording((3,), learning_rate_init=0.2, learning_rate_decay=0.5, max_iter=3, **options).fit(
        X, y
    )
    assert_allclose(rates, [0.2, 0.2 / 1.5, 0.2 / 2])


@ignore_ending
def test_retain_rate_per_site_follows_the_order_of_the_sites(small):
    X, y = small
    options = {"hidden_layer_sizes": (5, 4), "max_iter": 3, "random_state": 0}
    one = MarginalizedDropoutClassifier(
        noise_placement=[2, 0], retain_rate=[0.5, 0.9], **options
    ).fit(X, y)
    other = MarginalizedDropoutClassifier(
        noise_placement=(0, 2), retain_rate=(0.9, 0.5), **options
    ).fit(X, y)
    assert_array_equal(one.coefs_[0], other.coefs_[0])
    noise = one.net_.module_.noise
    assert {site: model.strength for site, model in noise.items()} == {0: 0.9, 4: 0.5}


@ignore_ending
def test_probes_estimate_the_quadratic_penalty(small):
    X, y = small
    options = {"method": "quadratic", "retain_rate": 0.8, "max_iter": 15, "random_state": 0}
    exact = MarginalizedDropoutClassifier(n_probes=None, **options).fit(X, y)
    probes = MarginalizedDropoutClassifier(**options).fit(X, y)
    assert probes.loss_curve_ != exact.loss_curve_
    assert_allclose(probes.loss_curve_[-1], exact.loss_curve_[-1], rtol=0.1)


@ignore_ending
def test_no_noise_is_the_same_however_it_is_said(small):
    X, y = small
    options = {"hidden_layer_sizes": (5,), "max_iter": 3, "random_state": 0}
    settings = [
        {"noise_placement": "none"},
        {"retain_rate": 1.0},
        {"retain_rate": 1, "method": "sampling"},
        {"noise": "gaussian", "noise_std": 0, "method": "quadratic"},
    ]
    first, *others = [
        MarginalizedDropoutClassifier(**options, **setting).fit(X, y).coefs_[0]
        for setting in settings
    ]
    for other in others:
        assert_array_equal(first, other)


@ignore_ending
def test_early_stopping_keeps_the_best_weights(digits):
    X, _, y, _ = digits
    options = {"learning_rate": "constant", "learning_rate_init": 0.05, "max_iter": 200}
    model = MarginalizedDropoutClassifier(
        early_stopping=True, n_iter_no_change=3, random_state=0, **options
    ).fit(X, y)
    assert model.n_iter_ < model.max_iter
    assert model.best_validation_score_ == max(model.validation_scores_)
    # The split is the first thing drawn from random_state.
    seen = train_test_split(
        np.arange(len(y)), test_size=0.1, stratify=y, random_state=np.random.RandomState(0)
    )[1]
    assert_allclose(model.score(X[seen], y[seen]), model.best_validation_score_)


@ignore_ending
@pytest.mark.parametrize("container", [np.asarray, sp.csr_array])
def test_units_of_the_features_do_not_matter(small, container):
    X, y = small
    options = {"hidden_layer_sizes": (5,), "alpha": 0, "max_iter": 10, "random_state": 0}
    one = MarginalizedDropoutClassifier(**options).fit(container(X), y)
    other = MarginalizedDropoutClassifier(**options).fit(container(1000 * X), y)
    assert_allclose(other.predict_proba(1000 * X), one.predict_proba(X), rtol=1e-4)


def test_partial_fit_with_the_whole_data_is_one_epoch_of_fit(small):
    X, y = small
    options = {"hidden_layer_sizes": (5,), "batch_size": 16, "shuffle": False, "random_state": 0}
    options |= {"learning_rate": "constant", "retain_rate": 0.8}
    stream = MarginalizedDropoutClassifier(**options)
    for _ in range(3):
        stream.partial_fit(X, y, classes=[0, 1, 2])
    with pytest.warns(UserWarning, match="max_iter"):
        whole = MarginalizedDropoutClassifier(max_iter=3, **options).fit(X, y)
    assert_array_equal(stream.coefs_[0], whole.coefs_[0])
    assert stream.n_iter_ == 3
    assert stream.loss_curve_ == whole.loss_curve_


def test_partial_fit_heeds_changed_parameters(small):
    X, y = small
    model = MarginalizedDropoutClassifier((5,), random_state=0)
    model.partial_fit(X, y, classes=[0, 1, 2])
    before = model.coefs_[0]
    model.set_params(learning_rate_init=1e-12).partial_fit(X, y)
    assert_allclose(model.coefs_[0], before, atol=1e-10)
    with pytest.raises(ValueError, match="hidden_layer_sizes"):
        model.set_params(hidden_layer_sizes=(6,)).partial_fit(X, y)
