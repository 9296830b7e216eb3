"""Nets predict rows of any kind, without noise unless they are asked to."""

import pytest
import torch
from numpy.testing import assert_array_equal
from quick import classifier
from sklearn.datasets import load_iris

pytestmark = pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")


def test_integers_and_lists_are_rows_too(iris):
    X, y = load_iris(return_X_y=True)
    net = classifier().fit(X.round(), y).net_
    expected = net.predict_proba(X.round())
    assert_array_equal(net.predict_proba(X.round().astype(int)), expected)
    assert_array_equal(net.predict_proba(X.round().tolist()), expected)


def test_forward_in_training_mode_draws_the_noise(iris):
    X, y = iris
    net = classifier(max_iter=30).fit(X, y).net_
    clean = net.forward(X[:5])
    assert torch.equal(net.forward(X[:5]), clean)
    draws = torch.stack([net.forward(X[:5], training=True) for _ in range(50)])
    assert (draws.std(0) > 0).all()
    assert torch.equal(net.forward(X[:5]), clean)
