"""The estimators among scikit-learn's tools, with the containers that users have."""

import multiprocessing
import pickle

import joblib
import numpy as np
import pandas as pd
import polars as pl
import pytest
import scipy.sparse as sp
import torch
from numpy.testing import assert_allclose, assert_array_equal
from sklearn import config_context
from sklearn.base import clone
from sklearn.calibration import CalibratedClassifierCV
from sklearn.compose import ColumnTransformer, TransformedTargetRegressor
from sklearn.datasets import load_breast_cancer
from sklearn.ensemble import AdaBoostClassifier
from sklearn.experimental import enable_halving_search_cv  # noqa: F401
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.impute import SimpleImputer
from sklearn.model_selection import GridSearchCV, HalvingGridSearchCV, cross_val_score
from sklearn.multioutput import MultiOutputClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import OneHotEncoder, StandardScaler

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutRegressor,
)
from sklearn_margdrop.numerics.devices import check_device
from sklearn_margdrop.training.batches import Batches, Features, Rows

pytestmark = pytest.mark.filterwarnings("ignore:Training stopped at max_iter")

QUICK = {"hidden_layer_sizes": (16,), "max_iter": 30, "learning_rate_init": 0.05}


def classifier(**options):
    return MarginalizedDropoutClassifier(random_state=0, **(QUICK | options))


def test_pipeline_and_cross_validation(iris):
    model = make_pipeline(StandardScaler(), classifier())
    assert cross_val_score(model, *iris, cv=3).mean() > 0.9


@pytest.mark.parametrize("n_jobs", [1, 2])
def test_grid_search_over_placement_and_retain_rate(iris, n_jobs):
    grid = {
        "noise_placement": ["both", "input", "hidden", "none"],
        "retain_rate": [0.5, 0.9],
    }
    search = GridSearchCV(classifier(max_iter=5), grid, cv=2, n_jobs=n_jobs)
    search.fit(*iris)
    again = GridSearchCV(classifier(max_iter=5), grid, cv=2).fit(*iris)
    assert_array_equal(search.cv_results_["mean_test_score"], again.cv_results_["mean_test_score"])


def test_halving_search_over_epochs(iris):
    search = HalvingGridSearchCV(
        classifier(),
        {"retain_rate": [0.5, 0.7, 0.9], "method": ["moments", "quadratic"]},
        resource="max_iter",
        max_resources=20,
        cv=2,
        random_state=0,
    ).fit(*iris)
    assert search.best_score_ > 0.6


def test_calibration(iris):
    model = CalibratedClassifierCV(classifier(), cv=2).fit(*iris)
    assert_allclose(model.predict_proba(iris[0]).sum(1), 1)


def test_boosting_passes_sample_weights(iris):
    model = AdaBoostClassifier(classifier(), n_estimators=3, random_state=0)
    assert model.fit(*iris).score(*iris) > 0.9


def test_multioutput_wrapper(iris):
    X, y = iris
    labels = np.column_stack([y > 0, y > 1])
    assert MultiOutputClassifier(classifier()).fit(X, labels).score(X, labels) > 0.8


def test_transformed_target():
    rng = np.random.RandomState(0)
    X = rng.normal(size=(200, 3))
    y = 1000 + 100 * X[:, 0]
    model = TransformedTargetRegressor(
        MarginalizedDropoutRegressor(retain_rate=0.99, random_state=0, **QUICK),
        transformer=StandardScaler(),
    )
    assert model.fit(X, y).score(X, y) > 0.9


def test_column_transformer_with_set_output(iris):
    frame = pd.DataFrame(iris[0], columns=list("abcd")).assign(kind=np.tile(["x", "y"], 75))
    columns = ColumnTransformer(
        [
            ("numbers", StandardScaler(), list("abcd")),
            ("kind", OneHotEncoder(sparse_output=False), ["kind"]),
        ]
    ).set_output(transform="pandas")
    model = make_pipeline(columns, classifier()).fit(frame, iris[1])
    assert model.score(frame, iris[1]) > 0.9
    assert "numbers__a" in model[-1].feature_names_in_


@pytest.mark.parametrize("frame", [pd.DataFrame, pl.DataFrame])
def test_frames_give_names_and_the_same_model(iris, frame):
    X, y = iris
    names = ["a", "b", "c", "d"]
    table = frame({name: X[:, k] for k, name in enumerate(names)})
    labels = {pd.DataFrame: pd.Series, pl.DataFrame: pl.Series}[frame](
        np.array(["r", "s", "t"])[y].tolist()
    )
    model = classifier().fit(table, labels)
    assert_array_equal(model.feature_names_in_, names)
    plain = classifier().fit(X, y)
    assert_array_equal(model.predict_proba(table), plain.predict_proba(X))
    assert set(model.predict(table)) == {"r", "s", "t"}
    with pytest.raises(ValueError, match="feature names"):
        model.predict(table[["b", "a", "c", "d"]])


