"""How much memory a step may take: the usual amount, or less if less is free."""

from __future__ import annotations

import contextlib
import mmap
import os
import re
from collections.abc import Callable

import numpy as np
import torch

#: Bytes that the largest temporaries of a step may take together, where there is enough memory.
#: It is fixed, so that the same data are cut in the same places and sum to the same last bit
#: unless memory is short.
_USUAL_BYTES = 2**28

#: The part of the free memory that they may take. Autograd keeps about as much again.
_SHARE = 1 / 4

#: Less than this is not worth asking how much memory is free.
_FEW_BYTES = 2**24

#: Elements that a pass over many rows holds at a time.
_BLOCK_ELEMENTS = 2**22

#: The same for a pass whose temporaries are to stay in a processor's cache, and the fewest rows
#: that repay the work for each block.
_CACHE_ELEMENTS, _CACHE_ROWS = 2**18, 512


def blocks(n_rows: int, width: int, in_cache: bool = False) -> list[slice]:
    """Slices that cut `n_rows` rows of `width` elements into blocks of bounded memory."""
    size = max(1, _BLOCK_ELEMENTS // width)
    if in_cache:
        size = max(_CACHE_ROWS, _CACHE_ELEMENTS // width)
    return [slice(start, min(start + size, n_rows)) for start in range(0, n_rows, size)]


def is_mapped(X: object) -> bool:
    """Whether an array lies in a file that is mapped into memory, not to be copied whole."""
    while isinstance(X, np.ndarray):
        X = X.base
    return isinstance(X, mmap.mmap)


def slice_length(n_rows: int, row_elements: int, like: torch.Tensor) -> int:
    """How many of `n_rows` rows to work on at a time, at least one.

    Parameters
    ----------
    n_rows : int
    row_elements : int
        How many numbers the temporaries of a row hold.
    like : Tensor
        They have its dtype and device.

    Returns
    -------
    int
        `n_rows` itself where the temporaries of all of them take at most 256 MiB and a quarter
        of the free memory.

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.numerics.memory import slice_length
    >>> slice_length(100, 20_000, torch.empty(0))  # 8 MB
    100
    >>> slice_length(100, 10**12, torch.empty(0))
    1
    """
    row_bytes = max(1, row_elements) * like.element_size()
    if n_rows * row_bytes <= _FEW_BYTES:
        return n_rows
    free = free_bytes(like.device)
    budget = _USUAL_BYTES if free is None else min(_USUAL_BYTES, int(_SHARE * free))
    return max(1, min(n_rows, budget // row_bytes))


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says so, on any device."""
    # torch's allocator on the CPU has no class of errors of its own.
    of_torch = isinstance(error, RuntimeError) and "DefaultCPUAllocator" in str(error)
    return of_torch or isinstance(error, MemoryError | torch.OutOfMemoryError)


def with_advice(error: BaseException, smaller: Callable[[bool], list[str]]) -> BaseException:
    """A copy of an out-of-memory error, with advice on what to change.

    Parameters
    ----------
    error : BaseException
    smaller : callable
        ``smaller(on_gpu)`` are the changes that the estimator knows, the most effective first.
    """
    on_gpu = isinstance(error, torch.OutOfMemoryError)
    changes = [*smaller(on_gpu), "run fewer fits at a time (n_jobs)"]
    changes += ["set device='cpu'"] if on_gpu else []
    kind = torch.OutOfMemoryError if on_gpu else MemoryError
    return kind(
        f"The {'GPU' if on_gpu else 'machine'} ran out of memory: {'; '.join(changes[:-1])}; or "
        f"{changes[-1]}. {error}"
    )


def free_bytes(device: torch.device) -> int | None:
    """The memory of `device` that is free, in bytes; None where that is not known.

    On the CPU it is what Linux says is available to new processes, page cache included.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + unused)
    if device.type != "cpu":
        return None
    with contextlib.suppress(OSError), open("/proc/meminfo", encoding="ascii") as file:
        found = re.search(r"^MemAvailable:\s*(\d+) kB", file.read(), re.MULTILINE)
        if found:
            return 1024 * int(found.group(1))
    with contextlib.suppress(AttributeError, OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_AVPHYS_PAGES")
    return None
