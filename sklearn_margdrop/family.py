"""The exponential families' base class: what a penalty asks of the output layer.

A family is its log-partition function A(eta) of the linear predictor ``eta`` of shape
(n_samples, K), with A' the mean and A'' the curvature (K x K for each sample). Everything
that a penalty asks of it follows from these three. Defining a subclass registers it.
"""

from __future__ import annotations

import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar, TypeAlias

import torch
from torch import Tensor

from sklearn_margdrop.layers import NoisyInput
from sklearn_margdrop.numerics.pushed import PushedNoise
from sklearn_margdrop.numerics.quadrature import gauss_hermite
from sklearn_margdrop.numerics.sparse import Matrix

#: Takes derivatives back through :meth:`Family.curvature_trace`.
Back: TypeAlias = Callable[..., tuple[Tensor | None, Tensor | None, Tensor]]

#: Those of the rows in the loss and in the penalty.
Weights: TypeAlias = tuple[Tensor, Tensor]

FAMILIES: dict[str, type[Family]] = {}


class Family(ABC):
    """A family whose K outputs are independent given ``eta``, so that A'' is diagonal.

    Losses are half deviances, in nats per sample: zero for a perfect prediction.

    Attributes
    ----------
    name : str
        The word that selects the family.
    labels : bool
        Whether the target is a class label, and not a number.
    lowest, highest : float
        The smallest and the largest number that the target may be.
    may_overflow : bool
        Whether the mean may overflow where ``eta`` does not.
    standardised : bool
        Whether training sees the target standardised. The mean is ``eta`` then, and shifting and
        scaling both ``y`` and ``eta`` multiplies the loss by a constant. A subclass has to say
        so itself.
    shifts_alike : bool
        Whether adding the same number to all outputs of a row changes no loss.

    Examples
    --------
    >>> from sklearn_margdrop.families import FAMILIES
    >>> sorted(name for name, family in FAMILIES.items() if not family.labels)
    ['normal', 'poisson']
    """

    name: ClassVar[str]
    labels: ClassVar[bool] = False
    lowest: ClassVar[float] = -math.inf
    highest: ClassVar[float] = math.inf
    may_overflow: ClassVar[bool] = False
    standardised: ClassVar[bool] = False
    shifts_alike: ClassVar[bool] = False

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in vars(cls):
            FAMILIES[cls.name] = cls
            cls.standardised = vars(cls).get("standardised", False)

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    @abstractmethod
    def log_partition(self, eta: Tensor) -> Tensor:
        """A(eta), shape (n_samples,)."""

    @abstractmethod
    def mean(self, eta: Tensor) -> Tensor:
        """A'(eta), shape (n_samples, K)."""

    @abstractmethod
    def link(self, mean: Tensor) -> Tensor:
        """The linear predictor of a mean, the inverse of :meth:`mean`; same shape."""

    @abstractmethod
    def curvature(self, eta: Tensor) -> Tensor:
        """The diagonal of A''(eta), shape (n_samples, K)."""

    @abstractmethod
    def loss(self, eta: Tensor, y: Tensor) -> Tensor:
        """Half the deviance of `y` of shape (n_samples, K), shape (n_samples,)."""

    def curvature_root(self, eta: Tensor) -> Tensor:
        """The square root of the diagonal of A''(eta), shape (n_samples, K)."""
        return self.curvature(eta).sqrt()

    def curvature_rank(self, n_outputs: int) -> int:
        """The number of rows of ``curvature_factor`` for K = `n_outputs`."""
        return n_outputs

    def curvature_rows(self, eta: Tensor) -> tuple[Tensor, Tensor | None]:
        """The rows scale_k (e_k - centre) of U with U'U = A''(eta), for each sample.

        `scale` has the shape (n_samples, rank), `centre` (n_samples, K); None stands for zero.
        """
        return self.curvature_root(eta), None

    def curvature_factor(self, eta: Tensor) -> Tensor:
        """U itself, of shape (n_samples, rank, K)."""
        scale, centre = self.curvature_rows(eta)
        if centre is None:
            return torch.diag_embed(scale)
        eye = torch.eye(eta.shape[-1], dtype=eta.dtype, device=eta.device)
        return scale.unsqueeze(-1) * (eye[: scale.shape[-1]] - centre.unsqueeze(-2))

    def curvature_trace(self, eta: Tensor, variance: Matrix, weight: Tensor) -> Tensor:
        """tr(A''(eta) W diag(v) W') for `variance` (n_samples, width), `weight` (K, width).

        Shape (n_samples,). The variance of the output layer's input, pushed on to eta and
        weighted by the curvature there.
        """
        return (self.curvature(eta) * (variance @ weight.square().mT)).sum(-1)

    def residual(self, mean: Tensor, y: Tensor) -> Tensor:
        """The gradient of the loss with respect to eta, A'(eta) - y, shape (n_samples, K)."""
        return mean - y

    def curvature_trace_vjp(
        self, eta: Tensor, mean: Tensor, variance: Tensor, weight: Tensor
    ) -> tuple[Tensor, Back]:
        """:meth:`curvature_trace` and a function that takes derivatives back through it.

        `mean` is A'(eta). The returned function maps a derivative of the value,
        (n_samples,), to those of `eta` (None for zero), `variance` (None where its second
        argument is false) and `weight`. Here autograd computes them; a family that writes them out
        trains faster.
        """
        with torch.enable_grad():
            inputs = [each.detach().requires_grad_() for each in (eta, variance, weight)]
            value = self.curvature_trace(*inputs)

        def back(
            grad: Tensor, to_variance: bool = True
        ) -> tuple[Tensor | None, Tensor | None, Tensor]:
            by_eta, by_variance, by_weight = torch.autograd.grad(
                value, inputs, grad, materialize_grads=True
            )
            return by_eta, by_variance, by_weight

        return value.detach(), back

    def is_derivative(self, name: str, *values: str) -> bool:
        """Whether no subclass has changed one of the `values` alone, and not its derivative."""
        levels = {
            each: next(k for k, cls in enumerate(type(self).__mro__) if each in vars(cls))
            for each in (name, *values)
        }
        return all(levels[name] <= levels[each] for each in values)

    def has_terms_vjp(self, whole: bool) -> bool:
        """Whether there is :meth:`terms_vjp`, for the expectation itself if `whole`."""
        return False

    def terms_vjp(
        self, eta: Tensor, y: Tensor, noise: PushedNoise | None, weights: Weights, whole: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Loss and penalty of a model without hidden layers, and their derivatives.

        :mod:`~sklearn_margdrop.single_layer` computes one by it.

        Parameters
        ----------
        eta : Tensor of shape (n_samples, K)
        y : Tensor of shape (n_labeled,) or (n_labeled, K)
            The targets of the first rows.
        noise : PushedNoise or None
            That at the input, with :meth:`noise_weight` of the layer.
        weights : tuple of Tensor of shape (n_labeled,) and (n_samples,)
            Those of the rows in the loss and in the penalty.
        whole : bool
            Whether the penalty is the expectation itself, :meth:`jensen_gap`, or its second
            order.

        Returns
        -------
        loss, penalty : Tensor
            Weighted sums.
        to_eta : Tensor of shape (n_samples, K)
        to_weight : Tensor of shape (K, width) or None
            Through the noise.
        """
        raise NotImplementedError

    def noise_weight(self, weight: Tensor) -> Tensor:
        """The part of weights of shape (K, width) that matters to the penalty; a projection."""
        return weight

    def second_order(self, eta: Tensor, tangent: Tensor) -> Tensor:
        """1/2 t' A''(eta) t for a displacement t of `eta`, both of shape (..., n_samples, K).

        Shape (..., n_samples).
        """
        return 0.5 * (self.curvature(eta) * tangent.square()).sum(-1)

    def second_order_vjp(
        self, eta: Tensor, mean: Tensor, tangent: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """:meth:`second_order` and its derivatives by `eta` (None for zero) and by `tangent`.

        `mean` is A'(eta). Here autograd computes them; a family that writes them out trains
        faster.
        """
        with torch.enable_grad():
            inputs = [each.detach().requires_grad_() for each in (eta.expand_as(tangent), tangent)]
            value = self.second_order(*inputs)
            by_eta, by_tangent = torch.autograd.grad(value.sum(), inputs, materialize_grads=True)
        return value.detach(), by_eta, by_tangent

    def paired_gap(self, eta: Tensor, tangent: Tensor) -> Tensor:
        """1/2 [A(eta + t) + A(eta - t)] - A(eta), the expectation over the sign of t.

        Shapes are those of :meth:`second_order`, with which it agrees for small t.
        """
        pair = self.log_partition(eta + tangent) + self.log_partition(eta - tangent)
        # Negative values are rounding errors.
        return (0.5 * pair - self.log_partition(eta)).clamp_min(0)

    def paired_gap_vjp(
        self, eta: Tensor, mean: Tensor, tangent: Tensor
    ) -> tuple[Tensor, Tensor | None, Tensor]:
        """:meth:`paired_gap` and its derivatives, as :meth:`second_order_vjp`."""
        above, below = self.mean(eta + tangent), self.mean(eta - tangent)
        by_eta, by_tangent = 0.5 * (above + below) - mean, 0.5 * (above - below)
        return self.paired_gap(eta, tangent), by_eta, by_tangent

    def divergence(self, eta_noisy: Tensor, eta: Tensor) -> Tensor:
        """A(eta~) - A(eta) - A'(eta) (eta~ - eta), shape (n_samples,).

        The loss that noise adds on average when `y` follows the clean prediction. It needs
        no label, is never negative, and agrees with the quadratic penalty to second order.
        """
        linear = (self.mean(eta) * (eta_noisy - eta)).sum(-1)
        # Negative values are rounding errors.
        return (self.log_partition(eta_noisy) - self.log_partition(eta) - linear).clamp_min(0)

    def jensen_gap(self, eta: Tensor, noise: NoisyInput) -> Tensor:
        """E A(eta~) - A(eta), shape (n_samples,).

        The expectation itself, not its second order. Here it is that of a gaussian with the mean
        and the variances of eta~, by Gauss-Hermite quadrature. Families with a better rule or a
        closed form override this.
        """
        std = (noise.output_variance() + torch.finfo(eta.dtype).tiny).sqrt()
        terms = (w * self.log_partition(eta + x * std) for x, w in gauss_hermite())
        return functools.reduce(torch.add, terms) - self.log_partition(eta)
