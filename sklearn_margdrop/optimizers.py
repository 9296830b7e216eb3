"""Optimisers of generalised linear models that know the Fisher information."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

#: torch's L-BFGS ignores changes of the gradient that are small in absolute terms, so the
#: objective is given to it in smaller units.
_UNIT = 1e8


class FisherLBFGS(torch.optim.Optimizer):
    """L-BFGS (strong Wolfe line search) in coordinates where the curvature is about one.

    The steps are those of :class:`torch.optim.LBFGS` on the parameters times the roots of a
    diagonal of the Hessian, the Fisher information at the start. One step is one iteration. The
    closure is not called again for parameters whose objective and gradient are known.

    Parameters
    ----------
    params : iterable of torch.nn.Parameter
    lr : float, default=1.0
        The step length that a line search tries first.
    history_size : int, default=10
        Pairs of vectors that approximate the inverse Hessian.
    """

    def __init__(self, params, lr: float = 1.0, history_size: int = 10):
        super().__init__(params, {"lr": lr})
        self.lr = lr
        self.history_size = history_size
        self._params = [p for group in self.param_groups for p in group["params"]]
        self.precondition([torch.ones_like(p) for p in self._params])

    def forget(self) -> None:
        """Let go of all that is as large as the parameters; a next step needs `precondition`."""
        self._scale = self._scaled = self._known = self._inner = None

    def precondition(self, diagonal: Sequence[Tensor]) -> None:
        """Take the positive `diagonal`, a tensor for each parameter, for that of the Hessian."""
        self._scale = _flat(diagonal).clamp_min(0)
        # Parameters that the objective does not depend on stay where they are.
        self._scale = torch.where(self._scale > 0, self._scale.rsqrt(), 1.0)
        self._scaled = torch.nn.Parameter(_flat(self._params) / self._scale)
        self._known: tuple[Tensor, Tensor] | None = None
        self.stalled = False
        self._inner = torch.optim.LBFGS(
            [self._scaled],
            lr=self.lr,
            max_iter=1,
            max_eval=25,
            tolerance_grad=0.0,
            tolerance_change=0.0,
            history_size=self.history_size,
            line_search_fn="strong_wolfe",
        )

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """One iteration; `closure` clears the gradients, computes them and returns the loss."""

        @torch.no_grad()
        def evaluate():
            if self._known is not None and torch.equal(self._known[0], self._scaled):
                return self._known[1]
            self._write()
            with torch.enable_grad():
                loss = closure().detach()
            grad = _flat([p.grad for p in self._params]) * self._scale
            if not (loss.isfinite() and grad.isfinite().all()):
                # The line search takes numbers only: as high as need be, and flat.
                loss = torch.full_like(loss, torch.finfo(loss.dtype).max ** 0.25)
                grad = torch.zeros_like(grad)
            self._scaled.grad = _UNIT * grad
            self._known = (self._scaled.detach().clone(), _UNIT * loss)
            return self._known[1]

        evaluate()
        start = self._known[0]
        try:
            self._inner.step(evaluate)
        except BaseException:
            self._scaled.copy_(start)  # not where the line search happened to be
            self._write()
            raise
        loss = evaluate()
        self._write()
        self.stalled = torch.equal(start, self._scaled)
        return loss / _UNIT

    @property
    def gradient(self) -> Tensor:
        """The gradient at the parameters that the last step ended at, by root of curvature."""
        return self._scaled.grad / _UNIT

    def _write(self):
        start = 0
        values = self._scaled * self._scale
        for p in self._params:
            p.copy_(values[start : start + p.numel()].view_as(p))
            start += p.numel()


def _flat(tensors) -> Tensor:
    return torch.cat([t.detach().reshape(-1) for t in tensors])


class Fisher(torch.optim.Optimizer):
    """The dropout-Fisher update p <- p - lr * g / D (W, relation to AdaGrad).

    g is the sum of the gradients of a batch's rows, and D the sum over all the rows seen so far
    of a diagonal of the curvature, that of their Fisher information.

    Parameters
    ----------
    params : iterable of torch.nn.Parameter
    lr : float
    """

    def __init__(self, params, lr: float):
        super().__init__(params, {"lr": lr})
        for p in self._params:
            self.state[p]["sum"] = torch.zeros_like(p)

    @property
    def _params(self):
        return [p for group in self.param_groups for p in group["params"]]

    def accumulate(self, diagonal: Sequence[Tensor], n_rows: int) -> None:
        """Add the curvature of so many rows, given its mean for each parameter."""
        self._n_rows = n_rows
        for p, each in zip(self._params, diagonal, strict=True):
            self.state[p]["sum"].add_(each, alpha=n_rows)

    @torch.no_grad()
    def step(self, closure: Callable[[], Tensor]) -> Tensor:
        """One update for the mean loss over the rows that were accumulated last."""
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                total = self.state[p]["sum"]
                # No information means no gradient of the loss, and nothing to divide by.
                step = torch.where(total > 0, self._n_rows * p.grad / total, 0.0)
                p.sub_(step, alpha=group["lr"])
        return loss
