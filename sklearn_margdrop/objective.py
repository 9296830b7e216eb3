"""The objective: mean loss + penalty + L2, over labelled and unlabelled rows."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from sklearn_margdrop.backprop import backpropagate, is_known
from sklearn_margdrop.families import Family
from sklearn_margdrop.methods import METHODS, Method
from sklearn_margdrop.networks import NoisyNetwork, apply_elementwise
from sklearn_margdrop.numerics.memory import blocks, slice_length
from sklearn_margdrop.numerics.sparse import Matrix, SparseMatrix, sums_about
from sklearn_margdrop.penalties import pulled_width
from sklearn_margdrop.single_layer import backpropagate_layer, is_single_layer
from sklearn_margdrop.weighting import WeightedRows


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
        That of the output.
    method : str
        How the expectation over the noise is evaluated: a name in
        :data:`~sklearn_margdrop.methods.METHODS`. `"sampling"` noises the loss itself and leaves
        the penalty at zero. When there are unlabelled rows, it adds the sampled divergence of the
        noisy from the clean prediction to the clean loss instead, which needs no label.
    n_probes : int, default=None
        With `"quadratic"` and `"moments"`, the random tangents or pairs of each row that estimate
        the penalty of noise that passes hidden layers. None computes it without them.
    alpha : float, default=0.0
        Strength of the L2 penalty.

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.weighting import WeightedRows
    >>> from sklearn_margdrop.families import Categorical
    >>> from sklearn_margdrop.networks import NoisyNetwork
    >>> from sklearn_margdrop.noise import Dropout
    >>> network = NoisyNetwork([4, 8, 3], noise={1: Dropout(0.5)})
    >>> rows = WeightedRows.of(torch.eye(4), torch.tensor([0, 1, 2, 0]))
    >>> terms = Objective(Categorical(), "diagonal", alpha=1e-4)(network, rows)
    >>> terms.total.backward()  # or `Objective.backward`, which is faster
    >>> bool(terms.total == terms.loss + terms.penalty + terms.l2)
    True
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
        self,
        network: NoisyNetwork,
        rows: WeightedRows,
        generator: torch.Generator | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> Terms:
        """The terms on some rows, by operations that autograd differentiates.

        `generator` draws noise and random signs; None is torch's global one, which is also the one
        that ``torch.compile`` can trace. Of dense rows a `part`, ``(k, n)`` for the k-th of n,
        can be taken alone: the terms of all parts, and their gradients, sum to those of all rows.
        """
        method = METHODS[self.method]
        noises_loss = _noises_loss(method, rows)
        loss, penalty = self._sums(method, network, rows.part(*part), noises_loss, generator)
        return Terms(loss, penalty, self._l2(network, loss, part))

    def backward(
        self,
        network: NoisyNetwork,
        rows: WeightedRows,
        generator: torch.Generator | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> Terms:
        """The terms on some rows; the gradient of their sum is added to the parameters'.

        The same as :meth:`forward` and autograd, but faster. Without hidden layers, dense rows
        are taken in blocks that fit into the cache; `"quadratic"` takes them in slices whose
        pulled back rows of the curvature fit into the memory.
        """
        method = METHODS[self.method]
        noises_loss = _noises_loss(method, rows)
        if not method.is_sampled and is_single_layer(network, self.family, method.is_whole):
            whole = method.is_whole
            loss, penalty = backpropagate_layer(network, self.family, rows.part(*part), whole)
            return self.with_l2(network, loss, penalty, part)
        sums = []
        for each in self._slices(method, network, rows.part(*part)):
            backprop = self._backprop(method, network, noises_loss, generator)
            if backprop is not None and isinstance(each.x, Tensor):
                terms = backprop(network, self.family, *each)
            else:
                terms = self._sums(method, network, each, noises_loss, generator)
                (terms[0] + terms[1]).backward()
            sums.append(terms)
        loss, penalty = (
            functools.reduce(torch.add, term).detach() for term in zip(*sums, strict=True)
        )
        return self.with_l2(network, loss, penalty, part)

    def with_l2(
        self,
        network: NoisyNetwork,
        loss: Tensor,
        penalty: Tensor,
        part: tuple[int, int] = (0, 1),
    ) -> Terms:
        """The terms, with L2; the gradient of the L2 penalty is added to the parameters'."""
        with torch.no_grad():
            for layer in network.linears if self.alpha > 0 and part[0] == 0 else ():
                if layer.weight.grad is not None:  # that of the loss; a frozen weight has none
                    layer.weight.grad.add_(layer.weight, alpha=self.alpha)
            return Terms(loss, penalty, self._l2(network, loss, part))

    def _draws_probes(self, method: Method, network: NoisyNetwork) -> bool:
        """Whether random signs estimate the penalty."""
        return self.n_probes is not None and method.needs_probes(network)

    def _backprop(
        self,
        method: Method,
        network: NoisyNetwork,
        noises_loss: bool,
        generator: torch.Generator | None,
    ) -> Callable[..., tuple[Tensor, Tensor]] | None:
        """What computes terms and gradients of dense rows by hand, if anything does."""
        if not is_known(network):
            return None
        if self._draws_probes(method, network) and method.backprop is not None:
            return partial(method.backprop, n_probes=self.n_probes, generator=generator)
        if noises_loss or method.has_backprop(network):
            return partial(backpropagate, sampling=noises_loss, generator=generator)
        return None

    def _slices(
        self, method: Method, network: NoisyNetwork, rows: WeightedRows
    ) -> Iterable[WeightedRows]:
        n_rows, noisy = len(rows.x), network.noisy_linears if method.is_sweep else []
        if len(noisy) < 2 or n_rows == 0 or self._draws_probes(method, network):
            return _cut(network, rows)
        output = noisy[-1].weight
        width = pulled_width(layer.weight for layer in noisy)
        size = slice_length(n_rows, self.family.curvature_rank(len(output)) * width, output)
        return (rows.at(slice(start, start + size)) for start in range(0, n_rows, size))

    def _sums(
        self,
        method: Method,
        network: NoisyNetwork,
        rows: WeightedRows,
        noises_loss: bool,
        generator: torch.Generator | None,
    ) -> tuple[Tensor, Tensor]:
        """Loss and penalty of weighted rows."""
        x, y, loss_weight, penalty_weight = rows
        if noises_loss:
            eta = network.sample(x, generator)
            penalty = eta.new_zeros(())
        elif method.penalty is None:
            eta = network(x)
            noisy = network.sample(x, generator)
            penalty = self.family.divergence(noisy, eta).dot(penalty_weight)
        elif method.estimate is not None and self._draws_probes(method, network):
            etas, values = method.estimate(network, self.family, x, self.n_probes, generator)
            losses = [self.family.loss(eta[: len(y)], y) for eta in etas]
            loss = functools.reduce(torch.add, losses) / len(losses)
            return loss.dot(loss_weight), values.dot(penalty_weight)
        else:
            trace = network.trace(x)
            eta = trace.eta
            penalty = method.penalty(trace, self.family).dot(penalty_weight)
        return self.family.loss(eta[: len(y)], y).dot(loss_weight), penalty

    @torch.no_grad()
    def mean_curvature(
        self,
        network: NoisyNetwork,
        rows: WeightedRows,
        function: Callable[[Tensor], Tensor] = torch.square,
        penalty: bool = False,
        centre: Tensor | None = None,
    ) -> list[Tensor]:
        """The mean over rows of A''(eta) times a function of x, without hidden layers.

        By default the diagonal of the Fisher information for each parameter: for the
        coefficients, (K, n_features), and for the intercepts, (K,), where there are any.

        Parameters
        ----------
        network : NoisyNetwork
        rows : WeightedRows
        function : callable, default=torch.square
            Of the features, elementwise. The noise's variance, say.
        penalty : bool, default=False
            Whether rows have their weights in the penalty, unlabelled rows included.
        centre : Tensor of shape (n_features,), default=None
            Take the square of x - centre instead of a function of x: the curvature in the
            coordinates of :meth:`NoisyNetwork.centred`.
        """
        n_parts = len(list(network.parameters()))
        totals: list[Tensor] = []
        for x, y, loss_weight, weight in _cut(network, rows):
            if not penalty:
                weight = torch.zeros_like(weight)
                weight[: len(y)] = loss_weight
            curvature = self.family.curvature(network(x)) * weight.unsqueeze(-1)
            if centre is None:
                coefficients = _weighted_sums(apply_elementwise(x, function), curvature)
            else:
                coefficients = sums_about(x, centre, curvature)[1].mT
            parts = [coefficients, curvature.sum(0)][:n_parts]
            totals = list(map(torch.add, totals, parts)) if totals else parts
        return totals

    def _l2(self, network: NoisyNetwork, loss: Tensor, part: tuple[int, int]) -> Tensor:
        if self.alpha == 0 or part[0] > 0:  # the first part has all of it
            return torch.zeros_like(loss)
        weights = [linear.weight.flatten() for linear in network.linears]
        squares: Tensor = functools.reduce(torch.add, (w.dot(w) for w in weights))
        return 0.5 * self.alpha * squares


def _noises_loss(method: Method, rows: WeightedRows) -> bool:
    """Whether the loss itself is noised: with sampling, where all rows have labels."""
    return method.is_sampled and len(rows.x) == len(rows.y)


def _weighted_sums(values: Matrix, weight: Tensor) -> Tensor:
    """Sums over the rows of `values`, one of which may stand for all, by columns of `weight`."""
    if isinstance(values, Tensor) and len(values) == 1:
        return weight.sum(0).unsqueeze(-1) * values
    return (values.mT @ weight).mT


def _cut(network: NoisyNetwork, rows: WeightedRows) -> Iterable[WeightedRows]:
    """Blocks of dense rows for a network without hidden layers, otherwise all rows at once."""
    x = rows.x
    if isinstance(x, SparseMatrix) or len(network.layers) > 1:
        return [rows]
    size = max(x.shape[1], network.linears[0].out_features)
    # A process has no rows where a batch has fewer rows than processes.
    cut = blocks(len(x), size, in_cache=x.device.type == "cpu") or [slice(0, 0)]
    return (rows.at(block) for block in cut)
