"""Looking into a fitted model: its penalty, its training, and what the data scale."""

from sklearn_margdrop.inspection.fisher_scaling import FisherScalingDisplay
from sklearn_margdrop.inspection.penalty import effective_penalty, penalty_per_sample
from sklearn_margdrop.inspection.regularization_path import RegularizationPathDisplay
from sklearn_margdrop.inspection.training_curve import TrainingCurveDisplay

__all__ = [
    "FisherScalingDisplay",
    "RegularizationPathDisplay",
    "TrainingCurveDisplay",
    "effective_penalty",
    "penalty_per_sample",
]
