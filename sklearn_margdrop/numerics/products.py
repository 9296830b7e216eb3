"""The products of matrices that a network and its penalty are made of.

Autograd would differentiate them, but the matrices are as large as the layers and most of its time
would go into temporaries; each backward pass here makes a single one.

A penalty is a second-order approximation, so its products may be cheaper than the loss's. They are
of *mixed precision*: between wide layers, float32 tensors are multiplied in bfloat16 where the
hardware does that faster, which moves the penalty's gradient by less than 1e-3 (relative). float64
stays float64 throughout.

On the CPU large float32 products, those of the loss as well, go through oneDNN: MKL, which torch
takes by itself, needs twice as long on processors that are not Intel's.
"""

from __future__ import annotations

from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sklearn_margdrop.numerics.sparse import Matrix, SparseMatrix
from sklearn_margdrop.numerics.torch_private import (
    has_onednn_linear,
    is_transformed,
    onednn_linear,
)

#: Smaller weight matrices than this do not repay the conversion to bfloat16.
_MIN_ELEMENTS = 2**15

#: Products of fewer multiplications than this do not repay oneDNN's preparations.
_MIN_MULTIPLICATIONS = 2**22


def linear(x: Matrix, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``x @ weight.T + bias`` for `x` of shape (..., n, p) and `weight` of shape (m, p)."""
    if isinstance(x, SparseMatrix) or not _suits_onednn(x, weight.mT):
        return F.linear(cast("Tensor", x), weight, bias)  # or a sparse one
    if torch.is_grad_enabled():
        out: Tensor = _Linear.apply(x, weight, bias)
        return out
    return onednn_linear(x, weight, bias)


def matmul(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` for `a` of shape (..., n, m) and `b` of shape (m, p)."""
    if torch.is_grad_enabled() and (a.requires_grad or b.requires_grad):
        return a @ b
    return onednn_linear(a, b.mT) if _suits_onednn(a, b) else a @ b


def mixed_matmul(a: Tensor, w: Tensor) -> Tensor:
    """``a @ w`` for `a` of shape (..., n, m) and `w` of shape (m, p), or a stack of them each.

    Of mixed precision.
    """
    shape = (*a.shape[:-1], w.shape[-1])
    # A single product of all rows, where torch would make one for each sample of permuted axes.
    out: Tensor = _MixedMatmul.apply(_rows(a) if w.dim() == 2 else a, w)
    return out.view(shape)


def squared_linear(v: Matrix, w: Tensor, exact: bool = False) -> Tensor:
    """``v @ (w * w).T`` for `v` of shape (..., n, p) and `w` of shape (m, p).

    It takes variances through a linear layer. `v` may be sparse, and may be a single row that
    stands for all. Of mixed precision, unless `exact`.
    """
    if isinstance(v, SparseMatrix):
        return v @ w.square().mT
    out: Tensor = _SquaredLinear.apply(v, w, 0 if exact else w.numel())
    return out


def mixed_square(w: Tensor, weight_size: int) -> Tensor:
    """``w * w``, in bfloat16 if that is worth it for products with `weight_size` weights."""
    if _suits_bfloat16(w, weight_size):
        w = w.bfloat16()
        return w.mul_(w)
    return w * w


def sum_of_squares(c: Tensor) -> Tensor:
    """``(c * c).sum(-2)`` for `c` of shape (..., n, p)."""
    out: Tensor = _SumOfSquares.apply(c)
    return out


class _Linear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return onednn_linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            matmul(grad, weight) if needs_x else None,
            matmul(_rows(grad).mT, _rows(x)) if needs_weight else None,
            _rows(grad).sum(0) if needs_bias else None,
        )


class _MixedMatmul(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(a: Tensor, w: Tensor) -> Tensor:
        return _matmul_for(w.numel(), a, w)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(*inputs)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
        a, w = ctx.saved_tensors
        size, dtype = w.numel(), grad.dtype
        grad = _lowered(grad, size)
        grad_a = grad_w = None
        if ctx.needs_input_grad[0]:
            grad_a = matmul(grad, _lowered(w, size).mT).to(dtype)
        if ctx.needs_input_grad[1]:
            grad_w = matmul(_lowered(a, size).mT, grad).to(dtype)
        return grad_a, grad_w


class _SquaredLinear(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(v: Tensor, w: Tensor, size: int) -> Tensor:
        return _matmul_for(size, v, mixed_square(w, size).mT)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        v, w, ctx.size = inputs
        ctx.save_for_backward(v, w)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        v, w = ctx.saved_tensors
        grad_v = grad_w = None
        if ctx.needs_input_grad[0]:
            grad_v = _matmul_for(ctx.size, grad, mixed_square(w, ctx.size))
        if ctx.needs_input_grad[1]:
            grad_w = _matmul_for(ctx.size, _rows(2 * grad).mT, _rows(v)).mul_(w)
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


def _matmul_for(weight_size: int, a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in the dtype of `a`, through bfloat16 if `weight_size` weights are worth it."""
    return matmul(_lowered(a, weight_size), _lowered(b, weight_size)).to(a.dtype)


def _lowered(a: Tensor, weight_size: int) -> Tensor:
    """`a` itself, or in bfloat16 if `weight_size` weights are worth it."""
    return a.bfloat16() if _suits_bfloat16(a, weight_size) else a


def _suits_bfloat16(a: Tensor, weight_size: int) -> bool:
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
        # Compilers choose their own kernels, and function transforms have no rule for this one.
        and not is_transformed()
        and has_onednn_linear()
    )


def _cpu_multiplies_bfloat16() -> bool:
    if not torch.backends.cpu.get_cpu_capability().startswith("AVX512"):
        return False  # the processor has not, or torch has been told to do without
    capabilities: dict[str, Any] = getattr(torch.cpu, "get_capabilities", dict)()
    return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))


_CPU_MULTIPLIES_BFLOAT16 = _cpu_multiplies_bfloat16()
