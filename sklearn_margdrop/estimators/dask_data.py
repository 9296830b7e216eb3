"""From Dask arrays and frames to partitions that compute; Dask is imported here alone."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import is_classifier
from sklearn.utils import check_array, check_consistent_length
from sklearn.utils.validation import validate_data

from sklearn_margdrop.distributed.partitions import Bundle, Bundles, PartitionedRows, Shape
from sklearn_margdrop.estimators.validation import (
    check_range,
    check_weights,
    largest_magnitude,
    unlike_labelled,
)
from sklearn_margdrop.families import FAMILIES, Family
from sklearn_margdrop.numerics.ambient import neutral
from sklearn_margdrop.numerics.devices import check_device, to_tensor
from sklearn_margdrop.training.units import Units, standardised


def is_dask(*collections: Any) -> bool:
    """Whether any of them is a Dask collection; Dask is not imported to find out."""
    return any(hasattr(each, "__dask_graph__") for each in collections)


class Part(NamedTuple):
    """A partition, checked: rows, and their targets and weights if they are labelled."""

    X: Any
    y: Any
    weight: Any


class Sketch(NamedTuple):
    """What the client has to know of a partition."""

    n_rows: int
    n_stored: int
    y: Any
    weight: Any  # the total of each of `y`, for labels
    total: float
    largest: float  # magnitude of the features
    units: Units | None = None  # of numbers


class Scales(NamedTuple):
    """Of the weights: labelled rows in the loss and in the penalty, unlabelled ones in it."""

    loss: float
    penalty: float
    unlabeled: float


def _check(X: Any, y: Any, weight: Any, labelled: bool, checks: dict[str, Any]) -> Part:
    name = "X" if labelled else "X_unlabeled"
    X = check_array(X, ensure_min_samples=0, input_name=name, **checks)
    if not labelled:
        return Part(X, None, None)
    y = np.asarray(y)
    if y.ndim == 2 and y.shape[1] == 1:
        y = y[:, 0]
    check_consistent_length(X, y, weight)
    weight = check_weights(weight, X, allow_zeros=True) if len(y) else np.zeros(0)
    return Part(X, y, weight)


def _sketch(part: Part, labels: bool, centred: bool) -> Sketch:
    X, y, weight = part
    stored = X.nnz * 3 // 2 if hasattr(X, "nnz") else X.size
    largest = largest_magnitude(X)
    if y is None or not len(y):
        return Sketch(X.shape[0], stored, None, None, 0.0, largest)
    if not labels:
        ends = np.stack([y.min(0), y.max(0)])
        kept = weight > 0
        numbers = y.reshape(len(y), -1)[kept]
        units = Units.of(numbers, weight[kept], centred) if kept.any() else None
        return Sketch(len(y), stored, ends, None, weight.sum(), largest, units)
    seen, codes = np.unique(y, return_inverse=True)
    totals = np.bincount(codes.ravel(), weight)
    return Sketch(len(y), stored, seen, totals, weight.sum(), largest)


@neutral()
def _bundle(
    parts: list[Part],
    encoder: Any,
    family: type[Family],
    no_target: np.ndarray,
    factors: np.ndarray,
    scales: Scales,
    units: Units | None,
) -> Bundle:
    """The checked partitions, encoded, with weights that sum to one over all of them.

    The encoder is an estimator that knows the target, `factors` the weights of the classes.
    """
    FAMILIES.setdefault(family.name, family)  # a worker need not know what a script defines
    features, targets, weights = [], [], []
    device = check_device(encoder.device)
    for X, y, weight in parts:
        dtype = X.dtype
        if y is None:
            code, in_loss = no_target, np.zeros(0)
            in_penalty = np.full(X.shape[0], scales.unlabeled)
        else:
            kept = weight > 0
            if not kept.all():
                X, y, weight = X[kept], y[kept], weight[kept]
            code = encoder._encode_target(y, dtype, True, None) if len(y) else no_target
            if units is not None:
                code = standardised(code, units, dtype)
            if factors.ndim:
                weight = weight * factors[code.astype(int).ravel()]
            in_loss, in_penalty = weight * scales.loss, weight * scales.penalty
        if not X.shape[0]:
            continue
        if isinstance(X, np.ndarray) and not X.flags.writeable:
            X = X.copy()
        features.append(encoder._features(X, device, dtype))
        targets.append(to_tensor(code, device))
        loss_weight, penalty_weight = (
            to_tensor(each.astype(dtype), device) for each in (in_loss, in_penalty)
        )
        weights.append((loss_weight, penalty_weight))
    return Bundle(features, targets, weights)


def partitioned_rows(
    estimator: Any,
    device: torch.device,
    X: Any,
    y: Any,
    sample_weight: Any,
    X_unlabeled: Any,
    continuing: bool,
) -> PartitionedRows:
    """The rows of a fit on Dask collections, checked and encoded where they lie."""
    import dask

    dtype: Any = estimator._dtype() if continuing else [np.float64, np.float32]
    if device.type == "mps":
        dtype = np.float32
    checks = {"accept_sparse": "csr", "dtype": dtype, "order": "C"}
    labels = is_classifier(estimator)
    blocks = _blocks(X, "X")
    template = validate_data(
        estimator, _template(X), reset=not continuing, ensure_min_samples=0, **checks
    )
    checks["dtype"] = template.dtype
    lengths = _lengths(X, blocks, y, sample_weight)
    targets = _aligned(y, len(blocks), lengths, "y")
    weights = _aligned(sample_weight, len(blocks), lengths, "sample_weight")
    check, sketch = dask.delayed(_check, pure=False), dask.delayed(_sketch, pure=False)
    parts = [check(*block, True, checks) for block in zip(blocks, targets, weights, strict=True)]
    if X_unlabeled is not None and estimator.unlabeled_discount > 0:
        unlabeled = _blocks(X_unlabeled, "X_unlabeled")
        try:
            validate_data(
                estimator, _template(X_unlabeled), reset=False, ensure_min_samples=0, **checks
            )
        except ValueError as error:
            raise unlike_labelled(error) from error
        parts += [check(block, None, None, False, checks) for block in unlabeled]
    client = _client()
    parts = list(dask.persist(*parts))
    centred = bool(estimator.fit_intercept)
    sketches = dask.compute(*(sketch(part, labels, centred) for part in parts))
    return _assemble(estimator, device, parts, sketches, len(blocks), template, client, continuing)


def _assemble(
    estimator: Any,
    device: torch.device,
    parts: list[Any],
    sketches: Any,
    n_labelled: int,
    template: Any,
    client: Any,
    continuing: bool,
) -> PartitionedRows:
    labelled = [each for each in sketches[:n_labelled] if each.n_rows]
    if not labelled:
        raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required.")
    largest = [np.array([s.largest for s in each]) for each in (labelled, sketches[n_labelled:])]
    check_range(largest[0], "X", template.dtype)
    check_range(largest[1], "X_unlabeled", template.dtype, small=False)
    seen = np.concatenate([each.y for each in labelled])
    codes = estimator._encode_target(seen, template.dtype, continuing, None)
    if continuing:
        estimator._check_continued(codes, False)
    units = _units(estimator, labelled, template.dtype, continuing)
    if units is not None:
        codes = standardised(codes, units, template.dtype)
    total, factors = sum(each.total for each in labelled), np.ones(())
    if labelled[0].weight is not None:
        positions = codes.astype(int).ravel()
        totals = np.bincount(
            positions,
            np.concatenate([each.weight for each in labelled]),
            minlength=len(estimator.classes_),
        )
        known = estimator._encode_target(estimator.classes_, template.dtype, True, None)
        factors = estimator._target_weight(known, totals, False) * np.ones(len(totals))
        total = float(totals @ factors)
    if not 0 < total < np.inf:
        raise ValueError(f"The total of sample_weight must be positive and finite; got {total}.")
    n_unlabeled = sum(each.n_rows for each in sketches[n_labelled:])
    mass = estimator.unlabeled_discount * n_unlabeled
    share = mass / (mass + total)
    encoder = type(estimator)(**estimator.get_params(deep=False))
    for name in {"classes_", "n_outputs_"} & vars(estimator).keys():
        setattr(encoder, name, getattr(estimator, name))
    scales = Scales(1 / total, (1 - share) / total, share / max(n_unlabeled, 1))
    arguments = (encoder, type(estimator._family()[0]), codes[:0], factors, scales, units)
    if client is None:
        import dask

        bundles = Bundles([_bundle(list(dask.compute(*parts)), *arguments)])
    else:
        bundles = Bundles(_place(client, parts, sketches, arguments), client)
    shape = (sum(each.n_rows for each in labelled), template.shape[1])
    stored = sum(each.n_stored for each in labelled)
    features = Shape(shape, template.dtype, device, stored)
    return PartitionedRows(bundles, features, to_tensor(codes, device), units)


def _units(
    estimator: Any, labelled: list[Sketch], dtype: np.dtype[Any], continuing: bool
) -> Units | None:
    """What the target is standardised by, if it is."""
    found = [each.units for each in labelled if each.units is not None]
    if not found or not estimator._family()[0].standardised:
        return None
    seen = functools.reduce(Units.merged, found)
    units: Units = estimator._units(seen, dtype, continuing, False)
    return units


def _place(client: Any, parts: list[Any], sketches: Any, arguments: Any) -> list[Any]:
    """A bundle for each thread of each worker, of the partitions that lie there, if they can."""
    from distributed import futures_of

    futures = [futures_of(part)[0] for part in parts]
    where, threads = client.who_has(futures), client.nthreads()
    homes = [[w for w in where.get(each.key, ()) if w in threads] for each in futures]
    slots = [(worker, k) for worker in threads for k in range(threads[worker])]
    groups = share_out(slots, homes, [each.n_stored + 1 for each in sketches])
    return [
        client.submit(
            _bundle,
            [futures[k] for k in group],
            *arguments,
            pure=False,
            workers=[worker],
            allow_other_workers=True,
        )
        for (worker, _), group in groups.items()
        if group
    ]


def share_out(
    slots: list[tuple[str, int]], homes: list[list[str]], sizes: list[int]
) -> dict[tuple[str, int], list[int]]:
    """Which partitions each slot, a thread of a worker, evaluates.

    They stay where they are, but for those whose move lets the busiest slot end earlier: it is
    made once, and all evaluations wait for that slot.

    Examples
    --------
    >>> from sklearn_margdrop.estimators.dask_data import share_out
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


