"""Classifiers and regressors: what a linear predictor says of labels and of numbers."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin, RegressorMixin
from sklearn.exceptions import UndefinedMetricWarning
from sklearn.utils import check_consistent_length
from torch import Tensor

from sklearn_margdrop.estimators.base import BaseMarginalizedEstimator, Call
from sklearn_margdrop.estimators.labels import Labels
from sklearn_margdrop.estimators.nets import ClassifierNet, RegressorNet
from sklearn_margdrop.estimators.targets import Numbers, family_of_numbers
from sklearn_margdrop.estimators.validation import check_finite, check_weights
from sklearn_margdrop.families import FAMILIES
from sklearn_margdrop.notices import warn
from sklearn_margdrop.numerics.ambient import neutral
from sklearn_margdrop.numerics.csr import MatrixLike
from sklearn_margdrop.numerics.devices import to_tensor


class BaseMarginalizedClassifier(ClassifierMixin, BaseMarginalizedEstimator):
    """Base of the estimators of class labels."""

    _target: Labels
    _net = ClassifierNet

    if TYPE_CHECKING:  # scikit-learn's has no types

        def score(
            self, X: MatrixLike, y: ArrayLike, sample_weight: ArrayLike | None = None
        ) -> float: ...

    @property
    def classes_(self) -> NDArray[Any]:
        """Class labels, sorted."""
        return self._target.classes

    @classes_.setter
    def classes_(self, classes: ArrayLike) -> None:
        self._target = replace(self._target, classes=np.asarray(classes))

    def _encode(self, y: Any, call: Call) -> tuple[Labels, np.ndarray]:
        return Labels.of(y, call.dtype, call.known, call.classes)

    def _partial_fit(
        self, X: Any, y: Any, sample_weight: Any, X_unlabeled: Any, classes: Any = None
    ) -> Self:
        if classes is None and not self.__sklearn_is_fitted__():
            raise ValueError("classes must be passed on the first call to partial_fit.")
        return super()._partial_fit(X, y, sample_weight, X_unlabeled, classes)

    def _logits(self, X: MatrixLike) -> Tensor:
        return check_finite(self._linear_predictor(X))

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
        eta = self._logits(X)
        found: NDArray[Any] = self._target.decode(self._target.most_probable(eta).cpu().numpy())
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
        eta = self._logits(X)
        return self._target.probabilities(eta).cpu().numpy()

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
        eta = self._logits(X)
        return self._target.log_probabilities(eta).cpu().numpy()

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
            The log-odds of ``classes_[1]`` for two classes, else one logit for each class; for a
            model that was fitted to an indicator matrix, the log-odds of each label.
        """
        eta: NDArray[Any] = self._logits(X).cpu().numpy()
        return eta[:, 0] if eta.shape[1] == 1 else eta


class BaseMarginalizedRegressor(RegressorMixin, BaseMarginalizedEstimator):
    """Base of the estimators of numbers, whose family the parameter `family` names."""

    family: str
    _target: Numbers
    _net = RegressorNet

    @property
    def n_outputs_(self) -> int:
        """Number of target columns."""
        return self._target.n_outputs

    def _encode(self, y: Any, call: Call) -> tuple[Numbers, np.ndarray]:
        return Numbers.of(y, call.dtype, family_of_numbers(self.family), call.known)

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
        mean = check_finite(self._target.family.mean(eta).to(dtype)).cpu().numpy()
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
        check_finite(self._target.family.mean(eta))
        target = to_tensor(self._target.encode(y, np.float64), eta.device)
        if (units := self._target.units) is not None:  # the same; their squares are numbers
            eta, target = (torch.from_numpy(units.encode(x.numpy())) for x in (eta, target))
        check_consistent_length(eta, target, sample_weight)
        if len(target) < 2:
            # As scikit-learn's scores do, in their words.
            message = "D^2 score is not well-defined with less than two samples."
            warn(message, UndefinedMetricWarning)
            return float("nan")
        weight = None
        if sample_weight is not None:
            weight = torch.from_numpy(check_weights(sample_weight, target))
        return self._target.score(eta, target, weight)
