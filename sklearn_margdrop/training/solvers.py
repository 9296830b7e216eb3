"""The solvers: the optimisers that the estimators' parameter `solver` selects."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch

from sklearn_margdrop.training.lbfgs import FisherLBFGS
from sklearn_margdrop.training.optimizers import Adagrad, Fisher


@dataclass(frozen=True)
class Solver:
    """A row of the tables below.

    Parameters
    ----------
    optimizer : type
        One of torch's, or one of :mod:`~sklearn_margdrop.training.optimizers`.
    learning_rate : float, default=1.0
        What ``learning_rate_init="auto"`` stands for, in generalised linear models.
    full_batch : bool, default=False
        Whether it takes all rows at once, rather than batches. Such an optimiser knows its
        `decrement` and whether it has `stalled`, as :class:`FisherLBFGS` does.
    plain : bool, default=False
        Whether a step is the gradient times the learning rate, so that it depends on the units of
        the features. Otherwise a step has about the size of the learning rate.
    about_zero : bool, default=False
        Whether the features are not centred where their noise grows with the distance from zero.
    options : tuple of str, default=()
        Parameters of the estimator that are passed on to the optimiser.
    fused : bool, default=False
        Whether the optimiser has torch's parameter `fused`, which networks alone set.

    Examples
    --------
    >>> from sklearn_margdrop.training.solvers import GLM_SOLVERS
    >>> GLM_SOLVERS["lbfgs"].full_batch, GLM_SOLVERS["sgd"].learning_rate
    (True, 0.1)
    """

    optimizer: type
    learning_rate: float = 1.0
    full_batch: bool = False
    plain: bool = False
    about_zero: bool = False
    options: tuple[str, ...] = ()
    fused: bool = False


#: The solvers of the networks.
NETWORK_SOLVERS = {
    "adam": Solver(torch.optim.Adam, fused=True),
    "sgd": Solver(torch.optim.SGD, plain=True, options=("momentum",), fused=True),
}

#: The solvers of the generalised linear models.
GLM_SOLVERS = {
    "lbfgs": Solver(FisherLBFGS, full_batch=True),
    "sgd": Solver(torch.optim.SGD, 0.1, plain=True),
    "adagrad": Solver(Adagrad, 0.1),
    # It divides by the curvature of dropout, whose noise grows with the distance from zero.
    "fisher": Solver(Fisher, about_zero=True),
}


def one_of(names: Iterable[str]) -> str:
    """The names for a message: "'a', 'b' or 'c'"."""
    *others, last = map(repr, names)
    return f"{', '.join(others)} or {last}" if others else last
