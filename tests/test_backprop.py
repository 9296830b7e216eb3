"""The gradient by hand is autograd's."""

import pytest
import torch
from oracles import make_noise, make_targets, randn

import sklearn_margdrop.objective
from sklearn_margdrop.families import FAMILIES, Categorical, Family
from sklearn_margdrop.layers import ACTIVATIONS
from sklearn_margdrop.methods import METHODS
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.noise import NOISE_MODELS, Gaussian, Noise
from sklearn_margdrop.numerics import memory
from sklearn_margdrop.objective import Objective, Terms, _cut
from sklearn_margdrop.weighting import WeightedRows

SIZES = [(5, 3), (5, 4, 3), (5, 6, 4, 3)]

families = pytest.mark.parametrize("family", [f() for f in FAMILIES.values()], ids=repr)


def batch_of(family, sizes, weighted=False, n_unlabeled=0):
    x = randn(6 + n_unlabeled, sizes[0])
    y = make_targets(family, randn(6, sizes[-1], seed=1))
    weight = randn(6, seed=2).abs() if weighted else None
    return WeightedRows.of(x, y, weight, 0.3 if n_unlabeled else 0.0, 1.5)


def both_ways(objective, network, batch, monkeypatch):
    """Terms and gradients, by hand and by autograd, from the same draws."""
    results = []
    for by_hand in (True, False):
        network.zero_grad()
        with monkeypatch.context() as patch:
            if by_hand:
                patch.delattr(Objective, "_sums")  # the way by autograd
            else:
                patch.setattr(sklearn_margdrop.objective, "is_known", lambda network: False)
            terms = objective.backward(network, batch, torch.Generator().manual_seed(0))
        results.append((terms, [p.grad.clone() for p in network.parameters()]))
    return results


def assert_same(results, rtol=1e-10, atol=1e-12):
    (terms, gradients), (terms_autograd, gradients_autograd) = results
    torch.testing.assert_close(terms, terms_autograd, rtol=rtol, atol=atol)
    torch.testing.assert_close(gradients, gradients_autograd, rtol=rtol, atol=atol)
    assert not any(term.requires_grad for term in terms)
    assert all(gradient.norm() > 0 for gradient in gradients)


@families
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("noise", [*NOISE_MODELS, None])
@pytest.mark.parametrize("sizes", SIZES, ids=str)
@pytest.mark.parametrize("method", ["diagonal", "sampling"])
def test_same_as_autograd(family, activation, noise, sizes, method, monkeypatch):
    sites = [(0,), (len(sizes) - 2,), range(len(sizes) - 1)] if noise else [()]
    for placement in sites:
        models = {site: make_noise(noise) for site in placement}
        network = NoisyNetwork(sizes, activation, models, dtype=torch.float64)
        objective = Objective(family, method, alpha=0.1)
        assert_same(both_ways(objective, network, batch_of(family, sizes), monkeypatch))


@families
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("n_unlabeled", [0, 4])
def test_weights_and_unlabeled_rows(family, weighted, n_unlabeled, monkeypatch):
    sizes = (5, 4, 3)
    network = NoisyNetwork(
        sizes,
        "tanh",
        dict.fromkeys((0, 1), make_noise("dropout")),
        0,
        torch.float64,
        fit_intercept=False,
    )
    batch = batch_of(family, sizes, weighted, n_unlabeled)
    assert_same(both_ways(Objective(family, "diagonal"), network, batch, monkeypatch))


@pytest.mark.parametrize("n_classes", [2, 16, 17])
def test_many_classes(n_classes, monkeypatch):
    sizes = (5, 4, n_classes)
    network = NoisyNetwork(
        sizes, "relu", dict.fromkeys((0, 1), make_noise("dropout")), 0, torch.float64
    )
    batch = batch_of(Categorical(), sizes)
    assert_same(both_ways(Objective(Categorical(), "diagonal"), network, batch, monkeypatch))


@pytest.mark.parametrize("sites", [(), (1,)])
def test_quadratic_where_it_is_diagonal(sites, monkeypatch):
    sizes = (5, 4, 3)
    models = dict.fromkeys(sites, make_noise("dropout"))
    network = NoisyNetwork(sizes, "tanh", models, dtype=torch.float64)
    batch = batch_of(Categorical(), sizes)
    assert_same(both_ways(Objective(Categorical(), "quadratic"), network, batch, monkeypatch))


@families
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("noise", NOISE_MODELS)
@pytest.mark.parametrize("sizes", SIZES[1:], ids=str)
@pytest.mark.parametrize("method", ["quadratic", "moments"])
@pytest.mark.parametrize(("n_probes", "n_unlabeled"), [(1, 0), (3, 0), (1, 3), (3, 3)])
def test_random_signs(
    family, activation, noise, sizes, method, n_probes, n_unlabeled, monkeypatch
):
    for placement in [(0,), (1,), range(len(sizes) - 1)]:
        models = {site: make_noise(noise) for site in placement}
        network = NoisyNetwork(sizes, activation, models, dtype=torch.float64)
        objective = Objective(family, method, n_probes, alpha=0.1)
        batch = batch_of(family, sizes, weighted=True, n_unlabeled=n_unlabeled)
        by_hand = METHODS[method].needs_probes(network)
        assert by_hand or (method, tuple(placement), len(sizes)) == ("quadratic", (1,), 3)
        assert_same(both_ways(objective, network, batch, monkeypatch))


