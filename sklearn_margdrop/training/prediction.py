"""Prediction by a trained net, from arrays, sparse matrices, tensors and data sets."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from skorch import NeuralNet
from skorch.utils import is_dataset
from torch import Tensor

from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.numerics.ambient import neutral, neutral_steps
from sklearn_margdrop.numerics.memory import blocks
from sklearn_margdrop.numerics.sparse import SparseMatrix
from sklearn_margdrop.objective import Objective
from sklearn_margdrop.training.batches import Features, Rows, as_features


class PredictingNet(NeuralNet):
    """A skorch net whose module is a :class:`~sklearn_margdrop.networks.NoisyNetwork`.

    Its results do not depend on torch's context. Targets are a column of numbers for each output,
    unless a subclass encodes them.
    """

    initialize = neutral()(NeuralNet.initialize)
    set_params = neutral()(NeuralNet.set_params)
    partial_fit = neutral()(NeuralNet.partial_fit)
    forward = neutral()(NeuralNet.forward)
    predict = neutral()(NeuralNet.predict)
    predict_proba = neutral()(NeuralNet.predict_proba)
    load_params = neutral()(NeuralNet.load_params)

    module_: NoisyNetwork
    criterion_: Objective
    generator_: torch.Generator

    def linear_predictor(self, X: Features | Rows) -> Tensor:
        """The linear predictor of the rows without noise, shape (n_samples, K)."""
        with neutral():
            return torch.cat(list(self._outputs(X, training=False)))

    def forward_iter(
        self, X: Any, training: bool = False, device: str | torch.device = "cpu"
    ) -> Iterator[Tensor]:
        """Yield the linear predictor of the rows of `X`, in blocks of bounded memory.

        Parameters
        ----------
        X : {array-like, sparse matrix} of shape (n_samples, n_features), Rows or Dataset
        training : bool, default=False
            Whether to draw the noise, as in Monte Carlo dropout.
        device : str or torch.device, default="cpu"
            Where to leave the results.

        Yields
        ------
        Tensor of shape (n_rows, K)
        """
        return neutral_steps(self._forward_iter(X, training, device))

    def _forward_iter(
        self, X: Any, training: bool, device: str | torch.device
    ) -> Iterator[Tensor]:
        self.check_is_fitted()
        is_foreign = is_dataset(X) and not isinstance(X, Rows)
        outputs = super().forward_iter(X, training, device) if is_foreign else None
        for eta in self._outputs(X, training) if outputs is None else outputs:
            yield self.in_units(eta).to(device)

    def _outputs(self, X: Any, training: bool) -> Iterator[Tensor]:
        rows = X if isinstance(X, Rows) else self.get_dataset(X)
        self.module_.train(training)
        for block in blocks(len(rows), self.module_.widest):
            with torch.no_grad():
                eta = self.infer(rows.take(block))
            yield eta  # outside of no_grad, which would apply to the caller, too

    def in_units(self, values: Tensor) -> Tensor:
        """Outputs of the module, or encoded targets, in the units of the user."""
        return values

    def infer(self, x: Any, **fit_params: Any) -> Tensor:
        """The linear predictor of a batch, with noise in training mode."""
        if not isinstance(x, SparseMatrix):
            weight = self.module_.linears[0].weight
            x = torch.as_tensor(x, dtype=weight.dtype, device=weight.device)
        return (
            self.module_.sample(x, self.generator_) if self.module_.training else self.module_(x)
        )

    def get_dataset(self, X: Any, y: Any = None) -> Any:
        """The rows of arrays, with targets as :meth:`decode` returns them."""
        if is_dataset(X):
            return X
        weight = self.module_.linears[0].weight
        if not isinstance(X, Features):
            X = as_features(X, weight, keep_sparse=len(self.module_.layers) == 1)
        return Rows(X, weight.new_zeros(len(X)) if y is None else self.encode(y))

    def encode(self, y: Any) -> Tensor:
        """Targets as the family takes them."""
        y = y if isinstance(y, Tensor) else np.array(y)
        weight = self.module_.linears[0].weight
        targets = torch.as_tensor(y, dtype=weight.dtype, device=weight.device)
        return targets.reshape(len(targets), -1)

    def score_of(self, eta: Tensor, y: Tensor, weight: Tensor | None) -> float | None:
        """The score of a linear predictor, given encoded targets; None where there is none."""
        return None

    def decode(self, y: Tensor) -> Tensor:
        """Targets as :meth:`predict` returns them."""
        return y[:, 0] if y.ndim == 2 and y.shape[1] == 1 else y
