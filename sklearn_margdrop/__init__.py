"""Regularisation by marginalised dropout for scikit-learn."""

from sklearn_margdrop.estimators.classifier import MarginalizedDropoutClassifier
from sklearn_margdrop.estimators.regressor import MarginalizedDropoutRegressor

__version__ = "0.1.0"

__all__ = ["MarginalizedDropoutClassifier", "MarginalizedDropoutRegressor"]
