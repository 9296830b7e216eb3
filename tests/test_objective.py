"""The objective's terms against the formulas, and sampling against all masks."""

import oracles
import pytest
import torch
from oracles import expected, make_targets, randn, weights_of, z_score
from sklearn.linear_model import Ridge

from sklearn_margdrop.families import FAMILIES, Categorical, Normal
from sklearn_margdrop.methods import METHODS
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.noise import Dropout, Gaussian
from sklearn_margdrop.objective import Objective
from sklearn_margdrop.weighting import WeightedRows

EXACT = {"rtol": 1e-10, "atol": 1e-14}
Q = {0: 0.7, 1: 0.5}
N, M = 6, 4  # labelled and unlabelled rows

families = pytest.mark.parametrize("family", [f() for f in FAMILIES.values()], ids=repr)
slow_penalties = pytest.mark.parametrize("method", ["diagonal", "quadratic"])


def problem(family, n_rows=N):
    noise = {site: Dropout(q) for site, q in Q.items()}
    network = NoisyNetwork([4, 5, 3], "tanh", noise, dtype=torch.float64)
    x = randn(n_rows, 4)
    return network, noise, x, make_targets(family, network(x[:N]).detach())


def slow(method, network, family, noise, x):
    return getattr(oracles, method)(weights_of(network), "tanh", family, noise, x)


@families
@slow_penalties
@pytest.mark.parametrize("weighted", [False, True])
def test_terms(family, method, weighted):
    network, noise, x, y = problem(family)
    weight = randn(N, seed=1).abs() if weighted else None
    w = torch.ones(N).double() if weight is None else weight
    terms = Objective(family, method, alpha=0.3)(network, WeightedRows.of(x, y, weight))
    loss = (w * family.loss(oracles.tail(weights_of(network), "tanh", 0, x), y)).sum() / N
    penalty = (w * slow(method, network, family, noise, x)).sum() / N
    l2 = 0.15 * sum(weight.square().sum() for weight, _ in weights_of(network))
    for term, by_hand in zip(terms, (loss, penalty, l2), strict=True):
        torch.testing.assert_close(term, by_hand, **EXACT)
    torch.testing.assert_close(terms.total, loss + penalty + l2, **EXACT)


@slow_penalties
def test_intercepts_are_not_penalised(method):
    network, _, x, y = problem(Categorical())
    l2 = Objective(Categorical(), method, alpha=0.3)(network, WeightedRows.of(x, y)).l2
    l2.backward()
    for linear in network.linears:
        torch.testing.assert_close(linear.weight.grad, 0.3 * linear.weight.detach(), **EXACT)
        assert linear.bias.grad is None


@families
@slow_penalties
@pytest.mark.parametrize("discount", [0.0, 0.4, 1.0])
def test_unlabelled_rows(family, method, discount):
    """R* = n / (n + d m) (R + d R_unlabelled) with R and R_unlabelled sums, per labelled row."""
    network, noise, x, y = problem(family, N + M)
    share = discount * M / (N + discount * M)
    objective = Objective(family, method)
    terms = objective(network, WeightedRows.of(x, y, unlabeled_share=share))
    rows = slow(method, network, family, noise, x)
    total = N / (N + discount * M) * (rows[:N].sum() + discount * rows[N:].sum())
    torch.testing.assert_close(terms.penalty, total / N, **EXACT)
    torch.testing.assert_close(
        terms.loss, objective(network, WeightedRows.of(x[:N], y)).loss, **EXACT
    )


@families
@pytest.mark.parametrize("method", METHODS)
def test_the_penalty_needs_no_label(family, method):
    network, _, x, y = problem(family, N + M)
    if method == "moments":  # of the input's noise alone
        del network.noise[2]
        network.layers = network.layers[2:]
        network.noise = {0: Dropout(0.5)}
        x = randn(N + M, 5)
    objective = Objective(family, method)
    terms, permuted = (
        objective(
            network, WeightedRows.of(x, t, unlabeled_share=0.3), torch.Generator().manual_seed(0)
        )
        for t in (y, y.roll(1, 0))
    )
    assert terms.penalty > 0
    torch.testing.assert_close(terms.penalty, permuted.penalty, rtol=0, atol=0)
    assert terms.loss != permuted.loss


