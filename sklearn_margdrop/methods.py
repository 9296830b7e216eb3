"""The methods: how the expectation over the noise is taken, and what is true of each.

A method is a penalty function and its row in one or both of the tables. The objective, the
parameter checks of the estimators, the inspection and the documentation read the row.
"""

from __future__ import annotations

from collections import ChainMap
from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.penalties import diagonal, moments, quadratic


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
    takes_probes : bool, default=False
        Whether `penalty` pulls the rows of the curvature back through the layers. Its third
        argument is then the signs of random combinations of them, or None, and samples are taken
        in slices that fit into the memory.
    second_order : callable, default=quadratic
        The penalty to second order, which is linear in the variances of the noise and so has a
        part for each unit.
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
    takes_probes: bool = False
    second_order: Callable[..., Tensor] = quadratic
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
        takes_probes=True,
        # With noise at the last site alone it is the diagonal one.
        has_backprop=lambda network: len(network.noisy_linears) < 2,
    ),
    "sampling": Method("the noise is drawn in each step: ordinary dropout", None),
}

#: The methods of the generalised linear models, where `diagonal` is `quadratic`.
GLM_METHODS = {
    "quadratic": NETWORK_METHODS["quadratic"],
    "moments": Method(
        "the expectation itself, of noise at the input of a model without hidden layers", moments
    ),
    "sampling": NETWORK_METHODS["sampling"],
}

#: All methods.
METHODS = ChainMap(GLM_METHODS, NETWORK_METHODS)
