"""skorch's callbacks see the training, and `net_` is a net like any other of skorch's."""

import json
import pickle

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.callback import ProgressBar
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.preprocessing import StandardScaler
from skorch.callbacks import (
    BatchScoring,
    Callback,
    Checkpoint,
    EarlyStopping,
    EpochScoring,
    Freezer,
    GradientNormClipping,
    InputShapeSetter,
    LRScheduler,
    PassthroughScoring,
    Unfreezer,
)
from skorch.dataset import Dataset, ValidSplit

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

QUICK = {"hidden_layer_sizes": 8, "max_iter": 6, "random_state": 0}
LABELS = np.array(["a", "b", "c"])


@pytest.fixture(scope="module")
def iris():
    X, y = load_iris(return_X_y=True)
    return StandardScaler().fit_transform(X), y


@pytest.fixture(scope="module")
def cancer():
    X, y = load_breast_cancer(return_X_y=True)
    return StandardScaler().fit_transform(X), y


def classifier(callbacks=None, **options):
    return MarginalizedDropoutClassifier(callbacks=callbacks, **(QUICK | options))


def rising(scoring, **options):
    return EpochScoring(scoring, lower_is_better=False, **options)


def test_scores_of_training_and_validation_rows(iris):
    X, y = iris
    scores = [
        rising("accuracy"),
        rising("accuracy", name="again", use_caching=False),
        rising("accuracy", name="on_train", on_train=True),
        rising("neg_log_loss"),
        rising("roc_auc_ovr"),
        BatchScoring("accuracy", name="by_batch", lower_is_better=False),
        EpochScoring(lambda net, X, y: float(log_loss(y, net.predict_proba(X))), name="own"),
    ]
    model = classifier(scores, early_stopping=True).fit(X, LABELS[y])
    history = model.net_.history
    accuracy = history[:, "accuracy"]
    assert_allclose(accuracy, model.validation_scores_)
    assert accuracy == history[:, "again"] == history[:, "by_batch"]
    assert_allclose(history[:, "own"], history[:, "valid_loss"])
    assert_allclose(history[:, "neg_log_loss"], -np.array(history[:, "valid_loss"]))
    assert 0.5 < history[-1, "on_train"] <= 1
    assert 0.5 < history[-1, "roc_auc_ovr"] <= 1
    plain = classifier(early_stopping=True).fit(X, LABELS[y])
    assert_array_equal(plain.coefs_[0], model.coefs_[0])  # scores watch, and change nothing


def test_scores_of_two_classes_and_of_numbers(iris, cancer):
    X, y = cancer
    scores = [rising(name) for name in ("roc_auc", "f1", "accuracy", "neg_brier_score")]
    model = classifier(scores, early_stopping=True).fit(X, np.array(["no", "yes"])[y])
    assert_allclose(model.net_.history[:, "accuracy"], model.validation_scores_)
    assert all(model.net_.history[-1, name] > 0.8 for name in ("roc_auc", "f1"))
    Z = iris[0]
    regressor = MarginalizedDropoutRegressor(
        callbacks=[rising("r2")], early_stopping=True, **QUICK
    ).fit(Z[:, 1:], Z[:, 0])
    assert_allclose(regressor.net_.history[:, "r2"], regressor.validation_scores_)


def test_checkpoints_hold_the_best_weights(iris, tmp_path):
    X, y = iris
    checkpoint = Checkpoint(
        dirname=tmp_path, f_params="epoch_{last_epoch[epoch]}.pt", load_best=True
    )
    model = classifier([checkpoint], early_stopping=True, max_iter=12, learning_rate_init=0.05)
    model.fit(X, y)
    history = model.net_.history
    best = max(epoch["epoch"] for epoch in history if epoch["valid_loss_best"])
    assert best == 1 + np.argmin(history[:, "valid_loss"])
    stored = torch.load(tmp_path / f"epoch_{best}.pt", weights_only=True)
    assert json.loads((tmp_path / "history.json").read_text())[-1]["epoch"] <= best
    fresh = classifier(max_iter=1).fit(X, y)
    fresh.net_.load_params(f_params=tmp_path / f"epoch_{best}.pt")
    assert_array_equal(fresh.coefs_[0], stored["layers.0.weight"].numpy().T)


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


