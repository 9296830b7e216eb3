"""The noisy network against networks written by hand."""

import pytest
import torch
from oracles import NULL_STRENGTHS, make_noise, randn, sites_of, tail, weights_of
from torch import nn

from sklearn_margdrop.layers import ACTIVATIONS
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.noise import NOISE_MODELS, Dropout, Gaussian

SIZES = [(5, 3), (5, 4, 3), (5, 6, 4, 2), (5, 3, 6, 4, 1)]


def by_hand(network, activation):
    """The same weights in a plain ``torch.nn.Sequential``."""
    modules = []
    for weight, bias in weights_of(network):
        linear = nn.utils.skip_init(nn.Linear, *weight.T.shape, dtype=weight.dtype)
        linear.load_state_dict({"weight": weight, "bias": bias})
        modules += [linear, ACTIVATIONS[activation]()]
    return nn.Sequential(*modules[:-1])


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("sizes", SIZES)
def test_forward_and_trace(sizes, activation):
    noise = {0: Gaussian(0.5), len(sizes) - 2: Gaussian(0.5)}
    network = NoisyNetwork(sizes, activation, noise, dtype=torch.float64)
    x = randn(7, 5)
    assert [p.shape for p in network.linears[0].parameters()] == [(sizes[1], 5), (sizes[1],)]
    torch.testing.assert_close(network(x), by_hand(network, activation)(x), rtol=0, atol=0)
    torch.testing.assert_close(network.trace(x).eta, network(x), rtol=0, atol=0)


@pytest.mark.parametrize("name", NOISE_MODELS)
@pytest.mark.parametrize("sites", [(), (0,), (1,), (2,), (0, 2), (0, 1, 2)])
def test_noise_enters_at_its_site(sites, name):
    noise = make_noise(name)
    network = NoisyNetwork([5, 6, 4, 3], "tanh", dict.fromkeys(sites, noise), dtype=torch.float64)
    weights, x = weights_of(network), randn(7, 5)
    zs = sites_of(weights, "tanh", x)
    variances = dict(enumerate(network.trace(x).variances))
    out = x
    for site, (number, width, model, position, layers) in enumerate(network.sites):
        out = nn.Sequential(*layers)(out)
        torch.testing.assert_close(out, zs[site], rtol=1e-12, atol=0)
        assert (number, width, model) == (site, [5, 6, 4][site], noise if site in sites else None)
        variance = variances.pop(position)
        assert (variance is not None) == (site in sites)
        if site in sites:
            torch.testing.assert_close(variance, noise.variance(zs[site]), rtol=1e-12, atol=0)
    assert set(variances.values()) == {None}

    generator = torch.Generator().manual_seed(3)
    z = x
    for site in range(3):
        z = noise.sample(z, generator) if site in sites else z
        z = tail(weights[site : site + 1], "tanh", 0, z)
        z = z.tanh() if site < 2 else z
    sample = network.sample(x, torch.Generator().manual_seed(3))
    torch.testing.assert_close(sample, z, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("name", NOISE_MODELS)
def test_null_noise_is_no_noise(name):
    null = make_noise(name, NULL_STRENGTHS)
    network = NoisyNetwork([5, 4, 3], noise={0: null, 1: null})
    x = randn(7, 5, dtype=torch.float32)
    assert not network.noise
    torch.testing.assert_close(network.sample(x), network(x), rtol=0, atol=0)
    assert set(network.trace(x).variances) == {None}


def test_seed_decides_the_weights_and_nothing_else_does():
    before = torch.get_rng_state()
    networks = [NoisyNetwork([5, 4, 3], seed=seed) for seed in (1, 1, 2)]
    assert torch.equal(torch.get_rng_state(), before)
    first, again, other = (nn.utils.parameters_to_vector(n.parameters()) for n in networks)
    assert torch.equal(first, again)
    assert (first != other).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype(dtype):
    network = NoisyNetwork([5, 4, 3], noise={0: Gaussian(0.1)}, dtype=dtype)
    x = randn(7, 5, dtype=dtype)
    tensors = [*network.parameters(), network(x), network.sample(x), network.trace(x).variances[0]]
    assert {tensor.dtype for tensor in tensors} == {dtype}


def test_site_that_does_not_exist():
    with pytest.raises(ValueError, match=r"sites \[2\].*sites \[0, 1\]"):
        NoisyNetwork([3, 4, 2], noise={2: Dropout(0.5)})
