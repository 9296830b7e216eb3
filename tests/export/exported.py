"""Models to be exported, and whether the graph of one predicts what the model does."""

from functools import cache

import numpy as np
import onnxruntime
import scipy.sparse as sp
from numpy.testing import assert_allclose, assert_array_equal

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)

rng = np.random.RandomState(0)
X = rng.normal(size=(60, 4))
CLASS = np.argmax(X[:, :3], axis=1)
COUNTS = rng.poisson(np.exp(X[:, :2]))
SMALL = {"max_iter": 10, "random_state": 0}
ESTIMATORS = [
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutRegressor,
    MarginalizedDropoutGLMRegressor,
]
CLASSIFIERS, REGRESSORS = ESTIMATORS[:2], ESTIMATORS[2:]
#: Of the numbers, by dtype. Runtimes sum in another order.
CLOSE = {np.dtype("float32"): 1e-5, np.dtype("float64"): 1e-12}


def session(model):
    content = model if isinstance(model, str) else model.SerializeToString()
    return onnxruntime.InferenceSession(content, providers=["CPUExecutionProvider"])


def check(model, X, path):
    """The file that `model` writes predicts what it does, for any number of rows."""
    assert model.to_onnx(path) is None
    run = session(str(path))
    (taken,) = run.get_inputs()
    assert taken.name == "X"
    assert taken.shape == ["n", model.n_features_in_]
    dtype = {"tensor(float)": np.float32, "tensor(double)": np.float64}[taken.type]
    assert dtype == model._dtype()
    names = [output.name for output in run.get_outputs()]
    X = X.toarray() if sp.issparse(X) else X
    for rows in (X, X[:1], 5 * X[:7], X[:0]):
        rows = rows.astype(dtype)
        given = dict(zip(names, run.run(None, {"X": rows}), strict=True))
        if len(rows) == 0:  # scikit-learn takes no empty data
            assert all(len(each) == 0 for each in given.values())
        elif hasattr(model, "classes_"):
            assert list(given) == ["label", "probabilities"]
            expected = model.predict_proba(rows)
            close(given["probabilities"], expected)
            assert_array_equal(given["label"], model.predict(rows))
        else:
            assert list(given) == ["variable"]
            close(given["variable"], model.predict(rows))
    return run


def close(given, expected):
    assert given.shape == expected.shape
    assert given.dtype == expected.dtype
    tolerance = CLOSE[expected.dtype]
    assert_allclose(given, expected, rtol=tolerance, atol=tolerance)


@cache
def fitted(cls):
    """A fitted model of each estimator, that tests must not change."""
    y = CLASS if cls in CLASSIFIERS else X[:, 0]
    return cls(**SMALL).fit(X, y)
