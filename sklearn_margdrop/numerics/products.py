"""The products that a penalty is made of, with the derivatives written out.

Autograd would do, but the matrices are as large as the layers and most of its time would go
into temporaries; each backward pass here makes a single one.

A penalty is a second-order approximation, so its products may be cheaper than the loss's: between
wide layers, float32 tensors are multiplied in bfloat16 where the hardware does that faster, which
moves the penalty's gradient by less than 1e-3 (relative). float64 stays float64 throughout.

On the CPU large float32 products, those of the loss as well, go through oneDNN: MKL, which torch
takes by itself, needs twice as long on processors that are not Intel's.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sklearn_margdrop.numerics.sparse import Matrix, SparseMatrix

#: Smaller matrices than this do not repay the conversion to bfloat16.
_MIN_ELEMENTS = 2**15

#: Products of fewer multiplications than this do not repay oneDNN's preparations.
_MIN_MULTIPLICATIONS = 2**20


def linear(x: Matrix, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` for `x` of shape (..., n, p) and `weight` of shape (m, p)."""
    if isinstance(x, SparseMatrix) or not _suits_onednn(x, weight.mT):
        return F.linear(cast("Tensor", x), weight, bias)  # which asks the matrix
    if torch.is_grad_enabled():
        out: Tensor = _Linear.apply(x, weight, bias)
        return out
    return _onednn(x, weight, bias)


def multiply(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` for `a` of shape (..., n, m) and `b` of shape (m, p)."""
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
        return a @ b
    return _onednn(a, b.mT) if _suits_onednn(a, b) else a @ b


def product(a: Tensor, w: Tensor) -> Tensor:
    """``a @ w`` for `a` of shape (..., n, m) and `w` of shape (m, p), or a stack of them each."""
    shape = (*a.shape[:-1], w.shape[-1])
    # A single product of all rows, where torch would make one for each sample of permuted axes.
    out: Tensor = _Product.apply(_rows(a) if w.dim() == 2 else a, w)
    return out.view(shape)


def squared_product(v: Matrix, w: Tensor, exact: bool = False) -> Tensor:
    """``v @ (w * w)'`` for `v` of shape (..., n, p) and `w` of shape (m, p).

    `v` may be sparse, and may be a single row that stands for all. `exact` keeps the dtype,
    whatever the size of `w`.
    """
    if isinstance(v, SparseMatrix):
        return v @ w.square().mT
    out: Tensor = _SquaredProduct.apply(v, w, 0 if exact else w.numel())
    return out


def squared(w: Tensor) -> Tensor:
    """``w * w``, in bfloat16 if that is worth it for the products with it."""
    return _square(w, w.numel())


def sum_of_squares(c: Tensor) -> Tensor:
    """``(c * c).sum(-2)`` for `c` of shape (..., n, p)."""
    out: Tensor = _SumOfSquares.apply(c)
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            multiply(grad, weight) if needs_x else None,
            multiply(_rows(grad).mT, _rows(x)) if needs_weight else None,
            _rows(grad).sum(0) if needs_bias else None,
        )


class _Product(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, w: Tensor) -> Tensor:
        return _multiply(a, w, w.numel())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, w = ctx.saved_tensors
        size, dtype = w.numel(), grad.dtype
        grad = _lower(grad, size)
        grad_a = grad_w = None
        if ctx.needs_input_grad[0]:
            grad_a = multiply(grad, _lower(w, size).mT).to(dtype)
        if ctx.needs_input_grad[1]:
            grad_w = multiply(_lower(a, size).mT, grad).to(dtype)
        return grad_a, grad_w


class _SquaredProduct(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor, w: Tensor, size: int) -> Tensor:
        return _multiply(v, _square(w, size).mT, size)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        v, w, ctx.size = inputs
        ctx.save_for_backward(v, w)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        v, w = ctx.saved_tensors
        grad_v = grad_w = None
        if ctx.needs_input_grad[0]:
            grad_v = _multiply(grad, _square(w, ctx.size), ctx.size)
        if ctx.needs_input_grad[1]:
            grad_w = _multiply(_rows(2 * grad).mT, _rows(v), ctx.size).mul_(w)
        return grad_v, grad_w, None


class _SumOfSquares(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(c: Tensor) -> Tensor:
        return (c * c).sum(-2)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        (c,) = ctx.saved_tensors
        by_c: Tensor = c * (2 * grad).unsqueeze(-2)
        return by_c


def _rows(a: Tensor) -> Tensor:
    return a.reshape(-1, a.shape[-1])


def _square(w: Tensor, weight_size: int) -> Tensor:
    if _low_precision(w, weight_size):
        w = w.bfloat16()
        return w.mul_(w)
    return w * w


def _lower(a: Tensor, weight_size: int) -> Tensor:
    """`a` itself, or in bfloat16 if that is worth it."""
    return a.bfloat16() if _low_precision(a, weight_size) else a


def _multiply(a: Tensor, b: Tensor, weight_size: int) -> Tensor:
    """``a @ b`` in the dtype of `a`, through bfloat16 for a weight matrix that is worth it."""
    return multiply(_lower(a, weight_size), _lower(b, weight_size)).to(a.dtype)


def _low_precision(a: Tensor, weight_size: int) -> bool:
    if a.dtype != torch.float32 or weight_size < _MIN_ELEMENTS:
        return False
    if a.device.type == "cuda":
        return torch.cuda.get_device_capability(a.device) >= (8, 0)
    return a.device.type == "cpu" and _CPU_MULTIPLIES_BFLOAT16


def _suits_onednn(a: Tensor, b: Tensor) -> bool:
    return (
        a.dtype == torch.float32
        and a.device.type == "cpu"
        and a.numel() * b.shape[-1] >= _MIN_MULTIPLICATIONS
        and b.dtype == torch.float32
        and b.dim() == 2
        and _HAS_ONEDNN
        # Compilers choose their own kernels, and function transforms have no rule for this one.
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def _onednn(a: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``a @ weight.T + bias`` by oneDNN, through the operator that torch.compile calls it by."""
    out: Tensor = torch.ops.mkldnn._linear_pointwise(a, weight, bias, "none", [], "")
    return out


def _has_onednn() -> bool:
    return torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")


_HAS_ONEDNN = _has_onednn()


def _cpu_multiplies_bfloat16() -> bool:
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


_CPU_MULTIPLIES_BFLOAT16 = _cpu_multiplies_bfloat16()
