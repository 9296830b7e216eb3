"""Rows of scipy's CSR matrices, cut without a copy, and products with them."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeAlias, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike
from scipy.sparse import csc_array, csr_array, csr_matrix, sparray, spmatrix
from torch import Tensor

#: Blocks with fewer non-zeros than this are not worth a thread.
_MIN_PER_THREAD = 2**15

T = TypeVar("T")

#: Rows as users pass them: an array, a data frame, a sequence of rows, a sparse matrix.
MatrixLike: TypeAlias = "ArrayLike | sparray | spmatrix"

#: Rows of sparse data.
CSR: TypeAlias = "csr_array | csr_matrix"

#: A slice of rows and their matrix, or its transpose.
Block: TypeAlias = tuple[slice, csr_array]


def cut(indptr: np.ndarray, per_block: int) -> list[tuple[int, int]]:
    """Ranges of rows with about `per_block` non-zeros each, and at least one row."""
    n_rows, nnz = len(indptr) - 1, int(indptr[-1])
    n_blocks = max(1, min(n_rows, -(-nnz // per_block)))
    goals = nnz * np.arange(1, n_blocks) // n_blocks
    ends = np.unique([0, *np.searchsorted(indptr, goals), n_rows])
    return list(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))


def row_blocks(matrices: Sequence[CSR], per_block: int) -> Iterator[Block]:
    """The rows of CSR matrices, one below the other, in blocks of about `per_block` non-zeros."""
    offset = 0
    for m in matrices:
        for start, stop in cut(m.indptr, per_block):
            yield slice(offset + start, offset + stop), rows_of(m, start, stop)
        offset += m.shape[0]


def rows_of(matrix: CSR, start: int, stop: int) -> csr_array:
    """Consecutive rows of a CSR matrix, which share its memory."""
    begin, end = matrix.indptr[start], matrix.indptr[stop]
    indptr = matrix.indptr[start : stop + 1] - begin
    shape = (stop - start, matrix.shape[1])
    return compressed(csr_array, matrix.data[begin:end], matrix.indices[begin:end], indptr, shape)


def with_data(matrix: CSR, data: np.ndarray) -> csr_array:
    """A CSR matrix with other values at the same places."""
    return compressed(csr_array, data, matrix.indices, matrix.indptr, matrix.shape)


def compressed(
    container: type[Any],
    data: np.ndarray,
    indices: np.ndarray,
    indptr: np.ndarray,
    shape: tuple[int, int],
) -> Any:
    """A matrix of type `container` that holds the arrays without a copy."""
    # The constructor would copy what is a small part of a larger array.
    matrix = container(shape, dtype=data.dtype)
    matrix.data, matrix.indices, matrix.indptr = data, indices, indptr
    return matrix


class CPUKernel:
    """Products by scipy, whose kernels release the interpreter's lock, in several threads.

    Torch multiplies with several columns at once, where it does that by MKL: twice as fast.
    """

    def __init__(self, matrices: Sequence[CSR], factor: float, device: torch.device) -> None:
        self.factor = factor
        self.matrices = matrices
        self.n_rows = sum(m.shape[0] for m in matrices)
        n_threads = torch.get_num_threads()
        nnz = sum(m.nnz for m in matrices)
        # Each a slice of rows and a matrix: of these rows, or their transpose.
        self.blocks = list(row_blocks(matrices, max(_MIN_PER_THREAD, -(-nnz // n_threads))))
        # Each thread's product with a transpose is a vector of all features, and these are summed.
        # That is not worth it if there are as many features as non-zeros in a block.
        worth_it = nnz > 8 * n_threads * matrices[0].shape[1]
        blocks = iter(self.blocks) if worth_it else row_blocks(matrices, nnz + 1)
        self.transposed = [
            (rows, compressed(csc_array, m.data, m.indices, m.indptr, m.shape[::-1]))
            for rows, m in blocks
        ]
        self.pool = ThreadPoolExecutor(n_threads) if len(self.blocks) > 1 else None

    @functools.cached_property
    def _by_torch(self) -> list[Tensor] | None:
        """The matrices as tensors that share their memory, if torch can multiply them fast."""
        suits = torch.backends.mkl.is_available() and all(
            m.nnz > 0 and m.indices.dtype == m.indptr.dtype == np.int32 for m in self.matrices
        )
        return [as_torch(m) for m in self.matrices] if suits else None

    def _map(self, function: Callable[[Block], T], blocks: list[Block]) -> Iterator[T]:
        if self.pool is None or len(blocks) == 1:
            return map(function, blocks)
        return self.pool.map(function, blocks)

    def matmul(self, weight: Tensor) -> Tensor:
        if weight.shape[1] > 1 and self._by_torch is not None:
            weight = weight.detach().contiguous()
            parts = [x @ weight for x in self._by_torch]
            return self._scaled(parts[0] if len(parts) == 1 else torch.cat(parts))
        w = _as_numpy(weight)
        out = np.empty((self.n_rows, *w.shape[1:]), dtype=w.dtype)

        def fill(block: Block) -> None:
            rows, matrix = block
            out[rows] = matrix @ w

        for _ in self._map(fill, self.blocks):
            pass
        return self._scaled(torch.from_numpy(out))

    def transposed_matmul(self, grad: Tensor) -> Tensor:
        g = _as_numpy(grad)

        def times(block: Block) -> Tensor:
            rows, matrix = block
            return torch.from_numpy(matrix @ g[rows])

        # torch sums without warnings of overflows, which training checks for.
        parts = self._map(times, self.transposed)
        return self._scaled(functools.reduce(Tensor.add_, parts))

    def _scaled(self, out: Tensor) -> Tensor:
        if self.factor != 1:
            out *= self.factor
        return out[:, None] if out.ndim == 1 else out


class GPUKernel:
    """Products by torch, with a matrix and its transpose on the device."""

    def __init__(self, matrices: Sequence[CSR], factor: float, device: torch.device) -> None:
        scaled = [with_data(m, m.data * factor).copy() for m in matrices]
        pairs = ((x, csr_array(x.T)) for x in scaled)
        self.pairs = [(as_torch(x).to(device), as_torch(xt).to(device)) for x, xt in pairs]

    def matmul(self, weight: Tensor) -> Tensor:
        return torch.cat([x @ weight for x, _ in self.pairs])

    def transposed_matmul(self, grad: Tensor) -> Tensor:
        parts = grad.split([x.shape[0] for x, _ in self.pairs])
        products = (xt @ part for (_, xt), part in zip(self.pairs, parts, strict=True))
        total: Tensor = functools.reduce(torch.add, products)
        return total


def _as_numpy(tensor: Tensor) -> np.ndarray:
    """The array of a tensor of shape (n, K), as a vector where K is 1."""
    array = tensor.detach().numpy()
    return array[:, 0] if array.shape[1] == 1 else np.ascontiguousarray(array)


def as_torch(matrix: CSR) -> Tensor:
    """A tensor with the memory of a CSR matrix, which is not to be written to."""
    indptr, indices, data = map(to_read, (matrix.indptr, matrix.indices, matrix.data))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Sparse CSR tensor support")  # that it is in beta
        return torch.sparse_csr_tensor(
            indptr, indices, data, matrix.shape, device="cpu", check_invariants=False
        )


def to_read(array: np.ndarray) -> Tensor:
    """A tensor with the memory of an array, which is not to be written to."""
    if array.flags.writeable:
        return torch.from_numpy(array)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The given NumPy array is not writable")
        return torch.from_numpy(array)
