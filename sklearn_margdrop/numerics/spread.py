"""The variance of weights over the classes of a prediction, however confident it is.

The usual difference, the mean of the squares less the square of the mean, is rounding where
nearly all the probability is one class's.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from sklearn_margdrop.numerics.products import squared_linear

#: With more classes than this, their pairs cost more than the products they replace.
_MAX_PAIRED_CLASSES = 16


class TopAndRest(NamedTuple):
    """A prediction, as its most probable class and what it leaves to the others.

    With m and V the mean and the variance of w_k over the other classes, the variance over all
    of them is left * (V + (1 - left) (m - w_top)^2), a sum of terms that are not negative.

    Parameters
    ----------
    top : Tensor of shape (n_samples, 1)
        The index of the most probable class.
    others : Tensor of shape (n_samples, K)
        The probabilities of the other classes, given that it is one of them; 0 at `top`.
    left : Tensor of shape (n_samples,)
        The probability that it is one of them.
    """

    top: Tensor
    others: Tensor
    left: Tensor


def top_and_rest(eta: Tensor) -> TopAndRest:
    """The parts of the prediction with the logits `eta` of shape (n_samples, K)."""
    top = eta.argmax(-1, keepdim=True)
    is_top = torch.arange(eta.shape[-1], device=eta.device) == top
    logits = eta.masked_fill(is_top, -math.inf)
    margin = eta.gather(-1, top).squeeze(-1) - logits.logsumexp(-1)
    return TopAndRest(top, logits.softmax(-1), (-margin).sigmoid())


def centred_over_classes(weight: Tensor) -> Tensor:
    """Weights (K, width) about their mean over the classes, which no probability depends on."""
    return weight - weight.mean(-2, keepdim=True)


def spread_over_classes(
    at: TopAndRest, variance: Tensor, weight: Tensor, separate: Tensor | None = None
) -> Tensor:
    """The noise variance of the logits that the curvature sees, per unit of `left`.

    Parameters
    ----------
    at : TopAndRest
        Of the predictions.
    variance : Tensor of shape (n_samples, width) or (1, width)
        v, that of the noise at the input of the output layer.
    weight : Tensor of shape (K, width)
        w, the weights of that layer.
    separate : Tensor of shape (n_samples, K), default=None
        sum_j v_j w_kj^2, if it is known.

    Returns
    -------
    Tensor of shape (n_samples,)
        sum_j v_j Var_o(w_j) / left, where Var_o is the variance over the classes.
    """
    top, others, left = at
    n_classes = others.shape[-1]
    if n_classes <= _MAX_PAIRED_CLASSES:
        # A variance is a sum over pairs, o_k o_l (w_k - w_l)^2.
        first, second = torch.triu_indices(n_classes, n_classes, 1, device=top.device)
        eye = torch.eye(n_classes, dtype=weight.dtype, device=weight.device)
        first, second = eye[first], eye[second]  # products with these select, fast both ways
        pairs = squared_linear(variance, (first - second) @ weight, exact=True)
        chosen = eye[top.squeeze(-1)]
        with_top = (others @ first.mT) * (chosen @ second.mT)
        with_top = with_top + (chosen @ first.mT) * (others @ second.mT)
        rest = (others @ first.mT) * (others @ second.mT)
        left = left.unsqueeze(-1)
        return (((1 - left) * with_top + left * rest) * pairs).sum(-1)
    if separate is None:
        separate = squared_linear(variance, weight, exact=True)
    if variance.shape[-2] == 1:  # the same for all rows, whose number may be large
        products = (weight * variance) @ weight.mT
        means = others @ products
        square_of_mean = (means * others).sum(-1)
        own = products.diagonal(dim1=-2, dim2=-1)[top.squeeze(-1)]
        away = square_of_mean - 2 * means.gather(-1, top).squeeze(-1) + own
    else:
        mean = others @ weight
        chosen = torch.zeros_like(others).scatter(-1, top, 1.0)
        square_of_mean = (variance * mean.square()).sum(-1)
        away = (variance * (mean - chosen @ weight).square()).sum(-1)
    within = ((others * separate).sum(-1) - square_of_mean).clamp_min(0)
    return within + (1 - left) * away.clamp_min(0)