def test_frozen_layers_may_thaw(iris):
    freezing = [Freezer("layers.0.*", at=1), Unfreezer("layers.0.*", at=3)]
    for momentum in (0.0, 0.9):
        model = classifier(freezing, solver="sgd", momentum=momentum, learning_rate_init=0.1)
        start = classifier(max_iter=1, learning_rate_init=1e-12, solver="sgd").fit(*iris)
        moved = np.abs(model.fit(*iris).coefs_[0] - start.coefs_[0]).max()
        assert moved > 1e-3


def test_skorchs_early_stopping_is_no_interruption(iris):
    stopping = EarlyStopping("train_loss", patience=2, threshold=0.05)
    model = classifier([stopping], max_iter=100).fit(*iris)
    assert model.net_.stop_reason_ == "stopped"
    assert model.n_iter_ < 60
    assert len(model.loss_curve_) == model.n_iter_


def test_gradients_pass_by(iris):
    clipped = classifier([GradientNormClipping(1e-3)], solver="sgd").fit(*iris)
    free = classifier(solver="sgd").fit(*iris)
    start = classifier(solver="sgd", learning_rate_init=1e-12, max_iter=1).fit(*iris)
    moved = [np.abs(m.coefs_[0] - start.coefs_[0]).max() for m in (clipped, free)]
    assert moved[0] < 0.1 * moved[1]


class Count(Callback):
    def on_epoch_end(self, net, **kwargs):
        self.count_ = getattr(self, "count_", 0) + 1


def test_a_fit_changes_no_parameter(iris):
    given = [("count", Count()), Count]
    model = classifier(given).fit(*iris)
    assert not vars(given[0][1])
    assert dict(model.net_.callbacks_)["count"].count_ == 6
    assert dict(model.net_.callbacks_)["Count"].count_ == 6
    assert clone(model).callbacks[1] is Count
    search = GridSearchCV(model, {"alpha": [1e-4, 1e-2]}, cv=2, n_jobs=2).fit(*iris)
    assert dict(search.best_estimator_.net_.callbacks_)["count"].count_ == 6


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        ([1], "list of skorch callbacks, .* got 1"),
        ([("name", "x")], "pairs of a name and a callback"),
        ([ProgressBar], "set_callbacks"),
        ([int], "list of skorch callbacks"),
        ([InputShapeSetter()], "InputShapeSetter: the network is built for the features"),
        ([("shape", InputShapeSetter)], "InputShapeSetter"),
        (Count(), "'callbacks' parameter"),
        ([("stopping", Count())], "duplicate"),
    ],
)
def test_what_is_no_list_of_callbacks_is_refused(iris, callbacks, message):
    if callbacks == [ProgressBar]:
        pytest.importorskip("rich")
        callbacks = [ProgressBar()]
    with pytest.raises(ValueError, match=message):
        classifier(callbacks).fit(*iris)


def networks_and_glms(X, y):
    labels = LABELS[y]
    yield classifier().fit(X, labels), X
    yield classifier().fit(X, y > 0), X
    yield MarginalizedDropoutRegressor(**QUICK).fit(X[:, 1:], X[:, 0]), X[:, 1:]
    yield MarginalizedDropoutRegressor(**QUICK).fit(X[:, 2:], X[:, :2]), X[:, 2:]
    yield MarginalizedDropoutGLMClassifier().fit(sp.csr_array(X), labels), X
    yield MarginalizedDropoutGLMRegressor(retain_rate=0.9).fit(X[:, 1:], X[:, 0]), X[:, 1:]


def test_nets_predict_like_their_estimators(iris):
    X, y = iris
    for model, Z in networks_and_glms(X, y):
        net, expected = model.net_, model.predict(Z)
        if hasattr(model, "classes_"):
            expected = np.searchsorted(model.classes_, expected)
            assert_array_equal(net.classes_, np.arange(len(model.classes_)))
            assert_allclose(net.predict_proba(Z), model.predict_proba(Z))
            assert net.score(Z, expected) == 1
        for rows in (Z, sp.csc_array(Z), torch.from_numpy(Z), Dataset(Z), Z.astype(np.float32)):
            assert_allclose(net.predict(rows), expected, atol=1e-5)


