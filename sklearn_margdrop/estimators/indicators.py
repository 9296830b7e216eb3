"""Targets of a label per row, or of several: these are the columns of an indicator matrix."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike, NDArray
from scipy import sparse
from sklearn.metrics import accuracy_score
from sklearn.utils.multiclass import type_of_target
from torch import Tensor
from torch.nn.functional import logsigmoid

from sklearn_margdrop.estimators.targets import LabelTarget, Scorer
from sklearn_margdrop.estimators.validation import check_classes, check_finite
from sklearn_margdrop.families import Bernoulli, Family
from sklearn_margdrop.numerics.ambient import neutral
from sklearn_margdrop.numerics.csr import MatrixLike
from sklearn_margdrop.training.batches import Rows


class IndicatorTarget(LabelTarget):
    """Class labels, or an indicator matrix: independent bernoulli outputs, one for each label."""

    #: What the target was where it was an indicator matrix: "dense" or "sparse".
    _indicator: str | None = None

    @property
    def _stratifies(self) -> bool:
        return self._indicator is None

    def _encode_target(
        self, y: ArrayLike, dtype: DTypeLike, continuing: bool, classes: ArrayLike | None
    ) -> np.ndarray:
        is_indicator = (
            np.ndim(y) == 2 and np.shape(y)[1] > 1 and type_of_target(y) == "multilabel-indicator"
        )
        if continuing and is_indicator != (self._indicator is not None):
            words = "one label per row", "several labels per row (an indicator matrix)"
            raise ValueError(
                f"y has {words[is_indicator]}, and had {words[not is_indicator]} in the previous "
                "call. Start anew: call fit with warm_start=False."
            )
        if not is_indicator:
            codes = super()._encode_target(y, dtype, continuing, classes)
            self._indicator = None
            return codes
        matrix = _dense_indicators(y)
        labels = np.arange(matrix.shape[1])
        named = [self.classes_] if continuing else []
        named += [] if classes is None else [check_classes(classes)]
        for known in named:
            if not np.array_equal(labels, known):
                raise ValueError(
                    f"y is an indicator matrix of {len(labels)} columns, which does not go with "
                    f"the classes {known!r}: these are the positions of the columns."
                )
        self.classes_ = labels
        if not continuing:
            self._indicator = "sparse" if sparse.issparse(y) else "dense"
        return matrix.astype(dtype)

    def _check_continued(self, y: np.ndarray, incremental: bool) -> None:
        if self._indicator is None:
            super()._check_continued(y, incremental)

    def _target_weight(
        self, y: np.ndarray, weight: np.ndarray, incremental: bool
    ) -> np.ndarray | float:
        if self._indicator is not None and self.class_weight is not None:
            raise ValueError(
                "class_weight weights rows by their one class; with an indicator matrix for y a "
                "row has several labels. Set class_weight=None and pass sample_weight, or fit a "
                "model to each label: sklearn.multioutput.MultiOutputClassifier."
            )
        return super()._target_weight(y, weight, incremental)

    def _family(self) -> tuple[Family, int]:
        return super()._family() if self._indicator is None else (Bernoulli(), len(self.classes_))

    def _shares(self, rows: Rows) -> Tensor:
        """The share of each class; with indicators, of the rows without and with each label."""
        if self._indicator is None:
            return super()._shares(rows)
        counts = rows.total(_label_totals)
        return counts / counts.sum(0)

    def _scorer(self) -> Scorer:
        return super()._scorer() if self._indicator is None else _subset_accuracy

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.classifier_tags.multi_label = True
        return tags

    @neutral()
    def predict(self, X: MatrixLike) -> NDArray[Any]:
        """Predict the most probable class, or all labels that are more probable than not.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Data.

        Returns
        -------
        {ndarray, sparse matrix} of shape (n_samples,) or (n_samples, n_labels)
            Class labels; for a model that was fitted to an indicator matrix another one, sparse
            if that was.
        """
        if self._indicator is None:
            return super().predict(X)
        indicators: Any = (check_finite(self._linear_predictor(X)) > 0).long().cpu().numpy()
        found: NDArray[Any] = (
            sparse.csr_matrix(indicators) if self._indicator == "sparse" else indicators
        )
        return found

    @neutral()
    def predict_proba(self, X: MatrixLike) -> NDArray[Any]:
        """Predict the probability of each class or, with several labels per row, of each label.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Data.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Probabilities, with the classes in the order of `classes_`. Those of a row add up to
            one, but not for a model that was fitted to an indicator matrix.
        """
        if self._indicator is None:
            return super().predict_proba(X)
        return check_finite(self._linear_predictor(X)).sigmoid().cpu().numpy()

    @neutral()
    def predict_log_proba(self, X: MatrixLike) -> NDArray[Any]:
        """Predict the logarithm of the probability of each class, or of each label.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Data.

        Returns
        -------
        ndarray of shape (n_samples, n_classes)
            Log-probabilities, finite even where the probability underflows.
        """
        if self._indicator is None:
            return super().predict_log_proba(X)
        return logsigmoid(check_finite(self._linear_predictor(X))).cpu().numpy()

    def decision_function(self, X: MatrixLike) -> NDArray[Any]:
        """The linear predictor.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Data.

        Returns
        -------
        ndarray of shape (n_samples,) or (n_samples, n_classes)
            The log-odds of ``classes_[1]`` for two classes, else one logit for each class; for a
            model that was fitted to an indicator matrix, the log-odds of each label.
        """
        return super().decision_function(X)


def _dense_indicators(y: Any) -> np.ndarray:
    """An indicator matrix as an array; raises where it holds something else than 0 and 1."""
    matrix: np.ndarray = y.toarray() if sparse.issparse(y) else np.asarray(y)
    values = np.unique(matrix)
    if not np.isin(values, (0, 1)).all():
        raise ValueError(
            f"y has the values {values}. An indicator matrix, of a column for each label, holds 0 "
            "and 1: pass y > 0, say. For several targets of other classes, wrap the estimator in "
            "sklearn.multioutput.MultiOutputClassifier."
        )
    return matrix


def _label_totals(y: Tensor, weight: Tensor) -> Tensor:
    """The weights of the rows without and with each label, shape (2, n_labels)."""
    return torch.stack([weight @ (1 - y), weight @ y])


def _subset_accuracy(eta: Tensor, y: Tensor, weight: Tensor | None) -> float:
    """The share of rows whose labels are all right."""
    truth, predicted = (each.long().cpu().numpy() for each in (y, eta > 0))
    sample_weight = None if weight is None else weight.cpu().numpy()
    return float(accuracy_score(truth, predicted, sample_weight=sample_weight))
