"""Modules whose backward pass computes the gradient of selected rows only.

A linear layer computes the gradient of these rows and never more. Any other use of a projected weight (by a subclass
with a forward pass of its own, by `nn.MultiheadAttention`, by experts in one tensor) reads it as an attribute, and gets
it with a backward pass that takes the selected rows out of the whole gradient, of one weight at a time.
"""

from collections.abc import Mapping
from operator import methodcaller
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from remanence.kernels.onednn import OneDnnLinear, product, product_back, transposed_product
from remanence.optim.projection import Projection
from remanence.optim.sharding import is_sharded

PROXY = "grass_proxy"


def proxy_name(parameter: str) -> str:
    return PROXY if parameter == "weight" else f"{PROXY}_{parameter}"


@torch.library.custom_op("remanence::rows_of_product", mutates_args=())
def rows_of_product(selected: Tensor, other: Tensor) -> Tensor:  # [b, r], [b, n] -> [r, n], float32
    """selectedᵀ · other: of a gradient dYᵀ·X, the rows (or, roles changed, the columns) that were gathered before."""
    if selected.is_cuda and selected.dtype != torch.float32:
        return torch.mm(selected.t(), other, out_dtype=torch.float32)
    return transposed_product(selected, other).float()


@rows_of_product.register_fake
def _(selected: Tensor, other: Tensor) -> Tensor:
    return selected.new_empty(selected.shape[1], other.shape[1], dtype=torch.float32)


def _chosen(features: Tensor, selected: Tensor) -> Tensor:  # [..., m] -> [..., r]
    """Selected features; or, of directions `[r, m]`, the components along them."""
    if selected.is_floating_point():
        return product(features, selected.to(features.dtype))
    return features.index_select(-1, selected)


def _weighted(projected: Tensor, rho: Tensor | None, by_row: bool) -> Tensor:
    """Selected rows `[r, n]`, or columns `[m, r]`, times their weights `[r]`."""
    return projected if rho is None else projected * (rho[:, None] if by_row else rho)


class _Product(torch.autograd.Function):
    """x·Wᵀ + b, or x·W + b, with gradients for x, the bias, the proxy, and the sketch where there is one.

    The gradient of a weight `[out, in]` is dYᵀ·X, that of one `[in, out]` Xᵀ·dY: the selected rows are columns of the
    first factor, selected columns are columns of the second.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,  # [..., in]
        weight: Tensor,  # [out, in], or [in, out]
        bias: Tensor | None,  # [out]
        proxy: Tensor,
        sketch: Tensor | None,
        selected: Tensor,
        rho: Tensor | None,
        noise: Tensor | None,
        by_row: bool,
        out_first: bool,
    ) -> Tensor:  # [..., out]
        # Where input features are selected, only these are needed later.
        ctx.gathered = by_row != out_first and sketch is None
        ctx.by_row, ctx.out_first = by_row, out_first
        ctx.save_for_backward(_chosen(x, selected) if ctx.gathered else x, weight, selected, rho, noise)
        out_weight = weight if out_first else weight.t()
        return product(x, out_weight.to(x.dtype), None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:  # grad [..., out]
        kept, weight, selected, rho, noise = ctx.saved_tensors
        out_weight = weight if ctx.out_first else weight.t()
        dx = product_back(grad, out_weight.to(grad.dtype)) if ctx.needs_input_grad[0] else None
        flat, x = grad.flatten(0, -2), kept.flatten(0, -2)
        dbias = flat.sum(0) if ctx.needs_input_grad[2] else None
        projected = sketched = None
        from_one, other = (flat, x) if ctx.by_row == ctx.out_first else (x, flat)
        if ctx.needs_input_grad[3]:
            chosen = from_one if ctx.gathered else _chosen(from_one, selected)
            projected = rows_of_product(chosen, other) if ctx.by_row else rows_of_product(other, chosen)
            projected = _weighted(projected, rho, ctx.by_row)
        if ctx.needs_input_grad[4]:
            if other.dtype == torch.float16:  # sums of scaled gradients soon pass its largest number, 65,504
                from_one, other = from_one.float(), other.float()
            sketched = rows_of_product(from_one, other @ noise.to(other.dtype))
        return dx, None, dbias, projected, sketched, None, None, None, None, None


class _Read(torch.autograd.Function):
    """A weight as it is, whose gradient goes to the proxy, and the sketch where there is one."""

    @staticmethod
    def forward(
        ctx: Any,
        weight: Tensor,
        proxy: Tensor,
        sketch: Tensor | None,
        selected: Tensor,
        rho: Tensor | None,
        noise: Tensor | None,
        by_row: bool,
    ) -> Tensor:
        ctx.save_for_backward(selected, rho, noise)
        ctx.by_row = by_row
        return weight.view_as(weight)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        selected, rho, noise = ctx.saved_tensors
        grad = grad.flatten(0, -2)
        part = _chosen(grad.t(), selected).t() if ctx.by_row else _chosen(grad, selected)
        projected = _weighted(part.float(), rho, ctx.by_row)
        sketched = None
        if ctx.needs_input_grad[2]:
            sketched = (grad if ctx.by_row else grad.t()).float() @ noise
        return None, projected, sketched, None, None, None, None


class _Projected:
    """Mixed into a module's class. `grass`: projections by the names of their parameters."""

    grass: dict[str, Projection]
    grass_base: type
    grass_names: tuple[str, ...]
    _parameters: dict[str, Any]

    def _grass_inputs(self, name: str, device: torch.device) -> tuple[Any, ...]:
        """Proxy, leaf of the sketch, what is selected, rho, noise, and by_row."""
        projection = self.grass[name]
        if projection.rows.device != device:
            projection.move(device)
        sketch = projection.sketch
        leaf, noise = (None, None) if sketch is None else (sketch.leaf, sketch.noise)
        return self._parameters[proxy_name(name)], leaf, projection.selected, projection.rho, noise, projection.by_row

    def _grass_foreign(self, name: str) -> bool:
        """Whether a weight is not ours to take the gradient of: it is the part of it that lies in this process, with
        which nobody computes, or a tensor that somebody put in its place (`functional_call`)."""
        held = self._parameters[name]
        return held is None or is_sharded(held) or (held is not self.grass[name].weight and held.requires_grad)

    def _grass_read(self, name: str) -> Any:
        held = self._parameters[name]
        if not torch.is_grad_enabled() or self._grass_foreign(name):
            return held
        return _Read.apply(held.detach(), *self._grass_inputs(name, held.device))  # type: ignore[no-untyped-call]

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        """Proxies follow to another device, and stay in float32 with the moments that are kept in them."""
        proxies = {name: self._parameters.pop(proxy_name(name)) for name in self.grass}
        super()._apply(fn, recurse)  # type: ignore[misc]
        for name, proxy in proxies.items():
            device = self._parameters[name].device
            if proxy.device != device:
                proxy.data = proxy.data.to(device)
            self._parameters[proxy_name(name)] = proxy
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        """As before: proxies are no part of the model."""
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[misc]
        for name in self.grass:
            destination.pop(prefix + proxy_name(name), None)

    def _load_from_state_dict(
        self, state: dict[str, Any], prefix: str, meta: Any, strict: bool, missing: list[str], *rest: Any
    ) -> None:
        super()._load_from_state_dict(state, prefix, meta, strict, missing, *rest)  # type: ignore[misc]
        for name in self.grass:
            if prefix + proxy_name(name) in missing:
                missing.remove(prefix + proxy_name(name))

    def __reduce_ex__(self, protocol: Any) -> Any:
        """The class was made at run time, so that a copy or a pickle has to make it again."""
        made = super().__reduce_ex__(protocol)
        return _blank, (self.grass_base, self.grass_names), *made[2:]


