"""Layer-wise pretraining of the hidden layers by a transformer."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy import sparse
from sklearn.base import clone
from sklearn.neural_network import BernoulliRBM
from torch import nn

from sklearn_margdrop.estimators.validation import draw_seed
from sklearn_margdrop.networks import NoisyNetwork, Site
from sklearn_margdrop.notices import warn
from sklearn_margdrop.numerics.devices import to_tensor
from sklearn_margdrop.numerics.memory import blocks
from sklearn_margdrop.training.batches import Features, Host, Rows


def pretrain(
    template: Any, network: NoisyNetwork, rows: Rows, random_state: np.random.RandomState
) -> list[Any]:
    """Initialise hidden layers from clones of `template`, each fitted to what enters its layer.

    Parameters
    ----------
    template : transformer
        Fitted, it has `components_` of shape (width, n_inputs) and `intercept_hidden_` of shape
        (width,). Its `n_components` is set to the width of the layer, and a `random_state` of
        None is drawn from `random_state`.
    network : NoisyNetwork
        Its hidden layers are changed, one after the other; each passes its output on to the next.
    rows : Rows
        All of them are used, unlabelled ones included, without their weights.
    random_state : RandomState

    Returns
    -------
    list of transformer
        The fitted clone of each hidden layer.

    Raises
    ------
    ValueError
        If a fitted clone has no finite weights of the layer's shape.
    """
    parts = [rows.features.on_host(rows.index)]
    if rows.unlabeled is not None:
        parts.append(rows.unlabeled.on_host())
    data = _stack(parts)
    fitted = []
    *hidden, _ = network.linears
    for (before, site), linear in zip(pairwise(network.sites), hidden, strict=True):
        if before.number > 0:
            # A memory map keeps a dtype of its own, and is converted as it is taken.
            features = Features(data, linear.weight.device, False, dtype=rows.features.dtype)
            data = _output(before, features)
        transformer = _prepare(template, site.width, random_state)
        _check_range(transformer, data)
        _take_over(linear, transformer.fit(data, None))
        fitted.append(transformer)
    return fitted


def _prepare(template: Any, width: int, random_state: np.random.RandomState) -> Any:
    transformer = clone(template)
    parameters = transformer.get_params()
    seeds = {
        name: draw_seed(random_state)
        for name in sorted(parameters)
        if name.split("__")[-1] == "random_state" and parameters[name] is None
    }
    widths = {"n_components": width} if "n_components" in parameters else {}
    transformer.set_params(**seeds, **widths)
    return transformer


def _stack(parts: Sequence[Host]) -> Host:
    if len(parts) == 1:
        return parts[0]
    if all(map(sparse.issparse, parts)):
        return sparse.vstack(parts, format="csr")
    return np.concatenate([p if isinstance(p, np.ndarray) else p.toarray() for p in parts])


def _check_range(transformer: Any, data: Host) -> None:
    rounding = 1e-6  # that of MinMaxScaler, say
    outside = data.min() < -rounding or data.max() > 1 + rounding
    if isinstance(transformer, BernoulliRBM) and outside:
        warn(
            "BernoulliRBM takes its inputs for probabilities, but these lie outside of [0, 1]. "
            "Scale the features (MinMaxScaler), and use activation='logistic' where there are "
            "several hidden layers.",
        )


def _take_over(linear: nn.Linear, transformer: Any) -> None:
    name = type(transformer).__name__
    parameters = {"components_": linear.weight, "intercept_hidden_": linear.bias}
    for attribute, parameter in parameters.items():
        if not hasattr(transformer, attribute):
            raise ValueError(
                f"pretrainer must have {attribute!r} once fitted, like "
                f"sklearn.neural_network.BernoulliRBM; {name} has not."
            )
        values = np.asarray(getattr(transformer, attribute), dtype=np.float64)
        if values.shape != tuple(parameter.shape):
            raise ValueError(
                f"pretrainer: {attribute!r} of {name} has the shape {values.shape}, but the "
                f"hidden layer needs {tuple(parameter.shape)}. Change hidden_layer_sizes, or pass "
                "a transformer with the parameter n_components."
            )
        if not np.isfinite(values).all():
            raise ValueError(
                f"pretrainer: {attribute!r} of {name} is not finite. Lower its learning_rate, or "
                "scale the features."
            )
        with torch.no_grad():
            parameter.copy_(to_tensor(values, torch.device("cpu")))


@torch.no_grad()
def _output(site: Site, features: Features) -> np.ndarray:
    """The output of the hidden layer before `site`, in blocks of bounded memory."""
    layer = nn.Sequential(*site.layers)
    cut = blocks(len(features), max(features.shape[1], site.width))
    return np.concatenate([layer(features.take(b)).cpu().numpy() for b in cut])
