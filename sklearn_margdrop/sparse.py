"""Sparse design matrices: products that are fast in both directions, without a dense copy.

A :class:`SparseMatrix` stands where a network expects the tensor of its input: linear layers
and the penalties multiply it with weights, and autograd differentiates with respect to those.
On the CPU scipy's kernels multiply, a block of rows per thread; they are as fast with the
transpose as without, so that X is held once. On a GPU, torch multiplies with X and X'.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csc_array, csr_array
from torch import Tensor

#: Elements that a pass over the non-zeros holds at a time.
_BLOCK_ELEMENTS = 2**18

#: Blocks with fewer non-zeros than this are not worth a thread.
_MIN_PER_THREAD = 2**15


class SparseMatrix:
    """The rows of one or several CSR matrices, one below the other, as a constant on a device.

    Parameters
    ----------
    matrices : sequence of CSR arrays or matrices of shape (n_samples, n_features)
        Sorted or not, but no entry is stored twice.
    device : torch.device or str, default="cpu"
        Where it multiplies.
    factor : float, default=1.0
        Multiplies all values.

    Examples
    --------
    >>> import torch
    >>> from scipy.sparse import csr_array
    >>> from sklearn_margdrop.sparse import SparseMatrix
    >>> x = SparseMatrix([csr_array([[0.0, 2.0], [1.0, 0.0]], dtype="float32")])
    >>> torch.nn.Linear(2, 5)(x).shape, (x @ torch.ones(2, 1)).tolist()
    (torch.Size([2, 5]), [[2.0], [1.0]])
    """

    def __init__(self, matrices: Sequence, device="cpu", factor: float = 1.0):
        self.device = torch.device(device)
        self.matrices = list(matrices)
        self.factor = factor
        first = self.matrices[0]
        self.shape = (sum(m.shape[0] for m in self.matrices), first.shape[1])
        self.dtype = torch.from_numpy(np.empty(0, first.dtype)).dtype
        self._kernel = (_CPU if self.device.type == "cpu" else _GPU)(self)
        self._mapped: dict[Callable, SparseMatrix | Tensor] = {}

    def __len__(self) -> int:
        return self.shape[0]

    def new_zeros(self, *shape: int) -> Tensor:
        """Zeros with the dtype and on the device of the matrix."""
        return torch.zeros(*shape, dtype=self.dtype, device=self.device)

    def __matmul__(self, weight: Tensor) -> Tensor:
        return _Product.apply(self, weight)

    @property
    def mT(self) -> Transposed:
        """The transpose, for products that are not differentiated."""
        return Transposed(self)

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        if func is not F.linear:
            return NotImplemented
        x, weight, bias = args
        out = x @ weight.mT
        return out if bias is None else out + bias

    def map(self, function: Callable[[Tensor], Tensor]) -> SparseMatrix | Tensor:
        """``function`` of every element, which is applied once and remembered.

        A function that is the same everywhere returns a dense tensor of shape (1, n_features)
        that stands for all rows.

        Raises
        ------
        NotImplementedError
            If the function takes zeros to something else and is not constant.
        """
        if function not in self._mapped:
            at_zero, at_one = function(torch.arange(2, dtype=self.dtype))
            if at_zero == 0:
                self._mapped[function] = (
                    SparseMatrix(self.matrices, self.device, float(at_one))
                    if self._is_binary()
                    else self._with_values(function)
                )
            elif at_zero == at_one:
                self._mapped[function] = self.new_zeros(1, self.shape[1]) + at_zero.to(self.device)
            else:
                raise NotImplementedError("A function of a sparse matrix must keep zeros.")
        return self._mapped[function]

    def resample(self, function: Callable[[Tensor], Tensor]) -> SparseMatrix:
        """``function``, which has to keep zeros, of the stored values, drawn anew in each call."""
        if function(torch.zeros(1, dtype=self.dtype)).any():
            raise NotImplementedError("A function of a sparse matrix must keep zeros.")
        return self._with_values(function)

    def _with_values(self, function):
        matrices = [
            _with_data(m, function(torch.from_numpy(m.data * self.factor)).numpy())
            for m in self.matrices
        ]
        return SparseMatrix(matrices, self.device)

    def _is_binary(self) -> bool:
        # All ones, as in a bag of words: functions of the values are then one number.
        return self.factor == 1 and all((m.data == 1).all() for m in self.matrices)

    def sum_over_values(self, function, weight: Tensor) -> Tensor:
        """Sums of ``function(x_ij, w_kj)`` over the stored values of each row i.

        Parameters
        ----------
        function : callable
            Elementwise, of values of shape (m, 1) and weights of shape (m, K).
        weight : Tensor of shape (K, n_features)

        Returns
        -------
        Tensor of shape (n_samples, K)
        """
        return _SumOverValues.apply(self, function, weight)

    def spread(self, weight: Tensor, o: Tensor) -> Tensor:
        """Sums over j of x_ij times the variance of w_kj over classes k of probability o_ik.

        Parameters
        ----------
        weight : Tensor of shape (K, n_features)
        o : Tensor of shape (n_samples, K)

        Returns
        -------
        Tensor of shape (n_samples,)
        """
        return _Spread.apply(self, weight, o)

    def times_means(self, columns: Tensor, o: Tensor) -> tuple[SparseMatrix, Tensor]:
        """The matrix of x_ij a_ij and the sums over j of x_ij a_ij^2, with a_ij = o_i . w_j.

        `columns` has the shape (n_features, K), `o` the shape (n_samples, K).
        """
        values, sums = [], self.new_zeros(len(self))
        for value, column, row in self.value_blocks(columns.shape[1]):
            mean = (columns[column] * o[row]).sum(-1)
            product = value[:, 0] * mean
            sums.index_add_(0, row, product * mean)
            values.append(product.cpu().numpy())
        values = np.concatenate(values)
        ends = np.cumsum([m.nnz for m in self.matrices])[:-1]
        parts = zip(self.matrices, np.split(values, ends), strict=True)
        return SparseMatrix([_with_data(m, part) for m, part in parts], self.device), sums

    def value_blocks(self, width: int) -> Iterator[tuple[Tensor, ...]]:
        """Values (m, 1), columns (m,) and rows (m,), in blocks for `width` numbers a value."""
        offset = 0
        for matrix in self.matrices:
            for start, stop in _cut(matrix.indptr, max(1, _BLOCK_ELEMENTS // width)):
                begin, end = int(matrix.indptr[start]), int(matrix.indptr[stop])
                counts = np.diff(matrix.indptr[start : stop + 1])
                row = np.repeat(np.arange(offset + start, offset + stop), counts)
                value = matrix.data[begin:end, None] * self.factor
                column = matrix.indices[begin:end].astype(np.int64)
                parts = (torch.from_numpy(part).to(self.device) for part in (value, column, row))
                yield tuple(parts)
            offset += matrix.shape[0]


def concatenate(*parts):
    """The rows of tensors, or of sparse matrices, one below the other."""
    if isinstance(parts[0], SparseMatrix):
        return SparseMatrix([m for part in parts for m in part.matrices], parts[0].device)
    return torch.cat(parts)


class Transposed(NamedTuple):
    """The transpose of a sparse matrix."""

    matrix: SparseMatrix

    def __matmul__(self, other: Tensor) -> Tensor:
        return self.matrix._kernel.multiply_transposed(other)


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx, matrix, weight):
        ctx.matrix = matrix
        return matrix._kernel.multiply(weight)

    @staticmethod
    def backward(ctx, grad):
        return None, ctx.matrix._kernel.multiply_transposed(grad)


class _SumOverValues(torch.autograd.Function):
    """Nothing of the size of the matrix is kept: the backward pass computes the terms again."""

    @staticmethod
    def forward(ctx, matrix, function, weight):
        ctx.matrix, ctx.function = matrix, function
        ctx.save_for_backward(weight)
        columns = weight.mT.contiguous()
        out = matrix.new_zeros(len(matrix), len(weight))
        for value, column, row in matrix.value_blocks(len(weight)):
            out.index_add_(0, row, function(value, columns[column]))
        return out

    @staticmethod
    def backward(ctx, grad):
        (weight,) = ctx.saved_tensors
        columns = weight.mT.contiguous()
        total = torch.zeros_like(columns)
        for value, column, row in ctx.matrix.value_blocks(len(weight)):
            w = columns[column]
            with torch.enable_grad():
                w.requires_grad_()
                terms = ctx.function(value, w)
            (part,) = torch.autograd.grad(terms, w, grad[row])
            total.index_add_(0, column, part)
        return None, None, total.mT


class _Spread(torch.autograd.Function):
    """The mean of the squares less the square of the mean, by products of sparse matrices."""

    @staticmethod
    def forward(ctx, matrix, weight, o):
        columns = weight.mT.contiguous()
        squares = matrix._kernel.multiply(columns.square())
        ctx.matrix = matrix
        ctx.times_means, sums = matrix.times_means(columns, o)
        ctx.save_for_backward(columns, o, squares, sums)
        return ((o * squares).sum(-1) - sums).clamp_min_(0)

    @staticmethod
    def backward(ctx, grad):
        columns, o, squares, sums = ctx.saved_tensors
        grad = grad.unsqueeze(-1)
        by_o = squares - 2 * ctx.times_means._kernel.multiply(columns) + sums.unsqueeze(-1)
        shares = grad * o
        by_columns = columns * ctx.matrix._kernel.multiply_transposed(shares)
        by_columns -= ctx.times_means._kernel.multiply_transposed(shares)
        return None, 2 * by_columns.mT, grad * by_o


class _CPU:
    """Products by scipy, whose kernels release the interpreter's lock, in several threads."""

    def __init__(self, matrix: SparseMatrix):
        self.factor = matrix.factor
        self.shape = matrix.shape
        n_threads = torch.get_num_threads()
        nnz = sum(m.nnz for m in matrix.matrices)
        # Each a slice of rows and a matrix: of these rows, or their transpose.
        self.blocks = list(
            _row_blocks(matrix.matrices, max(_MIN_PER_THREAD, -(-nnz // n_threads)))
        )
        # Each thread's product with a transpose is a vector of all features, to be summed: not
        # worth it where they are as many as the non-zeros of a block.
        worth_it = nnz > 8 * n_threads * matrix.shape[1]
        blocks = self.blocks if worth_it else _row_blocks(matrix.matrices, nnz + 1)
        self.transposed = [
            (rows, _compressed(csc_array, m.data, m.indices, m.indptr, m.shape[::-1]))
            for rows, m in blocks
        ]
        self._pool = ThreadPoolExecutor(n_threads) if len(self.blocks) > 1 else None

    def _map(self, function, blocks):
        return (map if len(blocks) == 1 else self._pool.map)(function, blocks)

    def multiply(self, weight: Tensor) -> Tensor:
        w = _as_numpy(weight)
        out = np.empty((self.shape[0], *w.shape[1:]), dtype=w.dtype)

        def fill(block):
            rows, matrix = block
            out[rows] = matrix @ w

        for _ in self._map(fill, self.blocks):
            pass
        return self._as_tensor(out)

    def multiply_transposed(self, grad: Tensor) -> Tensor:
        g = _as_numpy(grad)
        parts = iter(self._map(lambda block: block[1] @ g[block[0]], self.transposed))
        out = next(parts)
        for part in parts:
            out += part
        return self._as_tensor(out)

    def _as_tensor(self, out):
        if self.factor != 1:
            out *= self.factor
        out = torch.from_numpy(out)
        return out.unsqueeze(1) if out.ndim == 1 else out


class _GPU:
    """Products by torch, with a matrix and its transpose on the device."""

    def __init__(self, matrix: SparseMatrix):
        self.pairs = []
        for m in matrix.matrices:
            x = _with_data(m, m.data * matrix.factor)
            pair = [_as_torch(x, matrix.device), _as_torch(csr_array(x.T), matrix.device)]
            self.pairs.append(pair)

    def multiply(self, weight: Tensor) -> Tensor:
        return torch.cat([x @ weight for x, _ in self.pairs])

    def multiply_transposed(self, grad: Tensor) -> Tensor:
        parts = grad.split([x.shape[0] for x, _ in self.pairs])
        return sum(xt @ part for (_, xt), part in zip(self.pairs, parts, strict=True))


def has_duplicates(matrix) -> bool:
    """Whether a CSR matrix, whose rows need not be sorted, stores an entry more than once."""
    if matrix.has_canonical_format:
        return False
    # Transposing sorts: equal entries come to lie side by side.
    for start, stop in _cut(matrix.indptr, max(2**20, matrix.shape[1])):
        block = _rows(matrix, start, stop).tocsc()
        same = np.diff(block.indices) == 0
        # Where a column ends, the next one may start with the same row.
        ends = block.indptr[1:-1] - 1
        same[ends[(ends >= 0) & (ends < len(same))]] = False
        if same.any():
            return True
    return False


def _cut(indptr: np.ndarray, per_block: int) -> list[tuple[int, int]]:
    """Ranges of rows with about so many non-zeros each, and at least one row."""
    n_rows, nnz = len(indptr) - 1, int(indptr[-1])
    n_blocks = max(1, min(n_rows, -(-nnz // per_block)))
    goals = nnz * np.arange(1, n_blocks) // n_blocks
    ends = np.unique([0, *np.searchsorted(indptr, goals), n_rows])
    return list(zip(ends[:-1].tolist(), ends[1:].tolist(), strict=True))


def _row_blocks(matrices, per_block: int) -> Iterator[tuple[slice, csr_array]]:
    """The rows of CSR matrices, one below the other, in blocks of about so many non-zeros."""
    offset = 0
    for m in matrices:
        for start, stop in _cut(m.indptr, per_block):
            yield slice(offset + start, offset + stop), _rows(m, start, stop)
        offset += m.shape[0]


def _rows(matrix, start: int, stop: int) -> csr_array:
    """Consecutive rows of a CSR matrix, which share its memory."""
    begin, end = matrix.indptr[start], matrix.indptr[stop]
    indptr = matrix.indptr[start : stop + 1] - begin
    shape = (stop - start, matrix.shape[1])
    return _compressed(csr_array, matrix.data[begin:end], matrix.indices[begin:end], indptr, shape)


def _with_data(matrix, data: np.ndarray) -> csr_array:
    """A CSR matrix with other values at the same places."""
    return _compressed(csr_array, data, matrix.indices, matrix.indptr, matrix.shape)


def _compressed(container, data, indices, indptr, shape):
    # The constructor would copy what is a small part of a larger array.
    matrix = container(shape, dtype=data.dtype)
    matrix.data, matrix.indices, matrix.indptr = data, indices, indptr
    return matrix


def _as_numpy(tensor: Tensor) -> np.ndarray:
    """The array of a tensor of shape (n, K), as a vector where K is 1."""
    array = tensor.detach().numpy()
    return array[:, 0] if array.shape[1] == 1 else np.ascontiguousarray(array)


def _as_torch(matrix: csr_array, device) -> Tensor:
    parts = (matrix.indptr, matrix.indices, matrix.data)
    parts = (torch.from_numpy(np.array(part)).to(device) for part in parts)
    return torch.sparse_csr_tensor(*parts, size=matrix.shape)
