"""Rows of data as a network sees them, a batch at a time.

Dense data are copied to the device once, and batches are cut from them there. Sparse and read-only
data stay on the host. Sparse data are made dense one batch at a time, or not at all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import pairwise
from typing import Any, TypeAlias, cast

import numpy as np
import torch
from numpy.typing import DTypeLike
from torch import Tensor

from sklearn_margdrop.numerics.csr import CSR
from sklearn_margdrop.numerics.memory import blocks, is_mapped
from sklearn_margdrop.numerics.sparse import (
    Matrix,
    SparseMatrix,
    column_sums,
    concatenate,
    first_row,
)
from sklearn_margdrop.weighting import WeightedRows

#: Rows on the host.
Host: TypeAlias = "np.ndarray | CSR"


class Features:
    """The rows of a design matrix, dense or CSR, which it returns as tensors on a device.

    Parameters
    ----------
    X : ndarray or CSR matrix or array of shape (n_samples, n_features)
    device : torch.device or str
    resident : bool, default=True
        Whether dense rows may be copied to the device all at once.
    keep_sparse : bool, default=False
        Whether sparse rows stay sparse.
    dtype : dtype, default=None
        The dtype of the tensors; dense rows are converted when they are taken. By default that of
        `X`.
    """

    def __init__(
        self,
        X: Host,
        device: torch.device | str,
        resident: bool = True,
        keep_sparse: bool = False,
        dtype: DTypeLike | None = None,
    ):
        self.device = torch.device(device)
        self.keep_sparse = keep_sparse
        self.shape: tuple[int, int] = X.shape
        self.dtype: np.dtype[Any] = X.dtype if dtype is None else np.dtype(dtype)
        # torch cannot share read-only memory, and a memory map must not be copied whole.
        self.rows: Tensor | Host = X
        is_dense = isinstance(X, np.ndarray)
        #: Whether rows are read, or converted, block by block, and not all at once.
        self.is_mapped = is_mapped(X) or (is_dense and X.dtype != self.dtype)
        if isinstance(X, np.ndarray) and not is_mapped(X) and min(X.strides) < 0:
            X = self.rows = X.copy()  # one row or column: contiguous to numpy, but not to torch
        is_held = resident or self.device.type == "cpu"
        if is_dense and not self.is_mapped and X.flags.writeable and is_held:
            self.rows = torch.from_numpy(X).to(self.device)

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def is_sparse(self) -> bool:
        """Whether the rows are a sparse matrix."""
        return hasattr(self.rows, "toarray")

    @property
    def torch_dtype(self) -> torch.dtype:
        """The dtype of the tensors that `take` returns."""
        return torch.from_numpy(np.empty(0, self.dtype)).dtype

    @property
    def n_stored(self) -> int:
        """How many numbers the rows take in memory; an index counts as half a number."""
        return (
            self.rows.nnz * 3 // 2 if hasattr(self.rows, "nnz") else self.shape[0] * self.shape[1]
        )

    @property
    def index_device(self) -> torch.device:
        """The device on which :meth:`take` needs an index."""
        return self.rows.device if isinstance(self.rows, Tensor) else torch.device("cpu")

    def take(self, index: slice | Tensor) -> Matrix:
        """The rows at `index`, of shape (len(index), n_features)."""
        if isinstance(self.rows, Tensor):
            return self.rows[index]
        is_whole = isinstance(index, slice) and index == slice(0, len(self))
        block = self.on_host(None if is_whole else index)
        if self.keep_sparse and self.is_sparse:
            return SparseMatrix([block], self.device)
        dense = block if isinstance(block, np.ndarray) else block.toarray()
        is_view = dense is block and isinstance(index, slice)
        dense = np.array(dense, self.dtype, order="C", copy=is_view or None)
        return torch.from_numpy(dense).to(self.device)

    def on_host(self, index: slice | Tensor | None = None) -> Host:
        """The rows at `index`, by default all, as an ndarray or CSR matrix or array."""
        if isinstance(self.rows, Tensor):
            return (self.rows if index is None else self.rows[index]).cpu().numpy()
        if index is None:
            return self.rows
        return self.rows[index.numpy() if isinstance(index, Tensor) else index]

    def widened(self) -> Features:
        """The same rows in float64; dense ones are converted when they are taken."""
        host: Any = self.on_host()
        if self.is_sparse:
            host = host.astype(np.float64)
        return Features(host, self.device, keep_sparse=self.keep_sparse, dtype=np.float64)

    def sizes(self, index: slice | Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Sum of squares and number of the non-zero values of each row at `index`."""
        if self.is_sparse:
            block: CSR = self.on_host(index).astype(np.float64)
            squares, counts = block.multiply(block).sum(1), (block != 0).sum(1)
            return np.asarray(squares).ravel(), np.asarray(counts).ravel()
        x = cast("Tensor", self.take(index))
        x = x if x.device.type == "mps" else x.double()  # mps has no float64
        return x.square().sum(1).cpu().numpy(), (x != 0).sum(1).cpu().numpy()


