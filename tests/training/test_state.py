"""Fitted models in files: pickles and skops."""

import io
import pickle
import re
import types
import warnings
import zipfile
from functools import cache
from pathlib import Path

import joblib
import numpy as np
import pytest
import skops.io as skops_io
import torch
from numpy.testing import assert_allclose, assert_array_equal, assert_equal
from sklearn.base import clone
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.model_selection import GridSearchCV
from sklearn.neural_network import BernoulliRBM
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from skorch.exceptions import DeviceWarning

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)
from sklearn_margdrop.training.state import net_state

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

SMALL = {"hidden_layer_sizes": (6,), "max_iter": 15, "random_state": 0}

rng = np.random.RandomState(0)
X = rng.normal(size=(60, 4))
LABELS = np.array(["a", "b", "c"])[np.argmax(X[:, :3], axis=1)]
COUNTS = rng.poisson(np.exp(X[:, :2]))

#: A model of each kind, with its target; between them they have all optimisers and families.
MODELS = {
    "classifier": (MarginalizedDropoutClassifier(**SMALL), LABELS),
    "early_stopping": (
        MarginalizedDropoutClassifier(early_stopping=True, activation="logistic", **SMALL),
        LABELS == "a",
    ),
    "diagonal": (MarginalizedDropoutClassifier(method="diagonal", **SMALL), LABELS),
    "sampling": (
        MarginalizedDropoutClassifier(
            method="sampling",
            solver="sgd",
            learning_rate="constant",
            learning_rate_decay=0.1,
            **SMALL,
        ),
        LABELS,
    ),
    "regressor": (MarginalizedDropoutRegressor(early_stopping=True, **SMALL), X[:, 0]),
    "poisson": (
        MarginalizedDropoutRegressor(
            family="poisson", method="quadratic", n_probes=1, noise="gaussian", **SMALL
        ),
        COUNTS,
    ),
    "glm_classifier": (MarginalizedDropoutGLMClassifier(), LABELS),
    "glm_fisher": (MarginalizedDropoutGLMClassifier(solver="fisher", random_state=0), LABELS),
    "glm_sgd": (
        MarginalizedDropoutGLMClassifier(
            solver="sgd", method="sampling", max_iter=5, random_state=0
        ),
        LABELS == "a",
    ),
    "glm_regressor": (MarginalizedDropoutGLMRegressor(fit_intercept=False), X[:, 0]),
    "glm_poisson": (
        MarginalizedDropoutGLMRegressor(
            family="poisson", solver="adagrad", retain_rate=0.9, random_state=0
        ),
        COUNTS,
    ),
}
every_model = pytest.mark.parametrize("name", MODELS)


@cache
def fitted(name):
    """A fitted model, that tests must not change."""
    model, y = MODELS[name]
    return clone(model).fit(X, y)


def predict(model, X):
    return model.predict_proba(X) if hasattr(model, "classes_") else model.predict(X)


@cache
def trained(name):
    """What becomes of a model that is not saved but goes on training."""
    model, y = MODELS[name]
    return go_on(clone(model).fit(X, y), X, y)


def go_on(model, X, y):
    """The same model after some more training."""
    if hasattr(model, "early_stopping"):
        model.set_params(early_stopping=False)
    if hasattr(model, "partial_fit"):
        return model.partial_fit(X, y)
    return model.set_params(warm_start=True, alpha=0.01).fit(X, y)


def by_joblib(model, path):
    joblib.dump(model, path / "model.joblib")
    return joblib.load(path / "model.joblib", mmap_mode="r")


def by_skops(model, path):
    skops_io.dump(model, path / "model.skops")
    names = skops_io.get_untrusted_types(file=path / "model.skops")
    return skops_io.load(path / "model.skops", trusted=names)


WAYS = {
    "pickle": lambda model, _: pickle.loads(pickle.dumps(model)),
    "joblib, mapped": by_joblib,
    "skops": by_skops,
}


