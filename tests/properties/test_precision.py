"""Differences of nearly equal numbers: values and gradients against hundreds of digits.

Predictions go from uniform to so confident that nothing is left to the other classes in the
numbers of the dtype.
"""

from functools import cache

import mpmath as mp
import numpy as np
import pytest
import scipy.sparse as sp
import torch
from oracles import randn

from sklearn_margdrop import MarginalizedDropoutGLMClassifier
from sklearn_margdrop.families import _SMALL_VARIANCE, Categorical
from sklearn_margdrop.layers import NoisyInput
from sklearn_margdrop.networks import apply_elementwise
from sklearn_margdrop.noise import Dropout
from sklearn_margdrop.numerics.quadrature import _normal_nodes, softplus_gap
from sklearn_margdrop.numerics.sparse import SparseMatrix

#: Enough for 50 of what exp(-700) is of one.
DIGITS = 360
WIDTH = 4

#: By how much the logit of one class is above the others, in nats.
MARGINS = {torch.float64: [0.0, 5.0, 40.0, 300.0, 700.0], torch.float32: [0.0, 5.0, 20.0, 60.0]}

#: How far from them, relative to the largest number. Probabilities lose the digits that
#: their logits have before the point.
CLOSE = {torch.float64: 1e-11, torch.float32: 3e-4}

dtypes = pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)


def at_margins(n_classes, dtype, seed=0):
    """Logits with a row for each margin, variances and weights."""
    eta = randn(len(MARGINS[dtype]), n_classes, seed=seed)
    winner = torch.arange(len(eta)) * 7 % n_classes
    top = eta.amax(-1) + torch.tensor(MARGINS[dtype], dtype=torch.float64)
    eta[torch.arange(len(eta)), winner] = top
    variance = randn(len(eta), WIDTH, seed=seed + 1).square()
    return eta.to(dtype), variance.to(dtype), randn(n_classes, WIDTH, seed=seed + 2).to(dtype)


def exact_trace(eta, variance, weight):
    """sum_j v_j Var_o(w_j) and its derivatives by eta, v and w, of one row."""
    with mp.workdps(DIGITS):
        odds = [mp.exp(mp.mpf(e) - mp.mpf(max(eta))) for e in eta]
        total = mp.fsum(odds)
        o = [each / total for each in odds]
        columns = list(zip(*[[mp.mpf(w) for w in row] for row in weight], strict=True))
        means = [mp.fdot(o, column) for column in columns]
        squares = [[(w - m) ** 2 for w in c] for c, m in zip(columns, means, strict=True)]
        by_variance = [mp.fdot(o, square) for square in squares]
        by_class = [mp.fdot(variance, each) for each in zip(*squares, strict=True)]
        value = mp.fdot(variance, by_variance)
        by_eta = [p * (c - value) for p, c in zip(o, by_class, strict=True)]
        by_weight = [
            [2 * p * v * (c[k] - m) for v, c, m in zip(variance, columns, means, strict=True)]
            for k, p in enumerate(o)
        ]
    parts = ([value], by_eta, by_variance, by_weight)
    return [np.array(each, dtype=float) for each in parts]


@cache
def exact_traces(n_classes, dtype):
    """Those of all rows."""
    eta, variance, weight = (each.tolist() for each in at_margins(n_classes, dtype))
    return [exact_trace(*row, weight) for row in zip(eta, variance, strict=True)]


def by_hand(eta, variance, weight):
    """The same as the package computes it for training, where it does not ask autograd."""
    with torch.no_grad():
        value, back = Categorical().curvature_trace_vjp(eta, eta.softmax(-1), variance, weight)
        return (value, *back(torch.ones_like(value)))


def by_autograd(eta, variance, weight):
    inputs = [each.requires_grad_() for each in (eta, variance, weight)]
    value = Categorical().curvature_trace(*inputs)
    return (value.detach(), *torch.autograd.grad(value.sum(), inputs))


