"""The table of the methods, and what stands beside it."""

import re

import pytest

import sklearn_margdrop
from sklearn_margdrop.methods import GLM_METHODS, METHODS, NETWORK_METHODS
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.noise import Dropout


@pytest.mark.parametrize("name", sklearn_margdrop.__all__)
def test_docstrings_name_the_methods(name):
    methods = GLM_METHODS if "GLM" in name else NETWORK_METHODS
    doc = getattr(sklearn_margdrop, name).__doc__
    (named,) = re.findall(r"\n    method : \{(.*)\}, default", doc)
    assert named == ", ".join(f'"{method}"' for method in sorted(methods))


@pytest.mark.parametrize("sites", [(), (0,), (1,), (0, 1)], ids=str)
def test_what_has_its_gradient_by_hand(sites):
    network = NoisyNetwork([4, 3, 2], noise=dict.fromkeys(sites, Dropout(0.5)))
    found = {name for name, method in METHODS.items() if method.has_backprop(network)}
    expected = {"diagonal"} if 0 in sites else {"diagonal", "quadratic"}
    assert found == (expected if sites else {*expected, "moments"})
