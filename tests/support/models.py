"""A small model of each kind, random as one that was trained, and all that makes a memory what it is."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from remanence import Memory, MemoryModel
from remanence.config import LongTermConfig, LoraSettings
from tests.support import tiny
from tests.support.tiny import ids

RETRIEVED = 8


def with_longterm(hf: Any = None, **settings: Any) -> MemoryModel:
    """A learned writer whose pool is not all there is; with adapters if `lora` says so."""
    settings = {"longterm": LongTermConfig(retrieved=RETRIEVED), "retrieval_size": 16, **settings}
    return randomised(tiny.with_memory(hf, **settings))


def with_adapters(hf: Any = None, **settings: Any) -> MemoryModel:
    """The same, with an adapter for writing and one for reading."""
    return with_longterm(hf, **{"lora": LoraSettings(r=2, lora_alpha=4.0), **settings})


def randomised(model: MemoryModel) -> MemoryModel:
    """Adapters and retriever as if they were trained: new adapters change nothing."""
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if ".lora_B." in name or name.startswith("retriever."):
                parameter.copy_(0.2 * torch.randn(parameter.shape, generator=generator))
    return model


KINDS: dict[str, Callable[..., MemoryModel]] = {
    "pool": tiny.with_memory,
    "longterm": with_longterm,
    "adapters": with_adapters,
    "text": tiny.with_text,
}


def told(model: MemoryModel, seed: int = 0, writes: int = 3, **options: Any) -> Memory:
    """A memory of some writes, longer and shorter than K slots are many."""
    memory = model.new_memory(seed, **options)
    for number in range(writes):
        model.write(memory, ids((9, 12, 4)[number % 3], seed=100 * seed + number))
    return memory


def realigned(model: MemoryModel) -> MemoryModel:
    """A loaded model whose weights lie as those of a new one do: a file's offsets move last bits on some machines."""
    for tensor in (*model.parameters(), *model.buffers()):
        tensor.data = tensor.data.clone()
    return model


def everything(memory: Memory, *, times: bool = True) -> dict[str, Any]:
    """All of a memory, to be compared: as bytes, because NaN equals nothing. `times`: also when it was written."""
    state = memory.state()
    header = state.header.to_json()
    if not times:
        header["writes"] = [{**record, "time": None} for record in header["writes"]]
    held: dict[str, Any] = {"header": header, **{name: _bytes(tensor) for name, tensor in state.tensors.items()}}
    for block, parts in state.blocks.items():
        held |= {f"{block} {name}": _bytes(part) for name, part in parts.items()}
    if memory.pool_or_none is not None:
        held["order"] = memory.pool.order.tolist()
    return held


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
