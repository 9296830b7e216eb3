"""The variance of weights over the classes of a prediction, however confident it is.

The usual difference, the mean of the squares less the square of the mean, is rounding where
nearly all the probability is one class's.
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from sklearn_margdrop.numerics.memory import blocks
from sklearn_margdrop.numerics.products import squared_linear
from sklearn_margdrop.numerics.pushed import PushedNoise
from sklearn_margdrop.numerics.sparse import SparseMatrix

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


class Prediction(NamedTuple):
    """A prediction in parts, and its log-partition, without autograd.

    Parameters
    ----------
    top, others, left : Tensor
        Those of :class:`TopAndRest`.
    probability : Tensor of shape (n_samples, K)
        Of all classes.
    excess : Tensor of shape (n_samples,)
        By how much the log-partition is above the largest logit.
    """

    top: Tensor
    others: Tensor
    left: Tensor
    probability: Tensor
    excess: Tensor

    @classmethod
    def of(cls, eta: Tensor) -> Prediction:
        """That with the logits `eta` of shape (n_samples, K)."""
        cut = blocks(len(eta), 4 * eta.shape[-1], in_cache=eta.device.type == "cpu")
        if len(cut) < 2:
            return cls._of(eta)
        return cls(*map(torch.cat, zip(*(cls._of(eta[rows]) for rows in cut), strict=True)))

    @classmethod
    def _of(cls, eta: Tensor) -> Prediction:
        highest, top = eta.max(-1, keepdim=True)
        rest = eta.scatter(-1, top, -math.inf)
        second = rest.amax(-1, keepdim=True)
        others = rest.sub_(second).exp_()
        total = others.sum(-1, keepdim=True)
        others *= total.reciprocal()
        log_odds = total.log_().add_(second).sub_(highest)
        left = log_odds.sigmoid()
        probability = (others * left).scatter_(-1, top, 1 - left)
        excess = torch.nn.functional.softplus(log_odds.squeeze(-1), threshold=40)
        return cls(top, others, left.squeeze(-1), probability, excess)

    def rows(self, index: slice | Tensor) -> Prediction:
        """That of some rows."""
        return Prediction(*(each[index] for each in self))


class Spread(NamedTuple):
    """The noise variance that the curvature of a prediction sees.

    With o the prediction, it is sum_k o_k S_k - <m, m> for the mean m = sum_k o_k w_k of the
    weights, S_k = <w_k, w_k> and the product <a, b> = sum_j v_j a_j b_j. All but the products
    with m are small matrices.

    Where a prediction is confident, the difference is rounding. With d = m - w_top it is there
    sum_k d_k (S_k - 2 <w_k, m>) + <d, d> instead, where d_k are the shares of the classes in d.

    Parameters
    ----------
    at : Prediction
    separate : Tensor of shape (n_samples, K)
        S, the variance of each logit.
    products : Tensor of shape (n_samples, K)
        <w_k, m>.
    is_sure : Tensor of bool of shape (n_samples,)
        Whether it is a confident prediction.
    away : Tensor of shape (n_samples,)
        <d, d> of those, over the square of what they leave to the other classes.
    """

    at: Prediction
    separate: Tensor
    products: Tensor
    is_sure: Tensor
    away: Tensor

    def rows(self, index: slice) -> Spread:
        """That of some rows."""
        return Spread(self.at.rows(index), *(each[index] for each in self[1:]))

    def values(self) -> Tensor:
        """The variance, per unit of ``at.left``, of shape (n_samples,)."""
        top, others, left, probability, _ = self.at
        usual = (probability * (self.separate - self.products)).sum(-1).div_(left)
        if self.is_sure.any():
            linear = self.separate - 2 * self.products
            sure = (others * linear).sum(-1) - linear.gather(-1, top).squeeze(-1)
            usual = torch.where(self.is_sure, sure.addcmul_(left, self.away), usual)
        return usual.clamp_min_(0)

    def back(
        self,
        values: Tensor,
        grad: Tensor,
        to_separate: Tensor | None = None,
        to_rest: Tensor | None = None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """The derivatives of a function of `values` and `separate`.

        Parameters
        ----------
        values : Tensor of shape (n_samples,)
        grad : Tensor of shape (n_samples,)
            Its derivatives by the values.
        to_separate : Tensor of shape (n_samples, K), default=None
            Its derivatives by `separate`.
        to_rest : Tensor of shape (n_samples, K) or (n_samples, 1), default=None
            Its other derivatives by the logits but the largest, over the share of each class in
            the rest; those of all logits add up to zero.

        Returns
        -------
        to_logits : Tensor of shape (n_samples, K)
        of_squares, of_mean : Tensor of shape (n_samples, K)
        of_top : Tensor of shape (n_samples,)
            What :meth:`PushedPrediction.to_weight` needs.
        """
        top, others, left, probability, _ = self.at
        share = others * grad.unsqueeze(-1)
        square = (probability * self.products).sum(-1).sub_(values)
        to_logits = (self.separate - 2 * self.products).add_(square.unsqueeze(-1)).mul_(share)
        if to_rest is not None:
            to_logits.addcmul_(others, to_rest)
        to_logits.scatter_(-1, top, to_logits.sum(-1, keepdim=True).neg_())
        of_top = grad * (1 - left)
        usual = (of_top / left).masked_fill_(self.is_sure, 0.0)
        share.scatter_(-1, top, usual.unsqueeze(-1))
        of_squares = share if to_separate is None else share + to_separate
        return to_logits, of_squares, share, of_top


class PushedPrediction:
    """The products of :class:`Spread` and the way back to the weights.

    Parameters
    ----------
    at : Prediction
    noise : PushedNoise
        With weights about their mean over the classes.

    Attributes
    ----------
    spread : Spread

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.numerics.pushed import PushedNoise
    >>> from sklearn_margdrop.numerics.spread import Prediction, PushedPrediction
    >>> at = Prediction.of(torch.tensor([[0.0, 0.0]]))
    >>> noise = PushedNoise(torch.ones(1, 3), torch.tensor([[1.0] * 3, [-1.0] * 3]))
    >>> at.left * PushedPrediction(at, noise).spread.values()
    tensor([3.])
    """

    def __init__(self, at: Prediction, noise: PushedNoise) -> None:
        self._noise = noise = noise.for_mixtures()
        separate = noise.variances().expand_as(at.probability)
        self._mixed = [noise.mixed(at.probability)]
        is_sure = at.left < torch.finfo(at.left.dtype).eps ** 0.25
        away = torch.zeros_like(at.left)
        if is_sure.any():
            index = is_sure.nonzero()[:, 0]
            share = at.others[index].scatter_(-1, at.top[index], -1.0)
            mixed = noise.rows(index).mixed(share)
            self._mixed.append(mixed._replace(rows=index))
            away[index] = (share * mixed.values).sum(-1)
        self.spread = Spread(at, separate, self._mixed[0].values, is_sure, away)

    def to_weight(self, of_squares: Tensor, of_mean: Tensor, of_top: Tensor) -> Tensor:
        """The derivatives by the weights, (K, width), for those of :meth:`Spread.back`."""
        grads = [of_mean]
        for mixed in self._mixed[1:]:  # of confident predictions
            of_class = torch.zeros_like(of_mean[mixed.rows])
            top = self.spread.at.top[mixed.rows]
            grads.append(of_class.scatter_(-1, top, of_top[mixed.rows].unsqueeze(-1)))
        total = self._noise.to_weight(of_squares, *zip(grads, self._mixed, strict=True))
        return total.mul_(2)


def spread_of_sparse(eta: Tensor, variance: SparseMatrix, weight: Tensor) -> tuple[Tensor, Tensor]:
    """:class:`Spread` for autograd, with the logits `eta` of shape (n_samples, K).

    Returns
    -------
    separate : Tensor of shape (n_samples, K)
    values : Tensor of shape (n_samples,)
    """
    separate, values = _SparseSpread.apply(eta, variance, weight)
    return separate, values


class _SparseSpread(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, eta: Tensor, variance: SparseMatrix, weight: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.pushed = PushedPrediction(Prediction.of(eta), PushedNoise(variance, weight))
        ctx.values = ctx.pushed.spread.values()
        return ctx.pushed.spread.separate, ctx.values.clone()

    @staticmethod
    def backward(ctx: Any, to_separate: Tensor, grad: Tensor) -> tuple[Tensor | None, ...]:
        to_logits, *parts = ctx.pushed.spread.back(ctx.values, grad, to_separate)
        return to_logits, None, ctx.pushed.to_weight(*parts)