@every_model
@pytest.mark.parametrize("way", WAYS)
def test_copies_predict_and_learn_alike(name, way, tmp_path):
    model, (_, y) = fitted(name), MODELS[name]
    again = WAYS[way](model, tmp_path)
    assert_array_equal(predict(again, X), predict(model, X))
    assert_equal(list(again.net_.history), list(model.net_.history))
    assert again.net_.stop_reason_ == model.net_.stop_reason_
    assert again.net_.module_.layers[0].weight.dtype == torch.float64
    go_on(again, X, y)
    assert_array_equal(predict(again, X), predict(trained(name), X))
    assert_array_equal(again.loss_curve_, trained(name).loss_curve_)


@pytest.mark.parametrize("way", WAYS)
def test_learning_rate_after_explosions_is_kept(way, tmp_path):
    model = MarginalizedDropoutRegressor(
        (8,), solver="sgd", learning_rate_init=10.0, max_iter=5, random_state=0
    ).fit(X, X[:, 0])
    assert model.net_.rate_factor_ < 1
    again = WAYS[way](model, tmp_path)
    rates = [[group["lr"] for group in m.net_.optimizer_.param_groups] for m in (model, again)]
    assert rates[0] == rates[1]
    assert again.net_.rate_factor_ == model.net_.rate_factor_


def test_callbacks_are_kept_as_the_fit_left_them():
    net = fitted("early_stopping").net_
    again = pickle.loads(pickle.dumps(net))
    for (name, before), (same_name, after) in zip(net.callbacks_, again.callbacks_, strict=True):
        assert (name, vars(before)) == (same_name, vars(after))
    own = {id(each[1] if isinstance(each, tuple) else each) for each in again.callbacks}
    assert own
    assert own <= {id(callback) for _, callback in again.callbacks_}


@every_model
def test_no_torch_objects_in_a_pickle(name):
    """So that neither a device nor a version of torch comes with it."""
    names = set()

    class Unpickler(pickle.Unpickler):
        def find_class(self, module, name):
            names.add(f"{module}.{name}")
            return super().find_class(module, name)

    Unpickler(io.BytesIO(pickle.dumps(fitted(name)))).load()
    assert not {each for each in names if re.match(r"torch\.(?!optim)", each)}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU to load to")
@every_model
def test_models_fitted_on_a_gpu_load_without_one(name):
    model, y = MODELS[name]
    model = clone(model).fit(X, y)
    expected = predict(model, X)
    # What the file of a model fitted on a GPU says: CUDA's generators have a state of 16 bytes.
    state = torch.zeros(16, dtype=torch.uint8)
    model.net_.device = "cuda:1"
    model.net_.generator_ = types.SimpleNamespace(get_state=lambda: state)
    with pytest.warns(DeviceWarning, match="'cuda:1', which is not available here"):
        again = pickle.loads(pickle.dumps(model))
    assert again.net_.device == "cpu"
    assert_array_equal(predict(again, X), expected)
    assert go_on(again, X, y).net_.device == "cpu"
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # once on the CPU, it is a model of the CPU
        pickle.loads(pickle.dumps(again))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@every_model
@pytest.mark.parametrize("way", WAYS)
def test_models_stay_on_their_gpu(name, way, tmp_path):
    model, (_, y) = fitted(name), MODELS[name]
    again = WAYS[way](model, tmp_path)
    assert next(again.net_.module_.parameters()).is_cuda
    assert_array_equal(again.net_.generator_.get_state(), model.net_.generator_.get_state())
    assert_allclose(predict(go_on(again, X, y), X), predict(trained(name), X))


def test_a_net_that_is_not_initialised():
    net = fitted("classifier").net_
    blank = type(net)(**net.get_params(deep=False))
    again = pickle.loads(pickle.dumps(blank))
    assert not again.initialized_
    assert again.initialize().module_.layers[0].weight.dtype == torch.float64


OWN = ("sklearn_margdrop.", "skorch.", "torch.optim.")


