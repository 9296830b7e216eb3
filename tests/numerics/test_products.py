"""The hand-written derivatives, and when float32 may be multiplied in bfloat16."""

import pytest
import torch
from oracles import randn

from sklearn_margdrop.families import Categorical
from sklearn_margdrop.networks import NoisyNetwork
from sklearn_margdrop.noise import Dropout
from sklearn_margdrop.numerics import products
from sklearn_margdrop.penalties import diagonal, quadratic

CASES = {
    "mixed_matmul": (products.mixed_matmul, lambda a, w: a @ w, (4, 3)),
    "squared_linear": (products.squared_linear, lambda v, w: v @ (w * w).T, (3, 4)),
    "sum_of_squares": (products.sum_of_squares, lambda c: (c * c).sum(-2), None),
}


def inputs(weight_shape, leading):
    shapes = [(*leading, 5, 4)] + ([weight_shape] if weight_shape else [])
    return [randn(*shape, seed=i).requires_grad_() for i, shape in enumerate(shapes)]


@pytest.mark.parametrize("leading", [(), (2,)], ids=["2-D", "3-D"])
@pytest.mark.parametrize("name", CASES)
def test_values_and_derivatives(name, leading):
    function, plain, weight_shape = CASES[name]
    # `squared_linear` takes w of shape (m, p) for v of shape (..., p), `mixed_matmul` the reverse.
    arguments = inputs(weight_shape, leading)
    torch.testing.assert_close(function(*arguments), plain(*arguments), rtol=1e-12, atol=1e-12)
    assert torch.autograd.gradcheck(function, arguments)
    if weight_shape:
        for frozen in range(2):
            some = inputs(weight_shape, leading)
            some[frozen].requires_grad_(False)
            assert torch.autograd.gradcheck(function, some)


@pytest.fixture(params=[False, True], ids=["full", "low"])
def low_precision(request, monkeypatch):
    """Both kinds of processor, whichever this one is."""
    monkeypatch.setattr(products, "_CPU_MULTIPLIES_BFLOAT16", request.param)
    return request.param


@pytest.mark.parametrize("name", ["mixed_matmul", "squared_linear"])
def test_only_large_float32_matrices_lose_precision(name, low_precision):
    function, plain, (m, p) = CASES[name]

    def error(scale, dtype):
        a, w = randn(20, 4 * scale).to(dtype), randn(m * scale, p * scale, seed=1).to(dtype)
        approx, exact = function(a, w), plain(a.double(), w.double())
        assert approx.dtype == dtype
        return ((approx - exact).norm() / exact.norm()).item()

    # Roundings are 2^-53, 2^-24 and 2^-9; a sum of m terms adds to the first two.
    assert error(60, torch.float64) < 1e-14
    assert error(50, torch.float32) < 1e-6  # 150 x 200 elements, below the limit
    wide = error(60, torch.float32)  # 180 x 240 elements, above it
    assert (5e-4 < wide < 5e-3) if low_precision else wide < 1e-6


@pytest.mark.parametrize("penalty", [diagonal, quadratic])
def test_gradient_of_the_penalty_in_float32(penalty, low_precision):
    """The 784-1024-10 network of P: below 1e-3 relative to float64, as products.py states."""
    gradients = {}
    x = randn(50, 784).abs()
    for dtype in (torch.float32, torch.float64):
        noise = {0: Dropout(0.8), 1: Dropout(0.5)}
        network = NoisyNetwork([784, 1024, 10], "relu", noise).to(dtype)
        penalty(network.trace(x.to(dtype)), Categorical()).mean().backward()
        parameters = [p for p in network.parameters() if p.grad is not None]
        gradients[dtype] = torch.cat([p.grad.double().flatten() for p in parameters])
    error = gradients[torch.float32] - gradients[torch.float64]
    relative = (error.norm() / gradients[torch.float64].norm()).item()
    assert relative < 1e-3
    # Otherwise the low-precision path was not what was tested.
    assert (relative > 1e-5) == low_precision


@pytest.mark.parametrize("shape", [(200, 300), (2, 100, 300)], ids=["2-D", "3-D"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("transposed", [True, False])
@pytest.mark.parametrize("large", [True, False])
def test_linear_and_matmul(shape, bias, transposed, large, monkeypatch):
    """Through oneDNN, where it is there and the product is large, and without it."""
    monkeypatch.setattr(products, "_MIN_MULTIPLICATIONS", 2**20 if large else 2**40)
    x = randn(*shape, dtype=torch.float32)
    w = randn(300, 250, dtype=torch.float32).T if transposed else randn(250, 300).float()
    b = randn(250, dtype=torch.float32) if bias else None
    arguments = [t if t is None else t.clone().requires_grad_() for t in (x, w, b)]
    expected = [t if t is None else t.double().requires_grad_() for t in (x, w, b)]
    close = {"rtol": 1e-4, "atol": 1e-4, "check_dtype": False}
    out, exact = products.linear(*arguments), torch.nn.functional.linear(*expected)
    torch.testing.assert_close(out, exact, **close)
    (out * out).sum().backward()
    (exact * exact).sum().backward()
    for mine, theirs in zip(arguments, expected, strict=True):
        if mine is not None:
            error = (mine.grad - theirs.grad).norm() / theirs.grad.norm()
            assert error < 1e-5
    with torch.no_grad():
        torch.testing.assert_close(products.linear(x, w, b), exact.detach(), **close)
        torch.testing.assert_close(products.matmul(x, w.T), (x.double() @ w.T.double()), **close)


def test_linear_leaves_frozen_parameters_alone():
    x, w = randn(200, 300).float().requires_grad_(), randn(250, 300).float()
    products.linear(x, w).sum().backward()
    torch.testing.assert_close(x.grad, w.sum(0).expand_as(x), rtol=1e-4, atol=1e-4)
    assert w.grad is None


@pytest.mark.parametrize(
    ("capability", "has_it", "expected"),
    [("AVX512", True, True), ("AVX512", False, False), ("AVX2", True, False)],
)
def test_bfloat16_needs_instructions_that_torch_uses(capability, has_it, expected, monkeypatch):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    monkeypatch.setattr(
        torch.cpu, "get_capabilities", lambda: {"avx512_bf16": has_it}, raising=False
    )
    assert products._cpu_multiplies_bfloat16() == expected
