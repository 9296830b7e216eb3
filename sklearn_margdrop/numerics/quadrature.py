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

#: Normals whose mixture stands for the logistic distribution.
_N_NORMALS = 15

#: Nodes that stand for the normal distribution of the logits, a power of two.
_N_NODES = 128

#: The sizes of their entries, the small one three times as often as the large one: the moments up
#: to the fifth are those of a normal variable.
_SIZES = (1 - (2 / 3) ** 0.5) ** 0.5, (1 + 6**0.5) ** 0.5


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
    value: Tensor = _Gap.apply(*_softplus_rule(), mean, variance)[0]
    return value


def softplus_gap_vjp(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`softplus_gap` and its derivatives by both arguments, without autograd."""
    return _in_blocks(*_softplus_rule(), mean, variance)


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
    value: Tensor = _Gap.apply(_logsumexp_gap, _n_copies(eta), eta, variance)[0]
    return value


def logsumexp_gap_vjp(eta: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """:func:`logsumexp_gap` and its derivatives by both arguments, without autograd."""
    return _in_blocks(_logsumexp_gap, _n_copies(eta), eta, variance)


@cache
def gauss_hermite() -> list[tuple[float, float]]:
    """Nodes of the expectation over a standard normal, each with its weight."""
    nodes, weights = np.polynomial.hermite_e.hermegauss(20)
    return list(zip(nodes.tolist(), (weights / weights.sum()).tolist(), strict=True))


@cache
def _logistic_mixture() -> tuple[np.ndarray, np.ndarray]:
    """Variances and weights of normals whose mixture is the standard logistic distribution.

    A logistic variable is 2 k times a normal one for k of the Kolmogorov distribution (Andrews
    and Mallows, 1974), whose density falls off fast on both sides of log k. This is the Gauss
    rule for its integrals over log k, which turns an integral over fine steps into one over few:
    the expected rise of softplus is off by less than 1e-11.
    """
    step = 0.01
    log_k = np.arange(-2.2, 1.7, step)
    k = np.exp(log_k)
    j = np.arange(1, 80)[:, None]
    rate = ((2 * j - 1) * np.pi) ** 2 / 8
    with np.errstate(over="ignore", under="ignore"):
        for_small = (2 * np.pi) ** 0.5 * ((2 * rate / k**4 - 1 / k**2) * np.exp(-rate / k**2))
        for_large = 8 * k * (-1.0) ** (j - 1) * j**2 * np.exp(-2 * (j * k) ** 2)
    weights = (step * k * np.where(k < 0.7, for_small.sum(0), for_large.sum(0))).clip(0)
    # The recursion of the orthogonal polynomials, whose matrix has the rule as its eigenvalues.
    basis = [np.sqrt(weights / weights.sum())]
    matrix = np.zeros((_N_NORMALS, _N_NORMALS))
    for row in range(_N_NORMALS):
        new = log_k * basis[-1]
        matrix[row, row] = new @ basis[-1]
        for _ in range(2):  # against rounding errors
            new = new - np.array(basis).T @ (np.array(basis) @ new)
        if row + 1 < _N_NORMALS:
            matrix[row, row + 1] = matrix[row + 1, row] = np.linalg.norm(new)
        basis.append(new / np.linalg.norm(new))
    nodes, vectors = np.linalg.eigh(matrix)
    return 4 * np.exp(2 * nodes), vectors[0] ** 2


class _Gap(torch.autograd.Function):
    """A rule's value; the derivatives that it returns beside the value are the gradient."""

    generate_vmap_rule = True

    @staticmethod
    def forward(rule: Rule, n_copies: int, mean: Tensor, variance: Tensor) -> tuple[Tensor, ...]:
        return _in_blocks(rule, n_copies, mean, variance)

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


def _in_blocks(
    rule: Rule, n_copies: int, mean: Tensor, variance: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """`rule` on blocks that fit the cache; it makes about `n_copies` arrays of their shape."""
    mean, variance = torch.broadcast_tensors(mean, variance)
    cut = blocks(len(mean), n_copies * mean.shape[-1], in_cache=mean.device.type == "cpu")
    cut = cut or [slice(0, 0)]  # no rows have no values
    parts = [rule(mean[rows], variance[rows]) for rows in cut]
    if len(parts) == 1:
        return parts[0]
    value, by_mean, by_variance = map(torch.cat, zip(*parts, strict=True))
    return value, by_mean, by_variance


def _softplus_rule() -> tuple[Rule, int]:
    return _softplus_gap, 4 * _N_NORMALS


def _softplus_gap(mean: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The value and its derivatives, with the normals of the mixture along a new first axis."""
    spread, weight = (torch.from_numpy(each).to(mean) for each in _logistic_mixture())
    # softplus(x) - x/2 is even, and so is the gap: on the left of zero nothing cancels.
    left, shape = -mean.abs().reshape(1, -1), mean.shape
    inverse_root = (variance.reshape(1, -1) + spread.unsqueeze(-1)).rsqrt_()
    t = (left * math.sqrt(0.5)) * inverse_root
    by_left = (0.5 * weight @ t.erf().add_(1)).view(shape)
    density = (t * t).neg_().exp_().mul_(inverse_root)
    # With the variances of the normals as weights, too: the root is the variance by the root.
    sums = torch.stack([weight, weight * spread]).mul_(1 / math.sqrt(2 * math.pi)) @ density
    by_variance, rest = (each.view(shape) for each in sums)
    left = left.view(shape)
    value = rest + by_variance * variance + left * by_left - softplus(left)
    by_mean = mean.sign().neg_().mul_(by_left - left.sigmoid())
    return value.clamp_min_(0), by_mean, 0.5 * by_variance


@cache
def _normal_nodes(n_dimensions: int) -> np.ndarray:
    """Nodes (n_nodes, n_dimensions) with the sizes above, for a standard normal distribution.

    With the number of a node written in bits, a sign is the parity of some of them, and the size
    is the large one where two other parities are both odd. The bits are chosen, one dimension
    after the other, such that moments are those of independent entries, or near them. All of the
    second order are for up to ten dimensions, and no two dimensions of a hundred are alike.
    """
    numbers = np.arange(_N_NODES)
    sums = numbers[:, None] ^ numbers
    parity = np.array([bin(number).count("1") % 2 for number in numbers])
    # The first bit is in every sign and in no size: the negatives of nodes are nodes.
    pairs = np.array([(a, b) for a in numbers[2::2] for b in numbers[2::2] if a < b < a ^ b])
    small, large = _SIZES
    # How much of each parity there is in an entry, and in all entries and squares so far.
    share = np.array([3 * small + large, *[large - small] * 3])[:, None] / 4
    entries, squares = np.zeros((2, _N_NODES))
    nodes = np.empty((_N_NODES, n_dimensions))
    generator = np.random.RandomState(0)
    for k in range(n_dimensions):
        tried = max(2**7, 2**11 // (k + 1))
        sign = 1 + 2 * generator.randint(_N_NODES // 2, size=tried)
        one, two = pairs[generator.randint(len(pairs), size=tried)].T
        odd, even = np.stack([sign, sign ^ one, sign ^ two, sign ^ one ^ two]), one ^ two
        signs, sizes = (parity[numbers[:, None] & each] for each in (sign, one))
        sizes &= parity[numbers[:, None] & two]
        columns = (1 - 2 * signs) * np.where(sizes, large, small)
        # Mixed moments of the fourth order, and covariances, which matter more.
        cubes = (entries[sums] * squares).sum(1)
        cost = (share * cubes[odd]).sum(0)
        cost += (squares + (entries[sums] * entries).sum(1))[np.stack([one, two, even])].sum(0)
        cost += 100 * np.square(nodes[:, :k].T @ columns / _N_NODES).sum(0)
        best = int(cost.argmin())
        nodes[:, k] = columns[:, best]
        entries[odd[:, best]] += share[:, 0]
        squares[[one[best], two[best], even[best]]] += 1.0
    return nodes


@cache
def _selection(n_classes: int) -> Tensor:
    """Ones where a node has one of the four values: (4 n_classes, n_nodes).

    The values are the small size and its negative, and then the large ones, for all classes each.
    """
    nodes = _normal_nodes(n_classes)
    nodes = np.concatenate([nodes[::2], nodes[1::2]])  # of which these are the negatives
    parts = [nodes == sign * size for size in _SIZES for sign in (1, -1)]
    return torch.from_numpy(np.concatenate(parts, 1).T.astype(float))


def _n_copies(eta: Tensor) -> int:
    """How many arrays of the shape of `eta` fill the memory that the rule takes."""
    return 12 + 2 * _N_NODES // eta.shape[-1]


def _logsumexp_gap(eta: Tensor, variance: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The value and its derivatives.

    Each class has four values only, so that the sums over the classes at all nodes are a product
    with a matrix of zeros and ones.
    """
    (small, large), dtype = _SIZES, eta.dtype
    if eta.device.type != "mps":
        eta, variance = eta.double(), variance.double()  # the range of the exponentials
    selection = _selection(eta.shape[-1]).to(eta)
    # The root has a finite derivative everywhere, and the value a negligible excess.
    std = (variance + torch.finfo(dtype).eps).sqrt()
    # The exponentials stay below the cube root of what can be represented.
    bounded = std.clamp_max(math.log(torch.finfo(eta.dtype).max) / (3 * large))
    weight = (eta - eta.amax(-1, keepdim=True)).exp()
    total = weight.sum(-1, keepdim=True)
    factors = [(size * bounded).exp() for size in _SIZES]
    at = torch.cat([part for f in factors for part in (weight * f, weight / f)], -1)
    sums = at @ selection
    half, share = _N_NODES // 2, 1 / _N_NODES
    # Both sums of a pair share a logarithm.
    value = (sums[:, :half] * sums[:, half:]).log().sum(-1) * share - total.squeeze(-1).log()
    at = at * (sums.reciprocal() @ (selection.mT * share))
    up, down, far_up, far_down = at.chunk(4, -1)
    by_std = small * (up - down) + large * (far_up - far_down)
    by_eta = (up + down) + (far_up + far_down) - weight / total
    # Beyond the bound the expectation grows linearly with the standard deviation.
    value = value + (by_std * (std - bounded)).sum(-1)
    by_variance = 0.5 * by_std / std
    return value.clamp_min(0).to(dtype), by_eta.to(dtype), by_variance.to(dtype)
