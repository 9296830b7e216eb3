"""Batches visit every row once an epoch, wherever the rows lie."""

import numpy as np
import pytest
import torch
from scipy import sparse

from sklearn_margdrop.training.batches import Batches, Features, Rows

N, D = 10, 3


def numbered(n_rows, dtype=np.float64, offset=0):
    """Rows that tell where they came from, with zeros for the sparse formats."""
    X = np.zeros((n_rows, D), dtype=dtype)
    X[:, 0] = np.arange(n_rows) + offset
    return X


def batches(X, batch_size=4, shuffle=True, seed=0, unlabeled=None, **kwargs):
    features = Features(X, "cpu")
    if unlabeled is not None:
        kwargs["unlabeled"] = Features(unlabeled, "cpu")
    y = kwargs.get("index", torch.arange(len(features)))
    generator = torch.Generator().manual_seed(seed)
    return Batches(Rows(features, y, **kwargs), batch_size, shuffle, generator)


@pytest.mark.parametrize("batch_size", [1, 4, 5, 10, 99])
@pytest.mark.parametrize("shuffle", [False, True])
def test_every_row_once_an_epoch(batch_size, shuffle):
    weight = torch.arange(N) / 4.5
    iterator = batches(numbered(N), batch_size, shuffle, weight=weight)
    orders = []
    for _ in range(2):
        epoch = list(iterator)
        assert len(epoch) == len(iterator) == -(-N // batch_size)
        sizes = [len(b.y) for b in epoch]
        assert max(sizes) <= batch_size
        assert max(sizes) - min(sizes) <= 1
        y = torch.cat([b.y for b in epoch])
        assert sorted(y.tolist()) == list(range(N))
        assert torch.equal(torch.cat([b.x for b in epoch])[:, 0], y.double())
        found = torch.cat([b.loss_weight * len(b.y) for b in epoch])
        torch.testing.assert_close(found, weight[y])
        orders.append(y.tolist())
    shuffled = shuffle and batch_size < N  # the order within a single batch means nothing
    assert (orders[0] == list(range(N))) != shuffled
    assert (orders[0] == orders[1]) != shuffled


def test_seed_decides_the_order():
    before = torch.get_rng_state()
    first, again, other = (
        torch.cat([b.x for b in batches(numbered(50), seed=seed)]) for seed in (1, 1, 2)
    )
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("shuffle", [False, True])
def test_a_subset_of_the_rows(shuffle):
    index = torch.tensor([1, 4, 5, 8, 9])
    iterator = batches(numbered(N), 2, shuffle, index=index, weight=index / 5.4)
    epoch = list(iterator)
    assert len(epoch) == len(iterator) == 3
    y = torch.cat([b.y for b in epoch])
    assert sorted(y.tolist()) == index.tolist()
    assert torch.equal(torch.cat([b.x for b in epoch])[:, 0], y.double())
    torch.testing.assert_close(torch.cat([b.loss_weight * len(b.y) for b in epoch]), y / 5.4)


def read_only(X, path):
    X = X.copy()
    X.flags.writeable = False
    return X


def memory_map(X, path, mode="r"):
    np.save(path / "X.npy", X)
    return np.load(path / "X.npy", mmap_mode=mode)


STORAGES = {
    "csr_matrix": lambda X, path: sparse.csr_matrix(X),
    "csr_array": lambda X, path: sparse.csr_array(X),
    "read-only": read_only,
    "memmap": memory_map,
    "writeable memmap": lambda X, path: memory_map(X, path, "r+"),
    "fortran": lambda X, path: np.asfortranarray(X),
}


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("resident", [False, True])
def test_storage_does_not_matter(storage, dtype, resident, tmp_path):
    """The same rows, without a warning (which would be an error here)."""
    X = np.random.default_rng(0).normal(size=(N, D)).astype(dtype)
    X[X < 0] = 0
    stored = STORAGES[storage](X, tmp_path)
    features = Features(stored, "cpu", resident=resident)
    assert len(features) == N
    assert features.shape == (N, D)
    order = torch.tensor([3, 0, 9, 3])
    for index, rows in [(order, X[order.numpy()]), (slice(2, 5), X[2:5])]:
        torch.testing.assert_close(features.take(index), torch.tensor(rows), rtol=0, atol=0)
    for left, right in zip(batches(stored), batches(X), strict=True):
        torch.testing.assert_close(left, right, rtol=0, atol=0)


@pytest.mark.parametrize("storage", ["read-only", "memmap"])
def test_batches_never_write_to_the_data(storage, tmp_path):
    X = numbered(N)
    stored = STORAGES[storage](X, tmp_path)
    Features(stored, "cpu").take(slice(0, 5)).fill_(7)
    np.testing.assert_array_equal(stored, X)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("n_unlabeled", [3, 4, 9, 30])
@pytest.mark.parametrize("container", [np.asarray, sparse.csr_array])
def test_unlabelled_rows_take_turns(shuffle, n_unlabeled, container):
    """They follow the labelled rows, and all are seen equally often over the epochs."""
    unlabeled = container(numbered(n_unlabeled, offset=100))
    iterator = batches(numbered(N), 4, shuffle, unlabeled=unlabeled)
    seen, passes = [], 5
    while len(seen) < passes * n_unlabeled:
        epoch = list(iterator)
        y = torch.cat([b.y for b in epoch])
        assert sorted(y.tolist()) == list(range(N))
        for batch in epoch:
            assert torch.equal(batch.x[: len(batch.y), 0], batch.y.double())
            extra = batch.x[len(batch.y) :, 0].int().tolist()
            assert 1 <= len(extra) <= 4
            seen += extra
    for start in range(0, passes * n_unlabeled, n_unlabeled):
        turn = seen[start : start + n_unlabeled]
        assert sorted(turn) == list(range(100, 100 + n_unlabeled))


@pytest.mark.parametrize("weighted", [False, True])
def test_feature_scale_is_the_weighted_size_of_what_is_not_zero(weighted, monkeypatch):
    X = np.array([[3.0, 0, 4], [0, 0, 5], [0, 0, 0], [1, 1, 1]])
    weight = torch.tensor([2.0, 1, 1, 0]) if weighted else None
    squares, counts = (2 * 25 + 25, 2 * 2 + 1) if weighted else (25 + 25 + 3, 6)
    monkeypatch.setattr("sklearn_margdrop.numerics.memory._BLOCK_ELEMENTS", 6)
    for features in (X, sparse.csr_array(X)):
        rows = Rows(Features(features, "cpu"), torch.zeros(4), weight)
        assert rows.feature_scale() == pytest.approx((squares / counts) ** 0.5)
    assert Rows(Features(0 * X, "cpu"), torch.zeros(4)).feature_scale() == 1
    assert Rows(Features(1e300 * X, "cpu"), torch.zeros(4)).feature_scale() == 1
