"""Dask arrays and frames: their blocks of rows, and how a cluster's threads share them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from sklearn_margdrop.distributed.partitions import Bundle, Bundles


def is_dask(*collections: Any) -> bool:
    """Whether any of them is a Dask collection; Dask is not imported to find out."""
    return any(hasattr(each, "__dask_graph__") for each in collections)


def row_blocks(X: Any, name: str) -> list[Any]:
    """Delayed blocks of the rows of a design matrix."""
    if not is_dask(X) or not hasattr(type(X), "to_delayed"):
        raise TypeError(
            f"{name} must be a Dask array or frame where other data are; got {type(X)}."
        )
    if hasattr(X, "numblocks") and len(X.shape) != 2:
        raise ValueError(f"Expected 2D array, got {len(X.shape)}D array instead: {name}.")
    return _delayed(X)


def template(X: Any) -> Any:
    """Data of the same kind without rows."""
    return np.empty((0, X.shape[1]), X.dtype) if hasattr(X, "numblocks") else X._meta


def aligned(X: Any, blocks: list[Any], **others: Any) -> list[list[Any]]:
    """Blocks of other data, cut like `X`, in the order of their names; or None for each block."""
    in_one_piece = any(each is not None and not is_dask(each) for each in others.values())
    lengths = _lengths(X, blocks) if in_one_piece else []
    found: list[list[Any]] = []
    for name, values in others.items():
        if values is None:
            found.append([None] * len(blocks))
        elif is_dask(values):
            found.append(_delayed(values))
            if len(found[-1]) != len(blocks):
                raise ValueError(
                    f"{name} has {len(found[-1])} blocks of rows, X has {len(blocks)}: rechunk it "
                    "like X."
                )
        else:
            values = np.asarray(values)
            if len(values) != sum(lengths):
                raise ValueError(f"{name} has {len(values)} rows, and X has {sum(lengths)}.")
            found.append(np.split(values, np.cumsum(lengths)[:-1]))
    return found


def bundled(
    make: Callable[..., Bundle], parts: list[Any], sizes: list[int], *arguments: Any
) -> Bundles:
    """What ``make(parts, *arguments)`` returns, for each thread of each worker.

    It is called on the workers that hold the partitions, if these can stay there, and in this
    process if Dask computes here.
    """
    import dask

    client: Any = getattr(dask.base.get_scheduler(), "__self__", None)
    if not hasattr(client, "who_has"):
        return Bundles([make(list(dask.compute(*parts)), *arguments)])
    from distributed import futures_of

    futures = [futures_of(part)[0] for part in parts]
    where, threads = client.who_has(futures), client.nthreads()
    homes = [[w for w in where.get(each.key, ()) if w in threads] for each in futures]
    slots = [(worker, k) for worker in threads for k in range(threads[worker])]
    bundles = [
        client.submit(
            make,
            [futures[k] for k in group],
            *arguments,
            pure=False,
            workers=[worker],
            allow_other_workers=True,
        )
        for (worker, _), group in share_out(slots, homes, sizes).items()
        if group
    ]
    return Bundles(bundles, client)


def share_out(
    slots: list[tuple[str, int]], homes: list[list[str]], sizes: list[int]
) -> dict[tuple[str, int], list[int]]:
    """Which partitions each slot, a thread of a worker, evaluates.

    Partitions stay where they are, except where a move lets the busiest slot end earlier: a
    partition is moved once, but every evaluation waits for the busiest slot.

    Examples
    --------
    >>> from sklearn_margdrop.distributed.collections import share_out
    >>> share_out([("a", 0), ("b", 0)], [["a"], ["a"], ["a"], ["b"]], [5, 5, 5, 5])
    {('a', 0): [0, 1], ('b', 0): [3, 2]}
    """
    groups: dict[tuple[str, int], list[int]] = {slot: [] for slot in slots}

    def load(slot: tuple[str, int]) -> int:
        return sum(sizes[k] for k in groups[slot])

    for k, home in enumerate(homes):
        near = [slot for slot in slots if slot[0] in home] or slots
        groups[min(near, key=load)].append(k)
    while True:
        busiest, idlest = max(slots, key=load), min(slots, key=load)
        excess = load(busiest) - load(idlest)
        movable = [k for k in groups[busiest] if sizes[k] < excess]
        if not movable:
            return groups
        moved = min(movable, key=lambda k: (abs(excess / 2 - sizes[k]), -k))
        groups[busiest].remove(moved)
        groups[idlest].append(moved)


def _delayed(values: Any) -> list[Any]:
    if hasattr(values, "numblocks") and values.ndim == 2 and values.numblocks[1] > 1:
        values = values.rechunk({1: -1})
    return list(np.ravel(np.array(values.to_delayed(), dtype=object)))


def _lengths(X: Any, blocks: list[Any]) -> list[int]:
    """The number of rows of each block."""
    if hasattr(X, "numblocks") and not np.isnan(X.chunks[0]).any():
        return [int(length) for length in X.chunks[0]]
    import dask

    shapes = dask.compute(*(dask.delayed(np.shape)(block) for block in blocks))
    return [n_rows for n_rows, *_ in shapes]
