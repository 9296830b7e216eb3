"""Expectations over a gaussian: how far a convex function rises on average when noise is added.

Each rule is deterministic, with the same nodes at every call, so that L-BFGS sees one smooth
function, and has its derivatives written out.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sklearn_margdrop.numerics.memory import blocks

#: The value at a mean and a variance, and its derivatives with respect to them.
Rule: TypeAlias = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]

#: Pairs of nodes that stand for the normal distribution of the logits.
_N_NODES = 64


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)), to the last bit of float64 (torch's default threshold is for float32)."""
    return F.softplus(x, threshold=40)


def softplus_gap(mean: Tensor, variance: Tensor) -> Tensor:
    """Expected rise of softplus: E softplus(m + sqrt(v) e) - softplus(m) for standard normal e.

    The logistic distribution is a mixture of normals with variances s_k and weights p_k, so that
    E sigmoid(m + sqrt(v) e) is the sum of p_k Phi(m / r_k), r_k^2 = s_k + v, and its integral over
    m that of p_k (m Phi(m / r_k) + r_k phi(m / r_k)). The error is below 1e-10 for every mean and
    variance, where that of 20 Gauss-Hermite nodes grows with the variance (1e-6 at 4).

    Parameters
    ----------
    mean, variance : Tensor
        Of the gaussian; they are broadcast.

    Returns
    -------
    Tensor of the broadcast shape
        In nats, and not negative.

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.numerics.quadrature import softplus_gap
    >>> mean, variance = torch.zeros(1).double(), torch.full((1,), 1e-2).double()
    >>> gap, second_order = softplus_gap(mean, variance).item(), 0.25 * 1e-2 / 2
    >>> f"{gap:.6f} {second_order:.6f}"
    '0.001248 0.001250'
    """
    value: Tensor = _Gap.apply(_softplus_gap, len(_logistic_mixture()[0]), mean, variance)[0]
    return value


def logsumexp_gap(eta: Tensor, variance: Tensor) -> Tensor:
    """Expected rise of logsumexp: E logsumexp(eta + sqrt(v) e) - logsumexp(eta).

    The e are independent and standard normal; the expectation is a mean over fixed nodes.

    Parameters
    ----------
    eta, variance : Tensor of shape (n_samples, K)
        Of the gaussians.

    Returns
    -------
    Tensor of shape (n_samples,)
        In nats, and not negative.

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.numerics.quadrature import logsumexp_gap
    >>> logsumexp_gap(torch.zeros(1, 3), torch.full((1, 3), 0.1)).round(decimals=3)
    tensor([0.0330])
    """
    value: Tensor = _Gap.apply(_logsumexp_gap, 16, eta, variance)[0]
    return value


@cache
def gauss_hermite() -> list[tuple[float, float]]:
    """Nodes of the expectation over a standard normal, each with its weight."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    return list(zip(nodes.tolist(), (weights / weights.sum()).tolist(), strict=True))


@cache
def _logistic_mixture() -> tuple[list[float], list[float]]:
    """Variances and weights of normals whose mixture is the standard logistic distribution.

    A logistic variable is 2 k times a normal one for k of the Kolmogorov distribution (Andrews
    and Mallows, 1974), whose density falls off so fast on both sides of log k that the
    trapezoidal rule converges exponentially: the cumulative distribution is off by 1e-11.
    """
    step = 0.15
    k = np.exp(np.arange(-1.8, 1.5, step))
    j = np.arange(1, 60)[:, None]
    rate = ((2 * j - 1) * np.pi) ** 2 / 8
    with np.errstate(over="ignore", under="ignore"):
        for_small = (2 * np.pi) ** 0.5 * ((2 * rate / k**4 - 1 / k**2) * np.exp(-rate / k**2))
        for_large = 8 * k * (-1.0) ** (j - 1) * j**2 * np.exp(-2 * (j * k) ** 2)
    weights = step * k * np.where(k < 0.7, for_small.sum(0), for_large.sum(0))
    kept = weights > 1e-13
    return (4 * k[kept] ** 2).tolist(), (weights[kept] / weights[kept].sum()).tolist()


class _Gap(torch.autograd.Function):
    """A rule's value; the derivatives that it returns beside the value are the gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rule: Rule, n_copies: int, mean: Tensor, variance: Tensor) -> tuple[Tensor, ...]:
        """`rule` on blocks that fit the cache; it makes about `n_copies` arrays of their shape."""
        mean, variance = torch.broadcast_tensors(mean, variance)
        cut = blocks(len(mean), n_copies * mean.shape[-1], in_cache=mean.device.type == "cpu")
        cut = cut or [slice(0, 0)]  # no rows have no values
        parts = [rule(mean[rows], variance[rows]) for rows in cut]
        return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.mark_non_differentiable(*output[1:])
        ctx.save_for_backward(*output[1:])

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor | None) -> tuple[Tensor | None, ...]:
        by_mean, by_variance = ctx.saved_tensors
        if grad.dim() < by_mean.dim():  # one value for all classes
            grad = grad.unsqueeze(-1)
        return None, None, grad * by_mean, grad * by_variance


