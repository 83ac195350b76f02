"""Adam's moments, in float32 or, by torchao, in 8 bits with one scale for every 256 values (arXiv 2110.02861)."""

from typing import Any

import torch
from torch import Tensor

from remanence.optim.sharding import is_sharded

BLOCK, LEAST = 256, 4096
MOMENTS = ("exp_avg", "exp_avg_sq")


def require_torchao() -> Any:
    """torchao's tensor of 8 bits per value.

    Raises:
        ImportError: torchao is not there.
    """
    try:
        from torchao.optim.subclass_8bit import OptimState8bit
    except ImportError as error:
        raise ImportError(
            'state_bits=8 needs torchao: pip install torchao, or "remanence[lowbit]"; or take state_bits=32'
        ) from error
    return OptimState8bit


def zeros(like: Tensor, name: str, bits: int) -> Tensor:
    """One of `MOMENTS` for a parameter. In float32 as well: fewer than 4,096 values, no whole blocks, or sharded."""
    if bits == 8 and like.numel() >= LEAST and like.numel() % BLOCK == 0 and not is_sharded(like):
        made: Tensor = require_torchao().zeros(like.shape, name == "exp_avg", BLOCK, like.device, dtype=torch.float32)
        return made
    return torch.zeros_like(like, dtype=torch.float32, memory_format=torch.contiguous_format)


def in_eight_bits(moment: Tensor) -> bool:
    return hasattr(moment, "codes")


def _read(moment: Tensor) -> Tensor:  # float32: the moment itself, or a copy of what is kept in 8 bits
    return moment.dequantize() if in_eight_bits(moment) else moment


def first(state: dict[str, Any]) -> Tensor:
    """The first moment, float32; not to be written to."""
    return _read(state["exp_avg"])


def _write(moment: Tensor, values: Tensor) -> None:
    if values is not moment:
        moment.copy_(values)


def adam(state: dict[str, Any], gradient: Tensor, group: dict[str, Any], steps: Tensor) -> Tensor:
    """The direction of a step, after taking its gradient in; `steps`: a view of the state's that fits the gradient."""
    first, second = group["betas"]
    state["steps"] += 1
    average, square = (_read(state[name]) for name in MOMENTS)
    average.lerp_(gradient, 1 - first)
    square.mul_(second).addcmul_(gradient, gradient, value=1 - second)
    for name, values in zip(MOMENTS, (average, square), strict=True):
        _write(state[name], values)
    steps = steps.to(gradient.device)
    spread = (square / (1 - second**steps)).sqrt_().add_(group["eps"])
    return (average / (1 - first**steps)).div_(spread)


def reset(state: dict[str, Any]) -> None:
    state["steps"].zero_()
    for name in MOMENTS:
        _write(state[name], _read(state[name]).zero_())


def carry(state: dict[str, Any], source: Tensor, stays: Tensor, dim: int) -> None:
    """Row i takes over what row `source[i]` has, if it stays, and else zero; `[r]` each."""
    state["steps"].copy_(state["steps"][source] * stays)
    for name in MOMENTS:
        kept = _read(state[name]).index_select(dim, source)
        _write(state[name], kept.mul_(stays[:, None] if dim == 0 else stays))


def turn(state: dict[str, Any], by: Tensor, dim: int) -> None:
    """Moments along old directions become those along new ones; `by` `[new, old]`: how far each goes along each.

    Second moments as if gradients along two directions were uncorrelated.
    """
    for name, along in zip(MOMENTS, (by, by.square()), strict=True):
        held = _read(state[name])
        _write(state[name], along @ held if dim == 0 else held @ along.t())
