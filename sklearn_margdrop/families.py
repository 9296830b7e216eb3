"""The exponential families that the estimators know, see :mod:`~sklearn_margdrop.family`."""

from __future__ import annotations

import math
from abc import abstractmethod

import torch
import torch.nn.functional as F
from torch import Tensor

from sklearn_margdrop.family import FAMILIES, Back, Family, Weights
from sklearn_margdrop.layers import NoisyInput
from sklearn_margdrop.numerics.memory import blocks
from sklearn_margdrop.numerics.products import matmul
from sklearn_margdrop.numerics.pushed import PushedNoise
from sklearn_margdrop.numerics.quadrature import (
    logsumexp_gap,
    logsumexp_gap_vjp,
    softplus,
    softplus_gap,
    softplus_gap_vjp,
)
from sklearn_margdrop.numerics.sparse import Matrix, SparseMatrix
from sklearn_margdrop.numerics.spread import (
    Prediction,
    PushedPrediction,
    Spread,
    centred_over_classes,
    spread_of_sparse,
    spread_over_classes,
    top_and_rest,
)

__all__ = ["FAMILIES", "Bernoulli", "Categorical", "Family", "Normal", "Poisson"]

#: At most this much of the variance of a logit is left to the second order.
_SMALL_VARIANCE = 0.01


