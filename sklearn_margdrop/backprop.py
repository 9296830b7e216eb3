"""The gradient of loss and penalty by hand, where one pass through the network computes them.

That is the case for `diagonal`, for `quadratic` where it is the same, and for `sampling` without
unlabelled rows. Autograd gives the same values and derivatives; but its bookkeeping takes most of
the time of the steps of small networks, and its temporaries most of that of wide ones.

A forward function returns the mean and the variance of its output, and a function that takes
derivatives with respect to both back to its input.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from sklearn_margdrop.families import Family
from sklearn_margdrop.layers import ACTIVATIONS, Elementwise, Identity, Mask, linearize
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.noise import Noise
from sklearn_margdrop.numerics.products import linear, matmul, mixed_square

#: Takes derivatives with respect to mean and variance back; None where there is none.
Back: TypeAlias = Callable[..., tuple[Tensor | None, Tensor | None]]

#: A mean, its variance, and the way back.
Step: TypeAlias = tuple[Tensor, Tensor | None, Back]


def is_known(network: NoisyNetwork) -> bool:
    """Whether :func:`backpropagate` knows all the layers."""
    known: tuple[type[nn.Module], ...] = (nn.Linear, *ACTIVATIONS.values())
    return all(isinstance(layer, known) for layer in network.layers)


@torch.no_grad()
def backpropagate(
    network: NoisyNetwork,
    family: Family,
    x: Tensor,
    y: Tensor,
    loss_weight: Tensor,
    penalty_weight: Tensor,
    sampling: bool = False,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Loss and penalty of weighted rows; their gradient is added to that of the parameters.

    Parameters
    ----------
    network : NoisyNetwork
    family : Family
    x : Tensor of shape (n_rows, n_features)
        Labelled rows first.
    y : Tensor of shape (n_labeled,) or (n_labeled, K)
    loss_weight : Tensor of shape (n_labeled,)
    penalty_weight : Tensor of shape (n_rows,)
    sampling : bool, default=False
        Whether to draw the noise, instead of the diagonal penalty.
    generator : torch.Generator, default=None
        Of the noise that is drawn.

    Returns
    -------
    loss, penalty : Tensor
        Scalars.
    """
    enter = partial(_sample, generator=generator) if sampling else _add_variance
    tape: list[Back] = []
    mean, variance = x, None
    for index, layer in enumerate(network.layers):
        noise = network.noise.get(index)
        if noise is not None:
            mean, variance, back = enter(noise, mean, variance)
            if index > 0:  # no derivatives of the data themselves
                tape.append(back)
        if index == len(network.layers) - 1:
            break
        if isinstance(layer, nn.Linear):
            mean, variance, back = _affine(layer, mean, variance, index == 0)
        else:
            mean, variance, back = _activation(layer, mean, variance)
        tape.append(back)
    loss, penalty, grad, grad_v = _output(
        cast("nn.Linear", layer),  # the last one
        family,
        y,
        mean,
        variance,
        loss_weight,
        0.5 * penalty_weight,
        index == 0,
    )
    for back in reversed(tape):
        grad, grad_v = back(grad, grad_v)
    return loss, penalty


def _sample(
    noise: Noise, z: Tensor, variance: Tensor | None, generator: torch.Generator | None
) -> Step:
    z, slope = noise.draw(z, generator)
    return z, variance, lambda grad, grad_v: (grad if slope is None else grad * slope, grad_v)


def _add_variance(noise: Noise, z: Tensor, variance: Tensor | None) -> Step:
    entering = noise.variance(z)

    def back(grad: Tensor, grad_v: Tensor) -> tuple[Tensor, Tensor | None]:
        slope = noise.variance_slope(z)
        if slope is not None:
            grad = torch.addcmul(grad, grad_v, slope)
        return grad, None if variance is None else grad_v

    return z, entering if variance is None else entering + variance, back


def _activation(layer: nn.Module, h: Tensor, variance: Tensor | None) -> Step:
    z, jacobian = linearize(layer, h)
    if isinstance(jacobian, Identity):
        return z, variance, lambda grad, grad_v: (grad, grad_v)
    assert isinstance(jacobian, Elementwise | Mask)  # as is_known has checked
    pushed = None if variance is None else jacobian.push_variance(variance)

    def back(grad: Tensor, grad_v: Tensor | None) -> tuple[Tensor, Tensor | None]:
        grad = grad * jacobian.slope
        if grad_v is None:
            return grad, None
        if isinstance(jacobian, Elementwise) and pushed is not None:
            # The slope that the variance is multiplied by moves with h.
            grad += 2 * grad_v * pushed * jacobian.bend()
        return grad, jacobian.push_variance(grad_v)

    return z, pushed, back


def _affine(layer: nn.Linear, z: Tensor, variance: Tensor | None, first: bool) -> Step:
    weight = layer.weight
    out, out_variance = linear(z, weight, layer.bias), None
    if variance is not None:
        square = mixed_square(weight, weight.numel())
        variance = variance.to(square.dtype)
        out_variance = matmul(variance, square.mT).to(z.dtype)

    def back(grad: Tensor, grad_v: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
        to_weight = matmul(grad.mT, z)
        if grad_v is not None and variance is not None:
            grad_v = grad_v.to(square.dtype)
            to_square = matmul(grad_v.mT, variance).to(z.dtype)
            to_weight.addcmul_(to_square, weight, value=2)
        _accumulate(layer, to_weight, grad)
        if first:
            return None, None
        to_variance = None if grad_v is None else matmul(grad_v, square).to(z.dtype)
        return matmul(grad, weight), to_variance

    return out, out_variance, back


def _output(
    layer: nn.Linear,
    family: Family,
    y: Tensor,
    z: Tensor,
    variance: Tensor | None,
    loss_weight: Tensor,
    penalty_weight: Tensor,
    first: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None]:
    weight = layer.weight
    eta = linear(z, weight, layer.bias)
    eta_mean = family.mean(eta)
    loss = family.loss(eta[: len(y)], y).dot(loss_weight)
    grad = family.residual(eta_mean[: len(y)], y).mul_(loss_weight.unsqueeze(-1))
    if len(y) < len(eta):
        grad = torch.cat([grad, torch.zeros_like(eta[len(y) :])])
    penalty, grad_v, to_weight = torch.zeros_like(loss), None, None
    if variance is not None:
        trace, back = family.curvature_trace_vjp(eta, eta_mean, variance, weight)
        penalty = trace.dot(penalty_weight)
        to_eta, grad_v, to_weight = back(penalty_weight, not first)
        if to_eta is not None:
            grad += to_eta
    to_weight = matmul(grad.mT, z) if to_weight is None else to_weight.addmm_(grad.mT, z)
    _accumulate(layer, to_weight, grad)
    return loss, penalty, None if first else matmul(grad, weight), grad_v


def _accumulate(layer: nn.Linear, to_weight: Tensor, to_output: Tensor) -> None:
    """Add to the gradients of a layer's parameters, except those that are frozen."""
    parts = [(layer.weight, to_weight)]
    if layer.bias is not None:
        parts.append((layer.bias, to_output.sum(0)))
    for parameter, part in parts:
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            parameter.grad = part
        else:
            parameter.grad += part
