"""The penalties against autograd, loops, enumerated masks and known special cases."""

from functools import partial

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
from sklearn_margdrop.penalties import diagonal, probed, quadratic

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


def of_parameters(penalty, network, family, x):
    """The penalty as a function of the input and of every weight and bias."""
    names = [name for name, _ in network.named_parameters()]

    class Traced(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = network

        def forward(self, x):
            return penalty(self.network.trace(x), family)

    def function(x, *parameters):
        named = {f"network.{n}": p for n, p in zip(names, parameters, strict=True)}
        return functional_call(Traced(), named, (x,))

    return function, (x.requires_grad_(), *network.parameters())


@families
@activations
@pytest.mark.parametrize("penalty", [diagonal, quadratic])
def test_gradient(family, activation, penalty):
    network, _, x = problem("2-both", activation, "dropout", n_rows=2, n_outputs=2)
    assert torch.autograd.gradcheck(*of_parameters(penalty, network, family, x))


def value_and_slope(penalty, network, x):
    """The penalty of some rows, and its derivative along a fixed direction."""
    parameters = list(network.parameters())
    direction = [randn(*p.shape, seed=i) for i, p in enumerate(parameters)]
    total = penalty(network.trace(x)).sum()
    # The output layer's bias moves eta alone, which the normal family's R ignores.
    grads = torch.autograd.grad(total, parameters, materialize_grads=True)
    slope = sum((g * d).sum() for g, d in zip(grads, direction, strict=True))
    return torch.stack([total.detach(), slope])


@families
@noises
@pytest.mark.parametrize("layout", ["1-input", "1-both", "2-middle", "2-both"])
@pytest.mark.parametrize("n_probes", [1, 3])
def test_probes_are_unbiased(family, noise, layout, n_probes):
    """Of the whole second order, with all sites and all cross terms."""
    network, _, x = problem(layout, "tanh", noise, n_outputs=4)
    generator = torch.Generator().manual_seed(0)
    draws = torch.stack(
        [
            value_and_slope(
                lambda trace: probed(trace, family.second_order, n_probes, generator), network, x
            )
            for _ in range(1000)
        ]
    )
    exact = value_and_slope(lambda trace: quadratic(trace, family), network, x)
    assert z_score(draws, exact) < 4


@families
@activations
@noises
@layouts
@pytest.mark.parametrize("probe", ["second_order", "paired_gap"])
def test_probes_are_expectations_over_the_signs(family, activation, noise, layout, probe):
    """Tangents by autograd's Jacobians, and A itself, for the same signs."""
    network, models, x = problem(layout, activation, noise)
    weights, eta = weights_of(network), network(x).detach()
    generator = torch.Generator().manual_seed(0)
    tangents = torch.zeros(2, *eta.shape, dtype=eta.dtype)
    zs = oracles.sites_of(weights, activation, x)
    for site, model in models.items():
        signs = random_signs((2, *zs[site].shape), x, generator)
        for n, z in enumerate(zs[site]):
            jacobian = torch.func.jacrev(partial(oracles.tail, weights, activation, site))(z)
            # Of either sign, as the root is.
            tangents[:, n] += (signs[:, n] * model.deviation(z)) @ jacobian.mT
            torch.testing.assert_close(model.deviation(z).square(), model.variance(z))
    if probe == "paired_gap":
        pair = family.log_partition(eta + tangents) + family.log_partition(eta - tangents)
        slow = 0.5 * pair - family.log_partition(eta)
    else:
        hessians = torch.stack([hessian(family.log_partition, row) for row in eta])
        slow = 0.5 * torch.einsum("rnk,nkl,rnl->rn", tangents, hessians, tangents)
    generator.manual_seed(0)
    found = probed(network.trace(x), getattr(family, probe), 2, generator)
    torch.testing.assert_close(found, slow.mean(0), rtol=1e-9, atol=1e-12)
    assert found.max() > 0


@families
@pytest.mark.parametrize("probe", ["second_order", "paired_gap"])
def test_gradient_of_probes(family, probe):
    network, _, x = problem("2-both", "tanh", "dropout", n_rows=2, n_outputs=2)

    def penalty(trace, family):
        return probed(trace, getattr(family, probe), 2, torch.Generator().manual_seed(0))

    assert torch.autograd.gradcheck(*of_parameters(penalty, network, family, x))


@families
def test_paired_gap_agrees_to_second_order(family):
    eta, tangent = randn(20, 3), 0.1 * randn(20, 3, seed=1)
    errors = [
        (family.paired_gap(eta, t) - family.second_order(eta, t)).abs().max()
        for t in (tangent, tangent / 2)
    ]
    assert errors[1] < errors[0] / 14 or errors[0] < 1e-12  # of the fourth order


@families
@pytest.mark.parametrize("probe", ["second_order", "paired_gap"])
def test_probes_are_never_negative_and_zero_without_noise(family, probe):
    eta, tangent = 5 * randn(200, 3), 5 * randn(2, 200, 3, seed=1)
    of = getattr(family, probe)
    assert of(eta, tangent).min() >= 0
    assert of(eta.float(), 1e-3 * tangent.float()).min() >= 0
    assert not of(eta, torch.zeros_like(tangent)).any()
    silent = NoisyNetwork([4, 4, 3], dtype=torch.float64)
    assert not probed(silent.trace(randn(5, 4)), of).any()


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
