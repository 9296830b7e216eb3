"""What the solvers of generalised linear models know of the curvature before they start."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sklearn_margdrop.numerics.memory import blocks
from sklearn_margdrop.training.batches import Rows
from sklearn_margdrop.training.net import MarginalizedNet
from sklearn_margdrop.weighting import WeightedRows


class Curvatures:
    """The part of an estimator that measures its parameters by the curvature."""

    alpha: float
    batch_size: int
    fit_intercept: bool
    solver: str

    if TYPE_CHECKING:  # the rest of the estimator

        def _start(
            self, net: MarginalizedNet, rows: Rows, incremental: bool, at_random: bool
        ) -> None: ...

    @contextmanager
    def _at_the_mean(self, net: MarginalizedNet, rows: Rows) -> Iterator[None]:
        """Let the net predict the mean of the target for a while.

        What a fit goes on from may be of so little or so much curvature that no other
        coefficients are measured well by it.
        """
        parameters = list(net.module_.parameters())
        kept = [parameter.detach().clone() for parameter in parameters]
        with torch.no_grad():
            for parameter in parameters:
                parameter.zero_()
            self._start(net, rows, incremental=False, at_random=False)
            yield
            for parameter, value in zip(parameters, kept, strict=True):
                parameter.copy_(value)

    def _curvature(self, net: MarginalizedNet, batch: WeightedRows) -> list[Tensor]:
        """The diagonal of the Hessian at the net's parameters, for each of them."""
        mean_curvature, network = partial(net.engine_.mean_curvature, net, batch), net.module_
        coef, *intercept = mean_curvature(centre=network.centre)
        coef += self.alpha
        if network.noise:
            variance = network.noise[0].variance
            coef += mean_curvature(variance, penalty=True)[0]
        return [coef, *intercept]

    def _bound_steps(self, net: MarginalizedNet, rows: Rows) -> None:
        """Let the first steps of AdaGrad be at most those of Newton's method.

        It divides by what the gradients have been. That is rounding, which would become whole
        steps, where an intercept starts from the best constant prediction.
        """
        if not self.fit_intercept:
            return
        curvature = self._curvature(net, _first_of(rows))
        for parameter, each in zip(net.module_.parameters(), curvature, strict=True):
            square = (net.lr * each).square()
            # Of features in very large units it is no number: there they are as they are.
            square = square.where(square.isfinite(), 0.0)
            net.optimizer_.state[parameter]["sum"].copy_(square)

    def _damp(self, net: MarginalizedNet, rows: Rows, incremental: bool) -> None:
        """Let the Fisher solver start as if it had seen as many batches as a row has features.

        The coordinates of a row move as if each were alone, and would overshoot together until
        they have learned of each other. A feature counts as having been in at least one row.
        """
        known = [state["sum"] > 0 for state in net.optimizer_.state.values()]
        if all(each.all() for each in known):
            return  # it goes on from the information of an earlier call
        mean_curvature = partial(net.engine_.mean_curvature, net, _first_of(rows))
        squares, *intercept = mean_curvature(centre=net.module_.centre)
        everywhere, *_ = mean_curvature(torch.ones_like)
        occurrences, curvature = everywhere, everywhere.mean(1)
        if net.module_.centre is None:  # about its mean, a feature is in every row
            occurrences, *_ = mean_curvature(lambda x: x.sign().square())
        tiny = torch.finfo(squares.dtype).tiny
        typical = squares.sum() / occurrences.sum().clamp_min(tiny)
        by_feature = torch.where(squares > 0, squares / occurrences, typical)
        row_size = float((occurrences.sum(1) / curvature.clamp_min(tiny)).mean().clamp_min(1.0))
        # What happens rarely has little information, but is a large surprise when it does.
        information = by_feature * curvature.clamp_min(0.25).unsqueeze(1)
        n_rows = self.batch_size if incremental else min(len(rows), self.batch_size)
        information = torch.maximum(n_rows * squares, information)
        intercept = [torch.clamp_min(n_rows * each, 0.25) for each in intercept]
        # Of a stream's first rows, the centred features may be zero.
        start = [
            each.masked_fill(mask, 0.0)
            for each, mask in zip([information, *intercept], known, strict=True)
        ]
        net.optimizer_.accumulate(start, row_size)

    def _information(self, net: MarginalizedNet, rows: Rows) -> Tensor:
        """The diagonal of the Fisher information of the coefficients, over the penalty's rows."""
        if self.solver == "lbfgs" or rows.features.is_sparse:
            return net.engine_.mean_curvature(net, rows.whole, penalty=True)[0]
        (linear,) = net.module_.linears
        total = torch.zeros_like(linear.weight)
        for block, share in rows.in_blocks():
            total = total + share * net.engine_.mean_curvature(net, block)[0]
        return total


def _first_of(rows: Rows) -> WeightedRows:
    """All of them if they are sparse, or as many of the first as are made dense at a time."""
    if rows.features.is_sparse:
        return rows.batch(slice(0, len(rows)))
    return rows.batch(blocks(len(rows), rows.features.shape[1])[0])
