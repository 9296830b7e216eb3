"""Callbacks of the net: learning rate decay, stopping, logging and scikit-learn's tasks."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from numbers import Real
from typing import Any, Self

from skorch import NeuralNet
from skorch.callbacks import (
    BatchScoring,
    Callback,
    EpochScoring,
    EpochTimer,
    InputShapeSetter,
    LRScheduler,
    ParamMapper,
    PassthroughScoring,
    PrintLog,
)
from skorch.callbacks.logging import filter_log_keys
from torch import Tensor

#: Callbacks that score validation rows, or training rows if on_train is set.
_SCORING = BatchScoring, EpochScoring, PassthroughScoring

#: The losses of the last epochs of a training that has converged differ by at most this fraction
#: of the lowest loss.
_SCATTER = 0.1


def check_validation(callbacks: list[tuple[str, Callback]]) -> None:
    """Raise if a callback needs validation rows. Called when there are none.

    Parameters
    ----------
    callbacks : list of tuple of (str, Callback)
        The initialised callbacks of a net.
    """
    for name, each in callbacks:
        monitor = getattr(each, "monitor", None)
        scores = isinstance(each, _SCORING) and not each.on_train
        if scores or (isinstance(monitor, str) and monitor.startswith("valid")):
            other = "on_train=True" if scores else "another monitor, 'train_loss' say,"
            raise ValueError(
                f"The callback {name} looks at validation rows, and there are none: set "
                f"early_stopping=True, which sets some aside, or {other} for the callback."
            )


def check_callbacks(callbacks: Iterable[Any] | None) -> None:
    """Raise unless `callbacks` is None or a list of skorch callbacks, with or without names."""
    if callbacks is None:
        return
    for each in callbacks:
        named = isinstance(each, tuple) and len(each) == 2 and isinstance(each[0], str)
        callback = each[1] if named else each
        kind = callback if isinstance(callback, type) else type(callback)
        if issubclass(kind, InputShapeSetter):
            raise ValueError(
                "callbacks must not hold skorch's InputShapeSetter: the network is built for the "
                "features of X, and would be built anew, without what it knows of them."
            )
        if issubclass(kind, Callback):
            continue
        hint = ""
        if hasattr(callback, "on_fit_task_end"):
            hint = " scikit-learn's own callbacks are set by the method set_callbacks."
        raise ValueError(
            "callbacks must be a list of skorch callbacks, or of pairs of a name and a callback; "
            f"got {each!r}.{hint}"
        )


def freezes(callbacks: Iterable[Any]) -> bool:
    """Whether any of the callbacks, named or not, freezes or unfreezes weights."""
    return any(_is_kind(callback, ParamMapper) for callback in callbacks)


def schedules_rates(callbacks: Iterable[Any]) -> bool:
    """Whether any of the callbacks, named or not, is a learning rate schedule."""
    return any(_is_kind(callback, LRScheduler) for callback in callbacks)


def _is_kind(callback: Any, kind: type[Callback]) -> bool:
    """Whether a callback, named or not, an object or a class, is of a kind."""
    callback = callback[1] if isinstance(callback, tuple) else callback
    return issubclass(callback if isinstance(callback, type) else type(callback), kind)


def are_own(callbacks: Iterable[Callback]) -> bool:
    """Whether all callbacks are this package's, which write to the present epoch only."""
    own = {CosineDecay, EpochLog, EpochTimer, GradientStopping, InverseDecay, Stopping}
    return all(type(each) in own for each in callbacks)


def sees_batches(callback: Callback) -> bool:
    """Whether a callback is interested in batches."""
    names = ("on_batch_begin", "on_batch_end")
    return any(getattr(type(callback), name) is not getattr(Callback, name) for name in names)


class EpochLog(PrintLog):
    """Prints a line for each epoch, with what the history records of it."""

    #: The columns that come first and last, and the headings that are not their names.
    _FIRST = ("epoch", "train_loss", "penalty", "valid_loss", "valid_score")
    _LAST = ("dur",)
    _HEADINGS = {"train_loss": "objective", "dur": "seconds"}

    def initialize(self) -> Self:
        self.columns_: dict[str, str] | None = None
        return self

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        row = net.history[-1]
        events = {key for key in row if key.startswith("event_")}
        shown = {"epoch", *filter_log_keys(row), *events} - {"batches"}
        others = sorted(shown.difference(self._FIRST, self._LAST))
        keys = [key for key in (*self._FIRST, *others, *self._LAST) if key in shown]
        columns = {key: self._HEADINGS.get(key, key.removeprefix("event_")) for key in keys}
        if columns != self.columns_:
            self.columns_ = columns
            print("  ".join(f"{name:>11s}" for name in columns.values()))
        cells = (f"{_cell(row[key]):>{max(11, len(name))}s}" for key, name in columns.items())
        print("  ".join(cells), flush=True)


def _cell(value: object) -> str:
    if isinstance(value, bool) or value is None:
        return "+" if value else ""
    if isinstance(value, Real):
        return f"{value:d}" if isinstance(value, int) else f"{value:.5g}"
    return str(value)


@dataclass(eq=False)
class InverseDecay(Callback):
    """Learning rate / (1 + decay * epoch), counting epochs from 0 (P, section 3.1)."""

    decay: float

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        epoch = net.history[-1, "epoch"] - 1
        for group in net.optimizer_.param_groups:
            initial = group.setdefault("initial_lr", group["lr"])
            group["lr"] = initial / (1 + self.decay * epoch)


