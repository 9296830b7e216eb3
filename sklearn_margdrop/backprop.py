"""The gradient of loss and penalty by hand, where one pass through the network computes them.

That is the case for `diagonal`, for `quadratic` where it is the same, for `sampling` without
unlabelled rows, and wherever random tangents estimate the penalty. Autograd gives the same values
and derivatives; but its bookkeeping takes most of the time of the steps of small networks, and
its temporaries most of that of wide ones.

A forward function returns the mean and the variance of its output, or the stack of its output and
the tangents there, and a function that takes derivatives with respect to them back to its input.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from sklearn_margdrop.family import Family
from sklearn_margdrop.layers import ACTIVATIONS, Elementwise, Identity, Mask, linearize
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.noise import Noise, random_signs
from sklearn_margdrop.numerics.products import linear, matmul, mixed_square

#: Takes derivatives with respect to mean and variance back; None where there is none.
Back: TypeAlias = Callable[..., tuple[Tensor | None, Tensor | None]]

#: A mean, its variance, and the way back.
Step: TypeAlias = tuple[Tensor, Tensor | None, Back]

#: Takes the derivatives of a stack back; None where there are none.
StackBack: TypeAlias = Callable[[Tensor], Tensor | None]

#: Activations, and tangents after them, of shape (n, n_rows, width), and the way back.
StackStep: TypeAlias = tuple[Tensor, StackBack]

#: A penalty as a function of eta, A'(eta) and a displacement of eta; and its derivatives by eta
#: and by the displacement.
ProbeVJP: TypeAlias = Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor | None, Tensor]]


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


@torch.no_grad()
def backpropagate_tangents(
    network: NoisyNetwork,
    family: Family,
    x: Tensor,
    y: Tensor,
    loss_weight: Tensor,
    penalty_weight: Tensor,
    n_probes: int = 1,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`backpropagate`, with the second order along random tangents.

    Rows and tangents go through each layer in a single product.

    Parameters
    ----------
    network, family, x, y, loss_weight, penalty_weight
        See :func:`backpropagate`.
    n_probes : int, default=1
        The number of tangents of each row.
    generator : torch.Generator, default=None
        Of their signs, drawn as in :func:`~sklearn_margdrop.penalties.quadratic_by_tangents`.

    Returns
    -------
    loss, penalty : Tensor
        Scalars.
    """
    stack, tape = _forward(network, x.unsqueeze(0), 1, n_probes, _displace, generator)
    loss, penalty, *grads = _head(
        family, stack[:1], stack[1:], y, loss_weight, penalty_weight, family.second_order_vjp
    )
    _backward(tape, torch.cat(grads))
    return loss, penalty


