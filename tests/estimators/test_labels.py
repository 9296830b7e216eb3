"""Several labels per row: an indicator matrix in, independent probabilities out."""

import pickle
import re
from functools import cache

import numpy as np
import pytest
import torch
from numpy.testing import assert_allclose, assert_array_equal
from scipy import sparse
from scipy.special import expit, log_expit, xlogy
from sklearn.base import clone
from sklearn.datasets import make_multilabel_classification
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils import get_tags
from skorch.callbacks import Callback, EpochScoring

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutRegressor,
)
from sklearn_margdrop.inspection import effective_penalty, penalty_per_sample

K = 4
X, Y = make_multilabel_classification(60, 8, n_classes=K, random_state=0)
X = X / X.std(axis=0)
SHORT = {"hidden_layer_sizes": (6,), "max_iter": 4, "batch_size": 20, "random_state": 0}
METHODS = [
    {"method": "diagonal"},
    {"method": "moments"},
    {"method": "quadratic"},
    {"method": "quadratic", "n_probes": 2},
    {"method": "sampling"},
]
CONTAINERS = {
    "bool": Y.astype(bool),
    "float": Y.astype(float),
    "list": Y.tolist(),
    "csr_matrix": sparse.csr_matrix(Y),
    "coo_array": sparse.coo_array(Y.astype(float)),
    "csc_matrix of bool": sparse.csc_matrix(Y.astype(bool)),
}
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def make(**settings):
    return MarginalizedDropoutClassifier(**SHORT | settings)


@cache
def fitted():
    return make().fit(X, Y)


def linear_predictor(model, X):
    *hidden, last = zip(model.coefs_, model.intercepts_, strict=True)
    for coef, intercept in hidden:
        X = np.maximum(X @ coef + intercept, 0)
    return X @ last[0] + last[1]


@pytest.mark.parametrize("setting", METHODS, ids=str)
def test_predictions_are_functions_of_independent_logits(setting):
    model = make(**setting).fit(X, Y, X_unlabeled=X[:7] + 1)
    eta = linear_predictor(model, X)
    assert eta.shape == (60, K)
    assert_allclose(model.decision_function(X), eta, atol=1e-12)
    assert_allclose(model.predict_proba(X), expit(eta), atol=1e-12)
    assert_allclose(model.predict_log_proba(X), log_expit(eta), atol=1e-12)
    assert_array_equal(model.predict(X), (eta > 0).astype(int))
    assert model.score(X, Y) == ((eta > 0) == Y).all(axis=1).mean()
    assert_array_equal(model.classes_, np.arange(K))


@pytest.mark.parametrize("setting", [{}, {"hidden_layer_sizes": ()}], ids=str)
def test_loss_is_that_of_independent_labels(setting):
    """The objective of all rows at the start of a step, with the L2 penalty and without noise."""
    model = make(noise_placement="none", batch_size=60, alpha=0.1, solver="sgd", **setting)
    model.partial_fit(X, Y, classes=range(K))
    p = model.predict_proba(X)
    weights = sum((W**2).sum() for W in model.coefs_)
    expected = -(xlogy(Y, p) + xlogy(1 - Y, 1 - p)).sum(axis=1).mean() + 0.05 * weights
    model.partial_fit(X, Y)
    assert_allclose(model.loss_curve_[-1], expected, rtol=1e-10)


@pytest.mark.parametrize("setting", METHODS[:3], ids=str)
def test_penalty_is_the_sum_over_the_labels(setting):
    """That of each label alone, by the network that has its output alone."""
    setting = setting | {"retain_rate": 0.8}
    model = make(**setting).fit(X, Y)
    total = np.zeros(len(X))
    for k in range(K):
        alone = make(**setting).fit(X, Y[:, k])
        for own, one in zip(model.net_.module_.linears, alone.net_.module_.linears, strict=True):
            last = one.out_features == 1
            with torch.no_grad():
                one.weight.copy_(own.weight[k : k + 1] if last else own.weight)
                one.bias.copy_(own.bias[k : k + 1] if last else own.bias)
        total += penalty_per_sample(alone, X)
    assert_allclose(penalty_per_sample(model, X), total, rtol=1e-10)
    parts = effective_penalty(model, X).values()
    assert_allclose(sum(each.sum() for each in parts), total.mean(), rtol=1e-10)


