"""Targets of labels: one per row, or several, which are the columns of an indicator matrix."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from numbers import Real
from typing import Any

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike, NDArray
from scipy import sparse
from sklearn.metrics import accuracy_score
from sklearn.utils import assert_all_finite, column_or_1d
from sklearn.utils.class_weight import compute_class_weight
from sklearn.utils.multiclass import check_classification_targets, type_of_target
from torch import Tensor
from torch.nn.functional import logsigmoid

from sklearn_margdrop.estimators.targets import Target
from sklearn_margdrop.estimators.validation import as_vector
from sklearn_margdrop.families import Bernoulli, Categorical
from sklearn_margdrop.training.batches import Rows


@dataclass(frozen=True, eq=False, kw_only=True)
class Labels(Target):
    """A class label per row: bernoulli for two classes, categorical for more."""

    classes: NDArray[Any]
    stratifies = True

    @classmethod
    def of(
        cls, y: Any, dtype: DTypeLike, known: Labels | None = None, classes: Any = None
    ) -> tuple[Labels, np.ndarray]:
        """The target, and `y` encoded: positions in the sorted classes.

        Parameters
        ----------
        y : array-like of shape (n_samples,)
        dtype : dtype
            That of the codes of two classes.
        known : Labels, default=None
            The target of the fit that this one goes on from.
        classes : array-like, default=None
            The classes that the user named.
        """
        if np.ndim(y) == 2 and np.shape(y)[1] > 1 and type_of_target(y).startswith("multi"):
            raise ValueError(_several_labels(y))
        check_classification_targets(y)
        y = column_or_1d(as_vector(y))
        named = None if classes is None else _check_classes(classes)
        if named is not None and known is not None and not np.array_equal(named, known.classes):
            raise ValueError(
                f"classes={named!r} are not those of the first call, {known.classes!r}."
            )
        seen = np.unique(y)
        if known is not None:
            named = known.classes.copy()  # targets share nothing that can be written to
        found = seen if named is None else named
        if len(found) < 2:
            raise ValueError(
                "A classifier needs samples of at least 2 classes; there is only one class: "
                f"{found[0]}."
            )
        unseen = seen[:0] if named is None else np.setdiff1d(seen, found)
        if len(unseen):
            raise ValueError(
                f"y contains labels {unseen!r} that are not in classes {found!r}; name all of "
                "them as `classes` in the first call to partial_fit, or fit anew with "
                "warm_start=False."
            )
        codes = np.searchsorted(found, y)
        if len(found) == 2:
            column = codes.astype(dtype)[:, None]
            return cls(family=Bernoulli(), n_outputs=1, classes=found), column
        return cls(family=Categorical(), n_outputs=len(found), classes=found), codes

    def encode(self, y: Any, dtype: DTypeLike) -> np.ndarray:
        return self.of(y, dtype, self)[1]

    def check_continued(self, known: Any, y: np.ndarray, incremental: bool) -> None:
        if incremental:
            return
        seen = self.classes[np.unique(y).astype(int)]
        if len(seen) < len(self.classes):
            raise ValueError(
                "warm_start can only be used where y has the same classes as in the previous "
                f"call: they were {self.classes!r}, and y has {seen!r}. Call partial_fit, or "
                "start anew: call fit with warm_start=False."
            )

    def row_weights(
        self, y: np.ndarray, weight: np.ndarray, class_weight: Any, incremental: bool
    ) -> np.ndarray | float:
        """The weight of each row's class; "balanced" counts rows by their own weights."""
        if class_weight is None:
            return 1.0
        if incremental and class_weight == "balanced":
            raise ValueError(
                "class_weight='balanced' is not supported by partial_fit, which sees only a "
                "chunk of the classes' frequencies; pass a dict, e.g. from "
                "sklearn.utils.class_weight.compute_class_weight."
            )
        codes = y.astype(int).ravel()
        factors: np.ndarray = np.ones(len(self.classes))
        if isinstance(class_weight, str):
            kept = weight > 0
            present = np.unique(codes[kept])
            factors[present] = compute_class_weight(
                class_weight, classes=present, y=codes[kept], sample_weight=weight[kept]
            )
        else:
            _check_class_weight(class_weight)
            factors = compute_class_weight(class_weight, classes=self.classes, y=self.classes)
        per_row: np.ndarray = factors[codes]
        if not per_row @ weight > 0:
            raise ValueError(
                f"class_weight={class_weight!r} leaves no row with a positive weight."
            )
        return per_row

    def shares(self, rows: Rows) -> Tensor:
        """The share of each class."""
        counts = rows.total(partial(_class_totals, len(self.classes)))
        return counts / counts.sum()

    def mean(self, rows: Rows, incremental: bool) -> Tensor:
        """The share of each class, or of the second of two, and never 0 or 1."""
        share = self.shares(rows)
        if incremental:  # a chunk is a sample of classes that it need not all hold
            share = (share * len(rows) + 1) / (len(rows) + len(share))
        share = share.clamp(1e-3, 1 - 1e-3)
        return share[1:].reshape(-1) if len(share) == 2 else share

    def constant_loss(self, rows: Rows) -> float:
        share = self.shares(rows)
        return -float(torch.xlogy(share, share).sum())

    def loss_of_zeros(self, rows: Rows) -> float:
        return math.log(len(self.classes))

    def score(self, eta: Tensor, y: Tensor, weight: Tensor | None) -> float:
        """The accuracy; of indicators, the share of rows whose labels are all right."""
        found = self.most_probable(eta)
        truth, predicted = (each.cpu().numpy() for each in (y.long().view_as(found), found))
        sample_weight = None if weight is None else weight.cpu().numpy()
        return float(accuracy_score(truth, predicted, sample_weight=sample_weight))

    def most_probable(self, eta: Tensor) -> Tensor:
        """The position of the most probable class, from one or from K logits."""
        return (eta[:, 0] > 0).long() if eta.shape[1] == 1 else eta.argmax(-1)

    def probabilities(self, eta: Tensor) -> Tensor:
        """Of each class, shape (n_samples, n_classes)."""
        return _logits(eta).softmax(-1)

    def log_probabilities(self, eta: Tensor) -> Tensor:
        """The logarithms of :meth:`probabilities`, finite where these underflow."""
        return _logits(eta).log_softmax(-1)

    def decode(self, codes: np.ndarray) -> Any:
        """The target in the user's terms."""
        return self.classes[codes]


