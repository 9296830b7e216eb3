"""The penalty of a fitted model on data: by row, and by noisy site and unit."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import torch
from numpy.typing import NDArray

from sklearn_margdrop.estimators.base import BaseMarginalizedEstimator
from sklearn_margdrop.estimators.validation import check_finite
from sklearn_margdrop.inspection.unwrap import unwrap
from sklearn_margdrop.methods import METHODS
from sklearn_margdrop.networks import NoisyNetwork, Trace
from sklearn_margdrop.numerics.ambient import neutral
from sklearn_margdrop.numerics.csr import MatrixLike
from sklearn_margdrop.numerics.memory import blocks
from sklearn_margdrop.penalties import parts
from sklearn_margdrop.training.batches import Features, Host

#: R of shape (n_samples,) of a trace and a family.
Penalty: TypeAlias = Callable[..., torch.Tensor]


@neutral()
@torch.no_grad()
def penalty_per_sample(
    estimator: Any, X: MatrixLike, *, method: str | None = None
) -> NDArray[Any]:
    """The noise penalty R of each row: where the model is sensitive to noise.

    R is what noise adds to the loss of a row on average. It needs no label: it is large where the
    model is uncertain and its linear predictor changes with what is noised. It is a part of the
    objective: for a regressor of ``family="normal"`` in the units of its standardised target.

    Parameters
    ----------
    estimator : estimator
        A fitted estimator of this package, or a fitted pipeline or search that ends in one. The
        noise is that of its fit.
    X : {array-like, sparse matrix} of shape (n_samples, n_features)
        Data, as for `predict`.
    method : {"diagonal", "moments", "quadratic"} for networks, {"moments", "quadratic"} for \
generalised linear models, default=None
        How the expectation over the noise is evaluated, without random signs. `"moments"` pushes
        variances through hidden layers as `"diagonal"` does, without cross terms. None is the
        estimator's own method, and `"quadratic"`, its second order, where that is `"sampling"`.

    Returns
    -------
    ndarray of shape (n_samples,)
        Penalties in nats per sample, at least 0; 0 without noise.

    Raises
    ------
    NotFittedError
        If the estimator is not fitted.
    TypeError
        If it is not one of this package.
    ValueError
        If `method` is not one that it can have, or `X` is not like the data of its fit.

    See Also
    --------
    effective_penalty : The mean of it, by noisy site and unit.

    References
    ----------
    "Regularization from marginalized noise in deep nets", Eqs. 8 and 9 (quadratic, diagonal);
    S. Wager, S. Wang, P. Liang, "Dropout training as adaptive regularization", NIPS 2013, Eq. 1
    (moments).

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_margdrop import MarginalizedDropoutClassifier
    >>> from sklearn_margdrop.inspection import penalty_per_sample
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MarginalizedDropoutClassifier(retain_rate=0.5, random_state=0).fit(X, y)
    >>> R = penalty_per_sample(clf, X)
    >>> R.shape, bool(R[y > 0].mean() > R[y == 0].mean())  # the last two overlap
    ((150,), True)
    """
    model, rows = unwrap(estimator, X)
    (penalty, _), family = _penalties(model, method), model._target.family
    network = model._fitted_network()
    found = [penalty(t, family) for t in _traces(model, rows, network, model._keeps_sparse)]
    return check_finite(torch.cat(found), "Penalties").cpu().numpy()


@neutral()
@torch.no_grad()
def effective_penalty(
    estimator: Any, X: MatrixLike, *, method: str | None = None
) -> dict[int, NDArray[Any]]:
    """The mean noise penalty, split by the site where the noise enters and by unit.

    To second order the penalty is a sum over noisy units. With `"moments"`, which is not, each
    row's penalty is divided in proportion to its second-order parts (those of `"diagonal"`, for a
    network); that is the exact division of a penalty that depends on the variance of a single
    linear predictor alone.

    Parameters
    ----------
    estimator : estimator
        A fitted estimator of this package, or a fitted pipeline or search that ends in one. The
        noise is that of its fit.
    X : {array-like, sparse matrix} of shape (n_samples, n_features)
        Data, as for `predict`. Sparse rows are made dense in blocks of bounded memory.
    method : {"diagonal", "moments", "quadratic"} for networks, {"moments", "quadratic"} for \
