"""The curvature that optimisers start from is that of the objective."""

import numpy as np
import pytest
import torch
from oracles import randn

from sklearn_margdrop import MarginalizedDropoutGLMClassifier, MarginalizedDropoutGLMRegressor
from sklearn_margdrop.training.batches import Features, Rows
from sklearn_margdrop.training.curvatures import InverseHessian, Start, information

MODELS = [
    MarginalizedDropoutGLMRegressor(retain_rate=0.7),  # whose A'' is the same everywhere
    MarginalizedDropoutGLMClassifier(retain_rate=1.0, alpha=0.1),
]


def net_and_rows(model):
    """The net of a fit; rows with weights, and others without labels."""
    X, others = (np.asarray(randn(n, 3, seed=n)) for n in (40, 20))
    y = (X[:, 0] > 0) * 1.0
    weight = randn(40, seed=1).abs()
    features, unlabeled = (Features(each, torch.device("cpu")) for each in (X, others))
    targets = torch.from_numpy(y)[:, None]
    options = {"unlabeled": unlabeled, "unlabeled_share": 0.4}
    return model.fit(X, y).net_, Rows(features, targets, weight / weight.mean(), **options)


@pytest.mark.parametrize("model", MODELS)
def test_curvature_is_the_diagonal_of_the_hessian(model):
    net, rows = net_and_rows(model)
    parameters = list(net.module_.parameters())
    found = Start(net, rows, lambda: None, False, False, False).curvature(rows.whole).total
    total = net.criterion_(net.module_, rows.whole, net.generator_).total
    gradients = torch.autograd.grad(total, parameters, create_graph=True)
    for diagonal, parameter, gradient in zip(found, parameters, gradients, strict=True):
        second = [
            torch.autograd.grad(each, parameter, retain_graph=True)[0].ravel()[k]
            for k, each in enumerate(gradient.ravel())
        ]
        torch.testing.assert_close(diagonal.ravel(), torch.stack(second))


@pytest.mark.parametrize("model", MODELS)
def test_information_is_the_same_in_blocks(model, monkeypatch):
    net, rows = net_and_rows(model)
    whole = information(net, rows, full_batch=True)
    monkeypatch.setattr("sklearn_margdrop.numerics.memory._BLOCK_ELEMENTS", 30)
    torch.testing.assert_close(information(net, rows, full_batch=False), whole)


@pytest.mark.parametrize("size", [1e2, 1e6])
def test_a_warm_start_from_another_curvature_ends_at_the_minimum(size):
    rng = np.random.RandomState(0)
    X = rng.normal(size=(200, 4))
    y = rng.poisson(np.exp(X[:, 0] / 2))
    warm = MarginalizedDropoutGLMRegressor(family="poisson", warm_start=True)
    warm.fit(X, rng.poisson(size * np.exp(X[:, 1]))).fit(X, y)
    cold = MarginalizedDropoutGLMRegressor(family="poisson").fit(X, y)
    assert warm.objective_ == pytest.approx(cold.objective_, abs=1e-5)


def classes_at_the_mean(n=60, width=4, n_classes=3, **parameters):
    rng = np.random.RandomState(0)
    X = rng.normal(size=(n, width)) @ rng.normal(size=(width, width)) + 5.0
    y = rng.randint(n_classes, size=n)
    return X, y, MarginalizedDropoutGLMClassifier(**parameters)


@pytest.mark.parametrize("retain_rate", [1.0, 0.8])
def test_the_inverse_hessian_is_that_of_the_objective_at_the_mean(retain_rate):
    """Of two classes it is exact: its product with the Hessian is the identity."""
    X, y, model = classes_at_the_mean(n_classes=2, retain_rate=retain_rate, method="quadratic")
    net = model.fit(X, y).net_
    x, targets = torch.tensor(X), torch.tensor(y, dtype=torch.float64)[:, None]
    rows = Rows(Features(X, torch.device("cpu")), targets)
    (linear,) = net.module_.linears
    linear.register_buffer("centre", x.mean(0))
    at = torch.zeros(1, X.shape[1], dtype=x.dtype), targets.mean(0).logit()

    def predict_mean():
        linear.bias.copy_(at[1])

    start = Start(net, rows, predict_mean, False, False, False)
    curvature = start.curvature_at_the_mean()
    inverse = InverseHessian(curvature.total)
    inverse.factor = start.correlations(len(rows), curvature)

    def objective(weight, shifted):
        eta = (x - x.mean(0)) @ weight.mT + shifted
        p = eta.sigmoid()
        noise = (1 - retain_rate) / retain_rate * x.square() @ weight.square().mT
        losses = torch.nn.functional.softplus(eta) - targets * eta + 0.5 * p * (1 - p) * noise
        return losses.mean() + 0.5 * model.alpha_ * weight.square().sum()

    parts = torch.autograd.functional.hessian(objective, at)
    width = X.shape[1]
    hessian = torch.zeros(width + 1, width + 1, dtype=x.dtype)
    hessian[:width, :width] = parts[0][0].reshape(width, width)
    hessian[width:, :width] = parts[1][0].reshape(1, width)
    hessian[:width, width:] = parts[0][1].reshape(width, 1)
    hessian[width:, width:] = parts[1][1]
    product = torch.stack([inverse(column) for column in hessian])
    torch.testing.assert_close(product, torch.eye(width + 1, dtype=x.dtype))


def test_correlations_of_some_rows_are_near_those_of_all():
    X, y, model = classes_at_the_mean(n=4000)
    net = model.fit(X, y).net_
    rows = Rows(Features(X, torch.device("cpu")), torch.tensor(y))
    net.module_.linears[0].register_buffer("centre", rows.moments[0])
    start = Start(net, rows, lambda: None, False, False, False)
    curvature = start.curvature(rows.whole)
    some, every = (start.correlations(n, curvature) for n in (500, 4000))
    ratio = torch.linalg.solve_triangular(every, some, upper=False)
    assert 0.5 < torch.linalg.svdvals(ratio).min() < torch.linalg.svdvals(ratio).max() < 1.5


def test_steps_keep_to_the_differences_between_classes():
    diagonal = [torch.rand(3, 2) + 0.5, torch.rand(3) + 0.5]
    inverse = InverseHessian(diagonal, shifts_alike=True)
    matrix = torch.stack([inverse(column) for column in torch.eye(9)])
    torch.testing.assert_close(matrix, matrix.mT)
    assert torch.linalg.eigvalsh(matrix).min() > 0.1
    contrast = torch.tensor([1.0, 2.0, -1.0, -2.0, 0.0, 0.0, 1.0, 0.0, -1.0])
    step = inverse(contrast)
    torch.testing.assert_close(step[:6].view(3, 2).sum(0), torch.zeros(2))
    torch.testing.assert_close(step[6:].sum(), torch.zeros(()))


@pytest.mark.parametrize("n_classes", [2, 4])
def test_collinear_features_in_any_units_take_few_iterations(n_classes):
    rng = np.random.RandomState(0)
    directions = np.linalg.qr(rng.normal(size=(20, 20)))[0]
    Z = rng.normal(size=(500, 20)) @ (directions * np.logspace(0, -3, 20)) @ directions.T
    y = (Z @ rng.normal(size=(20, n_classes)) + 0.2 * rng.gumbel(size=(500, n_classes))).argmax(1)
    X = Z * np.logspace(-3, 3, 20)
    options = {"retain_rate": 1.0, "alpha": 1e-8, "tol": 1e-6}
    model = MarginalizedDropoutGLMClassifier(**options).fit(X, y)
    assert model.net_.stop_reason_ == "converged"
    assert model.n_iter_ < 60
