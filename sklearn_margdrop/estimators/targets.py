"""What the estimators know of their targets: labels of classes, or numbers."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike, NDArray
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.metrics import accuracy_score
from sklearn.utils import check_array, check_consistent_length
from torch import Tensor

from sklearn_margdrop.estimators.nets import ClassifierNet, RegressorNet, logits, most_probable
from sklearn_margdrop.estimators.validation import (
    as_vector,
    check_finite,
    check_range,
    check_weights,
    class_weights,
    encode_labels,
)
from sklearn_margdrop.families import FAMILIES, Bernoulli, Categorical, Family
from sklearn_margdrop.notices import warn
from sklearn_margdrop.numerics.ambient import neutral
from sklearn_margdrop.numerics.csr import MatrixLike
from sklearn_margdrop.numerics.devices import to_tensor
from sklearn_margdrop.training.batches import Rows
from sklearn_margdrop.training.units import Units, check_chunk, check_units, standardised

#: The score of validation rows from their linear predictor, encoded target and weights.
Scorer: TypeAlias = Callable[[Tensor, Tensor, Tensor | None], float]


#: Rows after which the units of a stream's target stay as they are.
_ROWS_THAT_SETTLE = 100


class LabelTarget(ClassifierMixin):
    """Class labels: bernoulli for two classes, categorical for more."""

    classes_: NDArray[Any]

    _net = ClassifierNet

    if TYPE_CHECKING:  # the rest of the estimator

        def _linear_predictor(self, X: MatrixLike) -> Tensor: ...
        def _has_location(self) -> bool: ...
        def score(
            self, X: MatrixLike, y: ArrayLike, sample_weight: ArrayLike | None = None
        ) -> float: ...

    def _encode_target(
        self, y: ArrayLike, dtype: DTypeLike, continuing: bool, classes: ArrayLike | None
    ) -> np.ndarray:
        known = self.classes_ if continuing else None
        codes, self.classes_ = encode_labels(y, known, classes)
        return codes.astype(dtype)[:, None] if len(self.classes_) == 2 else codes

    def _check_continued(self, y: np.ndarray, incremental: bool) -> None:
        if incremental:
            return
        seen = self.classes_[np.unique(y).astype(int)]
        if len(seen) < len(self.classes_):
            raise ValueError(
                "warm_start can only be used where y has the same classes as in the previous "
                f"call: they were {self.classes_!r}, and y has {seen!r}. Call partial_fit, or "
                "start anew: call fit with warm_start=False."
            )

    def _target_weight(
        self, y: np.ndarray, weight: np.ndarray, incremental: bool
    ) -> np.ndarray | float:
        if self.class_weight is None:
            return 1.0
        if incremental and self.class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' is not supported by partial_fit, which sees only a "
                "chunk of the classes' frequencies; pass a dict, e.g. from "
                "sklearn.utils.class_weight.compute_class_weight."
            )
        return class_weights(self.class_weight, y.astype(int).ravel(), self.classes_, weight)

    @property
    def _stratifies(self) -> bool:
        return True

    def _family(self) -> tuple[Family, int]:
        n_classes = len(self.classes_)
        return (Bernoulli(), 1) if n_classes == 2 else (Categorical(), n_classes)

    def _constant_loss(self, rows: Rows) -> float:
        share = self._shares(rows)
        return -float(torch.xlogy(share, share).sum())

    def _loss_to_beat(self, rows: Rows) -> float:
        """That of the best constant that the model can predict."""
        return self._constant_loss(rows) if self._has_location() else math.log(len(self.classes_))

    def _is_constant(self, rows: Rows) -> Tensor:
        return torch.zeros(self._family()[1], dtype=torch.bool, device=rows.y.device)

    def _shares(self, rows: Rows) -> Tensor:
        counts = rows.total(partial(_class_totals, len(self.classes_)))
        return counts / counts.sum()

    def _mean_target(self, rows: Rows, incremental: bool) -> Tensor:
        """The share of each class, or of the second of two, and never 0 or 1."""
        share = self._shares(rows)
        if incremental:  # a chunk is a sample of classes that it need not all hold
            share = (share * len(rows) + 1) / (len(rows) + len(share))
        share = share.clamp(1e-3, 1 - 1e-3)
        return share[1:].reshape(-1) if len(share) == 2 else share

    def _scorer(self) -> Scorer:
        return _validation_accuracy

    @neutral()
    def predict(self, X: MatrixLike) -> NDArray[Any]:
        """Predict the most probable class.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Data.

        Returns
        -------
        ndarray of shape (n_samples,)
            Class labels.
        """
        index = most_probable(check_finite(self._linear_predictor(X))).cpu().numpy()
        labels: NDArray[Any] = self.classes_[index]
        return labels

    @neutral()
    def predict_proba(self, X: MatrixLike) -> NDArray[Any]:
        """Predict the probability of each class.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Data.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Probabilities, with the classes in the order of `classes_`.
        """
        return logits(check_finite(self._linear_predictor(X))).softmax(-1).cpu().numpy()

    @neutral()
    def predict_log_proba(self, X: MatrixLike) -> NDArray[Any]:
        """Predict the logarithm of the probability of each class.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Data.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Log-probabilities, finite even where the probability underflows.
        """
        return logits(check_finite(self._linear_predictor(X))).log_softmax(-1).cpu().numpy()

    @neutral()
    def decision_function(self, X: MatrixLike) -> NDArray[Any]:
        """The linear predictor.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Data.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_classes)
            The log-odds of ``classes_[1]`` for two classes, else one logit for each class.
        """
        eta: NDArray[Any] = check_finite(self._linear_predictor(X)).cpu().numpy()
        return eta[:, 0] if eta.shape[1] == 1 else eta


class NumberTarget(RegressorMixin):
    """Numbers, in one or several columns, of the family that the parameter `family` names."""

    n_outputs_: int

    _net = RegressorNet
    _stratifies = False

    if TYPE_CHECKING:  # the rest of the estimator
        _fitted_units: Units | None

        def _linear_predictor(self, X: MatrixLike) -> Tensor: ...
        def _fitted_family(self) -> Family: ...
        def _dtype(self) -> type[np.floating]: ...
        def _has_location(self) -> bool: ...

    def _encode_target(
        self, y: ArrayLike, dtype: DTypeLike, continuing: bool, classes: ArrayLike | None
    ) -> np.ndarray:
        family = self._target_family()
        target = _check_target(y, family, np.float64 if family.standardised else dtype)
        if continuing:
            self._check_columns(target.shape[1])
        self.n_outputs_ = target.shape[1]
        return target

    def _check_continued(self, y: np.ndarray, incremental: bool) -> None:
        before, now = self._fitted_family(), self._target_family()
        if before.name != now.name:
            raise ValueError(
                f"family was {before.name!r} in the previous call, and is {now.name!r} now. Start "
                "anew: call fit with warm_start=False."
            )

    def _check_columns(self, n_columns: int) -> None:
        if n_columns != self.n_outputs_:
            raise ValueError(f"y has {n_columns} columns, but {self.n_outputs_} were fitted.")

    def _in_units(
        self,
        y: np.ndarray,
        weight: np.ndarray,
        train: np.ndarray,
        dtype: type[np.floating],
        continuing: bool,
        incremental: bool,
    ) -> tuple[np.ndarray, Units | None]:
        if not self._target_family().standardised:
            return y, None
        if continuing and incremental:
            check_chunk(y[train], self._known_units())
        seen = Units.of(y[train], weight[train], self._has_location())
        units = self._units(seen, dtype, continuing, incremental)
        y = np.where(weight[:, None] > 0, y, units.location)
        return standardised(y, units, dtype), units

    def _units(self, seen: Units, dtype: DTypeLike, continuing: bool, incremental: bool) -> Units:
        """What the target is standardised by, given the units of its labelled rows.

        A stream settles on its units once it has seen enough rows. They stay in a warm start, too,
        unless its target is in other units.
        """
        if continuing:
            known = self._known_units()
            seen = known.merged(seen) if incremental else known.kept_for(seen)
        units = seen.settle(_ROWS_THAT_SETTLE if incremental else 1)
        check_units(units, dtype)
        return units

    def _known_units(self) -> Units:
        """Those of the fit so far."""
        known = self._fitted_units
        if known is None:  # a model of an earlier version
            zeros, ones = np.zeros(self.n_outputs_), np.ones(self.n_outputs_)
            return Units(zeros, ones, ones > 0, zeros, ones, 0, 0.0)
        if self._has_location():
            return known
        zeros = np.zeros_like(known.location)
        size = np.hypot(known.mean, known.deviation)
        return replace(known, location=zeros, mean=zeros, deviation=size)

    def _family(self) -> tuple[Family, int]:
        return self._target_family(), self.n_outputs_

    def _target_family(self) -> Family:
        allowed = [name for name, family in FAMILIES.items() if not family.labels]
        if not isinstance(self.family, str) or self.family not in allowed:
            raise ValueError(f"family must be one of {allowed}; got {self.family!r}.")
        return FAMILIES[self.family]()

    def _scorer(self) -> Scorer:
        return partial(_explained_deviance, self._target_family())

    def _mean_target(self, rows: Rows, incremental: bool) -> Tensor:
        """The mean of each column, in the range of the family's means."""
        mean = _mean(rows)
        mean = mean.clamp_max(self._target_family().highest - 1e-3)
        if self._target_family().lowest < 0:
            return mean
        if incremental:  # a chunk may hold zeros alone
            return (mean * len(rows) + 1) / (len(rows) + 1)
        return torch.where(mean > 0, mean, 1e-3)

    def _is_constant(self, rows: Rows) -> Tensor:
        return (rows.y == rows.y[0]).all(0)

    def _constant_loss(self, rows: Rows) -> float:
        losses = self._losses_at(rows, _link(self._target_family(), _mean(rows)))
        return abs(float(losses.where(~self._is_constant(rows), 0.0).sum()))

    def _loss_to_beat(self, rows: Rows) -> float:
        """That of the best constant that the model can predict."""
        if self._has_location():
            return self._constant_loss(rows)
        return float(self._losses_at(rows, torch.zeros_like(rows.y[0])).sum())

    def _losses_at(self, rows: Rows, eta: Tensor) -> Tensor:
        """The mean loss of each column for a constant linear predictor."""
        total = float(rows.total(_total_weight))
        return rows.total(partial(_losses_of, self._target_family(), eta, total))

    def _loss_unit(self, rows: Rows) -> float:
        return self._constant_loss(rows) or 1.0

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        family = FAMILIES.get(str(self.family))
        bounded = family is not None and family.lowest >= 0
        # scikit-learn's check of several outputs draws negative targets, whatever the tags say.
        tags.target_tags.multi_output = not bounded
        tags.target_tags.positive_only = bounded
        return tags

    @neutral()
    def predict(self, X: MatrixLike) -> NDArray[Any]:
        """Predict the mean of the target.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Data.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_outputs)
            Predictions, in the shape of the target seen during `fit`.
        """
        eta = check_finite(self._linear_predictor(X))
        dtype = torch.from_numpy(np.empty(0, self._dtype())).dtype
        mean = check_finite(self._fitted_family().mean(eta).to(dtype)).cpu().numpy()
        return mean[:, 0] if self.n_outputs_ == 1 else mean

    @neutral()
    def score(self, X: MatrixLike, y: ArrayLike, sample_weight: ArrayLike | None = None) -> float:
        """The fraction of deviance explained, D^2; the usual R^2 for the normal family.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Data.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            True targets.
        sample_weight : array-like of shape (n_samples,), default=None
            Non-negative weights.

        Returns
        -------
        float
            At most 1; 0 for a constant prediction of the mean, averaged over the outputs. It is
            nan, with a warning, for fewer than two rows.
        """
        eta = check_finite(self._linear_predictor(X)).cpu().double()
        family = self._fitted_family()
        check_finite(family.mean(eta))
        target = to_tensor(_check_target(y, family, np.float64), eta.device)
        self._check_columns(target.shape[1])
        if self._fitted_units is not None:  # the same, in units whose squares are numbers
            encode = self._fitted_units.encode
            eta, target = (torch.from_numpy(encode(each.numpy())) for each in (eta, target))
        check_consistent_length(eta, target, sample_weight)
        if len(target) < 2:
            # As scikit-learn's scores do, in their words.
            message = "D^2 score is not well-defined with less than two samples."
            warn(message, UndefinedMetricWarning)
            return float("nan")
        weight = None
        if sample_weight is not None:
            weight = torch.from_numpy(check_weights(sample_weight, target))
        return _explained_deviance(family, eta, target, weight)


