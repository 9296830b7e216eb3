"""Models without hidden layers: the gradient by hand is autograd's, for every kind of rows."""

import pytest
import scipy.sparse as sp
import torch
from oracles import make_noise, make_targets, randn

from sklearn_margdrop import objective
from sklearn_margdrop.families import FAMILIES, Bernoulli, Categorical
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.noise import NOISE_MODELS, Dropout
from sklearn_margdrop.numerics import memory
from sklearn_margdrop.numerics.sparse import SparseMatrix
from sklearn_margdrop.objective import Objective
from sklearn_margdrop.single_layer import is_single_layer
from sklearn_margdrop.weighting import WeightedRows

N, N_LABELED, WIDTH = 30, 25, 12

families = pytest.mark.parametrize("family", [f() for f in FAMILIES.values()], ids=repr)
methods = pytest.mark.parametrize("method", ["quadratic", "moments", "diagonal"])


def rows_of(family, n_outputs, sparse=False, seed=0):
    x = randn(N, WIDTH, seed=seed)
    x[x.abs() < 0.8] = 0
    y = make_targets(family, randn(N_LABELED, n_outputs, seed=1))
    weight = randn(N_LABELED, seed=2).abs()
    x = SparseMatrix([sp.csr_array(x.numpy())]) if sparse else x
    return WeightedRows.of(x, y, weight, 0.3, 1.5)


def both_ways(network, family, method, rows, monkeypatch):
    """Terms and gradients, by hand and by autograd."""
    results = []
    for by_hand in (True, False):
        network.zero_grad()
        with monkeypatch.context() as patch:
            if by_hand:
                patch.delattr(Objective, "_sums")
            else:
                patch.setattr(objective, "is_single_layer", lambda *_: False)
                patch.setattr(objective, "is_known", lambda _: False)
            terms = Objective(family, method, alpha=0.1).backward(network, rows)
        results.append((terms, [p.grad.clone() for p in network.parameters()]))
    return results


@families
@methods
@pytest.mark.parametrize("noise", [*NOISE_MODELS, None])
@pytest.mark.parametrize("sparse", [False, True])
@pytest.mark.parametrize("n_outputs", [1, 3, 20])
@pytest.mark.parametrize("scale", [0.3, 3.0, 30.0])
def test_same_as_autograd(family, method, noise, sparse, n_outputs, scale, monkeypatch):
    if family.name == "categorical" and n_outputs == 1:
        pytest.skip("a single class has no probabilities")
    if family.name == "poisson":
        if method == "moments" and noise is not None:
            pytest.skip("its closed form is left to autograd")
        scale /= 10
    models = {} if noise is None else {0: make_noise(noise)}
    network = NoisyNetwork([WIDTH, n_outputs], noise=models, dtype=torch.float64)
    with torch.no_grad():
        network.linears[0].weight.mul_(scale)
    assert is_single_layer(network, family, method == "moments")
    rows = rows_of(family, n_outputs, sparse)
    by_hand, expected = both_ways(network, family, method, rows, monkeypatch)
    torch.testing.assert_close(by_hand, expected, rtol=1e-9, atol=1e-12)


@methods
@pytest.mark.parametrize("fit_intercept", [False, True])
def test_blocks_change_nothing(method, fit_intercept, monkeypatch):
    network = NoisyNetwork(
        [WIDTH, 3], noise={0: Dropout(0.5)}, dtype=torch.float64, fit_intercept=fit_intercept
    )
    rows, results = rows_of(Categorical(), 3), []
    for size in (memory._CACHE_ROWS, 4):
        monkeypatch.setattr(memory, "_CACHE_ROWS", size)
        monkeypatch.setattr(memory, "_CACHE_ELEMENTS", size)
        network.zero_grad()
        terms = Objective(Categorical(), method).backward(network, rows)
        results.append((terms, [p.grad.clone() for p in network.parameters()]))
    torch.testing.assert_close(*results)


def test_the_gradient_is_added_except_to_frozen_parameters():
    network = NoisyNetwork([WIDTH, 3], noise={0: Dropout(0.5)}, dtype=torch.float64)
    rows, model = rows_of(Categorical(), 3), Objective(Categorical(), "moments")
    model.backward(network, rows)
    (weight, bias), first = network.parameters(), network.linears[0].weight.grad.clone()
    weight.requires_grad_(False)
    model.backward(network, rows)
    torch.testing.assert_close(weight.grad, first)
    bias.requires_grad_(False)
    weight.requires_grad_(True)
    before = bias.grad.clone()
    model.backward(network, rows)
    torch.testing.assert_close(weight.grad, 2 * first)
    torch.testing.assert_close(bias.grad, before)


def test_what_it_does_not_know():
    deep = NoisyNetwork([WIDTH, 4, 3], noise={0: Dropout(0.5)})
    shallow = NoisyNetwork([WIDTH, 3], noise={0: Dropout(0.5)})
    assert not is_single_layer(deep, Categorical(), False)
    assert not is_single_layer(shallow, FAMILIES["poisson"](), True)
    assert is_single_layer(NoisyNetwork([WIDTH, 3]), FAMILIES["poisson"](), True)


@pytest.mark.parametrize("base", [Bernoulli, Categorical])
@pytest.mark.parametrize(("changed", "whole"), [("jensen_gap", True), ("curvature", False)])
def test_a_family_that_changes_a_value_alone_is_left_to_autograd(base, changed, whole):
    """Its derivative would be that of another family."""

    def twice(self, *arguments):
        return 2 * getattr(base, changed)(self, *arguments)

    family = type("Changed", (base,), {changed: twice})()
    assert base().has_terms_vjp(whole)
    assert not family.has_terms_vjp(whole)