def _softplus_gap(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The value and its derivatives, with the normals of the mixture along a new first axis."""
    spread, weight = (mean.new_tensor(each) for each in _logistic_mixture())
    inverse_root = (variance + spread.view(-1, *[1] * mean.dim())).rsqrt_()
    # softplus(x) - x/2 is even, and so is the gap: on the left of zero nothing cancels.
    left = -mean.abs()
    t = left * inverse_root
    density = (t * t).mul_(-0.5).exp_()
    by_left = torch.tensordot(weight, torch.special.ndtr(t), 1)
    weight = weight / math.sqrt(2 * math.pi)
    value = torch.tensordot(weight, density / inverse_root, 1)
    value += left * by_left - softplus(left)
    by_mean = -mean.sign() * (by_left - left.sigmoid())
    by_variance = torch.tensordot(weight, density.mul_(inverse_root), 1)
    return value.clamp_min(0), by_mean, 0.5 * by_variance


@cache
def _normal_nodes(n_dimensions: int) -> Tensor:
    """Points (n_nodes, n_dimensions) that stand, with their negatives, for a standard normal.

    Scrambled Sobol points with a fixed seed, whitened so that second moments are exact.
    """
    sobol = torch.quasirandom.SobolEngine(n_dimensions, scramble=True, seed=0)
    uniform = sobol.draw(_N_NODES, dtype=torch.float64)
    nodes: Tensor = torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))
    nodes /= nodes.square().mean(0).sqrt()
    if n_dimensions < _N_NODES:
        values, vectors = torch.linalg.eigh(nodes.mT @ nodes / _N_NODES)
        nodes = nodes @ (vectors * values.rsqrt()) @ vectors.mT
    return nodes


def _logsumexp_gap(eta: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The value and its derivatives, with the classes along the first axis meanwhile."""
    dtype = eta.dtype
    if eta.device.type != "mps":
        eta, variance = eta.double(), variance.double()  # the range of the exponentials
    nodes = _normal_nodes(eta.shape[-1]).to(eta)
    # The root has a finite derivative everywhere, and the value a negligible excess.
    std = (variance + torch.finfo(dtype).eps).sqrt().mT.contiguous()
    # A pair of nodes shares one exponential, of up to the cube root of what can be represented.
    bounded = std.clamp_max(math.log(torch.finfo(eta.dtype).max) / (3 * nodes.abs().max()))
    eta = eta.mT.contiguous()
    weight = (eta - eta.amax(0)).exp_()
    value = torch.zeros_like(weight[0] + std[0])
    by_eta, by_std = torch.zeros_like(weight + std), torch.zeros_like(weight + std)
    for node in nodes.unsqueeze(-1):
        factor = (node * bounded).exp_()
        above, below = weight * factor, weight / factor
        total_above, total_below = above.sum(0), below.sum(0)
        value += (total_above * total_below).log_()
        above *= total_above.reciprocal_()
        below *= total_below.reciprocal_()
        by_eta += above
        by_eta += below
        by_std += above.sub_(below).mul_(node)
    # Beyond the bound the expectation grows linearly with the standard deviation.
    value += (by_std * (std - bounded)).sum(0)
    share = 0.5 / len(nodes)
    total = weight.sum(0)
    value = (value.mul_(share) - total.log()).clamp_min(0)
    by_eta = by_eta.mul_(share) - weight / total
    by_variance = by_std.mul_(0.5 * share) / std
    return value.to(dtype), by_eta.mT.to(dtype), by_variance.mT.to(dtype)