def test_wide_float32_layers(monkeypatch):
    """The products of wide layers are rounded alike."""
    sizes = (784, 1024, 10)
    models = dict.fromkeys((0, 1), make_noise("dropout"))
    network = NoisyNetwork(sizes, "relu", models)
    x = randn(100, 784).abs().float()
    y = make_targets(Categorical(), randn(100, 10, seed=1))
    for method, n_probes in [("diagonal", None), ("sampling", None), ("moments", 1)]:
        results = both_ways(
            Objective(Categorical(), method, n_probes), network, WeightedRows.of(x, y), monkeypatch
        )
        (terms, gradients), (terms_autograd, gradients_autograd) = results
        torch.testing.assert_close(terms, terms_autograd, rtol=1e-5, atol=1e-6)
        for gradient, expected in zip(gradients, gradients_autograd, strict=True):
            assert (gradient - expected).norm() < 1e-3 * expected.norm()


@pytest.mark.parametrize("method", ["diagonal", "sampling", "moments"])
def test_noise_that_does_not_know_its_derivatives(method, monkeypatch):
    monkeypatch.setattr("sklearn_margdrop.noise.NOISE_MODELS", {})

    class Sine(Noise):
        name = "sine"
        parameter = "noise_std"
        is_null = False

        def variance(self, z):
            return z.sin().square()

        def sample(self, z, generator=None):
            sign = torch.randint(0, 2, z.shape, generator=generator).to(z.dtype) * 2 - 1
            return z + sign * z.sin()

    network = NoisyNetwork((5, 4, 3), "tanh", {0: Sine(1), 1: Sine(1)}, dtype=torch.float64)
    batch = batch_of(Categorical(), (5, 4, 3))
    objective = Objective(Categorical(), method, n_probes=2)
    assert_same(both_ways(objective, network, batch, monkeypatch))


@families
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("n_unlabeled", [0, 5])
@pytest.mark.parametrize("n_outputs", [1, 3])
def test_blocks_of_rows(family, method, n_unlabeled, n_outputs, monkeypatch):
    """Several blocks, some of them of both kinds of rows, against the whole and autograd."""
    if family.name == "categorical":
        n_outputs += 1  # a single class has no variance
    batch = batch_of(family, (5, n_outputs), weighted=True, n_unlabeled=n_unlabeled)
    network = NoisyNetwork((5, n_outputs), noise={0: make_noise("gaussian")}, dtype=torch.float64)
    objective = Objective(family, method, alpha=0.1)
    if method == "sampling":  # the same draws, whatever the blocks

        def draw(self, z, generator=None):
            return z * (1 + z.sin()), 1 + z.sin() + z * z.cos()

        monkeypatch.setattr(Gaussian, "draw", draw)
        monkeypatch.setattr(Gaussian, "sample", lambda *a, **k: draw(*a, **k)[0])
    whole = objective(network, batch)
    whole.total.backward()
    expected = [p.grad.clone() for p in network.parameters()]
    monkeypatch.setattr(memory, "_CACHE_ELEMENTS", 20)
    monkeypatch.setattr(memory, "_CACHE_ROWS", 1)
    assert len(list(_cut(network, batch))) > 1
    network.zero_grad()
    terms = objective.backward(network, batch)
    torch.testing.assert_close(terms, Terms(*(t.detach() for t in whole)), rtol=1e-10, atol=1e-12)
    gradients = [p.grad for p in network.parameters()]
    torch.testing.assert_close(gradients, expected, rtol=1e-10, atol=1e-12)
    for function in (torch.square, torch.ones_like):
        blocked = objective.mean_curvature(network, batch, function, penalty=True)
        with monkeypatch.context() as patch:
            patch.setattr(memory, "_CACHE_ROWS", 512)
            at_once = objective.mean_curvature(network, batch, function, penalty=True)
        torch.testing.assert_close(blocked, at_once, rtol=1e-10, atol=1e-12)


def test_unlabeled_rows_when_sampling(monkeypatch):
    """The divergence of the noisy from the clean prediction is left to autograd."""
    network = NoisyNetwork((5, 4, 3), "tanh", {0: make_noise("dropout")}, dtype=torch.float64)
    batch = batch_of(Categorical(), (5, 4, 3), n_unlabeled=4)
    objective = Objective(Categorical(), "sampling")
    terms = objective.backward(network, batch, torch.Generator().manual_seed(0))
    gradients = [p.grad.clone() for p in network.parameters()]
    network.zero_grad()
    expected = objective(network, batch, torch.Generator().manual_seed(0))
    expected.total.backward()
    torch.testing.assert_close(terms.total, expected.total.detach())
    torch.testing.assert_close(gradients, [p.grad for p in network.parameters()])


def test_a_family_that_does_not_know_its_derivatives(monkeypatch):
    """One that couples its outputs in a way of its own."""

    class Coupled(Categorical):
        curvature_trace_vjp = Family.curvature_trace_vjp
        second_order_vjp = Family.second_order_vjp

        def curvature_trace(self, eta, variance, weight):
            return 3 * super().curvature_trace(eta, variance, weight)

        def second_order(self, eta, tangent):
            return 3 * super().second_order(eta, tangent)

    network = NoisyNetwork((5, 4, 3), "tanh", {0: make_noise("dropout")}, dtype=torch.float64)
    batch = batch_of(Categorical(), (5, 4, 3))
    for objective in (Objective(Coupled(), "diagonal"), Objective(Coupled(), "quadratic", 2)):
        assert_same(both_ways(objective, network, batch, monkeypatch))
