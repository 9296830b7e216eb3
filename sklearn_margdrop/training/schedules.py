"""Learning rates: what schedules and explosions make of them, from call to call."""

from __future__ import annotations

from typing import Any

from skorch import NeuralNet
from skorch.callbacks import LRScheduler


class SchedulingNet(NeuralNet):
    """A skorch net whose learning rates outlast a call."""

    callbacks_: list[tuple[str, Any]]
    optimizer_: Any
    schedules_: dict[str, tuple[str, dict[str, Any]]]
    rate_factor_: float

    def _take_over_rates(self, previous: SchedulingNet) -> None:
        self.rate_factor_ = previous.rate_factor_
        schedules = any(isinstance(callback, LRScheduler) for _, callback in self.callbacks_)
        groups = [getattr(net.optimizer_, "param_groups", []) for net in (self, previous)]
        for group, old in zip(*groups, strict=False):
            initial = old.get("initial_lr", old["lr"])
            # Schedulers among the callbacks go on from where they were.
            group.update(lr=old["lr"] if schedules else initial, initial_lr=initial)

    def _schedulers(self) -> list[tuple[str, Any]]:
        """The learning rate schedules among the callbacks, by their names."""
        found = [(name, getattr(each, "lr_scheduler_", None)) for name, each in self.callbacks_]
        return [(name, scheduler) for name, scheduler in found if scheduler is not None]

    def _go_on_with_schedules(self, rates: list[float]) -> None:
        """From where they were at the end of the previous call: skorch has made them anew."""
        groups = getattr(self.optimizer_, "param_groups", [])
        for name, scheduler in self._schedulers():
            kind, state = self.schedules_.get(name, ("", {}))
            if kind == type(scheduler).__qualname__:
                scheduler.load_state_dict(state)
                if hasattr(scheduler, "base_lrs"):
                    scheduler.base_lrs = [group["initial_lr"] for group in groups]
                scheduler._last_lr = list(rates)
                for group, rate in zip(groups, rates, strict=True):
                    group["lr"] = rate

    def _scale_rate(self, factor: float) -> None:
        self.rate_factor_ *= factor
        for group in self.optimizer_.param_groups:
            for name in {"lr", "initial_lr"} & group.keys():
                group[name] *= factor
        for _, scheduler in self._schedulers():
            if hasattr(scheduler, "base_lrs"):
                scheduler.base_lrs = [factor * rate for rate in scheduler.base_lrs]
