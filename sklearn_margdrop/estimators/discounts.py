"""The choice of `unlabeled_discount` from the data: by how well labelled rows are predicted."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from sklearn_margdrop.estimators.nets import TargetNet, losses_of
from sklearn_margdrop.notices import warn
from sklearn_margdrop.training.batches import Rows
from sklearn_margdrop.weighting import discount_of_share, unlabeled_share

#: The parts of the penalty that unlabelled rows may make up.
SHARES = 0.0, 0.03, 0.1, 0.3

#: Those where no labelled rows judge it: of linear models, which escape a penalty sooner, and of
#: networks.
SMALL_SHARE, SHARE_OF_NETWORKS = SHARES[1:3]

#: Above this, a warning says that models escape the penalty.
_LARGE_SHARE = 0.5

#: The parts that the labelled rows are cut into. The trials have all unlabelled rows, for fewer of
#: them would do less harm.
N_FOLDS = 5

#: Fewer labelled rows than this tell nothing.
_FEWEST_ROWS = 20


def folds(y: Tensor, n_folds: int = N_FOLDS) -> Tensor:
    """A fold for each row, in each of which targets are distributed alike.

    Parameters
    ----------
    y : Tensor of shape (n_samples,) or (n_samples, K)
        Targets; of several columns, the first counts.
    n_folds : int, default=5

    Returns
    -------
    Tensor of int64 of shape (n_samples,)
        From 0 to n_folds - 1; n_folds for the only row of a class, which is never held out.

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.estimators.discounts import folds
    >>> folds(torch.tensor([0, 1, 1, 0, 2, 0, 1]), 2)
    tensor([0, 1, 0, 1, 2, 0, 1])
    """
    first = y.cpu() if y.dim() == 1 else y[:, 0].cpu()
    fold = torch.empty(len(first), dtype=torch.int64, device="cpu")
    fold[first.argsort(stable=True)] = torch.arange(len(first), device="cpu") % n_folds
    if not y.is_floating_point():
        _, inverse, counts = first.unique(return_inverse=True, return_counts=True)
        fold[counts[inverse] == 1] = n_folds
    return fold


def choose_share(train: Callable[[Rows, float], TargetNet], rows: Rows) -> float:
    """The share of the penalty with which held-out labelled rows are predicted best.

    Larger shares are tried until one predicts worse than the one before. Too large ones let a
    model escape the penalty by being confident about the unlabelled rows, whatever it is confident
    in; how large that is depends on the numbers of labels, classes and rows.

    Parameters
    ----------
    train : callable
        ``train(rows, share)`` returns a net that was trained on some of the labelled rows.
    rows : Rows
        The training rows.

    Returns
    -------
    float
        One of :data:`SHARES`.
    """
    if len(rows) < _FEWEST_ROWS:
        return 0.0
    fold = folds(rows.y)
    cut = [((fold != k).nonzero()[:, 0], (fold == k).nonzero()[:, 0]) for k in range(N_FOLDS)]
    best, least = 0.0, math.inf
    for share in SHARES:
        total = 0.0
        for kept, held_out in cut:
            valid = rows.subset(held_out)
            losses = losses_of(train(rows.subset(kept), share), valid)
            weight = torch.ones_like(losses) if valid.weight is None else valid.weight.to(losses)
            total += float(losses @ weight)
        if not total < least:
            break
        best, least = share, total
    return best


def first_discount(
    given: Any, n_unlabeled: int, total_weight: float, share: float = SMALL_SHARE
) -> float | None:
    """What `unlabeled_discount` is before labelled rows judge it; warns of one that is too large.

    Parameters
    ----------
    given : float or "auto"
    n_unlabeled : int
    total_weight : float
        That of the labelled rows.
    share : float, default=0.03
        The part of the penalty for which `"auto"` stands.

    Returns
    -------
    float or None
        None without unlabelled rows.
    """
    if not n_unlabeled:
        return None
    if given == "auto":
        return discount_of_share(share, n_unlabeled, total_weight)
    share = unlabeled_share(float(given), n_unlabeled, total_weight)
    if share > _LARGE_SHARE:
        most = discount_of_share(SHARES[-1], n_unlabeled, total_weight)
        warn(
            f"The unlabelled rows make up {100 * share:.0f} % of the penalty, which a model can "
            "escape by being confident about them, whatever it is confident in. Set "
            f"unlabeled_discount to 'auto', or to {most:.2g} or less."
        )
    return float(given)
