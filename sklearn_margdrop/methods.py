"""The methods: how the expectation over the noise is taken, and what is true of each way.

A method is a penalty function and its row here. The objective, the parameter checks of the
estimators, the inspection and the documentation read the row.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor

from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.penalties import diagonal, moments, quadratic


class Method(NamedTuple):
    """A method.

    Parameters
    ----------
    name : str
        The word that selects it in an estimator's `method` parameter.
    summary : str
        What it is, for the documentation's table.
    penalty : callable or None
        R of shape (n_samples,), in nats, as a function of a trace and a family. None where the
        noise is drawn: then the loss itself is noised or, where some rows have no label, its
        divergence is the penalty. L-BFGS cannot follow that.
    for_networks, for_glms : bool
        Which estimators take it. What is known without hidden layers alone is for GLMs.
    takes_probes : bool, default=False
        Whether `penalty` pulls the rows of the curvature back through the layers: its third
        argument is the signs of random combinations of them, or None, and samples are taken in
        slices that fit into the memory.
    second_order : callable, default=quadratic
        The penalty to second order, which is linear in the variances of the noise and so has a
        part for each unit.
    has_backprop : callable, default=never
        Whether :func:`~sklearn_margdrop.backprop.backpropagate` has the gradient, for a network.

    Examples
    --------
    >>> from sklearn_margdrop.methods import METHODS
    >>> [name for name, method in METHODS.items() if method.for_glms]
    ['quadratic', 'moments', 'sampling']
    """

    name: str
    summary: str
    penalty: Callable[..., Tensor] | None
    for_networks: bool
    for_glms: bool
    takes_probes: bool = False
    second_order: Callable[..., Tensor] = quadratic
    has_backprop: Callable[[NoisyNetwork], bool] = lambda network: False

    @property
    def is_sampled(self) -> bool:
        """Whether the noise is drawn."""
        return self.penalty is None


METHODS: dict[str, Method] = {}

#: Those that each kind of estimator takes.
NETWORK_METHODS: dict[str, Method] = {}
GLM_METHODS: dict[str, Method] = {}


def register(method: Method) -> None:
    """Let the estimators take a method by its name."""
    METHODS[method.name] = method
    if method.for_networks:
        NETWORK_METHODS[method.name] = method
    if method.for_glms:
        GLM_METHODS[method.name] = method


for _row in (
    Method(
        "diagonal",
        "second order, with variances pushed through layer by layer; no cross terms",
        diagonal,
        for_networks=True,
        for_glms=False,  # where it is the quadratic one
        second_order=diagonal,
        has_backprop=lambda network: True,
    ),
    Method(
        "quadratic",
        "second order, with the whole Jacobian",
        quadratic,
        for_networks=True,
        for_glms=True,
        takes_probes=True,
        # With noise at the last site alone it is the diagonal one.
        has_backprop=lambda network: len(network.noisy_linears) < 2,
    ),
    Method(
        "moments",
        "the expectation itself, of noise at the input of a model without hidden layers",
        moments,
        for_networks=False,
        for_glms=True,
    ),
    Method(
        "sampling",
        "the noise is drawn in each step: ordinary dropout",
        None,
        for_networks=True,
        for_glms=True,
    ),
):
    register(_row)