class CosineDecay(Callback):
    """Learning rate * (1 + cos(pi * t)) / 2, where t is the share of the steps that are done.

    The steps are those of the net's `max_epochs`. Once a training has ended, the rate is again
    the one that it began with, also where the net is then trained by hand.
    """

    def initialize(self) -> Self:
        self.is_over_ = False
        return self

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        self.n_before_ = net.n_epochs

    def on_epoch_begin(self, net: NeuralNet, dataset_train: Any = None, **kwargs: Any) -> None:
        self.n_steps_ = net.count_steps(dataset_train)
        self.step_ = 0

    def on_grad_computed(self, net: NeuralNet, *args: Any, **kwargs: Any) -> None:
        if self.is_over_:
            return
        # Where it explodes, an epoch is repeated from its first step.
        part = self.step_ % self.n_steps_ / self.n_steps_
        done = (net.n_epochs - 1 - self.n_before_ + part) / net.max_epochs
        self._set_rates(net, (1 + math.cos(math.pi * done)) / 2)
        self.step_ += 1

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        if not self.is_over_:
            self._set_rates(net, 1.0)
        self.is_over_ = True

    def _set_rates(self, net: NeuralNet, factor: float) -> None:
        for group in net.optimizer_.param_groups:
            group["lr"] = factor * group.setdefault("initial_lr", group["lr"])


@dataclass(eq=False)
class GradientStopping(Callback):
    """Stops :class:`FisherLBFGS` where the norm of the gradient is at most `tol`.

    The gradient is that of coordinates in which the curvature is about one, so that half its
    square is roughly the distance of the objective from its minimum. If no step lowers the
    objective before that, the training ends as "stalled".
    """

    tol: float

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        if net.optimizer_.decrement <= self.tol:
            net.ending_ = "converged"
        elif net.optimizer_.stalled:
            net.ending_ = "stalled"


@dataclass(eq=False)
class Stopping(Callback):
    """Stops when the monitored value goes more than `patience` epochs without improving by `tol`.

    Parameters
    ----------
    monitor : {"train_loss", "valid_score"}
        Losses should fall, scores should rise. With scores, the best weights are restored at the
        end of the training.
    tol : float
    patience : int or float
        Infinity never stops.

    Notes
    -----
    If the latest losses are clearly above the lowest one, the training ends as "stalled",
    otherwise as "converged".
    """

    monitor: str
    tol: float
    patience: float

    def on_train_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        self.best_ = -math.inf
        self.misses_ = self.explosions_ = 0
        self.latest_: list[float] = []
        self.best_weights_: dict[str, Tensor] | None = None

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        if self.monitor not in net.history[-1]:
            return  # the net is being trained by hand
        keep_best = self.monitor == "valid_score"
        value = net.history[-1, self.monitor] * (1 if keep_best else -1)
        missed = value <= self.best_ + self.tol and net.n_explosions_ == self.explosions_
        self.misses_ = self.misses_ + 1 if missed else 0
        self.explosions_ = net.n_explosions_
        n_latest = 2 if math.isinf(self.patience) else max(2, int(self.patience) // 2)
        self.latest_ = [*self.latest_, value][-n_latest:]
        if value > self.best_:
            self.best_ = value
            if keep_best:
                self.best_weights_ = net.copy_weights()
        if self.misses_ > self.patience:
            # Losses of epochs scatter. If all of the latest are clearly above the lowest, they
            # have been rising.
            limit = self.best_ - _SCATTER * abs(self.best_) - 10 * self.tol
            has_settled = keep_best or max(self.latest_) >= limit
            net.ending_ = "converged" if has_settled else "stalled"

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        if self.best_weights_ is not None:
            net.module_.load_state_dict(self.best_weights_)
            net.best_score_ = self.best_
            self.best_weights_ = None


@dataclass(eq=False)
class FitTasks(Callback):
    """Makes each epoch a task that scikit-learn's callbacks see; they may end the training.

    Parameters
    ----------
    estimator : estimator
        The estimator being fitted.
    context : sklearn.callback.CallbackContext
        The task of the whole fit.
    name : str
        The name of the task of an epoch.
    attributes : callable
        ``attributes(net)`` returns the fitted attributes that the estimator would have now.
    data : mapping
        ``X``, ``y`` and ``metadata`` of the tasks, or callables that return them.
    """

    estimator: Any
    context: Any
    name: str
    attributes: Callable[[Any], dict[str, Any]]
    data: Mapping[str, Any]
    task_: Any = field(default=None, init=False)  # that of the present epoch

    def on_epoch_begin(self, net: NeuralNet, **kwargs: Any) -> None:
        self.task_ = self.context.subcontext(task_name=self.name)
        self.task_.call_on_fit_task_begin(**self._at(net))

    def on_epoch_end(self, net: NeuralNet, **kwargs: Any) -> None:
        task, self.task_ = self.task_, None
        if task.call_on_fit_task_end(**self._at(net)) and net.ending_ is None:
            net.ending_ = "stopped"

    def on_train_end(self, net: NeuralNet, **kwargs: Any) -> None:
        if self.task_ is not None:  # an epoch that was cut short
            self.task_.call_on_fit_task_end(estimator=self.estimator)

    def _at(self, net: NeuralNet) -> dict[str, Any]:
        attributes = partial(self.attributes, net)
        return {"estimator": self.estimator, "reconstruction_attributes": attributes, **self.data}