@dataclass(frozen=True, eq=False, kw_only=True)
class Indicators(Labels):
    """An indicator matrix of several labels per row: independent bernoulli outputs."""

    is_sparse: bool
    stratifies = False

    @classmethod
    def of(
        cls, y: Any, dtype: DTypeLike, known: Labels | None = None, classes: Any = None
    ) -> tuple[Labels, np.ndarray]:
        """The target, and `y` as a dense matrix; its classes are the positions of the columns."""
        matrix = _dense_indicators(y)
        labels = np.arange(matrix.shape[1])
        named = [] if known is None else [known.classes]
        named += [] if classes is None else [_check_classes(classes)]
        for each in named:
            if not np.array_equal(labels, each):
                raise ValueError(
                    f"y is an indicator matrix of {len(labels)} columns, which does not go with "
                    f"the classes {each!r}: these are the positions of the columns."
                )
        kind = known.is_sparse if isinstance(known, Indicators) else sparse.issparse(y)
        target = cls(family=Bernoulli(), n_outputs=len(labels), classes=labels, is_sparse=kind)
        return target, matrix.astype(dtype)

    def check_continued(self, known: Any, y: np.ndarray, incremental: bool) -> None:
        pass

    def row_weights(
        self, y: np.ndarray, weight: np.ndarray, class_weight: Any, incremental: bool
    ) -> np.ndarray | float:
        if class_weight is None:
            return 1.0
        raise ValueError(
            "class_weight weights rows by their one class; with an indicator matrix for y a "
            "row has several labels. Set class_weight=None and pass sample_weight, or fit a "
            "model to each label: sklearn.multioutput.MultiOutputClassifier."
        )

    def shares(self, rows: Rows) -> Tensor:
        """The shares of the rows without and with each label, shape (2, n_labels)."""
        counts = rows.total(lambda y, weight: torch.stack([weight @ (1 - y), weight @ y]))
        return counts / counts.sum(0)

    def most_probable(self, eta: Tensor) -> Tensor:
        """The labels that are more probable than not, as an indicator matrix."""
        return (eta > 0).long()

    def probabilities(self, eta: Tensor) -> Tensor:
        return eta.sigmoid()

    def log_probabilities(self, eta: Tensor) -> Tensor:
        return logsigmoid(eta)

    def decode(self, codes: np.ndarray) -> Any:
        return sparse.csr_matrix(codes) if self.is_sparse else codes


