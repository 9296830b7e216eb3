"""Noise models do what they claim, and a new one needs a class and nothing else."""

import oracles
import pytest
import torch
from oracles import NULL_STRENGTHS, make_noise, randn, z_score

from sklearn_margdrop import penalties
from sklearn_margdrop.families import Categorical
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.noise import NOISE_MODELS, Noise, random_signs

Z = torch.tensor([-2.0, -0.3, 0.1, 0.7, 1.5, 3.0], dtype=torch.float64)


@pytest.fixture
def errors():
    """Draw z~ - z for independent rows."""

    def draw(noise, n_draws=40_000):
        generator = torch.Generator().manual_seed(0)
        return noise.sample(Z.expand(n_draws, -1), generator) - Z

    return draw


@pytest.mark.parametrize("name", NOISE_MODELS)
def test_unbiased_with_the_stated_variance(name, errors):
    noise = make_noise(name)
    drawn = errors(noise)
    assert z_score(drawn, 0.0) < 4
    assert z_score(drawn.square(), noise.variance(Z)) < 4


@pytest.mark.parametrize("name", NOISE_MODELS)
def test_units_and_rows_are_independent(name, errors):
    drawn = errors(make_noise(name))
    assert z_score(drawn[:, :-1] * drawn[:, 1:], 0.0) < 4
    assert z_score(drawn[::2] * drawn[1::2], 0.0) < 4


@pytest.mark.parametrize("name", NOISE_MODELS)
def test_null_is_exactly_no_noise(name):
    null = make_noise(name, NULL_STRENGTHS)
    assert null.is_null
    assert not make_noise(name).is_null
    torch.testing.assert_close(null.sample(Z), Z, rtol=0, atol=0)
    torch.testing.assert_close(null.variance(Z), torch.zeros_like(Z), rtol=0, atol=0)


