"""Products with noise variances, dense, shared and sparse, against sums over everything."""

import pytest
import scipy.sparse as sp
import torch
from oracles import randn

from sklearn_margdrop.numerics import pushed
from sklearn_margdrop.numerics.pushed import PairedNoise, PushedNoise
from sklearn_margdrop.numerics.sparse import SparseMatrix

N, K, WIDTH = 7, 3, 5


@pytest.mark.parametrize("kind", ["dense", "shared", "sparse"])
def test_products(kind):
    v = randn(1 if kind == "shared" else N, WIDTH).square()
    if kind == "sparse":
        v[v < 0.5] = 0
    weight, share, grad = randn(K, WIDTH, seed=1), randn(N, K, seed=2), randn(N, K, seed=3)
    noise = PushedNoise(SparseMatrix([sp.csr_array(v.numpy())]) if kind == "sparse" else v, weight)
    v = v.expand(N, WIDTH)
    mean = share @ weight
    expected = torch.einsum("nj,kj,kj->nk", v, weight, weight)
    torch.testing.assert_close(noise.variances().expand(N, K), expected)
    expected = torch.einsum("nk,nj->kj", grad, v)
    torch.testing.assert_close(noise.to_squares(grad), expected)
    for index in (torch.arange(N), torch.tensor([1, 4, 5])):
        values = torch.einsum("nj,nj,kj->nk", v, mean, weight)[index]
        for each in (noise, noise.for_mixtures()):
            torch.testing.assert_close(each.rows(index).mixed(share[index]).values, values)


@pytest.mark.parametrize("kind", ["dense", "shared", "sparse"])
@pytest.mark.parametrize("few", [0, K])
def test_the_way_back_to_the_weights(kind, few, monkeypatch):
    """Of sum_i g_i <m_i, m_i> and sum_ik a_ik <w_k, w_k>, as autograd has it."""
    monkeypatch.setattr(pushed, "_FEW_CLASSES", few)
    v = randn(1 if kind == "shared" else N, WIDTH).square()
    weight = randn(K, WIDTH, seed=1).requires_grad_()
    share, grad, of_squares = randn(N, K, seed=2), randn(N, seed=3), randn(N, K, seed=4)
    index = torch.tensor([1, 4, 5])
    mean = share @ weight
    total = grad[:, None] * v * mean.square()
    squares = of_squares * (v @ weight.square().mT)
    (total.sum() + total[index].sum() + squares.sum()).backward()
    variance = SparseMatrix([sp.csr_array(v.numpy())]) if kind == "sparse" else v
    noise = PushedNoise(variance, weight.detach()).for_mixtures()
    assert isinstance(noise, PairedNoise) == (few == K and kind == "sparse")
    torch.testing.assert_close(
        noise.variances().expand(N, K), v.expand(N, -1) @ weight.square().mT
    )
    of_mean = -grad[:, None] * share
    parts = [(of_mean, noise.mixed(share))]
    chosen = noise.rows(index).mixed(share[index])
    parts.append((of_mean[index], chosen._replace(rows=index)))
    torch.testing.assert_close(2 * noise.to_weight(of_squares, *parts), weight.grad)