def test_integers_and_lists_are_rows_too(iris):
    X, y = load_iris(return_X_y=True)
    net = classifier().fit(X.round(), y).net_
    expected = net.predict_proba(X.round())
    assert_array_equal(net.predict_proba(X.round().astype(int)), expected)
    assert_array_equal(net.predict_proba(X.round().tolist()), expected)


def test_forward_in_training_mode_draws_the_noise(iris):
    X, y = iris
    net = classifier(max_iter=30).fit(X, y).net_
    clean = net.forward(X[:5])
    assert torch.equal(net.forward(X[:5]), clean)
    draws = torch.stack([net.forward(X[:5], training=True) for _ in range(50)])
    assert (draws.std(0) > 0).all()
    assert torch.equal(net.forward(X[:5]), clean)


def test_parameters_optimiser_and_history_are_saved_and_loaded(iris, tmp_path):
    X, y = iris
    files = {f"f_{name}": tmp_path / name for name in ("params", "optimizer", "history")}
    model = classifier().fit(X, y)
    model.net_.save_params(**files)
    other = classifier(max_iter=1, random_state=1).fit(X, y)
    other.net_.load_params(**files)
    assert_array_equal(other.predict_proba(X), model.predict_proba(X))
    assert other.net_.history == model.net_.history


def test_nets_train_on_arrays(iris):
    X, y = iris
    for model, target in ((classifier().fit(X, y), y), (classifier().fit(X, y > 0), y > 0)):
        before = log_loss(target, model.predict_proba(X))
        model.net_.set_params(max_epochs=10)
        model.net_.partial_fit(X, target.astype(int))
        assert len(model.net_.history) == 16
        assert log_loss(target, model.predict_proba(X)) < before
    net = classifier(early_stopping=True).fit(X, y).net_
    net.partial_fit(X, y)  # without validation rows
    assert len(net.history) == 12
    assert "valid_loss" not in net.history[-1]


def test_lbfgs_is_left_to_the_estimator(iris):
    model = MarginalizedDropoutGLMClassifier().fit(*iris)
    with pytest.raises(RuntimeError, match="warm_start=True"):
        model.net_.partial_fit(*iris)


@pytest.mark.parametrize("early_stopping", [False, True])
def test_verbose_prints_a_line_an_epoch(iris, early_stopping, capsys):
    model = classifier(
        [rising("accuracy", on_train=not early_stopping)],
        verbose=True,
        early_stopping=early_stopping,
        max_iter=3,
    ).fit(*iris)
    heading, *lines = capsys.readouterr().out.splitlines()
    valid = ["valid_loss", "valid_score"] if early_stopping else []
    names = ["epoch", "objective", "penalty", *valid, "accuracy", "seconds"]
    assert heading.split() == names
    assert len(lines) == 3
    row = dict(zip(names, lines[-1].split(), strict=True))
    assert row["epoch"] == "3"
    assert float(row["objective"]) == pytest.approx(model.loss_curve_[-1], rel=1e-4)
    assert float(row["penalty"]) == pytest.approx(model.penalty_curve_[-1], rel=1e-4)
    if early_stopping:
        assert float(row["valid_score"]) == pytest.approx(model.validation_scores_[-1], rel=1e-4)
    assert {len(line) for line in lines} == {len(heading)}


def test_verbose_of_the_other_estimators(iris, capsys):
    X = iris[0]
    for model in (
        MarginalizedDropoutRegressor(**QUICK, verbose=True),
        MarginalizedDropoutGLMRegressor(solver="adagrad", max_iter=6, verbose=True),
    ):
        model.fit(X[:, 1:], X[:, 0])
        heading, *lines = capsys.readouterr().out.splitlines()
        assert heading.split() == ["epoch", "objective", "penalty", "seconds"]
        assert len(lines) == model.n_iter_ == 6