@pytest.mark.parametrize("name", NOISE_MODELS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_reproducible_without_the_global_state(name, dtype):
    noise, z = make_noise(name), Z.to(dtype)
    before = torch.get_rng_state()
    first, again, other = (noise.sample(z, torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert first.dtype == noise.variance(z).dtype == dtype
    assert first.shape == noise.variance(z).shape == z.shape


@pytest.mark.parametrize("name", NOISE_MODELS)
def test_variance_is_differentiable(name):
    z = Z.clone().requires_grad_()
    assert torch.autograd.gradcheck(make_noise(name).variance, z)


@pytest.mark.parametrize("name", NOISE_MODELS)
def test_slopes_are_the_derivatives(name):
    noise = make_noise(name)
    z = Z.clone().requires_grad_()
    (expected,) = torch.autograd.grad(noise.variance(z).sum() + 0 * z.sum(), z)
    slope = noise.variance_slope(Z)
    assert slope is None or not slope.requires_grad
    torch.testing.assert_close(torch.zeros_like(Z) if slope is None else slope, expected)

    def seeded():
        return torch.Generator().manual_seed(0)

    sample = noise.sample(z, seeded())
    (expected,) = torch.autograd.grad(sample.sum(), z)
    drawn, slope = noise.draw(Z, seeded())
    torch.testing.assert_close(drawn, sample.detach(), rtol=0, atol=0)
    torch.testing.assert_close(torch.ones_like(Z) if slope is None else slope, expected)


@pytest.mark.parametrize("name", NOISE_MODELS)
def test_displacements_of_one_deviation(name):
    noise, signs = make_noise(name), randn(2, *Z.shape, seed=1).sign()
    z = Z.clone().requires_grad_()
    expected = signs * noise.deviation(z)
    (slope,) = torch.autograd.grad(expected[0].sum() + 0 * z.sum(), z)
    torch.testing.assert_close(noise.deviation(Z).square(), noise.variance(Z))
    displaced, found = noise.displace(Z, signs.clone())
    torch.testing.assert_close(displaced, expected.detach())
    torch.testing.assert_close(torch.zeros_like(Z) if found is None else found[0], slope)


@pytest.mark.parametrize("name", NOISE_MODELS)
def test_opposite_displacements(name):
    noise = NOISE_MODELS[name](0.4)
    pair = torch.stack([Z, 2 * Z])
    signs = random_signs((1, *Z.shape), Z, torch.Generator().manual_seed(0))
    displacement, slope = noise.displace(pair, torch.cat([signs, -signs]))
    displaced, found = noise.mirror(pair, signs.clone())
    torch.testing.assert_close(displaced, pair + displacement)
    expected = torch.ones_like(pair) if slope is None else 1 + slope
    torch.testing.assert_close(torch.ones_like(pair) if found is None else found, expected)


def test_the_deviation_has_a_derivative_where_there_is_no_noise():
    class Fading(Noise):
        """As strong as the square of the activation."""

        parameter = "noise_std"
        is_null = False

        def variance(self, z):
            return z**4

        def sample(self, z, generator=None):
            raise NotImplementedError

    z = torch.tensor([0.0, 3.0], dtype=torch.float64, requires_grad=True)
    deviation = Fading(1).deviation(z)
    (slope,) = torch.autograd.grad(deviation.sum(), z)
    assert deviation.tolist() == [0, 9]
    assert slope.tolist() == [0, 6]


def test_signs_are_random_and_reproducible():
    before = torch.get_rng_state()
    like = torch.empty(0, dtype=torch.float32)
    first, again = (random_signs((1001, 9), like, torch.Generator().manual_seed(1)) for _ in "ab")
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, again)
    assert first.dtype == like.dtype
    assert set(first.flatten().tolist()) == {1.0, -1.0}
    assert z_score(first.double(), 0.0) < 4
    assert z_score(first[:, 1:].double() * first[:, :-1].double(), 0.0) < 4
    assert z_score(first[1:].double() * first[:-1].double(), 0.0) < 4


@pytest.mark.parametrize("retain_rate", [2.0**-12, 2.0**-8, 0.3, 0.999, 1 - 2.0**-12])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_retain_rates_are_kept(retain_rate, dtype):
    """Packed bits are as fine as a test of a million draws can tell, or are not used."""
    n = 1_000_001  # no multiple of four
    sample = NOISE_MODELS["dropout"](retain_rate).sample(
        torch.ones(n, dtype=dtype), torch.Generator().manual_seed(0)
    )
    kept = (sample > 0).double()
    assert z_score(kept[:, None], retain_rate) < 4
    assert z_score(sample.double()[:, None], 1.0) < 4
    assert sample.unique().tolist() == pytest.approx([0, 1 / retain_rate], rel=1e-2)
    if retain_rate == 0.3:  # neighbours come from the same random bits
        assert z_score((kept[1:] - 0.3) * (kept[:-1] - 0.3), 0.0) < 4


def test_repr_names_the_parameter():
    assert repr(NOISE_MODELS["dropout"](0.5)) == "Dropout(retain_rate=0.5)"
    assert repr(NOISE_MODELS["gaussian"](0.25)) == "Gaussian(noise_std=0.25)"


@pytest.fixture
def _registry():
    """Forget the models that a test defines."""
    saved = dict(NOISE_MODELS)
    yield
    NOISE_MODELS.clear()
    NOISE_MODELS.update(saved)


@pytest.mark.usefixtures("_registry")
def test_a_new_model_is_one_class(errors):
    class Signs(Noise):
        """z~ = z +- std * z, each with probability one half."""

        name = "signs"
        parameter = "noise_std"

        @property
        def is_null(self):
            return self.strength == 0

        def variance(self, z):
            return (self.strength * z).square()

        def sample(self, z, generator=None):
            sign = torch.randint(0, 2, z.shape, generator=generator).to(z.dtype) * 2 - 1
            return z + self.strength * sign * z

    assert NOISE_MODELS["signs"] is Signs
    sites = {0: Signs(0.3), 1: Signs(0.1)}
    network = NoisyNetwork([6, 4, 3], "tanh", sites, dtype=torch.float64)
    x, family = randn(3, 6), Categorical()
    weights = oracles.weights_of(network)
    torch.testing.assert_close(
        penalties.quadratic(network.trace(x), family),
        oracles.quadratic(weights, "tanh", family, sites, x),
        rtol=1e-10,
        atol=0,
    )
    assert z_score(errors(Signs(0.3)), 0.0) < 4
    assert not torch.equal(network.sample(x), network(x))
    assert not NoisyNetwork([6, 3], noise={0: Signs(0.0)}).noise
