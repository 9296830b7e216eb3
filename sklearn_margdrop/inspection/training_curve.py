"""A picture of how a model was trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.utils.validation import check_is_fitted

from sklearn_margdrop.estimators.sklearn_private import check_matplotlib_support
from sklearn_margdrop.inspection.unwrap import last_step

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.lines import Line2D


class TrainingCurveDisplay:
    """Objective, penalty and validation score by epoch.

    It is recommended to use :meth:`from_estimator` to create a display. All parameters are stored
    as attributes.

    Parameters
    ----------
    objective : array-like of shape (n_epochs,)
        Loss + penalty + L2 of each epoch, in nats per sample.
    penalty : array-like of shape (n_epochs,), default=None
        The noise penalty's part of it, in nats per sample; nan where it is not known.
    validation_score : array-like of shape (n_epochs,), default=None
        The score of the validation rows; nan in epochs without any.
    step_name : str, default="epoch"
        What the horizontal axis counts.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes with the curves in nats.
    score_ax_ : matplotlib Axes or None
        The axes of the validation score, which share the horizontal axis.
    figure_ : matplotlib Figure
        The figure.
    lines_ : list of matplotlib Line2D
        Objective, penalty and validation score, if they are known.

    See Also
    --------
    RegularizationPathDisplay : Coefficients or scores along the retain rate.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_margdrop import MarginalizedDropoutClassifier
    >>> from sklearn_margdrop.inspection import TrainingCurveDisplay
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MarginalizedDropoutClassifier(early_stopping=True, random_state=0).fit(X, y)
    >>> TrainingCurveDisplay.from_estimator(clf)
    <...>
    """

    ax_: Axes
    score_ax_: Axes | None
    figure_: Figure | SubFigure
    lines_: list[Line2D]

    def __init__(
        self,
        *,
        objective: ArrayLike,
        penalty: ArrayLike | None = None,
        validation_score: ArrayLike | None = None,
        step_name: str = "epoch",
    ):
        self.objective = objective
        self.penalty = penalty
        self.validation_score = validation_score
        self.step_name = step_name

    @classmethod
    def from_estimator(cls, estimator: Any, *, ax: Axes | None = None, **line_kw: Any) -> Self:
        """Draw the training of a fitted estimator.

        Parameters
        ----------
        estimator : estimator
            A fitted estimator of this package, or a fitted pipeline or search that ends in one.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a figure.
        **line_kw : dict
            Passed on to matplotlib's `plot`.

        Returns
        -------
        TrainingCurveDisplay
            The display.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        NotFittedError
            If the estimator is not fitted.
        TypeError
            If it is not one of this package.
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        estimator, _, _ = last_step(estimator)
        check_is_fitted(estimator)
        # An estimator with sparse coefficients has no net, and so no history.
        net = getattr(estimator, "net_", None)
        history: Any = [] if net is None else [{}] * net.n_forgotten_ + net.history

        def column(name: str) -> NDArray[Any] | None:
            values = np.array([epoch.get(name, np.nan) for epoch in history])
            return values if np.isfinite(values).any() else None

        display = cls(
            objective=np.array(estimator.loss_curve_),
            penalty=column("penalty"),
            validation_score=column("valid_score"),
            step_name=estimator._step,
        )
        return display.plot(ax=ax, **line_kw)

    def plot(self, ax: Axes | None = None, **line_kw: Any) -> Self:
        """Draw the curves.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a figure.
        **line_kw : dict
            Passed on to matplotlib's `plot`.

        Returns
        -------
        TrainingCurveDisplay
            The display.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots(layout="constrained")
        curves = {"objective": (ax, np.asarray(self.objective), "C0", "-")}
        if self.penalty is not None:
            curves["penalty"] = (ax, np.asarray(self.penalty), "C1", "--")
        self.score_ax_ = None
        if self.validation_score is not None:
            self.score_ax_ = ax.twinx()
            self.score_ax_.set_ylabel("Validation score")
            scores = np.asarray(self.validation_score)
            curves["validation score"] = (self.score_ax_, scores, "C2", ":")
        self.lines_ = []
        for name, (axes, values, color, style) in curves.items():
            look = {"label": name, "color": color, "linestyle": style} | line_kw
            self.lines_ += axes.plot(np.arange(1, len(values) + 1), values, **look)
        ax.set(xlabel=self.step_name.capitalize(), ylabel="Nats per sample")
        (self.score_ax_ or ax).legend(handles=self.lines_, loc="center right")
        self.ax_, self.figure_ = ax, ax.figure
        return self
