"""The penalties against autograd, loops, enumerated masks and known special cases."""

from functools import partial
from itertools import product

import oracles
import pytest
import torch
from oracles import NULL_STRENGTHS, expected, make_noise, randn, weights_of, z_score
from torch.autograd.functional import hessian
from torch.func import functional_call

from sklearn_margdrop.families import FAMILIES, Bernoulli, Normal
from sklearn_margdrop.layers import ACTIVATIONS
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.noise import NOISE_MODELS, Dropout, Gaussian, random_signs
from sklearn_margdrop.penalties import (
    diagonal,
    moments_by_pairs,
    quadratic,
    quadratic_by_tangents,
)

#: Hidden layers and noisy sites: input, hidden, both, and a single site in the middle.
LAYOUTS = {
    "glm": ((), (0,)),
    "1-input": ((4,), (0,)),
    "1-hidden": ((4,), (1,)),
    "1-both": ((4,), (0, 1)),
    "2-input": ((4, 5), (0,)),
    "2-middle": ((4, 5), (1,)),
    "2-last": ((4, 5), (2,)),
    "2-hidden": ((4, 5), (1, 2)),
    "2-both": ((4, 5), (0, 1, 2)),
    "3-input": ((4, 3, 5), (0,)),
    "3-middle": ((4, 3, 5), (2,)),
    "3-hidden": ((4, 3, 5), (1, 2, 3)),
    "3-both": ((4, 3, 5), (0, 1, 2, 3)),
}
#: Sums of some hundred float64 products, in another order. R can be tiny, hence no atol.
EXACT = {"rtol": 1e-10, "atol": 0}

families = pytest.mark.parametrize("family", [f() for f in FAMILIES.values()], ids=repr)
activations = pytest.mark.parametrize("activation", ACTIVATIONS)
noises = pytest.mark.parametrize("noise", NOISE_MODELS)
layouts = pytest.mark.parametrize("layout", LAYOUTS)


def problem(layout, activation, noise, n_rows=3, n_outputs=3):
    """A network, its noise by site (a different strength at each) and rows."""
    hidden, sites = LAYOUTS[layout]
    strengths = ({"retain_rate": 0.5 + 0.1 * s, "noise_std": 0.2 + 0.1 * s} for s in sites)
    models = {s: make_noise(noise, strength) for s, strength in zip(sites, strengths, strict=True)}
    network = NoisyNetwork([4, *hidden, n_outputs], activation, models, dtype=torch.float64)
    return network, models, randn(n_rows, 4)


@families
@activations
@noises
@layouts
def test_against_the_definitions(family, activation, noise, layout):
    network, models, x = problem(layout, activation, noise)
    weights, trace = weights_of(network), network.trace(x)
    exact = oracles.quadratic(weights, activation, family, models, x)
    torch.testing.assert_close(quadratic(trace, family), exact, **EXACT)
    assert exact.max() > 0
    slow = oracles.diagonal(weights, activation, family, models, x)
    torch.testing.assert_close(diagonal(trace, family), slow, **EXACT)
    if len(LAYOUTS[layout][1]) == 1 and max(LAYOUTS[layout][1]) == len(LAYOUTS[layout][0]):
        torch.testing.assert_close(diagonal(trace, family), exact, **EXACT)
    elif activation != "relu":  # dead units can leave nothing to cross
        assert (diagonal(trace, family) / exact - 1).abs().max() > 1e-4


@families
@noises
@pytest.mark.parametrize("penalty", [diagonal, quadratic])
def test_never_negative_and_zero_without_noise(family, noise, penalty):
    network, models, _ = problem("2-both", "relu", noise)
    x = 3 * randn(200, 4, seed=1)
    assert penalty(network.trace(x), family).min() >= 0
    null = {site: make_noise(noise, NULL_STRENGTHS) for site in models}
    silent = NoisyNetwork([4, 4, 5, 3], "relu", null, dtype=torch.float64)
    zero = penalty(silent.trace(x), family)
    torch.testing.assert_close(zero, torch.zeros_like(zero), rtol=0, atol=0)


