"""Collections are told from other data, cut alike, loaded once and shared out."""

import numpy as np
import pandas as pd
import pytest
from collected import CHUNKS, ROWS, assert_same, data, glm
from numpy.testing import assert_allclose

from sklearn_margdrop.distributed.collections import share_out

dask = pytest.importorskip("dask")
da = pytest.importorskip("dask.array")


def test_frames_have_feature_names_and_others_may_be_arrays():
    dd = pytest.importorskip("dask.dataframe")
    X, y, weight = data("bernoulli")
    frame = pd.DataFrame(X, columns=list("abcdef"))
    labels = pd.Series(np.where(y, "yes", "no"))
    here = glm("bernoulli").fit(frame, labels, weight)
    rows = dd.from_pandas(frame, npartitions=3)
    series = dd.from_pandas(labels, npartitions=3)
    for there in (
        glm("bernoulli").fit(rows, labels, weight),
        glm("bernoulli").fit(rows, series, weight),
    ):
        assert_same(there, here)
        assert list(there.feature_names_in_) == list("abcdef")
        assert list(there.classes_) == ["no", "yes"]
        assert_allclose(there.predict_proba(frame), here.predict_proba(frame), atol=1e-8)
    with pytest.raises(ValueError, match="X_unlabeled is not like X"):
        glm("bernoulli").fit(rows, series, X_unlabeled=rows[list("abcde")])


def test_all_are_collections_or_none():
    X, y, _ = data("normal")
    rows = da.from_array(X, chunks=CHUNKS)
    with pytest.raises(TypeError, match="X must be a Dask array or frame"):
        glm("normal").fit(X, da.from_array(y, chunks=ROWS))
    with pytest.raises(TypeError, match="X_unlabeled must be a Dask array or frame"):
        glm("normal").fit(rows, y, X_unlabeled=X)


def test_blocks_are_loaded_once():
    X, y, _ = data("normal")
    loaded = []

    def load(block):
        loaded.append(len(block))
        return block

    rows = da.from_array(X, chunks=CHUNKS).map_blocks(load, meta=X[:0])
    glm("normal").fit(rows, y)
    assert len(loaded) == rows.numblocks[0]


def test_a_delayed_value_is_no_collection():
    X, y, _ = data("normal")
    with pytest.raises(TypeError, match="X must be a Dask array or frame"):
        glm("normal").fit(dask.delayed(X), y)


def test_partitions_are_shared_out_evenly_and_stay_where_they_can():
    slots = [("a", 0), ("a", 1), ("b", 0)]
    rng = np.random.RandomState(0)
    for _ in range(50):
        sizes = rng.randint(1, 50, size=rng.randint(1, 12)).tolist()
        homes = [[["a"], ["b"], ["a", "b"], []][k] for k in rng.randint(0, 4, size=len(sizes))]
        groups = share_out(slots, homes, sizes)
        assert sorted(k for group in groups.values() for k in group) == list(range(len(sizes)))
        loads = [sum(sizes[k] for k in group) for group in groups.values()]
        busiest = groups[slots[int(np.argmax(loads))]]
        assert max(loads) - min(loads) <= min(sizes[k] for k in busiest)
    stay = share_out(slots, [["a"], ["a"], ["b"]], [5, 5, 7])
    assert stay == {("a", 0): [0], ("a", 1): [1], ("b", 0): [2]}