def of_shared_variances(eta, variance, weight):
    """With the variances of one row that stand for two."""
    inputs = [each.requires_grad_() for each in (eta, variance, weight)]
    value = Categorical().curvature_trace(torch.cat([eta, eta.detach().flip(-1)]), *inputs[1:])
    return (value[:1].detach(), *torch.autograd.grad(value[0], inputs))


def of_sparse_rows(eta, variance, weight):
    inputs = [each.requires_grad_() for each in (eta, weight)]
    matrix = SparseMatrix([sp.csr_array(variance.numpy())])
    value = Categorical().curvature_trace(eta, matrix, weight)
    by_eta, by_weight = torch.autograd.grad(value.sum(), inputs)
    return value.detach(), by_eta, None, by_weight


@dtypes
@pytest.mark.parametrize("compute", [by_hand, by_autograd, of_shared_variances, of_sparse_rows])
@pytest.mark.parametrize("n_classes", [2, 3, 16, 17, 1000])
def test_a_curvature_has_its_digits_however_confident_the_prediction(n_classes, compute, dtype):
    eta, variance, weight = at_margins(n_classes, dtype)
    tiny = torch.finfo(dtype).tiny
    for row, exact in enumerate(exact_traces(n_classes, dtype)):
        at = slice(row, row + 1)
        found = compute(eta[at].clone(), variance[at].clone(), weight.clone())
        for part, known in zip(found, exact, strict=True):
            if part is not None:
                error = np.abs(part.double().numpy().reshape(known.shape) - known).max()
                assert error <= max(CLOSE[dtype] * np.abs(known).max(), tiny), row


def exact_gap(eta, x, weight, q):
    """The rule of `Categorical.jensen_gap` for dropout of one row."""
    odds = [mp.exp(e - max(eta)) for e in eta]
    o = [each / mp.fsum(odds) for each in odds]
    columns = list(zip(*weight, strict=True))
    entering = [mp.mpf(each) ** 2 * (1 - q) / q for each in x]
    centred = [[w - mp.fsum(c) / len(c) for w in c] for c in columns]
    variance = [
        mp.fsum(v * c[k] ** 2 for v, c in zip(entering, centred, strict=True))
        for k in range(len(o))
    ]
    trace = mp.fsum(
        v * mp.fsum(p * (w - mp.fdot(o, c)) ** 2 for p, w in zip(o, c, strict=True))
        for v, c in zip(entering, centred, strict=True)
    )
    curvature = [
        p * mp.fsum(other for m, other in enumerate(o) if m != k) for k, p in enumerate(o)
    ]
    ratio = trace / mp.fdot(curvature, variance)
    variance = [ratio * v for v in variance]
    share = [v / (v + _SMALL_VARIANCE) for v in variance]
    small = mp.fsum(c * _SMALL_VARIANCE * s for c, s in zip(curvature, share, strict=True))
    std = [mp.sqrt(v * s) for v, s in zip(variance, share, strict=True)]
    nodes = _normal_nodes(len(o)).tolist()

    def rise(node):
        return mp.log(mp.fsum(p * mp.exp(e * s) for p, e, s in zip(o, node, std, strict=True)))

    return small / 2 + mp.fsum(map(rise, nodes)) / len(nodes)


