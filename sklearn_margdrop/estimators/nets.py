"""The nets of the estimators, which predict what skorch and scikit-learn expect of a net."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin, RegressorMixin
from torch import Tensor

from sklearn_margdrop.families import Bernoulli, Family
from sklearn_margdrop.numerics.ambient import neutral
from sklearn_margdrop.training.net import MarginalizedNet
from sklearn_margdrop.training.units import conversion


class ClassifierNet(ClassifierMixin, MarginalizedNet):
    """A net for class labels, which stand as positions in the estimator's ``classes_``.

    Several labels per row stand as the rows of an indicator matrix.
    """

    @property
    def classes_(self) -> NDArray[np.int64]:
        """The positions of the classes."""
        n_outputs: int = self.module__layer_sizes[-1]
        return np.arange(2 if n_outputs == 1 else n_outputs)

    @property
    def _takes_indicators(self) -> bool:
        return is_indicator(self.criterion_.family, self.module__layer_sizes[-1])

    @neutral()
    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Probabilities of the classes, or of several labels, shape (n_samples, n_classes)."""
        eta = self.forward(X)
        return (eta.sigmoid() if self._takes_indicators else logits(eta).softmax(-1)).numpy()

    @neutral()
    def predict(self, X: Any) -> NDArray[np.int64]:
        """Positions of the most probable classes, shape (n_samples,), or the indicator matrix."""
        eta = self.forward(X)
        return ((eta > 0).long() if self._takes_indicators else most_probable(eta)).numpy()

    def encode(self, y: Any) -> Tensor:
        if not isinstance(y, Tensor):
            y = np.array(y)
            if y.dtype.kind not in "biuf":
                raise ValueError("The net takes positions in the estimator's classes_ for labels.")
            y = torch.as_tensor(y, device="cpu")
        has_numbers = self._takes_indicators or len(self.classes_) == 2
        return super().encode(y) if has_numbers else y.long().to(self.device)

    def decode(self, y: Tensor) -> Tensor:
        return y.long() if self._takes_indicators else y.long().ravel()


class RegressorNet(RegressorMixin, MarginalizedNet):
    """A net for numbers, whose predictions have the shape and the units of the target."""

    @neutral()
    def predict(self, X: Any) -> NDArray[Any]:
        """The mean of the target, shape (n_samples,) or (n_samples, n_outputs)."""
        return super().decode(torch.from_numpy(self.predict_proba(X))).numpy()

    def encode(self, y: Any) -> Tensor:
        if self.units_ is not None:
            y = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
            y = self.units_.encode(y.reshape(len(y), -1))
        return super().encode(y)

    def decode(self, y: Tensor) -> Tensor:
        return super().decode(self.in_units(y))

    def take_over(self, previous: MarginalizedNet, incremental: bool = False) -> None:
        super().take_over(previous, incremental)
        if not incremental:
            return  # where the target is in other units, so are the predictions
        factor, shift = conversion(previous.units_, self.units_)
        if (factor == 1).all() and not shift.any():
            return
        *_, output = self.module_.linears
        with torch.no_grad():  # the predictions stay
            output.weight.mul_(torch.tensor(factor).unsqueeze(1).to(output.weight))
            if output.bias is not None:
                bias = output.bias.cpu().double() * torch.tensor(factor) + torch.tensor(shift)
                output.bias.copy_(bias)


def is_indicator(family: Family, n_outputs: int) -> bool:
    """Whether each output is a label by itself, rather than one of the classes."""
    return isinstance(family, Bernoulli) and n_outputs > 1


def most_probable(eta: Tensor) -> Tensor:
    """Index of the most probable class, from one or from K logits."""
    return (eta[:, 0] > 0).long() if eta.shape[1] == 1 else eta.argmax(-1)


def logits(eta: Tensor) -> Tensor:
    """K logits for K classes, from one for two classes."""
    return torch.cat([torch.zeros_like(eta), eta], dim=1) if eta.shape[1] == 1 else eta
