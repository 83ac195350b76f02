"""Products with a weight, through oneDNN where float32 is multiplied on a CPU.

torch sends float32 products on a CPU to MKL, which leaves half of an AMD processor unused, be it at the few rows of a
prompt or the thousands of a training batch. oneDNN, which torch carries too, does not. The weights stay where and as
they are.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

_onednn: Any = None
if torch.backends.mkldnn.is_available():
    _onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # what torch.compile calls on CPUs


def product(rows: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:  # [..., in], [out, in] -> [..., out]
    """`torch.nn.functional.linear`, but for the kernel; results and gradients differ by rounding.

    Gradients can be taken once, not of gradients.
    """
    if not _fits(rows, weight):
        return linear(rows, weight, bias)
    if torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in (rows, weight, bias)):
        made: Tensor = _Product.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
        return made
    return _multiply(rows, weight, bias)


def product_back(grad: Tensor, weight: Tensor) -> Tensor:  # [..., out], [out, in] -> [..., in]
    """grad · weight, as the gradient of a product's rows is; no gradient flows through it."""
    if not _fits(grad, weight):
        return grad @ weight
    return _multiply(grad, weight.t(), None)


def transposed_product(left: Tensor, right: Tensor) -> Tensor:  # [b, m], [b, n] -> [m, n]
    """leftᵀ · right, as a weight's gradient is; no gradient flows through it."""
    if not _fits(left, right):
        return left.t() @ right
    return _multiply(left.t(), right.t(), None)


def _fits(rows: Tensor, weight: Tensor) -> bool:
    return (
        _onednn is not None
        and rows.device.type == "cpu"
        and rows.dtype == weight.dtype == torch.float32
        and type(weight) in (Tensor, torch.nn.Parameter)  # not a quantized or a distributed one
        and weight.is_contiguous()  # it copes with others, a thousand times slower, unless they are transposed
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and rows.numel() > 0
        and weight.numel() > 0
    )


def _multiply(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    made: Tensor = _onednn(rows, weight, bias, "none", [], "")
    return made


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(rows, weight)
        return _multiply(rows, weight, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:  # [..., out]
        rows, weight = ctx.saved_tensors
        wanted, flat = ctx.needs_input_grad, grad.reshape(-1, len(weight))
        return (
            product_back(grad, weight) if wanted[0] else None,
            transposed_product(flat, rows.reshape(-1, weight.shape[1]).contiguous()) if wanted[1] else None,
            flat.sum(0) if wanted[2] else None,
        )