def as_features(X: object, like: Tensor, keep_sparse: bool = False) -> Features:
    """Features from an array, a sparse matrix or a tensor, with the dtype and device of `like`."""
    dtype = np.float32 if like.dtype == torch.float32 else np.float64
    if hasattr(X, "tocsr"):
        X = X.tocsr().astype(dtype)
    else:
        X = X.detach().cpu() if isinstance(X, Tensor) else X
        X = X if isinstance(X, np.ndarray) and is_mapped(X) else np.ascontiguousarray(X, dtype)
    return Features(X, like.device, resident=False, keep_sparse=keep_sparse, dtype=dtype)


class MappedRows:
    """Dense rows in files, one part below the other, that are read slice by slice.

    It stands for the tensor of all rows where code takes them in blocks.

    Parameters
    ----------
    parts : sequence of tuple of (Features, Tensor or None)
        The features, and the index of the rows to use; None means all of them.

    Examples
    --------
    >>> import numpy as np
    >>> rows = MappedRows([(Features(np.eye(2), "cpu"), None), (Features(np.eye(2), "cpu"), None)])
    >>> rows.shape, rows[1:3].tolist()
    ((4, 2), [[0.0, 1.0], [1.0, 0.0]])
    """

    def __init__(self, parts: Sequence[tuple[Features, Tensor | None]]):
        self.parts = parts
        first, _ = parts[0]
        self.device = first.device
        self.dtype = first.torch_dtype
        self._sizes = [len(x) if index is None else len(index) for x, index in parts]
        self.shape = (sum(self._sizes), first.shape[1])

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, rows: slice) -> Tensor:
        start, stop, _ = rows.indices(len(self))
        cut = []
        for (features, index), size in zip(self.parts, self._sizes, strict=True):
            part = slice(max(start, 0), min(stop, size))
            if part.start < part.stop:
                cut.append(features.take(part if index is None else index[part]))
            start, stop = start - size, stop - size
        return cast("Tensor", cut[0] if len(cut) == 1 else torch.cat(cast("list[Tensor]", cut)))


