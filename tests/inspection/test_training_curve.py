"""Training curves of each kind of model."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.exceptions import NotFittedError
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from sklearn_margdrop import (
    MarginalizedDropoutClassifier,
    MarginalizedDropoutGLMClassifier,
)
from sklearn_margdrop.inspection import TrainingCurveDisplay

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")

QUICK = {"hidden_layer_sizes": (6, 5), "max_iter": 5, "random_state": 0}


def test_training_curve(iris):
    X, y = iris
    model = MarginalizedDropoutClassifier(early_stopping=True, **QUICK)
    pipe = make_pipeline(StandardScaler(), model).fit(X, y)
    display = TrainingCurveDisplay.from_estimator(pipe)
    objective, penalty, score = (line.get_ydata() for line in display.lines_)
    assert_array_equal(objective, pipe[-1].loss_curve_)
    assert_array_equal(penalty, pipe[-1].penalty_curve_)
    assert_array_equal(score, pipe[-1].validation_scores_)
    assert_array_equal(display.lines_[0].get_xdata(), [1, 2, 3, 4, 5])
    assert display.ax_.get_xlabel() == "Epoch"
    assert display.score_ax_.get_ylabel() == "Validation score"
    assert len(display.score_ax_.get_legend().get_texts()) == 3


def test_training_curves_of_other_models(iris):
    X, y = iris
    _, ax = plt.subplots()
    glm = MarginalizedDropoutGLMClassifier().fit(X, y)
    display = TrainingCurveDisplay.from_estimator(glm, ax=ax, linewidth=3)
    assert display.ax_ is ax
    assert display.score_ax_ is None
    assert ax.get_xlabel() == "Iteration"
    assert [line.get_linewidth() for line in display.lines_] == [3, 3]
    assert_array_equal(display.lines_[0].get_ydata(), glm.loss_curve_)
    assert display.lines_[1].get_ydata()[-1] == glm.penalty_
    only = TrainingCurveDisplay.from_estimator(glm.sparsify())
    assert len(only.lines_) == 1
    sampling = MarginalizedDropoutClassifier(method="sampling", **QUICK).fit(X, y)
    assert TrainingCurveDisplay.from_estimator(sampling).penalty is None
    # Validation came later: its curve starts there.
    warm = MarginalizedDropoutClassifier(warm_start=True, **QUICK).fit(X, y)
    warm.set_params(early_stopping=True).fit(X, y)
    score = TrainingCurveDisplay.from_estimator(warm).validation_score
    assert_array_equal(np.isnan(score), [True] * 5 + [False] * 5)
    with pytest.raises(NotFittedError):
        TrainingCurveDisplay.from_estimator(MarginalizedDropoutClassifier())
