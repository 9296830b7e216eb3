"""What `score` says where scikit-learn's scores are undefined, and of targets of another shape."""

import warnings

import numpy as np
import pytest
from numpy.testing import assert_array_equal
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.linear_model import Ridge
from sklearn.model_selection import LeaveOneOut, cross_val_score

from sklearn_margdrop import MarginalizedDropoutGLMRegressor, MarginalizedDropoutRegressor

RNG = np.random.RandomState(0)
X = RNG.randn(20, 3)
Y = np.exp(0.3 * X[:, :2])

REGRESSORS = [
    MarginalizedDropoutRegressor((3,), max_iter=3),
    MarginalizedDropoutRegressor((3,), max_iter=3, family="poisson"),
    MarginalizedDropoutGLMRegressor(),
    MarginalizedDropoutGLMRegressor(family="poisson"),
]
regressors = pytest.mark.parametrize("model", REGRESSORS, ids=lambda m: f"{m!r:.40}")
pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


@regressors
@pytest.mark.parametrize("n_outputs", [1, 2])
def test_of_fewer_than_two_rows_is_nan(model, n_outputs):
    y = Y if n_outputs == 2 else Y[:, 0]
    model.fit(X, y)
    for weight in (None, [2.0]):
        with pytest.warns(UndefinedMetricWarning, match="less than two samples"):
            assert np.isnan(model.score(X[:1], y[:1], sample_weight=weight))
    with pytest.raises(ValueError, match="0 sample"):
        model.score(X[:0], y[:0])
    assert np.isfinite(model.score(X[:2], y[:2]))
    assert np.isfinite(model.score(X[:2], y[:2], sample_weight=[1, 0]))


@regressors
def test_leaving_one_out_is_as_with_ridge(model):
    with warnings.catch_warnings(record=True) as of_ridge:
        warnings.simplefilter("always")
        expected = cross_val_score(Ridge(), X[:5], Y[:5, 0], cv=LeaveOneOut())
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("ignore")
        warnings.simplefilter("always", UndefinedMetricWarning)
        scores = cross_val_score(model, X[:5], Y[:5, 0], cv=LeaveOneOut())
    assert_array_equal(scores, expected)
    assert [w.category for w in found] == [w.category for w in of_ridge]


@regressors
def test_of_other_columns_names_both_counts(model):
    one, two = Y[:, :1].ravel(), Y
    for fitted, other, counts in ((one, two, "2 .*1 "), (two, one, "1 .*2 ")):
        model.fit(X, fitted)
        for rows in (slice(None), slice(1)):
            with pytest.raises(ValueError, match=f"y has {counts}"):
                model.score(X[rows], other[rows])
