"""The door from scikit-learn's world to torch's: parameters, data, seeds, devices.

Everything that can be wrong is found here, before any training starts.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from numbers import Integral, Real
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import ArrayLike, DTypeLike
from scipy import sparse
from sklearn.exceptions import DataConversionWarning
from sklearn.utils import assert_all_finite, check_array, check_random_state, check_X_y
from sklearn.utils.validation import validate_data

from sklearn_margdrop.estimators.sklearn_private import (
    check_n_features,
    check_sample_weight,
    get_feature_names,
)
from sklearn_margdrop.noise import NOISE_MODELS, Noise
from sklearn_margdrop.notices import warn
from sklearn_margdrop.numerics.devices import to_tensor
from sklearn_margdrop.numerics.memory import blocks, is_mapped
from sklearn_margdrop.numerics.sparse import has_duplicates
from sklearn_margdrop.training.batches import Features, Host, Rows

_PLACEMENTS = ("both", "input", "hidden", "none")

#: What each parameter that sets the strength of the noise may be. The variances have to be
#: float32 numbers.
_STRENGTHS: dict[str, tuple[Callable[[float], bool], str]] = {
    "retain_rate": (lambda q: 1e-30 < q <= 1, "in (0, 1], or 'auto' for all sites"),
    "noise_std": (lambda std: 0 <= std < 1e18, "at least 0 and finite"),
}

#: Above this, the weighted gradients of a stream could overflow in float32.
MOST_FLOAT32_WEIGHT = 1e16

F = TypeVar("F", bound=Callable[..., Any])


def typed(decorator: Callable[..., Any]) -> Callable[[F], F]:
    """A decorator of scikit-learn's, which has no types, as one that keeps the function's."""
    return decorator


def draw_seed(random_state: np.random.RandomState) -> int:
    """A seed for torch's generators drawn from a RandomState."""
    return int(random_state.randint(np.iinfo(np.int32).max))


def fresh_random_state(
    random_state: int | np.random.RandomState | None,
) -> np.random.RandomState:
    """A RandomState of its own, in the state of `random_state`.

    None is a seed from the operating system. (scikit-learn takes numpy's global state for it,
    which would then be changed by a fit.)
    """
    if random_state is None:
        return np.random.RandomState(np.random.SeedSequence().generate_state(4))
    state: np.random.RandomState = copy.deepcopy(check_random_state(random_state))
    return state


def check_hidden_layer_sizes(hidden_layer_sizes: ArrayLike) -> tuple[int, ...]:
    """A tuple of widths from an integer or an array-like of integers."""
    sizes = tuple(np.atleast_1d(hidden_layer_sizes).tolist())
    if not all(_is_integer(size) and size > 0 for size in sizes):
        raise ValueError(
            "hidden_layer_sizes must be a positive integer or a sequence of positive integers, "
            f"() for none; got {hidden_layer_sizes!r}."
        )
    return tuple(int(size) for size in sizes)


def check_sites(noise_placement: str | Sequence[int], n_hidden: int) -> tuple[int, ...]:
    """The noisy sites: 0 is the input, l the output of hidden layer l."""
    if isinstance(noise_placement, str):
        if noise_placement not in _PLACEMENTS:
            raise ValueError(
                f"noise_placement must be one of {_PLACEMENTS} or a sequence of sites; "
                f"got {noise_placement!r}."
            )
        if noise_placement == "hidden" and n_hidden == 0:
            raise ValueError(
                "noise_placement='hidden' needs a hidden layer; with hidden_layer_sizes=() use "
                "'input', 'both' or 'none'."
            )
        hidden = range(1, n_hidden + 1)
        placements = {"none": (), "input": (0,), "hidden": (*hidden,), "both": (0, *hidden)}
        return placements[noise_placement]
    sites = tuple(np.atleast_1d(noise_placement).tolist())
    if not all(_is_integer(site) and 0 <= site <= n_hidden for site in sites):
        raise ValueError(
            f"noise_placement={noise_placement!r} names a site that does not exist: with "
            f"{n_hidden} hidden layer(s) the sites are the integers {list(range(n_hidden + 1))} "
            f"(0 is the input, l the output of hidden layer l), or say one of {_PLACEMENTS}."
        )
    if len(set(sites)) < len(sites):
        raise ValueError(f"noise_placement={noise_placement!r} names a site twice.")
    return tuple(int(site) for site in sites)


