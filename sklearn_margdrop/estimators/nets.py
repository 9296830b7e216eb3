"""The nets of the estimators, which predict what skorch and scikit-learn expect of a net."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.base import ClassifierMixin, RegressorMixin
from torch import Tensor

from sklearn_margdrop.estimators.labels import Labels
from sklearn_margdrop.estimators.targets import Numbers, Target
from sklearn_margdrop.families import Bernoulli
from sklearn_margdrop.numerics.ambient import neutral
from sklearn_margdrop.training.batches import Rows
from sklearn_margdrop.training.net import MarginalizedNet
from sklearn_margdrop.training.units import conversion


class TargetNet(MarginalizedNet):
    """A net that is told what its target is.

    Parameters
    ----------
    *args, **kwargs
        The parameters of :class:`MarginalizedNet`.
    target : Target

    Attributes
    ----------
    retain_rate_ : tuple of (float, float) or None
        What "auto" stands for in its networks, if that was asked for.
    unlabeled_discount_ : float or None
        The discount of the fit, in generalised linear models.
    """

    retain_rate_: tuple[float, float] | None = None
    unlabeled_discount_: float | None = None

    def __init__(self, *args: Any, target: Target, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.target = target

    def score_of(self, eta: Tensor, y: Tensor, weight: Tensor | None) -> float:
        return self.target.score(eta, y, weight)


class ClassifierNet(ClassifierMixin, TargetNet):
    """A net for class labels, which stand as positions in the estimator's ``classes_``.

    Several labels per row stand as the rows of an indicator matrix.
    """

    target: Labels

    @property
    def classes_(self) -> NDArray[np.int64]:
        """The positions of the classes."""
        return np.arange(len(self.target.classes))

    @neutral()
    def predict_proba(self, X: Any) -> NDArray[Any]:
        """Probabilities of the classes, or of several labels, shape (n_samples, n_classes)."""
        return self.target.probabilities(self.forward(X)).numpy()

    @neutral()
    def predict(self, X: Any) -> NDArray[np.int64]:
        """Positions of the most probable classes, shape (n_samples,), or the indicator matrix."""
        return self.target.most_probable(self.forward(X)).numpy()

    def encode(self, y: Any) -> Tensor:
        if not isinstance(y, Tensor):
            y = np.array(y)
            if y.dtype.kind not in "biuf":
                raise ValueError("The net takes positions in the estimator's classes_ for labels.")
            y = torch.as_tensor(y, device="cpu")
        has_numbers = isinstance(self.target.family, Bernoulli)
        return super().encode(y) if has_numbers else y.long().to(self.device)

    def decode(self, y: Tensor) -> Tensor:
        return super().decode(y.long())


class RegressorNet(RegressorMixin, TargetNet):
    """A net for numbers, whose predictions have the shape and the units of the target."""

    target: Numbers

    @neutral()
    def predict(self, X: Any) -> NDArray[Any]:
        """The mean of the target, shape (n_samples,) or (n_samples, n_outputs)."""
        return super().decode(torch.from_numpy(self.predict_proba(X))).numpy()

    def encode(self, y: Any) -> Tensor:
        if (units := self.target.units) is not None:
            y = y.detach().cpu().numpy() if isinstance(y, Tensor) else np.asarray(y)
            y = units.encode(y.reshape(len(y), -1))
        return super().encode(y)

    def decode(self, y: Tensor) -> Tensor:
        return super().decode(self.in_units(y))

    def in_units(self, values: Tensor) -> Tensor:
        if (units := self.target.units) is None:
            return values
        spread, location = (
            torch.from_numpy(each).to(values) for each in (units.spread, units.location)
        )
        return values * spread + location

    def take_over(self, previous: MarginalizedNet, incremental: bool = False) -> None:
        super().take_over(previous, incremental)
        if not incremental:
            return  # where the target is in other units, so are the predictions
        assert isinstance(previous, TargetNet)
        factor, shift = conversion(previous.target.units, self.target.units)
        if (factor == 1).all() and not shift.any():
            return
        *_, output = self.module_.linears
        with torch.no_grad():  # the predictions stay
            output.weight.mul_(torch.tensor(factor).unsqueeze(1).to(output.weight))
            if output.bias is not None:
                bias = output.bias.cpu().double() * torch.tensor(factor) + torch.tensor(shift)
                output.bias.copy_(bias)


@torch.no_grad()
def losses_of(net: TargetNet, valid: Rows) -> Tensor:
    """The loss of each held-out row, in float64 on the CPU; infinite after a bad training.

    Parameters
    ----------
    net : TargetNet
    valid : Rows

    Returns
    -------
    Tensor of shape (n_samples,)
        In nats.
    """
    if net.n_explosions_ > 0:
        return torch.full((len(valid),), math.inf, dtype=torch.float64, device="cpu")
    losses = net.target.family.loss(net.linear_predictor(valid), valid.y)
    return losses.cpu().double().nan_to_num(nan=math.inf)
