"""ONNX graphs predict what the models do, run by onnxruntime."""

import os
import stat
import sys
from dataclasses import replace

import numpy as np
import onnx
import pytest
import scipy.sparse as sp
import torch
from exported import (
    CLASS,
    CLASSIFIERS,
    COUNTS,
    ESTIMATORS,
    REGRESSORS,
    SMALL,
    X,
    check,
    fitted,
    session,
)
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import nn

import sklearn_margdrop
from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
)
from sklearn_margdrop.export.converters import register_onnx_converters
from sklearn_margdrop.export.graph import OPERATORS, labels_for_export
from sklearn_margdrop.families import FAMILIES, Poisson
from sklearn_margdrop.layers import ACTIVATIONS, Elementwise, linearize

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("n_classes", [2, 3])
@pytest.mark.parametrize("cls", CLASSIFIERS)
def test_classifiers(cls, n_classes, dtype, path):
    check(cls(**SMALL).fit(X.astype(dtype), np.minimum(CLASS, n_classes - 1)), X, path)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("family", sorted(n for n, f in FAMILIES.items() if not f.labels))
@pytest.mark.parametrize("columns", [None, 1, 2])
@pytest.mark.parametrize("cls", REGRESSORS)
@pytest.mark.filterwarnings("ignore:A column-vector y")
def test_regressors(cls, columns, family, dtype, path):
    y = COUNTS[:, 0] if columns is None else COUNTS[:, :columns]
    model = cls(family=family, retain_rate=0.9, **SMALL).fit(X.astype(dtype), y)
    check(model, X, path)


@pytest.mark.parametrize("hidden", [(), (7,), (6, 5)])
@pytest.mark.parametrize("activation", sorted(ACTIVATIONS))
def test_layers_and_activations(activation, hidden, path):
    model = MarginalizedDropoutClassifier(hidden, activation=activation, **SMALL)
    check(model.fit(X, CLASS), X, path)


@pytest.mark.parametrize("method", ["quadratic", "sampling"])
def test_noise_is_no_part_of_the_graph(method, path):
    model = MarginalizedDropoutClassifier((5,), method=method, noise="gaussian", **SMALL)
    check(model.fit(X, CLASS), X, path)


@pytest.mark.parametrize("way", ["early_stopping", "partial_fit", "warm_start"])
def test_trained_in_other_ways(way, path):
    model = MarginalizedDropoutClassifier((5,), early_stopping=way == "early_stopping", **SMALL)
    model.fit(X, CLASS)
    if way == "partial_fit":
        model.partial_fit(X, CLASS)
    elif way == "warm_start":
        model.set_params(warm_start=True).fit(X, CLASS)
    check(model, X, path)


@pytest.mark.parametrize(
    "cls", [MarginalizedDropoutGLMClassifier, MarginalizedDropoutGLMRegressor]
)
@pytest.mark.parametrize("change", ["sparsify", "no intercept", "sparse data", "warm start"])
def test_glm(cls, change, path):
    model = cls(fit_intercept=change != "no intercept", warm_start=True, **SMALL)
    data = sp.csr_array(np.where(X > 0.5, X, 0)) if change == "sparse data" else X
    y = CLASS if cls in CLASSIFIERS else X[:, 1]
    model.fit(data, y)
    if change == "sparsify":
        model.sparsify()
    elif change == "warm start":
        model.set_params(alpha=0.1).fit(data, y)
    check(model, X, path)


def test_sparsified_in_other_shapes(path):
    check(MarginalizedDropoutGLMRegressor().fit(X, COUNTS).sparsify(), X, path)
    check(MarginalizedDropoutGLMClassifier().fit(X, CLASS > 0).sparsify(), X, path)


