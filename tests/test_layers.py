"""The linearisation of each registered layer against autograd's Jacobian."""

import numpy as np
import pytest
import torch
from oracles import randn
from sklearn.neural_network import MLPClassifier
from torch import nn
from torch.autograd.functional import jacobian

from sklearn_margdrop.layers import ACTIVATIONS, glorot_uniform_, linearize

LAYERS = [layer for layer in linearize.registry if layer is not object]


def build(layer_type):
    if layer_type is not nn.Linear:
        return layer_type()
    layer = nn.utils.skip_init(nn.Linear, 5, 3, dtype=torch.float64)
    glorot_uniform_(layer, "relu", torch.Generator().manual_seed(0))
    return layer


@pytest.mark.parametrize("layer_type", LAYERS)
def test_linearisation(layer_type):
    layer, z = build(layer_type), randn(4, 5)
    out, local = linearize(layer, z)
    torch.testing.assert_close(out, layer(z), rtol=0, atol=0)
    jacobians = torch.stack([jacobian(layer, row) for row in z])
    cotangents = randn(4, 2, out.shape[1], seed=1)
    tangents = randn(2, 4, 5, seed=3)
    variance = randn(4, 5, seed=2).square()
    exact = {"rtol": 1e-12, "atol": 1e-14}
    torch.testing.assert_close(local.pull_back(cotangents), cotangents @ jacobians, **exact)
    pushed = torch.einsum("noi,tni->tno", jacobians, tangents)
    torch.testing.assert_close(local.push_forward(tangents), pushed, **exact)
    pushed = (jacobians @ torch.diag_embed(variance) @ jacobians.mT).diagonal(0, 1, 2)
    torch.testing.assert_close(local.push_variance(variance), pushed, **exact)


def test_unregistered_layer_is_named():
    with pytest.raises(NotImplementedError, match=r"registered for GELU.*linearize\.register"):
        linearize(nn.GELU(), randn(2, 3))


def test_every_activation_can_be_linearised():
    assert set(ACTIVATIONS.values()) <= set(LAYERS)


def test_activations_carry_scikit_learns_names():
    constraint = MLPClassifier._parameter_constraints["activation"][0]
    assert set(ACTIVATIONS) == constraint.options
    z = np.linspace(-3, 3, 7)
    functions = {
        "identity": z,
        "logistic": 1 / (1 + np.exp(-z)),
        "relu": np.maximum(z, 0),
        "tanh": np.tanh(z),
    }
    for name, expected in functions.items():
        out = ACTIVATIONS[name]()(torch.from_numpy(z))
        np.testing.assert_allclose(out, expected, rtol=1e-14, atol=1e-15)


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_initial_weights_have_the_bounds_of_scikit_learn(activation):
    layer = nn.utils.skip_init(nn.Linear, 300, 200, dtype=torch.float64)
    glorot_uniform_(layer, activation, torch.Generator().manual_seed(0))
    bound = ((2 if activation == "logistic" else 6) / 500) ** 0.5
    for parameter in (layer.weight, layer.bias):
        # 200 uniform numbers miss the outer tenth with probability 0.9^200 < 1e-9.
        assert 0.9 * bound < parameter.abs().max() <= bound
