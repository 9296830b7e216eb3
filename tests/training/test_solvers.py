"""The tables of the solvers, and what stands beside them."""

import inspect
import re

import pytest
import torch

import sklearn_margdrop
from sklearn_margdrop.training.solvers import GLM_SOLVERS, NETWORK_SOLVERS


@pytest.mark.parametrize("name", sklearn_margdrop.__all__)
def test_docstrings_name_the_solvers(name):
    solvers = GLM_SOLVERS if "GLM" in name else NETWORK_SOLVERS
    estimator = getattr(sklearn_margdrop, name)
    (named,) = re.findall(r"\n    solver : \{(.*)\}, default", estimator.__doc__)
    assert named == ", ".join(f'"{solver}"' for solver in solvers)
    options = {option for solver in solvers.values() for option in solver.options}
    assert options <= inspect.signature(estimator).parameters.keys()


@pytest.mark.parametrize("solver", [*NETWORK_SOLVERS.values(), *GLM_SOLVERS.values()])
def test_rows_are_true_of_their_optimisers(solver):
    optimizer = solver.optimizer([{"params": [torch.zeros(1, requires_grad=True)]}], lr=0.1)
    parameters = inspect.signature(solver.optimizer).parameters
    assert {*solver.options, *["fused"][: solver.fused]} <= parameters.keys()
    knows_its_end = all(hasattr(optimizer, name) for name in ("decrement", "stalled"))
    assert solver.full_batch == knows_its_end