def test_a_step_is_that_of_mlp_classifier():
    common = {"hidden_layer_sizes": (6,), "solver": "sgd", "momentum": 0, "batch_size": len(X)}
    common |= {"learning_rate_init": 0.1}
    ours = MarginalizedDropoutClassifier(noise_placement="none", alpha=1e-2 / len(X), **common)
    theirs = MLPClassifier(alpha=1e-2, nesterovs_momentum=False, **common)
    for model in (ours, theirs):
        model.partial_fit(X, Y, classes=np.arange(K))
    for a, b in zip(
        theirs.coefs_ + theirs.intercepts_, ours.coefs_ + ours.intercepts_, strict=True
    ):
        a[...] = b
    for model in (ours, theirs):
        model.partial_fit(X, Y)
    assert_allclose(ours.predict_proba(X), theirs.predict_proba(X), atol=1e-12)
    assert_array_equal(ours.predict(X), theirs.predict(X))
    assert_array_equal(ours.classes_, theirs.classes_)
    assert_allclose(ours.loss_curve_[-1], theirs.loss_curve_[-1], rtol=1e-9)


@pytest.mark.parametrize("name", CONTAINERS)
def test_containers_of_the_target(name):
    y, model = CONTAINERS[name], make()
    predicted = model.fit(X, y).predict(X)
    reference = MLPClassifier(**SHORT).fit(X, y).predict(X)
    assert type(predicted) is type(reference)
    assert predicted.dtype == reference.dtype
    dense = predicted.toarray() if sparse.issparse(predicted) else predicted
    assert_array_equal(dense, fitted().predict(X))
    assert model.score(X, y) == fitted().score(X, Y)
    again = clone(model).set_params(max_iter=1).partial_fit(X, y, classes=range(K))
    assert type(again.predict(X)) is type(predicted)


def test_one_hot_is_several_labels_as_for_mlp_classifier():
    y = np.argmax(Y + np.arange(K) / 10, axis=1)
    one_hot = np.eye(K, dtype=int)[y]
    model = make().fit(X, one_hot)
    assert model.predict(X).shape == MLPClassifier(**SHORT).fit(X, one_hot).predict(X).shape
    with pytest.raises(ValueError, match=r"one-hot; pass y\.argmax\(1\)"):
        MarginalizedDropoutGLMClassifier().fit(X, one_hot)
    with pytest.raises(ValueError, match=r"one-hot; pass y\.argmax\(1\)"):
        MarginalizedDropoutGLMClassifier().fit(X, sparse.csr_array(one_hot))
    with pytest.raises(ValueError, match=r"MultiOutputClassifier.*MarginalizedDropoutClassifier"):
        MarginalizedDropoutGLMClassifier().fit(X, Y)


@pytest.mark.parametrize("model", [make(), MarginalizedDropoutGLMClassifier()])
def test_several_columns_of_other_classes(model):
    for y in (Y + np.arange(60)[:, None] % 3, np.array(["a", "b"])[Y]):
        with pytest.raises(ValueError, match="MultiOutputClassifier"):
            model.fit(X, y)


@pytest.mark.parametrize("y", [2 * Y - 1, 2 * Y, sparse.csr_array(3 * Y)])
def test_other_values_than_zero_and_one(y):
    with pytest.raises(ValueError, match="0 and 1: pass y > 0"):
        make().fit(X, y)


def test_tags():
    assert get_tags(make()).classifier_tags.multi_label
    assert not get_tags(MarginalizedDropoutGLMClassifier()).classifier_tags.multi_label