def means_of_draws(objective, network, x, y, share=0.0, n_unlabeled=0):
    """Loss and penalty of 400 batches that each hold the rows 50 times, labelled ones first."""
    n_labeled = len(x) - n_unlabeled
    repeated = torch.cat([x[:n_labeled].repeat(50, 1), x[n_labeled:].repeat(50, 1)])
    batch = WeightedRows.of(repeated, torch.cat([y] * 50), unlabeled_share=share)
    generator = torch.Generator().manual_seed(0)
    before = torch.get_rng_state()
    with torch.no_grad():
        terms = [objective(network, batch, generator) for _ in range(400)]
    assert torch.equal(torch.get_rng_state(), before)
    return torch.tensor([t.loss for t in terms]), torch.tensor([t.penalty for t in terms])


@families
def test_sampling_is_unbiased(family):
    """The mean of the draws against all 2^(4 + 5) masks of input and hidden layer."""
    network, _, x, y = problem(family)
    losses, penalties = means_of_draws(Objective(family, "sampling"), network, x, y)
    exact = expected(
        weights_of(network),
        "tanh",
        Q,
        x,
        lambda e, i: family.loss(e, torch.stack([y[i]] * len(e))),
    )
    assert z_score(losses.double(), exact.mean()) < 4
    assert not penalties.any()


@families
def test_sampling_with_unlabelled_rows_is_unbiased(family):
    """The clean loss, and the divergence on average over the masks."""
    network, _, x, y = problem(family, N + M)
    losses, penalties = means_of_draws(
        Objective(family, "sampling"), network, x, y, share=0.3, n_unlabeled=M
    )
    clean = network(x).detach()
    rows = expected(weights_of(network), "tanh", Q, x, lambda e, i: family.divergence(e, clean[i]))
    exact = 0.7 * rows[:N].mean() + 0.3 * rows[N:].mean()
    assert z_score(penalties.double(), exact) < 4
    loss = family.loss(clean[:N], y).mean()
    # The draws are kept as float32.
    torch.testing.assert_close(losses.double(), loss.expand(400), rtol=1e-6, atol=0)


@families
@pytest.mark.parametrize("method", ["quadratic", "moments"])
def test_nothing_is_drawn_where_no_hidden_layer_is_passed(family, method):
    x, y = randn(N, 4), make_targets(family, randn(N, 3, seed=1))
    network = NoisyNetwork([4, 3], noise={0: Dropout(0.8)}, dtype=torch.float64)
    generator = torch.Generator().manual_seed(0)
    before = generator.get_state()
    found = Objective(family, method, n_probes=1)(network, WeightedRows.of(x, y), generator)
    assert torch.equal(generator.get_state(), before)
    assert found == Objective(family, method)(network, WeightedRows.of(x, y))


@families
def test_probes_average_to_the_exact_objective(family):
    network, _, x, y = problem(family)
    objective = Objective(family, "quadratic", n_probes=1)
    _, penalties = means_of_draws(objective, network, x, y)
    exact = Objective(family, "quadratic")(network, WeightedRows.of(x, y)).penalty
    assert z_score(penalties.double(), exact.detach()) < 4


def test_gaussian_input_noise_has_its_minimum_at_ridge():
    """1/(2n) ||y - Xw||^2 + std^2/2 ||w||^2 is Ridge with alpha = n std^2."""
    x, y = randn(40, 6), randn(40, 2, seed=1)
    ridge = Ridge(alpha=40 * 0.3**2, tol=1e-12).fit(x.numpy(), y.numpy())
    for method in ("diagonal", "quadratic"):
        network = NoisyNetwork([6, 2], noise={0: Gaussian(0.3)}, dtype=torch.float64)
        coefficients = {"weight": ridge.coef_, "bias": ridge.intercept_}
        network.linears[0].load_state_dict({k: torch.tensor(v) for k, v in coefficients.items()})
        Objective(Normal(), method)(network, WeightedRows.of(x, y)).total.backward()
        for parameter in network.parameters():
            zero = torch.zeros_like(parameter)
            torch.testing.assert_close(parameter.grad, zero, rtol=0, atol=1e-12)
