"""Loss, penalty and gradient of a network without hidden layers, by hand.

All that depends on the rows is products of the features with a few small matrices, for dense rows
in blocks that fit the cache, and elementwise functions of the linear predictor.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from sklearn_margdrop.backprop import accumulate
from sklearn_margdrop.family import Family
from sklearn_margdrop.networks import NoisyNetwork, apply_elementwise
from sklearn_margdrop.numerics.memory import blocks
from sklearn_margdrop.numerics.products import linear, matmul
from sklearn_margdrop.numerics.pushed import PushedNoise
from sklearn_margdrop.numerics.sparse import Matrix, SparseMatrix
from sklearn_margdrop.weighting import WeightedRows


def is_single_layer(network: NoisyNetwork, family: Family, whole: bool) -> bool:
    """Whether :func:`backpropagate_layer` knows the network and the penalty."""
    known = len(network.layers) == 1 and isinstance(network.layers[0], nn.Linear)
    return known and family.has_terms_vjp(whole and bool(network.noise))


@torch.no_grad()
def backpropagate_layer(
    network: NoisyNetwork, family: Family, rows: WeightedRows, whole: bool
) -> tuple[Tensor, Tensor]:
    """Loss and penalty of weighted rows; their gradient is added to that of the parameters.

    Parameters
    ----------
    network : NoisyNetwork
        Without hidden layers.
    family : Family
    rows : WeightedRows
    whole : bool
        Whether the penalty is the expectation itself, rather than its second order.

    Returns
    -------
    loss, penalty : Tensor
        Scalars.

    Examples
    --------
    >>> import torch
    >>> from sklearn_margdrop.families import Categorical
    >>> from sklearn_margdrop.networks import NoisyNetwork
    >>> from sklearn_margdrop.noise import Dropout
    >>> from sklearn_margdrop.single_layer import backpropagate_layer
    >>> from sklearn_margdrop.weighting import WeightedRows
    >>> network = NoisyNetwork([4, 3], noise={0: Dropout(0.5)})
    >>> rows = WeightedRows.of(torch.eye(4), torch.tensor([0, 1, 2, 0]))
    >>> loss, penalty = backpropagate_layer(network, Categorical(), rows, whole=True)
    >>> bool(penalty > 0), network.layers[0].weight.grad.shape
    (True, torch.Size([3, 4]))
    """
    layer, noise = cast("nn.Linear", network.layers[0]), network.noise.get(0)
    weight = layer.weight.detach()
    if isinstance(rows.x, SparseMatrix):
        weight = weight.mT.contiguous().mT  # the kernels want the classes of a feature together
    sums: list[Tensor | None] = []
    pushed = family.noise_weight(weight)
    square = pushed * pushed
    for block in _cut(rows.x, len(weight)):
        x, y, loss_weight, penalty_weight = rows if block is None else rows.at(block)
        eta = _linear(x, weight, layer.bias)
        variance = None
        if noise is not None:
            variance = PushedNoise(apply_elementwise(x, noise.variance), pushed, square)
        weights = loss_weight, penalty_weight
        loss, penalty, grad, to_pushed = family.terms_vjp(eta, y, variance, weights, whole)
        to_weight = (x.mT @ grad).mT if isinstance(x, SparseMatrix) else matmul(grad.mT, x)
        parts = [loss, penalty, to_weight, grad.sum(0), to_pushed]
        sums = list(map(_plus, sums, parts)) if sums else parts
    loss, penalty, to_weight, to_bias, to_pushed = cast("list[Tensor]", sums)
    if noise is not None:
        # That of a second order is there already.
        to_weight += family.noise_weight(to_pushed) if whole else to_pushed
    accumulate(layer, to_weight, to_bias)
    return loss, penalty


def _plus(total: Tensor | None, part: Tensor | None) -> Tensor | None:
    return None if total is None or part is None else total.add_(part)


def _cut(x: Matrix, n_outputs: int) -> list[slice] | list[None]:
    """Blocks of dense rows; None for all."""
    if isinstance(x, SparseMatrix):
        return [None]
    cut = blocks(len(x), max(x.shape[1], n_outputs), in_cache=x.device.type == "cpu")
    return cut or [slice(0, 0)]  # a process has no rows where a batch has fewer than processes


def _linear(x: Matrix, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The linear predictor; that of dense rows has the rows of a class side by side."""
    if isinstance(x, SparseMatrix):
        return linear(x, weight, bias)
    out = matmul(weight, x.mT)
    return (out if bias is None else out.add_(bias.unsqueeze(-1))).mT