def test_weights_are_copies_of_rows():
    counts = np.arange(60) % 3
    settings = {"solver": "sgd", "batch_size": 1000, "retain_rate": 0.8, "n_probes": None}
    weighted = make(**settings).fit(X, Y, sample_weight=counts)
    repeated = make(**settings).fit(np.repeat(X, counts, axis=0), np.repeat(Y, counts, axis=0))
    assert_allclose(weighted.predict_proba(X), repeated.predict_proba(X), atol=1e-10)
    predicted = weighted.predict(X)
    assert_allclose(
        weighted.score(X, Y, counts), accuracy_score(Y, predicted, sample_weight=counts)
    )


@pytest.mark.parametrize("class_weight", ["balanced", {0: 1, 1: 2}])
def test_class_weight_is_not_defined(class_weight):
    model = make(class_weight=class_weight)
    with pytest.raises(ValueError, match=r"class_weight.*sample_weight.*MultiOutputClassifier"):
        model.fit(X, Y)
    assert not hasattr(model, "classes_")


def test_early_stopping_keeps_the_best_subset_accuracy():
    model = make(early_stopping=True, max_iter=8, validation_fraction=0.3, learning_rate_init=0.03)
    model.fit(X, sparse.csr_array(Y))
    assert len(model.validation_scores_) == model.n_iter_
    assert model.best_validation_score_ == max(model.validation_scores_)
    assert all(round(18 * score, 9).is_integer() for score in model.validation_scores_)
    # A label that a single row has: there is nothing to stratify by.
    rare = np.zeros_like(Y)
    rare[0, 0] = 1
    make(early_stopping=True).fit(X, rare)


def test_chunks_and_classes():
    chunks = [slice(0, 30), slice(30, 60)]
    model = make()
    with pytest.raises(ValueError, match="classes must be passed"):
        model.partial_fit(X, Y)
    for classes in (range(K - 1), range(K + 1), list("abcd")):
        with pytest.raises(ValueError, match=r"4 columns.*classes"):
            model.partial_fit(X, Y, classes=classes)
    for chunk in chunks:
        model.partial_fit(X[chunk], Y[chunk], classes=range(K))
    assert model.n_iter_ == 2
    model.partial_fit(X[:1], Y[:1])  # a row alone is a chunk as well
    for other, words in (
        (Y[:, 0], "one label per row.*had several"),
        (Y[:, :3], "3 columns"),
    ):
        before = pickle.dumps(model)
        with pytest.raises(ValueError, match=words):
            model.partial_fit(X, other)
        assert pickle.dumps(model) == before
    with pytest.raises(ValueError, match=r"several labels per row.*had one"):
        make().partial_fit(X, Y[:, 0], classes=[0, 1]).partial_fit(X, Y)
    with pytest.raises(ValueError, match=r"4 columns.*classes"):
        model.partial_fit(X, Y, classes=range(3))


def test_warm_start_and_fits_to_other_targets():
    model = make(warm_start=True).fit(X, Y)
    assert model.fit(X, Y).n_iter_ == 8
    with pytest.raises(ValueError, match="warm_start=False"):
        model.fit(X, Y[:, 0])
    model.set_params(warm_start=False).fit(X, Y[:, 0])
    assert model.predict(X).shape == (60,)
    assert_allclose(model.predict_proba(X).sum(axis=1), 1)
    assert_array_equal(model.fit(X, Y).predict_proba(X), fitted().predict_proba(X))


def test_saved_models_predict_and_learn_alike(tmp_path):
    skops = pytest.importorskip("skops.io")
    model = make().fit(X, sparse.csr_array(Y))
    saved = skops.dumps(model)
    trusted = skops.get_untrusted_types(data=saved)
    for again in (pickle.loads(pickle.dumps(model)), skops.loads(saved, trusted=trusted)):
        assert sparse.issparse(again.predict(X))
        assert_array_equal(again.predict_proba(X), model.predict_proba(X))
        expected = clone(model).fit(X, Y).partial_fit(X, Y).predict_proba(X)
        assert_array_equal(again.partial_fit(X, Y).predict_proba(X), expected)


