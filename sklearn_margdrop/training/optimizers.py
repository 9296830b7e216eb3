"""Online optimisers of generalised linear models that use the curvature."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from skorch import NeuralNet
from torch import Tensor, nn

from sklearn_margdrop.training.curvatures import Start
from sklearn_margdrop.weighting import WeightedRows

#: What a net reads of its optimiser, with the values for optimisers that need only gradients.
DEFAULTS: dict[str, Any] = {
    # Whether `step` is given a function that evaluates the objective, rather than gradients.
    "takes_closure": False,
    # Whether it can make a step now.
    "is_ready": True,
    # prepare(start): called with the model and the data before the first step.
    "prepare": lambda start: None,
    # before_step(net, batch): called with the batch of the next step.
    "before_step": lambda net, batch: None,
    # forget(): release what only the present training needs.
    "forget": lambda: None,
}


class Adagrad(torch.optim.Adagrad):
    """torch's, whose first steps are at most those of Newton's method.

    AdaGrad divides by what the gradients have been. That is rounding, which would become whole
    steps, where an intercept starts from the best constant prediction.
    """

    def __init__(self, params: Iterable[Any], lr: float) -> None:
        super().__init__(params, lr)
        for state in self.state.values():  # torch has it in its default dtype
            state["step"] = state["step"].float()

    def prepare(self, start: Start) -> None:
        """Let the sums of squares be those of the curvature, unless they are there already."""
        (linear,) = start.net.module_.linears
        if start.continuing or linear.bias is None:
            return
        curvature = start.curvature(start.first_rows()).total
        for parameter, each in zip(start.net.module_.parameters(), curvature, strict=True):
            square = (start.net.lr * each).square()
            # It is not finite for features in very large units.
            square = square.where(square.isfinite(), 0.0)
            self.state[parameter]["sum"].copy_(square)


class Fisher(torch.optim.Optimizer):
    """The dropout-Fisher update p <- p - lr * g / D (W, relation to AdaGrad).

    g is the sum of the gradients of a batch's rows, and D the sum over all the rows seen so far
    of a diagonal of the curvature, that of their Fisher information.

    Parameters
    ----------
    params : iterable of torch.nn.Parameter
        What is optimised.
    lr : float
        Step size; 1 is an average over all the rows.

    Examples
    --------
    For squared errors it computes a running mean:

    >>> import torch
    >>> from sklearn_margdrop.training.optimizers import Fisher
    >>> mean = torch.nn.Parameter(torch.zeros(1))
    >>> optimizer = Fisher([mean], lr=1.0)
    >>> for y in (2.0, 4.0, 9.0):
    ...     mean.grad = mean.detach() - y
    ...     optimizer.accumulate([torch.ones(1)], n_rows=1)
    ...     optimizer.step()
    >>> mean.item()
    5.0
    """

    def __init__(self, params: Iterable[Any], lr: float) -> None:
        super().__init__(params, {"lr": lr})
        for p in self._params:
            self.state[p]["sum"] = torch.zeros_like(p)

    @property
    def _params(self) -> list[nn.Parameter]:
        return [p for group in self.param_groups for p in group["params"]]

    def prepare(self, start: Start) -> None:
        """Start as if it had seen as many batches as a row has features, if `lr` is "auto".

        The coordinates of a row move as if each were alone, and would overshoot together until
        they have learned of each other. A feature counts as having been in at least one row.
        """
        known = [state["sum"] > 0 for state in self.state.values()]
        if not start.auto_rate or all(each.all() for each in known):
            return  # it continues with the information of an earlier call
        net, rows = start.net, start.rows
        mean_curvature = partial(net.engine_.mean_curvature, net, start.first_rows())
        squares, *intercept = mean_curvature(centre=net.module_.centre)
        everywhere, *_ = mean_curvature(function=torch.ones_like)
        occurrences, curvature = everywhere, everywhere.mean(1)
        if net.module_.centre is None:  # about its mean, a feature is in every row
            occurrences, *_ = mean_curvature(function=lambda x: x.sign().square())
        tiny = torch.finfo(squares.dtype).tiny
        typical = squares.sum() / occurrences.sum().clamp_min(tiny)
        by_feature = torch.where(squares > 0, squares / occurrences, typical)
        row_size = float((occurrences.sum(1) / curvature.clamp_min(tiny)).mean().clamp_min(1.0))
        # What happens rarely has little information, but is a large surprise when it does.
        information = by_feature * curvature.clamp_min(0.25).unsqueeze(1)
        n_rows = net.batch_size if start.incremental else min(len(rows), net.batch_size)
        information = torch.maximum(n_rows * squares, information)
        intercept = [torch.clamp_min(n_rows * each, 0.25) for each in intercept]
        # Of a stream's first rows, the centred features may be zero.
        first = [
            each.masked_fill(mask, 0.0)
            for each, mask in zip([information, *intercept], known, strict=True)
        ]
        self.accumulate(first, row_size)

    def before_step(self, net: NeuralNet, batch: WeightedRows) -> None:
        """Add the curvature of the batch."""
        information = net.engine_.mean_curvature(
            net, batch, penalty=True, centre=net.module_.centre
        )
        information[0] += net.criterion_.alpha  # the curvature of the L2 penalty
        self.accumulate(information, len(batch.y))

    def accumulate(self, diagonal: Sequence[Tensor], n_rows: float) -> None:
        """Add the curvature of `n_rows` rows, given its mean for each parameter."""
        self._n_rows = n_rows
        for p, each in zip(self._params, diagonal, strict=True):
            self.state[p]["sum"].add_(each, alpha=n_rows)

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]  # no closure
        """One update for the mean loss over the rows that were accumulated last."""
        for group in self.param_groups:
            for p in group["params"]:
                total = self.state[p]["sum"]
                # No information means no gradient of the loss, and nothing to divide by.
                step = torch.where(total > 0, self._n_rows * p.grad / total, 0.0)
                p.sub_(step, alpha=group["lr"])
