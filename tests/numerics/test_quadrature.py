"""Gaussian expectations against adaptive quadrature, sampling and their own derivatives."""

import numpy as np
import pytest
import torch
from oracles import randn
from scipy.integrate import quad
from torch.func import vmap

from sklearn_margdrop.families import Bernoulli, Family
from sklearn_margdrop.numerics import memory
from sklearn_margdrop.numerics.quadrature import (
    _normal_nodes,
    gauss_hermite,
    logsumexp_gap,
    softplus,
    softplus_gap,
)


def by_quadrature(function, mean, variance):
    """E function(mean + std e) by adaptive quadrature, split where the argument is zero."""
    std = variance**0.5
    kink = [-mean / std] if abs(mean) < 12 * std else None

    def integrand(e):
        return function(mean + std * e) * np.exp(-0.5 * e * e) / np.sqrt(2 * np.pi)

    return quad(integrand, -14, 14, points=kink, epsabs=1e-13, epsrel=1e-13, limit=500)[0]


@pytest.mark.parametrize("mean", [0.0, 0.3, -1.0, 2.0, -5.0, 8.0, -20.0, 40.0])
@pytest.mark.parametrize("variance", [1e-12, 1e-3, 0.1, 1.0, 4.0, 25.0, 100.0, 1e4])
def test_softplus_gap(mean, variance):
    expected = by_quadrature(lambda x: np.logaddexp(0, x), mean, variance) - np.logaddexp(0, mean)
    m, v = torch.tensor([mean, variance], dtype=torch.float64).split(1)
    assert softplus_gap(m, v).item() == pytest.approx(expected, rel=0, abs=1e-10)


def test_softplus_gap_without_variance_and_its_bounds():
    mean = torch.linspace(-40, 40, 81, dtype=torch.float64)
    assert (softplus_gap(mean, torch.zeros_like(mean)) < 1e-11).all()
    previous = torch.zeros_like(mean)
    for variance in (0.1, 1.0, 10.0):
        gap = softplus_gap(mean, torch.full_like(mean, variance))
        assert (gap >= previous - 1e-14).all()
        previous = gap
    # For little variance the second order, for much the gap of max(x, 0).
    v = torch.full_like(mean, 1e-4)
    second_order = 0.5 * v * Bernoulli().curvature(mean[:, None])[:, 0]
    torch.testing.assert_close(softplus_gap(mean, v), second_order, rtol=1e-3, atol=1e-10)


@pytest.mark.parametrize("gap", [softplus_gap, logsumexp_gap])
def test_derivatives_and_vmap(gap):
    mean, variance = randn(6, 4), 3 * randn(6, 4, seed=1).square()
    variance[0] = 1e-3
    inputs = mean.requires_grad_(), variance.requires_grad_()
    assert torch.autograd.gradcheck(gap, inputs)
    a, b = randn(3, 6, 4), randn(3, 6, 4, seed=1).square()
    stacked = vmap(gap)(a, b)
    single = [gap(*pair) for pair in zip(a, b, strict=True)]
    torch.testing.assert_close(stacked, torch.stack(single))


def test_derivatives_are_finite_without_variance():
    for gap in (softplus_gap, logsumexp_gap):
        eta = randn(5, 3).requires_grad_()
        variance = torch.zeros(5, 3, dtype=torch.float64, requires_grad=True)
        gap(eta, variance).sum().backward()
        assert eta.grad.isfinite().all()
        assert variance.grad.isfinite().all()
        assert (variance.grad >= 0).all()


@pytest.mark.parametrize("n_classes", [2, 3, 5, 20, 60])
@pytest.mark.parametrize("scale", [1.0, 4.0, 16.0])
def test_logsumexp_gap_against_samples(n_classes, scale):
    """Within 10 % of 200,000 samples in each row, and within 7 % over the rows."""
    eta = 2 * randn(8, n_classes)
    variance = scale * torch.rand(
        8, n_classes, generator=torch.Generator().manual_seed(1), dtype=torch.float64
    )
    noise = randn(10**5, n_classes, seed=2)
    expected = torch.stack(
        [
            0.5 * sum((row + sign * noise * v.sqrt()).logsumexp(-1).mean() for sign in (1, -1))
            - row.logsumexp(-1)
            for row, v in zip(eta, variance, strict=True)
        ]
    )
    found = logsumexp_gap(eta, variance)
    assert ((found - expected).abs() <= 0.1 * expected + 0.03 * expected.mean()).all()
    assert (found - expected).abs().mean() <= 0.07 * expected.mean()


