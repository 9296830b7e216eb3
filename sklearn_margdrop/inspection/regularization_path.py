"""A picture of what the retain rate does to a model."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import clone
from sklearn.model_selection import validation_curve

from sklearn_margdrop.estimators.glm import BaseMarginalizedGLM
from sklearn_margdrop.estimators.sklearn_private import check_matplotlib_support
from sklearn_margdrop.inspection.fisher_scaling import names_of, row_of
from sklearn_margdrop.inspection.unwrap import last_step
from sklearn_margdrop.noise import NOISE_MODELS
from sklearn_margdrop.numerics.csr import MatrixLike

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure, SubFigure
    from matplotlib.lines import Line2D

_RATES = np.linspace(0.1, 1.0, 10)


class RegularizationPathDisplay:
    """Coefficients, or scores of cross-validation, along the retain rate.

    It is recommended to use :meth:`from_estimator` to create a display. All parameters are stored
    as attributes.

    Parameters
    ----------
    retain_rates : ndarray of shape (n_rates,)
        Retain rates.
    coefs : ndarray of shape (n_rates, n_features), default=None
        Coefficients of models that were fitted with each.
    feature_names : array-like of str of shape (n_features,), default=None
        Names of the features.
    train_scores, test_scores : ndarray of shape (n_rates, n_folds), default=None
        Scores of such models on the training rows and on held-out rows.
    score_name : str, default="Score"
        What the scores are called.

    Attributes
    ----------
    ax_ : matplotlib Axes
        The axes.
    figure_ : matplotlib Figure
        The figure.
    lines_ : list of matplotlib Line2D
        A line for each coefficient that is shown, or those of the mean scores.

    See Also
    --------
    sklearn.model_selection.ValidationCurveDisplay : Scores along any parameter.

    Examples
    --------
    >>> from sklearn.datasets import load_breast_cancer
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from sklearn_margdrop import MarginalizedDropoutGLMClassifier
    >>> from sklearn_margdrop.inspection import RegularizationPathDisplay
    >>> X, y = load_breast_cancer(return_X_y=True)
    >>> clf = make_pipeline(StandardScaler(), MarginalizedDropoutGLMClassifier())
    >>> rates = [0.2, 0.5, 0.9]
    >>> display = RegularizationPathDisplay.from_estimator(clf, X, y, retain_rates=rates)
    >>> display.coefs.shape
    (3, 30)
    >>> display = RegularizationPathDisplay.from_estimator(
    ...     clf, X, y, kind="score", retain_rates=rates, cv=3
    ... )
    >>> display.test_scores.shape
    (3, 3)
    """

    ax_: Axes
    figure_: Figure | SubFigure
    lines_: list[Line2D]

    def __init__(
        self,
        *,
        retain_rates: ArrayLike,
        coefs: ArrayLike | None = None,
        feature_names: ArrayLike | None = None,
        train_scores: ArrayLike | None = None,
        test_scores: ArrayLike | None = None,
        score_name: str = "Score",
    ):
        self.retain_rates = retain_rates
        self.coefs = coefs
        self.feature_names = feature_names
        self.train_scores = train_scores
        self.test_scores = test_scores
        self.score_name = score_name

    @classmethod
    def from_estimator(
        cls,
        estimator: Any,
        X: MatrixLike,
        y: ArrayLike,
        *,
        retain_rates: ArrayLike = _RATES,
        kind: str = "auto",
        target: Any = None,
        feature_names: ArrayLike | None = None,
        max_features: int = 10,
        cv: Any = None,
        scoring: str | Callable[..., float] | None = None,
        n_jobs: int | None = None,
        fit_params: Mapping[str, Any] | None = None,
        ax: Axes | None = None,
    ) -> Self:
        """Fit a clone of an estimator at each retain rate, and draw the coefficients or scores.

        Parameters
        ----------
        estimator : estimator
            An estimator of this package with ``noise="dropout"``, fitted or not, or a pipeline
            that ends in one, or a fitted search, whose best estimator is taken.
        X : {array-like, sparse matrix} of shape (n_samples, n_features)
            Data.
        y : array-like of shape (n_samples,) or (n_samples, n_outputs)
            Targets.
        retain_rates : array-like of shape (n_rates,), default=0.1, 0.2, ..., 1
            Retain rates in (0, 1], each for all noisy sites.
        kind : {"coef", "score", "auto"}, default="auto"
            What to draw: the coefficients of generalised linear models that are fitted to all
            rows, or the scores of cross-validation. `"auto"` is `"score"` where `cv` or `scoring`
            is given and for networks, whose weights are too many, else `"coef"`.
        target : class label or int, default=None
            Which coefficients: the class, where there are more than two, or the position of the
            output, where there are several.
        feature_names : array-like of str of shape (n_features,), default=None
            Names of the features; None asks the pipeline and the estimator for them.
        max_features : int, default=10
            How many coefficients to show: those that become largest.
        cv : int, cross-validation generator or iterable, default=None
            See :func:`sklearn.model_selection.validation_curve`.
        scoring : str or callable, default=None
            See :func:`sklearn.model_selection.validation_curve`.
        n_jobs : int, default=None
            Workers of the cross-validation.
        fit_params : dict, default=None
            Parameters of `fit`, such as `X_unlabeled` or, in a pipeline, ``<step>__X_unlabeled``.
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a figure.

        Returns
        -------
        RegularizationPathDisplay
            The display.

        Raises
        ------
        ImportError
            If matplotlib is not installed.
        TypeError
            If the estimator is not one of this package.
        ValueError
            If its noise has no retain rate, or the arguments do not go together.
        """
        check_matplotlib_support(f"{cls.__name__}.from_estimator")
        estimator = getattr(estimator, "best_estimator_", estimator)
        model, prefix, _ = last_step(estimator)
        rates = np.asarray(retain_rates, dtype=float)
        if rates.ndim != 1 or not len(rates) or not ((rates > 0) & (rates <= 1)).all():
            raise ValueError(f"retain_rates must be in (0, 1], got {retain_rates!r}.")
        if kind not in ("auto", "coef", "score"):
            raise ValueError(f"kind must be 'coef', 'score' or 'auto'; got {kind!r}.")
        parameter = getattr(NOISE_MODELS.get(model.noise), "parameter", "retain_rate")
        if parameter != "retain_rate":
            raise ValueError(
                f"noise={model.noise!r} has no retain rate. Use scikit-learn's "
                f"ValidationCurveDisplay with param_name='{prefix}{parameter}'."
            )
        is_linear = isinstance(model, BaseMarginalizedGLM)
        if kind == "auto":
            kind = "coef" if is_linear and cv is None and scoring is None else "score"
        options: dict[str, Any] = {"param_name": f"{prefix}retain_rate", "param_range": rates}
        if kind == "coef":
            if not is_linear:
                raise ValueError(
                    f"{type(model).__name__} is a network, which has no coefficient for each "
                    "feature; use kind='score'."
                )
            coefs, names = _fit_path(estimator, X, y, **options, target=target, params=fit_params)
            feature_names = names if feature_names is None else feature_names
            display = cls(retain_rates=rates, coefs=coefs, feature_names=feature_names)
        else:
            train, test = validation_curve(
                estimator,
                X,
                y,
                **options,
                cv=cv,
                scoring=scoring,
                n_jobs=n_jobs,
                params=fit_params,
            )
            name = scoring if isinstance(scoring, str) else "score"
            name = name.replace("neg_", "negative ").replace("_", " ").capitalize()
            display = cls(
                retain_rates=rates, train_scores=train, test_scores=test, score_name=name
            )
        return display.plot(ax=ax, max_features=max_features)

    def plot(self, ax: Axes | None = None, *, max_features: int = 10, **line_kw: Any) -> Self:
        """Draw the path.

        Parameters
        ----------
        ax : matplotlib Axes, default=None
            Axes to draw on; None makes a figure.
        max_features : int, default=10
            How many coefficients to show: those that become largest.
        **line_kw : dict
            Passed on to matplotlib's `plot`.

        Returns
        -------
        RegularizationPathDisplay
            The display.
        """
        check_matplotlib_support(f"{type(self).__name__}.plot")
        import matplotlib.pyplot as plt

        if ax is None:
            _, ax = plt.subplots(layout="constrained")
        order = np.argsort(self.retain_rates)
        rates = np.asarray(self.retain_rates)[order]
        self.lines_ = []
        look: dict[str, Any]
        if self.coefs is not None:
            coefs = np.asarray(self.coefs)[order]
            names: Any = self.feature_names
            names = [f"x{j}" for j in range(coefs.shape[1])] if names is None else names
            shown = np.argsort(-np.abs(coefs).max(0), kind="stable")[:max_features]
            for rank, j in enumerate(shown):
                # The ten colours repeat with another line style.
                look = {"label": names[j], "linestyle": ["-", "--", ":", "-."][rank // 10 % 4]}
                self.lines_ += ax.plot(rates, coefs[:, j], **look | line_kw)
            ax.axhline(0, color="0.3", linewidth=0.8)
            ax.set_ylabel("Coefficient")
        else:
            curves = {"held-out rows": (self.test_scores, "C0", "-")}
            if self.train_scores is not None:
                curves["training rows"] = (self.train_scores, "C1", "--")
            for label, (scores, color, style) in curves.items():
                mean, std = np.asarray(scores)[order].mean(1), np.asarray(scores)[order].std(1)
                look = {"label": label, "color": color, "linestyle": style, "marker": "."}
                self.lines_ += ax.plot(rates, mean, **look | line_kw)
                shade = self.lines_[-1].get_color()
                ax.fill_between(rates, mean - std, mean + std, color=shade, alpha=0.2, linewidth=0)
            ax.set_ylabel(self.score_name)
        ax.set_xlabel("Retain rate")
        ax.legend(fontsize="small")
        self.ax_, self.figure_ = ax, ax.figure
        return self


def _fit_path(
    estimator: Any,
    X: MatrixLike,
    y: ArrayLike,
    param_name: str,
    param_range: NDArray[np.float64],
    target: Any,
    params: Mapping[str, Any] | None,
) -> tuple[NDArray[Any], ArrayLike]:
    coefs = []
    for rate in param_range:
        fitted = clone(estimator).set_params(**{param_name: rate})
        fitted.fit(X, y, **(params or {}))
        model, _, steps = last_step(fitted)
        coefs.append(np.atleast_2d(model._dense_coef())[row_of(model, target)])
    return np.array(coefs), names_of(model, steps)
