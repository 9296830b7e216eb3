"""What ends a training: that it has exploded, say, and where it goes back to then."""

from __future__ import annotations

import math
from typing import Any, NamedTuple, Self

from torch import Tensor

#: An epoch has exploded when its objective is above that of the initial weights and above so many
#: times the lowest so far and a unit; the training gives up when that happens so many times
#: without progress.
MOST_RISE, MOST_RETURNS = 2.0, 10


class StopTraining(Exception):
    """Raised at the end of an epoch to end the training.

    Parameters
    ----------
    reason : {"converged", "stalled", "stopped", "diverged"}
        See :class:`~sklearn_margdrop.training.net.MarginalizedNet`.
    """

    def __init__(self, reason: str):
        super().__init__(reason)
        self.reason = reason


class EpochMeans(NamedTuple):
    """The objective and the noise penalty in it, in nats per sample."""

    objective: float
    penalty: float


class Watch:
    """The lowest objective of an epoch, and the weights that this epoch began with.

    (What it ended with may have exploded in its last step.)
    """

    def __init__(self, objective: float, weights: dict[str, Tensor], unit: float):
        self.initial = self.lowest = objective
        self.initial_weights = self.weights = weights
        self.unit = unit
        self.n_returns = 0  # to these weights

    @classmethod
    def of(cls, state: dict[str, Any]) -> Self:
        """The one whose state it is."""
        watch = cls(state["initial"], state["initial_weights"], state["unit"])
        watch.lowest, watch.n_returns = state["lowest"], state["n_returns"]
        watch.weights = state["weights"] or watch.initial_weights
        return watch

    def state(self) -> dict[str, Any]:
        """All of it; None stands for weights that are the initial ones."""
        weights = None if self.weights is self.initial_weights else self.weights
        return vars(self) | {"weights": weights}

    def has_exploded(self, objective: float) -> bool:
        limit = max(self.initial, MOST_RISE * self.lowest + self.unit)
        return not math.isfinite(objective) or objective > limit

    def see(self, objective: float, weights: dict[str, Tensor]) -> None:
        if objective < self.lowest:
            self.lowest, self.weights = objective, weights
            self.n_returns = 0
