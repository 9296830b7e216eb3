"""The units in which a net is trained on a real-valued target."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np
from numpy.typing import DTypeLike, NDArray

#: Units no longer suit rows whose distance from the location is this many times the spread.
_MOST_OFF = 10.0

#: Targets of a stream that are this many spreads away from its mean are refused.
_MOST_FAR = 1e8


@dataclass(frozen=True, eq=False)
class Units:
    """Location and scale of each column of a target.

    Training sees (y - location) / scale.

    Parameters
    ----------
    location : ndarray of shape (n_outputs,)
        Weighted means of the columns; zero where nothing can be subtracted.
    spread : ndarray of shape (n_outputs,)
        Weighted root mean squares about them; zero for a constant column.
    settled : ndarray of bool of shape (n_outputs,)
        The columns whose units do not change as long as later rows suit them.
    mean, deviation : ndarray of shape (n_outputs,)
        The same as location and spread, of all rows, including later ones.
    n_rows : int
        The number of rows.
    weight : float
        Their total weight.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_margdrop.training.units import Units
    >>> units = Units.of(np.array([[1997.0], [1999.0]]), np.ones(2))
    >>> units.location, units.scale, units.encode(np.array([[2000.0]]))
    (array([1998.]), array([1.]), array([[2.]]))
    """

    location: NDArray[np.float64]
    spread: NDArray[np.float64]
    settled: NDArray[np.bool_]
    mean: NDArray[np.float64]
    deviation: NDArray[np.float64]
    n_rows: int
    weight: float

    @classmethod
    def of(cls, y: NDArray[Any], weight: NDArray[np.float64], centred: bool = True) -> Self:
        """The units of rows with positive weights, none of them settled.

        Without `centred`, as for a model without an intercept, the location is zero.
        """
        y = y.astype(np.float64)
        share = weight / weight.max()
        share /= share.sum()
        location = np.zeros(y.shape[1])
        # Values that are not finite are found when the units are checked.
        with np.errstate(over="ignore", invalid="ignore"):
            if centred:
                location = share @ y
                location += share @ (y - location)
                # The mean of equal numbers need not be that number.
                location = np.where((y == y[0]).all(0), y[0], location)
            y = y - location
            largest = np.abs(y).max(0)
            unit = np.where(largest > 0, largest, 1.0)
            spread = unit * np.sqrt(share @ np.square(y / unit))
        nothing = np.zeros(y.shape[1], dtype=bool)
        return cls(location, spread, nothing, location, spread, len(y), float(weight.sum()))

    @property
    def scale(self) -> NDArray[np.float64]:
        """What a column is divided by: the spread, or 1 where that is zero."""
        return np.where(self.spread > 0, self.spread, 1.0)

    def merged(self, other: Units) -> Units:
        """The units of all rows, except for columns that are settled here and suit them."""
        share = other.weight / (self.weight + other.weight)
        shift = other.mean - self.mean
        deviation = np.hypot(np.sqrt(1 - share) * self.deviation, np.sqrt(share) * other.deviation)
        deviation = np.hypot(deviation, np.sqrt(share * (1 - share)) * shift)
        mean = self.mean + share * shift
        n_rows, weight = self.n_rows + other.n_rows, self.weight + other.weight
        rows = Units(mean, deviation, self.settled, mean, deviation, n_rows, weight)
        return self.kept_for(rows)

    def kept_for(self, rows: Units) -> Units:
        """The units of `rows`, except for columns that are settled here and suit them."""
        distance = np.hypot(rows.deviation, rows.mean - self.location)
        suits = (distance <= _MOST_OFF * self.spread) & (
            (rows.deviation == 0) | (rows.deviation * _MOST_OFF >= self.spread)
        )
        stays = self.settled & suits
        return replace(
            rows,
            location=np.where(stays, self.location, rows.location),
            spread=np.where(stays, self.spread, rows.spread),
            settled=self.settled,
        )

    def settle(self, least_rows: int) -> Units:
        """The same units; columns that vary are settled if there are enough rows."""
        enough = (self.spread > 0) & (self.n_rows >= least_rows)
        return replace(self, settled=self.settled | enough)

    def encode(self, y: NDArray[Any]) -> NDArray[np.float64]:
        """Standardised targets, shape (n_samples, n_outputs)."""
        return (y.astype(np.float64) - self.location) / self.scale

    def decode(self, z: NDArray[Any]) -> NDArray[np.float64]:
        """The inverse of :meth:`encode`; a constant column stays constant, whatever `z` is."""
        return z.astype(np.float64) * self.spread + self.location


def conversion(old: Units | None, new: Units | None) -> tuple[NDArray[Any], NDArray[Any]]:
    """Factor and shift of the linear predictor, by column, from `old` units to `new` ones.

    None stands for the units of the user.
    """
    factor, shift = (np.ones(1), np.zeros(1)) if old is None else (old.spread, old.location)
    if new is None:
        return factor, shift
    return factor / new.scale, (shift - new.location) / new.scale


def check_units(units: Units, dtype: DTypeLike) -> None:
    """Raise if the dtype cannot represent predictions in these units."""
    limits, location = np.finfo(np.dtype(dtype)), np.abs(units.location)
    other = " or pass X as float64" if limits.dtype == np.float32 else ""
    with np.errstate(over="ignore", invalid="ignore"):
        sizes = location + 1e3 * units.spread
        blurred = np.spacing(location.astype(dtype)) > 0.25 * units.spread
    tiny = (units.spread > 0) & (units.spread < 1e3 * float(limits.tiny))
    if tiny.any() or not (sizes < float(limits.max)).all():
        raise ValueError(
            f"y has values of up to {sizes.max():.3g} and spreads of {units.spread.min():.3g}, "
            f"too {'small' if tiny.any() else 'large'} for {limits.dtype}. Scale y{other}."
        )
    # Float64 targets themselves are no more precise than that.
    if limits.dtype == np.float32 and (blurred & units.settled).any():
        worst = np.argmax(blurred & units.settled)
        raise ValueError(
            f"y varies by {units.spread[worst]:.3g} about {units.location[worst]:.10g}, which "
            f"predictions of {limits.dtype} cannot resolve. Scale y (subtract its mean){other}."
        )


def standardised(y: np.ndarray, units: Units, dtype: DTypeLike) -> np.ndarray:
    """Targets in these units; raises if the dtype cannot represent their squares."""
    with np.errstate(over="ignore"):
        z = units.encode(y)
    _check_size(z, 1e-3 * float(np.finfo(np.dtype(dtype)).max) ** 0.5)
    return z.astype(dtype)


def check_chunk(y: np.ndarray, units: Units) -> None:
    """Raise if targets are too far from the units that a stream has settled on."""
    with np.errstate(over="ignore"):
        z = units.encode(y)
    _check_size(z[:, units.settled], _MOST_FAR)


def _check_size(z: NDArray[np.float64], most: float) -> None:
    largest = float(np.abs(z).max(initial=0.0))
    if not largest < most:
        raise ValueError(
            f"y is up to {largest:.3g} times as far from the mean of the rows that its units were "
            "taken from as those are. Start anew: call fit with warm_start=False; or scale y."
        )
