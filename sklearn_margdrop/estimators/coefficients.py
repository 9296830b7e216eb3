"""The coefficients of a fitted generalised linear model: what they predict, dense or sparse."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils.extmath import safe_sparse_dot
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from sklearn_margdrop.estimators.base import BaseMarginalizedEstimator
from sklearn_margdrop.estimators.html import Outline
from sklearn_margdrop.estimators.nets import TargetNet
from sklearn_margdrop.export.graph import Layers
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.noise import Noise
from sklearn_margdrop.numerics.csr import MatrixLike
from sklearn_margdrop.numerics.devices import to_array
from sklearn_margdrop.numerics.memory import blocks
from sklearn_margdrop.training.units import conversion


class Coefficients(BaseMarginalizedEstimator):
    """An estimator that predicts by `coef_` and `intercept_`.

    Both may be set by hand.
    """

    coef_: NDArray[Any] | sparse.csr_array  # sparse after `sparsify`
    intercept_: NDArray[Any] | float
    _fitted_noise: dict[int, Noise]

    def _attributes(self, net: TargetNet) -> dict[str, Any]:
        (linear,) = net.module_.linears
        coef, units = to_array(linear.weight), net.target.units
        intercept = np.zeros(linear.out_features, dtype=coef.dtype)
        if linear.bias is not None:
            intercept = to_array(linear.bias)
        if units is not None:
            coef = (coef * units.spread[:, None]).astype(coef.dtype)
            intercept = units.decode(intercept).astype(coef.dtype)
        return {
            "coef_": self._as_fitted(coef),
            "intercept_": self._as_fitted(intercept),
            "_fitted_noise": net.module__noise,
            "_target": net.target,
        }

    def _fitted_network(self) -> NoisyNetwork:
        (coef,), (intercept,), _ = self._fitted_layers()
        dtype = torch.float32 if coef.dtype == np.float32 else torch.float64
        network = NoisyNetwork(coef.shape, noise=self._fitted_noise, seed=None, dtype=dtype)
        (linear,) = network.linears
        factor, shift = conversion(None, self._target.units)  # those of the objective
        with torch.no_grad():
            linear.weight.copy_(torch.tensor(coef.T * factor[:, None]))
            linear.bias.copy_(torch.tensor(intercept * factor + shift))
        return network

    def _outline(self) -> Outline:
        if not self.__sklearn_is_fitted__():
            return ["", ""], "", self._noise()
        noise = {site: model for site, model in self._fitted_noise.items() if not model.is_null}
        return [self.n_features_in_, self._target.n_outputs], "", noise

    def _as_fitted(self, array: np.ndarray) -> Any:
        """An array with a row for each output, in the shape of the target."""
        return array

    def _fitted_layers(self) -> Layers:
        # Either may have been set by hand.
        coef = np.atleast_2d(self._dense_coef())
        shape = (self._target.n_outputs, self.n_features_in_)
        if coef.shape != shape or coef.dtype not in (np.float32, np.float64):
            raise ValueError(
                f"coef_ must be of float32 or float64 and the shape {shape}; it is of "
                f"{coef.dtype} and the shape {coef.shape}."
            )
        if np.ndim(self.intercept_) > 1 or np.size(self.intercept_) not in (1, shape[0]):
            raise ValueError(
                f"intercept_ must be of the shape {shape[:1]}; it is {np.shape(self.intercept_)}."
            )
        return [coef.T], [np.broadcast_to(self.intercept_, shape[:1])], []

    def _dtype(self) -> type[np.floating]:
        dtype: type[np.floating] = self.coef_.dtype.type
        return dtype

    def _linear_predictor(self, X: MatrixLike) -> Tensor:
        X = self._check_rows(X)
        coef = self.coef_ if self.coef_.ndim == 2 else self.coef_.reshape(1, -1)
        parts: Iterable[Any] = [X]
        if X.dtype != coef.dtype:  # a file's, which is not to be converted whole
            parts = (X[block].astype(coef.dtype) for block in blocks(*X.shape))
        eta = [safe_sparse_dot(part, coef.T, dense_output=True) for part in parts]
        return torch.from_numpy(np.concatenate(eta) + self.intercept_)

    def sparsify(self) -> Self:
        """Convert `coef_` to a sparse array, and let go of the net with the dense ones.

        Worth it where most coefficients are zero: those of features that never occurred, as under
        `HashingVectorizer`. Predictions stay the same. Training can go on from the coefficients,
        but with a new optimiser and a new record.

        Returns
        -------
        self : object
            The fitted estimator.

        Examples
        --------
        >>> from sklearn.feature_extraction.text import HashingVectorizer
        >>> from sklearn_margdrop import MarginalizedDropoutGLMClassifier
        >>> X = HashingVectorizer(norm=None).transform(["good film", "bad film"])
        >>> clf = MarginalizedDropoutGLMClassifier().fit(X, [1, 0]).sparsify()
        >>> clf.coef_.shape, clf.coef_.nnz
        ((1, 1048576), 2)
        """
        check_is_fitted(self)
        self.coef_ = sparse.csr_array(self.coef_)
        self.__dict__.pop("net_", None)
        return self

    def densify(self) -> Self:
        """Convert `coef_` back to an ndarray.

        Returns
        -------
        self : object
            The fitted estimator.

        Examples
        --------
        >>> from sklearn.datasets import load_iris
        >>> from sklearn_margdrop import MarginalizedDropoutGLMClassifier
        >>> clf = MarginalizedDropoutGLMClassifier().fit(*load_iris(return_X_y=True))
        >>> type(clf.sparsify().densify().coef_).__name__
        'ndarray'
        """
        check_is_fitted(self)
        self.coef_ = self._dense_coef()
        return self

    def _dense_coef(self) -> NDArray[Any]:
        coef: Any = self.coef_
        dense: NDArray[Any] = coef.toarray() if sparse.issparse(coef) else coef
        return dense
