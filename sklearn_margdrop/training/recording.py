"""The record that a net keeps of its epochs, of bounded size for a stream of calls."""

from __future__ import annotations

import math
from typing import Any

from skorch.history import History

from sklearn_margdrop.training.callbacks import are_own

#: How many of the last epochs the history of a stream holds.
_STREAM_HISTORY = 1000


class Record:
    """What skorch's history does not hold of the epochs.

    Attributes
    ----------
    lowest : dict of str to float
        The lowest value of each loss.
    n_forgotten : int
        How many epochs there were before those in the history.
    """

    def __init__(self) -> None:
        self.lowest: dict[str, float] = {}
        self.n_forgotten = 0

    def take_over(self, net: Any, previous: Any, incremental: bool) -> None:
        """Continue the history of another net in `net`, which holds this record.

        An `incremental` net keeps only the end of the history: skorch copies it whenever it
        records a value, and a stream has no end.
        """
        n_kept = _STREAM_HISTORY - 1 if incremental else len(previous.history)
        epochs = previous.history[-n_kept:]
        if not are_own(each for _, each in net.callbacks_):  # others may write into any epoch
            epochs = [{**each, "batches": [*map(dict, each["batches"])]} for each in epochs]
        net.history = History(epochs)
        self.n_forgotten = previous.n_epochs - len(epochs)
        self.lowest = dict(previous.record_.lowest)

    def add_loss(self, history: History, name: str, value: float, n_rows: int) -> None:
        """Record a loss, and whether it is the lowest so far, as skorch's callbacks expect."""
        lowest = self.lowest.get(name, math.inf)
        self.lowest[name] = min(value, lowest)
        history.record(name, value)
        history.record(f"{name}_best", value < lowest)
        history.record_batch(name, value)
        history.record_batch(name.replace("loss", "batch_size"), n_rows)