@dataclass(eq=False, repr=False)
class Rows(torch.utils.data.Dataset[WeightedRows]):
    """Labelled rows, and unlabelled ones beside them.

    Parameters
    ----------
    features : Features
    y : Tensor of shape (n_samples,) or (n_samples, K)
    weight : Tensor of shape (n_samples,), default=None
        Sample weights.
    index : Tensor of int64 of shape (n_samples,), default=None
        The rows of `features` that `y` and `weight` belong to; all by default.
    unlabeled : Features, default=None
    unlabeled_share : float, default=0.0
        See :meth:`WeightedRows.of`.
    unlabeled_weight : float, default=1.0
        See :meth:`WeightedRows.of`.
    """

    features: Features
    y: Tensor
    weight: Tensor | None = None
    index: Tensor | None = None
    unlabeled: Features | None = None
    unlabeled_share: float = 0.0
    unlabeled_weight: float = 1.0

    def __post_init__(self) -> None:
        if self.index is not None:
            self.index = self.index.to(self.features.index_device)

    def __len__(self) -> int:
        return len(self.y)

    def __getitem__(self, index: int) -> WeightedRows:
        if not 0 <= index < len(self):
            raise IndexError(index)
        return self.batch(slice(index, index + 1))

    def take(self, position: slice | Tensor) -> Tensor | SparseMatrix:
        """The features of the labelled rows at `position`."""
        return self.features.take(position if self.index is None else self.index[position])

    def subset(self, position: Tensor) -> Rows:
        """The labelled rows at `position`, without the unlabelled ones."""
        index = position if self.index is None else self.index[position.to(self.index.device)]
        position = position.to(self.y.device)
        weight = None if self.weight is None else self.weight[position]
        return Rows(self.features, self.y[position], weight, index)

    def batch(
        self, position: slice | Tensor, unlabeled: slice | Tensor | None = None
    ) -> WeightedRows:
        """The rows at `position`, followed by those at `unlabeled` of the unlabelled ones."""
        x = self.take(position)
        if unlabeled is not None and self.unlabeled is not None:
            x = concatenate(x, self.unlabeled.take(unlabeled))
        if isinstance(position, Tensor):
            position = position.to(self.y.device)
        weight = None if self.weight is None else self.weight[position]
        return WeightedRows.of(
            x, self.y[position], weight, self.unlabeled_share, self.unlabeled_weight
        )

    @cached_property
    def whole(self) -> WeightedRows:
        """All rows, labelled and unlabelled, in one batch, whose `x` may be a MappedRows."""
        parts = [(self.features, self.index)]
        if self.unlabeled is not None:
            parts.append((self.unlabeled, None))
        if not any(features.is_mapped for features, _ in parts):
            return self.batch(slice(0, len(self)), slice(0, len(self.unlabeled or ())))
        x: Any = MappedRows(parts)
        if x.device.type != "cpu":  # copied once, not in every iteration
            rows, x = x, torch.empty(x.shape, dtype=x.dtype, device=x.device)
            for block in blocks(*rows.shape):
                x[block] = rows[block]
        return WeightedRows.of(x, self.y, self.weight, self.unlabeled_share, self.unlabeled_weight)

    def in_blocks(self) -> Iterator[tuple[WeightedRows, float]]:
        """Blocks of all rows, as if they were labelled, each with its share of the penalty."""
        parts: list[tuple[Rows, float]] = [(self, 1.0)]
        if self.unlabeled is not None:
            share, nothing = self.unlabeled_share, self.y.new_zeros(len(self.unlabeled))
            others = Rows(self.unlabeled, nothing)
            parts = [(self, 1 - share), (others, share * self.unlabeled_weight)]
        for rows, share in parts:
            for block in blocks(len(rows), self.features.shape[1]):
                batch = rows.batch(block)
                yield batch, share * len(batch.y) / len(rows)

    def total(self, function: Callable[[Tensor, Tensor], Tensor]) -> Tensor:
        """What ``function(y, weight)`` returns for the labelled rows; it sums over them."""
        weight = self.weight
        if weight is None:
            dtype = self.features.torch_dtype
            weight = torch.ones(len(self), dtype=dtype, device=self.y.device)
        return function(self.y, weight)

    def widened(self) -> Rows:
        """The same rows in float64."""
        return replace(
            self,
            features=self.features.widened(),
            y=self.y.double() if self.y.is_floating_point() else self.y,
            weight=None if self.weight is None else self.weight.double(),
            unlabeled=None if self.unlabeled is None else self.unlabeled.widened(),
        )

    @cached_property
    def moments(self) -> tuple[Tensor, Tensor]:
        """Weighted mean and standard deviation of each feature, over the labelled rows.

        Both are in float64 if the device supports it, and exact for a constant feature.
        """
        origin, (first, second, _, total) = self._sums
        first, second = first / total, second / total
        return origin + first, (second - first.square()).clamp_min(0).sqrt()

    @property
    def occurrences(self) -> Tensor:
        """The weighted share of labelled rows in which each feature is not zero."""
        _, (_, _, present, total) = self._sums
        share: Tensor = present / total
        return share

    @cached_property
    def _sums(self) -> tuple[Tensor, Tensor]:
        """An origin, and the sums about it."""
        origin = self._origin()
        return origin, self._sums_about(origin)

    def _origin(self) -> Tensor:
        return first_row(self._to_sum(slice(0, 1)))

    def _sums_about(self, origin: Tensor) -> Tensor:
        """See :func:`column_sums`; over the labelled rows."""
        sums = origin.new_zeros(4, len(origin))
        cut = [slice(0, len(self))]
        if not self.features.is_sparse:
            cut = blocks(len(self), len(origin), in_cache=origin.device.type == "cpu")
        for block in cut:
            x = self._to_sum(block)
            weight = origin.new_ones(len(x)) if self.weight is None else self.weight[block]
            sums += column_sums(x, origin, weight)
        return sums

    def _to_sum(self, position: slice) -> Matrix:
        if not self.features.is_sparse:
            return self.take(position)
        # On a GPU a matrix is transposed first, which is not worth it for one product.
        index = position if self.index is None else self.index[position]
        return SparseMatrix([cast("CSR", self.features.on_host(index))])

    def feature_scale(self) -> float:
        """Root mean square of the features that are not zero; 1 if that is zero or not finite."""
        squares = counts = 0.0
        for position in blocks(len(self), self.features.shape[1]):
            index = position if self.index is None else self.index[position]
            weight = 1.0 if self.weight is None else self.weight[position].double().cpu().numpy()
            row_squares, row_counts = self.features.sizes(index)
            squares += float((weight * row_squares).sum())
            counts += float((weight * row_counts).sum())
        scale = (squares / counts) ** 0.5 if counts else 1.0
        return scale if 0 < scale < float("inf") else 1.0


