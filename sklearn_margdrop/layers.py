"""Local linearisations of torch layers: all that a penalty needs to know about a layer.

``linearize(layer, z)`` runs the layer and returns its Jacobian at ``z`` as an object that
pushes tangents and variances forward and pulls cotangents back, by forward operations, so that the
objective can be differentiated, compiled and batched like any other function. A new type
of layer is one registered function.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, singledispatch
from typing import NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from sklearn_margdrop.noise import Noise
from sklearn_margdrop.numerics.memory import blocks
from sklearn_margdrop.numerics.products import linear, mixed_matmul, squared_linear
from sklearn_margdrop.numerics.sparse import Matrix, SparseMatrix


class Jacobian(Protocol):
    """What a penalty needs from a layer's derivative; the classes below are examples."""

    def push_forward(self, tangent: Tensor) -> Tensor:
        """(..., in) -> (..., out): the Jacobian times the tangent."""

    def pull_back(self, cotangent: Tensor) -> Tensor:
        """(..., out) -> (..., in): the cotangent times the Jacobian."""

    def push_variance(self, variance: Tensor) -> Tensor:
        """(..., in) -> (..., out): the outputs' variances for independent inputs."""


class Affine(NamedTuple):
    """Jacobian of z -> z W' + b."""

    weight: Tensor

    def push_forward(self, tangent: Tensor) -> Tensor:
        """(..., in) -> (..., out): the Jacobian times the tangent."""
        return linear(tangent, self.weight)

    def pull_back(self, cotangent: Tensor) -> Tensor:
        """(..., out) -> (..., in): the cotangent times the Jacobian."""
        return mixed_matmul(cotangent, self.weight)

    def push_variance(self, variance: Matrix) -> Tensor:
        """(..., in) -> (..., out): the outputs' variances for independent inputs."""
        return squared_linear(variance, self.weight)


class Elementwise(NamedTuple):
    """Jacobian of an activation function, with its derivative ``slope`` (n_samples, width).

    ``bend()`` is the second derivative over the first.
    """

    slope: Tensor
    bend: Callable[[], Tensor]

    def push_forward(self, tangent: Tensor) -> Tensor:
        return tangent * self.slope

    def pull_back(self, cotangent: Tensor) -> Tensor:
        return cotangent * self.slope.unsqueeze(-2)

    def push_variance(self, variance: Tensor) -> Tensor:
        return variance * self.slope.square()


class Mask(NamedTuple):
    """Jacobian of a rectifier, whose ``slope`` (n_samples, width) is 0 or 1."""

    slope: Tensor

    def push_forward(self, tangent: Tensor) -> Tensor:
        return tangent * self.slope

    def pull_back(self, cotangent: Tensor) -> Tensor:
        return cotangent * self.slope.unsqueeze(-2)

    def push_variance(self, variance: Tensor) -> Tensor:
        return variance * self.slope


class Identity(NamedTuple):
    """Jacobian of z -> z."""

    def push_forward(self, tangent: Tensor) -> Tensor:
        return tangent

    def pull_back(self, cotangent: Tensor) -> Tensor:
        return cotangent

    def push_variance(self, variance: Tensor) -> Tensor:
        return variance