@every_model
def test_skops_lists_few_and_known_types(name):
    names = skops_io.get_untrusted_types(data=skops_io.dumps(fitted(name)))
    assert len(names) <= 13
    assert all(each.startswith(OWN) for each in names), names


@every_model
def test_skops_files_hold_no_pickles(name):
    with zipfile.ZipFile(io.BytesIO(skops_io.dumps(fitted(name)))) as archive:
        assert {Path(each).suffix for each in archive.namelist()} == {".json", ".npy"}
        for each in archive.namelist():
            if each.endswith(".npy"):
                np.load(io.BytesIO(archive.read(each)), allow_pickle=False)


@every_model
def test_skops_refuses_what_is_not_trusted(name):
    data = skops_io.dumps(fitted(name))
    with pytest.raises(skops_io.exceptions.UntrustedTypesFoundException, match="sklearn_margdrop"):
        skops_io.loads(data)
    names = skops_io.get_untrusted_types(data=data)
    for left_out in names:
        with pytest.raises(skops_io.exceptions.UntrustedTypesFoundException, match=left_out):
            skops_io.loads(data, trusted=[each for each in names if each != left_out])


@pytest.mark.parametrize("name", ["classifier", "glm_regressor"])
def test_skops_and_pipelines(name, tmp_path):
    model, y = MODELS[name]
    pipeline = make_pipeline(StandardScaler(), clone(model)).fit(X, y)
    again = by_skops(pipeline, tmp_path)
    assert_array_equal(again.predict(X), pipeline.predict(X))
    search = GridSearchCV(pipeline, {f"{pipeline.steps[-1][0]}__alpha": [1e-4, 1e-2]}, cv=2)
    search.fit(X, y)
    assert_array_equal(by_skops(search, tmp_path).predict(X), search.predict(X))


def test_skops_and_text(tmp_path):
    texts = ["a good film", "good fun", "a bad film", "bad, and no fun"]
    model = make_pipeline(CountVectorizer(), MarginalizedDropoutGLMClassifier())
    model.fit(texts, [1, 1, 0, 0])[-1].sparsify()
    assert_array_equal(by_skops(model, tmp_path).predict_proba(texts), model.predict_proba(texts))


def test_skops_and_pretraining(tmp_path):
    rows = (X > 0).astype(float)
    model = MarginalizedDropoutClassifier(pretrainer=BernoulliRBM(n_iter=2), **SMALL)
    model.fit(rows, LABELS)
    again = by_skops(model, tmp_path)
    assert_array_equal(again.predict_proba(rows), model.predict_proba(rows))
    assert_array_equal(again.pretrainers_[0].components_, model.pretrainers_[0].components_)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", ["classifier", "glm_classifier"])
def test_unfitted_models(name, way, tmp_path):
    model, y = MODELS[name]
    model = clone(model)
    again = WAYS[way](model.set_params(device=torch.device("cpu")), tmp_path)
    assert_array_equal(again.fit(X, y).predict(X), model.fit(X, y).predict(X))


def test_the_state_of_a_net_leaves_defaults_out_and_keeps_kinds_of_arrays():
    X = np.random.RandomState(0).normal(size=(20, 3))
    model = MarginalizedDropoutClassifier((4,), max_iter=2, random_state=0).fit(X, X[:, 0] > 0)
    net = model.net_
    assert not {"module", "criterion", "shuffle"} & net_state(net)["parameters"].keys()
    net.mine_ = np.arange(3)
    assert isinstance(pickle.loads(pickle.dumps(net)).mine_, np.ndarray)


def test_classes_can_be_renamed():
    X = np.random.RandomState(0).normal(size=(20, 3))
    model = MarginalizedDropoutClassifier((4,), max_iter=2, random_state=0).fit(X, X[:, 0] > 0)
    codes = model.predict(X).astype(int)
    model.classes_ = ["no", "yes"]
    assert_array_equal(model.predict(X), np.array(["no", "yes"])[codes])
