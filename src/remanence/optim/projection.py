"""Linear layers whose backward pass computes the gradient of r selected rows only (Grass, section 4).

A projected layer's weight takes no gradient. In its place stands a parameter of the size of the selected rows, the
*proxy*, and autograd accumulates their gradient in `proxy.grad`: gradient accumulation, hooks, clipping, `GradScaler`,
`DistributedDataParallel` (whose buckets then hold these rows only), activation checkpointing and `torch.compile` all
do their work on it as on any other. The proxy's values do not take part in the forward pass; the optimizer keeps its
first moment there, so that they cost nothing.
"""

from typing import Any

import torch
from torch import Tensor, nn

from remanence.kernels.onednn import product, product_back, transposed_product

PROXY = "grass_proxy"


class Projection:
    """What is selected of one weight `[out, in]`.

    Attributes:
        by_row: r of the `out` rows are selected, and the proxy is `[r, in]`; else r of the `in` columns: `[out, r]`.
            The smaller side is selected from, as published.
        rows: `[r]`, int64, which; rho: `[r]`, float32, their weights, or None where all are 1.
        sketch: while norms are estimated, a leaf whose gradient is that of the weight times `noise`; else None.
        noise: `[larger side, s]`, standard normal.
    """

    def __init__(self, weight: Tensor, rank: int) -> None:
        self.weight, self.rank = weight, rank
        out, into = weight.shape
        self.by_row = out <= into
        self.candidates = min(out, into)
        shape = (rank, into) if self.by_row else (out, rank)
        self.proxy = nn.Parameter(torch.zeros(shape, dtype=torch.float32, device=weight.device))
        self.rows = torch.arange(rank, device=weight.device)
        self.rho: Tensor | None = None
        self.sketch: Tensor | None = None
        self.noise: Tensor | None = None

    def select(self, rows: Tensor, rho: Tensor | None) -> None:
        self.rows = rows.to(self.weight.device)
        self.rho = None if rho is None else rho.to(self.weight.device)

    def along(self, values: Tensor) -> Tensor:  # [r] -> as wide as the proxy, to be multiplied with it
        return values[:, None] if self.by_row else values[None]

    def start_sketch(self, size: int, generator: torch.Generator) -> None:
        """Let backward passes accumulate a sketch of the full gradient, of which norms can be told, until it is read.

        The sketch is linear, so that it adds up over micro-batches and processes: `[m, s]`, never the gradient itself.
        """
        larger = max(self.weight.shape)
        device = self.weight.device
        self.noise = torch.randn(larger, size, generator=generator).to(device)
        self.sketch = torch.zeros(self.candidates, size, device=device, requires_grad=True)

    def end_sketch(self) -> None:
        self.sketch = self.noise = None

    def move(self, device: torch.device) -> None:
        """Follow a model that was moved to another device."""
        for name in ("rows", "rho", "noise"):
            held = getattr(self, name)
            if held is not None:
                setattr(self, name, held.to(device))
        if self.sketch is not None:
            self.sketch = self.sketch.detach().to(device).requires_grad_()


@torch.library.custom_op("remanence::rows_of_product", mutates_args=())
def rows_of_product(selected: Tensor, other: Tensor) -> Tensor:  # [b, r], [b, n] -> [r, n], float32
    """selectedᵀ · other: of a gradient dYᵀ·X, the rows (or, roles changed, the columns) that were gathered before."""
    if selected.is_cuda and selected.dtype != torch.float32:
        return torch.mm(selected.t(), other, out_dtype=torch.float32)
    return transposed_product(selected, other).float()


@rows_of_product.register_fake
def _(selected: Tensor, other: Tensor) -> Tensor:
    return selected.new_empty(selected.shape[1], other.shape[1], dtype=torch.float32)