def test_logsumexp_gap_has_the_exact_second_order():
    eta, variance = 2 * randn(50, 5), 1e-4 * randn(50, 5, seed=1).square()
    o = eta.softmax(-1)
    second_order = 0.5 * (variance * o * (1 - o)).sum(-1)
    torch.testing.assert_close(logsumexp_gap(eta, variance), second_order, rtol=1e-3, atol=1e-12)


def test_of_two_classes_both_rules_agree():
    difference, variance = 2 * randn(50, 1), 4 * randn(50, 1, seed=1).square()
    eta = torch.cat([torch.zeros_like(difference), difference], 1)
    half = 0.5 * variance.expand(-1, 2)
    one = softplus_gap(difference, variance)[:, 0]
    torch.testing.assert_close(logsumexp_gap(eta, half), one, rtol=0.1, atol=1e-3)


def test_gauss_hermite_nodes():
    for power, moment in enumerate([1, 0, 1, 0, 3, 0, 15, 0, 105]):
        assert sum(w * x**power for x, w in gauss_hermite()) == pytest.approx(moment, abs=1e-9)


def test_a_new_family_gets_gauss_hermite():
    class Quartic(Family):  # no name: it is not registered
        def log_partition(self, eta):
            return (eta**4).sum(-1)

        mean = link = curvature = curvature_slope = loss = None

    class Noise:
        def output_variance(self):
            return torch.tensor([[0.5], [2.0]], dtype=torch.float64)

    eta = torch.tensor([[1.0], [-2.0]], dtype=torch.float64)
    v = Noise().output_variance()
    expected = 6 * eta**2 * v + 3 * v**2
    torch.testing.assert_close(Quartic().jensen_gap(eta, Noise()), expected[:, 0])


def test_softplus_is_exact():
    x = torch.tensor([-800.0, -30.0, 0.0, 25.0, 39.0, 800.0], dtype=torch.float64)
    np.testing.assert_allclose(softplus(x).numpy(), np.logaddexp(0, x.numpy()), rtol=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("std", [1e-6, 1.0, 30.0, 1e3, 1e6])
def test_logsumexp_gap_of_any_variance(dtype, std):
    """Finite, with the derivative that the value has, and asymptotically E max of gaussians."""
    eta = randn(4, 5).to(dtype)
    variance = torch.full_like(eta, std**2).requires_grad_()
    gap = logsumexp_gap(eta, variance)
    assert gap.isfinite().all()
    assert (gap >= 0).all()
    (slope,) = torch.autograd.grad(gap.sum(), variance)
    assert slope.isfinite().all()
    if std >= 1e3:
        # E max of five independent standard normals is 1.163; that of a few nodes is less.
        torch.testing.assert_close(gap / std, torch.full_like(gap, 1.163), rtol=0.1, atol=0)
        along = 2 * (slope * variance).sum(-1)  # the derivative along the standard deviations
        torch.testing.assert_close(along, gap, rtol=0.02, atol=0)


def test_blocks_of_rows_change_nothing(monkeypatch):
    eta, variance = randn(7, 3), randn(7, 3, seed=1).square()
    for gap in (softplus_gap, logsumexp_gap):
        whole = gap(eta, variance)
        with monkeypatch.context() as patch:
            patch.setattr(memory, "_CACHE_ELEMENTS", 1)
            patch.setattr(memory, "_CACHE_ROWS", 2)
            torch.testing.assert_close(gap(eta, variance), whole, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("n_classes", [1, 2, 3, 10, 30, 100])
def test_nodes_have_the_moments_of_a_normal_distribution(n_classes):
    nodes = _normal_nodes(n_classes)
    ordered = nodes[np.lexsort(nodes.T)]
    np.testing.assert_array_equal(ordered, -ordered[::-1])  # so that odd moments are zero
    for power, moment in ((2, 1), (4, 3)):
        np.testing.assert_allclose((nodes**power).mean(0), moment)
    covariance = nodes.T @ nodes / len(nodes)
    off = np.abs(covariance - np.diag(np.diag(covariance)))
    assert off.max() < (1e-14 if n_classes <= 10 else 0.9)
    assert np.sqrt(np.square(off).mean()) < 0.11
