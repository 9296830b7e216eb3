"""What follows from A alone: penalties of a displacement of eta, and their derivatives."""

import pytest
import torch
from oracles import randn
from torch.autograd.functional import hessian

from sklearn_margdrop.families import FAMILIES, Categorical
from sklearn_margdrop.family import Family

N, K = 200, 3
EXACT = {"rtol": 1e-10, "atol": 1e-12}

families = pytest.mark.parametrize("family", [f() for f in FAMILIES.values()], ids=repr)
penalties = pytest.mark.parametrize("penalty", ["second_order", "paired_gap"])


class Plain(Categorical):
    """As a user would write it, with what the base class makes of A."""

    second_order_vjp = Family.second_order_vjp
    paired_gap_vjp = Family.paired_gap_vjp


@families
def test_against_the_log_partition(family):
    eta, tangents = randn(N, K), randn(2, N, K, seed=1)
    hessians = torch.stack([hessian(family.log_partition, row) for row in eta])
    slow = 0.5 * torch.einsum("rnk,nkl,rnl->rn", tangents, hessians, tangents)
    torch.testing.assert_close(family.second_order(eta, tangents), slow, **EXACT)
    pair = family.log_partition(eta + tangents) + family.log_partition(eta - tangents)
    slow = 0.5 * pair - family.log_partition(eta)
    torch.testing.assert_close(family.paired_gap(eta, tangents), slow, **EXACT)


@penalties
@pytest.mark.parametrize("family", [f() for f in FAMILIES.values()] + [Plain()], ids=repr)
@pytest.mark.parametrize("n_etas", [1, 2])
def test_derivatives(family, penalty, n_etas):
    """Of two tangents at one eta, or at one each."""
    eta = randn(n_etas, N, K).requires_grad_()
    tangents = randn(2, N, K, seed=1).requires_grad_()
    value = getattr(family, penalty)(eta, tangents)
    by_eta, by_tangents = torch.autograd.grad(value.sum(), [eta, tangents], materialize_grads=True)
    eta, tangents = eta.detach(), tangents.detach()
    found, *gradients = getattr(family, f"{penalty}_vjp")(eta, family.mean(eta), tangents)
    if gradients[0] is None:
        gradients[0] = torch.zeros_like(tangents)
    torch.testing.assert_close(found, value.detach(), **EXACT)
    total = gradients[0] if n_etas == 2 else gradients[0].sum(0, keepdim=True)
    torch.testing.assert_close(total, by_eta, **EXACT)
    torch.testing.assert_close(gradients[1], by_tangents, **EXACT)


@families
def test_the_pair_agrees_to_second_order(family):
    eta, tangent = randn(N, K), 0.1 * randn(N, K, seed=1)
    errors = [
        (family.paired_gap(eta, t) - family.second_order(eta, t)).abs().max()
        for t in (tangent, tangent / 2)
    ]
    assert errors[0] < 1e-12 or errors[1] < errors[0] / 14  # of the fourth order


@families
@penalties
def test_never_negative_and_zero_without_displacement(family, penalty):
    eta, tangents = 5 * randn(N, K), 5 * randn(2, N, K, seed=1)
    of = getattr(family, penalty)
    assert of(eta, tangents).min() >= 0
    assert of(eta.float(), 1e-3 * tangents.float()).min() >= 0
    assert not of(eta, torch.zeros_like(tangents)).any()


@pytest.mark.parametrize("name", ["normal", "bernoulli", "categorical"])
def test_the_pair_does_not_fade_where_predictions_are_confident(name):
    """The second order does, except where the curvature is constant."""
    family, eta = FAMILIES[name](), torch.tensor([[40.0, -40.0, 0.0]], dtype=torch.float64)
    tangent = 2 * eta
    assert family.paired_gap(eta, tangent) > 20
    assert name == "normal" or family.second_order(eta, tangent) < 1


def test_a_subclass_with_a_name_is_registered():
    class Named(Family):
        name = "named"

    assert FAMILIES.pop("named") is Named
