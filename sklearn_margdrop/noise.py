"""Noise models: unbiased corruptions of the activations at one site.

A model is one small class. Defining it registers it under its ``name``: the
estimators' ``noise`` parameter, the tests and the documentation's table pick it up.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from functools import partial
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

    See Also
    --------
    Dropout : Drops units.
    Gaussian : Adds a normal variable.

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.noise import NOISE_MODELS
    >>> z = torch.tensor([1.0, -2.0])
    >>> for name, model in sorted(NOISE_MODELS.items()):
    ...     print(name, model(0.5).variance(z).tolist())
    dropout [1.0, 4.0]
    gaussian [0.25, 0.25]
    """

    name: ClassVar[str]
    parameter: ClassVar[str]

    #: ``cumulant(z, weight)`` returns log E exp(weight (z~ - z)), elementwise for broadcast
    #: arguments. Models with a closed form other than the gaussian one define it as a method.
    #: With sparse data only the stored values are summed, so that it has to be zero at z = 0.
    cumulant: Callable[[Tensor, Tensor], Tensor] | None = None

    def __init_subclass__(cls, **kwargs: object) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in vars(cls):
            NOISE_MODELS[cls.name] = cls

    def __init__(self, strength: float) -> None:
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

    def variance_slope(self, z: Tensor) -> Tensor | None:
        """Derivative of the variance, elementwise; None where it is zero everywhere."""
        return _slope(self.variance, z)[1]

    def deviation(self, z: Tensor) -> Tensor:
        """The root of the variance, of either sign; same shape as `z`."""
        variance = self.variance(z)
        # The root has no derivative at zero.
        is_noisy = variance > torch.finfo(variance.dtype).tiny
        return torch.where(is_noisy, variance, 1.0).sqrt().where(is_noisy, 0.0)

    def displace(self, z: Tensor, signs: Tensor) -> tuple[Tensor, Tensor | None]:
        """`signs` times the deviation, and its derivative; None where that is zero everywhere.

        `signs` has the shape (..., n_samples, width), and may be overwritten.
        """
        deviation, slope = _slope(self.deviation, z)
        return signs * deviation, None if slope is None else signs * slope

    def mirror(self, z: Tensor, signs: Tensor) -> tuple[Tensor, Tensor | None]:
        """The first half of `z` displaced, the second by the opposite of `signs`; derivatives.

        `z` has the shape (2 n, n_samples, width) and `signs` (n, n_samples, width), which may be
        overwritten. The elementwise derivative is None where it is one everywhere.
        """
        displacement, slope = self.displace(z, torch.cat([signs, -signs]))
        return displacement.add_(z), None if slope is None else slope.add_(1)

    def draw(
        self, z: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """A sample and its derivative, elementwise; None where that is one everywhere."""
        return _slope(partial(self.sample, generator=generator), z)


def random_integers(
    shape: Sequence[int],
    dtype: torch.dtype,
    generator: torch.Generator | None,
    device: torch.device | str,
) -> Tensor:
    """Uniform random integers of 8 or 16 bits. One draw of 64 bits yields several of them."""
    if torch.device(device).type not in ("cpu", "cuda"):  # where 64 bits may not all be random
        low = torch.iinfo(dtype).min
        return torch.randint(low, -low, shape, dtype=dtype, generator=generator, device=device)
    size, whole = math.prod(shape), torch.iinfo(torch.int64)
    n_draws = -(-size * dtype.itemsize // 8)
    bits = torch.randint(whole.min, whole.max, (n_draws,), generator=generator, device=device)
    return bits.view(dtype)[:size].view(shape)


def random_signs(
    shape: Sequence[int], like: Tensor, generator: torch.Generator | None = None
) -> Tensor:
    """Plus and minus one, equally likely and independent.

    Parameters
    ----------
    shape : sequence of int
        That of the result.
    like : Tensor
        The result is on its device and has its dtype.
    generator : torch.Generator, default=None
        None is torch's global one.

    Returns
    -------
    Tensor of that shape

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.noise import random_signs
    >>> random_signs((100,), torch.empty(0), torch.Generator().manual_seed(0)).unique()
    tensor([-1.,  1.])
    """
    is_positive = random_integers(shape, torch.int8, generator, like.device) >= 0
    return is_positive.to(like.dtype).sub_(0.5).mul_(2)


def _slope(function: Callable[[Tensor], Tensor], z: Tensor) -> tuple[Tensor, Tensor | None]:
    """Value and derivative of an elementwise function."""
    with torch.enable_grad():
        z = z.detach().requires_grad_()
        value = function(z)
        total = value.sum() + 0 * z.sum()  # also where the value does not depend on z
        (slope,) = torch.autograd.grad(total, z)
    return value.detach(), slope


class Dropout(Noise):
    """z~ = z * Bernoulli(q) / q with retain rate q: variance z^2 (1 - q) / q.

    Parameters
    ----------
    strength : float
        The retain rate in (0, 1]; 1 is no noise.

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.noise import Dropout
    >>> z, noise = torch.tensor([1.0, -2.0, 0.0]), Dropout(0.5)
    >>> noise.variance(z)
    tensor([1., 4., 0.])
    >>> drawn = noise.sample(z.expand(10_000, -1), torch.Generator().manual_seed(0))
    >>> drawn[:, 0].unique()
    tensor([0., 2.])
    """

    name = "dropout"
    parameter = "retain_rate"

    @property
    def is_null(self) -> bool:
        return self.strength == 1.0

    def variance(self, z: Tensor) -> Tensor:
        q = self.strength
        return torch.addcmul(z.new_zeros(()), z, z, value=(1 - q) / q)

    def variance_slope(self, z: Tensor) -> Tensor:
        q = self.strength
        return z * (2 * (1 - q) / q)

    def deviation(self, z: Tensor) -> Tensor:
        return z * self._relative_deviation

    def displace(self, z: Tensor, signs: Tensor) -> tuple[Tensor, Tensor | None]:
        scaled = signs.mul_(self._relative_deviation)
        return z * scaled, scaled

    def mirror(self, z: Tensor, signs: Tensor) -> tuple[Tensor, Tensor]:
        above = signs.mul_(self._relative_deviation).add_(1)
        mask = torch.cat([above, 2 - above])
        return z * mask, mask

    @property
    def _relative_deviation(self) -> float:
        """That of a unit of size one."""
        q = self.strength
        return math.sqrt((1 - q) / q)

    def cumulant(self, z: Tensor, weight: Tensor) -> Tensor:
        q = self.strength
        if q == 1:
            return torch.zeros_like(z * weight)
        t = z * weight / q
        # log(1 - q + q exp(t)) - q t, without overflow for large t and exact for small t.
        small = torch.log1p(q * torch.expm1(t.clamp_max(1.0)))
        large = t + math.log(q) + torch.log1p((1 - q) / q * torch.exp(-t.clamp_min(1.0)))
        return torch.where(t < 1, small, large) - q * t

    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        return z * self._mask(z, generator)

    def draw(
        self, z: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        mask = self._mask(z, generator)
        return z * mask, mask

    def _mask(self, z: Tensor, generator: torch.Generator | None) -> Tensor:
        """Bernoulli(q) / q for every element of `z`."""
        q = self.strength
        kept = round(q * 2**16)
        if min(kept, 2**16 - kept) < 2**8:  # too coarse to tell such a rate from its neighbours
            uniform = torch.rand(z.shape, generator=generator, dtype=z.dtype, device=z.device)
            # ceil(q - u) is 1 where u < q and 0 elsewhere, in the dtype of z.
            return (q - uniform).ceil().div_(q)
        # The rate is q to within 2^-17.
        bits = random_integers(z.shape, torch.int16, generator, z.device)
        return (bits < kept - 2**15).to(z.dtype).mul_(2**16 / kept)


class Gaussian(Noise):
    """z~ = z + Normal(0, std^2): variance std^2, whatever the activation.

    Parameters
    ----------
    strength : float
        The standard deviation, in the units of the activation; 0 is no noise.

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.noise import Gaussian
    >>> Gaussian(0.5).variance(torch.tensor([1.0, -2.0, 0.0]))
    tensor([0.2500, 0.2500, 0.2500])
    """

    name = "gaussian"
    parameter = "noise_std"

    @property
    def is_null(self) -> bool:
        return self.strength == 0.0

    def variance(self, z: Tensor) -> Tensor:
        return torch.full_like(z, self.strength**2)

    def variance_slope(self, z: Tensor) -> None:
        return None

    def deviation(self, z: Tensor) -> Tensor:
        return torch.full_like(z, self.strength)

    def displace(self, z: Tensor, signs: Tensor) -> tuple[Tensor, Tensor | None]:
        return signs.mul_(self.strength), None

    def draw(
        self, z: Tensor, generator: torch.Generator | None = None
    ) -> tuple[Tensor, Tensor | None]:
        return self.sample(z, generator), None

    def sample(self, z: Tensor, generator: torch.Generator | None = None) -> Tensor:
        noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
        return z + self.strength * noise