def check_noise(
    noise: str, sites: Sequence[int], strengths: Mapping[str, object]
) -> dict[int, Noise]:
    """The noise model at each of `sites`.

    Parameters
    ----------
    noise : str
        The name of a noise model.
    sites : sequence of int
    strengths : mapping of str to (float or sequence of float)
        The estimator's noise parameters. The model reads the one that it names; a sequence
        gives one value per site, in the order of `sites`.
    """
    if not isinstance(noise, str) or noise not in NOISE_MODELS:
        raise ValueError(f"noise must be one of {sorted(NOISE_MODELS)}; got {noise!r}.")
    model = NOISE_MODELS[noise]
    parameter = model.parameter
    values: Any = strengths[parameter]
    given = np.array(values, dtype=object)
    values = [given.item()] * len(sites) if given.ndim == 0 else given.tolist()
    if len(values) != len(sites):
        raise ValueError(
            f"{parameter} has {len(values)} values for {len(sites)} noisy sites {list(sites)}; "
            "give a number, or one value per noisy site."
        )
    is_valid, allowed = _STRENGTHS[parameter]
    if not all(_is_number(value) and is_valid(value) for value in values):
        raise ValueError(f"{parameter} must be {allowed}; got {values!r}.")
    return {site: model(value) for site, value in zip(sites, values, strict=True)}


def as_vector(y: Any) -> Any:
    """`y` itself, or a vector if it is a matrix of one column, which warns."""
    if np.ndim(y) != 2 or np.shape(y)[1] != 1 or sparse.issparse(y):
        return y
    warn(  # in scikit-learn's words, which filters may name
        "A column-vector y was passed when a 1d array was expected. Please change the shape of y "
        "to (n_samples, ), for example using ravel().",
        DataConversionWarning,
    )
    return np.ravel(y)


def validated(
    estimator: Any,
    X: Any,
    dtype: Any,
    y: Any = "no_validation",
    kinds: str | list[str] = "csr",
    **checks: Any,
) -> Any:
    """What scikit-learn's `validate_data` returns; a whole file is not copied for it.

    What is mapped into memory keeps its dtype and order, and is looked at block by block.
    """
    mapped = is_mapped(X)
    checks |= {"dtype": "numeric" if mapped else dtype, "order": None if mapped else "C"}
    checks |= {"accept_sparse": kinds, "ensure_all_finite": not mapped}
    if not checks["reset"] and _lacks_names(estimator, X):
        del checks["reset"]
        found = (
            check_array(X, estimator=estimator, input_name="X", **checks)
            if isinstance(y, str)
            else check_X_y(X, y, estimator=estimator, **checks)
        )
        check_n_features(estimator, X, reset=False)
    else:
        found = validate_data(estimator, X, y, **checks)
    if mapped:
        rows = found if isinstance(found, np.ndarray) else found[0]
        name = type(estimator).__name__
        for block in blocks(*rows.shape):
            assert_all_finite(rows[block], estimator_name=name, input_name="X")
    return found


def features_of(X: Host, device: torch.device, dtype: DTypeLike, keep_sparse: bool) -> Features:
    """The rows of `X`, checked, in which no entry of a sparse matrix is stored twice."""
    if not isinstance(X, np.ndarray) and has_duplicates(X):
        X = X.copy()
        X.sum_duplicates()
    return Features(X, device, keep_sparse=keep_sparse, dtype=dtype)


def subset(
    features: Features, y: np.ndarray, weight: np.ndarray, index: np.ndarray, incremental: bool
) -> Rows:
    """Some of the rows, with weights whose mean is one, unless they are a chunk of a stream."""
    weight = weight[index]
    if not incremental:
        # Only the ratios of the weights matter; a chunk of a stream cannot know their mean.
        weight = weight / weight.mean()
    elif features.dtype == np.float32 and weight.max() > MOST_FLOAT32_WEIGHT:
        raise ValueError(
            "sample_weight is too large for float32 data. Divide it by its typical size, the "
            "same in every call to partial_fit."
        )
    unit = np.all(weight == 1)
    device = features.device
    everything = len(index) == len(features)
    return Rows(
        features,
        to_tensor(y[index], device),
        None if unit else to_tensor(weight.astype(features.dtype), device),
        index=None if everything else torch.from_numpy(index),
    )


