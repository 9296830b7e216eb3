r"""The penalties: what noise adds to the loss, without drawing it.

They are pure functions of a trace and a family that return R of shape (n_samples,), in nats.
`moments` is the expectation itself, of a network without hidden layers; the others are its
second order. With s_l the noise variance at site l, J_l the Jacobian of eta with respect to the
activation there and H = A''(eta),

    R = 1/2 sum_l sum_i s_li [J_l' H J_l]_ii

The term of the second derivative that multiplies the residual, (o - y) d2 eta / dz2, is
dropped (P, below Eq. 4), so that R needs no label and is never negative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sklearn_margdrop.families import Family
from sklearn_margdrop.layers import Affine, NoisyInput
from sklearn_margdrop.networks import Trace
from sklearn_margdrop.noise import random_int16
from sklearn_margdrop.numerics.memory import slice_length
from sklearn_margdrop.numerics.products import mixed_matmul, sum_of_squares
from sklearn_margdrop.numerics.sparse import Matrix
from sklearn_margdrop.numerics.torch_private import is_transformed

#: With more rows than this, writing U out costs more than the elementwise form of its product.
_MAX_DENSE_ROWS = 128


def quadratic(trace: Trace, family: Family, probes: Tensor | None = None) -> Tensor:
    """The exact second-order penalty.

    P, Eq. 8; W, the quadratic noising regularizer.

    The curvature is factored once, H = U'U, and the rows of U are pulled back through the
    layers together: all sites cost one sweep, and J' H J is never formed. Where the pulled rows
    would take too much memory (:func:`~sklearn_margdrop.numerics.memory.slice_length`), each
    slice of them has a sweep of its own, which the backward pass repeats. Under
    ``torch.compile`` and the transforms of ``torch.func`` nothing is cut.

    Parameters
    ----------
    trace : Trace
        A clean forward pass.
    family : Family
        That of the output.
    probes : Tensor of shape (n_samples, size, n_probes), default=None
        Signs of random combinations of the rows of U, see :func:`draw_probes`, which make the
        value and the gradient unbiased estimates. All layers but the last work on `n_probes`
        rows then, and the last one on a single row's worth, whatever their number.

    Returns
    -------
    Tensor of shape (n_samples,)
        R, in nats.

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.families import Categorical
    >>> from sklearn_margdrop.networks import NoisyNetwork
    >>> from sklearn_margdrop.noise import Dropout
    >>> from sklearn_margdrop.penalties import quadratic
    >>> network = NoisyNetwork([4, 8, 3], "tanh", {0: Dropout(0.8), 1: Dropout(0.5)})
    >>> R = quadratic(network.trace(torch.eye(4)), Categorical())
    >>> R.shape, bool((R > 0).all())
    (torch.Size([4]), True)
    """
    total = trace.eta.new_zeros(trace.eta.shape[:-1])
    noisy = [index for index, s in enumerate(trace.variances) if s is not None]
    if not noisy:
        return total
    if noisy[0] == len(trace.variances) - 1:
        # Noise at the last site alone: the diagonal form is exact and forms no cotangents.
        return diagonal(trace, family)
    weight, first = trace.output.weight, noisy[0]
    n_rows = family.curvature_rank(len(weight)) if probes is None else probes.shape[-1]
    affine = (each.weight for each in trace.jacobians[first:] if isinstance(each, Affine))
    size = n_rows
    if not is_transformed():
        size = slice_length(n_rows, trace.eta[..., 0].numel() * pulled_width(affine), trace.eta)
    if probes is not None:
        pull = _combinations(*family.curvature_rows(trace.eta), weight, probes)
    elif size < n_rows or n_rows > _MAX_DENSE_ROWS:
        pull = _factor_rows(*family.curvature_rows(trace.eta), weight)
    else:
        return _sweep(trace, first, mixed_matmul(family.curvature_factor(trace.eta), weight))
    if size == n_rows:
        return _sweep(trace, first, pull(slice(0, n_rows)))

    def swept(rows: slice) -> Tensor:
        return _sweep(trace, first, pull(rows))

    for start in range(0, n_rows, size):
        rows = slice(start, min(start + size, n_rows))
        total = total + checkpoint(swept, rows, use_reentrant=False, preserve_rng_state=False)
    return total


def pulled_width(weights: Iterable[Tensor]) -> int:
    """How many numbers a row of U becomes on its way back, for one sample.

    Parameters
    ----------
    weights : iterable of Tensor of shape (n_outputs, n_inputs)
        Those of the layers from the first noisy site to the output.

    Returns
    -------
    int
        Twice the inputs of each layer, since activations lie between them, and the outputs.

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.penalties import pulled_width
    >>> pulled_width([torch.empty(8, 4), torch.empty(3, 8)])
    27
    """
    weights = list(weights)
    return len(weights[-1]) + 2 * sum(weight.shape[-1] for weight in weights)


def _sweep(trace: Trace, first: int, cotangents: Tensor) -> Tensor:
    """What rows of U that have passed the output layer add to the penalty of each sample."""
    total = trace.eta.new_zeros(trace.eta.shape[:-1])
    last = len(trace.jacobians) - 1
    for index in range(last, first - 1, -1):
        if index < last:
            cotangents = trace.jacobians[index].pull_back(cotangents)
        # Sparse rows have no hidden layers.
        variance = cast("Tensor | None", trace.variances[index])
        if variance is not None:
            total = total + 0.5 * (sum_of_squares(cotangents) * variance).sum(-1)
    return total


def diagonal(trace: Trace, family: Family) -> Tensor:
    """The second-order penalty with the cross terms between units dropped.

    P, Eq. 9.

    Variances are pushed forward layer by layer next to the activations; the output layer
    keeps the family's whole curvature. One extra forward pass, whatever the noisy sites; the
    same value as :func:`quadratic` when only the last site is noisy.

    Parameters
    ----------
    trace : Trace
        A clean forward pass.
    family : Family
        That of the output.

    Returns
    -------
    Tensor of shape (n_samples,)
        R, in nats.

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.families import Categorical
    >>> from sklearn_margdrop.networks import NoisyNetwork
    >>> from sklearn_margdrop.noise import Dropout
    >>> from sklearn_margdrop.penalties import diagonal, quadratic
    >>> network = NoisyNetwork([4, 8, 3], "tanh", {1: Dropout(0.5)})
    >>> trace = network.trace(torch.eye(4))
    >>> torch.allclose(diagonal(trace, Categorical()), quadratic(trace, Categorical()))
    True
    """
    carried: Matrix | None = None
    *inner, last = trace.variances
    for jacobian, variance in zip(trace.jacobians[:-1], inner, strict=True):
        carried = _add(carried, variance)
        if carried is not None:
            carried = jacobian.push_variance(cast("Tensor", carried))  # or sparse, if affine
    carried = _add(carried, last)
    if carried is None:
        return trace.eta.new_zeros(trace.eta.shape[:-1])
    return 0.5 * family.curvature_trace(trace.eta, carried, trace.output.weight)


def moments(trace: Trace, family: Family) -> Tensor:
    """The expectation E A(eta~) - A(eta) itself, for noise at the last site.

    W, Eq. 1; F. In closed form where the family has one, else that of the gaussian with the
    moments of eta~.

    Parameters
    ----------
    trace : Trace
        A clean forward pass.
    family : Family
        That of the output.

    Returns
    -------
    Tensor of shape (n_samples,)
        The expectation, in nats.

    Raises
    ------
    NotImplementedError
        If another site is noisy.

    Examples
    --------
    Of the normal family it is its second order:

    >>> import torch
    >>> from sklearn_margdrop.families import Normal, Poisson
    >>> from sklearn_margdrop.networks import NoisyNetwork
    >>> from sklearn_margdrop.noise import Dropout
    >>> from sklearn_margdrop.penalties import moments, quadratic
    >>> trace = NoisyNetwork([4, 1], noise={0: Dropout(0.5)}).trace(torch.ones(1, 4))
    >>> torch.allclose(moments(trace, Normal()), quadratic(trace, Normal()))
    True
    >>> torch.allclose(moments(trace, Poisson()), quadratic(trace, Poisson()))
    False
    """
    *inner, last = trace.sources
    variance = trace.variances[-1]
    if any(source is not None for source in inner):
        raise NotImplementedError("Moments are known for noise at the last site alone.")
    if last is None or variance is None:
        return trace.eta.new_zeros(trace.eta.shape[:-1])
    noise = NoisyInput(*last, variance, trace.output.weight)
    return family.jensen_gap(trace.eta, noise)


def parts(
    trace: Trace, family: Family, weight: Tensor, penalty: Callable[[Trace, Family], Tensor]
) -> list[Tensor | None]:
    """What the noise of each unit adds to the weighted sum of a second-order penalty.

    Such a penalty is linear in the variances of the noise, so that its derivatives with respect
    to a factor of each of them, at one, add up to it.

    Parameters
    ----------
    trace : Trace
        With dense variances.
    family : Family
    weight : Tensor of shape (n_samples,)
    penalty : callable
        :func:`quadratic` or :func:`diagonal`.

    Returns
    -------
    list of (Tensor of shape (width,) or None)
        For the site before each layer; None where it is not noisy.
    """
    dense = cast("tuple[Tensor | None, ...]", trace.variances)
    noisy = {index: s for index, s in enumerate(dense) if s is not None}
    if not noisy:
        return [None] * len(trace.variances)
    variances = list(dense)
    factors = [torch.ones_like(s[0]).requires_grad_() for s in noisy.values()]
    with torch.enable_grad():
        for index, factor in zip(noisy, factors, strict=True):
            variances[index] = noisy[index] * factor
        total = penalty(trace._replace(variances=tuple(variances)), family).dot(weight)
        found = dict(zip(noisy, torch.autograd.grad(total, factors), strict=True))
    return [found.get(index) for index in range(len(variances))]


def draw_probes(
    n_samples: int,
    n_probes: int,
    rank: int,
    *,
    like: Tensor,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Draw random signs that combine the rows of U.

    Combination p of a sample is the sum of the rows p, p + n_probes, p + 2 n_probes, ..., each
    with its sign. Products of different rows cancel on average. Combinations of all rows would
    have more such products, and would cost `n_probes` times as much.

    Parameters
    ----------
    n_samples, n_probes, rank : int
        The numbers of samples, of combinations for each, and of rows of U for each.
    like : Tensor
        The signs are on its device and have its dtype.
    generator : torch.Generator, default=None
        None is torch's global one.

    Returns
    -------
    Tensor of shape (n_samples, ceil(rank / n_probes), n_probes)
        Plus and minus one.

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.penalties import draw_probes
    >>> generator = torch.Generator().manual_seed(0)
    >>> draw_probes(100, 4, 9, like=torch.empty(0), generator=generator).shape
    torch.Size([100, 3, 4])
    """
    shape = (n_samples, -(-rank // n_probes), n_probes)
    negative = random_int16(shape, generator, like.device) < 0
    return negative.to(like.dtype).mul_(-2).add_(1)


#: Some rows of U, or of their combinations, times the output's weights.
Pull: TypeAlias = Callable[[slice], Tensor]


def _factor_rows(scale: Tensor, centre: Tensor | None, weight: Tensor) -> Pull:
    """The rows scale_k (e_k - centre) times `weight`, of shape (n_samples, n_rows, width)."""

    def pull(rows: slice) -> Tensor:
        each: Tensor = weight[: scale.shape[-1]][rows]
        if centre is not None:
            each = each - mixed_matmul(centre, weight).unsqueeze(-2)
        return scale[..., rows].unsqueeze(-1) * each

    return pull


def _combinations(scale: Tensor, centre: Tensor | None, weight: Tensor, probes: Tensor) -> Pull:
    """Combinations of these rows times `weight`, of the same shape."""
    size, n_probes = probes.shape[-2:]
    rank = scale.shape[-1]
    missing = size * n_probes - rank
    scaled = F.pad(scale, (0, missing)).unflatten(-1, (size, n_probes)) * probes
    signed = scaled.permute(2, 0, 1)
    rows = F.pad(weight[:rank], (0, 0, 0, missing)).unflatten(0, (size, n_probes)).transpose(0, 1)

    def pull(chosen: slice) -> Tensor:
        combined = mixed_matmul(signed[chosen], rows[chosen]).transpose(0, 1)
        if centre is None:
            return combined
        total = scaled.sum(-2)[:, chosen].unsqueeze(-1)
        return torch.baddbmm(combined, total, mixed_matmul(centre, weight).unsqueeze(-2), alpha=-1)

    return pull


def _add(a: Matrix | None, b: Matrix | None) -> Matrix | None:
    if a is None or b is None:
        return b if a is None else a
    return cast("Tensor", a) + cast("Tensor", b)  # only the first site has sparse rows
