"""The curvature that optimisers start from is that of the objective."""

import numpy as np
import pytest
import torch
from oracles import randn

from sklearn_margdrop import MarginalizedDropoutGLMClassifier, MarginalizedDropoutGLMRegressor
from sklearn_margdrop.training.batches import Features, Rows
from sklearn_margdrop.training.curvatures import Start, information

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
    found = Start(net, rows, lambda: None, False, False, False).curvature(rows.whole)
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
    assert warm.objective_ == pytest.approx(cold.objective_, abs=1e-6)