def test_without_verbose_nothing_is_printed(iris, capsys):
    classifier().fit(*iris)
    MarginalizedDropoutGLMClassifier().fit(*iris)
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize("method", ["diagonal", "quadratic", "sampling"])
def test_frozen_layers_stay(iris, method):
    X, y = iris
    for activation in ("relu", "logistic"):
        options = {"activation": activation, "hidden_layer_sizes": (6, 5), "method": method}
        start = classifier(max_iter=1, learning_rate_init=1e-12, **options).fit(X, y)
        frozen = classifier([Freezer("layers.2*")], **options).fit(X, y)
        assert_allclose(frozen.coefs_[1], start.coefs_[1], atol=1e-9)
        assert_allclose(frozen.intercepts_[1], start.intercepts_[1], atol=1e-9)
        assert np.abs(frozen.coefs_[2] - start.coefs_[2]).max() > 1e-3


def test_schedules_with_base_rates_keep_what_explosions_left(iris):
    X, y = iris
    options = {"solver": "sgd", "learning_rate_init": 3.0, "noise_placement": "none"}
    options |= {"max_iter": 60, "hidden_layer_sizes": 64}
    constant = LRScheduler(policy="LambdaLR", lr_lambda=lambda epoch: 1.0)
    plain = classifier(**options).fit(3 * X, y)
    scheduled = classifier([constant], **options).fit(3 * X, y)
    assert plain.net_.n_explosions_ > 0
    assert scheduled.loss_curve_ == plain.loss_curve_


def test_callbacks_without_validation_rows_are_refused_before_training(iris):
    for callback, message in (
        (EarlyStopping(), "another monitor, 'train_loss'"),
        (Checkpoint(), "early_stopping=True"),
        (rising("accuracy"), "on_train=True"),
        (BatchScoring("accuracy"), "on_train=True"),
        (PassthroughScoring("valid_loss"), "on_train=True"),
    ):
        with pytest.raises(ValueError, match=f"looks at validation rows.*{message}"):
            classifier([callback]).fit(*iris)
        classifier([callback], early_stopping=True, max_iter=2)


def test_models_with_a_schedule_are_saved_without_it(iris):
    model = classifier([LRScheduler(policy="StepLR", step_size=2, gamma=0.5)]).fit(*iris)
    copy = pickle.loads(pickle.dumps(model))
    assert dict(copy.net_.callbacks_)["LRScheduler"].lr_scheduler_ is None
    assert dict(model.net_.callbacks_)["LRScheduler"].lr_scheduler_ is not None
    assert_array_equal(copy.predict_proba(iris[0]), model.predict_proba(iris[0]))
    for each in (model, copy):
        each.partial_fit(*iris)
    assert_array_equal(copy.coefs_[0], model.coefs_[0])


def test_nets_are_cross_validated_and_split_on_frames(iris):
    X, y = pd.DataFrame(iris[0]), pd.Series(iris[1], index=np.arange(150) + 7)
    net = clone(classifier().fit(X.to_numpy(), y).net_).set_params(max_epochs=20)
    assert np.isfinite(cross_val_score(net, X.to_numpy(), y, cv=3, error_score="raise")).all()
    net.set_params(train_split=ValidSplit(5)).fit(X.to_numpy(), y)
    assert len(net.history) == 20
    assert np.isfinite(net.history[-1, "valid_loss"])
    with pytest.raises(ValueError, match="positions in the estimator's classes_"):
        net.fit(X.to_numpy(), LABELS[iris[1]])
    with pytest.raises(TypeError, match="trains on arrays"):
        net.fit(Dataset(iris[0], iris[1]))


def test_without_callbacks_every_epoch_is_recorded(iris):
    net = clone(classifier().fit(*iris).net_)
    net.set_params(callbacks="disable", max_epochs=5).fit(*iris)
    assert len(net.history) == 5


def test_coefficients_are_not_those_of_the_net(iris):
    model = MarginalizedDropoutGLMClassifier(solver="sgd", max_iter=5, random_state=0).fit(*iris)
    coef, intercept = model.coef_.copy(), model.intercept_.copy()
    model.net_.partial_fit(*iris)
    assert_array_equal(model.coef_, coef)
    assert_array_equal(model.intercept_, intercept)


def test_histories_of_streams_know_the_lowest_loss(iris):
    model = classifier()
    for _ in range(8):
        model.partial_fit(*iris, classes=[0, 1, 2])
    losses = model.net_.history[:, "train_loss"]
    lowest = [loss == min(losses[: k + 1]) for k, loss in enumerate(losses)]
    assert model.net_.history[:, "train_loss_best"] == lowest
