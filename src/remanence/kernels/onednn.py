"""Products with a weight, through oneDNN where float32 is multiplied on a CPU.

torch sends float32 products on a CPU to MKL, which leaves half of an AMD processor unused, be it at the few rows of a
prompt or the thousands of a training batch. oneDNN, which torch carries too, does not. On an Intel processor they are
alike, but at one row, that of a decode step, MKL takes half the time. The weights stay where and as they are; what
oneDNN makes of a weight at every product, an order that suits it, can be kept beside it (`Packed`).
"""

import functools
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from remanence.environment import cpu_names
from remanence.errors import InvalidInputError

_onednn: Any = None
if torch.backends.mkldnn.is_available():
    _onednn = getattr(torch.ops.mkldnn, "_linear_pointwise", None)  # what torch.compile calls on CPUs
_ROWS = 32  # for which the order is chosen; it is no worse at one row or at a thousand


class Packed:
    """A weight in the order in which oneDNN multiplies, and which weight that is."""

    def __init__(self, weight: Tensor) -> None:
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight.detach(), _ROWS)
        self._of = weight.detach()  # held, so that nothing else comes to lie at its address
        self._version = weight._version

    def is_of(self, weight: Tensor) -> bool:
        """Whether this is the weight, unchanged. What was written through `weight.data` goes unseen."""
        return weight._version == self._version and weight.data_ptr() == self._of.data_ptr()


class OneDnnLinear(nn.Linear):
    """`nn.Linear` in every respect but the kernel; results differ by rounding.

    A copy of a layer starts without what was packed, and so does a layer that was pickled.

    Attributes:
        packed: what `pack` made of the weight; None before it, and from the first call after a change of the weight.
    """

    packed: Packed | None = None

    def forward(self, input: Tensor) -> Tensor:  # [..., in] -> [..., out]
        if torch.compiler.is_compiling():
            return linear(input, self.weight, self.bias)
        if self.packed is not None and not self.packed.is_of(self.weight):
            self.packed = None
        return product(input, self.weight, self.bias, self.packed)

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "packed"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # A decoder names its attention only. In a process that unpickles one, nothing else may have made it known.
        import remanence.kernels.gqa_sdpa  # noqa: F401

        super().__setstate__(state)  # type: ignore[no-untyped-call]


def use_onednn(module: nn.Module) -> None:
    """Change the class of every `nn.Linear` inside whose weight oneDNN multiplies. Parameters are untouched."""
    for inner in module.modules():
        if type(inner) is nn.Linear and multiplies(inner.weight):
            inner.__class__ = OneDnnLinear


def pack(module: nn.Module) -> None:
    """Keep the weight of every `OneDnnLinear` inside once more, as oneDNN multiplies it."""
    for inner in module.modules():
        if isinstance(inner, OneDnnLinear) and multiplies(inner.weight):
            inner.packed = Packed(inner.weight)


def use_stock_linear(module: nn.Module) -> None:
    """What `use_onednn` and `pack` did, undone.

    Raises:
        InvalidInputError: a layer was made into something else since, which would go on using oneDNN.
    """
    layers: dict[str, nn.Module] = {
        name: inner for name, inner in module.named_modules() if isinstance(inner, OneDnnLinear)
    }
    for name, inner in layers.items():
        if type(inner) is not OneDnnLinear:
            raise InvalidInputError(
                f"{name} became a {type(inner).__name__} after optimize_for_cpu; undo that first (where Grass did it, "
                "by remanence.optim.release(model))"
            )
    for inner in layers.values():
        vars(inner).pop("packed", None)
        inner.__class__ = nn.Linear


def available() -> bool:
    """Whether this torch has oneDNN, and the operations that are used here."""
    return _onednn is not None


def multiplies(weight: Tensor) -> bool:
    """Whether products with this weight go through oneDNN."""
    return (
        available()
        and weight.device.type == "cpu"
        and weight.dtype == torch.float32
        and type(weight) in (Tensor, torch.nn.Parameter)  # not a quantized or a distributed one
        and weight.is_contiguous()  # it copes with others, a thousand times slower, unless they are transposed
        and weight.numel() > 0
    )


def product(
    rows: Tensor, weight: Tensor, bias: Tensor | None = None, packed: Packed | None = None
) -> Tensor:  # [..., in], [out, in] -> [..., out]
    """`torch.nn.functional.linear`, but for the kernel; results and gradients differ by rounding.

    Gradients can be taken once, not of gradients.

    `packed`: of the weight, to be used where no gradient is wanted.
    """
    if not _fits(rows, weight):
        return linear(rows, weight, bias)
    if torch.is_grad_enabled() and any(part is not None and part.requires_grad for part in (rows, weight, bias)):
        made: Tensor = _Product.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
        return made
    if _one_row_by_mkl() and rows.numel() == rows.shape[-1]:
        return linear(rows, weight, bias)
    return _multiply(rows, weight if packed is None else packed.weight, bias)


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


@functools.cache
def _one_row_by_mkl() -> bool:
    return torch.backends.mkl.is_available() and "Intel" in cpu_names()[0]


def _fits(rows: Tensor, weight: Tensor) -> bool:
    return (
        multiplies(weight)
        and rows.device == weight.device
        and rows.dtype == weight.dtype
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and rows.numel() > 0
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
