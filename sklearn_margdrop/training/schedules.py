"""The length of a training; learning rates, carried from one call to the next."""

from __future__ import annotations

import copy
from typing import Any

from skorch.callbacks import LRScheduler

from sklearn_margdrop.numerics.torch_private import set_last_rates

#: A training with a schedule has about so many steps, in at least and at most so many epochs.
_STEPS, _FEWEST_EPOCHS, _MOST_EPOCHS = 3000, 20, 200


def auto_epochs(n_steps: int) -> int:
    """The length of a training with a schedule whose epochs have `n_steps` steps each.

    Small data see many epochs, as it takes steps to learn; large ones few, as each teaches much.

    Examples
    --------
    >>> from sklearn_margdrop.training.schedules import auto_epochs
    >>> [auto_epochs(n_steps) for n_steps in (1, 50, 10_000)]
    [200, 60, 20]
    """
    return min(max(-(-_STEPS // n_steps), _FEWEST_EPOCHS), _MOST_EPOCHS)


class LearningRates:
    """What is kept of a net's learning rates when a call ends.

    skorch creates new schedulers in each call, with an optimiser that begins at the net's `lr`.

    Attributes
    ----------
    factor : float
        The factor by which the explosions of all calls have reduced the rates.
    schedules : dict of str to tuple
        The kind and the state of each scheduler at the end of the last call.
    last : list of float or None
        The rates at the end of the previous call, until the training continues from them.
    """

    def __init__(self) -> None:
        self.factor = 1.0
        self.schedules: dict[str, tuple[str, dict[str, Any]]] = {}
        self.last: list[float] | None = None

    def take_over(self, net: Any, previous: Any) -> None:
        """Continue with the rates of another net in `net`, which holds these rates.

        If its `lr` differs, it begins at that one.
        """
        groups = net.optimizer_.param_groups
        if net.lr == previous.lr:
            self.factor = previous.rates_.factor
            schedules = any(isinstance(callback, LRScheduler) for _, callback in net.callbacks_)
            for group, old in zip(groups, previous.optimizer_.param_groups, strict=False):
                initial = old.get("initial_lr", old["lr"])
                # Schedulers among the callbacks continue.
                group.update(lr=old["lr"] if schedules else initial, initial_lr=initial)
        self.schedules = copy.deepcopy(previous.rates_.schedules)
        self.last = [group["lr"] for group in groups]
        for group in groups:
            group.setdefault("initial_lr", group["lr"])

    def resume(self, net: Any) -> None:
        """Set the schedulers and the rates as they were at the end of the previous call."""
        if self.last is None:
            return
        groups = net.optimizer_.param_groups
        for name, scheduler in _schedulers(net):
            kind, state = self.schedules.get(name, ("", {}))
            if kind == type(scheduler).__qualname__:
                scheduler.load_state_dict(state)
                if hasattr(scheduler, "base_lrs"):
                    scheduler.base_lrs = [group["initial_lr"] for group in groups]
                set_last_rates(scheduler, self.last)
                for group, rate in zip(groups, self.last, strict=True):
                    group["lr"] = rate
        self.last = None

    def keep(self, net: Any) -> None:
        """Store the states of the schedulers at the end of a call."""
        self.schedules = {
            name: (type(scheduler).__qualname__, scheduler.state_dict())
            for name, scheduler in _schedulers(net)
        }

    def scale(self, net: Any, factor: float) -> None:
        """Multiply all rates, now and in the rest of the schedules."""
        self.factor *= factor
        for group in net.optimizer_.param_groups:
            for name in {"lr", "initial_lr"} & group.keys():
                group[name] *= factor
        for _, scheduler in _schedulers(net):
            if hasattr(scheduler, "base_lrs"):
                scheduler.base_lrs = [factor * rate for rate in scheduler.base_lrs]


def _schedulers(net: Any) -> list[tuple[str, Any]]:
    """The learning rate schedules among the callbacks, by their names."""
    found = [(name, getattr(each, "lr_scheduler_", None)) for name, each in net.callbacks_]
    return [(name, scheduler) for name, scheduler in found if scheduler is not None]
