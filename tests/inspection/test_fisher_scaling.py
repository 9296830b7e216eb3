"""The features of texts and others, by what the penalty scales them with."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import PoissonRegressor
from sklearn.pipeline import make_pipeline

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
)
from sklearn_margdrop.inspection import FisherScalingDisplay

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

QUICK = {"hidden_layer_sizes": (6, 5), "max_iter": 5, "random_state": 0}
TEXTS = ["a good film", "good fun", "fine, and fun", "a bad film", "bad, and dull", "so dull"]


def test_fisher_scaling_of_text():
    y = np.array([1, 1, 1, 0, 0, 0])
    pipe = make_pipeline(CountVectorizer(), MarginalizedDropoutGLMClassifier()).fit(TEXTS, y)
    display = FisherScalingDisplay.from_estimator(pipe, max_features=4)
    model = pipe[-1]
    assert_array_equal(display.coef, model.coef_[0])
    assert_array_equal(display.fisher_diagonal, model.fisher_diagonal_[0])
    assert_array_equal(display.feature_names, pipe[0].get_feature_names_out())
    assert set(display.shown_) == set(np.argsort(-np.abs(model.coef_[0]))[:4])
    left, right = display.axes_
    assert_allclose([bar.get_width() for bar in left.patches], model.coef_[0][display.shown_])
    assert (np.diff(model.coef_[0][display.shown_]) >= 0).all()
    labels = [text.get_text() for text in left.get_yticklabels()]
    assert labels == list(display.feature_names[display.shown_])
    assert_allclose(right.lines[0].get_xdata(), model.fisher_diagonal_[0][display.shown_])
    # From its own predictions comes the same.
    X = pipe[0].transform(TEXTS)
    probability = pipe.predict_proba(TEXTS)[:, 1]
    again = FisherScalingDisplay.from_predictions(X, probability, model.coef_[0])
    assert_allclose(again.fisher_diagonal, display.fisher_diagonal, rtol=1e-6)
    dense = FisherScalingDisplay.from_predictions(X.toarray(), probability, model.coef_[0])
    assert_allclose(dense.fisher_diagonal, again.fisher_diagonal)


def test_fisher_scaling_of_other_models(iris):
    X, y = iris
    frame = pd.DataFrame(X, columns=list("abcd"))
    counts = np.random.RandomState(0).poisson(np.exp(X[:, 0] / 2))
    ours = MarginalizedDropoutGLMRegressor(family="poisson", retain_rate=1, alpha=1).fit(X, counts)
    theirs = PoissonRegressor(alpha=1).fit(X, counts)
    _, axes = plt.subplots(1, 2)
    display = FisherScalingDisplay.from_predictions(
        frame, theirs.predict(X), theirs.coef_, family="poisson", axes=axes
    )
    assert list(display.axes_) == list(axes)
    assert list(display.feature_names) == list("abcd")
    assert_allclose(display.fisher_diagonal, ours.fisher_diagonal_, rtol=1e-3)
    normal = FisherScalingDisplay.from_predictions(X, X[:, 0], np.ones(4), family="normal")
    assert_allclose(normal.fisher_diagonal, (X**2).mean(0))
    glm = MarginalizedDropoutGLMClassifier().fit(frame, y)
    display = FisherScalingDisplay.from_estimator(glm, target=2)
    assert_array_equal(display.coef, glm.coef_[2])
    assert list(display.feature_names) == list("abcd")
    own = FisherScalingDisplay.from_estimator(glm.sparsify(), target=2, feature_names=list("wxyz"))
    assert list(own.feature_names) == list("wxyz")
    assert_array_equal(own.coef, display.coef)


def test_fisher_scaling_that_cannot_be_drawn(iris):
    X, y = iris
    network = MarginalizedDropoutClassifier(**QUICK).fit(X, y)
    with pytest.raises(TypeError, match="effective_penalty"):
        FisherScalingDisplay.from_estimator(network)
    glm = MarginalizedDropoutGLMClassifier().fit(X, y)
    with pytest.raises(ValueError, match="target must be one of"):
        FisherScalingDisplay.from_estimator(glm)
    with pytest.raises(ValueError, match="feature_names has the shape"):
        FisherScalingDisplay.from_estimator(glm, target=0, feature_names=["a"])
    proba, coef = glm.predict_proba(X), glm.coef_
    draw = FisherScalingDisplay.from_predictions
    with pytest.raises(ValueError, match="one-dimensional"):
        draw(X, proba, coef[0])
    with pytest.raises(ValueError, match="one-dimensional"):
        draw(X, proba[:, 0], coef)
    with pytest.raises(ValueError, match="3 values for 4 features"):
        draw(X, proba[:, 0], coef[0, :3])
    with pytest.raises(ValueError, match="inconsistent numbers"):
        draw(X[:5], proba[:, 0], coef[0])
    with pytest.raises(ValueError, match="from 0 to 1"):
        draw(X, 2 + proba[:, 0], coef[0])
    with pytest.raises(ValueError, match="family must be one of"):
        draw(X, proba[:, 0], coef[0], family="categorical")