class _Separate(Family):
    """A family with derivatives for outputs that are independent given eta."""

    @abstractmethod
    def curvature_slope(self, eta: Tensor) -> Tensor | None:
        """Derivative of :meth:`curvature`, elementwise; None where it is zero everywhere."""

    def gap_vjp(self, eta: Tensor, variance: Tensor) -> tuple[Tensor, Tensor | None, Tensor]:
        """The expected rise of A for each output by itself, and its derivatives by both.

        The derivative by eta is None where it is zero everywhere. Families whose
        :meth:`jensen_gap` depends on the noise through the variances alone define this.
        """
        raise NotImplementedError

    def half_curvature(self, eta: Tensor) -> tuple[Tensor, Tensor | None]:
        """Half of :meth:`curvature`, and its derivative; None where it is zero everywhere."""
        slope = self.curvature_slope(eta)
        return 0.5 * self.curvature(eta), None if slope is None else 0.5 * slope

    def has_terms_vjp(self, whole: bool) -> bool:
        if whole:
            is_defined = type(self).gap_vjp is not _Separate.gap_vjp
            return is_defined and self.is_derivative("gap_vjp", "jensen_gap")
        name = "curvature_slope"
        if type(self).half_curvature is not _Separate.half_curvature:
            name = "half_curvature"
        is_diagonal = type(self).curvature_trace is Family.curvature_trace
        return is_diagonal and self.is_derivative(name, "curvature")

    def terms_vjp(
        self, eta: Tensor, y: Tensor, noise: PushedNoise | None, weights: Weights, whole: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        of_loss, of_penalty = weights
        labeled = eta[: len(y)]
        loss = self.loss(labeled, y).dot(of_loss)
        to_eta = self.residual(self.mean(labeled), y).mul_(of_loss.unsqueeze(-1))
        if len(y) < len(eta):
            to_eta = torch.cat([to_eta, torch.zeros_like(eta[len(y) :])])
        if noise is None:
            return loss, torch.zeros_like(loss), to_eta, None
        variance, grad = noise.variances().expand_as(eta), of_penalty.unsqueeze(-1)
        if whole:
            values, by_eta, by_variance = self.gap_vjp(eta, variance)
        else:
            by_variance, slope = self.half_curvature(eta)
            values = by_variance * variance
            by_eta = None if slope is None else slope.mul_(variance)
        if by_eta is not None:
            to_eta.addcmul_(by_eta, grad)
        to_weight = noise.to_squares(by_variance * grad).mul_(noise.weight).mul_(2)
        return loss, values.sum(-1).dot(of_penalty), to_eta, to_weight

    def second_order_vjp(
        self, eta: Tensor, mean: Tensor, tangent: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        curvature, slope = self.curvature(eta), self.curvature_slope(eta)
        square = 0.5 * tangent * tangent
        by_eta = None if slope is None else slope * square
        return (curvature * square).sum(-1), by_eta, curvature * tangent

    def curvature_trace_vjp(
        self, eta: Tensor, mean: Tensor, variance: Tensor, weight: Tensor
    ) -> tuple[Tensor, Back]:
        curvature, square = self.curvature(eta), weight * weight
        pushed = matmul(variance, square.mT)

        def back(
            grad: Tensor, to_variance: bool = True
        ) -> tuple[Tensor | None, Tensor | None, Tensor]:
            grad = grad.unsqueeze(-1)
            slope = self.curvature_slope(eta)
            scaled = grad * curvature
            return (
                None if slope is None else grad * slope * pushed,
                matmul(scaled, square) if to_variance else None,
                matmul(scaled.mT, variance).mul_(weight).mul_(2),
            )

        return (curvature * pushed).sum(-1), back


class Normal(_Separate):
    """Unit-variance normal, mean eta: half the squared error.

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.families import Normal
    >>> Normal().loss(torch.tensor([[1.0, 2.0]]), torch.tensor([[1.0, 4.0]]))
    tensor([2.])
    """

    name = "normal"
    standardised = True

    def log_partition(self, eta: Tensor) -> Tensor:
        return 0.5 * eta.square().sum(-1)

    def mean(self, eta: Tensor) -> Tensor:
        return eta

    def link(self, mean: Tensor) -> Tensor:
        return mean

    def curvature(self, eta: Tensor) -> Tensor:
        return torch.ones_like(eta)

    def curvature_slope(self, eta: Tensor) -> None:
        return None

    def loss(self, eta: Tensor, y: Tensor) -> Tensor:
        return 0.5 * (eta - y).square().sum(-1)

    def paired_gap(self, eta: Tensor, tangent: Tensor) -> Tensor:
        return self.second_order(eta, tangent)

    def paired_gap_vjp(
        self, eta: Tensor, mean: Tensor, tangent: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        return self.second_order_vjp(eta, mean, tangent)

    def jensen_gap(self, eta: Tensor, noise: NoisyInput) -> Tensor:
        return 0.5 * noise.output_variance().expand_as(eta).sum(-1)

    def gap_vjp(self, eta: Tensor, variance: Tensor) -> tuple[Tensor, None, Tensor]:
        return 0.5 * variance, None, torch.full_like(variance, 0.5)


class Bernoulli(_Separate):
    """Bernoulli with log-odds eta: the log loss of two classes, `y` in {0, 1}.

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.families import Bernoulli
    >>> Bernoulli().mean(torch.zeros(1, 1)), Bernoulli().curvature(torch.zeros(1, 1))
    (tensor([[0.5000]]), tensor([[0.2500]]))
    """

    name = "bernoulli"
    labels = True

    def log_partition(self, eta: Tensor) -> Tensor:
        return softplus(eta).sum(-1)

    def mean(self, eta: Tensor) -> Tensor:
        return eta.sigmoid()

    def link(self, mean: Tensor) -> Tensor:
        return mean.logit()

    def curvature(self, eta: Tensor) -> Tensor:
        return eta.sigmoid() * (-eta).sigmoid()

    def curvature_slope(self, eta: Tensor) -> Tensor:
        return self.curvature(eta) * (-eta / 2).tanh()

    def half_curvature(self, eta: Tensor) -> tuple[Tensor, Tensor]:
        mean, other = eta.sigmoid(), eta.neg().sigmoid_()
        half = 0.5 * mean * other
        return half, other.sub_(mean).mul_(half)

    def curvature_root(self, eta: Tensor) -> Tensor:
        # The product of the two means underflows, and its root loses its gradient, long
        # before either factor does.
        return torch.exp(0.5 * (F.logsigmoid(eta) + F.logsigmoid(-eta)))

    def loss(self, eta: Tensor, y: Tensor) -> Tensor:
        # softplus(eta) - y eta, where a confident prediction is right: rounding, even below zero.
        return torch.lerp(softplus(eta), softplus(-eta), y).sum(-1)

    def jensen_gap(self, eta: Tensor, noise: NoisyInput) -> Tensor:
        return softplus_gap(eta, noise.output_variance().expand_as(eta)).sum(-1)

    def gap_vjp(self, eta: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return softplus_gap_vjp(eta, variance)


class Poisson(_Separate):
    """Poisson with mean exp(eta): half the Poisson deviance of counts `y` >= 0.

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.families import Poisson
    >>> Poisson().mean(torch.zeros(1, 2))
    tensor([[1., 1.]])
    """

    name = "poisson"
    lowest = 0.0
    may_overflow = True

    def log_partition(self, eta: Tensor) -> Tensor:
        return eta.exp().sum(-1)

    def mean(self, eta: Tensor) -> Tensor:
        return eta.exp()

    def link(self, mean: Tensor) -> Tensor:
        return mean.log()

    def curvature(self, eta: Tensor) -> Tensor:
        return eta.exp()

    def curvature_slope(self, eta: Tensor) -> Tensor:
        return eta.exp()

    def curvature_root(self, eta: Tensor) -> Tensor:
        return (0.5 * eta).exp()

    def loss(self, eta: Tensor, y: Tensor) -> Tensor:
        return (eta.exp() - y * eta + torch.xlogy(y, y) - y).sum(-1)

    def jensen_gap(self, eta: Tensor, noise: NoisyInput) -> Tensor:
        # The moment generating function of eta~ at 1: exact for every noise that knows its own.
        # Negative values are rounding errors.
        return (eta.exp() * noise.output_cumulant().clamp_min(0).expm1()).sum(-1)


class Categorical(Family):
    """Categorical with logits eta: the log loss of K classes, `y` of class indices.

    Unlike the other families `y` has the shape (n_samples,) and an integer dtype, and the
    curvature diag(o) - o o' couples the outputs.

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.families import Categorical
    >>> Categorical().curvature_factor(torch.zeros(5, 3)).shape  # K - 1 rows for K classes
    torch.Size([5, 2, 3])
    """

    name = "categorical"
    labels = True
    shifts_alike = True

    def log_partition(self, eta: Tensor) -> Tensor:
        return eta.logsumexp(-1)

    def mean(self, eta: Tensor) -> Tensor:
        return eta.softmax(-1)

    def link(self, mean: Tensor) -> Tensor:
        return mean.log()

    def curvature(self, eta: Tensor) -> Tensor:
        share = (eta - eta.detach().amax(-1, keepdim=True)).exp()
        total = share.sum(-1, keepdim=True)
        # 1 - o of a confident prediction is rounding alone; the sum of the others is not.
        top = torch.arange(eta.shape[-1], device=eta.device) == eta.argmax(-1, keepdim=True)
        others = share.masked_fill(top, 0.0).sum(-1, keepdim=True)
        return share * torch.where(top, others, total - share) / total.square()

    def loss(self, eta: Tensor, y: Tensor) -> Tensor:
        return F.cross_entropy(eta, y, reduction="none")

    def residual(self, mean: Tensor, y: Tensor) -> Tensor:
        return mean.scatter(-1, y.unsqueeze(-1), -1.0, reduce="add")

    def curvature_rank(self, n_outputs: int) -> int:
        return n_outputs - 1

    def curvature_rows(self, eta: Tensor) -> tuple[Tensor, Tensor | None]:
        # The K vectors u_k = sqrt(o_k) (e_k - o) factor the curvature, and sqrt(o) is
        # orthogonal to them: a Householder reflection that takes sqrt(o) to e_K turns the
        # last vector into zero, so K - 1 are enough.
        root = (0.5 * eta.log_softmax(-1)).exp()
        last = root[..., -1:]
        share = last / (1 + last)
        centre = (1 - share) * root.square() + F.pad(share, (root.shape[-1] - 1, 0))
        return root[..., :-1], centre

    def second_order(self, eta: Tensor, tangent: Tensor) -> Tensor:
        mean = self.mean(eta)
        centred = tangent - (mean * tangent).sum(-1, keepdim=True)
        return 0.5 * (mean * centred.square()).sum(-1)

    def second_order_vjp(
        self, eta: Tensor, mean: Tensor, tangent: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        centred = tangent - (mean * tangent).sum(-1, keepdim=True)
        by_tangent = mean * centred
        terms = by_tangent * centred
        variance = terms.sum(-1, keepdim=True)
        by_eta = torch.addcmul(terms, mean, variance, value=-1).mul_(0.5)
        return 0.5 * variance.squeeze(-1), by_eta, by_tangent

    def paired_gap_vjp(
        self, eta: Tensor, mean: Tensor, tangent: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        # One call for all the points. What it takes off a logit is the log-partition.
        points = torch.cat([eta.expand_as(tangent), eta + tangent, eta - tangent])
        logs = points.log_softmax(-1)
        n = len(tangent)
        at, *pair = (points[..., 0] - logs[..., 0]).split(n)
        value = (0.5 * (pair[0] + pair[1]) - at).clamp_min_(0)
        above, below = logs[n:].exp_().split(n)
        return value, torch.add(above, below).mul_(0.5).sub_(mean), (above - below).mul_(0.5)

    def curvature_trace(self, eta: Tensor, variance: Matrix, weight: Tensor) -> Tensor:
        at, weight = top_and_rest(eta), centred_over_classes(weight)
        if isinstance(variance, SparseMatrix):
            _, spread = spread_of_sparse(eta, variance, weight)
        else:
            spread = spread_over_classes(at, variance, weight)
        return at.left * spread

    def curvature_trace_vjp(
        self, eta: Tensor, mean: Tensor, variance: Tensor, weight: Tensor
    ) -> tuple[Tensor, Back]:
        # sum_j v_j Var_o(w_j), with each product made once for the squares and the weights. With
        # w_t the weights of the most probable class, l what it leaves to the others, and d = sum_k
        # o_k (w_k - w_t), the variance is sum_k o_k (w_k - w_t)^2 - d^2. Rounding errors
        # are in proportion to l there, as the variance is, however confident the prediction.
        top = mean.argmax(-1)
        others = mean.scatter(-1, top.unsqueeze(-1), 0.0)
        left = others.sum(-1, keepdim=True)
        of_top = weight.index_select(0, top)
        both = torch.cat([weight * weight, weight], -1)
        squares, total = matmul(others, both).chunk(2, -1)
        away = torch.addcmul(total, of_top, left, value=-1)
        average = of_top + away
        spread = torch.addcmul(squares, of_top, total, value=-1)
        spread.addcmul_(away, average, value=-1).clamp_min_(0)
        value = torch.linalg.vecdot(variance, spread)

        def back(
            grad: Tensor, to_variance: bool = True
        ) -> tuple[Tensor | None, Tensor | None, Tensor]:
            grad = grad.unsqueeze(-1)
            scaled = others * grad
            stacked = torch.cat([variance, (variance * average).mul_(-2)], -1)
            to_mean = matmul(stacked, both.mT)
            to_eta = (to_mean - (mean * to_mean).sum(-1, keepdim=True)).mul_(scaled)
            to_eta.scatter_(-1, top.unsqueeze(-1), -to_eta.sum(-1, keepdim=True))
            to_squares, to_weight = matmul(scaled.mT, stacked).chunk(2, -1)
            to_weight = torch.addcmul(to_weight, to_squares, weight, value=2)
            by_top = (variance * away).mul_(grad * (left - 1))
            if top.device.type == "cpu":
                to_weight.index_add_(0, top, by_top, alpha=2)
            else:  # where index_add_ has no fixed order of summation
                to_weight.addmm_(F.one_hot(top, len(weight)).to(by_top).mT, by_top, alpha=2)
            return to_eta, spread * grad if to_variance else None, to_weight

        return value, back

    def noise_weight(self, weight: Tensor) -> Tensor:
        return centred_over_classes(weight)

    def has_terms_vjp(self, whole: bool) -> bool:
        penalty = "jensen_gap" if whole else "curvature_trace"
        return self.is_derivative("terms_vjp", "loss", "mean", "curvature", penalty)

    def terms_vjp(
        self, eta: Tensor, y: Tensor, noise: PushedNoise | None, weights: Weights, whole: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        of_loss, of_penalty = weights
        at = Prediction.of(eta)
        y, of_loss = y.unsqueeze(-1), of_loss.unsqueeze(-1)
        below = at.excess.unsqueeze(-1) + eta.gather(-1, at.top)
        loss = (below[: len(y)] - eta[: len(y)].gather(-1, y)).mul_(of_loss).sum()
        to_eta = torch.zeros_like(eta)
        to_eta[: len(y)] = at.probability[: len(y)] * of_loss
        to_eta[: len(y)].scatter_add_(-1, y, -of_loss)
        if noise is None:
            return loss, torch.zeros_like(loss), to_eta, None
        pushed = PushedPrediction(at, noise)
        differentiate = self._expectation_vjp if whole else self._second_order_vjp
        spread = pushed.spread
        cut = blocks(len(eta), 4 * eta.shape[-1], in_cache=eta.device.type == "cpu")
        cut = cut or [slice(0, 0)]
        found = [differentiate(eta[rows], spread.rows(rows), of_penalty[rows]) for rows in cut]
        values, by_penalty, *parts = (
            each[0] if len(cut) == 1 else torch.cat(each) for each in zip(*found, strict=True)
        )
        to_eta += by_penalty
        return loss, values.dot(of_penalty), to_eta, pushed.to_weight(*parts)

    def _second_order_vjp(
        self, eta: Tensor, spread: Spread, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """1/2 of the spread, and what :meth:`Spread.back` returns."""
        left, each = spread.at.left, spread.values()
        values = 0.5 * left * each
        by_rest = grad * values * (1 - left)
        return values, *spread.back(each, 0.5 * grad * left, None, by_rest.unsqueeze(-1))

    def _expectation_vjp(
        self, eta: Tensor, spread: Spread, grad: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """:meth:`jensen_gap`, step by step, and what :meth:`Spread.back` returns."""
        top, others, left, o, _ = spread.at
        left, grad = left.unsqueeze(-1), grad.unsqueeze(-1)
        separate, each = spread.separate, spread.values()
        # The curvature of each logit, per unit of what is left to the other classes.
        curvature = (others * (1 - o)).scatter_(-1, top, 1 - left)
        independent = (curvature * separate).sum(-1, keepdim=True)
        inverse = 1 / (independent + math.sqrt(torch.finfo(eta.dtype).tiny))
        scale = each.unsqueeze(-1) * inverse
        is_free = scale < 2.0
        scale = scale.clamp_max_(2.0)
        variance = scale * separate
        share = variance / (variance + _SMALL_VARIANCE)
        small = (0.5 * _SMALL_VARIANCE) * share
        values, to_eta, by_large = logsumexp_gap_vjp(eta, variance.mul_(share))
        values = values.addcmul_((curvature * small).sum(-1), spread.at.left)
        by_variance = by_large.mul_(share).mul_(2 - share)
        by_variance.addcmul_(curvature * (0.5 * left), (1 - share).square_())
        by_variance *= grad
        by_scale = (by_variance * separate).sum(-1, keepdim=True).mul_(is_free)
        by_spread = by_scale * inverse
        by_independent = -by_spread * scale
        by_curvature = small.mul_(grad * left).addcmul_(separate, by_independent)
        by_rest = by_curvature.mul_(1 - 2 * o)
        total = (by_rest * o).sum(-1, keepdim=True)
        by_rest -= total.addcmul_(by_independent * independent, 1 - left)
        to_separate = by_variance.mul_(scale).addcmul_(curvature, by_independent)
        found = spread.back(each, by_spread.squeeze(-1), to_separate, by_rest)
        found[0].addcmul_(to_eta, grad)
        return values, *found

    def jensen_gap(self, eta: Tensor, noise: NoisyInput) -> Tensor:
        """E A(eta~) - A(eta), with the logits treated as independent gaussians.

        Their variances are those of the logits about their mean over the classes, scaled in each
        row so that the second order is the exact one. The expectation over them is a mean over
        fixed nodes in logit space.
        """
        at, weight = top_and_rest(eta), centred_over_classes(noise.weight)
        if isinstance(noise.variance, SparseMatrix):
            variance, spread = spread_of_sparse(eta, noise.variance, weight)
        else:
            variance = noise.output_variance(weight).expand_as(eta)
            spread = spread_over_classes(at, noise.variance, weight, variance)
        # Both second orders are per unit of what is left to the other classes, so that their
        # ratio is as precise for confident predictions as for others.
        independent = (at.others * (1 - at.left.unsqueeze(-1) * at.others) * variance).sum(-1)
        independent = independent + (1 - at.left) * variance.gather(-1, at.top).squeeze(-1)
        # Without any variance the ratio does not matter, but it must stay finite. No covariance is
        # above the mean of its variances, so that the ratio is at most 2, apart from rounding.
        scale = spread / (independent + math.sqrt(torch.finfo(eta.dtype).tiny))
        variance = scale.clamp_max(2.0).unsqueeze(-1) * variance
        # A rule with few nodes is a function of standard deviations, which have a kink where a
        # variance is zero. Small variances are left to the second order instead.
        share = variance / (variance + _SMALL_VARIANCE)
        second_order = self.curvature(eta) * (_SMALL_VARIANCE * share)
        return logsumexp_gap(eta, variance * share) + 0.5 * second_order.sum(-1)
