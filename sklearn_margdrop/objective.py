"""The objective: mean loss + penalty + L2, over labelled and unlabelled rows."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from sklearn_margdrop.backprop import backpropagate
from sklearn_margdrop.batches import Batch
from sklearn_margdrop.families import Family
from sklearn_margdrop.networks import NoisyNetwork, apply_elementwise
from sklearn_margdrop.penalties import diagonal, draw_probes, moments, quadratic

#: How the expectation over the noise is evaluated.
METHODS = ("diagonal", "quadratic", "moments", "sampling")


class Terms(NamedTuple):
    """The terms of the objective, scalars in nats per sample."""

    loss: Tensor
    penalty: Tensor
    l2: Tensor

    @property
    def total(self) -> Tensor:
        """The objective itself."""
        return self.loss + self.penalty + self.l2


class Objective(nn.Module):
    r"""Weighted mean loss + R + alpha/2 ||weights||^2; intercepts are not penalised.

    With unlabelled rows the penalty is, per labelled row, (R + d R_unlabelled) / (n + d m) for
    n labelled and m unlabelled (weighted) rows and the discount d (W, semi-supervised tasks).

    Parameters
    ----------
    family : Family
    method : {"diagonal", "quadratic", "moments", "sampling"}
        `"sampling"` noises the loss itself and leaves the penalty at zero. When there are
        unlabelled rows, it adds the sampled divergence of the noisy from the clean
        prediction to the clean loss instead, which needs no label.
    n_probes : int, default=None
        Random combinations of the curvature's rows that `"quadratic"` pulls back; None
        pulls back all of them.
    alpha : float, default=0.0
    """

    def __init__(
        self, family: Family, method: str, n_probes: int | None = None, alpha: float = 0.0
    ):
        super().__init__()
        self.family = family
        self.method = method
        self.n_probes = n_probes
        self.alpha = alpha

    def forward(
        self, network: NoisyNetwork, batch: Batch, generator: torch.Generator | None = None
    ) -> Terms:
        """The terms on one batch.

        `generator` draws noise and probes; None is torch's global one, which is also the one
        that ``torch.compile`` can trace.
        """
        n_labeled = len(batch.y)
        if self.method == "sampling" and len(batch.x) == n_labeled:
            eta = network.sample(batch.x, generator)
            penalty = eta.new_zeros(())
        else:
            eta, per_row = self._penalty(network, batch.x, generator)
            penalty = _mean(per_row[:n_labeled], batch.weight)
            if len(batch.x) > n_labeled:
                share = batch.unlabeled_share
                unlabeled = batch.unlabeled_weight * per_row[n_labeled:].mean()
                penalty = (1 - share) * penalty + share * unlabeled
        loss = _mean(self.family.loss(eta[:n_labeled], batch.y), batch.weight)
        return Terms(loss, penalty, self._l2(network, loss))

    def _penalty(self, network, x, generator) -> tuple[Tensor, Tensor]:
        if self.method == "sampling":
            eta = network(x)
            return eta, self.family.divergence(network.sample(x, generator), eta)
        trace = network.trace(x)
        if self.method == "diagonal":
            return trace.eta, diagonal(trace, self.family)
        if self.method == "moments":
            return trace.eta, moments(trace, self.family)
        return trace.eta, quadratic(trace, self.family, self._probes(trace.eta, generator))

    def _probes(self, eta: Tensor, generator) -> Tensor | None:
        rank = self.family.curvature_rank(eta.shape[-1])
        if self.n_probes is None or self.n_probes >= rank:
            return None
        return draw_probes(len(eta), self.n_probes, rank, like=eta, generator=generator)

    def accumulate(
        self, network: NoisyNetwork, batch: Batch, generator: torch.Generator | None = None
    ) -> Terms:
        """The terms on one batch; the gradient of their sum is added to the parameters'."""
        terms = self(network, batch, generator)
        terms.total.backward()
        return Terms(*(term.detach() for term in terms))

    def backward(
        self, network: NoisyNetwork, batch: Batch, generator: torch.Generator | None = None
    ) -> Terms:
        """The terms on one batch; the gradient of their sum replaces that of the parameters."""
        if not self._is_one_pass(network, batch):
            network.zero_grad()
            return self.accumulate(network, batch, generator)
        loss_weight = penalty_weight = _row_weights(batch)
        if len(batch.x) > len(batch.y):
            loss_weight = loss_weight[: len(batch.y)]
            penalty_weight = _row_weights(batch, penalty=True)
        sampling = self.method == "sampling"
        loss, penalty = backpropagate(
            network, self.family, batch, loss_weight, penalty_weight, sampling, generator
        )
        if self.alpha > 0:
            for layer in network.linears:
                layer.weight.grad.add_(layer.weight.detach(), alpha=self.alpha)
        with torch.no_grad():
            return Terms(loss, penalty, self._l2(network, loss))

    def _is_one_pass(self, network: NoisyNetwork, batch: Batch) -> bool:
        """Whether :func:`backpropagate` knows how to do it."""
        if not isinstance(batch.x, Tensor):
            return False
        if self.method == "sampling":
            return len(batch.x) == len(batch.y)
        # The quadratic penalty of noise at the last site is the diagonal one.
        last = len(network.layers) - 1
        return self.method == "diagonal" or (
            self.method == "quadratic" and network.noise.keys() <= {last}
        )

    @torch.no_grad()
    def mean_curvature(
        self, network: NoisyNetwork, batch: Batch, function=torch.square, penalty: bool = False
    ) -> list[Tensor]:
        """The mean over rows of A''(eta) times a function of x, without hidden layers.

        By default the diagonal of the Fisher information for each parameter: for the
        coefficients, (K, n_features), and for the intercepts, (K,), where there are any.

        Parameters
        ----------
        network : NoisyNetwork
        batch : Batch
        function : callable, default=torch.square
            Of the features, elementwise. The noise's variance, say.
        penalty : bool, default=False
            Whether the mean is that of the penalty, over unlabelled rows as well.
        """
        weight = _row_weights(batch, penalty)
        curvature = self.family.curvature(network(batch.x)) * weight.unsqueeze(-1)
        values = apply_elementwise(batch.x, function)
        if isinstance(values, Tensor) and len(values) == 1:  # which stands for all rows
            coefficients = curvature.sum(0).unsqueeze(-1) * values
        else:
            coefficients = (values.mT @ curvature).mT
        return [coefficients, curvature.sum(0)][: len(list(network.parameters()))]

    def _l2(self, network, loss: Tensor) -> Tensor:
        if self.alpha == 0:
            return torch.zeros_like(loss)
        weights = [linear.weight.flatten() for linear in network.linears]
        return 0.5 * self.alpha * sum(w.dot(w) for w in weights)


def _row_weights(batch: Batch, penalty: bool = False) -> Tensor:
    """The weight of each row in the mean loss, or in that of the penalty."""
    n_labeled, x = len(batch.y), batch.x
    if len(x) == n_labeled and batch.weight is None:
        return torch.full((n_labeled,), 1 / n_labeled, dtype=x.dtype, device=x.device)
    weight = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    weight[:n_labeled] = 1 if batch.weight is None else batch.weight
    weight[:n_labeled] /= n_labeled
    if penalty and len(x) > n_labeled:
        weight[:n_labeled] *= 1 - batch.unlabeled_share
        weight[n_labeled:] = batch.unlabeled_weight * batch.unlabeled_share
        weight[n_labeled:] /= len(x) - n_labeled
    return weight


def _mean(values: Tensor, weight: Tensor | None) -> Tensor:
    return values.mean() if weight is None else (values * weight).mean()
