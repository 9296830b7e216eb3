"""Export: a fitted model as an ONNX graph, for runtimes that know neither torch nor Python.

A graph has an affine node for each linear layer and one node for each activation function. It
needs `onnx` alone; whole pipelines go through `skl2onnx`, see
:func:`~sklearn_margdrop.export.converters.register_onnx_converters`.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from os import PathLike
from types import ModuleType
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import DTypeLike
from torch import nn

from sklearn_margdrop.families import Bernoulli, Family, Normal, Poisson
from sklearn_margdrop.training.files import write_file

#: The ONNX operator of an activation function, and of the mean of a family of numbers. Others
#: can be added, if they are one operator without attributes.
OPERATORS: dict[type[nn.Module] | type[Family], str] = {
    nn.Identity: "Identity",
    nn.ReLU: "Relu",
    nn.Sigmoid: "Sigmoid",
    nn.Tanh: "Tanh",
    Normal: "Identity",
    Poisson: "Exp",
}

#: Old enough for runtimes that are a few years old. The operators have not changed since.
_OPSET, _IR_VERSION = 17, 8

#: Weights (fan_in, fan_out), intercepts and activation functions of a network.
Layers: TypeAlias = tuple[Sequence[np.ndarray], Sequence[np.ndarray], Sequence[nn.Module]]


class Fitted(NamedTuple):
    """The parts of a fitted estimator that a graph needs.

    Attributes
    ----------
    weights : list of ndarray of shape (fan_in, fan_out)
        Of each linear layer.
    intercepts : list of ndarray of shape (fan_out,)
    activations : list of torch.nn.Module
        One between each two linear layers.
    family : Family
    classes : ndarray of shape (n_classes,) or None
        The labels, if the target is one.
    is_vector : bool
        Whether a numerical target has one dimension.
    """

    weights: Sequence[np.ndarray]
    intercepts: Sequence[np.ndarray]
    activations: Sequence[nn.Module]
    family: Family
    classes: np.ndarray | None = None
    is_vector: bool = False

    @property
    def is_indicator(self) -> bool:
        """Whether the target is an indicator matrix: several labels that do not exclude others."""
        n_outputs = self.weights[-1].shape[1]
        return self.classes is not None and isinstance(self.family, Bernoulli) and n_outputs > 1

    @property
    def label_shape(self) -> tuple[int, ...]:
        """Shape of the label of a row."""
        return (self.weights[-1].shape[1],) if self.is_indicator else ()


def fitted_parts(estimator: Any) -> Fitted:
    """The parts of a fitted estimator."""
    target = estimator._target
    classes = getattr(target, "classes", None)
    is_vector = classes is None and target.n_outputs == 1
    weights, intercepts, activations = estimator._fitted_layers()
    return Fitted(weights, intercepts, activations, target.family, classes, is_vector)


def write_onnx(estimator: Any, path: str | PathLike[str]) -> None:
    """Write the ONNX model of a fitted estimator to a file."""
    model = onnx_model(fitted_parts(estimator), type(estimator).__name__, repr(estimator))
    write_file(path, model.SerializeToString())


def import_for_export(name: str) -> ModuleType:
    """The optional module of that name; an ImportError says how to install it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"Export to ONNX needs the package {name.partition('.')[0]}: "
            'pip install "sklearn-margdrop[onnx]"'
        ) from error


class Graph:
    """The nodes and constants of a graph, while it is built.

    Parameters
    ----------
    prefix : str, default=""
        Prefix of all names except those of inputs and outputs.
    """

    def __init__(self, prefix: str = ""):
        self.onnx = import_for_export("onnx")
        self.prefix = prefix
        self.nodes: list[Any] = []
        self.constants: list[Any] = []

    def constant(self, name: str, array: np.ndarray) -> str:
        name = f"{self.prefix}{name}"
        tensor = self.onnx.numpy_helper.from_array(np.ascontiguousarray(array), name)
        self.constants.append(tensor)
        return name

    def node(
        self, operator: str, *inputs: str, output: str | None = None, **attributes: Any
    ) -> str:
        name = f"{self.prefix}{operator}_{len(self.nodes)}"
        output = f"{name}_output" if output is None else output
        make_node = self.onnx.helper.make_node
        self.nodes.append(make_node(operator, inputs, [output], name=name, **attributes))
        return output


