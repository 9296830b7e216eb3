"""Explosions of the objective, and the exception that ends a training."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

#: An epoch has exploded if its objective is above that of the initial weights and above MOST_RISE
#: times the lowest so far plus a unit. The training gives up after MOST_RETURNS explosions without
#: progress.
MOST_RISE, MOST_RETURNS = 2.0, 10


#: What torch's optimisers call their mean gradients.
_MEANS = "exp_avg", "momentum_buffer"

#: Numbers below this multiple of the smallest normal one are next to nothing.
_NEXT_TO_NOTHING = 2.0**23


@torch.no_grad()
def drop_next_to_nothing(optimizer: Any) -> None:
    """Set parameters that are next to nothing to zero, and the mean gradients kept of them.

    The weights of a feature that is always zero, a dark pixel say, only decay. Once they are
    subnormal numbers, products with them take up to sixty times as long.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.requires_grad:
                state = optimizer.state.get(parameter, {})
                means = (state[name] for name in _MEANS if state.get(name) is not None)
                for values in (parameter, *means):
                    limit = _NEXT_TO_NOTHING * torch.finfo(values.dtype).tiny
                    values.masked_fill_(values.abs() < limit, 0.0)


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


class ExplosionGuard:
    """Takes back an epoch that has exploded, and halves the learning rate.

    It returns to the weights with which the epoch of the lowest objective began. (The weights at
    the end of that epoch may have exploded in its last step.)

    Parameters
    ----------
    unit : float or None
        The unit of the objective, in nats. None lets the objective rise until it is not finite.

    Attributes
    ----------
    initial, lowest : float
        The objective of the initial weights, and the lowest of an epoch so far.
    weights : dict or None
        The weights to which it returns; None before the first epoch and after the last.
    has_learned : bool
        Whether these are better than the initial ones.
    n_returns : int
        How often it has returned to these weights.
    n_explosions : int
        How often it has returned to any.
    """

    def __init__(self, unit: float | None):
        self.unit = unit
        self.initial = self.lowest = math.inf
        self.weights: dict[str, Tensor] | None = None
        self.has_learned = False
        self.n_returns = self.n_explosions = 0

    def run(
        self, net: Any, epoch: Callable[[], EpochMeans], evaluate: Callable[[], float]
    ) -> EpochMeans:
        """Run an epoch of `net` until its objective does not explode."""
        if self.unit is None:
            means = epoch()
            if self.has_exploded(means.objective):
                raise StopTraining("diverged")
            return means
        before = net.copy_weights()
        if self.weights is None:
            self.initial = self.lowest = evaluate()
            self.weights = before
        means = epoch()
        while self.has_exploded(means.objective):
            if self.n_returns == MOST_RETURNS:
                raise StopTraining("diverged")
            self.n_returns += 1
            self.n_explosions += 1
            before = self.weights
            net.module_.load_state_dict(before)
            net.optimizer_.state.clear()
            net.rates_.scale(net, 0.5)
            means = epoch()
        if means.objective < self.lowest:
            self.lowest, self.n_returns = means.objective, 0
            self.has_learned |= before is not self.weights
            self.weights = before
        return means

    def has_exploded(self, objective: float) -> bool:
        if self.unit is None:
            return not math.isfinite(objective)
        limit = max(self.initial, MOST_RISE * self.lowest + self.unit)
        return not math.isfinite(objective) or objective > limit