@pytest.mark.parametrize(
    "labels", [["no", "yes"], [False, True], [-1, 1], [2.0, 3.0], np.array(["a", "b"], object)]
)
def test_kinds_of_labels(labels):
    X, y = load_breast_cancer(return_X_y=True)
    X = StandardScaler().fit_transform(X)
    y = np.asarray(labels)[y]
    model = classifier(max_iter=5).fit(X, y)
    assert model.score(X, y) > 0.9
    assert model.predict(X).dtype == y.dtype
    assert_array_equal(model.classes_, labels)


@pytest.mark.parametrize("container", [sp.csr_matrix, sp.csr_array, sp.csc_matrix, sp.csc_array])
def test_sparse_equals_dense(iris, container, monkeypatch):
    X, y = iris
    X = np.where(np.abs(X) < 0.5, 0, X)
    dense = classifier(batch_size=40).fit(X, y, X_unlabeled=X[::2])
    sparse = container(X)
    heights = []
    for cls in (sp.csr_matrix, sp.csr_array):
        toarray = cls.toarray
        monkeypatch.setattr(
            cls,
            "toarray",
            lambda self, *a, _f=toarray, **k: heights.append(self.shape[0]) or _f(self, *a, **k),
        )
    model = classifier(batch_size=40).fit(sparse, y, X_unlabeled=sparse[::2])
    assert 0 < max(heights, default=0) <= 40, "made dense a batch at a time"
    assert_allclose(model.coefs_[0], dense.coefs_[0])
    assert_allclose(model.predict_proba(sparse), dense.predict_proba(X))
    classifier(early_stopping=True).fit(sparse, y)


@pytest.mark.parametrize("order", ["F", "reversed", "readonly", "int", "memmap"])
def test_layouts_of_memory(iris, order, tmp_path):
    X = (10 * iris[0]).round()
    expected = classifier(max_iter=3).fit(X, iris[1]).coefs_[0]
    if order == "F":
        X = np.asfortranarray(X)
    elif order == "reversed":
        X = np.ascontiguousarray(X[::-1])[::-1]
    elif order == "readonly":
        X.flags.writeable = False
    elif order == "int":
        X = X.astype(int)
    else:
        np.save(tmp_path / "X.npy", X)
        X = np.load(tmp_path / "X.npy", mmap_mode="r")
    assert_array_equal(classifier(max_iter=3).fit(X, iris[1]).coefs_[0], expected)


def dump_joblib(model, tmp_path):
    joblib.dump(model, tmp_path / "model.joblib")
    return joblib.load(tmp_path / "model.joblib")


ROUND_TRIPS = {
    "pickle": lambda model, _: pickle.loads(pickle.dumps(model)),
    "joblib": dump_joblib,
}


@pytest.mark.parametrize("way", ROUND_TRIPS)
@pytest.mark.parametrize("method", ["diagonal", "sampling"])
def test_round_trips_are_exact_and_training_goes_on(iris, way, method, tmp_path):
    X, y = iris
    model = classifier(method=method, early_stopping=True).fit(X, y)
    copy = ROUND_TRIPS[way](model, tmp_path)
    assert_array_equal(copy.predict_proba(X), model.predict_proba(X))
    assert copy.loss_curve_ == model.loss_curve_
    for each in (model, copy):
        each.set_params(early_stopping=False).partial_fit(X, y)
    assert_array_equal(copy.coefs_[0], model.coefs_[0])


def test_pickle_is_about_as_large_as_the_weights(iris):
    X, y = np.repeat(iris[0], 50, axis=0), np.repeat(iris[1], 50)
    model = classifier(early_stopping=True, max_iter=3).fit(X, y)
    assert len(pickle.dumps(model)) < X.nbytes / 3


def test_clone_is_unfitted_and_equal(iris):
    model = classifier(retain_rate=[0.8, 0.5], device=torch.device("cpu")).fit(*iris)
    copy = clone(model)
    assert not hasattr(copy, "net_")
    assert_array_equal(copy.fit(*iris).coefs_[0], model.coefs_[0])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("method", ["diagonal", "quadratic", "sampling"])