def add_model(
    graph: Graph, fitted: Fitted, x: str, outputs: Sequence[str], dtype: DTypeLike
) -> None:
    """Add the nodes that map `x` to `outputs`: a label and probabilities, or predicted numbers."""
    weights = [np.asarray(each, dtype) for each in fitted.weights]
    intercepts = [np.asarray(each, dtype) for each in fitted.intercepts]
    if fitted.classes is not None and weights[-1].shape[1] == 1:
        # The first of two classes has a logit as well: zero.
        weights[-1] = np.pad(weights[-1], [(0, 0), (1, 0)])
        intercepts[-1] = np.pad(intercepts[-1], (1, 0))
    for position, (weight, intercept) in enumerate(zip(weights, intercepts, strict=True)):
        if position > 0:
            x = graph.node(_operator(fitted.activations[position - 1]), x)
        constants = (("weight", weight), ("intercept", intercept))
        names = (graph.constant(f"{kind}_{position}", array) for kind, array in constants)
        x = graph.node("Gemm", x, *names)
    if fitted.classes is not None:
        label, probabilities = outputs
        if fitted.is_indicator:
            above = graph.node("Greater", x, graph.constant("zero", np.zeros(1, dtype)))
            graph.node("Cast", above, to=graph.onnx.TensorProto.INT64, output=label)
            graph.node("Sigmoid", x, output=probabilities)
            return
        index = graph.node("ArgMax", x, axis=1, keepdims=0)
        labels = graph.constant("classes", labels_for_export(fitted.classes))
        graph.node("Gather", labels, index, axis=0, output=label)
        graph.node("Softmax", x, axis=1, output=probabilities)
        return
    operator = _operator(fitted.family)
    if fitted.is_vector:
        x = graph.node("Squeeze", x, graph.constant("axes", np.array([1])))
    graph.node(operator, x, output=outputs[0])


def _operator(what: nn.Module | Family) -> str:
    # A subclass may compute something else.
    if type(what) not in OPERATORS:
        raise NotImplementedError(
            f"{type(what).__name__} has no ONNX operator: add the name of one, without "
            f"attributes, as sklearn_margdrop.export.graph.OPERATORS[{type(what).__name__}]."
        )
    return OPERATORS[type(what)]


def labels_for_export(classes: np.ndarray) -> np.ndarray:
    """Labels as skl2onnx has them: strings, or int64 for integers, booleans and whole floats.

    Parameters
    ----------
    classes : ndarray of shape (n_classes,)

    Returns
    -------
    ndarray of shape (n_classes,)

    Raises
    ------
    TypeError
        If they are neither.
    """
    if all(isinstance(label, str) for label in classes):
        return np.array(classes.tolist(), dtype=object)
    if classes.dtype.kind in "biuf" and np.abs(classes.astype(np.float64)).max() < 2.0**63:
        return classes.astype(np.int64)
    raise TypeError(
        f"ONNX has no labels such as {classes[-1]!r} of the dtype {classes.dtype}. Fit to "
        "integers of 64 bits or to strings: y.astype(str), or sklearn.preprocessing.LabelEncoder."
    )


def onnx_model(fitted: Fitted, name: str, description: str) -> Any:
    """The checked ONNX model of a fitted estimator.

    Its input "X" has the shape (n, n_features) and the dtype of the weights. A classifier has the
    outputs "label", of shape (n,) or an indicator matrix, and "probabilities", (n, n_classes); a
    regressor has "variable", in the shape that it predicts.

    Parameters
    ----------
    fitted : Fitted
        Its layers, family and classes.
    name : str
        Of the graph.
    description : str
        The model's doc string.

    Returns
    -------
    onnx.ModelProto
        The model.

    Raises
    ------
    ImportError
        If onnx is not installed.
    NotImplementedError
        If a layer or the family has no entry in :data:`OPERATORS`.
    TypeError
        If ONNX has no type for the labels.

    Examples
    --------
    >>> import numpy as np
    >>> from sklearn_margdrop.export.graph import Fitted, onnx_model
    >>> from sklearn_margdrop.families import Poisson
    >>> fitted = Fitted([np.ones((3, 1))], [np.zeros(1)], [], Poisson(), None, True)
    >>> [node.op_type for node in onnx_model(fitted, "rates", "").graph.node]
    ['Gemm', 'Squeeze', 'Exp']
    """
    graph = Graph()
    helper = graph.onnx.helper
    dtype = np.result_type(*fitted.weights)
    to_onnx_type = helper.np_dtype_to_tensor_dtype
    number = to_onnx_type(dtype)

    def value(name: str, kind: int, *shape: int) -> Any:
        return helper.make_tensor_value_info(name, kind, ["n", *shape])

    width = fitted.weights[-1].shape[1]
    if fitted.classes is not None:
        labels = labels_for_export(fitted.classes)
        outputs = [
            value("label", to_onnx_type(labels.dtype), *fitted.label_shape),
            value("probabilities", number, len(labels)),
        ]
    else:
        outputs = [value("variable", number, *([] if fitted.is_vector else [width]))]
    add_model(graph, fitted, "X", [each.name for each in outputs], dtype)
    inputs = [value("X", number, len(fitted.weights[0]))]
    model = helper.make_model(
        helper.make_graph(graph.nodes, name, inputs, outputs, graph.constants),
        opset_imports=[helper.make_opsetid("", _OPSET)],
        ir_version=_IR_VERSION,
        producer_name=__package__.partition(".")[0],
        producer_version=sys.modules[__package__.partition(".")[0]].__version__,
        doc_string=description,
    )
    graph.onnx.checker.check_model(model, full_check=True)
    return model
