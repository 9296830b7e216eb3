"""The choice of the retain rates from the data, by short trainings on a part of the rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from sklearn_margdrop.estimators.nets import TargetNet, losses_of
from sklearn_margdrop.training.batches import Rows

#: What is chosen from: retain rates at the input and at hidden layers, the usual ones first and
#: those of the strongest noise last.
RETAIN_RATES = (0.95, 0.5), (1.0, 1.0), (0.8, 0.5), (0.5, 0.5)

#: The steps of a short training, and its learning rate over that of the fit. Their product decides
#: how far a training gets, which has to be as far as where it learns the rows by heart.
N_STEPS, TRIAL_RATE = 250, 3.0

#: The part of the rows that judges the short trainings, and the most rows that do.
_HELD_OUT = 0.2, 5000

#: Fewer rows than this tell nothing.
_FEWEST_ROWS = 20


def rates_of(rates: tuple[float, float], sites: Sequence[int]) -> list[float]:
    """The retain rate of each site; those of all hidden layers are the same."""
    return [rates[min(site, 1)] for site in sites]


def choose(
    candidates: Sequence[tuple[float, float]],
    sites: Sequence[int],
    train: Callable[[tuple[float, float], Rows, int], TargetNet],
    rows: Rows,
    valid: Rows | None,
    batch_size: int,
) -> tuple[tuple[float, float], Mapping[tuple[float, float], float]]:
    """Those of the candidates whose short training predicts the held-out rows best.

    The usual ones, which come first, are kept unless others are better by more than the standard
    error of the mean difference. The same rows are always split in the same way.

    Parameters
    ----------
    candidates : sequence of tuple of (float, float)
        Some of :data:`RETAIN_RATES`.
    sites : sequence of int
        The noisy ones.
    train : callable
        ``train(rates, rows, epochs)`` returns a net that was trained with these rates.
    rows : Rows
        The training rows.
    valid : Rows or None
        Held-out rows, if there are some already.
    batch_size : int

    Returns
    -------
    rates : tuple of (float, float)
    losses : mapping of tuple to float
        The mean losses on the held-out rows, in nats; empty where there are too few.
    """
    if len(rows) < _FEWEST_ROWS:
        return candidates[0], {}
    order = torch.randperm(len(rows), generator=torch.Generator("cpu").manual_seed(0))
    if valid is None:
        share, most = _HELD_OUT
        n_valid = min(math.ceil(share * len(rows)), most)
        valid, order = rows.subset(order[:n_valid]), order[n_valid:]
    chosen_from = rows.subset(order[: N_STEPS * batch_size])
    epochs = math.ceil(N_STEPS / math.ceil(len(chosen_from) / batch_size))
    distinct = {tuple(rates_of(rates, sites)): rates for rates in reversed(candidates)}
    losses: dict[tuple[float, float], Tensor] = {}
    for rates in sorted(distinct.values(), key=candidates.index):
        losses[rates] = losses_of(train(rates, chosen_from, epochs), valid)
    weight = torch.ones(len(valid), dtype=torch.float64, device="cpu")
    if valid.weight is not None:
        weight = valid.weight.cpu().double()
    means = {rates: float(each @ weight / weight.sum()) for rates, each in losses.items()}
    usual, best = candidates[0], min(means, key=means.__getitem__)
    if math.isinf(means[usual]):
        return best, means
    gain = (losses[usual] - losses[best]) * weight / weight.mean()
    is_clear = float(gain.mean()) > float(gain.std()) / math.sqrt(len(gain))
    return best if is_clear else usual, means
