"""Several processes train one model: by DDP, or with its weights sharded by FSDP2.

FSDP2 (`fully_shard(model)`, before the optimizer is made) takes the whole model as one unit. Memories are written and
read through single weights of layers, so all weights are gathered when a step begins, and given up when its gradients
are there. That spares most of the weights between steps, and of gradients and optimizer state at all times.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, distributed, nn

from remanence.errors import InvalidInputError


def together() -> bool:
    """Whether there are other processes."""
    return distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1


def all_gather_objects(mine: Any) -> list[Any]:
    """By rank; what can be pickled."""
    if not together():
        return [mine]
    found: list[Any] = [None] * distributed.get_world_size()
    distributed.all_gather_object(found, mine)
    return found


def all_gather_rows(mine: Tensor) -> list[Tensor]:
    """By rank; tensors that may differ in their first size."""
    if not together():
        return [mine]
    counts = all_gather_objects(len(mine))
    padded = mine.new_zeros(max(counts), *mine.shape[1:])
    padded[: len(mine)] = mine
    found = [torch.empty_like(padded) for _ in counts]
    if padded.numel():
        distributed.all_gather(found, padded)
    return [rows[:count] for rows, count in zip(found, counts, strict=True)]


def is_sharded(model: nn.Module) -> bool:
    """Whether FSDP2 has sharded this model."""
    if not distributed.is_available():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def shard_model(model: nn.Module) -> None:
    """`fully_shard(model)` over all processes.

    Raises:
        InvalidInputError: there is one process only.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        raise InvalidInputError(
            "weights are sharded among processes, and this is one alone; start several with "
            "torchrun --nproc-per-node N -m remanence train ..., or leave out shard="
        )
    from torch.distributed.fsdp import fully_shard

    fully_shard(model)


def require_one_unit(model: nn.Module) -> None:
    """
    Raises:
        InvalidInputError: parts of the model are sharded on their own.
    """
    if parts := [name for name, part in model.named_modules() if name and is_sharded(part)]:
        raise InvalidInputError(
            f"{parts[0]} is sharded on its own, and memories are written through single weights of it; call "
            "fully_shard(model) for the whole model only"
        )


def as_forward(model: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that uses a sharded model, so that it runs as the model's own forward pass does: weights are gathered
    before it, and gradients exchanged behind it. Of another model, the function itself."""
    if not is_sharded(model):
        return function
    from torch.distributed.fsdp import register_fsdp_forward_method

    name = "_remanence_training_step"
    setattr(model, name, function)
    register_fsdp_forward_method(model, name)
    wrapped: Callable[..., Any] = vars(model).pop(name)
    return wrapped


class PreWrapped(nn.Module):
    """A step whose model is sharded, as the Trainer's loop calls it: what is wrapped already it does not wrap again."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = model

    def forward(self, *args: Any) -> Any:
        return self.module(*args)


def zero_grad_for_unused(loss: Tensor, model: nn.Module) -> Tensor:
    """The same loss, of which every trained weight of a sharded model has a gradient, be it zero.

    FSDP2 exchanges gradients of those weights that have one. What a batch leaves out, such as the retriever where
    nothing is retrieved, another process's batch may not.
    """
    if not is_sharded(model):
        return loss
    trained = (parameter for parameter in model.parameters() if parameter.requires_grad)
    touched: Tensor = _Touched.apply(loss, *trained)  # type: ignore[no-untyped-call]
    return touched


class _Touched(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, loss: Tensor, *weights: Tensor) -> Tensor:
        ctx.shapes = [(weight.shape, weight.dtype, weight.device) for weight in weights]
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, ...]:
        nothing = (torch.zeros((), dtype=dtype, device=device).expand(shape) for shape, dtype, device in ctx.shapes)
        return grad, *nothing


def whole_weights(model: nn.Module) -> Any:
    """All weights of a sharded model, whole in the first process; all processes have to call. Of another: None."""
    if not is_sharded(model):
        return None
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict

    return get_model_state_dict(model, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
