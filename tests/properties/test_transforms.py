"""The objective under ``vmap`` and ``torch.compile``, and without any second derivative."""

import shutil

import pytest
import torch
from oracles import make_noise, make_targets, randn
from torch import nn
from torch.func import functional_call, grad_and_value, stack_module_state, vmap

from sklearn_margdrop.families import FAMILIES, Categorical
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.noise import NOISE_MODELS
from sklearn_margdrop.numerics import products
from sklearn_margdrop.objective import Objective
from sklearn_margdrop.weighting import WeightedRows

METHODS = ("no noise", "diagonal", "quadratic")

families = pytest.mark.parametrize("family", [f() for f in FAMILIES.values()], ids=repr)
methods = pytest.mark.parametrize("method", METHODS)


class Total(nn.Module):
    """The objective as a module of the network's parameters."""

    def __init__(self, family, method, sizes, noise="dropout", seed=0, dtype=torch.float64):
        super().__init__()
        sites = range(len(sizes) - 1) if method != "no noise" else ()
        models = dict.fromkeys(sites, make_noise(noise))
        self.network = NoisyNetwork(sizes, "relu", models, seed, dtype)
        self.objective = Objective(family, "diagonal" if not sites else method, alpha=0.1)

    def forward(self, x, y):
        return self.objective(self.network, WeightedRows.of(x, y)).total


def data(family, sizes, dtype=torch.float64):
    x = randn(6, sizes[0], dtype=dtype)
    y = make_targets(family, randn(6, sizes[-1], seed=1, dtype=dtype))
    return x, y


def value_and_gradients(module, *args):
    """One plain backward pass."""
    module.zero_grad()
    value = module(*args)
    value.backward()
    return value.detach(), {name: p.grad.clone() for name, p in module.named_parameters()}


def stacked_and_looped(modules, args):
    """Values and gradients of all modules at once, and one module at a time."""
    parameters, buffers = stack_module_state(modules)

    def total(parameters, buffers):
        return functional_call(modules[0], (parameters, buffers), args)

    gradients, values = vmap(grad_and_value(total))(parameters, buffers)
    looped = [value_and_gradients(module, *args) for module in modules]
    loop_values = torch.stack([value for value, _ in looped])
    loop_gradients = {k: torch.stack([g[k] for _, g in looped]) for k in gradients}
    return (values.detach(), gradients), (loop_values, loop_gradients)


@families
@methods
@pytest.mark.parametrize("noise", NOISE_MODELS)
@pytest.mark.parametrize("sizes", [(5, 3), (5, 6, 4, 3)], ids=["glm", "deep"])
def test_stacked_networks(family, method, noise, sizes):
    modules = [Total(family, method, sizes, noise, seed) for seed in range(3)]
    stacked, looped = stacked_and_looped(modules, data(family, sizes))
    assert len(set(looped[0].tolist())) == 3
    torch.testing.assert_close(stacked, looped, rtol=1e-10, atol=1e-13)


@families
@methods
def test_stacked_wide_networks_in_low_precision(family, method, monkeypatch):
    monkeypatch.setattr(products, "_CPU_MULTIPLIES_BFLOAT16", True)
    sizes = (200, 180, 190, 180)
    modules = [Total(family, method, sizes, seed=s, dtype=torch.float32) for s in range(2)]
    args = data(family, sizes, torch.float32)
    (values, gradients), (loop_values, loop_gradients) = stacked_and_looped(modules, args)
    # Sums in another order can land on the neighbouring bfloat16 (2^-8 away) now and then.
    torch.testing.assert_close(values, loop_values, rtol=1e-4, atol=0)
    for name, looped in loop_gradients.items():
        assert (gradients[name] - looped).norm() < 1e-3 * looped.norm()


TORCH = tuple(int(part) for part in torch.__version__.split(".")[:2])

# The estimators use neither the compiler nor vmap, and work with older versions.
compiles = pytest.mark.skipif(TORCH < (2, 12), reason="torch 2.11 compiles to other gradients")
stacks = pytest.mark.skipif(TORCH < (2, 13), reason="older torch cannot stack random bits")

# Raised inside torch's own tracing of autograd functions and by its compiler's imports.
compiling = pytest.mark.filterwarnings(
    "ignore:<class 'torch.autograd.function.Function'> should not:DeprecationWarning",
    "ignore:`torch.jit.script_method` is deprecated:DeprecationWarning",
    "ignore:Dynamo detected a call to a `functools.lru_cache`:UserWarning",
)


