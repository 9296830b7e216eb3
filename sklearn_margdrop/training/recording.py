"""Recording: what a net keeps of its epochs, and that a stream of calls does not outgrow it."""

from __future__ import annotations

import math
from typing import Any

from skorch.history import History

from sklearn_margdrop.training.callbacks import are_own

#: The history of a stream holds so many of its last epochs.
_STREAM_HISTORY = 1000


class Record:
    """What skorch's history does not tell of the epochs.

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
        """Let `net`, whose record this is, go on with the history of another net.

        An `incremental` one leaves all but the end of the history behind: skorch copies it
        wherever it records a value, and a stream has no end.
        """
        n_kept = _STREAM_HISTORY - 1 if incremental else len(previous.history)
        epochs = previous.history[-n_kept:]
        if not are_own(each for _, each in net.callbacks_):  # others may write into any epoch
            epochs = [{**each, "batches": [*map(dict, each["batches"])]} for each in epochs]
        net.history = History(epochs)
        self.n_forgotten = previous.n_epochs - len(epochs)
        self.lowest = dict(previous.record_.lowest)

    def add_loss(self, history: History, name: str, value: float, n_rows: int) -> None:
        """Record a loss, and whether it is the lowest so far, as skorch's callbacks ask."""
        lowest = self.lowest.get(name, math.inf)
        self.lowest[name] = min(value, lowest)
        history.record(name, value)
        history.record(f"{name}_best", value < lowest)
        history.record_batch(name, value)
        history.record_batch(name.replace("loss", "batch_size"), n_rows)
