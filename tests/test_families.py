"""Each family against autograd, scikit-learn and brute force."""

import numpy as np
import pytest
import torch
from oracles import make_targets, randn
from sklearn.metrics import log_loss, mean_poisson_deviance, mean_squared_error
from torch.autograd.functional import hessian

from sklearn_margdrop.families import FAMILIES
from sklearn_margdrop.numerics import products

N, K = 5, 4

#: Between float64 rounding (1e-16) and the smallest mistake that matters.
EXACT = {"rtol": 1e-10, "atol": 1e-12}

families = pytest.mark.parametrize("family", [f() for f in FAMILIES.values()], ids=repr)


def exact_curvature(family, eta):
    """A'' row by row."""
    return torch.stack([hessian(family.log_partition, row) for row in eta])


@families
def test_derivatives_of_the_log_partition(family):
    eta = randn(N, K).requires_grad_()
    (mean,) = torch.autograd.grad(family.log_partition(eta).sum(), eta)
    eta = eta.detach()
    torch.testing.assert_close(family.mean(eta), mean, **EXACT)
    curvature = exact_curvature(family, eta)
    torch.testing.assert_close(family.curvature(eta), curvature.diagonal(0, 1, 2), **EXACT)
    factor = family.curvature_factor(eta)
    assert factor.shape == (N, family.curvature_rank(K), K)
    torch.testing.assert_close(factor.mT @ factor, curvature, **EXACT)


@families
def test_one_output(family):
    """K = 1 is the shape of every regressor; a single class has no curvature at all."""
    eta = randn(N, 1)
    factor = family.curvature_factor(eta)
    assert factor.shape == (N, family.curvature_rank(1), 1)
    torch.testing.assert_close(factor.mT @ factor, exact_curvature(family, eta), **EXACT)


@families
def test_loss_is_log_partition_minus_linear_term(family):
    eta, other = randn(N, K), randn(N, K, seed=1)
    y = make_targets(family, eta)
    one_hot = torch.eye(K, dtype=eta.dtype)[y] if y.ndim == 1 else y

    def rest(e):
        return family.loss(e, y) - (family.log_partition(e) - (one_hot * e).sum(-1))

    torch.testing.assert_close(rest(eta), rest(other), **EXACT)


PERFECT = {
    "normal": ([[0.3, -2.0], [5.0, 1.0]], [[0.3, -2.0], [5.0, 1.0]]),
    "bernoulli": ([[500.0, -500.0], [-500.0, -500.0]], [[1.0, 0.0], [0.0, 0.0]]),
    "poisson": ([[np.log(3.0), -500.0], [0.0, np.log(7.0)]], [[3.0, 0.0], [1.0, 7.0]]),
    "categorical": ([[500.0, -500.0], [0.0, 500.0]], [0, 1]),
}


@pytest.mark.parametrize("name", PERFECT)
def test_loss_is_zero_for_a_perfect_prediction(name):
    eta, y = (torch.tensor(values) for values in PERFECT[name])
    loss = FAMILIES[name]().loss(eta.double(), y if name == "categorical" else y.double())
    torch.testing.assert_close(loss, torch.zeros_like(loss), **EXACT)


def sklearn_log_loss(eta, y):
    odds = np.exp(eta)
    p = odds / (1 + odds) if eta.shape[1] == 1 else odds / odds.sum(1, keepdims=True)
    return log_loss(y.ravel(), p.ravel() if eta.shape[1] == 1 else p)


SKLEARN = {
    "normal": (3, randn(30, 3), lambda e, y: 3 * mean_squared_error(y, e) / 2),
    "bernoulli": (1, (randn(30, 1) > 0).double(), sklearn_log_loss),
    "poisson": (
        1,
        randn(30, 1).abs().round(),
        lambda e, y: mean_poisson_deviance(y.ravel(), np.exp(e.ravel())) / 2,
    ),
    "categorical": (3, torch.arange(30) % 3, sklearn_log_loss),
}


@pytest.mark.parametrize("name", SKLEARN)
def test_loss_is_scikit_learns(name):
    n_outputs, y, metric = SKLEARN[name]
    eta = randn(30, n_outputs, seed=1)
    loss = FAMILIES[name]().loss(eta, y).mean().item()
    assert loss == pytest.approx(metric(eta.numpy(), y.numpy()), rel=1e-10)


