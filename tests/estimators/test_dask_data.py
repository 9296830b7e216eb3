"""The rows of Dask collections are checked and encoded as others are."""

import numpy as np
import pytest
from collected import CHUNKS, ROWS, assert_same, data, glm

da = pytest.importorskip("dask.array")


def test_float32_stays():
    X, y, _ = data("poisson")
    rows = da.from_array(X.astype(np.float32), chunks=CHUNKS)
    there = glm("poisson", tol=1e-4).fit(rows, y)
    here = glm("poisson", tol=1e-4).fit(X.astype(np.float32), y)
    assert there.coef_.dtype == np.float32
    assert_same(there, here, atol=1e-3)


def test_partitions_may_hold_one_class_or_no_weight():
    X, y, weight = data("categorical")
    order = np.argsort(y, kind="stable")
    X, y, weight = X[order], y[order], weight[order]
    counts = tuple(np.bincount(y))
    weight[: counts[0] // 2] = 0
    chunks = (counts[0] // 2, counts[0] - counts[0] // 2, *counts[1:])
    rows, blocks = da.from_array(X, chunks=(chunks, 6)), da.from_array(weight, chunks=(chunks,))
    assert_same(glm("categorical").fit(rows, y, blocks), glm("categorical").fit(X, y, weight))


def bad_value(values, value):
    values = values.astype(float)
    values[130] = value
    return values


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"X": np.nan}, "Input X contains NaN"),
        ({"y": np.inf}, "Input y contains infinity"),
        ({"X": 1e200}, r"X has values of up to 1e\+200, whose squares are too large"),
        ({"weight": -1}, "sample_weight"),
        ({"y": da.zeros(200, chunks=100)}, "y has 2 blocks of rows, X has 4: rechunk it like X"),
        ({"y": np.zeros(199)}, "y has 199 rows, and X has 200"),
        ({"weight": da.zeros(200, chunks=ROWS)}, "sample_weight must be positive"),
    ],
)
def test_bad_data(change, message):
    whole = dict(zip(("X", "y", "weight"), data("normal"), strict=True))
    for name, value in change.items():
        whole[name] = bad_value(whole[name], value) if np.isscalar(value) else value
    rows = da.from_array(whole["X"], chunks=CHUNKS)
    model = glm("normal")
    with pytest.raises(ValueError, match=message):
        model.fit(rows, whole["y"], whole["weight"])
    assert not hasattr(model, "coef_")


@pytest.mark.parametrize(("dtype", "scale"), [(np.float64, 1e-160), (np.float32, 1e-25)])
def test_features_in_tiny_units_are_refused_as_elsewhere(dtype, scale):
    X, y, _ = data("normal")
    X = (X * scale).astype(dtype)
    for rows, targets in ((X, y), (da.from_array(X, chunks=CHUNKS), y)):
        with pytest.raises(ValueError, match=r"X has values of up to .* too small"):
            glm("normal").fit(rows, targets)
