"""Rows and their weights, in the loss and in the penalty."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor

from sklearn_margdrop.numerics.sparse import Matrix


class WeightedRows(NamedTuple):
    """Rows, with weights that turn sums over the rows into the means of the objective.

    Parameters
    ----------
    x : Tensor or SparseMatrix of shape (n_labeled + n_unlabeled, n_features)
        Labelled rows first.
    y : Tensor of shape (n_labeled,) or (n_labeled, K)
        The targets.
    loss_weight : Tensor of shape (n_labeled,)
        Weights in the loss.
    penalty_weight : Tensor of shape (n_labeled + n_unlabeled,)
        Weights in the penalty.
    """

    x: Matrix
    y: Tensor
    loss_weight: Tensor
    penalty_weight: Tensor

    @classmethod
    def of(
        cls,
        x: Matrix,
        y: Tensor,
        weight: Tensor | None = None,
        unlabeled_share: float = 0.0,
        unlabeled_weight: float = 1.0,
    ) -> WeightedRows:
        """The rows of one step of training.

        Parameters
        ----------
        x : Tensor or SparseMatrix of shape (n_labeled + n_unlabeled, n_features)
            Labelled rows first.
        y : Tensor of shape (n_labeled,) or (n_labeled, K)
            The targets.
        weight : Tensor of shape (n_labeled,), default=None
            Sample weights. In `fit` their mean over the training set is 1.
        unlabeled_share : float, default=0.0
            The part of the penalty that the unlabelled rows make up, see :func:`unlabeled_share`.
        unlabeled_weight : float, default=1.0
            The weight of the average row, unlabelled ones included.

        Returns
        -------
        WeightedRows

        Examples
        --------
        Three labelled rows and one without, as one step of a classifier sees them:

        >>> import torch
        >>> from sklearn_margdrop.weighting import WeightedRows
        >>> y = torch.tensor([0, 2, 1])
        >>> rows = WeightedRows.of(torch.randn(4, 2), y, unlabeled_share=0.25)
        >>> rows.penalty_weight
        tensor([0.2500, 0.2500, 0.2500, 0.2500])
        """
        n_labeled, n_unlabeled = len(y), len(x) - len(y)
        if weight is None:
            weight = torch.full((n_labeled,), 1 / n_labeled, dtype=x.dtype, device=x.device)
        else:
            weight = weight / n_labeled
        if not n_unlabeled:
            return cls(x, y, weight, weight)
        each = unlabeled_share * unlabeled_weight / n_unlabeled
        unlabeled = weight.new_full((n_unlabeled,), each)
        return cls(x, y, weight, torch.cat([(1 - unlabeled_share) * weight, unlabeled]))

    def at(self, index: slice) -> WeightedRows:
        """The rows at `index`."""
        # Labelled rows come first; there may be none at `index`.
        return WeightedRows(*(each[index] for each in cast("tuple[Tensor, ...]", self)))

    def part(self, index: int, n_parts: int) -> WeightedRows:
        """Part `index` of `n_parts` of dense rows, with its share of unlabelled rows."""
        if n_parts == 1:
            return self
        n_labeled, n_unlabeled = len(self.y), len(self.penalty_weight) - len(self.y)
        labeled, unlabeled = (
            slice(first + n * index // n_parts, first + n * (index + 1) // n_parts)
            for first, n in ((0, n_labeled), (n_labeled, n_unlabeled))
        )
        x, penalty_weight = (
            torch.cat([values[labeled], values[unlabeled]]) if n_unlabeled else values[labeled]
            for values in (cast("Tensor", self.x), self.penalty_weight)
        )
        return WeightedRows(x, self.y[labeled], self.loss_weight[labeled], penalty_weight)


class Scales(NamedTuple):
    """Factors that turn the weights of rows in several places into those of the objective.

    Parameters
    ----------
    loss, penalty : float
        For the sample weights of labelled rows, in the loss and in the penalty.
    unlabeled : float
        The weight of an unlabelled row in the penalty.
    """

    loss: float
    penalty: float
    unlabeled: float

    @classmethod
    def of(cls, total_weight: float, n_unlabeled: int, discount: float) -> Scales:
        """The factors for the total weight and the number of unlabelled rows in all places."""
        share = unlabeled_share(discount, n_unlabeled, total_weight)
        return cls(1 / total_weight, (1 - share) / total_weight, share / max(n_unlabeled, 1))


def discount_of_share(share: float, n_unlabeled: int, total_weight: float) -> float:
    r"""The discount of at most 1 with which unlabelled rows make up a part of the penalty.

    That is :math:`s\,n / ((1 - s)\,m)`, the inverse of :func:`unlabeled_share`.
    """
    return min(1.0, share / (1 - share) * total_weight / max(n_unlabeled, 1))


def unlabeled_share(discount: float, n_unlabeled: int, total_weight: float) -> float:
    r"""The part of the penalty that unlabelled rows make up, :math:`d\,m / (n + d\,m)`."""
    mass = discount * n_unlabeled
    return mass / (mass + total_weight)