def test_glm_coefficients_set_by_hand(path):
    model = MarginalizedDropoutGLMClassifier().fit(X, CLASS)
    model.coef_ = np.arange(12.0).reshape(3, 4)
    model.intercept_ = np.array([0.0, 1.0, 20.0])
    check(model, X, path)
    model.coef_ = model.coef_.astype(np.float32)
    model.intercept_ = model.intercept_.astype(np.float32)
    check(model, X, path)
    model = MarginalizedDropoutGLMRegressor().fit(X, COUNTS)
    model.intercept_ = 1.0  # the same for all outputs
    check(model, X, path)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("coef_", np.ones((2, 4)), r"coef_ must be .* shape \(3, 4\); .* \(2, 4\)"),
        ("coef_", np.ones((3, 5)), r"shape \(3, 5\)"),
        ("coef_", np.ones((3, 4), dtype=int), r"coef_ must be of float32 or float64"),
        ("coef_", np.ones((3, 4), dtype=np.float16), r"float16"),
        ("intercept_", np.ones(2), r"intercept_ must be of the shape \(3,\); it is \(2,\)"),
        ("intercept_", np.ones((3, 1)), r"intercept_ must be"),
    ],
)
def test_coefficients_that_do_not_fit(attribute, value, message, path):
    model = MarginalizedDropoutGLMClassifier().fit(X, CLASS)
    setattr(model, attribute, value)
    with pytest.raises(ValueError, match=message):
        model.to_onnx(path)
    assert not path.exists()


@pytest.mark.parametrize(
    ("classes", "kind"),
    [
        ([0, 1, 2], "int64"),
        (np.array([3, 5, 250], np.uint8), "int64"),
        ([-1, 0, 7], "int64"),
        ([1.0, 2.0, 4.0], "int64"),
        ([False, True, True], "int64"),
        (["a", "b", "cé"], "string"),
        (np.array(["x", "y", "z"], object), "string"),
        (np.array(["x", "y", "z"], np.dtypes.StringDType()), "string"),
    ],
)
@pytest.mark.parametrize("cls", CLASSIFIERS)
def test_labels(cls, classes, kind, path):
    if getattr(classes, "dtype", None) == np.dtypes.StringDType():
        model = clone(fitted(cls)).fit(X, np.asarray(classes, object)[CLASS])
        model._target = replace(
            model._target, classes=classes
        )  # where pandas brings such an array
    else:
        model = clone(fitted(cls)).fit(X, np.asarray(classes)[CLASS])
    run = check(model, X, path)
    assert run.get_outputs()[0].type == f"tensor({kind})"
    assert run.get_outputs()[0].shape == ["n"]


@pytest.mark.parametrize(
    "classes",
    [
        np.array([0, 2**64 - 1], np.uint64),
        np.array(["2020-01-01", "2020-01-02"], "datetime64[D]"),
        np.array([b"a", b"b"]),
        np.array([1, "a"], object),
        np.array([None, 1], object),
    ],
)
def test_labels_that_onnx_has_not(classes, path):
    with pytest.raises(TypeError, match=r"no labels such as .*y\.astype\(str\)"):
        labels_for_export(classes)
    model = MarginalizedDropoutGLMClassifier().fit(X, CLASS > 0)
    model.classes_ = classes
    with pytest.raises(TypeError, match="no labels"):
        model.to_onnx(path)
    assert not path.exists()


def test_ties_and_confidence(path):
    """A tie goes to the first class, and logits that would overflow are no trouble."""
    model = MarginalizedDropoutGLMClassifier().fit(X, CLASS > 0)
    model.coef_, model.intercept_ = np.zeros((1, 4)), np.zeros(1)
    check(model, X, path)
    model.coef_ = np.full((1, 4), 1e4)
    check(model, X, path)


def test_of_a_pipeline_and_of_a_search(path):
    pipeline = make_pipeline(StandardScaler(), MarginalizedDropoutGLMClassifier()).fit(X, CLASS)
    check(pipeline[-1], pipeline[0].transform(X), path)
    search = GridSearchCV(clone(fitted(ESTIMATORS[0])), {"retain_rate": [0.5, 0.9]}, cv=2)
    check(search.fit(X, CLASS).best_estimator_, X, path)


def test_what_the_file_says_of_itself(path):
    model = fitted(MarginalizedDropoutClassifier)
    model.to_onnx(path)
    written = onnx.load(path)
    onnx.checker.check_model(written, full_check=True)
    assert written.producer_name == "sklearn_margdrop"
    assert written.producer_version == sklearn_margdrop.__version__
    assert written.doc_string == repr(model)
    assert written.graph.name == "MarginalizedDropoutClassifier"
    assert {each.op_type for each in written.graph.node} == {
        *("Gemm", "Relu", "ArgMax", "Gather", "Softmax")
    }


