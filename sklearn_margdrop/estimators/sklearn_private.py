"""What scikit-learn keeps private and the package needs, for the whole package.

It is what scikit-learn's own estimators check parameters and data by. There is nothing public in
its place, and its messages are those that users know; a release that moves it needs a change here.
What falls back where it is gone are the functions below.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from sklearn.base import _fit_context
from sklearn.utils import _safe_indexing as safe_indexing
from sklearn.utils._optional_dependencies import check_matplotlib_support
from sklearn.utils._param_validation import HasMethods, Hidden, Interval, Options, StrOptions
from sklearn.utils.validation import _check_n_features as check_n_features
from sklearn.utils.validation import _check_sample_weight as check_sample_weight
from sklearn.utils.validation import _get_feature_names as get_feature_names

F = TypeVar("F", bound=Callable[..., Any])


def checks_parameters(skip_nested: bool) -> Callable[[F], F]:
    """Decorates `fit`: checks the parameters, and those of estimators in it unless skipped."""
    decorator: Callable[[F], F] = _fit_context(prefer_skip_nested_validation=skip_nested)
    return decorator


def has_callbacks(task: Any) -> bool:
    """Whether scikit-learn's callbacks watch a task; also true where the task does not tell."""
    return bool(getattr(task, "_callbacks", True))


def shown_after(params: Any, html: str) -> Any:
    """An estimator's parameters, whose table has `html` before it where that is known to work."""
    show = getattr(params, "_html_repr", None)
    if show is not None:
        params._html_repr = lambda: html + show()
    return params
