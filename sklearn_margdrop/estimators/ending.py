"""How a fit ended: what users are told, and what they can change."""

from __future__ import annotations

import math
from abc import abstractmethod
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning

from sklearn_margdrop.estimators.nets import TargetNet
from sklearn_margdrop.notices import warn
from sklearn_margdrop.numerics.memory import blocks
from sklearn_margdrop.training.batches import Features, Rows
from sklearn_margdrop.training.solvers import Solver

#: A fit is worse than a constant if its loss is so many times as large.
_CLEARLY = 1.05

#: Standard deviations from the mean beyond which a target has outliers.
_FAR = 30.0

#: Features should be scaled if they differ by more in their sizes, or lie so many standard
#: deviations from zero, or, as plain gradient descent takes them as they are, are so large.
_UNEVEN, _OFF_CENTRE, _LARGE = 100.0, 10.0, 30.0


class Ending:
    """The part of an estimator that warns where a fit did not reach what it promises."""

    tol: float
    learning_rate_init: Any
    solver: str
    _solvers: ClassVar[dict[str, Solver]]  # by their names

    #: What a step of the training is called.
    _step = "epoch"

    @property
    def _solver(self) -> Solver:
        return self._solvers[self.solver]

    @abstractmethod
    def _diverged(self, net: TargetNet) -> str:
        """What to say when the objective or the parameters are not finite."""

    @abstractmethod
    def _not_converged(self) -> str:
        """What to say when `max_iter` was too small; empty where it cannot be."""

    def _where(self, net: TargetNet) -> str:
        """What was interrupted."""
        return f"{self._step} {net.n_epochs + 1}"

    def _stalled(self, net: TargetNet, rows: Rows) -> str:
        """What to say when the training got no nearer to what `tol` asks for."""
        objective, lowest = net.history[-1, "train_loss"], min(net.history[:, "train_loss"])
        return (
            f"Training stopped at an objective of {objective:.3g} that had been lower before "
            f"({lowest:.3g}): the last {self._step}s led nowhere. Lower learning_rate_init."
        )

    def _warn(self, net: TargetNet, incremental: bool, rows: Rows) -> None:
        category, message = ConvergenceWarning, None
        if net.stop_reason_ == "diverged":
            message = self._diverged(net) + " The best weights so far were kept."
        elif net.stop_reason_ == "interrupted":
            category = UserWarning
            message = (
                f"Training was interrupted by the user in {self._where(net)}; the "
                "estimator keeps the weights it had reached."
            )
        elif net.stop_reason_ == "max_iter" and not incremental:
            message = self._not_converged()
        elif net.stop_reason_ == "stalled" and not net.n_explosions_:
            message = self._stalled(net, rows)
        if not incremental:
            slack = self.tol * net.target.loss_unit(rows)
            worse = worse_than_a_constant(net, rows, self._solver, slack)
            message = " ".join(filter(None, (message, worse)))
        if net.n_explosions_ and net.stop_reason_ != "diverged":
            exploded = (
                f"The objective exploded {net.n_explosions_} time(s), and training went back to "
                f"the best weights so far each time. Set learning_rate_init to at most "
                f"{self.learning_rate_init * net.rate_factor_:.3g}, where it ended, or weaken the "
                "noise."
            )
            warn(exploded, ConvergenceWarning)
        if message:
            warn(message, category)
        lost = None if incremental else self._lost(rows)
        if lost is not None:
            warn(lost, ConvergenceWarning)

    def _lost(self, rows: Rows) -> str | None:
        """What to say when the precision of the data is not enough for them."""
        return None