def _validation_accuracy(eta: Tensor, y: Tensor, weight: Tensor | None) -> float:
    codes, predicted = y.long().ravel().cpu().numpy(), most_probable(eta).cpu().numpy()
    sample_weight = None if weight is None else weight.cpu().numpy()
    return float(accuracy_score(codes, predicted, sample_weight=sample_weight))


def _check_target(y: Any, family: Family, dtype: DTypeLike) -> np.ndarray:
    """`y` as a float array of shape (n_samples, n_outputs)."""
    y = check_array(y, input_name="y", ensure_2d=False, dtype=dtype)
    y = as_vector(y)
    if (y < family.lowest).any():
        raise ValueError(
            f"y has negative values, which family={family.name!r} does not allow: its targets "
            f"are at least {family.lowest:g}."
        )
    if family.lowest < 0 and not family.standardised:
        check_range(y, "y", y.dtype)
    if (y > family.highest).any():
        raise ValueError(
            f"y has values above {family.highest:g}, which family={family.name!r} does not allow."
        )
    target: np.ndarray = y.reshape(len(y), -1)
    return target


def _class_totals(n_classes: int, y: Tensor, weight: Tensor) -> Tensor:
    # On the CPU: a GPU adds up in any order, which torch's deterministic algorithms forbid.
    codes, weights = y.long().ravel().cpu(), weight.cpu()
    return torch.bincount(codes, weights=weights, minlength=n_classes).to(weight.device)