def of_parameters(terms, network, x):
    """Terms of the network as a function of the input and of every weight and bias."""
    names = [name for name, _ in network.named_parameters()]

    class Traced(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            return terms(self.network, x)

    def function(x, *parameters):
        named = {f"network.{n}": p for n, p in zip(names, parameters, strict=True)}
        return functional_call(Traced(), named, (x,))

    return function, (x.requires_grad_(), *network.parameters())


@families
@activations
@pytest.mark.parametrize("penalty", [diagonal, quadratic])
def test_gradient(family, activation, penalty):
    network, _, x = problem("2-both", activation, "dropout", n_rows=2, n_outputs=2)
    assert torch.autograd.gradcheck(
        *of_parameters(lambda network, x: penalty(network.trace(x), family), network, x)
    )


def value_and_slope(values, network):
    """Their sum, and its derivative along a fixed direction of the parameters."""
    parameters = list(network.parameters())
    direction = [randn(*p.shape, seed=i) for i, p in enumerate(parameters)]
    # The output layer's bias moves eta alone, which the normal family's R ignores.
    grads = torch.autograd.grad(values.sum(), parameters, materialize_grads=True)
    slope = sum((g * d).sum() for g, d in zip(grads, direction, strict=True))
    return torch.stack([values.sum().detach(), slope])


@families
@noises
@pytest.mark.parametrize("layout", ["1-input", "1-both", "2-middle", "2-both"])
@pytest.mark.parametrize("n_probes", [1, 3])
def test_tangents_are_unbiased(family, noise, layout, n_probes):
    """Of the whole second order, with all sites and all cross terms."""
    network, _, x = problem(layout, "tanh", noise, n_outputs=4)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack(
        [
            value_and_slope(
                quadratic_by_tangents(network, family, x, n_probes, generator)[1], network
            )
            for _ in range(1000)
        ]
    )
    exact = value_and_slope(quadratic(network.trace(x), family), network)
    assert z_score(draws, exact) < 4


@families
@activations
@noises
@layouts
def test_tangents_are_those_of_autograd(family, activation, noise, layout):
    network, models, x = problem(layout, activation, noise)
    weights, eta = weights_of(network), network(x).detach()
    generator = torch.Generator().manual_seed(0)
    tangents = torch.zeros(2, *eta.shape, dtype=eta.dtype)
    zs = oracles.sites_of(weights, activation, x)
    for site, model in models.items():
        signs = random_signs((2, *zs[site].shape), x, generator)
        for n, z in enumerate(zs[site]):
            jacobian = torch.func.jacrev(partial(oracles.tail, weights, activation, site))(z)
            tangents[:, n] += (signs[:, n] * model.deviation(z)) @ jacobian.mT
    hessians = torch.stack([hessian(family.log_partition, row) for row in eta])
    slow = 0.5 * torch.einsum("rnk,nkl,rnl->rn", tangents, hessians, tangents).mean(0)
    generator.manual_seed(0)
    (found_eta,), found = quadratic_by_tangents(network, family, x, 2, generator)
    torch.testing.assert_close(found_eta, eta)
    torch.testing.assert_close(found, slow, rtol=1e-9, atol=1e-12)
    assert found.max() > 0


@families
@activations
@noises
@layouts
def test_pairs_are_mean_losses_under_opposite_noise(family, activation, noise, layout):
    """Layer by layer, with the noise of a row and of its opposite written out."""
    network, models, x = problem(layout, activation, noise)
    y = oracles.make_targets(family, randn(3, 3, seed=1))
    generator = torch.Generator().manual_seed(0)
    pair = [x.expand(2, *x.shape)] * 2
    for site, layer in enumerate(weights_of(network)):
        if site in models:
            signs = random_signs((2, *pair[0].shape[1:]), x, generator)
            pair = [
                z + sign * signs * models[site].deviation(z)
                for sign, z in zip((1, -1), pair, strict=True)
            ]
        pair = [oracles.tail([layer], activation, 0, z) for z in pair]
        if site < len(network.linears) - 1:
            pair = [ACTIVATIONS[activation]()(z) for z in pair]
    slow = torch.stack([family.loss(eta, y) for z in pair for eta in z]).mean(0)
    generator.manual_seed(0)
    etas, R = moments_by_pairs(network, family, x, 2, generator)
    loss = torch.stack([family.loss(eta, y) for eta in etas]).mean(0)
    torch.testing.assert_close(loss + R, slow, rtol=1e-10, atol=1e-12)
    assert R.min() >= 0
    assert R.max() > 0


@families
@noises
def test_pairs_without_hidden_layers_are_the_expectation_over_the_signs(family, noise):
    """All 2^4 signs; with dropout at q = 1/2 these are all masks."""
    model = make_noise(noise, {"retain_rate": 0.5, "noise_std": 0.7})
    network = NoisyNetwork([4, 3], noise={0: model}, dtype=torch.float64)
    (weight, bias), x = weights_of(network)[0], randn(3, 4)
    signs = torch.tensor(list(product([-1.0, 1.0], repeat=4)), dtype=x.dtype)
    eta = (x.unsqueeze(1) + signs * model.deviation(x).unsqueeze(1)) @ weight.mT + bias
    exact = family.log_partition(eta).mean(1) - family.log_partition(x @ weight.mT + bias)
    generator = torch.Generator().manual_seed(0)
    draws = [moments_by_pairs(network, family, x, 1, generator)[1].detach() for _ in range(1000)]
    assert z_score(torch.stack(draws), exact) < 4


@families
@pytest.mark.parametrize("estimate", [quadratic_by_tangents, moments_by_pairs])
def test_estimates_agree_with_the_second_order_for_weak_noise(family, estimate):
    """The error falls fourfold when the standard deviation halves, relative to R itself."""
    errors = []
    for std in (0.02, 0.01):
        network = NoisyNetwork(
            [4, 5, 3], "tanh", dict.fromkeys((0, 1), Gaussian(std)), dtype=torch.float64
        )
        generator = torch.Generator().manual_seed(0)
        _, R = estimate(network, family, randn(3, 4), 1, generator)
        generator.manual_seed(0)
        _, tangents = quadratic_by_tangents(network, family, randn(3, 4), 1, generator)
        errors.append((R / tangents - 1).abs().max().item())
    assert errors == [0, 0] or 3.5 < errors[0] / errors[1] < 4.5


@families
@pytest.mark.parametrize("estimate", [quadratic_by_tangents, moments_by_pairs])
def test_gradient_of_estimates(family, estimate):
    network, _, x = problem("2-both", "tanh", "dropout", n_rows=2, n_outputs=2)

    def terms(network, x):
        return estimate(network, family, x, 2, torch.Generator().manual_seed(0))

    assert torch.autograd.gradcheck(*of_parameters(terms, network, x))


@families
@pytest.mark.parametrize("estimate", [quadratic_by_tangents, moments_by_pairs])
def test_estimates_are_zero_without_noise(family, estimate):
    network = NoisyNetwork([4, 4, 3], dtype=torch.float64)
    eta, R = estimate(network, family, randn(5, 4))
    assert not R.any()
    torch.testing.assert_close(eta[0], network(randn(5, 4)))


@pytest.mark.parametrize("family", [FAMILIES[n]() for n in FAMILIES if n != "normal"], ids=repr)
def test_error_falls_fourfold_when_the_variance_halves(family):
    """Against all 2^8 masks, for a linear model.

    At q = 1/2 dropout is symmetric, so that no third moment enters; the noise is made smaller
    by smaller inputs, with the intercept making up for what they took from eta.
    """
    row, weight, bias = randn(1, 8), 0.2 * randn(3, 8, seed=1), randn(3, seed=2)
    eta = row @ weight.T + bias
    errors = []
    for scale in (0.2, 0.2 / 2**0.5):
        x = scale * row
        weights = [(weight, (eta - x @ weight.T)[0])]
        network = NoisyNetwork([8, 3], noise={0: Dropout(0.5)}, dtype=torch.float64)
        network.linears[0].load_state_dict(dict(zip(("weight", "bias"), weights[0], strict=True)))
        exact = expected(weights, "relu", {0: 0.5}, x, lambda e, i: family.divergence(e, eta[i]))
        errors.append((quadratic(network.trace(x), family) - exact).item())
    assert 3.5 < errors[0] / errors[1] < 4.5


@pytest.mark.parametrize("q", [0.3, 0.8])
def test_exact_for_the_normal_family_without_hidden_layers(q):
    """A is quadratic and eta linear: nothing is left for higher orders."""
    family, x = Normal(), randn(3, 8)
    network = NoisyNetwork([8, 3], noise={0: Dropout(q)}, dtype=torch.float64)
    clean, weights = network(x).detach(), weights_of(network)
    exact = expected(weights, "relu", {0: q}, x, lambda e, i: family.divergence(e, clean[i]))
    torch.testing.assert_close(quadratic(network.trace(x), family), exact, **EXACT)


def test_gaussian_input_noise_on_a_linear_model_is_a_ridge_penalty():
    """std^2 / 2 ||w||^2 per output, whatever the row."""
    network = NoisyNetwork([8, 3], noise={0: Gaussian(0.7)}, dtype=torch.float64)
    ridge = 0.5 * 0.7**2 * network.linears[0].weight.square().sum()
    for penalty in (diagonal, quadratic):
        rows = penalty(network.trace(randn(5, 8)), Normal())
        torch.testing.assert_close(rows, ridge.expand(5), **EXACT)


def test_dropout_on_logistic_regression_is_the_fisher_scaled_penalty():
    """1/2 (1-q)/q sum_j p (1-p) x_j^2 w_j^2 (W, Eq. 11)."""
    network = NoisyNetwork([8, 1], noise={0: Dropout(0.8)}, dtype=torch.float64)
    x = randn(5, 8)
    p, w = network(x).sigmoid(), network.linears[0].weight
    by_hand = 0.5 * 0.25 * (p * (1 - p) * x.square() * w.square()).sum(1)
    for penalty in (diagonal, quadratic):
        torch.testing.assert_close(penalty(network.trace(x), Bernoulli()), by_hand, **EXACT)
