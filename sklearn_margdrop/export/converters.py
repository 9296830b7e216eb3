"""Whole pipelines to ONNX: how skl2onnx converts the estimators of this package."""

from __future__ import annotations

from typing import Any

import numpy as np

from sklearn_margdrop.estimators.classifier import MarginalizedDropoutClassifier
from sklearn_margdrop.estimators.glm_classifier import MarginalizedDropoutGLMClassifier
from sklearn_margdrop.estimators.glm_regressor import MarginalizedDropoutGLMRegressor
from sklearn_margdrop.estimators.regressor import MarginalizedDropoutRegressor
from sklearn_margdrop.export.graph import (
    Fitted,
    Graph,
    add_model,
    fitted_parts,
    import_for_export,
    labels_for_export,
)

_CLASSIFIERS = [MarginalizedDropoutClassifier, MarginalizedDropoutGLMClassifier]
_REGRESSORS = [MarginalizedDropoutRegressor, MarginalizedDropoutGLMRegressor]


def register_onnx_converters() -> None:
    """Let `skl2onnx` convert pipelines, searches and ensembles with estimators of this package.

    Call it once, then use ``skl2onnx.to_onnx``. Its conventions hold there: numbers are float32
    or float64 as the input of the pipeline is, and a regressor's "variable" has the shape
    (n, n_outputs), with a single column for a one-dimensional target.

    Raises
    ------
    ImportError
        If skl2onnx is not installed: ``pip install "sklearn-margdrop[onnx]"``.

    Examples
    --------
    >>> from sklearn.datasets import load_iris
    >>> from sklearn.pipeline import make_pipeline
    >>> from sklearn.preprocessing import StandardScaler
    >>> from skl2onnx import to_onnx
    >>> from sklearn_margdrop import MarginalizedDropoutGLMClassifier
    >>> from sklearn_margdrop.export.converters import register_onnx_converters
    >>> X, y = load_iris(return_X_y=True)
    >>> clf = make_pipeline(StandardScaler(), MarginalizedDropoutGLMClassifier()).fit(X, y)
    >>> register_onnx_converters()
    >>> model = to_onnx(clf, X[:1], options={"zipmap": False})
    >>> [output.name for output in model.graph.output]
    ['label', 'probabilities']
    """
    skl2onnx = import_for_export("skl2onnx")
    options = {"zipmap": [True, False, "columns"], "nocl": [True, False]}
    options["output_class_labels"] = [False, True]
    for estimator in _CLASSIFIERS + _REGRESSORS:
        skl2onnx.update_registered_converter(
            estimator,
            estimator.__name__,
            _set_types,
            _convert,
            options=options if estimator in _CLASSIFIERS else None,
        )


def _fitted(operator: Any) -> Fitted:
    """The estimator with the labels that the options ask for, and a matrix of predictions."""
    fitted = fitted_parts(operator.raw_operator)._replace(is_vector=False)
    if fitted.classes is None:
        return fitted
    utils = import_for_export("skl2onnx.common.utils_classifier")
    classes = utils.get_label_classes(operator.scope_inst, operator.raw_operator)
    return fitted._replace(classes=labels_for_export(classes))


def _set_types(operator: Any) -> None:
    types = import_for_export("skl2onnx.common.data_types")
    fitted = _fitted(operator)
    number = type(types.guess_tensor_type(operator.inputs[0].type))
    n_rows = operator.inputs[0].get_first_dimension()
    if fitted.classes is None:
        operator.outputs[0].type = number([n_rows, len(fitted.intercepts[-1])])
        return
    is_integer = fitted.classes.dtype == np.int64
    label = types.Int64TensorType if is_integer else types.StringTensorType
    operator.outputs[0].type = label([n_rows, *fitted.label_shape])
    operator.outputs[1].type = number([n_rows, len(fitted.classes)])


def _convert(scope: Any, operator: Any, container: Any) -> None:
    types = import_for_export("skl2onnx.common.data_types")
    dtype = np.dtype(types.guess_numpy_type(operator.outputs[-1].type))
    graph = Graph(scope.get_unique_operator_name(type(operator.raw_operator).__name__) + "_")
    helper = graph.onnx.helper
    to = helper.np_dtype_to_tensor_dtype(dtype)
    x = graph.node("Cast", operator.inputs[0].full_name, to=to)
    add_model(graph, _fitted(operator), x, [each.full_name for each in operator.outputs], dtype)
    container.initializers.extend(graph.constants)
    for node in graph.nodes:
        attributes = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        container.add_node(
            node.op_type, list(node.input), list(node.output), name=node.name, **attributes
        )
