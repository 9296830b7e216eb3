"""The curvature of generalised linear models, from which their optimisers start."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from skorch import NeuralNet
from torch import Tensor

from sklearn_margdrop.numerics.memory import blocks
from sklearn_margdrop.training.batches import Rows
from sklearn_margdrop.weighting import WeightedRows

#: Correlations are stored if they take less memory than the data, or than this many numbers.
_CORRELATIONS_ELEMENTS = 2**22

#: So many products of two numbers cost next to nothing.
_CHEAP = 2**25


class Curvature(NamedTuple):
    """The diagonal of the Hessian of a generalised linear model.

    Parameters
    ----------
    loss : Tensor of shape (K, n_features)
        That of the loss, for the coefficients.
    penalties : Tensor of shape (K, n_features)
        That of the noise penalty and of L2.
    intercept : list of Tensor of shape (K,)
        That of the loss, for the intercepts; empty without intercepts.
    """

    loss: Tensor
    penalties: Tensor
    intercept: list[Tensor]

    @property
    def total(self) -> list[Tensor]:
        """The sum, for each parameter."""
        return [self.loss + self.penalties, *self.intercept]


class InverseHessian:
    r"""A model of the inverse Hessian: a diagonal, correlations and what classes share.

    With `correlations` R, it is :math:`D^{-1/2} R^{-1} D^{-1/2}` for the coefficients of each
    output, where D is the diagonal.

    Parameters
    ----------
    diagonal : sequence of Tensor
        A diagonal of the Hessian, for each parameter: first the coefficients, (K, n_features) or
        of any other shape. Where it is zero, so is the inverse.
    shifts_alike : bool, default=False
        Whether the same shift of all outputs changes no loss, as with a softmax. The inverse then
        keeps such shifts apart, so that steps from zero coefficients are none.

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.training.curvatures import InverseHessian
    >>> inverse = InverseHessian([torch.tensor([[4.0, 1.0]])])
    >>> inverse(torch.ones(2))
    tensor([0.2500, 1.0000])
    >>> hessian = torch.tensor([[4.0, 1.0], [1.0, 1.0]])  # its correlation is 1 / sqrt(4 * 1)
    >>> inverse.factor = torch.linalg.cholesky(torch.tensor([[1.0, 0.5], [0.5, 1.0]]))
    >>> torch.allclose(hessian @ inverse(torch.ones(2)), torch.ones(2))
    True
    """

    def __init__(self, diagonal: Sequence[Tensor], shifts_alike: bool = False) -> None:
        coefficients = diagonal[0]
        self.shape = coefficients.shape
        flat = torch.cat([each.reshape(-1) for each in diagonal])
        # The reciprocals of subnormal numbers are infinite.
        normal = flat >= torch.finfo(flat.dtype).tiny
        self.diagonal = torch.where(normal, flat.reciprocal(), 0.0)
        self.factor: Tensor | None = None  # the lower one of Cholesky, of the correlations
        self.shifts_alike = shifts_alike

    def __call__(self, vector: Tensor) -> Tensor:
        """The product with a flat vector."""
        if self.factor is None and not self.shifts_alike:
            return vector * self.diagonal
        size = self.shape.numel()
        parts = [vector[:size].view(self.shape), vector[size:]]
        scales = [self.diagonal[:size].view(self.shape), self.diagonal[size:]]
        shifts: list[Tensor] = []
        if self.shifts_alike:
            parts, shifts = _apart(parts)
        coef, intercept = parts
        if self.factor is None:
            coef = coef * scales[0]
        else:
            root = scales[0].sqrt()
            coef = torch.cholesky_solve((coef * root).mT, self.factor).mT * root
        parts = [coef, intercept * scales[1]]
        if self.shifts_alike:
            parts, _ = _apart(parts)
            shifts = [shift * scale.mean(0) for shift, scale in zip(shifts, scales, strict=True)]
            parts = [part + shift for part, shift in zip(parts, shifts, strict=True)]
        return torch.cat([part.reshape(-1) for part in parts])


def _apart(parts: list[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """Differences between the outputs, and what is the same for all."""
    shifts = [part.mean(0) for part in parts]
    return [part - shift for part, shift in zip(parts, shifts, strict=True)], shifts


@dataclass(frozen=True)
class Start:
    """What an optimiser is given before its first step.

    Parameters
    ----------
    net : MarginalizedNet
        A net without hidden layers, at its initial parameters.
    rows : Rows
        The training rows.
    predict_mean : callable
        Changes the parameters from zero to those that predict the mean of the target.
    continuing, incremental : bool
        Whether it continues an earlier call, and whether the calls are a stream.
    auto_rate : bool
        Whether the learning rate was left to the solver.
    """

    net: NeuralNet
    rows: Rows
    predict_mean: Callable[[], None]
    continuing: bool
    incremental: bool
    auto_rate: bool

    def first_rows(self) -> WeightedRows:
        """All rows if they are sparse, otherwise the first block of them."""
        rows = self.rows
        if rows.features.is_sparse:
            return rows.batch(slice(0, len(rows)))
        return rows.batch(blocks(len(rows), rows.features.shape[1])[0])

    def curvature(self, rows: WeightedRows) -> Curvature:
        """The diagonal of the Hessian on some of the rows."""
        net, network = self.net, self.net.module_
        mean_curvature = partial(net.engine_.mean_curvature, net, rows)
        loss, *intercept = mean_curvature(centre=network.centre)
        penalties = torch.full_like(loss, net.criterion_.alpha)
        if network.noise:
            variance = network.noise[0].variance
            penalties += mean_curvature(function=variance, penalty=True)[0]
        return Curvature(loss, penalties, intercept)

    @torch.no_grad()
    def curvature_at_the_mean(self) -> Curvature:
        """The curvature on all rows at the parameters that predict the mean of the target.

        At the parameters from which a fit continues, the curvature may be too small or too large
        to serve as a scale for other coefficients.
        """
        parameters = list(self.net.module_.parameters())
        kept = [parameter.detach().clone() for parameter in parameters]
        for parameter in parameters:
            parameter.zero_()
        self.predict_mean()
        curvature = self.curvature(self.rows.whole)
        for parameter, value in zip(parameters, kept, strict=True):
            parameter.copy_(value)
        return curvature

    @property
    def n_correlated(self) -> int:
        """The rows that the correlations of the features are to be taken of; 0 for none."""
        rows, width = self.rows, int(self.net.module_.linears[0].in_features)
        if width**2 > max(_CORRELATIONS_ELEMENTS, rows.features.n_stored):
            return 0
        # Some rows for each feature, and whatever costs no more than an iteration.
        return min(len(rows), max(10 * width, self._iteration // width**2))

    @property
    def _iteration(self) -> int:
        """The cost of an iteration, in products of two numbers that correlations take."""
        n_outputs = int(self.net.module_.linears[0].out_features)
        return max(16 * self.rows.features.n_stored * n_outputs, _CHEAP)

    def iterations_worth(self, n_rows: int) -> int:
        """About as many iterations cost as much as the correlations of so many rows."""
        width = int(self.net.module_.linears[0].in_features)
        return n_rows * width**2 // (self._iteration + 1)

    @torch.no_grad()
    def correlations(self, n_rows: int, curvature: Curvature) -> Tensor | None:
        """The factor of an :class:`InverseHessian` for the curvature where the mean is predicted.

        There all rows have the same curvature, so that the Hessian is the covariance of the
        features, here over about `n_rows` labelled rows, and the penalties' diagonal. None if
        rounding leaves no factor.
        """
        rows, centre = self.rows, self.net.module_.centre
        step = max(len(rows) // n_rows, 1)
        covariance: Tensor = self.net.engine_.covariance(rows, step, centre).to(curvature.loss)
        of_loss = (curvature.loss / curvature.total[0]).mean(0)
        scale = (of_loss / covariance.diagonal()).sqrt()
        scale = scale.where(scale.isfinite(), 0.0)
        covariance *= scale
        covariance *= scale.unsqueeze(1)
        covariance.diagonal().fill_(1 + len(scale) * torch.finfo(scale.dtype).eps)
        factor, failure = torch.linalg.cholesky_ex(covariance)
        return None if failure else factor


def information(net: NeuralNet, rows: Rows, full_batch: bool) -> Tensor:
    """The diagonal of the Fisher information of the coefficients, over the penalty's rows."""
    if full_batch or rows.features.is_sparse:
        total: Tensor = net.engine_.mean_curvature(net, rows.whole, penalty=True)[0]
        return total
    (linear,) = net.module_.linears
    total = torch.zeros_like(linear.weight)
    for block, share in rows.in_blocks():
        total = total + share * net.engine_.mean_curvature(net, block)[0]
    return total