class _ProjectedLinear(torch.autograd.Function):
    """x·Wᵀ + b, with gradients for x, the bias, the proxy, and the sketch where there is one."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # [..., in]
        weight: Tensor,  # [out, in]
        bias: Tensor | None,  # [out]
        proxy: Tensor,
        sketch: Tensor | None,
        rows: Tensor,
        rho: Tensor | None,
        noise: Tensor | None,
        by_row: bool,
    ) -> Tensor:  # [..., out]
        # Where columns are selected, only these columns of x are needed later.
        kept = x if by_row or sketch is not None else x.index_select(-1, rows)
        ctx.save_for_backward(kept, weight, rows, rho, noise)
        ctx.by_row, ctx.sketched = by_row, sketch is not None
        return product(x, weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # grad [..., out]
        kept, weight, rows, rho, noise = ctx.saved_tensors
        dx = product_back(grad, weight.to(grad.dtype)) if ctx.needs_input_grad[0] else None
        flat, x = grad.flatten(0, -2), kept.flatten(0, -2)
        dbias = flat.sum(0) if ctx.needs_input_grad[2] else None
        projected = sketched = None
        if ctx.needs_input_grad[3]:
            if ctx.by_row:
                projected = rows_of_product(flat.index_select(1, rows), x)
            else:
                chosen = x.index_select(1, rows) if ctx.sketched else x
                projected = rows_of_product(flat, chosen)
            if rho is not None:
                projected = projected * (rho[:, None] if ctx.by_row else rho)
        if ctx.sketched and ctx.needs_input_grad[4]:
            one, other = (flat, x) if ctx.by_row else (x, flat)
            sketched = rows_of_product(one, other @ noise.to(other.dtype))
        return dx, None, dbias, projected, sketched, None, None, None, None


class _Projected:
    """Mixed into a linear layer's class: trains the selected rows, and computes what it did before otherwise."""

    grass: Projection

    def forward(self, x: Tensor) -> Tensor:
        module: Any = self
        if not torch.is_grad_enabled():
            made: Tensor = super().forward(x)  # type: ignore[misc]
            return made
        projection: Projection = self.grass
        if projection.rows.device != x.device:
            projection.move(x.device)
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        with torch.autocast(kind, enabled=False):
            out: Tensor = _ProjectedLinear.apply(  # type: ignore[no-untyped-call]
                x,
                module.weight.detach(),
                module.bias,
                module.get_parameter(PROXY),
                projection.sketch,
                projection.rows,
                projection.rho,
                projection.noise,
                projection.by_row,
            )
            return out

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """As before: the proxy is no part of the model."""
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]
        destination.pop(prefix + PROXY, None)

    def _load_from_state_dict(
        self, state: dict[str, Any], prefix: str, meta: Any, strict: bool, missing: list[str], *rest: Any
    ) -> None:
        super()._load_from_state_dict(state, prefix, meta, strict, missing, *rest)  # type: ignore[misc]
        if prefix + PROXY in missing:
            missing.remove(prefix + PROXY)


_classes: dict[type, type] = {}


def _projected_class(base: type) -> type:
    """One subclass for every class of linear layer, made at first use."""
    if base not in _classes:
        _classes[base] = type(f"Grass{base.__name__}", (_Projected, base), {})
    return _classes[base]


def project(module: nn.Linear, projection: Projection) -> None:
    """Let a linear layer train the selected rows of its weight only."""
    module.weight.requires_grad_(False)
    module.__class__ = _projected_class(type(module))
    module.register_parameter(PROXY, projection.proxy)
    module.grass = projection  # type: ignore[assignment]


def is_projected(module: nn.Module) -> bool:
    return isinstance(module, _Projected)


def release(model: nn.Module) -> None:
    """Turn all projected layers of a model into what they were, with weights that take gradients."""
    for module in model.modules():
        if isinstance(module, _Projected):
            layer: Any = module
            delattr(layer, PROXY)
            del layer.grass
            layer.__class__ = type(module).__mro__[2]
            layer.weight.requires_grad_(True)
