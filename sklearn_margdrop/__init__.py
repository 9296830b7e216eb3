"""Regularisation by marginalised dropout for scikit-learn."""

from sklearn_margdrop.estimators.classifier import MarginalizedDropoutClassifier
from sklearn_margdrop.estimators.glm_classifier import MarginalizedDropoutGLMClassifier
from sklearn_margdrop.estimators.glm_regressor import MarginalizedDropoutGLMRegressor
from sklearn_margdrop.estimators.regressor import MarginalizedDropoutRegressor

__version__ = "0.1.0"

__all__ = [
    "MarginalizedDropoutClassifier",
    "MarginalizedDropoutGLMClassifier",
    "MarginalizedDropoutGLMRegressor",
    "MarginalizedDropoutRegressor",
]