@torch.no_grad()
def backpropagate_pairs(
    network: NoisyNetwork,
    family: Family,
    x: Tensor,
    y: Tensor,
    loss_weight: Tensor,
    penalty_weight: Tensor,
    n_probes: int = 1,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """As :func:`backpropagate`, for the pairs of :meth:`NoisyNetwork.mirrored`.

    All rows of both go through each layer in a single product.

    Parameters
    ----------
    network, family, x, y, loss_weight, penalty_weight
        See :func:`backpropagate`.
    n_probes : int, default=1
        The number of pairs of each row.
    generator : torch.Generator, default=None
        Of the signs, drawn as in :func:`~sklearn_margdrop.penalties.moments_by_pairs`.

    Returns
    -------
    loss, penalty : Tensor
        Scalars.
    """
    stack = x.expand(2 * n_probes, *x.shape)
    stack, tape = _forward(network, stack, len(stack), n_probes, _mirror, generator)
    above, below = stack.chunk(2)
    mean = (above + below).mul_(0.5)
    if loss_weight is penalty_weight:
        loss, penalty, grad = _mean_loss(family, stack, mean, y, loss_weight)
    else:
        loss, penalty, by_mean, by_half = _head(
            family,
            mean,
            (above - below).mul_(0.5),
            y,
            loss_weight,
            penalty_weight,
            family.paired_gap_vjp,
        )
        grad = torch.cat([by_mean + by_half, by_mean - by_half]).mul_(0.5)
    _backward(tape, grad)
    return loss, penalty


def _forward(
    network: NoisyNetwork,
    stack: Tensor,
    n_clean: int,
    n_probes: int,
    enter: Callable[[Noise, Tensor, Tensor], StackStep],
    generator: torch.Generator | None,
) -> tuple[Tensor, list[StackBack]]:
    """The stack at the output, and the ways back; `enter` lets noise with random signs in.

    The first `n_clean` of the stack are activations, the others tangents of the first.
    """
    tape: list[StackBack] = []
    for index, layer in enumerate(network.layers):
        noise = network.noise.get(index)
        if noise is not None:
            signs = random_signs((n_probes, *stack.shape[1:]), stack, generator)
            stack, back = enter(noise, stack, signs)
            if index > 0:  # no derivatives of the data themselves
                tape.append(back)
        if isinstance(layer, nn.Linear):
            stack, back = _stacked_affine(layer, stack, index == 0, n_clean)
        elif isinstance(layer, nn.ReLU) and len(stack) == n_clean:
            stack, back = _rectify(stack)
        else:
            stack, back = _stacked_activation(layer, stack, n_clean)
        tape.append(back)
    return stack, tape


def _backward(tape: list[StackBack], grad: Tensor) -> None:
    pulled: Tensor | None = grad
    for back in reversed(tape):
        pulled = back(cast("Tensor", pulled))


def _head(
    family: Family,
    eta: Tensor,
    tangents: Tensor,
    y: Tensor,
    loss_weight: Tensor,
    penalty_weight: Tensor,
    probe: ProbeVJP,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Loss and penalty of displaced linear predictors, and derivatives by both.

    `eta` has the shape (n, n_rows, K), with n the number of `tangents` or 1.
    """
    n, n_labeled = len(eta), len(y)
    mean = family.mean(eta)
    labeled = eta[:, :n_labeled].flatten(0, 1)
    if n > 1:
        loss_weight, y = (loss_weight / n).repeat(n), torch.cat([y] * n)
    loss = family.loss(labeled, y).dot(loss_weight)
    value, by_eta, by_tangent = probe(eta, mean, tangents)
    each = penalty_weight / max(len(tangents), 1)
    penalty = value.sum(0).dot(each)
    each = each.unsqueeze(-1)
    if by_eta is None:
        grad = torch.zeros_like(eta)
    else:
        grad = (by_eta if n == len(by_eta) else by_eta.sum(0, keepdim=True)) * each
    residual = family.residual(mean[:, :n_labeled].flatten(0, 1), y) * loss_weight.unsqueeze(-1)
    grad[:, :n_labeled] += residual.view(n, n_labeled, -1)
    return loss, penalty, grad, by_tangent * each


def _mean_loss(
    family: Family, stack: Tensor, mean: Tensor, y: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`_head` for pairs, whose mean loss it is, if all rows weigh in both terms alike."""
    n = len(mean)
    y, weight = (y, weight) if n == 1 else (torch.cat([y] * n), weight.repeat(n) / n)
    loss = family.loss(mean.flatten(0, 1), y).dot(weight)
    flat, y, weight = stack.flatten(0, 1), torch.cat([y, y]), torch.cat([weight, weight]) / 2
    penalty = family.loss(flat, y).dot(weight).sub_(loss).clamp_min_(0)  # but for rounding
    grad = family.residual(family.mean(flat), y).mul_(weight.unsqueeze(-1))
    return loss, penalty, grad.view_as(stack)


def _mirror(noise: Noise, stack: Tensor, signs: Tensor) -> StackStep:
    displaced, slope = noise.mirror(stack, signs)
    return displaced, lambda grad: grad if slope is None else grad.mul_(slope)


def _displace(noise: Noise, stack: Tensor, signs: Tensor) -> StackStep:
    entering, slope = noise.displace(stack[0], signs)
    if len(stack) == 1:
        return torch.cat([stack, entering]), lambda grad: _back_from_noise(grad, slope)[:1]
    stack[1:] += entering
    return stack, lambda grad: _back_from_noise(grad, slope)


def _back_from_noise(grad: Tensor, slope: Tensor | None) -> Tensor:
    if slope is not None:
        for of_tangent, each in zip(grad[1:], slope, strict=True):
            grad[0].addcmul_(of_tangent, each)
    return grad


def _rectify(stack: Tensor) -> StackStep:
    """In place: nothing else needs what a linear layer returned."""
    out = stack.relu_()
    return out, lambda grad: torch.ops.aten.threshold_backward(grad, out, 0)


def _stacked_activation(layer: nn.Module, stack: Tensor, n_clean: int) -> StackStep:
    z, jacobian = linearize(layer, stack[:n_clean])
    if isinstance(jacobian, Identity):
        return stack, lambda grad: grad
    assert isinstance(jacobian, Elementwise | Mask)  # as is_known has checked
    slope, tangents = jacobian.slope, stack[n_clean:]
    if isinstance(jacobian, Mask):
        return stack.mul_(slope), lambda grad: grad.mul_(slope)

    def back(grad: Tensor) -> Tensor:
        grad *= slope
        if len(tangents) > 0:  # the slope of the tangents moves with what enters
            grad[0].addcmul_((grad[1:] * tangents).sum(0), jacobian.bend()[0])
        return grad

    return torch.cat([z, tangents * slope]) if len(tangents) else z, back


def _stacked_affine(layer: nn.Linear, stack: Tensor, first: bool, n_clean: int) -> StackStep:
    weight, rows = layer.weight, stack.flatten(0, 1)
    n_rows = n_clean * stack.shape[1]
    bias = layer.bias if n_rows == len(rows) else None
    out = linear(rows, weight, bias)
    if bias is not layer.bias:
        out[:n_rows] += layer.bias

    def back(grad: Tensor) -> Tensor | None:
        flat = grad.flatten(0, 1)
        _accumulate(layer, matmul(flat.mT, rows), flat[:n_rows])
        return None if first else matmul(flat, weight).view_as(stack)

    return out.unflatten(0, stack.shape[:2]), back


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
    accumulate(layer, to_weight, None if layer.bias is None else to_output.sum(0))


def accumulate(layer: nn.Linear, to_weight: Tensor, to_bias: Tensor | None) -> None:
    """Add to the gradients of a layer's parameters, except those that are frozen."""
    parts = [(layer.weight, to_weight)]
    if layer.bias is not None and to_bias is not None:
        parts.append((layer.bias, to_bias))
    for parameter, part in parts:
        if not parameter.requires_grad:
            continue
        if parameter.grad is None:
            parameter.grad = part
        else:
            parameter.grad += part
