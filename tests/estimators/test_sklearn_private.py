"""Without what scikit-learn keeps private, the results are the same."""

from types import SimpleNamespace

import numpy as np
from numpy.testing import assert_array_equal
from sklearn.datasets import load_iris
from sklearn.linear_model import LogisticRegression

from sklearn_margdrop import MarginalizedDropoutGLMClassifier
from sklearn_margdrop.estimators import base, sklearn_private


def test_a_table_is_shown_where_that_is_known_to_work():
    params = LogisticRegression()._get_params_html()
    html = params._repr_html_()
    assert sklearn_private.shown_after(params, "<p>")._repr_html_() == "<p>" + html
    unknown = SimpleNamespace()
    assert vars(sklearn_private.shown_after(unknown, "<p>")) == {}


def test_fits_whose_task_does_not_tell_of_callbacks(monkeypatch):
    seen = []

    def has_callbacks(task):
        seen.append(sklearn_private.has_callbacks(task))
        return sklearn_private.has_callbacks(SimpleNamespace())

    X, y = load_iris(return_X_y=True)
    expected = MarginalizedDropoutGLMClassifier().fit(X, y)
    monkeypatch.setattr(base, "has_callbacks", has_callbacks)
    found = MarginalizedDropoutGLMClassifier().fit(X, y)
    assert seen == [False]
    assert_array_equal(found.coef_, expected.coef_)
    assert np.isfinite(found.penalty_)
