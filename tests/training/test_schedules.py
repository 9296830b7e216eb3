"""Learning rates follow their schedules, from call to call and after explosions."""

import pickle

import pytest
from numpy.testing import assert_allclose, assert_array_equal
from quick import classifier
from skorch.callbacks import LRScheduler

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def test_learning_rates_follow_a_schedule(iris):
    schedule = LRScheduler(policy="StepLR", step_size=2, gamma=0.5)
    model = classifier([schedule], solver="sgd", learning_rate_init=0.1).fit(*iris)
    assert_allclose(
        model.net_.history[:, "event_lr"], [0.1, 0.1, 0.05, 0.05, 0.025, 0.025], rtol=1e-6
    )
    by_batch = LRScheduler(policy="ExponentialLR", gamma=0.9, step_every="batch")
    model = classifier([by_batch], solver="sgd", learning_rate_init=0.1).fit(*iris)
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
    options |= {"max_iter": 60, "hidden_layer_sizes": 64}
    constant = LRScheduler(policy="LambdaLR", lr_lambda=lambda epoch: 1.0)
    plain = classifier(**options).fit(3 * X, y)
    scheduled = classifier([constant], **options).fit(3 * X, y)
    assert plain.net_.n_explosions_ > 0
    assert scheduled.loss_curve_ == plain.loss_curve_


def test_models_with_a_schedule_are_saved_without_it(iris):
    model = classifier([LRScheduler(policy="StepLR", step_size=2, gamma=0.5)]).fit(*iris)
    copy = pickle.loads(pickle.dumps(model))
    assert dict(copy.net_.callbacks_)["LRScheduler"].lr_scheduler_ is None
    assert dict(model.net_.callbacks_)["LRScheduler"].lr_scheduler_ is not None
    assert_array_equal(copy.predict_proba(iris[0]), model.predict_proba(iris[0]))
    for each in (model, copy):
        each.partial_fit(*iris)
    assert_array_equal(copy.coefs_[0], model.coefs_[0])