def test_cuda_agrees_with_the_cpu(iris, method):
    X, y = iris
    gpu = classifier(device="cuda", method=method).fit(X, y)
    cpu = classifier(device="cpu", method=method).fit(X, y)
    assert next(gpu.net_.module_.parameters()).is_cuda
    if method != "sampling":  # the devices draw different noise
        assert_allclose(gpu.predict_proba(X), cpu.predict_proba(X), atol=1e-6)
    assert_array_equal(classifier(device="cuda", method=method).fit(X, y).coefs_[0], gpu.coefs_[0])
    assert_array_equal(pickle.loads(pickle.dumps(gpu)).predict_proba(X), gpu.predict_proba(X))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
@pytest.mark.parametrize("method", ["diagonal", "quadratic", "sampling"])
def test_batches_do_not_wait_for_the_gpu(iris, method):
    """Neither a transfer nor a read of the device between the batches of an epoch."""
    net = classifier(device="cuda", method=method).fit(*iris).net_
    rows = Rows(Features(iris[0], "cuda"), torch.as_tensor(iris[1], device="cuda"))
    batches = iter(Batches(rows, 50, True, torch.Generator()))
    net.train_step(next(batches))  # the order of the rows has been sent
    before = torch.cuda.get_sync_debug_mode()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for batch in batches:
            net.train_step(batch)
    finally:
        torch.cuda.set_sync_debug_mode(before)


@pytest.mark.parametrize(
    ("process", "expected"),
    [("MainProcess", "cuda"), ("LokyProcess-1", "cuda:1"), ("LokyProcess-4", "cuda:0")],
)
def test_workers_take_several_gpus_in_turn(process, expected, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    parent = None if process == "MainProcess" else object()
    monkeypatch.setattr(multiprocessing, "parent_process", lambda: parent)
    monkeypatch.setattr(multiprocessing.current_process(), "name", process)
    assert check_device("auto") == torch.device(expected)
    assert check_device("cpu") == torch.device("cpu")


def test_metadata_routing_through_a_pipeline(iris):
    X, y = iris
    weight, unlabeled = np.linspace(0.5, 2, len(y)), 3 * X[:50]
    scaler = StandardScaler().fit(X)
    direct = classifier().fit(
        scaler.transform(X), y, sample_weight=weight, X_unlabeled=scaler.transform(unlabeled)
    )
    with config_context(enable_metadata_routing=True):
        model = classifier().set_fit_request(sample_weight=True, X_unlabeled=True)
        pipeline = make_pipeline(
            StandardScaler().set_fit_request(sample_weight=False),
            model,
            transform_input=["X_unlabeled"],
        )
        pipeline.fit(X, y, sample_weight=weight, X_unlabeled=unlabeled)
        model.set_score_request(sample_weight=True)
        search = GridSearchCV(model, {"retain_rate": [0.5, 0.9]}, cv=2)
        search.fit(X, y, sample_weight=weight)
    assert_allclose(pipeline[-1].coefs_[0], direct.coefs_[0])


def test_unlabeled_rows_under_a_grid_search(iris):
    """Rows without a label are not folded with the labelled ones."""
    X, y = iris
    with config_context(enable_metadata_routing=True):
        model = classifier(max_iter=3).set_fit_request(X_unlabeled=True)
        search = GridSearchCV(model, {"unlabeled_discount": [0.0, 1.0]}, cv=2)
        search.fit(X, y, X_unlabeled=X[:7])
    assert np.isfinite(search.cv_results_["mean_test_score"]).all()


def test_unlabelled_rows_that_skip_the_steps_of_a_pipeline(iris):
    """What a step was to transform is text, or has another width, or holes to fill."""
    X, y = iris
    rows = {"text": (CountVectorizer(), ["good bad", "good", "bad"] * 50, ["good", "bad"])}
    rows["width"] = OneHotEncoder(handle_unknown="ignore"), X.round(), X[:5].round()
    rows["nan"] = SimpleImputer(), X, np.full((2, 4), np.nan)
    for step, known, others in rows.values():
        for estimator in (classifier(max_iter=2), MarginalizedDropoutGLMClassifier(max_iter=2)):
            pipe = make_pipeline(step, estimator)
            name = pipe.steps[-1][0]
            with pytest.raises(ValueError, match=r"(?s)not like X.*transform_input=\['X_unl"):
                pipe.fit(known, y, **{f"{name}__X_unlabeled": others})
            with config_context(enable_metadata_routing=True):
                estimator = clone(estimator).set_fit_request(X_unlabeled=True)
                pipe = make_pipeline(clone(step), estimator, transform_input=["X_unlabeled"])
                pipe.fit(known, y, X_unlabeled=others)
