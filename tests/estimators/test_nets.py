"""The nets of estimators predict, encode and score as these do."""

import numpy as np
import pandas as pd
import pytest
import scipy.sparse as sp
import torch
from numpy.testing import assert_allclose, assert_array_equal
from quick import LABELS, QUICK, classifier
from sklearn.base import clone
from sklearn.model_selection import cross_val_score
from skorch.dataset import Dataset, ValidSplit

from sklearn_margdrop import (
    MarginalizedDropoutGLMClassifier,
    MarginalizedDropoutGLMRegressor,
    MarginalizedDropoutRegressor,
)

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def networks_and_glms(X, y):
    labels = LABELS[y]
    yield classifier().fit(X, labels), X
    yield classifier().fit(X, y > 0), X
    yield MarginalizedDropoutRegressor(**QUICK).fit(X[:, 1:], X[:, 0]), X[:, 1:]
    yield MarginalizedDropoutRegressor(**QUICK).fit(X[:, 2:], X[:, :2]), X[:, 2:]
    yield MarginalizedDropoutGLMClassifier().fit(sp.csr_array(X), labels), X
    yield MarginalizedDropoutGLMRegressor(retain_rate=0.9).fit(X[:, 1:], X[:, 0]), X[:, 1:]


def test_nets_predict_like_their_estimators(iris):
    X, y = iris
    for model, Z in networks_and_glms(X, y):
        net, expected = model.net_, model.predict(Z)
        if hasattr(model, "classes_"):
            expected = np.searchsorted(model.classes_, expected)
            assert_array_equal(net.classes_, np.arange(len(model.classes_)))
            assert_allclose(net.predict_proba(Z), model.predict_proba(Z))
            assert net.score(Z, expected) == 1
        for rows in (Z, sp.csc_array(Z), torch.from_numpy(Z), Dataset(Z), Z.astype(np.float32)):
            assert_allclose(net.predict(rows), expected, atol=1e-5)


def test_nets_are_cross_validated_and_split_on_frames(iris):
    X, y = pd.DataFrame(iris[0]), pd.Series(iris[1], index=np.arange(150) + 7)
    net = clone(classifier().fit(X.to_numpy(), y).net_).set_params(max_epochs=20)
    assert np.isfinite(cross_val_score(net, X.to_numpy(), y, cv=3, error_score="raise")).all()
    net.set_params(train_split=ValidSplit(5)).fit(X.to_numpy(), y)
    assert len(net.history) == 20
    assert np.isfinite(net.history[-1, "valid_loss"])
    with pytest.raises(ValueError, match="positions in the estimator's classes_"):
        net.fit(X.to_numpy(), LABELS[iris[1]])
    with pytest.raises(TypeError, match="trains on arrays"):
        net.fit(Dataset(iris[0], iris[1]))
