"""A fitted estimator as an ONNX file."""

from __future__ import annotations

from abc import abstractmethod
from os import PathLike

from sklearn.utils.validation import check_is_fitted

from sklearn_margdrop.export.graph import Fitted, Layers, onnx_model
from sklearn_margdrop.families import Family
from sklearn_margdrop.training.files import write_file


class ExportMixin:
    """Gives an estimator the method `to_onnx`."""

    n_outputs_: int

    @abstractmethod
    def _fitted_family(self) -> Family:
        """The family of the output."""

    @abstractmethod
    def _fitted_layers(self) -> Layers:
        """Weights (fan_in, fan_out), intercepts and activation functions: three lists."""

    def to_onnx(self, path: str | PathLike[str]) -> None:
        """Write the fitted model to an ONNX file.

        Its input ``"X"`` has the shape (n, n_features) and the dtype of the fitted parameters:
        float32 for models that were fitted to float32 data, else float64. The outputs of a
        classifier are ``"label"`` (n,), of strings or int64 (also for booleans and floats), and
        ``"probabilities"`` (n, n_classes); where it was fitted to an indicator matrix, the label
        is one as well, (n, n_classes) of int64. The output of a regressor is ``"variable"``, (n,)
        or (n, n_outputs) as `predict` returns it.

        Parameters
        ----------
        path : str or path-like
            The file. One that exists is replaced once the new one is complete.

        Raises
        ------
        NotFittedError
            If the estimator is not fitted.
        ImportError
            If `onnx` is not installed: ``pip install "sklearn-margdrop[onnx]"``.
        NotImplementedError
            If ONNX has no operator for an activation function or family that was registered.
        TypeError
            If ONNX has no type for the labels.
        OSError
            If the file cannot be written.
        """
        check_is_fitted(self)
        model = onnx_model(self._for_export(), type(self).__name__, repr(self))
        write_file(path, model.SerializeToString())

    def _for_export(self) -> Fitted:
        classes = getattr(self, "classes_", None)
        is_vector = classes is None and self.n_outputs_ == 1
        return Fitted(*self._fitted_layers(), self._fitted_family(), classes, is_vector)
