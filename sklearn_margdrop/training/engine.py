"""The engine, which evaluates the objective: in this process, unless a fit has another one."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from sklearn_margdrop.numerics.memory import blocks
from sklearn_margdrop.numerics.sparse import products_about
from sklearn_margdrop.objective import Terms
from sklearn_margdrop.training.batches import Rows
from sklearn_margdrop.training.prediction import PredictingNet
from sklearn_margdrop.weighting import WeightedRows


def every(step: int, n_rows: int, width: int) -> list[slice]:
    """Every `step`-th row, in blocks that fit into the cache.

    Examples
    --------
    >>> from sklearn_margdrop.training.engine import every
    >>> every(3, 10, 5)
    [slice(0, 10, 3)]
    """
    cut = blocks(-(-n_rows // step), width, in_cache=True)
    return [slice(step * b.start, min(step * b.stop, n_rows), step) for b in cut]


class Engine:
    """Evaluates the objective of a net in this process alone.

    Subclasses share the work with other processes, or let the machines that hold the rows do it.
    A net holds an engine until its fit has ended.

    Attributes
    ----------
    part : tuple of (int, int)
        The index of the part of each batch that this process evaluates, and the number of parts.
    """

    part: tuple[int, int] = (0, 1)

    def begin(self, net: PredictingNet, rows: Rows, valid: Rows | None, epochs: int) -> None:
        """Prepare the training."""

    def differentiate(self, net: PredictingNet, rows: WeightedRows) -> Terms:
        """The terms of the objective; their gradient is added to that of the parameters."""
        return net.criterion_.backward(net.module_, rows, net.generator_)

    def mean_curvature(
        self, net: PredictingNet, rows: WeightedRows, **options: Any
    ) -> list[Tensor]:
        """See :meth:`Objective.mean_curvature`."""
        return net.criterion_.mean_curvature(net.module_, rows, **options)

    def covariance(self, rows: Rows, step: int, centre: Tensor | None) -> Tensor:
        """Weighted products of all pairs of features about `centre`, summed over the rows.

        Of the labelled rows, every `step`-th one is taken. Shape (n_features, n_features).
        """
        parts = []
        for part in every(step, len(rows), rows.features.shape[1]):
            x, _, weight, _ = rows.batch(part)
            parts.append(products_about(x, centre, weight * len(weight)))
        return functools.reduce(torch.add, parts)

    def linear_predictor(self, net: PredictingNet, rows: Rows) -> Tensor:
        """The linear predictor of all rows, without noise."""
        return net.linear_predictor(rows)

    def sum(self, value: float) -> float:
        """The sum of a number over all processes."""
        return value

    def agreed(self, reason: str | None) -> str | None:
        """The reason to end the training, if any process has one (its clock, for example)."""
        return (reason or "stopped") if self.sum(float(reason is not None)) > 0 else None

    def wait(self) -> None:
        """Wait until all processes call this method."""
