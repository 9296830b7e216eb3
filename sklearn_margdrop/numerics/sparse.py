"""Sparse design matrices: products that are fast in both directions, without a dense copy.

A :class:`SparseMatrix` stands where a network expects the tensor of its input: linear layers
and the penalties multiply it with weights, and autograd differentiates with respect to those.
On the CPU scipy's kernels multiply, a block of rows per thread; they are as fast with the
transpose as without, so that X is held once. On a GPU, torch multiplies with X and X'.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, TypeAlias, cast

import numpy as np
import torch
import torch.nn.functional as F
from scipy.sparse import csr_array
from torch import Tensor

from sklearn_margdrop.numerics.csr import (
    CSR,
    CPUKernel,
    GPUKernel,
    cut,
    row_blocks,
    rows_of,
    to_read,
    with_data,
)
from sklearn_margdrop.numerics.memory import blocks
from sklearn_margdrop.numerics.torch_private import dots_of_rows, has_dots_of_rows

#: Elements that a pass over the non-zeros holds at a time.
_BLOCK_ELEMENTS = 2**18

#: A function of every element.
Map: TypeAlias = Callable[[Tensor], Tensor]

#: A function of values and of their weights.
PairMap: TypeAlias = Callable[[Tensor, Tensor], Tensor]


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
    >>> from sklearn_margdrop.numerics.sparse import SparseMatrix
    >>> x = SparseMatrix([csr_array([[0.0, 2.0], [1.0, 0.0]], dtype="float32")])
    >>> torch.nn.Linear(2, 5)(x).shape, (x @ torch.ones(2, 1)).tolist()
    (torch.Size([2, 5]), [[2.0], [1.0]])
    """

    def __init__(
        self, matrices: Sequence[CSR], device: torch.device | str = "cpu", factor: float = 1.0
    ) -> None:
        self.device = torch.device(device)
        self.matrices = list(matrices)
        self.factor = factor
        first = self.matrices[0]
        self.shape: tuple[int, int] = (sum(m.shape[0] for m in self.matrices), first.shape[1])
        self.dtype = torch.from_numpy(np.empty(0, first.dtype)).dtype
        self._kernel = (CPUKernel if self.device.type == "cpu" else GPUKernel)(
            self.matrices, factor, self.device
        )
        self._mapped: dict[Map, Matrix] = {}

    def __len__(self) -> int:
        return self.shape[0]

    def new_zeros(self, *shape: int) -> Tensor:
        """Zeros with the dtype and on the device of the matrix."""
        return torch.zeros(*shape, dtype=self.dtype, device=self.device)

    def __matmul__(self, weight: Tensor) -> Tensor:
        product: Tensor = _Matmul.apply(self, weight)
        return product

    @property
    def mT(self) -> Transposed:
        """The transpose, for products that are not differentiated."""
        return Transposed(self)

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is not F.linear:
            return NotImplemented
        x, weight, bias = args
        out = x @ weight.mT
        return out if bias is None else out + bias

    def map(self, function: Map) -> Matrix:
        """``function`` of every element, which is applied once and remembered.

        A function that is the same everywhere returns a dense tensor of shape (1, n_features)
        that stands for all rows.

        Raises
        ------
        NotImplementedError
            If the function takes zeros to something else and is not constant.
        """
        if function not in self._mapped:
            at_zero, at_one = function(torch.arange(2, dtype=self.dtype, device="cpu"))
            if at_zero == 0:
                self._mapped[function] = (
                    SparseMatrix(self.matrices, self.device, float(at_one))
                    if self.factor == 1 and self._is_binary
                    else self._applied(function)
                )
            elif at_zero == at_one:
                self._mapped[function] = self.new_zeros(1, self.shape[1]) + at_zero.to(self.device)
            else:
                raise NotImplementedError("A function of a sparse matrix must keep zeros.")
        return self._mapped[function]

    def resample(self, function: Map) -> SparseMatrix:
        """``function``, which has to keep zeros, of the stored values, drawn anew in each call."""
        if function(torch.zeros(1, dtype=self.dtype, device="cpu")).any():
            raise NotImplementedError("A function of a sparse matrix must keep zeros.")
        return self._applied(function)

    def _applied(self, function: Map) -> SparseMatrix:
        matrices = [
            with_data(m, function(torch.from_numpy(m.data * self.factor)).numpy())
            for m in self.matrices
        ]
        return SparseMatrix(matrices, self.device)

    @functools.cached_property
    def _is_binary(self) -> bool:
        # All ones, as in a bag of words: functions of the values are then one number.
        return all((m.data == 1).all() for m in self.matrices)

    def sum_over_values(self, function: PairMap, weight: Tensor) -> Tensor:
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
        sums: Tensor = _SumOverValues.apply(self, function, weight)
        return sums

    def times_dots(self, a: Tensor, b: Tensor) -> SparseMatrix:
        """The matrix with each value x_ij times the dot product of a_i and b_j.

        Parameters
        ----------
        a : Tensor of shape (n_samples, K)
        b : Tensor of shape (n_features, K)

        Returns
        -------
        SparseMatrix
            It shares the places of the values.
        """
        matrices = []
        for matrix, dots in zip(self.matrices, self._dots(a, b.contiguous()), strict=True):
            values = dots.cpu().numpy()
            if not self._is_binary:
                values *= matrix.data
            matrices.append(with_data(matrix, values))
        product = SparseMatrix(matrices, self.device, self.factor)
        if isinstance(product._kernel, CPUKernel) and isinstance(self._kernel, CPUKernel):
            product._kernel.pool = self._kernel.pool  # rather than threads of its own
        return product

    def _dots(self, a: Tensor, b: Tensor) -> Iterator[Tensor]:
        """Those of times_dots, for each of the matrices."""
        by_torch = self.device.type == "cpu" and has_dots_of_rows()
        for matrix, part in zip(
            self.matrices, a.split([m.shape[0] for m in self.matrices]), strict=True
        ):
            kind = matrix.indices.dtype
            rows = np.repeat(np.arange(matrix.shape[0], dtype=kind), np.diff(matrix.indptr))
            starts = matrix.indptr[:-1].astype(kind)
            row, column, start = (
                to_read(each).to(self.device) for each in (rows, matrix.indices, starts)
            )
            if by_torch:
                yield dots_of_rows(part.contiguous(), b, row, column, start)
                continue
            cut = blocks(len(row), b.shape[1], in_cache=self.device.type == "cpu")
            dots = ((part[row[at]] * b[column[at]]).sum(-1) for at in cut)
            yield torch.cat([*dots, part.new_zeros(0)])

    def rows(self, index: Tensor) -> SparseMatrix:
        """The rows at `index`, which has to be sorted."""
        index = index.cpu()
        matrices, offset = [], 0
        for m in self.matrices:
            inside = index[(index >= offset) & (index < offset + m.shape[0])]
            matrices.append(csr_array(m[inside.numpy() - offset]))
            offset += m.shape[0]
        return SparseMatrix(matrices, self.device, self.factor)

    def sums_about(self, centre: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Sums over i of weight_ik times x_ij - c_j and times its square, not differentiated.

        Parameters
        ----------
        centre : Tensor of shape (n_features,)
        weight : Tensor of shape (n_samples, K)

        Returns
        -------
        first, second : Tensor of shape (n_features, K)
        """
        centre = centre.to(weight)
        total, c = weight.sum(0), centre.unsqueeze(-1)
        squares = cast("SparseMatrix", self.map(torch.square))
        first, second = ((x.mT @ weight.to(self.dtype)).to(weight.dtype) for x in (self, squares))
        second = second - c * (2 * first - c * total)
        first = first - c * total
        # The values of a column without zeros may differ by far less than their distance from
        # zero, which would be lost in the differences of these sums.
        counts = (np.bincount(m.indices, minlength=self.shape[1]) for m in self.matrices)
        columns = np.flatnonzero(functools.reduce(np.add, counts) == len(self))
        if len(columns):
            parts = [
                sums_about(x, centre[columns], weight[rows])
                for rows, x in self._dense_blocks(columns)
            ]
            first[columns], second[columns] = (
                functools.reduce(torch.add, each) for each in zip(*parts, strict=True)
            )
        return first, second.clamp_min_(0)

    def _dense_blocks(self, columns: np.ndarray) -> Iterator[tuple[slice, Tensor]]:
        """Columns that are stored in every row, in blocks of rows."""
        place = np.full(self.shape[1], -1)
        place[columns] = np.arange(len(columns))
        for rows, m in row_blocks(self.matrices, _BLOCK_ELEMENTS):
            at = place[m.indices]
            chosen = at >= 0
            block = np.empty((m.shape[0], len(columns)), m.dtype)
            row = np.repeat(np.arange(m.shape[0]), np.diff(m.indptr))
            block[row[chosen], at[chosen]] = m.data[chosen] * self.factor
            yield rows, torch.from_numpy(block).to(self.device)

    def value_blocks(self, width: int) -> Iterator[tuple[Tensor, ...]]:
        """Values (m, 1), columns (m,) and rows (m,), in blocks for `width` numbers a value."""
        offset = 0
        for matrix in self.matrices:
            for start, stop in cut(matrix.indptr, max(1, _BLOCK_ELEMENTS // width)):
                begin, end = int(matrix.indptr[start]), int(matrix.indptr[stop])
                counts = np.diff(matrix.indptr[start : stop + 1])
                row = np.repeat(np.arange(offset + start, offset + stop), counts)
                value = matrix.data[begin:end, None] * self.factor
                column = matrix.indices[begin:end].astype(np.int64)
                parts = (torch.from_numpy(part).to(self.device) for part in (value, column, row))
                yield tuple(parts)
            offset += matrix.shape[0]


#: The input of a network, or the variance of the noise there.
Matrix: TypeAlias = Tensor | SparseMatrix


def concatenate(first: Matrix, second: Matrix) -> Matrix:
    """The rows of two tensors, or of two sparse matrices, one below the other."""
    if isinstance(first, SparseMatrix) and isinstance(second, SparseMatrix):
        return SparseMatrix(first.matrices + second.matrices, first.device)
    return torch.cat(cast("list[Tensor]", [first, second]))


class Transposed(NamedTuple):
    """The transpose of a sparse matrix."""

    matrix: SparseMatrix

    def __matmul__(self, other: Tensor) -> Tensor:
        return self.matrix._kernel.transposed_matmul(other)


class _Matmul(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, matrix: SparseMatrix, weight: Tensor) -> Tensor:
        ctx.matrix = matrix
        return matrix._kernel.matmul(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, Tensor]:
        return None, ctx.matrix.mT @ grad


class _SumOverValues(torch.autograd.Function):
    """Nothing of the size of the matrix is kept: the backward pass computes the terms again."""

    @staticmethod
    def forward(ctx: Any, matrix: SparseMatrix, function: PairMap, weight: Tensor) -> Tensor:
        ctx.matrix, ctx.function = matrix, function
        ctx.save_for_backward(weight)
        columns = weight.mT.contiguous()
        out = matrix.new_zeros(len(matrix), len(weight))
        for value, column, row in matrix.value_blocks(len(weight)):
            out.index_add_(0, row, function(value, columns[column]))
        return out

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[None, None, Tensor]:
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


def sums_about(x: Matrix, centre: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    """:meth:`SparseMatrix.sums_about`, also of a tensor."""
    if isinstance(x, SparseMatrix):
        return x.sums_about(centre, weight)
    d = x - centre.to(weight)
    return d.mT @ weight, d.square_().mT @ weight


def products_about(x: Matrix, centre: Tensor | None, weight: Tensor) -> Tensor:
    """Sums over the rows of (x - centre) (x - centre)', weighted; (n_features, n_features)."""
    if not isinstance(x, Tensor):
        x = x @ torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    x = x if centre is None else x - centre.to(x)
    return (x.mT * weight) @ x


def first_row(x: Matrix) -> Tensor:
    """The first row, dense, in float64 where the device has it."""
    if isinstance(x, SparseMatrix):
        m = rows_of(x.matrices[0], 0, 1)
        stored = np.zeros(m.shape[1], m.dtype)
        stored[m.indices] = m.data * x.factor
        row = torch.from_numpy(stored)
    else:
        row = x[0]
    return row.to(x.device, torch.float32 if x.device.type == "mps" else torch.float64)


def column_sums(x: Matrix, origin: Tensor, weight: Tensor) -> Tensor:
    """Weighted sums over the rows, by columns: of x - origin, of its square, of x != 0, of one.

    Shape (4, n_features), in the dtype of `origin`.
    """
    column = weight.to(origin).unsqueeze(-1)
    sums = sums_about(x, origin, column)
    occurs = x.map(_occurs) if isinstance(x, SparseMatrix) else _occurs(x).to(column)
    columns = *sums, occurs.mT @ column, column.sum(0).expand(len(origin), 1)
    return torch.cat(columns, 1).mT


def _occurs(x: Tensor) -> Tensor:
    return x.ne(0).to(x.dtype)


def has_duplicates(matrix: CSR) -> bool:
    """Whether a CSR matrix, whose rows need not be sorted, stores an entry more than once."""
    if matrix.has_canonical_format:
        return False
    # Transposing sorts: equal entries come to lie side by side.
    for start, stop in cut(matrix.indptr, max(2**20, matrix.shape[1])):
        block = rows_of(matrix, start, stop).tocsc()
        same = np.diff(block.indices) == 0
        # Where a column ends, the next one may start with the same row.
        ends = block.indptr[1:-1] - 1
        same[ends[(ends >= 0) & (ends < len(same))]] = False
        if same.any():
            return True
    return False
