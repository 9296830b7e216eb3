"""The nets of the estimators, which predict what skorch and scikit-learn expect of a net."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin, RegressorMixin
from torch import Tensor

from sklearn_margdrop.training import MarginalizedNet


class ClassifierNet(ClassifierMixin, MarginalizedNet):
    """A net for class labels, which stand as positions in the estimator's ``classes_``."""

    @property
    def classes_(self) -> NDArray[np.int64]:
        """The positions of the classes."""
        n_outputs: int = self.module__layer_sizes[-1]
        return np.arange(2 if n_outputs == 1 else n_outputs)

    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Probabilities of the classes, shape (n_samples, n_classes)."""
        return logits(self.forward(X)).softmax(-1).numpy()

    def predict(self, X: Any) -> NDArray[np.int64]:
        """Positions of the most probable classes, shape (n_samples,)."""
        return most_probable(self.forward(X)).numpy()

    def encode(self, y: Any) -> Tensor:
        if not isinstance(y, Tensor):
            y = np.array(y)
            if y.dtype.kind not in "biuf":
                raise ValueError("The net takes positions in the estimator's classes_ for labels.")
            y = torch.as_tensor(y)
        return super().encode(y) if len(self.classes_) == 2 else y.long().to(self.device)

    def decode(self, y: Tensor) -> Tensor:
        return y.long().ravel()


class RegressorNet(RegressorMixin, MarginalizedNet):
    """A net for numbers, whose predictions have the shape of the target."""

    def predict(self, X: Any) -> NDArray[Any]:
        """The mean of the target, shape (n_samples,) or (n_samples, n_outputs)."""
        return self.decode(torch.from_numpy(self.predict_proba(X))).numpy()


def most_probable(eta: Tensor) -> Tensor:
    """Index of the most probable class, from one or from K logits."""
    return (eta[:, 0] > 0).long() if eta.shape[1] == 1 else eta.argmax(-1)


def logits(eta: Tensor) -> Tensor:
    """K logits for K classes, from one for two classes."""
    return torch.cat([torch.zeros_like(eta), eta], dim=1) if eta.shape[1] == 1 else eta
