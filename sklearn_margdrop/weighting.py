"""Rows and their weights, in the loss and in the penalty."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor

from sklearn_margdrop.numerics.sparse import Matrix


class Batch(NamedTuple):
    """What one step of training sees.

    Parameters
    ----------
    x : Tensor or SparseMatrix of shape (n_labeled + n_unlabeled, n_features)
        Labelled rows first.
    y : Tensor of shape (n_labeled,) or (n_labeled, K)
        The targets.
    weight : Tensor of shape (n_labeled,) or None
        Sample weights. In `fit` their mean over the training set is 1.
    unlabeled_share : float
        The part of the penalty that the unlabelled rows make up, d m / (n + d m).
    unlabeled_weight : float
        The weight of the average row, unlabelled ones included.

    Examples
    --------
    Three labelled rows and one without, as one step of a classifier sees them:

    >>> import torch
    >>> batch = Batch(torch.randn(4, 2), torch.tensor([0, 2, 1]), unlabeled_share=0.25)
    >>> len(batch.x) - len(batch.y)
    1
    """

    x: Matrix
    y: Tensor
    weight: Tensor | None = None
    unlabeled_share: float = 0.0
    unlabeled_weight: float = 1.0


class RemoteBatch(ABC):
    """Rows that lie elsewhere and compute their part of the objective there."""

    y: Tensor

    @abstractmethod
    def backward(self, objective: Any, network: Any) -> tuple[Tensor, Tensor]:
        """Loss and penalty; their gradient is added to that of the parameters."""

    @abstractmethod
    def mean_curvature(
        self,
        objective: Any,
        network: Any,
        function: Callable[[Tensor], Tensor],
        penalty: bool,
        centre: Tensor | None,
    ) -> list[Tensor]:
        """See :meth:`Objective.mean_curvature`."""


class WeightedRows(NamedTuple):
    """Rows of a batch and their weights in the loss (labelled ones) and in the penalty (all)."""

    x: Matrix
    y: Tensor
    loss_weight: Tensor
    penalty_weight: Tensor
    probes: Tensor | None = None  # where they are drawn already

    def at(self, index: slice) -> WeightedRows:
        x, y, loss_weight, penalty_weight = cast("tuple[Tensor, ...]", self[:4])
        probes = None if self.probes is None else self.probes[index]
        # Of the labelled rows, which come first, there may be none.
        return WeightedRows(x[index], y[index], loss_weight[index], penalty_weight[index], probes)


def weighted(batch: Batch | WeightedRows) -> WeightedRows:
    """The rows of a batch, with weights that make sums of them means."""
    if isinstance(batch, WeightedRows):
        return batch
    x, y, weight, share, unlabeled_weight = batch
    n_labeled, n_unlabeled = len(y), len(x) - len(y)
    if weight is None:
        weight = torch.full((n_labeled,), 1 / n_labeled, dtype=x.dtype, device=x.device)
    else:
        weight = weight / n_labeled
    if not n_unlabeled:
        return WeightedRows(x, y, weight, weight)
    unlabeled = weight.new_full((n_unlabeled,), share * unlabeled_weight / n_unlabeled)
    return WeightedRows(x, y, weight, torch.cat([(1 - share) * weight, unlabeled]))
