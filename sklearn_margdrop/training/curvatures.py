"""The curvature of generalised linear models, from which their optimisers start."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from skorch import NeuralNet
from torch import Tensor

from sklearn_margdrop.numerics.memory import blocks
from sklearn_margdrop.training.batches import Rows
from sklearn_margdrop.weighting import WeightedRows


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

    def curvature(self, rows: WeightedRows) -> list[Tensor]:
        """The diagonal of the Hessian on some of the rows, for each parameter."""
        net, network = self.net, self.net.module_
        mean_curvature = partial(net.engine_.mean_curvature, net, rows)
        coef, *intercept = mean_curvature(centre=network.centre)
        coef += net.criterion_.alpha
        if network.noise:
            variance = network.noise[0].variance
            coef += mean_curvature(function=variance, penalty=True)[0]
        return [coef, *intercept]

    @torch.no_grad()
    def curvature_at_the_mean(self) -> list[Tensor]:
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
