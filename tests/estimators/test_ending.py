"""A fit says how it ended: nothing converged that did not, and no warning without a reason."""

import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from numpy.testing import assert_array_equal
from sklearn.datasets import load_breast_cancer, load_wine
from sklearn.exceptions import ConvergenceWarning
from skorch.callbacks import Callback, EarlyStopping

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)
from sklearn_margdrop.objective import Objective
from sklearn_margdrop.training.callbacks import GradientStopping, Stopping


def configuration(seed):
    """An estimator for L-BFGS, and rows and a target for it, of all kinds."""
    rng = np.random.RandomState(seed)
    n, p, K = rng.randint(20, 80), rng.randint(1, 7), 3
    X = rng.standard_normal((n, p))
    X = [X, np.exp(X), (X > 1) * 1.0, X.round() + 1000, X * 10.0 ** rng.uniform(-4, 4, p)][
        seed % 5
    ]
    X[:, rng.randint(p)] = rng.choice([0.0, 0.1, 1e5])
    spread = np.where(np.ptp(X, axis=0) > 0, X.std(0), 1)
    eta = (X - X.mean(0)) / spread @ rng.standard_normal((p, K)) * rng.choice([0.3, 3.0])
    family = ["normal", "poisson", "bernoulli", "categorical"][rng.randint(4)]
    y = {
        "normal": rng.choice([1e-4, 1.0, 1e4]) * (eta[:, 0] + rng.standard_normal(n)),
        "poisson": rng.poisson(np.exp(eta[:, 0].clip(-5, 3))).astype(float),
        "bernoulli": eta[:, 0] > rng.logistic(size=n),
        "categorical": (eta + rng.gumbel(size=eta.shape)).argmax(1),
    }[family]
    options = {
        "method": rng.choice(["moments", "quadratic"]),
        "alpha": rng.choice([0.0, 1e-4, 1e-2]),
        **(
            {"retain_rate": rng.choice([0.5, 0.9, 1.0])}
            if rng.randint(3)
            else {"noise": "gaussian"}
        ),
    }
    X = X.astype(rng.choice([np.float32, np.float64]))
    if rng.randint(2):
        X = sp.csr_array(X)
    if family in ("normal", "poisson"):
        return MarginalizedDropoutGLMRegressor(family=family, **options), X, y
    return MarginalizedDropoutGLMClassifier(**options), X, y


@pytest.fixture
def limits(monkeypatch):
    """The bound of the gradient and the norm that it had, at each end of an iteration."""
    seen, on_epoch_end = [], GradientStopping.on_epoch_end

    def noting(self, net, **kwargs):
        seen.append((self.tol, net.optimizer_.decrement))
        on_epoch_end(self, net, **kwargs)

    monkeypatch.setattr(GradientStopping, "on_epoch_end", noting)
    return seen


@pytest.mark.parametrize("seed", range(25))
def test_nothing_has_converged_above_the_tolerance(seed, limits):
    model, X, y = configuration(seed)
    model.fit(X, y)  # without a warning
    assert model.net_.stop_reason_ == "converged"
    for tol in (1e-8, 0.0):
        del limits[:]
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.set_params(tol=tol, max_iter=80).fit(X, y)
        bound, norm = limits[-1]
        reason = model.net_.stop_reason_
        assert model.net_.optimizer_.decrement == norm
        assert (reason == "converged") == (norm <= bound)
        assert [each.category for each in caught] == [ConvergenceWarning] * (reason != "converged")
        if reason == "stalled":
            message = str(caught[0].message)
            assert f"{norm:.1e}" in message
            assert ("float64" in message.split("What may help")[1]) == (
                model.coef_.dtype == np.float32
            )
        elif reason == "max_iter":
            assert model.n_iter_ == 80


def test_a_fit_that_is_stuck_far_from_the_minimum_says_so(monkeypatch):
    """With a gradient that leads astray."""
    X, y = load_wine(return_X_y=True)
    X, y = X[::9], y[::9]
    backward = Objective.backward

    def astray(self, network, *args):
        terms = backward(self, network, *args)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.grad.neg_()
        return terms

    monkeypatch.setattr(Objective, "backward", astray)
    with pytest.warns(ConvergenceWarning, match=r"stalled .* above .* scale the features"):
        model = MarginalizedDropoutGLMClassifier().fit(X, y)
    assert model.net_.stop_reason_ == "stalled"


def test_the_last_iteration_that_is_allowed_may_be_the_one_that_converges():
    X, y = load_wine(return_X_y=True)
    n_iter = MarginalizedDropoutGLMClassifier().fit(X, y).n_iter_
    model = MarginalizedDropoutGLMClassifier(max_iter=n_iter).fit(X, y)
    assert model.net_.stop_reason_ == "converged"
    with pytest.warns(ConvergenceWarning, match="max_iter"):
        model.set_params(max_iter=n_iter - 1).fit(X, y)
    assert model.net_.stop_reason_ == "max_iter"


@pytest.mark.parametrize("tol", [0.0, 5e-4])
def test_a_checkpoint_ends_as_the_fit_did(tol, tmp_path):
    X, y = np.vander(np.arange(9.0), 3), np.sqrt(np.arange(9))
    model = MarginalizedDropoutGLMRegressor(tol=tol, checkpoint=tmp_path)
    messages = []
    for _ in range(2):
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            model.fit(X, y)
        messages.append([str(each.message) for each in caught])
        assert model.net_.stop_reason_ == ("converged" if tol else "stalled")
    assert messages[0] == messages[1]
    assert len(messages[0]) == (tol == 0)


