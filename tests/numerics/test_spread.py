"""The variance over classes, against its definition, for every degree of confidence."""

import pytest
import torch
from oracles import randn

from sklearn_margdrop.numerics.spread import (
    Prediction,
    centred_over_classes,
    spread_over_classes,
    top_and_rest,
)


@pytest.mark.parametrize("scale", [0.1, 1, 10])
@pytest.mark.parametrize("n_rows", [1, 7])
@pytest.mark.parametrize("n_classes", [3, 20])
def test_variance_over_classes(n_classes, n_rows, scale):
    """As many classes as have all their pairs compared, and more; one variance or one a row."""
    eta, weight = scale * randn(7, n_classes), randn(n_classes, 5, seed=1)
    variance = randn(n_rows, 5, seed=2).square()
    at = top_and_rest(eta)
    found = at.left * spread_over_classes(at, variance, weight)
    probability = eta.softmax(-1)
    deviation = weight - (probability @ weight).unsqueeze(1)
    expected = torch.einsum("nk,nkj,nj->n", probability, deviation**2, variance.expand(7, 5))
    torch.testing.assert_close(found, expected)


def test_a_prediction_in_parts():
    eta = randn(7, 4)
    top, others, left = top_and_rest(eta)
    probability = eta.softmax(-1)
    torch.testing.assert_close(left, 1 - probability.amax(-1))
    whole = (left[:, None] * others).scatter(-1, top, (1 - left)[:, None])
    torch.testing.assert_close(whole, probability)


@pytest.mark.parametrize("scale", [1, 30])
def test_the_parts_by_hand_are_the_same(scale):
    eta = scale * randn(7, 4)
    found, expected = Prediction.of(eta), top_and_rest(eta)
    torch.testing.assert_close(found[:3], tuple(expected), rtol=1e-12, atol=0)
    torch.testing.assert_close(found.probability, eta.softmax(-1))
    torch.testing.assert_close(found.excess, eta.logsumexp(-1) - eta.amax(-1))


def test_a_sure_prediction_leaves_more_than_rounding():
    assert top_and_rest(torch.tensor([[60.0, 0.0, 0.0]])).left.item() == pytest.approx(
        1.75e-26, rel=0.01
    )


def test_weights_about_their_mean():
    assert centred_over_classes(randn(4, 3)).sum(0).abs().max() < 1e-12
