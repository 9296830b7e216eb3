r"""The penalties: what noise adds to the loss, without drawing it.

They are pure functions of a trace and a family that return R of shape (n_samples,), in nats.
`moments` is the expectation itself, the others are its second order. (What random signs estimate
is a function of the network instead.) With s_l the noise variance at site l, J_l the Jacobian of
eta with respect to the activation there and H = A''(eta),

    R = 1/2 sum_l sum_i s_li [J_l' H J_l]_ii

The term of the second derivative that multiplies the residual, (o - y) d2 eta / dz2, is
dropped (P, below Eq. 4), so that R needs no label and is never negative.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from sklearn_margdrop.family import Family
from sklearn_margdrop.layers import Affine, NoisyInput
from sklearn_margdrop.networks import NoisyNetwork, Trace
from sklearn_margdrop.noise import Noise, random_signs
from sklearn_margdrop.numerics.memory import slice_length
from sklearn_margdrop.numerics.products import mixed_matmul, sum_of_squares
from sklearn_margdrop.numerics.sparse import Matrix
from sklearn_margdrop.numerics.torch_private import is_transformed

#: With more rows than this, writing U out costs more than the elementwise form of its product.
_MAX_DENSE_ROWS = 128


def quadratic(trace: Trace, family: Family) -> Tensor:
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

    Returns
    -------
    Tensor of shape (n_samples,)
        R, in nats.

    See Also
    --------
    quadratic_by_tangents : Its unbiased estimate, for the price of a forward pass.

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
    size = n_rows = family.curvature_rank(len(weight))
    if not is_transformed():
        affine = (each.weight for each in trace.jacobians[first:] if isinstance(each, Affine))
        size = slice_length(n_rows, trace.eta[..., 0].numel() * pulled_width(affine), trace.eta)
    if size == n_rows <= _MAX_DENSE_ROWS:
        return _sweep(trace, first, mixed_matmul(family.curvature_factor(trace.eta), weight))
    scale, centre = family.curvature_rows(trace.eta)

    def swept(rows: slice) -> Tensor:
        return _sweep(trace, first, _factor_rows(scale, centre, weight, rows))

    if size == n_rows:
        return swept(slice(0, n_rows))
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
    carried = _carried(trace)
    if carried is None:
        return trace.eta.new_zeros(trace.eta.shape[:-1])
    return 0.5 * family.curvature_trace(trace.eta, carried, trace.output.weight)


def moments(trace: Trace, family: Family) -> Tensor:
    """The expectation E A(eta~) - A(eta) itself, rather than its second order.

    W, Eq. 1; F. Of noise at the last site it is in closed form where the family has one, else
    that of the gaussian with the moments of eta~. The noise of earlier sites reaches the last one
    as in :func:`diagonal`.

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
    variance = _carried(trace)
    if variance is None:
        return trace.eta.new_zeros(trace.eta.shape[:-1])
    *inner, last = trace.sources
    arrives = any(source is not None for source in inner)
    noise, z = (None, variance) if last is None or arrives else last
    return family.jensen_gap(trace.eta, NoisyInput(noise, z, variance, trace.output.weight))


def _carried(trace: Trace) -> Matrix | None:
    """The variance of what enters the last layer, without the cross terms; None for zero."""
    carried: Matrix | None = None
    *inner, last = trace.variances
    for jacobian, variance in zip(trace.jacobians[:-1], inner, strict=True):
        carried = _add(carried, variance)
        if carried is not None:
            carried = jacobian.push_variance(cast("Tensor", carried))  # or sparse, if affine
    return _add(carried, last)


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