@compiles
@compiling
@families
@pytest.mark.parametrize("method", ["diagonal", "quadratic"])
def test_compiled(family, method):
    module, args = Total(family, method, (5, 6, 3)), data(family, (5, 6, 3))
    eager = value_and_gradients(module, *args)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    value = compiled(*args)
    module.zero_grad()
    value.backward()
    gradients = {name: p.grad for name, p in module.named_parameters()}
    torch.testing.assert_close((value.detach(), gradients), eager, rtol=1e-10, atol=1e-13)


@compiles
@compiling
@pytest.mark.skipif(shutil.which("c++") is None, reason="inductor needs a C++ compiler")
def test_compiled_with_inductor(monkeypatch):
    """Wide float32 layers, so that the low-precision products are compiled as well."""
    monkeypatch.setattr(products, "_CPU_MULTIPLIES_BFLOAT16", True)
    family, sizes = Categorical(), (200, 180, 3)
    module = Total(family, "diagonal", sizes, dtype=torch.float32)
    args = data(family, sizes, torch.float32)
    value, gradients = value_and_gradients(module, *args)
    torch._dynamo.reset()
    compiled = torch.compile(module, fullgraph=True)
    module.zero_grad()
    compiled_value = compiled(*args)
    compiled_value.backward()
    # A fused kernel may skip a rounding to bfloat16 (2^-9) that eager code makes.
    torch.testing.assert_close(compiled_value.detach(), value, rtol=1e-3, atol=0)
    for name, parameter in module.named_parameters():
        error = (parameter.grad - gradients[name]).norm()
        assert error < 2e-3 * gradients[name].norm()


@families
@methods
def test_no_derivative_is_taken_inside_the_objective(family, method, monkeypatch):
    """One forward and one backward pass are the whole cost."""
    module, args = Total(family, method, (5, 6, 3)), data(family, (5, 6, 3))

    def refuse(*args, **kwargs):
        raise AssertionError("a derivative inside the objective")

    with monkeypatch.context() as patch:
        for name in ("grad", "backward"):
            patch.setattr(torch.autograd, name, refuse)
        for name in ("grad", "vjp", "jvp", "jacrev", "jacfwd", "hessian"):
            patch.setattr(torch.func, name, refuse)
        total = module(*args)
    total.backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


class Stochastic(nn.Module):
    """The objective with draws inside, from torch's global generator."""

    def __init__(self, objective, noise, seed=0):
        super().__init__()
        self.objective = objective
        models = dict.fromkeys((0, 1), make_noise(noise))
        self.network = NoisyNetwork((5, 4, 3), "relu", models, seed, torch.float64)

    def forward(self, x, y):
        return self.objective(self.network, WeightedRows.of(x, y)).total


STOCHASTIC = {
    "sampling": Objective(Categorical(), "sampling"),
    "quadratic": Objective(Categorical(), "quadratic", n_probes=1),
    "moments": Objective(Categorical(), "moments", n_probes=2),
}


@stacks
@pytest.mark.parametrize("objective", STOCHASTIC.values(), ids=STOCHASTIC)
@pytest.mark.parametrize("noise", sorted(NOISE_MODELS))
def test_stochastic_objectives_stacked(objective, noise):
    """Stacked copies of one network average to what draws one at a time average to."""
    x, y = data(Categorical(), (5, 4, 3))
    n = 400
    modules = [Stochastic(objective, noise)] * n
    parameters, buffers = stack_module_state(modules)

    def total(parameters, buffers):
        return functional_call(modules[0], (parameters, buffers), (x, y))

    with torch.random.fork_rng():
        torch.manual_seed(0)
        gradients, values = vmap(grad_and_value(total), randomness="different")(
            parameters, buffers
        )
        looped = torch.stack([module(x, y).detach() for module in modules])
    assert values.unique().numel() > 1
    assert all(gradient.isfinite().all() for gradient in gradients.values())
    difference = values.mean() - looped.mean()
    assert difference.abs() < 4 * ((values.var() + looped.var()) / n).sqrt()


@pytest.mark.filterwarnings(
    "ignore:<class 'torch.autograd.function.Function'> should not:DeprecationWarning"
)
@stacks
@pytest.mark.parametrize("objective", STOCHASTIC.values(), ids=STOCHASTIC)
@pytest.mark.parametrize("noise", sorted(NOISE_MODELS))
def test_stochastic_objectives_compiled(objective, noise):
    x, y = data(Categorical(), (5, 4, 3))
    module = Stochastic(objective, noise)
    compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
    with torch.random.fork_rng():
        values = []
        for call in (module, compiled):
            torch.manual_seed(0)
            value = call(x, y)
            value.backward()
            values.append(value.detach())
    torch.testing.assert_close(*values)
