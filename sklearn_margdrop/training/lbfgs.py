"""L-BFGS for generalised linear models, which starts from their curvature."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, TypeAlias

import torch
from torch import Tensor

from sklearn_margdrop.training.curvatures import InverseHessian, Start

#: The size of the history of L-BFGS, in numbers: allowed even if the data are small, and the most
#: that is allowed on account of several outputs.
_HISTORY_ELEMENTS = 2**20, 2**25

#: A step length, and the function and its slope there.
Point: TypeAlias = tuple[float, float, float]

#: What the L-BFGS keeps of its steps beside vectors.
_NUMBERS = ("_value", "decrement", "stalled", "_lowest", "_n_fruitless", "_n_steps")

#: After this many steps without progress, the rest is rounding error. The gradient may grow for a
#: while before it shrinks, and the values of the objective no longer show progress by then.
_PATIENCE = 20


class FisherLBFGS:
    """L-BFGS in coordinates where the curvature is about one, one iteration a step.

    The inverse Hessian starts from that where the mean is predicted: its diagonal and, of dense
    features, their correlations, so that units and collinear features hardly matter. Where the
    correlations cost as much as several iterations, these come first. All vectors
    are views of a few flat ones that are updated in place: :class:`torch.optim.LBFGS` keeps a
    dozen more, which counts where features outnumber the rows, knows no start, and ignores
    changes of the gradient below an absolute bound, which ends its superlinear convergence early.

    Parameters
    ----------
    params : iterable of dict
        Groups of parameters, ``{"params": [...]}``.
    lr : float, default=1.0
        The step length that a line search tries first.
    history_size : int, default=10
        Pairs of vectors that approximate the inverse Hessian.

    Attributes
    ----------
    decrement : float
        The norm of the gradient where the curvature is one, at the end of the last step: half its
        square is about how far above its minimum the objective is. It is the larger one of the
        norms by the curvature at the start and by what the steps have told of it, which falls
        where predictions become confident.
    stalled : bool
        Whether the rest is rounding: the last step found nothing lower, or the last twenty neither
        the lowest value nor the smallest decrement so far.

    Examples
    --------
    A quadratic function with the curvatures 1 and 10,000:

    >>> import torch
    >>> from sklearn_margdrop.training.lbfgs import FisherLBFGS
    >>> x, curvature = torch.nn.Parameter(torch.ones(2)), torch.tensor([1.0, 1e4])
    >>> optimizer = FisherLBFGS([{"params": [x]}])
    >>> optimizer.precondition([curvature])
    >>> def objective():
    ...     value = 0.5 * (curvature * x * x).sum()
    ...     value.backward()
    ...     return value
    >>> _ = optimizer.step(objective)
    >>> optimizer.decrement < 1e-6
    True
    """

    takes_closure = True

    def __init__(
        self, params: Iterable[dict[str, Any]], lr: float = 1.0, history_size: int = 10
    ) -> None:
        self.param_groups: list[dict[str, Any]] = []  # no rate that schedules could change
        self.params = [p for group in params for p in group["params"]]
        self.lr = lr
        self.history_size = history_size
        self._slots: list[int] = []
        self._planned: tuple[int, float] | None = None
        self._value: float | None = None
        self._inverse: InverseHessian
        self._correlations: Callable[[], Tensor | None] | None
        self._correlations_due = 0
        self._n_steps = 0
        self.decrement = math.inf
        self.stalled = False
        self.forget()

    @property
    def is_ready(self) -> bool:
        """Whether `precondition` has been called."""
        return len(self._grad) > 0

    def state_dict(self) -> dict[str, Any]:
        """All that the next step depends on but the parameters; nothing once it is forgotten."""
        if not self.is_ready:
            return {"state": {}, "param_groups": []}
        pairs = {"steps": self._steps[self._slots], "changes": self._changes[self._slots]}
        vectors = {"inverse": self._inverse.diagonal, "grad": self._grad}
        numbers = {name: getattr(self, name) for name in _NUMBERS}
        return {"state": {**vectors, **pairs, "numbers": numbers}, "param_groups": []}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from such a state, at the present parameters, after `precondition`."""
        state = state_dict["state"]
        if not state:
            return
        self._inverse.diagonal.copy_(state["inverse"])
        self._grad.copy_(state["grad"])
        self._slots = list(range(len(state["steps"])))
        self._steps[self._slots] = state["steps"].to(self._steps)
        self._changes[self._slots] = state["changes"].to(self._steps)
        vars(self).update(state["numbers"])

    def prepare(self, start: Start) -> None:
        """Start from the present parameters and the inverse Hessian where the mean is predicted.

        The history has as many pairs of vectors as take about the memory of the data, within
        reason.
        """
        (linear,) = start.net.module_.linears
        n_stored, floor, ceiling = start.rows.features.n_stored, *_HISTORY_ELEMENTS
        elements = max(n_stored, floor, min(n_stored * linear.out_features, ceiling))
        self.history_size = min(max(elements // (2 * linear.weight.numel()), 3), 100)
        curvature = start.curvature_at_the_mean()
        self.precondition(curvature.total, start.net.criterion_.family.shifts_alike)
        if n_rows := start.n_correlated:
            self._correlations_due = start.iterations_worth(n_rows)
            self._correlations = partial(start.correlations, n_rows, curvature)

    def precondition(self, diagonal: Sequence[Tensor], shifts_alike: bool = False) -> None:
        """Start from the present parameters and a `diagonal` of the Hessian, one tensor for each.

        Parameters that the objective does not depend on, whose diagonal is zero, stay. See
        :class:`~sklearn_margdrop.training.curvatures.InverseHessian` for the rest.
        """
        self._inverse = InverseHessian(diagonal, shifts_alike)
        self._correlations, self._n_steps = None, 0
        self._x = torch.cat([p.detach().reshape(-1) for p in self.params])
        self._grad = torch.zeros_like(self._x)
        start = 0
        for p in self.params:
            stop = start + p.numel()
            p.data = self._x[start:stop].view_as(p)
            p.grad = self._grad[start:stop].view_as(p)
            start = stop
        self._before = torch.empty_like(self._x)
        # Rings of pairs, and of the one that is being made.
        self._steps = self._x.new_empty(self.history_size + 1, len(self._x))
        self._changes = torch.empty_like(self._steps)
        self._slots = []
        self._flatter = [1.0] * len(self._steps)
        self._planned = self._value = None
        self._lowest = math.inf, math.inf  # value and decrement
        self._n_fruitless = 0  # steps since one of them was as low

    def forget(self) -> None:
        """Release all but the parameters; the next step needs `precondition`."""
        nothing = torch.empty(0, device="cpu")
        self._grad = self._x = self._before = self._steps = self._changes = nothing
        self._inverse, self._correlations = InverseHessian([nothing]), None
        for p in self.params:
            p.grad = None

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> float:
        """One iteration.

        `closure` computes the objective, adds its gradient to the parameters' and returns it.
        The last time it is called, it is at the parameters where the step ends.
        """
        if self._correlations is not None and self._n_steps >= self._correlations_due:
            self._inverse.factor, self._correlations = self._correlations(), None
            self._planned = None
        self._n_steps += 1
        if self._value is None:
            self._value = self._evaluate(closure)
        slot, slope = self._plan() if self._planned is None else self._planned
        before, direction, change = self._before, self._steps[slot], self._changes[slot]
        before.copy_(self._x)
        change.copy_(self._grad)
        at = [math.nan]  # also where no step is tried, the closure is to be called

        def evaluate(t: float) -> tuple[float, float]:
            if t == 0:
                self._x.copy_(before)  # the direction need not be finite
            else:
                torch.add(before, direction, alpha=t, out=self._x)
            at[0] = t
            value = self._evaluate(closure)
            return value, float(self._grad.dot(direction))

        try:
            eps = torch.finfo(self._x.dtype).eps
            t, value = line_search(evaluate, self._value, slope, self.lr, eps=eps)
            if at[0] != t:
                value, _ = evaluate(t)
        except BaseException:
            self._x.copy_(before)  # not where the line search happened to be
            raise
        self._value = value
        change.neg_().add_(self._grad)
        direction.mul_(t)
        if (product := float(change.dot(direction))) > 0:
            self._slots.append(slot)
            del self._slots[: -self.history_size]
            self._flatter[slot] = product / float(change.dot(self._inverse(change)))
        self._planned = slot, slope = self._plan()
        by_start = float(self._grad.dot(self._inverse(self._grad)).clamp_min(0).sqrt())
        flattest = max([1.0, *(self._flatter[k] for k in self._slots)])
        self.decrement = max(by_start * flattest**0.5, math.sqrt(max(-slope, 0.0)))
        least, smallest = self._lowest
        is_lower = value < least or self.decrement < smallest
        self._lowest = min(value, least), min(self.decrement, smallest)
        self._n_fruitless = 0 if is_lower else self._n_fruitless + 1
        self.stalled = t == 0 or self._n_fruitless >= _PATIENCE
        return value

    def _evaluate(self, closure: Callable[[], Tensor]) -> float:
        self._grad.zero_()
        with torch.enable_grad():
            value = float(closure().detach())
        return value if math.isfinite(value) else math.inf

    def _plan(self) -> tuple[int, float]:
        """The slot that now holds the direction of the next step, and the slope there."""
        slot = next(k for k in range(self.history_size + 1) if k not in self._slots)
        slope = self._find(self._steps[slot])
        if not slope < 0 and self._slots:
            self._slots.clear()
            slope = self._find(self._steps[slot])
        return slot, slope

    def _find(self, direction: Tensor) -> float:
        """Set it to minus the inverse Hessian times the gradient (the two-loop recursion).

        Returns the slope of the objective in that direction.
        """
        torch.neg(self._grad, out=direction)
        pairs = [(self._steps[k], self._changes[k]) for k in self._slots]
        products = [float(step.dot(change)) for step, change in pairs]
        shares = []
        for (step, change), product in zip(reversed(pairs), reversed(products), strict=True):
            shares.append(float(step.dot(direction)) / product)
            direction.add_(change, alpha=-shares[-1])
        direction.copy_(self._inverse(direction))
        if pairs:
            change = pairs[-1][1]
            direction.mul_(products[-1] / float(change.dot(self._inverse(change))))
        for (step, change), product in zip(pairs, products, strict=True):
            share = shares.pop() - float(change.dot(direction)) / product
            direction.add_(step, alpha=share)
        return float(self._grad.dot(direction))


def line_search(
    evaluate: Callable[[float], tuple[float, float]],
    value: float,
    slope: float,
    t: float,
    max_evaluations: int = 25,
    eps: float = 2.0**-52,
) -> tuple[float, float]:
    """A step length that satisfies the Wolfe conditions, where they can be told from rounding.

    Parameters
    ----------
    evaluate : callable
        The function and its slope at a step length.
    value, slope : float
        Both at zero, where the slope is negative.
    t : float
        What to try first.
    max_evaluations : int, default=25
    eps : float, default=2**-52
        Relative precision of the values.

    Returns
    -------
    t, value : float
        Zero, and the value there, if no lower one was found.
    """
    noise = 10 * eps * abs(value)
    low, high = (0.0, value, slope), None
    for _ in range(max_evaluations if slope < 0 else 0):
        point = (t, *evaluate(t))
        _, new_value, new_slope = point
        too_far = not new_value <= value + 1e-4 * t * slope
        if too_far and new_value <= value + noise:
            # Differences of the values drown in rounding: those of the slopes do not (Hager
            # and Zhang, 2005).
            too_far = new_slope > (2e-4 - 1) * slope
        if not too_far and abs(new_slope) <= 0.9 * abs(slope):
            return t, new_value
        if too_far or new_slope >= 0:
            high = point
        else:
            low = point
        t = _interpolate(low, high) if high is not None else 4 * t
        if high is not None and high[0] - low[0] <= 1e-12 * high[0]:
            break
    return low[0], low[1]


def _interpolate(low: Point, high: Point) -> float:
    """The minimum of the cubic through two points, kept well between them."""
    (a, fa, ga), (b, fb, gb) = low, high
    width = b - a
    t = math.nan
    if math.isfinite(fb) and math.isfinite(gb):
        d = ga + gb - 3 * (fb - fa) / width
        root = math.sqrt(max(d * d - ga * gb, 0.0))
        if gb - ga + 2 * root != 0:
            t = b - width * (gb + root - d) / (gb - ga + 2 * root)
    if math.isnan(t):
        return a + 0.5 * width
    return min(max(t, a + 0.05 * width), b - 0.1 * width)