def worse_than_a_constant(net: TargetNet, rows: Rows, solver: Solver, tol: float) -> str:
    """A text that says so, and what to change; empty where the fit is better than that.

    Parameters
    ----------
    net : TargetNet
        As the training left it.
    rows : Rows
        What it was trained on.
    solver : Solver
        What it was trained with.
    tol : float
        A difference that does not count.
    """
    loss = _loss_reached(net)
    has_intercept = net.module_.linears[-1].bias is not None
    constant = (net.target.constant_loss if has_intercept else net.target.loss_of_zeros)(rows)
    limit = _CLEARLY * constant + tol
    if loss > limit and isinstance(rows.features, Features):
        loss = _loss_of_predictions(net, rows)  # that of an epoch may have drawn noise in it
    if not loss > limit:
        return ""
    changes = []
    if net.target.units is not None and (farthest := float(rows.y.abs().max())) > _FAR:
        changes.append(
            f"Leave out outliers or transform y, which has values {farthest:.0f} standard "
            "deviations from its mean."
        )
    if isinstance(rows.features, Features) and _is_unscaled(rows, solver):
        changes.append("Scale the features (StandardScaler or MinMaxScaler).")
    curve = [epoch["train_loss"] for epoch in net.history]
    rises = np.diff(curve).max(initial=0.0)
    if solver.full_batch or len(curve) == 1:
        pass
    elif net.n_explosions_ or rises > 0.25 * loss:
        changes.append(f"Lower learning_rate_init (now {net.lr:g}).")
    elif np.mean(curve[len(curve) // 2 :]) > 0.98 * np.mean(curve[: len(curve) // 2]):
        changes.append(f"Raise learning_rate_init (now {net.lr:g}).")
    if net.stop_reason_ == "stopped":
        changes.append("A callback ended it: let it wait for longer.")
    if not changes and net.stop_reason_ == "max_iter":
        changes.append("Raise max_iter.")
    elif not changes:
        longer = "Train for longer, or lower tol."
        early = "Raise n_iter_no_change or validation_fraction, which ended it early."
        changes.append(longer if net.best_score_ is None else early)
    return (
        f"Training ended at a loss of {loss:.3g}, which is worse than a constant prediction "
        f"({constant:.3g}). {' '.join(changes)}"
    )


def _loss_reached(net: TargetNet) -> float:
    """That of the weights that were kept; nan where it is not known."""
    epochs = list(net.history)
    if not epochs:
        return math.nan
    kept, final = epochs[-1], net.final_objective_
    if net.best_score_ is not None:
        kept, final = max(epochs, key=lambda epoch: epoch.get("valid_score", -math.inf)), None
    elif net.stop_reason_ == "diverged":
        kept, final = min(epochs, key=lambda epoch: epoch["train_loss"]), None
    objective = kept["train_loss"] if final is None else final
    # What weights and noise cost says nothing of the predictions. (Where the loss itself is
    # noised, the penalty is nan.)
    squares = sum(float(layer.weight.detach().square().sum()) for layer in net.module_.linears)
    l2 = 0.5 * net.criterion_.alpha * squares
    return float(objective - l2 - np.nan_to_num(kept["penalty"]))


@torch.no_grad()
def _loss_of_predictions(net: TargetNet, rows: Rows) -> float:
    """The mean loss of the training rows without noise."""
    losses = net.target.family.loss(net.linear_predictor(rows), rows.y).double()
    weight = torch.ones_like(losses) if rows.weight is None else rows.weight.to(losses)
    return float(losses @ weight / weight.sum())


def _is_unscaled(rows: Rows, solver: Solver) -> bool:
    index: Any = blocks(len(rows), rows.features.shape[1])[0]
    x = rows.features.on_host(index if rows.index is None else rows.index[index])
    if not isinstance(x, np.ndarray):
        squares, counts = (np.asarray(each.sum(0)).ravel() for each in (x.power(2), x != 0))
        sizes = np.sqrt(squares[counts > 0] / counts[counts > 0])
    else:
        x = x.astype(np.float64)
        spread = x.std(0)
        if (np.abs(x.mean(0))[spread > 0] > _OFF_CENTRE * spread[spread > 0]).any():
            return True
        sizes = np.sqrt(np.square(x).mean(0))
    sizes = sizes[sizes > 0]
    uneven = bool(len(sizes)) and sizes.max() > _UNEVEN * sizes.min()
    return bool(uneven or (solver.plain and (sizes > _LARGE).any()))