def test_onnx(tmp_path):
    runtime = pytest.importorskip("onnxruntime")
    fitted().to_onnx(tmp_path / "model.onnx")
    session = runtime.InferenceSession(tmp_path / "model.onnx")
    assert [each.shape for each in session.get_outputs()] == [["n", K], ["n", K]]
    labels, probabilities = session.run(None, {"X": X})
    assert labels.dtype == np.int64
    assert_array_equal(labels, fitted().predict(X))
    assert_allclose(probabilities, fitted().predict_proba(X), atol=1e-12)


def test_onnx_of_a_pipeline():
    runtime, skl2onnx = (pytest.importorskip(name) for name in ("onnxruntime", "skl2onnx"))
    from sklearn_margdrop.export.converters import register_onnx_converters

    register_onnx_converters()
    pipe = make_pipeline(StandardScaler(), make()).fit(X, Y)
    model = skl2onnx.to_onnx(pipe, X[:1], options={"zipmap": False})
    options = runtime.SessionOptions()
    options.log_severity_level = 3
    session = runtime.InferenceSession(model.SerializeToString(), options)
    labels, probabilities = session.run(None, {"X": X})
    assert_array_equal(labels, pipe.predict(X))
    assert_allclose(probabilities, pipe.predict_proba(X), atol=1e-12)


def test_net_predicts_encodes_and_scores():
    net = fitted().net_
    assert_array_equal(net.predict(X), fitted().predict(X))
    assert_allclose(net.predict_proba(X), fitted().predict_proba(X), atol=1e-12)
    assert net.score(X, Y) == fitted().score(X, Y)
    assert_array_equal(net.decode(net.encode(Y)), Y)
    assert_array_equal(net.classes_, fitted().classes_)
    again = make().fit(X, Y).net_.partial_fit(X, Y)
    assert len(again.history) == 8


def test_callbacks_see_indicators():
    seen = []

    class Look(Callback):
        def on_batch_end(self, net, batch, **kwargs):
            seen.append(batch[1])

    score = EpochScoring("accuracy", on_train=True, name="train_accuracy", lower_is_better=False)
    model = make(callbacks=[score, Look()], max_iter=2, shuffle=False, batch_size=60).fit(X, Y)
    assert all((each.numpy() == Y).all() for each in seen)
    assert 0 <= model.net_.history[-1, "train_accuracy"] <= 1
    validated = EpochScoring("accuracy", name="accuracy")
    model = make(callbacks=[validated], early_stopping=True).fit(X, Y)
    assert_allclose(model.net_.history[:, "accuracy"], model.validation_scores_)


def test_a_killed_fit_goes_on(tmp_path):
    class Killed(BaseException):
        pass

    class Kill(Callback):
        def on_epoch_end(self, net, **kwargs):
            if len(net.history) == 3 and not (tmp_path / "killed").exists():
                (tmp_path / "killed").touch()
                raise Killed

    whole = make(early_stopping=True).fit(X, Y)
    model = make(early_stopping=True, checkpoint=tmp_path / "fit", callbacks=[Kill])
    with pytest.raises(Killed):
        model.fit(X, sparse.csr_array(Y))
    model.fit(X, sparse.csr_array(Y))
    assert_array_equal(model.predict_proba(X), whole.predict_proba(X))
    assert model.validation_scores_ == whole.validation_scores_
    assert sparse.issparse(model.predict(X))


def test_searches_pipelines_and_html():
    pipe = make_pipeline(StandardScaler(), make())
    scores = cross_val_score(pipe, X, Y, cv=3, scoring="roc_auc_ovr")
    assert (scores > 0).all()
    search = GridSearchCV(make(max_iter=1), {"alpha": [1e-4, 1.0]}, cv=2).fit(X, Y)
    assert search.predict(X).shape == Y.shape
    assert "output bernoulli" in fitted()._repr_html_()


