"""The estimator at the end of a pipeline or a search, and the data that reach it."""

from __future__ import annotations

from typing import Any

from sklearn.pipeline import Pipeline
from sklearn.utils.validation import check_is_fitted

from sklearn_margdrop.estimators.base import BaseMarginalizedEstimator
from sklearn_margdrop.training.batches import Host


def last_step(estimator: Any) -> tuple[BaseMarginalizedEstimator, str, list[Any]]:
    """The estimator of this package that a pipeline or a search ends in.

    Returns
    -------
    estimator : BaseMarginalizedEstimator
    prefix : str
        Prefix of the names of its parameters.
    steps : list of transformer
        What transforms the data before it, one for each pipeline.
    """
    prefix, given = "", estimator
    steps: list[Any] = []
    while not isinstance(estimator, BaseMarginalizedEstimator):
        if hasattr(estimator, "best_estimator_"):
            estimator = estimator.best_estimator_
        elif isinstance(estimator, Pipeline):
            if len(estimator) > 1:
                steps.append(estimator[:-1])
            name, estimator = estimator.steps[-1]
            prefix += f"{name}__"
        else:
            hint = ""
            if hasattr(estimator, "param_grid") or hasattr(estimator, "param_distributions"):
                hint = " Fit the search first (with refit=True)."
            raise TypeError(
                "estimator must be one of sklearn_margdrop's, or a pipeline or a fitted search "
                f"that ends in one; got {given!r}.{hint}"
            )
    return estimator, prefix, steps


def unwrap(estimator: Any, X: Any) -> tuple[BaseMarginalizedEstimator, Host]:
    """The fitted estimator, and `X` after the transformers before it."""
    estimator, _, steps = last_step(estimator)
    check_is_fitted(estimator)
    for step in steps:
        X = step.transform(X)
    X = estimator._check_rows(X)
    return estimator, X.tocsr() if hasattr(X, "tocsr") else X
