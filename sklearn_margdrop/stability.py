"""What tells that the training has exploded, and where it goes back to."""

from __future__ import annotations

import math

from torch import Tensor

#: An epoch has exploded when its objective is above that of the initial weights and above so many
#: times the lowest so far and a unit; the training gives up when that happens so many times
#: without progress.
MOST_RISE, MOST_RETURNS = 2.0, 10


class Watch:
    """The lowest objective of an epoch, and the weights that this epoch began with.

    (What it ended with may have exploded in its last step.)
    """

    def __init__(self, objective: float, weights: dict[str, Tensor], unit: float):
        self.initial = self.lowest = objective
        self.initial_weights = self.weights = weights
        self.unit = unit
        self.n_returns = 0  # to these weights

    def has_exploded(self, objective: float) -> bool:
        limit = max(self.initial, MOST_RISE * self.lowest + self.unit)
        return not math.isfinite(objective) or objective > limit

    def see(self, objective: float, weights: dict[str, Tensor]) -> None:
        if objective < self.lowest:
            self.lowest, self.weights = objective, weights
            self.n_returns = 0