@dtypes
@pytest.mark.parametrize("is_sparse", [False, True])
@pytest.mark.parametrize("n_classes", [2, 3, 17])
def test_an_expectation_and_its_slopes_stay_what_the_rule_says(n_classes, is_sparse, dtype):
    eta, x, weight = at_margins(n_classes, dtype)
    noise, step = Dropout(0.5), mp.mpf(10) ** -20
    absolute = 1e-13 if dtype == torch.float64 else 1e-6
    for row in range(len(eta)):
        at = slice(row, row + 1)
        inputs = [eta[at].clone().requires_grad_(), weight.clone().requires_grad_()]
        z = SparseMatrix([sp.csr_array(x[at].numpy())]) if is_sparse else x[at]
        variance = apply_elementwise(z, noise.variance)
        gap = Categorical().jensen_gap(inputs[0], NoisyInput(noise, z, variance, inputs[1]))
        slopes = torch.autograd.grad(gap.sum(), inputs)
        e, w = eta[row].tolist(), weight.tolist()
        with mp.workdps(60 + int(MARGINS[dtype][row] / 2)):
            exact = float(exact_gap([mp.mpf(each) for each in e], x[row].tolist(), w, 0.5))
            assert gap.item() == pytest.approx(exact, rel=CLOSE[dtype], abs=absolute)
            for seed in range(2):
                to_eta, to_weight = (
                    randn(n_classes, seed=seed),
                    randn(*weight.shape, seed=seed + 9),
                )
                ends = [
                    exact_gap(
                        [a + sign * step * b for a, b in zip(e, to_eta.tolist(), strict=True)],
                        x[row].tolist(),
                        [
                            [mp.mpf(a) + sign * step * b for a, b in zip(*each, strict=True)]
                            for each in zip(w, to_weight.tolist(), strict=True)
                        ],
                        0.5,
                    )
                    for sign in (1, -1)
                ]
                exact = float((ends[0] - ends[1]) / (2 * step))
                slope = slopes[0][0].double() @ to_eta + (slopes[1].double() * to_weight).sum()
                assert slope.item() == pytest.approx(exact, rel=CLOSE[dtype], abs=absolute)


def test_the_gap_of_a_bernoulli_is_even_and_never_a_difference_of_large_numbers():
    mean = torch.linspace(0, 400, 50, dtype=torch.float64)[:, None]
    for dtype in (torch.float32, torch.float64):
        at = mean.to(dtype).requires_grad_()
        for variance in (1e-4, 1.0, 25.0):
            v = torch.full_like(at, variance).requires_grad_()
            gap, mirrored = softplus_gap(at, v), softplus_gap(-at, v)
            torch.testing.assert_close(gap, mirrored, rtol=0, atol=0)
            by_mean, by_variance = torch.autograd.grad(gap.sum(), (at, v))
            # Half the curvature at most, and a slope of at most the odds of the other class.
            assert (by_variance <= 0.1251).all()
            assert (by_mean.abs() <= 1e-9 + torch.exp(0.5 * v - at).clamp_max(0.5)).all()
            small = mean[:, 0] > 60 + variance
            assert gap[small].max() <= 1e-12 * (1e5 if dtype == torch.float32 else 1)


def bags_of_words(n_classes, seed, n_words=800):
    """Texts whose words tell their class nearly without a doubt."""
    rng = np.random.RandomState(seed)
    y = np.repeat(np.arange(n_classes), 240 // n_classes)
    topics = rng.dirichlet(np.full(n_words, 0.1), n_classes)
    shares = 0.5 * topics + 0.5 / n_words
    return np.array([rng.multinomial(150, shares[c]) > 0 for c in y], float), y


@pytest.mark.parametrize("n_classes", [3, 20])
@pytest.mark.parametrize("seed", [0, 1])
def test_fits_to_bags_of_words_end_at_their_minimum(n_classes, seed):
    """However sparse, and in float32 as well."""
    X, y = bags_of_words(n_classes, seed)
    objectives = []
    for given in (X, sp.csr_array(X), X.astype(np.float32)):
        model = MarginalizedDropoutGLMClassifier().fit(given, y)
        assert model.net_.stop_reason_ == "converged"
        objectives.append(model.objective_)
    np.testing.assert_allclose(objectives, objectives[0], atol=1e-5)
    # One that starts near the end finds nothing lower that matters.
    closer = MarginalizedDropoutGLMClassifier(tol=1e-6).fit(sp.csr_array(X), y).objective_
    assert objectives[0] - 1e-4 < closer <= objectives[0]


@pytest.mark.filterwarnings("ignore:The number of unique classes is greater than 50%")
@pytest.mark.parametrize("n_classes", [10, 50])
def test_rows_of_one_feature_each_have_no_kinks(n_classes):
    """There a logit's standard deviation is the magnitude of a single weight."""
    X = np.eye(n_classes)
    model = MarginalizedDropoutGLMClassifier(max_iter=100).fit(X, np.arange(n_classes))
    assert model.net_.stop_reason_ == "converged"
    assert (model.predict(X) == np.arange(n_classes)).all()