@pytest.fixture
def softsign():
    """An activation function that a user registers, which has an ONNX operator."""

    class Softsign(nn.Softsign):
        pass

    @linearize.register
    def _(layer: Softsign, z):
        return layer(z), Elementwise(1 / (1 + z.abs()) ** 2, lambda: -2 * z.sign() / (1 + z.abs()))

    return Softsign


def with_activation(activation):
    # Few operators are there for float64 in every runtime.
    model = clone(fitted(MarginalizedDropoutClassifier)).fit(X.astype(np.float32), CLASS)
    model.net_.module_.layers[1] = activation()
    return model


def test_registered_activation(softsign, path):
    model = with_activation(softsign)
    with pytest.raises(NotImplementedError, match=r"Softsign has no ONNX operator.*OPERATORS\["):
        model.to_onnx(path)
    assert not path.exists()
    OPERATORS[softsign] = "Softsign"
    try:
        check(model, X, path)
    finally:
        del OPERATORS[softsign]


def test_a_subclass_is_not_taken_for_its_base(path):
    class LeakyReLU(nn.ReLU):
        def forward(self, z):
            return torch.where(z > 0, z, 0.1 * z)

    with pytest.raises(NotImplementedError, match="LeakyReLU has no ONNX operator"):
        with_activation(LeakyReLU).to_onnx(path)


@pytest.mark.parametrize("cls", REGRESSORS)
def test_registered_family(cls, path):
    class Quadrupled(Poisson):
        name = "quadrupled"

        def mean(self, eta):
            return 4 * eta.exp()

    try:
        model = cls(family="quadrupled", retain_rate=0.9, **SMALL).fit(X, COUNTS)
        with pytest.raises(NotImplementedError, match="Quadrupled has no ONNX operator"):
            model.to_onnx(path)
    finally:
        del FAMILIES["quadrupled"]


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_not_fitted(cls, path):
    with pytest.raises(NotFittedError):
        cls().to_onnx(path)
    assert not path.exists()


@pytest.mark.parametrize("cls", ESTIMATORS)
def test_without_onnx(cls, path, monkeypatch):
    model = fitted(cls)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(
        ImportError, match=r'needs the package onnx: pip install "sklearn-marg.*x\]"'
    ):
        model.to_onnx(path)
    monkeypatch.setitem(sys.modules, "skl2onnx", None)
    with pytest.raises(ImportError, match=r"needs the package skl2onnx: pip install"):
        register_onnx_converters()
    assert not path.exists()


@pytest.mark.parametrize("kind", [str, os.fsencode, lambda path: path])
def test_kinds_of_paths(kind, path):
    fitted(ESTIMATORS[0]).to_onnx(kind(path))
    assert session(str(path)).get_inputs()


@pytest.mark.parametrize("path", [None, 3, b"a".hex, object()])
def test_what_is_no_path(path):
    with pytest.raises(TypeError, match="PathLike"):
        fitted(ESTIMATORS[0]).to_onnx(path)


def test_unwritable_paths(tmp_path):
    model = fitted(ESTIMATORS[0])
    missing = tmp_path / "missing" / "model.onnx"
    with pytest.raises(FileNotFoundError, match=r"missing/model\.onnx"):
        model.to_onnx(missing)
    with pytest.raises(IsADirectoryError):
        model.to_onnx(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(NotADirectoryError):
        model.to_onnx(tmp_path / "file" / "model.onnx")
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0 if hasattr(os, "geteuid") else True, reason="root may write")
def test_files_that_may_not_be_written(path):
    path.write_bytes(b"good")
    path.chmod(stat.S_IREAD)
    with pytest.raises(PermissionError):
        fitted(ESTIMATORS[0]).to_onnx(path)
    assert path.read_bytes() == b"good"


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_good_file_stays_when_writing_fails(error, path, monkeypatch):
    path.write_bytes(b"good")

    def fail(*args):
        raise error

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(type(error)) as caught:
        fitted(ESTIMATORS[0]).to_onnx(path)
    assert path.read_bytes() == b"good"
    assert os.listdir(path.parent) == [path.name]
    if isinstance(error, OSError):
        assert str(path) in str(caught.value)
