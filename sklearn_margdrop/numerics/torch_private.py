"""The private names of torch that the package needs, each guarded by a test of its behaviour.

A release of torch may rename or change any of them. Each function tests at its first use what it
relies on. If that has changed, the function falls back on something slower but public.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks


def _holds(check: Callable[[], bool]) -> Callable[[], bool]:
    """A check that runs once, and fails if it raises."""

    @functools.cache
    @functools.wraps(check)
    def holds() -> bool:
        try:
            return bool(check())
        except Exception:  # a private name may fail in any way
            return False

    return holds


def onednn_linear(a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``a @ weight.T + bias`` by oneDNN, through the operator that torch.compile uses.

    It needs :func:`has_onednn_linear`.
    """
    out: Tensor = torch.ops.mkldnn._linear_pointwise(a, weight, bias, "none", [], "")
    return out


@_holds
def has_onednn_linear() -> bool:
    """Whether :func:`onednn_linear` computes that product."""
    a, weight, bias = (
        torch.tensor(values, dtype=torch.float32, device="cpu")
        for values in ([[[1, 2], [3, 4]]], [[1, 0], [0, 2], [1, 1]], [0, 0, 5])
    )
    products = [onednn_linear(a, weight, each).tolist() for each in (bias, None)]
    return products == [[[[1, 4, 8], [3, 8, 12]]], [[[1, 4, 3], [3, 8, 7]]]]


def dots_of_rows(a: Tensor, b: Tensor, of_a: Tensor, of_b: Tensor, starts: Tensor) -> Tensor:
    """``(a[of_a] * b[of_b]).sum(-1)`` for sorted `of_a`, whose values begin at `starts`.

    It is a part of the derivative of embeddings, and needs :func:`has_dots_of_rows`.
    """
    out: Tensor = torch.ops.aten._embedding_bag_per_sample_weights_backward(
        a, b, of_b, starts, of_a, 0
    )
    return out


@_holds
def has_dots_of_rows() -> bool:
    """Whether :func:`dots_of_rows` computes these."""
    a, b = torch.arange(6, dtype=torch.float64, device="cpu").view(2, 3, 1).expand(2, 3, 2)
    of_a, of_b, starts = (
        torch.tensor(each, dtype=torch.int32, device="cpu")
        for each in ([0, 0, 2], [2, 1, 0], [0, 2, 2])
    )
    found = dots_of_rows(a.contiguous(), b.contiguous(), of_a, of_b, starts)
    return bool(found.tolist() == [0.0, 0.0, 12.0])


def is_transformed() -> bool:
    """Whether a compiler or a function transform of ``torch.func`` traces what is computed.

    Both have rules for torch's public operators alone, and cannot follow decisions on the number
    of rows. Also true if torch does not tell.
    """
    return (
        torch.compiler.is_compiling()
        or not _tells_transforms()
        or torch._C._are_functorch_transforms_active()
    )


@_holds
def _tells_transforms() -> bool:
    seen = []

    def look(x: Tensor) -> Tensor:
        seen.append(torch._C._are_functorch_transforms_active())
        return x

    torch.func.vmap(look)(torch.zeros(1, dtype=torch.float32, device="cpu"))
    return seen == [True]


def has_function_modes() -> bool:
    """Whether a mode of functions, a default device say, is on; true if torch does not tell."""
    return not _tells_function_modes() or torch._C._len_torch_function_stack() > 0


@_holds
def _tells_function_modes() -> bool:
    outside = torch._C._len_torch_function_stack()
    with torch.device("cpu"):
        return bool(torch._C._len_torch_function_stack() == outside + 1)


def has_saving_hooks() -> bool:
    """Whether hooks change what is saved for backward passes; true if torch does not tell."""
    return (
        not _tells_saving_hooks()
        or torch._C._autograd._top_saved_tensors_default_hooks(True) is not None
    )


@_holds
def _tells_saving_hooks() -> bool:
    with saved_tensors_hooks(lambda tensor: tensor, lambda tensor: tensor):
        return torch._C._autograd._top_saved_tensors_default_hooks(True) is not None


def set_last_rates(scheduler: Any, rates: Sequence[float]) -> None:
    """Let ``scheduler.get_last_lr()`` be `rates`, until the scheduler's next step.

    If torch keeps them under another name, it reports the previous rates until then. This affects
    the record alone, not the training.
    """
    scheduler._last_lr = list(rates)
