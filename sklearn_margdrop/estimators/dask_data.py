"""The rows of a fit on Dask collections, checked and encoded where they lie."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import numpy as np
import torch
from sklearn.base import is_classifier
from sklearn.utils import check_array, check_consistent_length
from sklearn.utils.validation import validate_data

from sklearn_margdrop.distributed.collections import aligned, bundled, row_blocks, template
from sklearn_margdrop.distributed.partitions import Bundle, PartitionedRows, Shape
from sklearn_margdrop.estimators.discounts import first_discount
from sklearn_margdrop.estimators.targets import Target
from sklearn_margdrop.estimators.validation import (
    check_range,
    check_weights,
    features_of,
    largest_magnitude,
    unlike_labelled,
)
from sklearn_margdrop.numerics.ambient import neutral
from sklearn_margdrop.numerics.devices import check_device, to_tensor
from sklearn_margdrop.training.units import Units
from sklearn_margdrop.weighting import Scales


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
    target: Target,
    device: str | torch.device,
    no_target: np.ndarray,
    factors: np.ndarray,
    scales: Scales,
) -> Bundle:
    """The checked partitions, encoded, with weights that sum to one over all of them.

    The `factors` are the weights of the classes.
    """
    found, device = [], check_device(device)
    for X, y, weight in parts:
        dtype = X.dtype
        if y is None:
            code, in_loss = no_target, np.zeros(0)
            in_penalty = np.full(X.shape[0], scales.unlabeled)
        else:
            kept = weight > 0
            if not kept.all():
                X, y, weight = X[kept], y[kept], weight[kept]
            code = target.standardise(target.encode(y, dtype), dtype) if len(y) else no_target
            if factors.ndim:
                weight = weight * factors[code.astype(int).ravel()]
            in_loss, in_penalty = weight * scales.loss, weight * scales.penalty
        if not X.shape[0]:
            continue
        if isinstance(X, np.ndarray) and not X.flags.writeable:
            X = X.copy()
        features = features_of(X, device, dtype, keep_sparse=True)
        own = (code, in_loss.astype(dtype), in_penalty.astype(dtype))
        targets, loss_weight, penalty_weight = (to_tensor(each, device) for each in own)
        found.append((features, targets, loss_weight, penalty_weight))
    return Bundle(found)


def partitioned_rows(
    estimator: Any, call: Any, X: Any, y: Any, sample_weight: Any, X_unlabeled: Any
) -> PartitionedRows:
    """The rows of a fit on Dask collections, checked and encoded where they lie."""
    import dask

    dtype: Any = estimator._dtype() if call.continuing else [np.float64, np.float32]
    if call.device.type == "mps":
        dtype = np.float32
    checks = {"accept_sparse": "csr", "dtype": dtype, "order": "C"}
    labels = is_classifier(estimator)
    blocks = row_blocks(X, "X")
    checked = validate_data(
        estimator, template(X), reset=not call.continuing, ensure_min_samples=0, **checks
    )
    checks["dtype"] = checked.dtype
    targets, weights = aligned(X, blocks, y=y, sample_weight=sample_weight)
    check, sketch = dask.delayed(_check, pure=False), dask.delayed(_sketch, pure=False)
    parts = [check(*block, True, checks) for block in zip(blocks, targets, weights, strict=True)]
    if X_unlabeled is not None and estimator.unlabeled_discount != 0:
        unlabeled = row_blocks(X_unlabeled, "X_unlabeled")
        try:
            validate_data(
                estimator, template(X_unlabeled), reset=False, ensure_min_samples=0, **checks
            )
        except ValueError as error:
            raise unlike_labelled(error) from error
        parts += [check(block, None, None, False, checks) for block in unlabeled]
    parts = list(dask.persist(*parts))
    centred = bool(estimator.fit_intercept)
    sketches = list(dask.compute(*(sketch(part, labels, centred) for part in parts)))
    return _assemble(estimator, call, parts, sketches, len(blocks), checked.dtype)


def _assemble(
    estimator: Any,
    call: Any,
    parts: list[Any],
    sketches: list[Sketch],
    n_labelled: int,
    dtype: np.dtype[Any],
) -> PartitionedRows:
    labelled = [each for each in sketches[:n_labelled] if each.n_rows]
    if not labelled:
        raise ValueError("Found array with 0 sample(s) while a minimum of 1 is required.")
    largest = [np.array([s.largest for s in each]) for each in (labelled, sketches[n_labelled:])]
    check_range(largest[0], "X", dtype)
    check_range(largest[1], "X_unlabeled", dtype, small=False)
    seen = np.concatenate([each.y for each in labelled])
    call.dtype = dtype
    target, codes = estimator._encode(seen, call)
    if call.continuing:
        target.check_continued(call.known, codes, False)
    found = [each.units for each in labelled if each.units is not None]
    if found and target.family.standardised:
        units = functools.reduce(Units.merged, found)
        target = target.with_units(units, bool(estimator.fit_intercept), call.known, False)
    codes = target.standardise(codes, dtype)
    call.target = target
    total, factors = sum(each.total for each in labelled), np.ones(())
    if labelled[0].weight is not None:
        positions = codes.astype(int).ravel()
        totals = np.bincount(
            positions,
            np.concatenate([each.weight for each in labelled]),
            minlength=len(target.classes),
        )
        classes = target.encode(target.classes, dtype)
        factors = target.row_weights(classes, totals, estimator.class_weight, False)
        factors = factors * np.ones(len(totals))
        total = float(totals @ factors)
    if not 0 < total < np.inf:
        raise ValueError(f"The total of sample_weight must be positive and finite; got {total}.")
    call.total_weight = total
    n_unlabeled = sum(each.n_rows for each in sketches[n_labelled:])
    discount = first_discount(estimator.unlabeled_discount, n_unlabeled, total)
    estimator.unlabeled_discount_ = discount
    scales = Scales.of(total, n_unlabeled, discount or 0.0)
    arguments = (target, estimator.device, codes[:0], factors, scales)
    bundles = bundled(_bundle, parts, [each.n_stored + 1 for each in sketches], *arguments)
    features = Shape(
        (sum(each.n_rows for each in labelled), estimator.n_features_in_),
        dtype,
        call.device,
        sum(each.n_stored for each in labelled),
    )
    return PartitionedRows(bundles, features, to_tensor(codes, call.device))
