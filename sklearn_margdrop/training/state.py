"""The state of a net, for pickles, checkpoints and warm starts."""

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

#: The objects of a net that hold only plain values and tensors.
_HELD = ("record_", "rates_", "guard_")

#: Attributes that `initialize` creates anew. What they have learned is stored separately.
_REBUILT = {
    *_HELD,
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


def learned_state(net: Any) -> dict[str, Any]:
    """What a net has learned: its own tensors, not copies.

    Parameters
    ----------
    net : MarginalizedNet
        An initialised net.

    Returns
    -------
    dict
        "fitted" (attributes of the net itself), "held" (those of its objects), "weights",
        "optimizer", "noise" and "order" (the states of the random streams), and the kind of
        "device" that the noise is drawn on.
    """
    fitted = {name: value for name, value in vars(net).items() if name.endswith("_")}
    return {
        "fitted": {name: value for name, value in fitted.items() if name not in _REBUILT},
        "held": {name: dict(vars(getattr(net, name))) for name in _HELD},
        "weights": dict(net.module_.state_dict()),
        "optimizer": net.optimizer_.state_dict(),
        "noise": net.generator_.get_state(),
        "order": net.order_generator_.get_state(),
        "device": torch.device(net.device).type,
    }


def load_learned_state(net: Any, state: dict[str, Any]) -> None:
    """Set the :func:`learned_state` of an initialised net with the same layers."""
    vars(net).update(state["fitted"])
    for name, values in state["held"].items():
        vars(getattr(net, name)).update(values)
    net.module_.load_state_dict(state["weights"])
    net.optimizer_.load_state_dict(state["optimizer"])
    net.order_generator_.set_state(state["order"])
    # The streams of two kinds of device have nothing in common: start afresh there.
    if net.generator_.device.type == state["device"]:
        net.generator_.set_state(state["noise"])


def transferable_state(net: Any, previous: Any) -> dict[str, Any]:
    """A copy of the :func:`learned_state` of `previous`, as far as `net` can continue from it.

    Both have the same layers; their optimisers, and the centres of layers, may differ. Record and
    rates have rules of their own.
    """
    own, state = learned_state(net), learned_state(previous)
    # Centres come and go with the activation function.
    common = {name: w for name, w in state["weights"].items() if name in own["weights"]}
    optimizer = own["optimizer"]
    if type(net.optimizer_) is type(previous.optimizer_):
        optimizer |= {"state": copy.deepcopy(state["optimizer"]["state"])}
    weights = own["weights"] | common
    return {**state, "fitted": {}, "held": {}, "weights": weights, "optimizer": optimizer}


def net_state(net: NeuralNet) -> dict[str, Any]:
    """Everything needed to build `net` anew, without any torch object.

    Parameters
    ----------
    net : MarginalizedNet
        The net.

    Returns
    -------
    dict
        "parameters" of the constructor, as far as they are not the defaults, and of an
        initialised net its "callbacks" and its :func:`learned_state`, with arrays for tensors.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn_margdrop import MarginalizedDropoutGLMClassifier
    >>> from sklearn_margdrop.training.state import net_state
    >>> clf = MarginalizedDropoutGLMClassifier().fit(*load_iris(return_X_y=True))
    >>> net_state(clf.net_)["learned"]["weights"]["layers.0.weight"].shape
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
        "callbacks": _at_rest(net.callbacks_),
        "learned": _converted(learned_state(net), Tensor, to_array),
    }


@neutral()
def restore_net(net: NeuralNet, state: dict[str, Any]) -> None:
    """Restore `net` from its state, on its device if that is available, otherwise on the CPU.

    Parameters
    ----------
    net : MarginalizedNet
        Any net of the class.
    state : dict
        What :func:`net_state` returned.

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
    parameters = dict(state["parameters"])
    callbacks = parameters.pop("callbacks", None)
    if "module__dtype" in parameters:
        parameters["module__dtype"] = getattr(torch, parameters["module__dtype"])
    device = _available(torch.device(parameters.get("device", "cpu")))
    # The callbacks are as the training left them, not to be initialised again.
    net.__init__(**parameters | {"device": str(device), "callbacks": "disable"})
    if "learned" in state:
        net.initialize()
        net.callbacks_ = state["callbacks"]
        load_learned_state(net, _converted(state["learned"], np.ndarray, _to_tensor))
    net.callbacks = callbacks


def _at_rest(callbacks: list[Any]) -> list[Any]:
    """Callbacks, named or not, without their schedulers, which hold the optimiser."""

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
    nets = [cls for cls in reversed(type(net).__mro__) if issubclass(cls, NeuralNet)]
    signatures = [inspect.signature(cls).parameters for cls in nets]
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


def _converted(
    state: dict[str, Any], kind: type, function: Callable[[Any], object]
) -> dict[str, Any]:
    """A :func:`learned_state` in other arrays; attributes of the net stay what they are."""
    return {
        name: value if name == "fitted" else _convert(value, kind, function)
        for name, value in state.items()
    }


def _convert(value: Any, kind: type, function: Callable[[Any], object]) -> Any:
    """The same nested dicts and lists with `function` applied to each value of this `kind`."""
    if isinstance(value, kind):
        return function(value)
    if isinstance(value, dict):
        return {key: _convert(each, kind, function) for key, each in value.items()}
    if type(value) is list:  # a history, which is a list as well, holds plain values
        return [_convert(each, kind, function) for each in value]
    return value


def _to_tensor(array: np.ndarray) -> Tensor:
    return torch.from_numpy(np.array(array))  # a copy, as a loader may map it read-only
