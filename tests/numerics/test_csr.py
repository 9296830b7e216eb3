"""The kernels cut a matrix into blocks, which threads share."""

import numpy as np
import scipy.sparse as sp
import torch
from oracles import randn

from sklearn_margdrop.numerics import csr
from sklearn_margdrop.numerics.sparse import SparseMatrix

EXACT = {"rtol": 1e-12, "atol": 1e-13}


def test_a_wide_matrix_is_multiplied_whole_by_its_transpose(monkeypatch):
    monkeypatch.setattr(csr, "_MIN_PER_THREAD", 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    x = sp.random_array((40, 4000), density=0.01, format="csr", random_state=0)
    matrix = SparseMatrix([x])
    assert len(matrix._kernel.blocks) == 2
    assert len(matrix._kernel.transposed) == 1
    g = randn(40, 1)
    torch.testing.assert_close(matrix.mT @ g, torch.from_numpy(x.T @ g.numpy()), **EXACT)


def test_tall_matrices_are_multiplied_in_threads_without_a_copy(monkeypatch):
    monkeypatch.setattr(csr, "_MIN_PER_THREAD", 4)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    x = sp.random_array((4000, 5), density=0.5, format="csr", random_state=0)
    kernel = SparseMatrix([x])._kernel
    assert len(kernel.blocks) == len(kernel.transposed) == 3
    for _, block in (*kernel.blocks, *kernel.transposed):
        assert np.shares_memory(block.data, x.data)
        assert np.shares_memory(block.indices, x.indices)