@families
def test_curvature_trace(family):
    eta, weight = randn(N, K), randn(K, 7, seed=1)
    variance = randn(N, 7, seed=2).square()
    brute = [
        (h @ weight @ torch.diag(v) @ weight.T).trace()
        for h, v in zip(exact_curvature(family, eta), variance, strict=True)
    ]
    torch.testing.assert_close(
        family.curvature_trace(eta, variance, weight), torch.stack(brute), **EXACT
    )
    inputs = [t.requires_grad_() for t in (eta, variance, weight)]
    assert torch.autograd.gradcheck(family.curvature_trace, inputs)


@families
def test_divergence(family):
    eta, noisy = randn(N, K).requires_grad_(), randn(N, K, seed=1)
    (mean,) = torch.autograd.grad(family.log_partition(eta).sum(), eta)
    eta = eta.detach()
    linear = (mean * (noisy - eta)).sum(1)
    by_hand = family.log_partition(noisy) - family.log_partition(eta) - linear
    torch.testing.assert_close(family.divergence(noisy, eta), by_hand, **EXACT)
    many = family.divergence(randn(1000, K, seed=2), randn(1000, K, seed=3))
    assert many.min() > 0
    torch.testing.assert_close(family.divergence(eta, eta), torch.zeros(N).double(), **EXACT)


@families
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_logits_stay_finite(family, dtype):
    # exp(500) is no float32: a Poisson mean that large is out of reach.
    high = 10.0 if family.name == "poisson" else 500.0
    eta = torch.tensor([[-500.0, 0.0, high], [high, high, -500.0]], dtype=dtype)
    eta = torch.cat([eta, -500.0 * torch.ones_like(eta)]).requires_grad_()
    clean = torch.zeros_like(eta)
    y = torch.zeros(len(eta), dtype=torch.int64)
    y = y if family.name == "categorical" else torch.zeros_like(eta)
    variance, weight = torch.ones(len(eta), 5, dtype=dtype), randn(3, 5, dtype=dtype)
    values = {
        "log_partition": family.log_partition(eta),
        "mean": family.mean(eta),
        "curvature": family.curvature(eta),
        "curvature_factor": family.curvature_factor(eta),
        "curvature_trace": family.curvature_trace(eta, variance, weight),
        "loss": family.loss(eta, y),
        "divergence": family.divergence(eta, clean),
        "divergence from": family.divergence(clean, eta),
    }
    bad = []
    for name, value in values.items():
        # A constant such as the normal curvature has the gradient 0.
        (grad,) = torch.autograd.grad(value.sum() + 0 * eta.sum(), eta, retain_graph=True)
        if not (value.isfinite().all() and grad.isfinite().all()):
            bad.append(name)
    assert not bad


@families
@pytest.mark.parametrize("margin", [0.0, 10.0, 20.0])
def test_wide_outputs_in_low_precision(family, margin, monkeypatch):
    """Confident predictions have little curvature, which no cancellation may drown.

    Errors are judged against what margin 0 gives, the scale that the loss competes with.
    """
    monkeypatch.setattr(products, "_CPU_MULTIPLIES_BFLOAT16", True)
    n_outputs, width = 64, 1024
    variance, weight = randn(20, width, seed=1).square(), 0.03 * randn(n_outputs, width, seed=2)
    flat = 0.5 * randn(20, n_outputs)
    eta = flat.clone()
    eta[torch.arange(20), torch.arange(20)] += margin if family.name == "categorical" else 0

    def trace_and_gradient(dtype, eta):
        w = weight.to(dtype).requires_grad_()
        trace = family.curvature_trace(eta.to(dtype), variance.to(dtype), w)
        return trace.detach().double(), torch.autograd.grad(trace.sum(), w)[0].double()

    trace, gradient = trace_and_gradient(torch.float32, eta)
    exact_trace, exact_gradient = trace_and_gradient(torch.float64, eta)
    # What products.py promises of a gradient, and more than float32 needs of the sign.
    assert trace.min() > -1e-6 * trace_and_gradient(torch.float64, flat)[0].mean()
    torch.testing.assert_close(trace, exact_trace, rtol=1e-2, atol=1e-6)
    assert (gradient - exact_gradient).norm() < 5e-3 * exact_gradient.norm() + 1e-5
