"""Where the objective is evaluated: in this process, unless a fit brings another engine."""

from __future__ import annotations

from collections.abc import Callable

import torch
from skorch import NeuralNet
from torch import Tensor

from sklearn_margdrop.objective import Terms
from sklearn_margdrop.training.batches import Rows
from sklearn_margdrop.weighting import WeightedRows


class Engine:
    """Evaluates the objective of a net in this process alone.

    Subclasses share the work with other processes, or leave it to where the rows lie. A net
    holds one of them until its fit has ended.

    Attributes
    ----------
    part : tuple of (int, int)
        Which part of the rows of each batch this process takes, and of how many.
    """

    part: tuple[int, int] = (0, 1)

    def begin(self, net: NeuralNet, rows: Rows, valid: Rows | None, epochs: int) -> None:
        """Prepare the training."""

    def differentiate(self, net: NeuralNet, rows: WeightedRows) -> Terms:
        """The terms of the objective; their gradient is added to that of the parameters."""
        terms: Terms = net.criterion_.backward(net.module_, rows, net.generator_)
        return terms

    def evaluate(self, net: NeuralNet, rows: WeightedRows, generator: torch.Generator) -> Terms:
        """The terms of this process's part of the rows, which :meth:`sum` adds up."""
        terms: Terms = net.criterion_(net.module_, rows, generator, self.part)
        return terms

    def mean_curvature(
        self,
        net: NeuralNet,
        rows: WeightedRows,
        function: Callable[[Tensor], Tensor] = torch.square,
        penalty: bool = False,
        centre: Tensor | None = None,
    ) -> list[Tensor]:
        """See :meth:`Objective.mean_curvature`."""
        found: list[Tensor] = net.criterion_.mean_curvature(
            net.module_, rows, function, penalty, centre
        )
        return found

    def linear_predictor(self, net: NeuralNet, rows: Rows) -> Tensor:
        """What the net makes of all of the rows without noise."""
        eta: Tensor = net.linear_predictor(rows)
        return eta

    def sum(self, value: float) -> float:
        """The sum of a number over all processes."""
        return value

    def agreed(self, reason: str | None) -> str | None:
        """Why the training ends; None where no process has a reason."""
        return reason

    def wait(self) -> None:
        """Wait until all processes are here."""
