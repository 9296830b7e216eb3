"""Noise variances of the inputs of a linear layer, as its outputs see them, and the way back."""

from __future__ import annotations

import copy
import functools
from typing import NamedTuple, cast

import torch
from torch import Tensor

from sklearn_margdrop.numerics.products import matmul
from sklearn_margdrop.numerics.sparse import Matrix, SparseMatrix

#: Up to how many classes the products of all pairs of sparse rows are cheaper than mixtures.
_FEW_CLASSES = 6


def _columns(a: Tensor, index: Tensor) -> Tensor:
    return a.mT.index_select(0, index).mT


class Mixed(NamedTuple):
    """Products of the weights with mixtures of them.

    Parameters
    ----------
    share : Tensor of shape (n_samples, K)
        a, what each class has of the mixture m_i = sum_k a_ik w_k.
    values : Tensor of shape (n_samples, K)
        sum_j v_ij m_ij w_kj.
    moved : Tensor or SparseMatrix of shape (n_samples, width), or None
        v_ij m_ij, if it was computed.
    rows : Tensor of shape (n_samples,) or None
        Their indices, if they are not all.
    """

    share: Tensor
    values: Tensor
    moved: Matrix | None
    rows: Tensor | None = None


class PushedNoise:
    """What a penalty asks of the noise at the input of a linear layer.

    Parameters
    ----------
    variance : Tensor or SparseMatrix of shape (n_samples, width) or (1, width)
        v, the noise variances; one row may stand for all.
    weight : Tensor of shape (K, width)
        w, the weights of the layer.
    square : Tensor of shape (K, width), default=None
        Their squares, if they are known.

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.numerics.pushed import PushedNoise
    >>> noise = PushedNoise(torch.ones(1, 2), torch.tensor([[1.0, 2.0], [3.0, 0.0]]))
    >>> noise.variances(), noise.mixed(torch.tensor([[1.0, 0.0]])).values
    (tensor([[5., 9.]]), tensor([[5., 3.]]))
    """

    def __init__(self, variance: Matrix, weight: Tensor, square: Tensor | None = None) -> None:
        self.variance = variance
        self.weight = weight
        self.square = weight * weight if square is None else square

    def for_mixtures(self) -> PushedNoise:
        """The same, in the way that is fastest where mixtures are asked for."""
        if isinstance(self.variance, SparseMatrix) and len(self.weight) <= _FEW_CLASSES:
            return PairedNoise(self.variance, self.weight)
        return self

    def variances(self) -> Tensor:
        """Those of the outputs, sum_j v_ij w_kj^2, of shape (n_samples, K) or (1, K)."""
        return self._push(self.square)

    def to_squares(self, grad: Tensor) -> Tensor:
        """The derivatives by the squares of the weights, for those by :meth:`variances`."""
        v = self.variance
        if isinstance(v, SparseMatrix):
            return (v.mT @ grad).mT
        return grad.sum(0).unsqueeze(-1) * v if self._is_shared(grad) else matmul(grad.mT, v)

    def mixed(self, share: Tensor) -> Mixed:
        """The products with mixtures of the weights."""
        v, weight = self.variance, self.weight
        if isinstance(v, SparseMatrix):
            sparse = v.times_dots(share, weight.mT)
            return Mixed(share, sparse @ weight.mT, sparse)
        if self._is_shared(share):
            return Mixed(share, matmul(share, matmul(weight * v, weight.mT)), None)
        moved = matmul(share, weight).mul_(v)
        return Mixed(share, matmul(moved, weight.mT), moved)

    def to_weight(self, of_squares: Tensor, *of_mixed: tuple[Tensor, Mixed]) -> Tensor:
        """sum_i v_ij (a_ik w_kj - b_ik m_ij) for a and pairs of b and mixtures: (K, width).

        Together, a_ik less the products of b_ik with the shares of the mixtures have to be a
        symmetric matrix for each i. It is half of a derivative then.
        """
        total = self.to_squares(of_squares).mul_(self.weight)
        for grad, mixed in of_mixed:
            if isinstance(mixed.moved, SparseMatrix):
                total -= (mixed.moved.mT @ grad).mT
            elif mixed.moved is None:
                shared = self.weight * cast("Tensor", self.variance)
                total -= matmul(matmul(grad.mT, mixed.share), shared)
            else:
                total -= matmul(grad.mT, mixed.moved)
        return total

    def rows(self, index: Tensor) -> PushedNoise:
        """The noise of some rows; `index` is sorted."""
        v = self.variance
        if isinstance(v, SparseMatrix):
            v = v.rows(index)
        elif len(v) > 1:
            v = v[index]
        return PushedNoise(v, self.weight, self.square)

    def _push(self, weight: Tensor) -> Tensor:
        if isinstance(self.variance, SparseMatrix):
            return self.variance @ weight.mT
        return matmul(self.variance, weight.mT)

    def _is_shared(self, rows: Tensor) -> bool:
        return len(cast("Tensor", self.variance)) == 1 < len(rows)


class PairedNoise(PushedNoise):
    """The same by the products of all pairs of the weights, of which there are K (K + 1) / 2.

    Parameters
    ----------
    variance, weight : Tensor
        See :class:`PushedNoise`.
    """

    def __init__(self, variance: Matrix, weight: Tensor) -> None:
        n_classes = len(weight)
        self._first, self._second = torch.triu_indices(n_classes, n_classes, device=weight.device)
        columns = weight.mT
        pairs = columns[:, self._first] * columns[:, self._second]
        super().__init__(variance, weight, pairs.mT)
        # Where each pair is among them, of either order.
        self._place = torch.empty(n_classes, n_classes, dtype=torch.int64, device=weight.device)
        self._place[self._first, self._second] = torch.arange(len(pairs.mT), device=weight.device)
        self._place[self._second, self._first] = self._place[self._first, self._second]
        self._products = self._push(self.square)

    def variances(self) -> Tensor:
        return _columns(self._products, self._place.diagonal())

    def mixed(self, share: Tensor) -> Mixed:
        columns = (_columns(self._products, at) for at in self._place)
        terms = (each.mul_(share[:, [k]]) for k, each in enumerate(columns))
        return Mixed(share, functools.reduce(Tensor.add_, terms), None)

    def to_weight(self, of_squares: Tensor, *of_mixed: tuple[Tensor, Mixed]) -> Tensor:
        first, second = self._first, self._second
        on_diagonal = first == second
        to_pairs = _columns(of_squares, first).mul_(on_diagonal)
        for grad, mixed in of_mixed:
            at = slice(None) if mixed.rows is None else mixed.rows
            to_pairs[at] -= _columns(grad, first).mul_(_columns(mixed.share, second))
        sums = self.to_squares(to_pairs)
        total = torch.zeros_like(self.weight)
        total.index_add_(0, first, sums * self.weight[second])
        total.index_add_(0, second, sums * self.weight[first] * ~on_diagonal.unsqueeze(-1))
        return total

    def rows(self, index: Tensor) -> PairedNoise:
        chosen = copy.copy(self)
        if len(self._products) > 1:
            chosen._products = self._products[index]
        return chosen
