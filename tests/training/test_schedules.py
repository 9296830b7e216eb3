"""Learning rates follow their schedules, from call to call and after explosions."""

import pickle

import numpy as np
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from quick import classifier
from skorch.callbacks import Callback, EarlyStopping, LRScheduler

from sklearn_margdrop.training import schedules
from sklearn_margdrop.training.schedules import auto_epochs

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def test_learning_rates_follow_a_schedule(iris):
    schedule = LRScheduler(policy="StepLR", step_size=2, gamma=0.5)
    options = {"learning_rate": "constant", "solver": "sgd", "learning_rate_init": 0.1}
    model = classifier([schedule], **options).fit(*iris)
    assert_allclose(
        model.net_.history[:, "event_lr"], [0.1, 0.1, 0.05, 0.05, 0.025, 0.025], rtol=1e-6
    )
    by_batch = LRScheduler(policy="ExponentialLR", gamma=0.9, step_every="batch")
    model = classifier([by_batch], **options).fit(*iris)
    rate = model.net_.optimizer_.param_groups[0]["lr"]
    assert rate == pytest.approx(0.1 * 0.9 ** (6 * 2))  # two batches an epoch


def falling(epoch):
    return 1 / (1 + epoch)


@pytest.mark.parametrize(
    ("policy", "options"),
    [
        ("StepLR", {"step_size": 3, "gamma": 0.5}),  # at the ends of calls, too
        ("MultiStepLR", {"milestones": [4, 8], "gamma": 0.5}),
        ("LambdaLR", {"lr_lambda": falling}),
        ("CyclicLR", {"base_lr": 0.01, "max_lr": 0.1, "step_size_up": 3}),
        ("ReduceLROnPlateau", {"patience": 1, "monitor": "train_loss", "threshold": 1.0}),
    ],
)
def test_schedules_go_on_from_call_to_call(iris, policy, options, monkeypatch):
    """Also across the end of a stream's history, and through pickles."""
    schedule = LRScheduler(policy, **options)
    given = {"solver": "sgd", "learning_rate_init": 0.1, "n_iter_no_change": 99}
    given |= {"learning_rate": "constant"}
    rates = classifier([schedule], max_iter=12, **given).fit(*iris).net_.history[:, "event_lr"]
    assert len(set(rates)) > 2
    warm = classifier([schedule], max_iter=4, warm_start=True, **given)
    for _ in range(3):
        warm.fit(*iris)
    assert_allclose(warm.net_.history[:, "event_lr"], rates)
    monkeypatch.setattr("sklearn_margdrop.training.recording._STREAM_HISTORY", 5)
    stream, found = classifier([schedule], **given), []
    for call in range(12):
        stream.partial_fit(*iris, classes=[0, 1, 2])
        found.append(stream.net_.history[-1, "event_lr"])
        if call % 3 == 1:
            stream = pickle.loads(pickle.dumps(stream))
    assert_allclose(found, rates)
    rate = 0.04
    stream.set_params(learning_rate_init=rate).partial_fit(*iris)
    assert stream.net_.history[-1, "event_lr"] == pytest.approx(rate)


def test_schedules_with_base_rates_keep_what_explosions_left(iris):
    X, y = iris
    options = {"solver": "sgd", "learning_rate_init": 3.0, "noise_placement": "none"}
    options |= {"max_iter": 60, "hidden_layer_sizes": 64, "learning_rate": "constant"}
    constant = LRScheduler(policy="LambdaLR", lr_lambda=lambda epoch: 1.0)
    plain = classifier(**options).fit(3 * X, y)
    scheduled = classifier([constant], **options).fit(3 * X, y)
    assert plain.net_.n_explosions_ > 0
    assert scheduled.loss_curve_ == plain.loss_curve_


def test_models_with_a_schedule_are_saved_without_it(iris):
    schedule = LRScheduler(policy="StepLR", step_size=2, gamma=0.5)
    model = classifier([schedule], learning_rate="constant").fit(*iris)
    copy = pickle.loads(pickle.dumps(model))
    assert dict(copy.net_.callbacks_)["LRScheduler"].lr_scheduler_ is None
    assert dict(model.net_.callbacks_)["LRScheduler"].lr_scheduler_ is not None
    assert_array_equal(copy.predict_proba(iris[0]), model.predict_proba(iris[0]))
    for each in (model, copy):
        each.partial_fit(*iris)
    assert_array_equal(copy.coefs_[0], model.coefs_[0])


class Rates(Callback):
    """Keeps the rate of each step; Ctrl-C ends the training in one of them, if that is named."""

    def __init__(self, last=None):
        self.last = last

    def on_train_begin(self, net, **kwargs):
        self.rates_ = []

    def on_grad_computed(self, net, named_parameters, **kwargs):
        self.rates_.append([group["lr"] for group in net.optimizer_.param_groups])
        if len(self.rates_) == self.last:
            raise KeyboardInterrupt


def cosine(*callbacks, **options):
    return classifier([Rates(), *callbacks], **({"learning_rate": "cosine"} | options))


def rates_of(model):
    """Those of all parameters but the input's weights, which are in the units of the features."""
    return np.array(dict(model.net_.callbacks_)["Rates"].rates_)[:, 1]


def half_cosine(n_steps, rate):
    return rate * (1 + np.cos(np.pi * np.arange(n_steps) / n_steps)) / 2


