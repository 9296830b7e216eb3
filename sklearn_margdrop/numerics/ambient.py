"""The state of torch around a call, which is not to change what the call computes.

torch keeps much of it for each thread: whether it records gradients, casts to half precision
(autocast), where new tensors lie. A caller may set it for their own code, such as a training loop,
and then it holds in every function that they call. The public functions of this package therefore
run in :func:`neutral`.

The state of the whole process (the default dtype, deterministic algorithms) stays as it is, and no
computation depends on it.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import TypeVar

import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from sklearn_margdrop.numerics.torch_private import has_function_modes, has_saving_hooks

T = TypeVar("T")

#: The kinds of devices that fits run on, each of which has an autocast of its own.
_AUTOCAST = ("cpu", "cuda", "mps", "xpu")

#: Half of it is zero where the processor flushes denormal numbers.
_SMALLEST_NORMAL = sys.float_info.min


@contextmanager
def neutral() -> Iterator[None]:
    """Give this thread the state that torch has just after its import.

    Gradients are recorded, and tensors are no inference tensors; nothing is cast; new tensors lie
    on the CPU; what is saved for backward passes is not changed by hooks; denormal numbers are
    not flushed. Afterwards the state is restored, also after an error. It works as a decorator,
    but not of generators, whose caller would be in it too: see :func:`neutral_steps`.

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.numerics.ambient import neutral
    >>> with torch.inference_mode(), torch.device("meta"):
    ...     with neutral():
    ...         inside = torch.ones(1, requires_grad=True).exp()
    ...     outside = torch.ones(1).exp()
    >>> inside.requires_grad, inside.device.type, outside.device.type
    (True, 'cpu', 'meta')
    """
    with ExitStack() as stack:  # almost always empty
        if torch.is_inference_mode_enabled() or not torch.is_grad_enabled():
            stack.enter_context(torch.inference_mode(False))  # which records gradients, too
        for kind in _AUTOCAST:
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        # A default device is a mode of functions. Asking for the device itself takes longer, and
        # fails where there is no such device.
        if has_function_modes():
            stack.enter_context(torch.device("cpu"))
        if has_saving_hooks():
            stack.enter_context(saved_tensors_hooks(_same, _same))
        if _SMALLEST_NORMAL / 2 == 0:
            # In this thread alone: torch's other threads keep the mode they started in.
            stack.callback(torch.set_flush_denormal, True)
            torch.set_flush_denormal(False)
        yield


def neutral_steps(iterator: Iterator[T]) -> Iterator[T]:
    """The same items, each made in a :func:`neutral` context that does not reach the caller.

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.numerics.ambient import neutral_steps
    >>> with torch.no_grad():
    ...     for is_recorded in neutral_steps(torch.is_grad_enabled() for _ in range(2)):
    ...         print(is_recorded, torch.is_grad_enabled())
    True False
    True False
    """
    while True:
        with neutral():
            try:
                item = next(iterator)
            except StopIteration:
                return
        yield item


def _same(tensor: Tensor) -> Tensor:
    return tensor
