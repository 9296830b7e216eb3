"""Targets: what a model predicts, encoded for training and decoded again; numbers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Self

import numpy as np
import torch
from numpy.typing import DTypeLike
from sklearn.utils import check_array
from torch import Tensor

from sklearn_margdrop.estimators.validation import as_vector, check_range
from sklearn_margdrop.families import FAMILIES, Family
from sklearn_margdrop.training.batches import Rows
from sklearn_margdrop.training.units import Units, check_chunk, check_units, standardised

#: Rows after which the units of a stream's target stay as they are.
_ROWS_THAT_SETTLE = 100


@dataclass(frozen=True, eq=False, kw_only=True)
class Target(ABC):
    """What a fit has found out about its target. Never changed: each fit makes its own.

    Parameters
    ----------
    family : Family
    n_outputs : int
        Columns of the linear predictor.
    units : Units, default=None
        What training sees the target standardised by; None where it sees the target itself.
    """

    family: Family
    n_outputs: int
    units: Units | None = None

    #: Whether validation rows are to have the same shares of the targets as training rows.
    stratifies: ClassVar[bool] = False

    @abstractmethod
    def encode(self, y: Any, dtype: DTypeLike) -> np.ndarray:
        """`y` as the family takes it; raises where it is not like the target of the fit."""

    @abstractmethod
    def check_continued(self, known: Any, y: np.ndarray, incremental: bool) -> None:
        """Raise where a fit to `known` cannot go on with this target, encoded as `y`."""

    def row_weights(
        self, y: np.ndarray, weight: np.ndarray, class_weight: Any, incremental: bool
    ) -> np.ndarray | float:
        """The factor of the sample weights that depends on the encoded target."""
        return 1.0

    def standardise(
        self, y: np.ndarray, dtype: DTypeLike, weight: np.ndarray | None = None
    ) -> np.ndarray:
        """The encoded target in its units; rows without weight may be far from them."""
        return y

    @abstractmethod
    def mean(self, rows: Rows, incremental: bool) -> Tensor:
        """The mean of each output, inside of the range of the family's means."""

    @abstractmethod
    def constant_loss(self, rows: Rows) -> float:
        """The loss of the best constant prediction."""

    @abstractmethod
    def loss_of_zeros(self, rows: Rows) -> float:
        """The loss of a linear predictor of zero."""

    def loss_unit(self, rows: Rows) -> float:
        """What the tolerance of the objective is measured in, in nats."""
        return 1.0

    def is_constant(self, rows: Rows) -> Tensor:
        """The outputs whose target is the same in all rows."""
        return torch.zeros(self.n_outputs, dtype=torch.bool, device=rows.y.device)

    @abstractmethod
    def score(self, eta: Tensor, y: Tensor, weight: Tensor | None) -> float:
        """The score of a linear predictor, given the encoded target."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Numbers(Target):
    """Numbers, in one or several columns."""

    @classmethod
    def of(
        cls, y: Any, dtype: DTypeLike, family: Family, known: Numbers | None = None
    ) -> tuple[Numbers, np.ndarray]:
        """The target, and `y` as a matrix of numbers that are in the range of the family."""
        dtype = np.float64 if family.standardised else dtype
        y = as_vector(check_array(y, input_name="y", ensure_2d=False, dtype=dtype))
        if (y < family.lowest).any():
            raise ValueError(
                f"y has negative values, which family={family.name!r} does not allow: its targets "
                f"are at least {family.lowest:g}."
            )
        if family.lowest < 0 and not family.standardised:
            check_range(y, "y", y.dtype)
        if (y > family.highest).any():
            raise ValueError(
                f"y has values above {family.highest:g}, which family={family.name!r} does not "
                "allow."
            )
        y = y.reshape(len(y), -1)
        if known is not None and y.shape[1] != known.n_outputs:
            raise ValueError(f"y has {y.shape[1]} columns, but {known.n_outputs} were fitted.")
        return cls(family=family, n_outputs=y.shape[1]), y

    def encode(self, y: Any, dtype: DTypeLike) -> np.ndarray:
        return self.of(y, dtype, self.family, self)[1]

    def check_continued(self, known: Any, y: np.ndarray, incremental: bool) -> None:
        before, now = known.family, self.family
        if before.name != now.name:
            raise ValueError(
                f"family was {before.name!r} in the previous call, and is {now.name!r} now. Start "
                "anew: call fit with warm_start=False."
            )

    def with_units_of(
        self, y: np.ndarray, weight: np.ndarray, centred: bool, known: Any, incremental: bool
    ) -> Self:
        """The same in the units of training rows, or in those of the fit that it goes on from."""
        if incremental and known is not None:
            check_chunk(y, known.units_for(centred))
        return self.with_units(Units.of(y, weight, centred), centred, known, incremental)

    def with_units(self, seen: Units, centred: bool, known: Any, incremental: bool) -> Self:
        """The same, given the units of the training rows.

        A stream settles on its units once it has seen enough rows. They stay in a warm start, too,
        unless its target is in other units. Without an intercept they are not `centred`.
        """
        if known is not None:
            before = known.units_for(centred)
            seen = before.merged(seen) if incremental else before.kept_for(seen)
        return replace(self, units=seen.settle(_ROWS_THAT_SETTLE if incremental else 1))

    def units_for(self, centred: bool) -> Units:
        """Those of the fit so far, also where `fit_intercept` has changed since."""
        assert self.units is not None
        if centred:
            return self.units
        zeros = np.zeros_like(self.units.location)
        size = np.hypot(self.units.mean, self.units.deviation)
        return replace(self.units, location=zeros, mean=zeros, deviation=size)

    def standardise(
        self, y: np.ndarray, dtype: DTypeLike, weight: np.ndarray | None = None
    ) -> np.ndarray:
        if self.units is None:
            return y
        check_units(self.units, dtype)
        if weight is not None:
            y = np.where(weight[:, None] > 0, y, self.units.location)
        return standardised(y, self.units, dtype)

    def mean(self, rows: Rows, incremental: bool) -> Tensor:
        mean = _mean(rows).clamp_max(self.family.highest - 1e-3)
        if self.family.lowest < 0:
            return mean
        if incremental:  # a chunk may hold zeros alone
            return (mean * len(rows) + 1) / (len(rows) + 1)
        return torch.where(mean > 0, mean, 1e-3)

    def is_constant(self, rows: Rows) -> Tensor:
        return (rows.y == rows.y[0]).all(0)

    def constant_loss(self, rows: Rows) -> float:
        losses = self._losses_at(rows, _link(self.family, _mean(rows)))
        return abs(float(losses.where(~self.is_constant(rows), 0.0).sum()))

    def loss_of_zeros(self, rows: Rows) -> float:
        return float(self._losses_at(rows, torch.zeros_like(rows.y[0])).sum())

    def loss_unit(self, rows: Rows) -> float:
        return self.constant_loss(rows) or 1.0

    def _losses_at(self, rows: Rows, eta: Tensor) -> Tensor:
        """The mean loss of each column for a constant linear predictor."""
        family, total = self.family, float(rows.total(_total_weight))
        return rows.total(lambda y, weight: _losses_by_column(family, eta, y, weight / total))

    def score(self, eta: Tensor, y: Tensor, weight: Tensor | None) -> float:
        """D^2 averaged over the columns; scikit-learn's conventions for a constant one."""
        share = None if weight is None else weight / weight.sum()
        losses = _losses_by_column(self.family, eta, y, share)
        weight = torch.ones_like(y[:, 0]) if weight is None else weight.to(y)
        share = weight / weight.sum()
        of_the_mean = _losses_by_column(self.family, _link(self.family, share @ y), y, share)
        of_the_mean = of_the_mean.where((y != y[0]).any(0), 0.0)
        explained = 1 - losses / of_the_mean
        return float(explained.where(of_the_mean > 0, (losses == 0).to(losses)).mean())


def family_of_numbers(name: Any) -> Family:
    """The family of numbers of that name."""
    allowed = [each for each, family in FAMILIES.items() if not family.labels]
    if not isinstance(name, str) or name not in allowed:
        raise ValueError(f"family must be one of {allowed}; got {name!r}.")
    return FAMILIES[name]()


def _total_weight(y: Tensor, weight: Tensor) -> Tensor:
    return weight.sum()


def _mean(rows: Rows) -> Tensor:
    """The weighted mean of each column."""
    total = float(rows.total(_total_weight))
    return rows.total(lambda y, weight: (weight / total) @ y)


def _link(family: Family, mean: Tensor) -> Tensor:
    tiny = torch.finfo(mean.dtype).tiny
    return family.link(mean.clamp_min(tiny) if family.lowest == 0 else mean)


def _losses_by_column(family: Family, eta: Tensor, y: Tensor, share: Tensor | None) -> Tensor:
    """The mean half deviance of each column of `y`, with weights that add up to one."""
    columns = zip(eta.expand_as(y).T.unsqueeze(-1), y.T.unsqueeze(-1), strict=True)
    losses = torch.stack([family.loss(*column) for column in columns])
    return losses.mean(1) if share is None else losses @ share.to(losses)