def quadratic_by_tangents(
    network: NoisyNetwork,
    family: Family,
    x: Tensor,
    n_probes: int = 1,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""An unbiased estimate of :func:`quadratic`, for the price of a forward pass.

    Next to the activations a tangent is pushed forward. At each noisy site the noise's standard
    deviation enters it, with a random sign for each unit. At the output it is

        j = sum_l J_l (r_l * sqrt(s_l)),    E j j' = sum_l J_l diag(s_l) J_l'

    so that the mean of 1/2 j' A''(eta) j is the whole second order, with all sites and all cross
    terms, whatever the number of outputs.

    Parameters
    ----------
    network : NoisyNetwork
        With its noise.
    family : Family
        That of the output.
    x : Tensor of shape (n_samples, n_features)
        The rows.
    n_probes : int, default=1
        The number of tangents of each row, over which the mean is taken.
    generator : torch.Generator, default=None
        Draws the signs. None is torch's global one.

    Returns
    -------
    eta : Tensor of shape (1, n_samples, K)
        The linear predictor.
    R : Tensor of shape (n_samples,)
        The estimate, in nats.

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.families import Categorical
    >>> from sklearn_margdrop.networks import NoisyNetwork
    >>> from sklearn_margdrop.noise import Dropout
    >>> from sklearn_margdrop.penalties import quadratic, quadratic_by_tangents
    >>> network = NoisyNetwork([4, 8, 3], "tanh", {0: Dropout(0.8), 1: Dropout(0.5)})
    >>> x, family, generator = torch.ones(1, 4), Categorical(), torch.Generator().manual_seed(0)
    >>> _, R = quadratic_by_tangents(network, family, x, 10_000, generator)
    >>> torch.allclose(R, quadratic(network.trace(x), family), rtol=0.05)
    True
    """
    trace = network.trace(x)
    tangents = torch.zeros((), dtype=x.dtype, device=x.device)
    for jacobian, source in zip(trace.jacobians, trace.sources, strict=True):
        if source is not None:
            noise, z = cast("tuple[Noise, Tensor]", source)  # hidden layers take no sparse rows
            signs = random_signs((n_probes, *z.shape), z, generator)
            tangents = tangents + noise.deviation(z) * signs
        if tangents.dim() > 0:
            tangents = jacobian.push_forward(tangents)
    return trace.eta.unsqueeze(0), family.second_order(trace.eta, tangents).mean(0)


def moments_by_pairs(
    network: NoisyNetwork,
    family: Family,
    x: Tensor,
    n_probes: int = 1,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The expectation itself, estimated by pairs of opposite noise.

    With eta+ and eta- the linear predictors of a pair (:meth:`NoisyNetwork.mirrored`), their mean
    loss is that of the mean predictor and a penalty without labels:

        1/2 [l(eta+) + l(eta-)] = l(m) + 1/2 [A(eta+) + A(eta-)] - A(m),    m = (eta+ + eta-) / 2

    The penalty is never negative, agrees with the quadratic one to second order, and does not fade
    where predictions are confident. As the noise goes through the layers themselves, rather than
    through their linearisation, a network cannot hide from it behind the kinks of rectifiers.

    Parameters
    ----------
    network : NoisyNetwork
        With its noise.
    family : Family
        That of the output.
    x : Tensor of shape (n_samples, n_features)
        The rows.
    n_probes : int, default=1
        The number of pairs of each row, over which the mean is taken.
    generator : torch.Generator, default=None
        Draws the signs. None is torch's global one.

    Returns
    -------
    eta : Tensor of shape (n_probes, n_samples, K)
        The mean predictors.
    R : Tensor of shape (n_samples,)
        The estimate, in nats.

    Examples
    --------
    Without hidden layers it is the expectation over the signs, exactly:

    >>> import torch
    >>> from sklearn_margdrop.families import Bernoulli
    >>> from sklearn_margdrop.networks import NoisyNetwork
    >>> from sklearn_margdrop.noise import Dropout
    >>> from sklearn_margdrop.penalties import moments_by_pairs
    >>> network, x = NoisyNetwork([1, 1], noise={0: Dropout(0.5)}), torch.ones(1, 1)
    >>> _, R = moments_by_pairs(network, Bernoulli(), x)
    >>> doubled, dropped, kept = (Bernoulli().log_partition(network(t * x)) for t in (2, 0, 1))
    >>> torch.allclose(R, (doubled + dropped) / 2 - kept)
    True
    """
    above, below = network.mirrored(x, n_probes, generator)
    mean = 0.5 * (above + below)
    return mean, family.paired_gap(mean, 0.5 * (above - below)).mean(0)


def _factor_rows(scale: Tensor, centre: Tensor | None, weight: Tensor, rows: slice) -> Tensor:
    """The rows scale_k (e_k - centre) of U, times `weight`: (n_samples, n_rows, width)."""
    each: Tensor = weight[: scale.shape[-1]][rows]
    if centre is not None:
        each = each - mixed_matmul(centre, weight).unsqueeze(-2)
    return scale[..., rows].unsqueeze(-1) * each


def _add(a: Matrix | None, b: Matrix | None) -> Matrix | None:
    if a is None or b is None:
        return b if a is None else a
    return cast("Tensor", a) + cast("Tensor", b)  # only the first site has sparse rows