@pytest.mark.parametrize("at", [0, 1, 2])
def test_restarts_that_are_interrupted(at, monkeypatch):
    """By which of the fits so far is kept, the interruption is not hidden."""
    X, y = load_wine(return_X_y=True)
    options = {"n_restarts": 2, "random_state": 0}
    whole = MarginalizedDropoutGLMClassifier(**options).fit(X, y)
    train, nets = type(whole.net_).train, []

    def interrupting(self, *args):
        nets.append(self)
        if len(nets) == at + 1:
            self.callbacks_.append(("interrupts", Interrupts()))
        train(self, *args)

    monkeypatch.setattr(type(whole.net_), "train", interrupting)
    where = f"restart {at}" if at else "iteration 3"
    with pytest.warns(UserWarning, match=f"interrupted by the user in {where};"):
        model = MarginalizedDropoutGLMClassifier(**options).fit(X, y)
    assert model.net_.stop_reason_ == "interrupted"
    assert len(model.restart_objectives_) == at + 1
    assert_array_equal(model.restart_objectives_[:at], whole.restart_objectives_[:at])
    assert model.objective_ == model.restart_objectives_.min()


class Interrupts(Callback):
    def on_epoch_begin(self, net, **kwargs):
        if len(net.history) == 3:
            raise KeyboardInterrupt


class StopAt:
    """Ends a fit after some tasks."""

    def __init__(self, at):
        self.left = at

    def setup(self, estimator, context):
        pass

    def teardown(self, estimator, context):
        pass

    def on_fit_task_begin(self, estimator, context):
        pass

    def on_fit_task_end(self, estimator, context):
        self.left -= 1
        return self.left == 0


@pytest.mark.parametrize(
    "model",
    [
        MarginalizedDropoutClassifier(5, random_state=0),
        MarginalizedDropoutRegressor(5, random_state=0),
        MarginalizedDropoutGLMClassifier(),
        MarginalizedDropoutGLMRegressor(solver="adagrad", random_state=0),
    ],
    ids=lambda model: type(model).__name__,
)
def test_what_a_callback_stops_has_not_converged(model):
    X, y = load_breast_cancer(return_X_y=True)
    X = (X - X.mean(0)) / X.std(0)
    model.set_callbacks(StopAt(3)).fit(X, y)
    assert model.net_.stop_reason_ == "stopped"
    assert model.n_iter_ == 3


def test_what_skorch_stops_has_not_converged():
    X, y = load_wine(return_X_y=True)
    stopping = EarlyStopping("train_loss", patience=2, threshold=0.5)
    model = MarginalizedDropoutClassifier(5, callbacks=[stopping], random_state=0)
    with pytest.warns(ConvergenceWarning, match="worse than a constant.*A callback ended it"):
        model.fit((X - X.mean(0)) / X.std(0), y)
    assert model.net_.stop_reason_ == "stopped"


@pytest.mark.parametrize(
    ("losses", "reason"),
    [
        ([1.0, 0.5, 0.4, 0.3995, 0.4, 0.3999], "converged"),
        ([1.0, 0.5, 0.4, 0.43, 0.41, 0.42], "converged"),
        ([1.0, 0.5, 0.4, 0.5, 0.6, 0.7], "stalled"),
        ([-0.2, -0.3, -0.31, -0.31, -0.1, -0.2], "stalled"),
        ([1e-4, 1e-5, 1e-3, 2e-3], "converged"),
        ([1.0, 0.5, 0.4, 0.3, 0.2, 0.1], None),
    ],
)
def test_losses_that_went_up_have_not_converged(losses, reason):
    stopping = Stopping("train_loss", tol=1e-3, patience=2)
    net = SimpleNamespace(ending_=None, n_explosions_=0)
    stopping.on_train_begin(net)
    for loss in losses:
        assert net.ending_ is None
        net.history = History(loss)
        stopping.on_epoch_end(net)
    assert net.ending_ == reason


class History:
    def __init__(self, loss):
        self.row = {"train_loss": loss}

    def __getitem__(self, key):
        return self.row if key == -1 else self.row[key[1]]


def test_an_online_fit_that_went_up_says_so():
    """Each step multiplies the distance to the minimum by -1.1."""
    x = np.tile([-1.0, 1.0], 30)
    options = {"solver": "sgd", "learning_rate_init": 2.1, "batch_size": 60, "retain_rate": 1.0}
    with pytest.warns(ConvergenceWarning, match=r"had been lower before .* learning_rate_init"):
        model = MarginalizedDropoutGLMRegressor(**options, alpha=0).fit(x[:, None], x)
    assert model.net_.stop_reason_ == "stalled"
    np.testing.assert_allclose(model.loss_curve_, 0.5 * 1.21 ** np.arange(7))


@pytest.mark.parametrize("tol", [1e-2, 5e-4])
def test_the_excess_is_what_tol_says_where_the_curvature_falls(tol):
    """Without noise, separable classes end at predictions that are all but certain."""
    rng = np.random.RandomState(1)
    y = np.r_[np.arange(9), rng.choice(9, 17)]
    topics = rng.dirichlet(np.full(5, 0.1), 9)
    X = np.array([rng.multinomial(500, 0.5 * topics[k] + 0.1) for k in y], float)
    found, least = (
        MarginalizedDropoutGLMClassifier(retain_rate=1, alpha=1e-3, tol=each, max_iter=2000)
        .fit(X, y)
        .objective_
        for each in (tol, 1e-7)
    )
    assert found - least < 60 * tol**2
