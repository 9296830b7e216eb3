"""skorch's callbacks see the training, and `net_` is a net like any other of skorch's."""

import json

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from quick import LABELS, QUICK, classifier
from sklearn.base import clone
from sklearn.callback import ProgressBar
from sklearn.datasets import load_breast_cancer
from sklearn.metrics import log_loss
from sklearn.model_selection import GridSearchCV
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
    PassthroughScoring,
    Unfreezer,
)

from sklearn_margdrop import (
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.fixture(scope="module")
def cancer():
    X, y = load_breast_cancer(return_X_y=True)
    return StandardScaler().fit_transform(X), y


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
        retain_rate=0.5,
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
        MarginalizedDropoutRegressor(**QUICK, retain_rate=0.5, verbose=True),
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


@pytest.mark.parametrize("method", ["moments", "diagonal", "quadratic", "sampling"])
def test_frozen_layers_stay(iris, method):
    X, y = iris
    for activation in ("relu", "logistic"):
        options = {"activation": activation, "hidden_layer_sizes": (6, 5), "method": method}
        start = classifier(max_iter=1, learning_rate_init=1e-12, **options).fit(X, y)
        frozen = classifier([Freezer("layers.2*")], **options).fit(X, y)
        assert_allclose(frozen.coefs_[1], start.coefs_[1], atol=1e-9)
        assert_allclose(frozen.intercepts_[1], start.intercepts_[1], atol=1e-9)
        assert np.abs(frozen.coefs_[2] - start.coefs_[2]).max() > 1e-3


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
