"""Calls that change an estimator as a whole or not at all, and copies that share no state."""

from __future__ import annotations

import copy
import operator
from abc import abstractmethod
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, NamedTuple, Self

import numpy as np

from sklearn_margdrop.estimators.targets import Target
from sklearn_margdrop.numerics.devices import release_memory
from sklearn_margdrop.numerics.memory import is_out_of_memory, with_advice
from sklearn_margdrop.training.net import MarginalizedNet

#: What is to be done once nothing can fail any more. All of it are functions of C.
Changes = list[Callable[[], object]]


class Outcome(NamedTuple):
    """What remains of a fit that went well."""

    changes: Changes
    #: What the filters of warnings made an error of. As in scikit-learn, the fit is kept.
    warning: Warning | None


class Atomic:
    """The part of an estimator that keeps a fit, or what there was before it.

    A fit sets attributes in a dict of its own, and otherwise changes new objects alone. What the
    estimator had before is never touched, so that there is nothing to be repaired where a fit
    fails, whatever it is that fails, and wherever.
    """

    #: The attributes that hold a value of each epoch, and what the history calls it.
    _curves: ClassVar[dict[str, str]] = {"loss_curve_": "train_loss"}

    @abstractmethod
    def _fit_anew(self, *arguments: Any) -> Outcome:
        """Set the attributes of a new fit."""

    @abstractmethod
    def _smaller(self, on_gpu: bool) -> list[str]:
        """What to change so that a fit takes less memory, the most effective first."""

    def _fit(self, *arguments: Any) -> Self:
        """Fit, and keep all of it; after an error, all of what was before."""
        before = self.__dict__
        try:
            self.__dict__ = after = before.copy()
            changes, warning = self._fit_anew(*arguments)
            self.__dict__ = before
        except BaseException as error:
            self.__dict__ = before
            if is_out_of_memory(error):
                raise with_advice(error, self._smaller) from error
            raise
        finally:
            release_memory()
        changes.append(partial(setattr, self, "__dict__", after))
        list(map(operator.call, changes))  # in one call: signals are handled before it or after it
        if warning is not None:
            raise warning
        return self

    def _record(self, net: MarginalizedNet, incremental: bool) -> Changes:
        """Set the curves. Those of a stream are still to be extended.

        They go on in the lists of the call before, so that no call copies what was.
        """
        changes: Changes = []
        for name, key in self._curves.items():
            known, start = getattr(self, name, []), net.n_forgotten_
            values = [epoch[key] for epoch in net.history]
            setattr(self, name, known if incremental else known[:start] + values)
            if incremental:
                changes.append(partial(operator.setitem, known, slice(start, None), values))
        return changes

    def __copy__(self) -> Self:
        # Parameters are shared, as no call changes them, other than a RandomState.
        twin = type(self).__new__(type(self))
        memo: dict[int, Any] = {}
        for name, value in vars(self).items():
            has_state = name.endswith("_") or isinstance(value, np.random.RandomState | Target)
            twin.__dict__[name] = copy.deepcopy(value, memo) if has_state else value
        return twin