def _total_weight(y: Tensor, weight: Tensor) -> Tensor:
    return weight.sum()


def _weighted_sum(total: float, y: Tensor, weight: Tensor) -> Tensor:
    return (weight / total) @ y


def _losses_of(family: Family, eta: Tensor, total: float, y: Tensor, weight: Tensor) -> Tensor:
    columns = zip(eta.expand_as(y).T.unsqueeze(-1), y.T.unsqueeze(-1), strict=True)
    losses = torch.stack([family.loss(*column) for column in columns])
    return losses @ (weight / total).to(losses)


def _mean(rows: Rows) -> Tensor:
    """The weighted mean of each column."""
    return rows.total(partial(_weighted_sum, float(rows.total(_total_weight))))


def _link(family: Family, mean: Tensor) -> Tensor:
    tiny = torch.finfo(mean.dtype).tiny
    return family.link(mean.clamp_min(tiny) if family.lowest == 0 else mean)


def _losses_by_column(family: Family, eta: Tensor, y: Tensor, weight: Tensor | None) -> Tensor:
    """Mean half deviance of each column of `y`."""
    columns = zip(eta.T.unsqueeze(-1), y.T.unsqueeze(-1), strict=True)
    losses = torch.stack([family.loss(*column) for column in columns])
    return losses.mean(1) if weight is None else losses @ (weight / weight.sum()).to(losses)


def _losses_of_the_mean(family: Family, y: Tensor, weight: Tensor | None) -> Tensor:
    """The same for a constant prediction of each column's mean; 0 for a constant column."""
    weight = torch.ones_like(y[:, 0]) if weight is None else weight.to(y)
    eta = _link(family, (weight / weight.sum()) @ y)
    losses = _losses_by_column(family, eta.expand_as(y), y, weight)
    return losses.where((y != y[0]).any(0), 0.0)


def _explained_deviance(family: Family, eta: Tensor, y: Tensor, weight: Tensor | None) -> float:
    """D^2 averaged over the columns; scikit-learn's conventions for a constant one."""
    losses = _losses_by_column(family, eta, y, weight)
    of_the_mean = _losses_of_the_mean(family, y, weight)
    explained = 1 - losses / of_the_mean
    return float(explained.where(of_the_mean > 0, (losses == 0).to(losses)).mean())
