"""Where the objective is evaluated: here, or elsewhere by what is derived from it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from skorch import NeuralNet
from torch import Tensor

from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.objective import Objective, Terms
from sklearn_margdrop.training.batches import Rows
from sklearn_margdrop.weighting import WeightedRows


class Engine:
    """Evaluates the objective in this process alone.

    A net holds one. That of a fit may share the work among processes, or leave it to where the
    rows lie; it is the net's for the time of that fit.

    Attributes
    ----------
    part : tuple of (int, int)
        Which part of the rows of each batch this process takes, and of how many.
    """

    part: tuple[int, int] = (0, 1)

    def begin(self, net: NeuralNet, rows: Rows, valid: Rows | None, epochs: int) -> None:
        """Prepare a training of `net`."""

    def differentiate(
        self,
        objective: Objective,
        network: NoisyNetwork,
        rows: WeightedRows,
        generator: torch.Generator,
    ) -> Terms:
        """The terms of the objective; their gradient is added to that of the parameters."""
        return objective.backward(network, rows, generator)

    def evaluate(
        self,
        objective: Objective,
        network: NoisyNetwork,
        rows: WeightedRows,
        generator: torch.Generator,
    ) -> Terms:
        """The share that this process has of the terms, which :meth:`sum` adds up."""
        terms: Terms = objective(network, rows, generator, self.part)
        return terms

    def mean_curvature(
        self,
        objective: Objective,
        network: NoisyNetwork,
        rows: WeightedRows,
        function: Callable[[Tensor], Tensor] = torch.square,
        penalty: bool = False,
        centre: Tensor | None = None,
    ) -> list[Tensor]:
        """See :meth:`Objective.mean_curvature`."""
        return objective.mean_curvature(network, rows, function, penalty, centre)

    def linear_predictor(self, net: NeuralNet, rows: Rows) -> Tensor:
        """That of `net` for all of the rows."""
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