generalised linear models, default=None
        How the expectation over the noise is evaluated, without random signs. `"moments"` pushes
        variances through hidden layers as `"diagonal"` does, without cross terms. None is the
        estimator's own method, and `"quadratic"`, its second order, where that is `"sampling"`.

    Returns
    -------
    dict of int to ndarray of shape (width,)
        For each noisy site (0 is the input, l the output of hidden layer l) the part of each of
        its units (features, at the input), in nats per sample. All of them add up to the mean of
        :func:`penalty_per_sample`.

    Raises
    ------
    NotFittedError
        If the estimator is not fitted.
    TypeError
        If it is not one of this package.
    ValueError
        If `method` is not one that it can have, or `X` is not like the data of its fit.

    See Also
    --------
    penalty_per_sample : The penalty of each row.

    References
    ----------
    "Regularization from marginalized noise in deep nets", Eqs. 8 and 9; S. Wager, S. Wang,
    P. Liang, "Dropout training as adaptive regularization", NIPS 2013.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_margdrop import MarginalizedDropoutClassifier
    >>> from sklearn_margdrop.inspection import effective_penalty
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = MarginalizedDropoutClassifier(retain_rate=0.5, random_state=0).fit(X, y)
    >>> parts = effective_penalty(clf, X)
    >>> {site: values.shape for site, values in parts.items()}
    {0: (4,), 1: (256,)}
    """
    model, rows = unwrap(estimator, X)
    (penalty, second_order), family = _penalties(model, method), model._target.family
    network = model._fitted_network()
    totals: dict[int, torch.Tensor] = {}
    n_rows = rows.shape[0]
    for each in _traces(model, rows, network, keep_sparse=False):
        weight = torch.full_like(each.eta[:, 0], 1 / n_rows)
        if penalty is not second_order:
            divided, few = penalty(each, family), torch.finfo(weight.dtype).tiny ** 0.5
            # Where the curvature vanishes beside the penalty, divide as for flat predictions.
            vanishes = second_order(each, family) < few
            each = each._replace(eta=each.eta.masked_fill(vanishes.unsqueeze(-1), 0))
            value = second_order(each, family)
            weight = weight * torch.where(value > few, divided / value, 0.0)
        found = parts(each, family, weight, second_order)
        for site, _, _, position, _ in network.sites:
            if (part := found[position]) is not None:
                totals[site] = totals[site] + part if site in totals else part
    return {site: check_finite(total, "Penalties").cpu().numpy() for site, total in totals.items()}


def _penalties(estimator: BaseMarginalizedEstimator, name: str | None) -> tuple[Penalty, Penalty]:
    """The penalty of a method, or its second order if it draws the noise, and its second order."""
    (options,) = estimator._parameter_constraints["method"]
    allowed = sorted(each for each in options.options if not METHODS[each].is_sampled)
    name, known = (estimator.method, options.options) if name is None else (name, allowed)
    if name not in known:
        raise ValueError(
            f"method of {type(estimator).__name__} must be one of {allowed}; got {name!r}."
        )
    method = METHODS[name]
    return method.penalty or method.second_order, method.second_order


def _traces(
    estimator: BaseMarginalizedEstimator, X: Host, network: NoisyNetwork, keep_sparse: bool
) -> Iterator[Trace]:
    """Traces of blocks of rows, of bounded memory whatever the method."""
    device = network.linears[0].weight.device
    dtype = estimator._dtype()
    features = Features(X, device, resident=False, keep_sparse=keep_sparse, dtype=dtype)
    *hidden, output = network.linears
    width = network.widest * (output.out_features if hidden else 1)
    for block in blocks(len(features), width):
        yield network.trace(features.take(block))
