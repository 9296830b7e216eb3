"""Saving: a net as plain values and arrays, which any machine and secure loaders can read."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from skorch import NeuralNet
from skorch.exceptions import DeviceWarning
from torch import Tensor

from sklearn_margdrop.notices import warn
from sklearn_margdrop.numerics.ambient import neutral
from sklearn_margdrop.numerics.devices import check_device, to_array

#: Attributes that `initialize` makes anew. What the torch objects have learned is kept apart.
_REBUILT = {
    "callbacks_",
    "criterion_",
    "cuda_dependent_attributes_",
    "engine_",
    "generator_",
    "init_context_",
    "initialized_",
    "module_",
    "optimizer_",
    "order_generator_",
    "prefixes_",
    "virtual_params_",
}

_DTYPES = {"float32": torch.float32, "float64": torch.float64}


def net_state(net: NeuralNet) -> dict[str, Any]:
    """All that it takes to build `net` anew, without any torch object.

    Parameters
    ----------
    net : MarginalizedNet
        The net.

    Returns
    -------
    dict
        "parameters" of the constructor, as far as they are not the defaults, and of an
        initialised net "fitted" (its attributes), "callbacks", and the arrays of "weights",
        "optimizer", "noise" and "order" (the states of the random streams).

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_margdrop import MarginalizedDropoutGLMClassifier
    >>> from sklearn_margdrop.training.state import net_state
    >>> clf = MarginalizedDropoutGLMClassifier().fit(*load_iris(return_X_y=True))
    >>> net_state(clf.net_)["weights"]["layers.0.weight"].shape
    (3, 4)
    """
    defaults = _defaults(net)
    parameters = {
        name: value
        for name, value in net.get_params(deep=False).items()
        if name not in defaults or value != defaults[name]
    }
    if "module__dtype" in parameters:
        parameters["module__dtype"] = str(parameters["module__dtype"]).removeprefix("torch.")
    if isinstance(parameters.get("callbacks"), list):
        parameters["callbacks"] = _at_rest(parameters["callbacks"])
    if not net.initialized_:
        return {"parameters": parameters}
    return {
        "parameters": parameters,
        "fitted": fitted_attributes(net),
        "callbacks": _at_rest(net.callbacks_),
        "weights": _convert(dict(net.module_.state_dict()), Tensor, to_array),
        "optimizer": _convert(net.optimizer_.state_dict(), Tensor, to_array),
        "noise": to_array(net.generator_.get_state()),
        "order": to_array(net.order_generator_.get_state()),
    }


@neutral()
def restore_net(net: NeuralNet, state: dict[str, Any]) -> None:
    """Make `net` what it was when `state` was taken: on its device if there is one, or the CPU.

    Parameters
    ----------
    net : MarginalizedNet
        Any net of the class.
    state : dict
        What :func:`net_state` returned, or skorch's state of a net in a pickle of before.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_margdrop import MarginalizedDropoutGLMClassifier
    >>> from sklearn_margdrop.training.state import net_state, restore_net
    >>> X, y = load_iris(return_X_y=True)
    >>> net = MarginalizedDropoutGLMClassifier().fit(X, y).net_
    >>> copy = type(net).__new__(type(net))
    >>> restore_net(copy, net_state(net))
    >>> bool((copy.predict(X) == net.predict(X)).all())
    True
    """
    if "parameters" not in state:
        _restore_from_skorch(net, state)
        return
    parameters = dict(state["parameters"])
    callbacks = parameters.pop("callbacks", None)
    if "module__dtype" in parameters:
        parameters["module__dtype"] = _DTYPES[parameters["module__dtype"]]
    saved_on = torch.device(parameters.get("device", "cpu"))
    device = _available(saved_on)
    # The callbacks are as the training left them, not to be initialised again.
    net.__init__(**parameters | {"device": str(device), "callbacks": "disable"})
    if "weights" in state:
        net.initialize()
        vars(net).update(state["fitted"], callbacks_=state["callbacks"])
        net.module_.load_state_dict(_convert(state["weights"], np.ndarray, _to_tensor))
        net.optimizer_.load_state_dict(_convert(state["optimizer"], np.ndarray, _to_tensor))
        net.order_generator_.set_state(_to_tensor(state["order"]))
        # The streams of two kinds of device have nothing in common: start afresh there.
        if device.type == saved_on.type:
            net.generator_.set_state(_to_tensor(state["noise"]))
    net.callbacks = callbacks


def fitted_attributes(net: NeuralNet) -> dict[str, Any]:
    """What the training has left in attributes of `net` itself."""
    fitted = {name: value for name, value in vars(net).items() if name.endswith("_")}
    return {name: value for name, value in fitted.items() if name not in _REBUILT}


def _restore_from_skorch(net: NeuralNet, state: dict[str, Any]) -> None:
    """The same from what the first pickles of version 0.1.0 hold: skorch's state of a net."""
    saved_on = torch.device(state["device"])
    NeuralNet.__setstate__(net, _defaults(net) | state)
    if net.initialized_:
        generator = torch.Generator(net.device).manual_seed(net.seed)
        if generator.device.type == saved_on.type:
            generator.set_state(net.generator_)
        net.generator_ = generator


def _at_rest(callbacks: list[Any]) -> list[Any]:
    """Callbacks, named or not, without schedulers: these hold the optimiser and are made anew."""

    def rest(callback: Any) -> Any:
        if isinstance(callback, tuple):
            return (callback[0], rest(callback[1]))
        if getattr(callback, "lr_scheduler_", None) is not None:
            callback = copy.copy(callback)
            callback.lr_scheduler_ = None
        return callback

    return [rest(each) for each in callbacks]


def _defaults(net: NeuralNet) -> dict[str, Any]:
    """The parameters of the net's constructor that have a default."""
    signatures = [inspect.signature(cls).parameters for cls in (NeuralNet, type(net))]
    every = {name: each.default for part in signatures for name, each in part.items()}
    return {name: value for name, value in every.items() if value is not inspect.Parameter.empty}


def _available(device: torch.device) -> torch.device:
    try:
        return check_device(device)
    except ValueError:
        warn(
            f"The model was saved on the device {str(device)!r}, which is not available here; it "
            "is loaded to the CPU.",
            DeviceWarning,
        )
        return torch.device("cpu")


def _convert(value: Any, kind: type, function: Callable[[Any], object]) -> Any:
    """The same nested dicts and lists with `function` applied to all that is of this `kind`."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, dict):
        return {key: _convert(each, kind, function) for key, each in value.items()}
    if isinstance(value, list):
        return [_convert(each, kind, function) for each in value]
    return value


def _to_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))  # a copy, as a loader may map it read-only