def unlike_labelled(error: ValueError) -> ValueError:
    """The error about unlabelled rows that scikit-learn refuses."""
    return ValueError(
        f"X_unlabeled is not like X: {error}\nRows that the steps of a pipeline are to transform "
        "first have to be named: Pipeline(..., transform_input=['X_unlabeled']), with metadata "
        "routing."
    )


def _lacks_names(estimator: Any, X: Any) -> bool:
    """Whether the features have names in one of the fit and `X` alone, which warns.

    scikit-learn's own warning, in its words, would point at a line of scikit-learn.
    """
    fitted = getattr(estimator, "feature_names_in_", None) is not None
    given = get_feature_names(X) is not None
    name = type(estimator).__name__
    if given and not fitted:
        warn(f"X has feature names, but {name} was fitted without feature names")
    if fitted and not given:
        warn(f"X does not have valid feature names, but {name} was fitted with feature names")
    return fitted != given


def check_range(X: Any, name: str, dtype: DTypeLike, small: bool = True) -> None:
    """Raise where squares of the data, which penalties are made of, are no numbers of the dtype.

    `small` says whether that goes for data of tiny units as well. A thousandth of what can be
    held leaves room for sums and factors.
    """
    largest = largest_magnitude(X)
    limits = np.finfo(np.dtype(dtype))
    low, high = 1e3 * float(limits.tiny) ** 0.5, 1e-3 * float(limits.max) ** 0.5
    if largest > high or (small and 0 < largest < low):
        other = " or pass float64" if limits.dtype == np.float32 else ""
        raise ValueError(
            f"{name} has values of up to {largest:.3g}, whose squares are too "
            f"{'large' if largest > 1 else 'small'} for {limits.dtype}: they should be of between "
            f"{low:.2g} and {high:.2g}. Scale {'the features' if name != 'y' else 'y'} "
            f"(StandardScaler, MaxAbsScaler){other}."
        )


def largest_magnitude(X: Any) -> float:
    """Of the features; zero where there are none."""
    values = X.data if hasattr(X, "tocsr") else X
    return max(float(values.max()), -float(values.min())) if values.size else 0.0


def check_magnitudes(parameters: Mapping[str, Any], dtype: DTypeLike) -> None:
    """Raise where a parameter is no number of the dtype of the data."""
    largest = float(np.finfo(np.dtype(dtype)).max)
    for name in ("alpha", "learning_rate_init", "unlabeled_discount"):
        value = parameters.get(name)
        if isinstance(value, Real) and float(value) > largest:
            raise ValueError(
                f"{name}={value:g} is too large for {np.dtype(dtype)} data, whose numbers go up "
                f"to {largest:.2g}: lower it."
            )


def check_finite(values: torch.Tensor, what: str = "Predictions") -> torch.Tensor:
    """`values` themselves; raises where they are not finite."""
    if not values.isfinite().all():
        dtype = str(values.dtype).removeprefix("torch.")
        raise ValueError(
            f"{what} overflow {dtype}. X is far outside of the range that the model was "
            "fitted on, or the fit ended badly: scale the features (StandardScaler, "
            "MaxAbsScaler), increase alpha, lower learning_rate_init or weaken the noise, and fit "
            "anew."
        )
    return values


def check_weights(
    sample_weight: ArrayLike | None, X: Any, allow_zeros: bool = False
) -> np.ndarray:
    """Non-negative float64 weights of shape (n_samples,), ones for None; not all may be zero."""
    weight: np.ndarray = check_sample_weight(
        sample_weight,
        X,
        dtype=np.float64,
        ensure_non_negative=True,
        allow_all_zero_weights=allow_zeros,
    )
    if not np.isfinite(float(weight.max()) * len(weight)):
        raise ValueError("sample_weight is too large: its sum overflows. Divide it by its mean.")
    return weight


def _is_integer(value: object) -> bool:
    return isinstance(value, Integral) and _is_number(value)


def _is_number(value: object) -> bool:
    return isinstance(value, Real) and not isinstance(value, (bool, np.bool_))
