"""Training a model whose weights are shared out among processes by FSDP2: `fully_shard(model)`, then its optimizer.

The whole model is one unit. Memories are written and read through single weights of layers, so all weights are gathered
when a step begins, and given up when its gradients are there: what is spared is most of the weights between steps, and
of gradients and optimizer state at all times.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, distributed, nn
from torch.optim import Optimizer

from remanence.errors import InvalidInputError
from remanence.optim.sharding import is_sharded, local


def is_shared_out(model: nn.Module) -> bool:
    """Whether FSDP2 has sharded this model."""
    if not distributed.is_available():
        return False
    from torch.distributed.fsdp import FSDPModule

    return isinstance(model, FSDPModule)


def share_out(model: nn.Module) -> None:
    """`fully_shard(model)` over all processes.

    Raises:
        InvalidInputError: there is one process only.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        raise InvalidInputError(
            "weights are shared out among processes, and this is one alone; start several with "
            "torchrun --nproc-per-node N -m remanence train ..., or leave out shard="
        )
    from torch.distributed.fsdp import fully_shard

    fully_shard(model)


def require_one_unit(model: nn.Module) -> None:
    """
    Raises:
        InvalidInputError: parts of the model are sharded on their own.
    """
    if parts := [name for name, part in model.named_modules() if name and is_shared_out(part)]:
        raise InvalidInputError(
            f"{parts[0]} is sharded on its own, and memories are written through single weights of it; call "
            "fully_shard(model) for the whole model only"
        )


def as_forward(model: nn.Module, function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that uses a sharded model, so that it runs as the model's own forward pass does: weights are gathered
    before it, and gradients exchanged behind it. Of another model, the function itself."""
    if not is_shared_out(model):
        return function
    from torch.distributed.fsdp import register_fsdp_forward_method

    name = "_remanence_training_step"
    setattr(model, name, function)
    register_fsdp_forward_method(model, name)
    wrapped: Callable[..., Any] = vars(model).pop(name)
    return wrapped


class Wrapped(nn.Module):
    """A step whose model is sharded, as the Trainer's loop calls it: what is wrapped already it does not wrap again."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.module = model

    def forward(self, *args: Any) -> Any:
        return self.module(*args)


def touching_all(loss: Tensor, model: nn.Module) -> Tensor:
    """The same loss, of which every trained weight has a gradient, be it zero.

    FSDP2 exchanges gradients of those weights that have one. What a batch leaves out, such as the retriever where
    nothing is retrieved, another process's batch may not.
    """
    if not is_shared_out(model):
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


def whole_state(model: nn.Module) -> dict[str, Tensor]:
    """All weights, whole in every process; all processes have to come here."""
    state = model.state_dict()
    if not is_shared_out(model):
        return state
    parameters = dict(model.named_parameters(remove_duplicate=False))
    whole: dict[int, Tensor] = {}  # by parameter: tied weights stay tied
    for name, tensor in state.items():
        if is_sharded(tensor):
            parameter = parameters[name]
            if id(parameter) not in whole:
                whole[id(parameter)] = tensor.full_tensor()
            state[name] = whole[id(parameter)]
    return state


def load_whole(model: nn.Module, state: dict[str, Any]) -> None:
    """Take over whole weights, whether the model is sharded or not."""
    if not is_shared_out(model):
        model.load_state_dict(state)
        return
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_model_state_dict

    set_model_state_dict(model, state, options=StateDictOptions(full_state_dict=True))


def save_optimizer(optimizer: Optimizer, folder: Path) -> None:
    """Each process its own part."""
    state = optimizer.state_dict()
    held = {
        number: {name: local(value) if isinstance(value, Tensor) else value for name, value in each.items()}
        for number, each in state["state"].items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save({**state, "state": held}, folder / _part())
    distributed.barrier()


def load_optimizer(optimizer: Optimizer, folder: Path) -> None:
    """
    Raises:
        InvalidInputError: it was saved by more or fewer processes.
    """
    file = folder / _part()
    if not file.is_file():
        raise InvalidInputError(
            f"{folder} has no {file.name}: go on with as many processes as the run had, or leave out --resume"
        )
    state = torch.load(file, map_location="cpu", weights_only=True)
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    for number, parameter in zip(numbers, parameters, strict=True):
        if number in state["state"] and is_sharded(parameter):
            state["state"][number] = {name: _like(parameter, value) for name, value in state["state"][number].items()}
    optimizer.load_state_dict(state)


def _like(parameter: Any, value: Any) -> Any:
    """A part of what is shaped as a sharded parameter is, as a tensor that is sharded as it is."""
    if not isinstance(value, Tensor) or value.shape != local(parameter).shape:
        return value
    from torch.distributed.tensor import DTensor

    return DTensor.from_local(
        value.to(parameter.device),
        parameter.device_mesh,
        parameter.placements,
        shape=parameter.shape,
        stride=parameter.stride(),
    )


def _part() -> str:
    return f"optimizer-{distributed.get_rank()}-of-{distributed.get_world_size()}.pt"