def test_a_constant_label_and_a_label_that_no_row_has():
    y = Y.copy()
    y[:, 0], y[:, 1] = 1, 0
    model = make(max_iter=60, learning_rate_init=0.02).fit(X, y)
    assert_array_equal(model.predict(X)[:, :2], y[:, :2])


@pytest.mark.parametrize("kind", ["dense", "sparse"])
def test_regressors_go_without(kind):
    y = Y if kind == "dense" else sparse.csr_array(Y)
    model = MarginalizedDropoutRegressor(**SHORT)
    if kind == "dense":
        assert model.fit(X, y).predict(X).shape == Y.shape
    else:
        with pytest.raises((TypeError, ValueError)):
            model.fit(X, y)


@pytest.mark.parametrize(
    "weights", [{0: -1, 1: 1, 2: 1}, {0: np.nan}, {0: "a"}, {0: 0, 1: 0, 2: 0}]
)
def test_bad_class_weight(data, no_training, weights):
    with pytest.raises(ValueError, match="class_weight"):
        MarginalizedDropoutClassifier(class_weight=weights).fit(*data)


def test_balanced_classes_ignore_rows_without_weight(data):
    X, y = data
    model = MarginalizedDropoutClassifier((5,), class_weight="balanced", max_iter=3)
    assert np.isfinite(model.fit(X, y, sample_weight=(y != 2)).loss_curve_).all()


def test_labels_unseen_in_the_first_call(data):
    X, y = data
    model = MarginalizedDropoutClassifier((3,)).partial_fit(X, y, classes=[0, 1, 2])
    with pytest.raises(ValueError, match=r"labels array\(\[5\]\).*partial_fit"):
        model.partial_fit(X, np.where(y == 0, 5, y))
    with pytest.raises(ValueError, match="classes"):
        model.partial_fit(X, y, classes=[0, 1, 2, 3])
    regressor = MarginalizedDropoutRegressor((3,)).partial_fit(X, y)
    with pytest.raises(ValueError, match="2 columns"):
        regressor.partial_fit(X, np.column_stack([y, y]))


CLASSIFIERS = [
    MarginalizedDropoutClassifier((3,), max_iter=1),
    MarginalizedDropoutGLMClassifier(solver="sgd", max_iter=1),
]


classifiers = pytest.mark.parametrize("model", CLASSIFIERS, ids=lambda m: type(m).__name__)


@classifiers
@pytest.mark.parametrize(
    "classes",
    [{0, 1, 2}, {0: 1, 1: 1, 2: 1}, "012", 3, iter([0, 1, 2]), [], [[0, 1], [2, 3]], [0, [1, 2]]],
    ids=lambda classes: re.sub(" object at .*", "", repr(classes)),  # the same in all workers
)
def test_classes_are_a_list_of_labels(data, no_training, model, classes):
    for _ in range(2):
        with pytest.raises(ValueError, match=r"^classes must"):
            clone(model).partial_fit(*data, classes=classes)


@classifiers
def test_a_warm_start_has_the_classes_of_the_previous_call(data, model):
    X, y = data
    model = clone(model).set_params(warm_start=True).fit(X, y)
    before = pickle.dumps(model)
    for other in (np.where(y == 2, 1, y), np.where(y == 0, 5, y), y == 1):
        with pytest.raises(ValueError, match=r"warm_start=False"):
            model.fit(X, other)
        assert pickle.dumps(model) == before
    with pytest.raises(ValueError, match=r"^warm_start can only .* same classes"):
        model.fit(X[y < 2], y[y < 2])
    model.fit(X, y)
    model.partial_fit(X[y < 2], y[y < 2])  # a chunk need not have all of them
    model.set_params(warm_start=False).fit(X[y < 2], y[y < 2])
    assert_array_equal(model.classes_, [0, 1])