def labels_or_indicators(
    y: Any, dtype: DTypeLike, known: Labels | None, classes: Any
) -> tuple[Labels, np.ndarray]:
    """The target of a label per row, or of an indicator matrix, and `y` encoded."""
    is_indicator = (
        np.ndim(y) == 2 and np.shape(y)[1] > 1 and type_of_target(y) == "multilabel-indicator"
    )
    if known is not None and is_indicator != isinstance(known, Indicators):
        words = "one label per row", "several labels per row (an indicator matrix)"
        raise ValueError(
            f"y has {words[is_indicator]}, and had {words[not is_indicator]} in the previous "
            "call. Start anew: call fit with warm_start=False."
        )
    return (Indicators if is_indicator else Labels).of(y, dtype, known, classes)


def _several_labels(y: Any) -> str:
    """What to do with a target of several columns."""
    if type_of_target(y) != "multilabel-indicator":
        return (
            "y has several labels per row; wrap the estimator in "
            "sklearn.multioutput.MultiOutputClassifier."
        )
    if (y.sum(1) == 1).all():
        return "y has one label per row, encoded one-hot; pass y.argmax(1)."
    return (
        "y has several labels per row; wrap the estimator in "
        "sklearn.multioutput.MultiOutputClassifier, or fit MarginalizedDropoutClassifier("
        "hidden_layer_sizes=()), which takes an indicator matrix."
    )


def _check_classes(classes: ArrayLike) -> np.ndarray:
    """The sorted classes that the user named."""
    try:
        vector = column_or_1d(np.asarray(classes))
        assert_all_finite(vector)
        found: np.ndarray = np.unique(vector)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"classes must be a list or an array of labels; got {classes!r}."
        ) from error
    if not found.size:
        raise ValueError("classes must name the labels that will ever occur; it is empty.")
    return found


def _check_class_weight(class_weight: Mapping[Any, float]) -> None:
    for value in class_weight.values():
        if not (isinstance(value, Real) and 0 <= value < np.inf):
            raise ValueError(f"class_weight must be finite and >= 0; got {class_weight!r}.")


def _dense_indicators(y: Any) -> np.ndarray:
    """An indicator matrix as an array; raises where it holds something else than 0 and 1."""
    matrix: np.ndarray = y.toarray() if sparse.issparse(y) else np.asarray(y)
    values = np.unique(matrix)
    if not np.isin(values, (0, 1)).all():
        raise ValueError(
            f"y has the values {values}. An indicator matrix, of a column for each label, holds 0 "
            "and 1: pass y > 0, say. For several targets of other classes, wrap the estimator in "
            "sklearn.multioutput.MultiOutputClassifier."
        )
    return matrix


def _logits(eta: Tensor) -> Tensor:
    """K logits for K classes, from one for two classes."""
    return torch.cat([torch.zeros_like(eta), eta], dim=1) if eta.shape[1] == 1 else eta


def _class_totals(n_classes: int, y: Tensor, weight: Tensor) -> Tensor:
    # On the CPU: a GPU adds up in any order, which torch's deterministic algorithms forbid.
    codes, weights = y.long().ravel().cpu(), weight.cpu()
    return torch.bincount(codes, weights=weights, minlength=n_classes).to(weight.device)
