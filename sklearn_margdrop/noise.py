"""Noise models: unbiased corruptions of the activations at one site.

A model is one small class. Defining it registers it under its ``name``: the
estimators' ``noise`` parameter, the tests and the documentation's table pick it up.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import ClassVar

import torch
from torch import Tensor

NOISE_MODELS: dict[str, type[Noise]] = {}


class Noise(ABC):
    """An unbiased corruption z~ of a clean activation z, independent between units.

    Parameters
    ----------
    strength : float
        The value of the estimator parameter that ``parameter`` names.

    Attributes
    ----------
    name : str
        The word that selects the model in an estimator's ``noise`` parameter.
    parameter : {"retain_rate", "noise_std"}
        The estimator parameter that sets the strength.
    """

    name: ClassVar[str]
    parameter: ClassVar[str]

    #: Where it is known in closed form and not gaussian, ``cumulant(z, weight)`` is a method that
    #: returns log E exp(weight (z~ - z)), elementwise for broadcast arguments.
    cumulant: ClassVar[Callable | None] = None

    def __init_subclass__(cls, **kwargs):
        super().__init_subclass__(**kwargs)
        if "name" in vars(cls):
            NOISE_MODELS[cls.name] = cls

    def __init__(self, strength: float):
        self.strength = float(strength)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.parameter}={self.strength:g})"

    @property
    @abstractmethod
    def is_null(self) -> bool:
        """Whether the model leaves every activation as it is."""

    @abstractmethod
    def variance(self, z: Tensor) -> Tensor:
        """Variance of z~ given the clean activation; same shape as `z`.

        Sparse data need a variance that is zero at zero, or the same everywhere.
        """

    @abstractmethod
    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        """One draw of z~ for every element of `z`; same shape as `z`."""


class Dropout(Noise):
    """z~ = z * Bernoulli(q) / q with retain rate q: variance z^2 (1 - q) / q."""

    name = "dropout"
    parameter = "retain_rate"

    @property
    def is_null(self):
        return self.strength == 1.0

    def variance(self, z):
        q = self.strength
        return z.square() * ((1 - q) / q)

    def cumulant(self, z, weight):
        q = self.strength
        if q == 1:
            return torch.zeros_like(z * weight)
        t = z * weight / q
        # log(1 - q + q exp(t)) - q t, without overflow for large t and exact for small t.
        small = torch.log1p(q * torch.expm1(t.clamp_max(1.0)))
        large = t + math.log(q) + torch.log1p((1 - q) / q * torch.exp(-t.clamp_min(1.0)))
        return torch.where(t < 1, small, large) - q * t

    def sample(self, z, generator=None):
        q = self.strength
        uniform = torch.rand(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        # ceil(q - u) is 1 where u < q and 0 elsewhere, in the dtype of z.
        return z * (q - uniform).ceil().div(q)


class Gaussian(Noise):
    """z~ = z + Normal(0, std^2): variance std^2, whatever the activation."""

    name = "gaussian"
    parameter = "noise_std"

    @property
    def is_null(self):
        return self.strength == 0.0

    def variance(self, z):
        return torch.full_like(z, self.strength**2)

    def sample(self, z, generator=None):
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        return z + self.strength * noise