@pytest.mark.parametrize("solver", ["adam", "sgd"])
@pytest.mark.parametrize(
    ("options", "n_steps"),
    [
        ({"max_iter": 4, "batch_size": 60}, 12),
        ({"max_iter": 5, "batch_size": 10**6}, 5),
        ({"max_iter": 1, "batch_size": "auto"}, 1),
        ({"max_iter": 3, "batch_size": 60, "early_stopping": True}, 9),  # of 135 rows
    ],
)
def test_the_rate_falls_along_a_cosine(iris, solver, options, n_steps):
    model = cosine(solver=solver, learning_rate_init=0.02, **options).fit(*iris)
    assert_allclose(rates_of(model), half_cosine(n_steps, 0.02))
    inputs, others = np.array(dict(model.net_.callbacks_)["Rates"].rates_).T
    assert_allclose(inputs / inputs[0], others / others[0])


@pytest.mark.filterwarnings("error")
def test_a_schedule_is_not_cut_short_and_its_end_is_no_warning(iris):
    options = {"tol": 1e9, "n_iter_no_change": 1, "max_iter": 9, "learning_rate_init": 0.05}
    model = cosine(**options).fit(*iris)
    assert (model.n_iter_, model.net_.stop_reason_) == (9, "max_iter")
    model = cosine(early_stopping=True, **options).fit(*iris)
    assert model.n_iter_ == 9
    assert model.best_validation_score_ == max(model.validation_scores_)
    model = classifier(learning_rate="constant", **options).fit(*iris)
    assert model.n_iter_ == 3  # without a schedule


def test_the_length_counts_steps(iris, monkeypatch):
    assert auto_epochs(10**9) < auto_epochs(100) < auto_epochs(1)
    for name, value in {"_STEPS": 31, "_FEWEST_EPOCHS": 4, "_MOST_EPOCHS": 12}.items():
        monkeypatch.setattr(schedules, name, value)
    epochs = {}
    for batch_size in (1, 30, 50, 150):
        model = cosine(max_iter="auto", batch_size=batch_size).fit(*iris)
        epochs[batch_size] = model.n_iter_
        assert_allclose(rates_of(model)[-1], half_cosine(len(rates_of(model)), 0.004)[-1])
    assert epochs == {1: 4, 30: 7, 50: 11, 150: 12}
    assert cosine(max_iter="auto").partial_fit(*iris, classes=[0, 1, 2]).n_iter_ == 1
    monkeypatch.setattr("sklearn_margdrop.estimators.network._AUTO_EPOCHS", 3)
    with pytest.warns(match="max_iter=3 epochs"):
        model = classifier(learning_rate="constant", max_iter="auto").fit(*iris)
    assert model.n_iter_ == 3


def test_each_call_of_fit_runs_a_whole_schedule(iris):
    model = cosine(warm_start=True)
    whole = half_cosine(12, 0.004)
    for n_calls in (1, 2):
        assert_allclose(rates_of(model.fit(*iris)), whole)
        assert model.n_iter_ == 6 * n_calls
        steps = {int(each["step"]) for each in model.net_.optimizer_.state.values()}
        assert steps == {12 * n_calls}  # the optimiser goes on
    model.set_params(learning_rate="constant").fit(*iris)
    assert_allclose(rates_of(model), 0.004)
    model.set_params(learning_rate="cosine", learning_rate_init=0.01, max_iter=2).fit(*iris)
    assert_allclose(rates_of(model), half_cosine(4, 0.01))


def test_streams_and_training_by_hand_keep_the_rate(iris):
    stream = cosine(max_iter=2)
    for _ in range(3):
        stream.partial_fit(*iris, classes=[0, 1, 2])
        assert_allclose(rates_of(stream), 0.004)
    assert_allclose(rates_of(stream.fit(*iris)), half_cosine(4, 0.004))
    assert_allclose(rates_of(stream.partial_fit(*iris)), 0.004)
    stopped = EarlyStopping(monitor="train_loss", patience=1, threshold=1e9)
    interrupted = classifier([Rates(last=5)], learning_rate="cosine")
    for model in (cosine(), cosine(stopped), interrupted):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("sklearn_margdrop.estimators.ending.warn", lambda *args: None)
            model.fit(*iris)
        net = pickle.loads(pickle.dumps(model.net_))
        for each in (net, model.net_):
            each.partial_fit(*iris, epochs=1)
            assert_allclose(dict(each.callbacks_)["Rates"].rates_[1][1], 0.004)
    net.fit(*iris)  # anew, over its max_epochs
    assert dict(net.callbacks_)["Rates"].rates_[0][1] == pytest.approx(0.004)
    assert dict(net.callbacks_)["Rates"].rates_[2][1] < 0.004


def test_explosions_halve_the_rest_of_the_schedule(iris):
    X, y = iris
    options = {"solver": "sgd", "learning_rate_init": 3.0, "noise_placement": "none"}
    model = cosine(max_iter=20, hidden_layer_sizes=64, **options).fit(3 * X, y)
    net = model.net_
    assert net.n_explosions_ > 0
    found = rates_of(model).reshape(-1, 2)
    assert len(found) == 20 + net.n_explosions_
    assert_allclose(found[-5:], half_cosine(40, 3.0 * net.rate_factor_).reshape(-1, 2)[-5:])
    assert net.optimizer_.param_groups[1]["lr"] == 3.0 * net.rate_factor_


@pytest.mark.parametrize(
    "other",
    [
        {"learning_rate_decay": 0.1},
        {"callbacks": [LRScheduler]},
        {"callbacks": [("mine", LRScheduler(policy="StepLR", step_size=2))]},
    ],
    ids=["decay", "class", "named"],
)
def test_two_schedules_are_an_error(iris, other):
    model = classifier(learning_rate="cosine").set_params(**other)
    with pytest.raises(ValueError, match=r"and so is .*set learning_rate='constant'"):
        model.fit(*iris)
    model.set_params(learning_rate="constant").fit(*iris)