def _client() -> Any:
    """The client of the cluster that Dask computes on; None where it computes here."""
    import dask

    scheduler = dask.base.get_scheduler()
    client = getattr(scheduler, "__self__", None)
    return client if hasattr(client, "who_has") else None


def _blocks(X: Any, name: str) -> list[Any]:
    """Delayed blocks of rows."""
    if not is_dask(X) or not hasattr(type(X), "to_delayed"):
        raise TypeError(
            f"{name} must be a Dask array or frame where other data are; got {type(X)}."
        )
    if hasattr(X, "numblocks"):
        if len(X.shape) != 2:
            raise ValueError(f"Expected 2D array, got {len(X.shape)}D array instead: {name}.")
        if X.numblocks[1] > 1:
            X = X.rechunk({1: -1})
    return list(np.ravel(np.array(X.to_delayed(), dtype=object)))


def _template(X: Any) -> Any:
    """No rows of such data."""
    return np.empty((0, X.shape[1]), X.dtype) if hasattr(X, "numblocks") else X._meta


def _lengths(X: Any, blocks: list[Any], *others: Any) -> list[int] | None:
    """Rows of each block, if other data come in one piece and have to be cut."""
    if all(other is None or is_dask(other) for other in others):
        return None
    if hasattr(X, "numblocks") and not np.isnan(X.chunks[0]).any():
        return [int(length) for length in X.chunks[0]]
    import dask

    return list(dask.compute(*(dask.delayed(_n_rows)(block) for block in blocks)))


def _n_rows(block: Any) -> int:
    return int(block.shape[0])


def _aligned(values: Any, n_blocks: int, lengths: list[int] | None, name: str) -> list[Any]:
    if values is None:
        return [None] * n_blocks
    if is_dask(values):
        if hasattr(values, "numblocks") and values.ndim == 2 and values.numblocks[1] > 1:
            values = values.rechunk({1: -1})
        blocks = list(np.ravel(np.array(values.to_delayed(), dtype=object)))
        if len(blocks) != n_blocks:
            raise ValueError(
                f"{name} has {len(blocks)} blocks of rows, X has {n_blocks}: rechunk it like X."
            )
        return blocks
    assert lengths is not None
    values = np.asarray(values)
    if len(values) != sum(lengths):
        raise ValueError(f"{name} has {len(values)} rows, and X has {sum(lengths)}.")
    return np.split(values, np.cumsum(lengths)[:-1])
