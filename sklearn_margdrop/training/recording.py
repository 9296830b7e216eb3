"""Recording: what a net keeps of its epochs, and that a stream of calls does not outgrow it."""

from __future__ import annotations

import math
from typing import Any, Self

from skorch import NeuralNet
from skorch.history import History

from sklearn_margdrop.training.callbacks import are_own

#: The history of a stream holds so many of its last epochs.
_STREAM_HISTORY = 1000


class RecordingNet(NeuralNet):
    """A skorch net that knows which loss is the lowest, and how many epochs it has behind it."""

    history: History
    lowest_: dict[str, float]
    n_forgotten_: int = 0

    def _initialize_history(self) -> Self:
        super()._initialize_history()
        self.lowest_ = {}
        self.n_forgotten_ = 0
        return self

    @property
    def n_epochs(self) -> int:
        """The epochs of all calls."""
        return self.n_forgotten_ + len(self.history)

    def go_on_recording(self, previous: RecordingNet, incremental: bool) -> None:
        """Take the record of another net over.

        An `incremental` one leaves all but the end of the history behind: skorch copies it
        wherever it records a value, and a stream has no end.
        """
        n_kept = _STREAM_HISTORY - 1 if incremental else len(previous.history)
        epochs = previous.history[-n_kept:]
        if not are_own(each for _, each in self.callbacks_):  # others may write into any epoch
            epochs = [{**each, "batches": [*map(dict, each["batches"])]} for each in epochs]
        self.history = History(epochs)
        self.n_forgotten_ = previous.n_epochs - len(self.history)
        self.lowest_ = dict(previous.lowest_)

    def on_epoch_begin(self, net: Self, *args: Any, **kwargs: Any) -> None:
        super().on_epoch_begin(net, *args, **kwargs)
        self.history.record("epoch", self.n_epochs)

    def on_batch_begin(
        self, net: Self, batch: Any = None, training: bool = False, **kwargs: Any
    ) -> None:
        """Record nothing: histories of every batch would outgrow small models."""

    def _record(self, name: str, value: float, n_rows: int) -> None:
        """A loss, and whether it is the lowest of the history, as skorch's callbacks ask."""
        lowest = self.lowest_.get(name, math.inf)
        self.lowest_[name] = min(value, lowest)
        self.history.record(name, value)
        self.history.record(f"{name}_best", value < lowest)
        self.history.record_batch(name, value)
        self.history.record_batch(name.replace("loss", "batch_size"), n_rows)
