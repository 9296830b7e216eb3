"""Sparse matrices do what the dense ones do, in blocks, threads and every container."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from oracles import randn

from sklearn_margdrop import penalties
from sklearn_margdrop.families import FAMILIES
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.noise import NOISE_MODELS, Dropout, Gaussian
from sklearn_margdrop.numerics import csr, sparse
from sklearn_margdrop.numerics.sparse import SparseMatrix, concatenate, has_duplicates

EXACT = {"rtol": 1e-12, "atol": 1e-13}
SHAPE = (30, 12)

devices = pytest.mark.parametrize(
    "device",
    [
        "cpu",
        pytest.param(
            "cuda",
            marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
        ),
    ],
)


def dense_matrix(binary=False, seed=0):
    x = randn(*SHAPE, seed=seed)
    x[x.abs() < 0.8] = 0
    x[3] = 0  # an empty row
    x[:, 5] = 0  # a feature that never occurs
    return (x != 0).double() if binary else x


@pytest.fixture
def small_blocks(monkeypatch):
    """Blocks of a few non-zeros, and two threads."""
    monkeypatch.setattr(sparse, "_BLOCK_ELEMENTS", 16)
    monkeypatch.setattr(csr, "_MIN_PER_THREAD", 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)


@devices
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("container", [sp.csr_array, sp.csr_matrix])
def test_products_and_their_gradients(small_blocks, device, binary, k, container):
    x = dense_matrix(binary)
    matrix = SparseMatrix([container(x.numpy())], device)
    results = []
    for a in (x.to(device), matrix):
        w = randn(SHAPE[1], k, seed=1).to(device).requires_grad_()
        out = a @ w
        out.square().sum().backward()
        results.append((out.detach(), w.grad))
    for dense, found in zip(*results, strict=True):
        torch.testing.assert_close(found, dense, **EXACT)
    g = randn(SHAPE[0], k, seed=2).to(device)
    torch.testing.assert_close(matrix.mT @ g, x.mT.to(device) @ g, **EXACT)


@pytest.mark.parametrize("index_dtype", [np.int32, np.int64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtypes(index_dtype, dtype):
    x = sp.csr_array(dense_matrix().numpy().astype(dtype))
    x.indices, x.indptr = x.indices.astype(index_dtype), x.indptr.astype(index_dtype)
    matrix = SparseMatrix([x])
    w = randn(SHAPE[1], 1).to(matrix.dtype)
    out = matrix @ w
    assert out.dtype == matrix.dtype == w.dtype
    torch.testing.assert_close(out, torch.from_numpy(x.toarray()) @ w)
    for square in (matrix.map(torch.square), matrix.resample(torch.square)):
        assert square.matrices[0].indices.dtype == index_dtype


def test_read_only_memory(small_blocks):
    x = sp.csr_array(dense_matrix().numpy())
    for part in (x.data, x.indices, x.indptr):
        part.flags.writeable = False
    matrix = SparseMatrix([x])
    w = randn(SHAPE[1], 2)
    torch.testing.assert_close(
        matrix.map(torch.square) @ w, torch.from_numpy(x.toarray()).square() @ w, **EXACT
    )
    matrix.sum_over_values(lambda value, w: value * w, w.mT)


def test_linear_layers_take_the_matrix():
    x = dense_matrix()
    for bias in (True, False):
        layer = torch.nn.Linear(SHAPE[1], 2, bias=bias, dtype=torch.float64)
        found = layer(SparseMatrix([sp.csr_array(x.numpy())]))
        torch.testing.assert_close(found, layer(x), **EXACT)
    with pytest.raises(TypeError):
        torch.sin(SparseMatrix([sp.csr_array(x.numpy())]))


def test_rows_of_several_matrices(small_blocks):
    first, second = dense_matrix(), dense_matrix(seed=1)[:7]
    both = concatenate(*(SparseMatrix([sp.csr_array(x.numpy())]) for x in (first, second)))
    stacked = concatenate(first, second)
    assert both.shape == (37, 12)
    assert len(both) == 37
    w = randn(SHAPE[1], 2).requires_grad_()
    torch.testing.assert_close(both @ w, stacked @ w, **EXACT)
    g = randn(37, 2, seed=3)
    torch.testing.assert_close(both.mT @ g, stacked.mT @ g, **EXACT)
    rows = both.sum_over_values(lambda value, w: value**3 * w, w.mT)
    torch.testing.assert_close(rows, stacked**3 @ w, **EXACT)


@pytest.mark.parametrize("binary", [False, True])
def test_map_is_remembered_and_keeps_zeros(binary):
    x = dense_matrix(binary)
    matrix = SparseMatrix([sp.csr_array(x.numpy())])
    model = Dropout(0.3)
    variance = matrix.map(model.variance)
    assert matrix.map(model.variance) is variance
    w = randn(SHAPE[1], 1)
    torch.testing.assert_close(variance @ w, model.variance(x) @ w, **EXACT)
    twice = variance.map(torch.square)
    torch.testing.assert_close(twice @ w, model.variance(x).square() @ w, **EXACT)
    if binary:  # the values are shared: only their factor differs
        assert variance.matrices[0] is matrix.matrices[0]
    # The same number everywhere is one row.
    torch.testing.assert_close(
        matrix.map(Gaussian(0.5).variance), torch.full((1, 12), 0.25, dtype=torch.float64)
    )
    with pytest.raises(NotImplementedError, match="keep zeros"):
        matrix.map(torch.cos)


def test_resample_draws_values_that_are_not_zero():
    x = dense_matrix()
    matrix = SparseMatrix([sp.csr_array(x.numpy())])
    generator = torch.Generator().manual_seed(0)
    eye = torch.eye(SHAPE[1], dtype=torch.float64)
    draws = torch.stack(
        [matrix.resample(lambda v: Dropout(0.5).sample(v, generator)) @ eye for _ in range(200)]
    )
    assert set(torch.unique(draws[:, x != 0] / x[x != 0]).round().tolist()) == {0.0, 2.0}
    assert (draws[:, x == 0] == 0).all()
    with pytest.raises(NotImplementedError, match="keep zeros"):
        matrix.resample(lambda v: Gaussian(0.5).sample(v, generator))


@devices
def test_sums_over_values_and_their_gradients(small_blocks, device):
    x = dense_matrix().abs().to(device)
    matrix = SparseMatrix([sp.csr_array(x.cpu().numpy())], device, factor=2.0)

    def dense(w):
        return torch.sin(2 * x[:, None] * w).sum(-1)

    def sparse(w):
        return matrix.sum_over_values(lambda value, w: torch.sin(value * w), w)

    results = []
    for compute in (dense, sparse):
        w = randn(3, SHAPE[1], seed=1).to(device).requires_grad_()
        sums = compute(w)
        (sums * randn(SHAPE[0], 3, seed=3).to(device)).sum().backward()
        results.append((sums.detach(), w.grad))
    for by_hand, found in zip(*results, strict=True):
        torch.testing.assert_close(found, by_hand, **EXACT)


@devices
@pytest.mark.parametrize("by_torch", [True, False])
@pytest.mark.parametrize("index_dtype", [np.int32, np.int64])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_values_times_dot_products(
    small_blocks, device, by_torch, index_dtype, dtype, monkeypatch
):
    monkeypatch.setattr(sparse, "has_dots_of_rows", lambda: by_torch)
    x = dense_matrix().numpy().astype(dtype)
    parts = [sp.csr_array(x[:11]), sp.csr_array(x[11:])]
    for part in parts:
        part.indices, part.indptr = (
            each.astype(index_dtype) for each in (part.indices, part.indptr)
        )
        part.indices.flags.writeable = False
    matrix = SparseMatrix(parts, device, factor=2.0)
    a, b = randn(SHAPE[0], 3).to(matrix.dtype), randn(SHAPE[1], 3, seed=1).to(matrix.dtype)
    found = matrix.times_dots(a.to(device), b.to(device))
    eye = torch.eye(SHAPE[1], dtype=matrix.dtype, device=device)
    expected = 2 * torch.from_numpy(x) * (a @ b.mT)
    torch.testing.assert_close((found @ eye).cpu(), expected, rtol=1e-5, atol=1e-6)
    index = torch.tensor([0, 3, 10, 11, 29])
    chosen = matrix.rows(index.to(device)) @ eye
    torch.testing.assert_close(chosen, (matrix @ eye)[index])


def test_duplicates_are_found_wherever_they_are():
    rng = np.random.RandomState(0)
    for _ in range(50):
        x = sp.random_array((rng.randint(1, 9), rng.randint(1, 9)), density=0.4, format="csr")
        order = np.concatenate(
            [
                rng.permutation(np.arange(a, b))
                for a, b in zip(x.indptr[:-1], x.indptr[1:], strict=True)
            ]
        ).astype(int)
        indices = x.indices[order]
        unsorted = sp.csr_array((x.data[order], indices, x.indptr), shape=x.shape)
        assert not has_duplicates(unsorted)
        for row in range(x.shape[0]):
            if x.indptr[row + 1] - x.indptr[row] > 1:
                doubled = unsorted.copy()
                doubled.indices[x.indptr[row]] = doubled.indices[x.indptr[row + 1] - 1]
                assert has_duplicates(doubled)


@pytest.mark.parametrize("family", [f() for f in FAMILIES.values()], ids=repr)
@pytest.mark.parametrize("noise", sorted(NOISE_MODELS))
@pytest.mark.parametrize("method", ["quadratic", "moments", "diagonal"])
@pytest.mark.parametrize("n_outputs", [1, 3, 20])
def test_penalties_of_sparse_and_dense_rows_agree(small_blocks, family, noise, method, n_outputs):
    if family.name == "categorical" and n_outputs == 1:
        pytest.skip("a single class has no probabilities")
    x = dense_matrix()
    model = NOISE_MODELS[noise](0.6)
    results = []
    for rows in (x, SparseMatrix([sp.csr_array(x.numpy())])):
        network = NoisyNetwork([SHAPE[1], n_outputs], noise={0: model}, dtype=torch.float64)
        penalty = getattr(penalties, method)(network.trace(rows), family)
        (penalty * randn(SHAPE[0], seed=5)).sum().backward()
        results.append((penalty.detach(), *(p.grad for p in network.parameters())))
    for dense, found in zip(*results, strict=True):
        torch.testing.assert_close(found, dense, rtol=1e-9, atol=1e-11)