class NoisyInput(NamedTuple):
    """Noise at the input `z` (n_samples, width) of a linear layer, as its output sees it.

    Parameters
    ----------
    noise : Noise or None
        The noise model. None is gaussian, as noise is that comes from earlier layers.
    z : Tensor or SparseMatrix of shape (n_samples, width)
        The clean input.
    variance : Tensor or SparseMatrix of shape (n_samples, width) or (1, width)
        The variance of the noise at `z`.
    weight : Tensor of shape (K, width)
        The weights of the layer.

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.layers import NoisyInput
    >>> from sklearn_margdrop.noise import Dropout
    >>> z, weight, noise = torch.ones(1, 3), torch.full((1, 3), 2.0), Dropout(0.5)
    >>> NoisyInput(noise, z, noise.variance(z), weight).output_variance()
    tensor([[12.]])
    """

    noise: Noise | None
    z: Matrix
    variance: Matrix
    weight: Tensor

    def output_variance(self, weight: Tensor | None = None) -> Tensor:
        """The variance of each output, (n_samples, K) or one row for all samples."""
        return squared_linear(self.variance, self.weight if weight is None else weight, exact=True)

    def output_cumulant(self) -> Tensor:
        """Log E exp(eta~ - eta) of each output, shape (n_samples, K) or one row for all.

        In closed form where the noise model has one, else that of gaussian noise.
        """
        cumulant = None if self.noise is None else self.noise.cumulant
        if cumulant is None:
            return 0.5 * self.output_variance()
        if isinstance(self.z, SparseMatrix):
            return self.z.sum_over_values(cumulant, self.weight)

        def total(z: Tensor) -> Tensor:
            return cumulant(z.unsqueeze(-2), self.weight).sum(-1)

        cut = blocks(len(self.z), self.weight.numel())
        if len(cut) == 1:
            return total(self.z)
        # Nothing larger than a block is kept: the backward pass computes each of them again.
        again = partial(checkpoint, total, use_reentrant=False, preserve_rng_state=False)
        return torch.cat([again(self.z[b]) for b in cut])


@singledispatch
def linearize(layer: nn.Module, z: Tensor) -> tuple[Tensor, Jacobian]:
    """Run `layer` at `z` and find its Jacobian there.

    A new type of layer is a function that is registered for it; its Jacobian has the methods
    ``push_forward``, ``pull_back`` and ``push_variance``.

    Parameters
    ----------
    layer : torch.nn.Module
        Dispatched on by its type.
    z : Tensor of shape (n_samples, width)
        What enters the layer.

    Returns
    -------
    out : Tensor of shape (n_samples, n_outputs)
        The output of the layer.
    jacobian : Affine, Elementwise, Mask, Identity or the like
        The local Jacobian of each row.

    Raises
    ------
    NotImplementedError
        If nothing is registered for the type of `layer`.

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.layers import linearize
    >>> out, jacobian = linearize(torch.nn.ReLU(), torch.tensor([[-1.0, 2.0]]))
    >>> out, jacobian.push_variance(torch.ones(1, 2))
    (tensor([[0., 2.]]), tensor([[0., 1.]]))
    """
    raise NotImplementedError(
        f"No linearisation is registered for {type(layer).__name__}; add one with "
        "`@linearize.register`."
    )


@linearize.register
def _(layer: nn.Linear, z: Tensor) -> tuple[Tensor, Jacobian]:
    return layer(z), Affine(layer.weight)


@linearize.register
def _(layer: nn.Identity, z: Tensor) -> tuple[Tensor, Jacobian]:
    return z, Identity()


@linearize.register
def _(layer: nn.ReLU, z: Tensor) -> tuple[Tensor, Jacobian]:
    out = layer(z)
    # The sign of what a rectifier returns is its derivative, and far cheaper than a comparison.
    return out, Mask(out.detach().sign())


@linearize.register
def _(layer: nn.Sigmoid, z: Tensor) -> tuple[Tensor, Jacobian]:
    out = layer(z)
    return out, Elementwise(out * (1 - out), lambda: 1 - 2 * out)


@linearize.register
def _(layer: nn.Tanh, z: Tensor) -> tuple[Tensor, Jacobian]:
    out = layer(z)
    return out, Elementwise(1 - out.square(), lambda: -2 * out)


#: scikit-learn's names of the activation functions.
ACTIVATIONS: dict[str, type[nn.Module]] = {
    "identity": nn.Identity,
    "logistic": nn.Sigmoid,
    "relu": nn.ReLU,
    "tanh": nn.Tanh,
}


def glorot_uniform_(layer: nn.Linear, activation: str, generator: torch.Generator) -> None:
    """Draw weights and intercepts as ``MLPClassifier`` does: +- sqrt(6 / (fan_in + fan_out)).

    Logistic units get a third of the variance (a factor 2 instead of 6).
    """
    fan_out, fan_in = layer.weight.shape
    bound = ((2.0 if activation == "logistic" else 6.0) / (fan_in + fan_out)) ** 0.5
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.uniform_(-bound, bound, generator=generator)
