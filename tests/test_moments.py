"""The expectation itself: closed forms against every mask, adaptive quadrature and samples."""

import numpy as np
import pytest
import torch
from oracles import expected, make_noise, randn
from scipy.integrate import quad
from torch.func import vmap

from sklearn_margdrop import layers
from sklearn_margdrop.families import FAMILIES, Bernoulli, Categorical, Normal, Poisson
from sklearn_margdrop.networks import NoisyNetwork, trace
from sklearn_margdrop.noise import NOISE_MODELS, Dropout, Gaussian
from sklearn_margdrop.penalties import moments, quadratic

N, D = 5, 6

families = pytest.mark.parametrize("family", [f() for f in FAMILIES.values()], ids=repr)
noises = pytest.mark.parametrize("noise", [make_noise(name) for name in NOISE_MODELS], ids=repr)


def model(noise, n_outputs, scale=1.0, seed=0):
    """A network without hidden layers, its weights as the oracles want them, and rows."""
    network = NoisyNetwork([D, n_outputs], noise={0: noise}, seed=seed, dtype=torch.float64)
    with torch.no_grad():
        network.linears[0].weight.mul_(scale)
    (linear,) = network.linears
    x = randn(N, D, seed=seed + 1)
    x[0, 2] = 0
    return network, [(linear.weight.detach(), linear.bias.detach())], x


def enumerated(family, q, weights, x):
    """E A(eta~) - A(eta) over all masks."""
    clean = family.log_partition(x @ weights[0][0].T + weights[0][1])
    return expected(weights, None, {0: q}, x, lambda eta, i: family.log_partition(eta)) - clean


