"""A picture of how the data scale the penalty of each coefficient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from scipy import sparse
from sklearn.utils import check_array, check_consistent_length
from sklearn.utils.validation import check_is_fitted

from sklearn_margdrop.estimators.sklearn_private import check_matplotlib_support
from sklearn_margdrop.families import FAMILIES
from sklearn_margdrop.inspection.unwrap import last_step
from sklearn_margdrop.numerics.ambient import neutral
from sklearn_margdrop.numerics.csr import MatrixLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure


class FisherScalingDisplay:
    """Coefficients beside the Fisher information that scales the penalty of each.

    To second order, dropout is an L2 penalty on each coefficient times its Fisher information: a
    large coefficient with little information belongs to a rare feature that tells the class.

    It is recommended to use :meth:`from_estimator` or :meth:`from_predictions` to create a
    display. All parameters are stored as attributes.

    Parameters
    ----------
    coef : ndarray of shape (n_features,)
        Coefficients.
    fisher_diagonal : ndarray of shape (n_features,)
        Fisher information of each, the mean over rows of A''(eta) x_j^2.
    feature_names : array-like of str of shape (n_features,)
        Names of the features.

    Attributes
    ----------
    axes_ : ndarray of matplotlib Axes of shape (2,)
        The axes of the coefficients and of the Fisher information.
    figure_ : matplotlib Figure
        The figure.
    shown_ : ndarray of int
        Positions of the features that are shown, from bottom to top.

    References
    ----------
    S. Wager, S. Wang, P. Liang, "Dropout training as adaptive regularization", NIPS 2013.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_margdrop import MarginalizedDropoutGLMClassifier
    >>> from sklearn_margdrop.inspection import FisherScalingDisplay
    >>> data = load_breast_cancer(as_frame=True)
    >>> clf = make_pipeline(StandardScaler(), MarginalizedDropoutGLMClassifier(retain_rate=0.9))
    >>> display = FisherScalingDisplay.from_estimator(clf.fit(data.data, data.target))
    >>> display.coef.shape
    (30,)
    """

    axes_: NDArray[np.object_]
    figure_: Figure | SubFigure
    shown_: NDArray[np.intp]

    def __init__(
        self, *, coef: NDArray[Any], fisher_diagonal: NDArray[Any], feature_names: ArrayLike
    ):
        self.coef = coef
        self.fisher_diagonal = fisher_diagonal
        self.feature_names = feature_names

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        *,
        target: Any = None,
        feature_names: ArrayLike | None = None,
        max_features: int = 20,
        axes: Sequence[Axes] | NDArray[np.object_] | None = None,
    ) -> Self:
        """Draw the coefficients of a fitted generalised linear model.

        Parameters
        ----------
        estimator : estimator
            A fitted generalised linear model of this package, or a fitted pipeline or search that
            ends in one.
        target : class label or int, default=None
            Which row of the coefficients: the class, where there are more than two, or the
            position of the output, where there are several.
        feature_names : array-like of str of shape (n_features,), default=None
            Names of the features; None asks the pipeline and the estimator for them.
        max_features : int, default=20
            How many of the largest coefficients to show.
        axes : array-like of two matplotlib Axes, default=None
            Axes to draw on; None makes a figure.

        Returns
        -------
        FisherScalingDisplay
            The display.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If it is no generalised linear model of this package.
        ValueError
            If `target` does not name a row of the coefficients, or the names are too few or many.
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        model, _, steps = last_step(estimator)
        check_is_fitted(model)
        if not hasattr(model, "fisher_diagonal_"):
            raise TypeError(
                f"{type(model).__name__} has no Fisher information of single features. Use a "
                "generalised linear model, or effective_penalty, which works for networks."
            )
        row = row_of(model, target)
        if feature_names is None:
            feature_names = names_of(model, steps)
        display = cls(
            coef=np.atleast_2d(model._dense_coef())[row],
            fisher_diagonal=np.atleast_2d(model.fisher_diagonal_)[row],
            feature_names=_check_names(feature_names, model.n_features_in_),
        )
        return display.plot(max_features=max_features, axes=axes)

    @classmethod
    def from_predictions(
        cls,
        X: MatrixLike,
        y_pred: ArrayLike,
        coef: MatrixLike,
        *,
        family: str = "bernoulli",
        feature_names: ArrayLike | None = None,
        max_features: int = 20,
        axes: Sequence[Axes] | NDArray[np.object_] | None = None,
    ) -> Self:
        """Draw the coefficients of any generalised linear model, `LogisticRegression` say.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            The rows that the predictions are for.
        y_pred : array-like of shape (n_samples,)
            Predicted means: the probability of the class that the coefficients speak for, a rate,
            or a number.
        coef : array-like of shape (n_features,)
            Coefficients.
        family : {"bernoulli", "poisson", "normal"}, default="bernoulli"
            What `y_pred` are means of. A class among several is `"bernoulli"` too.
        feature_names : array-like of str of shape (n_features,), default=None
            Names of the features; None takes the columns of a data frame, or numbers them.
        max_features : int, default=20
            How many of the largest coefficients to show.
        axes : array-like of two matplotlib Axes, default=None
            Axes to draw on; None makes a figure.

        Returns
        -------
        FisherScalingDisplay
            The display.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        ValueError
            If the arguments do not go together, or `y_pred` is outside of the family's range.

        Examples
        --------
        >>> from sklearn.datasets import load_breast_cancer
        >>> from sklearn.linear_model import LogisticRegression
        >>> from sklearn_margdrop.inspection import FisherScalingDisplay
        >>> X, y = load_breast_cancer(return_X_y=True)
        >>> X = (X - X.mean(0)) / X.std(0)
        >>> clf = LogisticRegression().fit(X, y)
        >>> probability = clf.predict_proba(X)[:, 1]
        >>> FisherScalingDisplay.from_predictions(X, probability, clf.coef_[0])
        <...>
        """
        check_matplotlib_support(f"{cls.__name__}.from_predictions")
        options = {"ensure_2d": False, "dtype": np.float64}
        rows = check_array(X, accept_sparse="csr", dtype=np.float64)
        mean = check_array(y_pred, input_name="y_pred", **options)
        values: Any = coef
        values = values.toarray() if sparse.issparse(values) else values
        values = check_array(values, input_name="coef", **options)
        if mean.ndim != 1 or values.ndim != 1:
            raise ValueError(
                "y_pred and coef must be one-dimensional: of several classes or outputs choose "
                f"one, as in predict_proba(X)[:, 1] and coef_[0]; got {mean.shape} and "
                f"{values.shape}."
            )
        check_consistent_length(rows, mean)
        n_features = rows.shape[1]
        if len(values) != n_features:
            raise ValueError(f"coef has {len(values)} values for {n_features} features.")
        curvature = _curvature(family, mean)
        squares = rows.multiply(rows) if sparse.issparse(rows) else np.square(rows)
        if feature_names is None:
            feature_names = getattr(X, "columns", [f"x{j}" for j in range(n_features)])
        display = cls(
            coef=values,
            fisher_diagonal=(squares.T @ curvature).ravel() / len(curvature),
            feature_names=_check_names(feature_names, n_features),
        )
        return display.plot(max_features=max_features, axes=axes)

    def plot(
        self,
        *,
        max_features: int = 20,
        axes: Sequence[Axes] | NDArray[np.object_] | None = None,
    ) -> Self:
        """Draw both.

        Parameters
        ----------
        max_features : int, default=20
            How many of the largest coefficients to show.
        axes : array-like of two matplotlib Axes, default=None
            Axes to draw on; None makes a figure.

        Returns
        -------
        FisherScalingDisplay
            The display.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt

        largest = np.argsort(-np.abs(self.coef), kind="stable")[:max_features]
        self.shown_ = largest[np.argsort(self.coef[largest], kind="stable")]
        if axes is None:
            height = 1.2 + 0.22 * len(self.shown_)
            size = (7.5, height)
            _, axes = plt.subplots(1, 2, sharey=True, layout="constrained", figsize=size)
        left, right = self.axes_ = np.asarray(axes)
        rows = np.arange(len(self.shown_))
        left.barh(rows, self.coef[self.shown_], color="C0")
        left.axvline(0, color="0.3", linewidth=0.8)
        left.set_yticks(rows, np.asarray(self.feature_names)[self.shown_])
        left.set_xlabel("Coefficient")
        information = self.fisher_diagonal[self.shown_]
        right.plot(information, rows, "o", color="C1")
        right.grid(axis="y", alpha=0.3)
        right.set_xlabel("Fisher information")
        if (information > 0).all():
            right.set_xscale("log")
        self.figure_ = left.figure
        return self


def row_of(model: Any, target: Any) -> int:
    """The row of the coefficients that `target` names."""
    if hasattr(model, "classes_"):
        classes = model.classes_.tolist()
        if len(classes) == 2:
            if target is None:
                return 0
            raise ValueError(
                "target must be None for two classes, whose coefficients speak for "
                f"{classes[1]!r}; got {target!r}."
            )
        if target not in classes:
            raise ValueError(f"target must be one of the classes {classes}; got {target!r}.")
        return int(classes.index(target))
    if target is None and model.n_outputs_ == 1:
        return 0
    if not isinstance(target, (int, np.integer)) or not 0 <= target < model.n_outputs_:
        raise ValueError(
            f"target must be the position of an output, 0 to {model.n_outputs_ - 1}; "
            f"got {target!r}."
        )
    return int(target)


def names_of(model: Any, steps: Sequence[Any]) -> Any:
    """The names of the features of a fitted estimator, or numbers where there are none."""
    if hasattr(model, "feature_names_in_"):
        return model.feature_names_in_
    try:
        return steps[-1].get_feature_names_out()
    except (IndexError, AttributeError, ValueError):
        return [f"x{j}" for j in range(model.n_features_in_)]


def _check_names(names: ArrayLike, n_features: int) -> NDArray[np.object_]:
    names = np.asarray(names, dtype=object)
    if names.shape != (n_features,):
        raise ValueError(f"feature_names has the shape {names.shape} for {n_features} features.")
    return names


@neutral()
def _curvature(name: str, mean: NDArray[np.float64]) -> NDArray[np.float64]:
    allowed = [each for each in FAMILIES if each != "categorical"]
    if name not in allowed:
        raise ValueError(f"family must be one of {allowed}; got {name!r}.")
    family = FAMILIES[name]()
    lowest, highest = (0, 1) if family.labels else (family.lowest, family.highest)
    if mean.min() < lowest or mean.max() > highest:
        raise ValueError(
            f"y_pred must be means of family={family.name!r}, from {lowest:g} to {highest:g}."
        )
    eta = family.link(torch.from_numpy(mean)[:, None])
    curvature: NDArray[np.float64] = family.curvature(eta).numpy().ravel()
    return curvature
