"""Paths of coefficients and scores over the strength of the noise."""

import numpy as np
import pandas as pd
import pytest
from numpy.testing import assert_allclose, assert_array_equal
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import validation_curve
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
)
from sklearn_margdrop.inspection import (
    RegularizationPathDisplay,
    penalty_per_sample,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

QUICK = {"hidden_layer_sizes": (6, 5), "max_iter": 5, "random_state": 0}


def test_path_of_coefficients(iris):
    X, y = load_breast_cancer(return_X_y=True)
    names = [f"feature {j}" for j in range(30)]
    frame = pd.DataFrame(X, columns=names)
    pipe = make_pipeline(StandardScaler(), MarginalizedDropoutGLMClassifier())
    display = RegularizationPathDisplay.from_estimator(
        pipe, frame, y, retain_rates=[0.9, 0.3], max_features=12
    )
    assert display.coefs.shape == (2, 30)
    expected = clone(pipe).set_params(marginalizeddropoutglmclassifier__retain_rate=0.3)
    assert_array_equal(display.coefs[1], expected.fit(frame, y)[-1].coef_[0])
    assert len(display.lines_) == 12
    largest = np.abs(display.coefs).max(0).argmax()
    assert display.lines_[0].get_label() == names[largest]
    assert_array_equal(display.lines_[0].get_xdata(), [0.3, 0.9])
    assert_array_equal(display.lines_[0].get_ydata(), display.coefs[::-1, largest])
    with pytest.raises(NotFittedError):
        penalty_per_sample(pipe, X)  # the pipeline itself was not fitted


def test_path_of_one_class_or_output(iris):
    X, y = iris
    labels = np.array(list("abc"))[y]
    model = MarginalizedDropoutGLMClassifier(retain_rate=0.5)
    options = {"retain_rates": [0.5]}
    display = RegularizationPathDisplay.from_estimator(model, X, labels, target="b", **options)
    assert_array_equal(display.coefs[0], clone(model).fit(X, labels).coef_[1])
    with pytest.raises(ValueError, match=r"one of the classes \['a', 'b', 'c'\]"):
        RegularizationPathDisplay.from_estimator(model, X, labels, **options)
    with pytest.raises(ValueError, match="None for two classes"):
        RegularizationPathDisplay.from_estimator(model, X, y > 0, target=True, **options)
    regressor = MarginalizedDropoutGLMRegressor(retain_rate=0.5)
    display = RegularizationPathDisplay.from_estimator(
        regressor, X[:, 2:], X[:, :2], target=1, **options
    )
    assert_array_equal(display.coefs[0], clone(regressor).fit(X[:, 2:], X[:, :2]).coef_[1])
    with pytest.raises(ValueError, match="position of an output, 0 to 1"):
        RegularizationPathDisplay.from_estimator(regressor, X[:, 2:], X[:, :2], **options)


def test_path_of_scores(iris):
    X, y = iris
    model = MarginalizedDropoutClassifier(**QUICK)
    options = {"cv": 3, "scoring": "neg_log_loss"}
    display = RegularizationPathDisplay.from_estimator(
        model, X, y, retain_rates=[0.5, 0.9], **options
    )
    train, test = validation_curve(
        model, X, y, param_name="retain_rate", param_range=[0.5, 0.9], **options
    )
    assert_array_equal(display.test_scores, test)
    assert_array_equal(display.train_scores, train)
    assert_allclose(display.lines_[0].get_ydata(), test.mean(1))
    assert display.ax_.get_ylabel() == "Negative log loss"
    glm = MarginalizedDropoutGLMClassifier()
    display = RegularizationPathDisplay.from_estimator(
        glm, X, y, kind="score", retain_rates=[0.5], cv=2
    )
    assert display.coefs is None


def test_path_with_unlabeled_rows(iris):
    X, y = iris
    model = MarginalizedDropoutGLMClassifier(retain_rate=0.5)
    display = RegularizationPathDisplay.from_estimator(
        model, X, y > 0, retain_rates=[0.5], fit_params={"X_unlabeled": 3 * X}
    )
    expected = clone(model).fit(X, y > 0, X_unlabeled=3 * X).coef_
    assert_array_equal(display.coefs, expected)


@pytest.mark.parametrize(
    ("model", "options", "message"),
    [
        (MarginalizedDropoutClassifier(), {"kind": "coef"}, "use kind='score'"),
        (MarginalizedDropoutGLMClassifier(noise="gaussian"), {}, "param_name='noise_std'"),
        (MarginalizedDropoutGLMClassifier(), {"kind": "path"}, "kind must be"),
        (MarginalizedDropoutGLMClassifier(), {"retain_rates": [0, 0.5]}, r"in \(0, 1\]"),
        (MarginalizedDropoutGLMClassifier(), {"retain_rates": []}, r"in \(0, 1\]"),
    ],
)
def test_paths_that_cannot_be_drawn(iris, model, options, message):
    with pytest.raises(ValueError, match=message):
        RegularizationPathDisplay.from_estimator(model, *iris, **options)