@pytest.mark.parametrize("family", [Normal(), Poisson()], ids=repr)
@pytest.mark.parametrize("q", [0.01, 0.3, 0.8, 1.0])
@pytest.mark.parametrize("n_outputs", [1, 3])
@pytest.mark.parametrize("scale", [0.1, 3.0])
def test_dropout_in_closed_form_equals_all_masks(family, q, n_outputs, scale):
    network, weights, x = model(Dropout(q), n_outputs, scale * min(1.0, 3 * q))
    found = moments(network.trace(x), family)
    torch.testing.assert_close(found, enumerated(family, q, weights, x), rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("family", [Normal(), Bernoulli(), Poisson()], ids=repr)
@pytest.mark.parametrize("std", [0.0, 0.1, 1.0, 5.0])
def test_gaussian_noise_equals_adaptive_quadrature(family, std):
    network, [(weight, bias)], x = model(Gaussian(std), 1)
    found = moments(network.trace(x), family)
    root = std * weight.norm().item()
    for row, gap in zip(x, found, strict=True):
        eta = (weight @ row + bias).item()

        def rise(e, eta=eta):
            at = torch.tensor([[eta + root * e], [eta]], dtype=torch.float64)
            noisy, clean = family.log_partition(at).tolist()
            return (noisy - clean) * np.exp(-0.5 * e * e) / np.sqrt(2 * np.pi)

        kink = [-eta / root] if 0 < abs(eta) < 12 * root else None
        by_quadrature = quad(rise, -20, 20, points=kink, epsabs=1e-12, limit=500)[0]
        assert gap.item() == pytest.approx(by_quadrature, rel=1e-8, abs=1e-10)


@pytest.mark.parametrize("family", [Bernoulli(), Categorical()], ids=repr)
@pytest.mark.parametrize("q", [0.5, 0.8])
def test_of_a_gaussian_with_the_moments_of_dropout(family, q):
    """Nearer to the exact expectation over masks than the second order is."""
    errors = []
    for seed in range(10):
        n_outputs = 1 if family.name == "bernoulli" else 3
        network, weights, x = model(Dropout(q), n_outputs, 2.0, seed)
        exact = enumerated(family, q, weights, x)
        at = network.trace(x)
        penalties = moments(at, family), quadratic(at, family)
        errors.append([((p - exact).abs().mean() / exact.mean()).item() for p in penalties])
    error, second_order = np.mean(errors, axis=0)
    assert error < 0.25
    assert error < 0.75 * second_order


@pytest.mark.parametrize("n_classes", [3, 10, 30])
@noises
def test_categorical_rule_against_samples(n_classes, noise):
    network, _, x = model(noise, n_classes, 2.0)
    found = moments(network.trace(x), Categorical())
    (linear,) = network.linears
    v = noise.variance(x).expand_as(x)
    draws = randn(20000, N, D, seed=7)
    eta = linear(x)
    shifts = (draws * v.sqrt()) @ linear.weight.T
    rise = 0.5 * ((eta + shifts).logsumexp(-1) + (eta - shifts).logsumexp(-1)) - eta.logsumexp(-1)
    error = (found - rise.mean(0)).abs()
    assert error.mean() < 0.12 * rise.mean()
    assert (error < 0.3 * rise.mean(0)).all()


@families
@noises
def test_error_of_the_second_order_falls_with_the_square_of_the_variance(family, noise):
    if family.name == "poisson" and noise.name == "dropout":
        pytest.skip("the third moment of a mask falls no faster than its variance")
    n_outputs = 3 if family.name == "categorical" else 1
    differences = []
    for factor in (1e-2, 1e-3):
        strength = 1 / (1 + factor) if noise.name == "dropout" else factor**0.5
        network, _, x = model(type(noise)(strength), n_outputs)
        at = network.trace(x)
        differences.append((moments(at, family) - quadratic(at, family)).abs().max().item())
    assert differences[1] < differences[0] / 50 + 1e-11


@families
@noises
def test_gradients(family, noise):
    network, _, x = model(noise, 3 if family.name == "categorical" else 2)
    layer = network.linears[0]

    def penalty(weight, bias):
        copy = torch.nn.Linear(D, len(weight), dtype=torch.float64)
        del copy.weight, copy.bias
        copy.weight, copy.bias = weight, bias
        return moments(trace([copy], x, {0: noise}), family)

    inputs = [p.detach().requires_grad_() for p in (layer.weight, layer.bias)]
    assert torch.autograd.gradcheck(penalty, inputs, rtol=1e-4, atol=1e-6)
    start = [torch.zeros_like(p).requires_grad_() for p in inputs]
    penalty(*start).sum().backward()
    assert start[0].grad.isfinite().all()


@families
@noises
def test_penalty_is_not_negative_and_zero_without_noise(family, noise):
    n_outputs = 3 if family.name == "categorical" else 1
    for scale in (0.0, 1e-3, 1.0, 30.0):
        network, _, x = model(noise, n_outputs, scale)
        assert (moments(network.trace(x), family) >= 0).all()
    null = type(noise)({"retain_rate": 1.0, "noise_std": 0.0}[noise.parameter])
    network, _, x = model(null, n_outputs)
    assert (moments(network.trace(x), family) == 0).all()


@families
@noises
def test_under_vmap(family, noise):
    network, _, x = model(noise, 3 if family.name == "categorical" else 1)
    stacked = torch.stack([x, 2 * x, -x])
    together = vmap(lambda rows: moments(network.trace(rows), family))(stacked)
    alone = torch.stack([moments(network.trace(rows), family) for rows in stacked])
    torch.testing.assert_close(together, alone)


def test_dense_cumulants_in_blocks(monkeypatch):
    network, _, x = model(Dropout(0.5), 2)
    at_once = moments(network.trace(x), Poisson())
    at_once.sum().backward()
    grad = network.linears[0].weight.grad.clone()
    monkeypatch.setattr(layers, "blocks", lambda n, width: [slice(0, 2), slice(2, n)])
    network.zero_grad()
    in_blocks = moments(network.trace(x), Poisson())
    in_blocks.sum().backward()
    torch.testing.assert_close(in_blocks, at_once)
    torch.testing.assert_close(network.linears[0].weight.grad, grad)


@families
@pytest.mark.parametrize("sites", [(0,), (0, 1), (1,)], ids=str)
def test_noise_of_hidden_layers(family, sites):
    """The variances of `diagonal` at the last layer, as if all of it were gaussian noise there."""
    noises = {site: Dropout(0.8) for site in sites}
    network = NoisyNetwork([D, 4, 3], "tanh", noises, dtype=torch.float64)
    traced = network.trace(randn(N, D))
    hidden = network.layers[1](network.layers[0](randn(N, D)))
    variance = torch.zeros_like(hidden)
    if 0 in sites:
        slope = 1 - hidden.square()
        variance = slope.square() * (traced.variances[0] @ network.linears[0].weight.square().mT)
    if 1 in sites:
        variance = variance + 0.25 * hidden.square()
    noise = layers.NoisyInput(
        Dropout(0.8) if sites == (1,) else None, hidden, variance, network.linears[1].weight
    )
    torch.testing.assert_close(moments(traced, family), family.jensen_gap(traced.eta, noise))
    assert moments(traced, family).min() > 0