class _ProjectedProduct(_Projected):
    """A linear layer, or transformers' Conv1D, whose forward pass is a product and a bias and no more."""

    def forward(self, x: Tensor) -> Tensor:
        if not torch.is_grad_enabled() or self._grass_foreign("weight"):
            made: Tensor = super().forward(x)  # type: ignore[misc]
            return made
        proxy, *rest = self._grass_inputs("weight", x.device)
        weight, bias = self._parameters["weight"].detach(), self._parameters["bias"]
        out_first = not issubclass(self.grass_base, Conv1D)
        kind = x.device.type
        if torch.is_autocast_enabled(kind):
            x = x.to(torch.get_autocast_dtype(kind))
        with torch.autocast(kind, enabled=False):
            out: Tensor = _Product.apply(x, weight, bias, proxy, *rest, out_first)  # type: ignore[no-untyped-call]
            return out


# Forward passes that are known to be a product and a bias, and no more.
_PRODUCTS = (nn.Linear.forward, OneDnnLinear.forward, Conv1D.forward)
_classes: dict[tuple[type, tuple[str, ...]], type] = {}


def _projected_class(base: type, names: tuple[str, ...]) -> type:
    """The subclass of a module's class that projects the named parameters. Each is made once."""
    if (base, names) not in _classes:
        mixin = _ProjectedProduct if getattr(base, "forward") in _PRODUCTS else _Projected  # noqa: B009
        body: dict[str, Any] = {name: property(methodcaller("_grass_read", name)) for name in names}
        body |= {"grass_base": base, "grass_names": names}
        _classes[base, names] = type(f"Grass{base.__name__}", (mixin, base), body)
    return _classes[base, names]


def _blank(base: type, names: tuple[str, ...]) -> Any:
    made: Any = _projected_class(base, names)
    return made.__new__(made)


def project(module: nn.Module, projections: Mapping[str, Projection]) -> None:
    """Let a module train the selected rows of its named parameters only."""
    module.__class__ = _projected_class(type(module), tuple(projections))
    module.grass = dict(projections)  # type: ignore[assignment]
    for name, projection in projections.items():
        projection.weight.requires_grad_(False)
        module.register_parameter(proxy_name(name), projection.proxy)


def is_projected(module: nn.Module) -> bool:
    return isinstance(module, _Projected)


def release(model: nn.Module) -> None:
    """Turn all projected layers of a model into what they were, with weights that take gradients."""
    for module in model.modules():
        if isinstance(module, _Projected):
            layer: Any = module
            for name, projection in layer.grass.items():
                projection.end_sketch()
                delattr(layer, proxy_name(name))
                layer._parameters[name].requires_grad_(True)
            del layer.grass
            layer.__class__ = module.grass_base