@dataclass(eq=False)
class Batches:
    """Iterates over the batches of one epoch, in a new order each time.

    Parameters
    ----------
    rows : Rows
    batch_size : int or None
        The most rows of a batch; the sizes of batches differ by at most one row.
    shuffle : bool
    generator : torch.Generator
        On the CPU, so that the order is the same on every device.

    Attributes
    ----------
    unlabeled_left : list of (slice or Tensor)
        The batches left of the present pass over the unlabelled rows, the next one last.

    Notes
    -----
    An epoch is one pass over the labelled rows. Each of its batches is joined by the next batch
    of unlabelled rows, which are cut in the same way and start anew when they are used up.
    Without a `batch_size`, all rows, labelled or not, are one batch, which is built once.
    """

    rows: Rows
    batch_size: int | None
    shuffle: bool
    generator: torch.Generator | None
    unlabeled_left: list[slice | Tensor] = field(default_factory=list)

    def __len__(self) -> int:
        return 1 if self.batch_size is None else -(-len(self.rows) // self.batch_size)

    def __iter__(self) -> Iterator[WeightedRows]:
        if self.batch_size is None:
            yield self.rows.whole
            return
        for position in self._positions(self.rows.features, len(self.rows)):
            yield self.rows.batch(position, self._next_unlabeled())

    def _positions(self, features: Features, n_rows: int) -> Iterator[slice | Tensor]:
        # Batches of equal size: a last one of a few rows would move the weights at random.
        n_batches = -(-n_rows // (self.batch_size or n_rows))
        ends = [n_rows * k // n_batches for k in range(n_batches + 1)]
        if self.shuffle and n_batches > 1:  # the order within a batch means nothing
            # One transfer to the device an epoch, and none for a batch.
            order = torch.randperm(n_rows, generator=self.generator, device="cpu")
            order = order.to(features.index_device)
            return (order[start:end] for start, end in pairwise(ends))
        return (slice(start, end) for start, end in pairwise(ends))

    def _next_unlabeled(self) -> slice | Tensor | None:
        features = self.rows.unlabeled
        if features is None:
            return None
        if not self.unlabeled_left:
            self.unlabeled_left += [*self._positions(features, len(features))][::-1]
        return self.unlabeled_left.pop()
