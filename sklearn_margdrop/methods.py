"""The methods: how the expectation over the noise is taken, and what is true of each.

A method is a penalty function and its row in one or both of the tables. The objective, the
parameter checks of the estimators, the inspection and the documentation read the row.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from sklearn_margdrop.backprop import backpropagate_pairs, backpropagate_tangents
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.penalties import (
    diagonal,
    moments,
    moments_by_pairs,
    quadratic,
    quadratic_by_tangents,
)


class Method(NamedTuple):
    """A row of the tables below.

    Parameters
    ----------
    summary : str
        What it is, for the documentation's table.
    penalty : callable or None
        R of shape (n_samples,), in nats, as a function of a trace and a family. None where the
        noise is drawn: then the loss itself is noised or, where some rows have no label, its
        divergence is the penalty. L-BFGS cannot follow that.
    estimate : callable, default=None
        An unbiased estimate by random signs, where the noise passes hidden layers. As a function
        of a network, a family, rows, the number of probes and a generator it returns a linear
        predictor of shape (n, n_samples, K), whose mean loss over n is that of the rows, and R.
    backprop : callable, default=None
        Loss and penalty with this estimate, and their gradient by hand, see
        :mod:`~sklearn_margdrop.backprop`.
    needs_probes : callable, default=never
        Whether the penalty of a network is expensive without them.
    is_sweep : bool, default=False
        Whether `penalty` pulls the rows of the curvature back through the layers. Samples are
        taken in slices then that fit into the memory.
    second_order : callable, default=quadratic
        The penalty to second order, which is linear in the variances of the noise and so has a
        part for each unit.
    is_whole : bool, default=False
        Whether `penalty` is the expectation itself, rather than its second order.
    has_backprop : callable, default=never
        Whether :func:`~sklearn_margdrop.backprop.backpropagate` has the gradient, for a network.

    Examples
    --------
    >>> from sklearn_margdrop.methods import GLM_METHODS
    >>> sorted(GLM_METHODS), GLM_METHODS["sampling"].is_sampled
    (['moments', 'quadratic', 'sampling'], True)
    """

    summary: str
    penalty: Callable[..., Tensor] | None
    estimate: Callable[..., tuple[Tensor, Tensor]] | None = None
    backprop: Callable[..., tuple[Tensor, Tensor]] | None = None
    needs_probes: Callable[[NoisyNetwork], bool] = lambda network: False
    is_sweep: bool = False
    second_order: Callable[..., Tensor] = quadratic
    is_whole: bool = False
    has_backprop: Callable[[NoisyNetwork], bool] = lambda network: False

    @property
    def is_sampled(self) -> bool:
        """Whether the noise is drawn."""
        return self.penalty is None


#: The methods of the networks.
NETWORK_METHODS = {
    "diagonal": Method(
        "second order, with variances pushed through layer by layer; no cross terms",
        diagonal,
        second_order=diagonal,
        has_backprop=lambda network: True,
    ),
    "quadratic": Method(
        "second order, with the whole Jacobian",
        quadratic,
        quadratic_by_tangents,
        backpropagate_tangents,
        # With noise at the last site alone it is the diagonal one.
        needs_probes=lambda network: len(network.noisy_linears) > 1,
        is_sweep=True,
        has_backprop=lambda network: len(network.noisy_linears) < 2,
    ),
    "moments": Method(
        "the expectation itself",
        moments,
        moments_by_pairs,
        backpropagate_pairs,
        needs_probes=lambda network: len(network.linears) > 1 and bool(network.noise),
        # Variances are pushed through layer by layer.
        second_order=diagonal,
        is_whole=True,
        has_backprop=lambda network: not network.noise,  # without any penalty
    ),
    "sampling": Method("the noise is drawn in each step: ordinary dropout", None),
}

#: The methods of the generalised linear models, where `diagonal` is `quadratic`.
GLM_METHODS = {
    "quadratic": NETWORK_METHODS["quadratic"],
    "moments": NETWORK_METHODS["moments"],
    "sampling": NETWORK_METHODS["sampling"],
}

#: All methods.
METHODS = ChainMap(GLM_METHODS, NETWORK_METHODS)
