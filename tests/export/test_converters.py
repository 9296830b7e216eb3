"""The models in graphs of skl2onnx."""

import numpy as np
import pytest
import skl2onnx
from exported import (
    CLASS,
    CLASSIFIERS,
    COUNTS,
    ESTIMATORS,
    REGRESSORS,
    SMALL,
    X,
    close,
    fitted,
    session,
)
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.ensemble import StackingRegressor, VotingClassifier
from sklearn.feature_extraction.text import CountVectorizer, TfidfVectorizer
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_margdrop import MarginalizedDropoutGLMClassifier
from sklearn_margdrop.export.converters import register_onnx_converters

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def run_converted(model, X, **options):
    register_onnx_converters()
    converted = skl2onnx.to_onnx(model, X[:1], **options)
    return session(converted).run(None, {"X": X})


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "labels", [[0, 1, 2], ["a", "b", "c"], [False, True, True], [1.0, 2.0, 2.0]]
)
@pytest.mark.parametrize("cls", CLASSIFIERS)
def test_pipelines_of_classifiers(cls, labels, dtype):
    rows = X.astype(dtype)
    pipeline = make_pipeline(StandardScaler(), clone(fitted(cls)))
    pipeline.fit(rows, np.array(labels)[CLASS])
    label, probabilities = run_converted(pipeline, rows, options={"zipmap": False})
    close(probabilities, pipeline.predict_proba(rows))
    assert_array_equal(label, pipeline.predict(rows))


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("columns", [1, 2])
@pytest.mark.parametrize("cls", REGRESSORS)
def test_pipelines_of_regressors(cls, columns, dtype):
    rows, y = X.astype(dtype), COUNTS[:, :columns].squeeze()
    pipeline = make_pipeline(StandardScaler(), cls(family="poisson", retain_rate=0.9, **SMALL))
    pipeline.fit(rows, y)
    (variable,) = run_converted(pipeline, rows)
    close(variable, pipeline.predict(rows).reshape(len(X), columns))


@pytest.mark.parametrize("vectorizer", [CountVectorizer, TfidfVectorizer])
def test_pipelines_of_texts(vectorizer):
    texts = np.array(["a good film", "good fun", "a bad film", "bad, and no fun"])
    pipeline = make_pipeline(vectorizer(), MarginalizedDropoutGLMClassifier())
    pipeline.fit(texts, ["+", "+", "-", "-"])
    options = {vectorizer: {"locale": "C"}, MarginalizedDropoutGLMClassifier: {"zipmap": False}}
    label, probabilities = run_converted(pipeline, texts[:, None], options=options)
    assert_allclose(probabilities, pipeline.predict_proba(texts), atol=1e-6)
    assert_array_equal(label, pipeline.predict(texts))


def test_integers_into_a_bare_estimator():
    """Inputs of whole numbers become float32."""
    counts = COUNTS.astype(np.int64)
    model = MarginalizedDropoutGLMClassifier().fit(counts, CLASS)
    label, probabilities = run_converted(model, counts, options={"zipmap": False})
    assert_allclose(probabilities, model.predict_proba(counts), atol=1e-6)
    assert_array_equal(label, model.predict(counts))


def test_options_of_skl2onnx():
    rows = X.astype(np.float32)
    model = MarginalizedDropoutGLMClassifier().fit(rows, np.array(["a", "b", "c"])[CLASS])
    expected = model.predict_proba(rows)
    _, dictionaries = run_converted(model, rows)
    close(np.float32([[row[c] for c in "abc"] for row in dictionaries]), expected)
    _, *columns = run_converted(model, rows, options={"zipmap": "columns"})
    close(np.column_stack(columns), expected)
    label, _ = run_converted(model, rows, options={"zipmap": False, "nocl": True})
    assert_array_equal(model.classes_[label], model.predict(rows))
    options = {"zipmap": False, "output_class_labels": True}
    assert_array_equal(run_converted(model, rows, options=options)[2], model.classes_)


def test_several_models_in_one_graph():
    """Their nodes and weights have names of their own."""
    rows = X.astype(np.float32)
    voting = VotingClassifier(
        [("network", clone(fitted(ESTIMATORS[0]))), ("glm", clone(fitted(ESTIMATORS[1])))],
        voting="soft",
        flatten_transform=False,  # the one that skl2onnx knows
    ).fit(rows, CLASS)
    _, probabilities = run_converted(voting, rows, options={"zipmap": False})
    assert_allclose(probabilities, voting.predict_proba(rows), atol=1e-5)
    stacking = StackingRegressor(
        [("a", clone(fitted(ESTIMATORS[2]))), ("b", clone(fitted(ESTIMATORS[3])))], cv=2
    ).fit(rows, rows[:, 0])
    (variable,) = run_converted(stacking, rows)
    assert_allclose(variable[:, 0], stacking.predict(rows), atol=1e-5)
