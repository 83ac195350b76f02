"""Small long-term memories, what is in them, and blocks small enough to cross."""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
import torch
from torch import Tensor

from remanence.config import LongTermConfig, StorageConfig
from remanence.memory import LongTerm, Memory, MemorySpec, NewSlots
from remanence.memory import storage as storage_module
from remanence.memory.longterm import Evicted
from remanence.memory.published import RecallFrequency
from remanence.memory.snapshot import layout_of
from remanence.memory.state import Frequencies
from remanence.memory.storage import Layout
from remanence.memory.undo import undoing

ROWS = 256  # of a block
SPEC = MemorySpec(
    layers=2,
    slots=128,
    slots_per_write=64,
    hidden_size=16,
    kv_heads=2,
    head_dim=4,
    dtype="float32",
    shared_eviction=False,
    model="some weights",
    retrieval_size=3,
)
RULES = LongTermConfig(retrieved=7)


def use_small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of as few rows as there may be, that grow on the way there."""
    monkeypatch.setattr(storage_module, "_BLOCK_BYTES", 1)
    monkeypatch.setattr(storage_module, "_FEWEST_ROWS", 16)


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def layout(storage: StorageConfig | None = None, dtype: torch.dtype = torch.float32) -> Layout:
    spec = MemorySpec(**{**SPEC.to_json(), "dtype": str(dtype).removeprefix("torch.")})
    return layout_of(spec, torch.device("cpu"), storage or StorageConfig())


def longterm(
    rules: LongTermConfig = RULES,
    storage: StorageConfig | None = None,
    dtype: torch.dtype = torch.float32,
    frequencies: Frequencies | None = None,
) -> LongTerm:
    made = LongTerm.empty(rules, layout(storage, dtype), SPEC.layers)
    if frequencies is not None:
        made.policy = RecallFrequency(frequencies, [torch.empty(0)] * SPEC.layers)
    return made


def append(
    held: LongTerm, count: int, *, step: int = 1, ages: Tensor | None = None, seed: int = 0, fails: bool = False
) -> Evicted:
    """Append slots that depend on how many there were and on the seed, with their positions as serial numbers."""
    there, dtype = held.layers[0].count, held.layout.dtype
    seed = 10 * there + 10_000 * seed
    keys, values = random(2, SPEC.layers, count, SPEC.kv_heads, SPEC.head_dim, seed=seed).to(dtype)
    retrieval = random(SPEC.layers, count, SPEC.retrieval_size, seed=seed + 1).to(dtype)
    if ages is None:  # many are equal
        ages = torch.randint(0, 5, (SPEC.layers, count), generator=torch.Generator().manual_seed(seed))
    serial = torch.arange(there, there + count).repeat(SPEC.layers, 1)
    gone = Evicted(keys, values, retrieval, ages, serial)
    with undoing() as undo:
        held.append(gone, step, undo)
        if fails:
            raise KeyboardInterrupt
    return gone


def joined(parts: Sequence[Evicted], name: str, layer: int) -> Tensor:
    """What was appended to a layer in all, by position."""
    return torch.cat([getattr(part, name)[layer] for part in parts])


def bits(tensor: Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def frequencies(held: LongTerm) -> list[list[float]] | None:
    policy = held.policy
    return [layer.tolist() for layer in policy.frequency] if isinstance(policy, RecallFrequency) else None


def everything(held: LongTerm) -> dict[str, Any]:
    """All that makes a long-term memory what it is, to be compared; what it retrieves is part of that."""
    found: dict[str, Any] = {"clock": held.clock, "sizes": held.sizes(), "frequencies": frequencies(held)}
    if isinstance(held.policy, RecallFrequency):
        found |= {"waited": held.policy.waited, "merged": held.policy.merged}
    for index, layer in enumerate(held.layers):
        there = layer.candidates()
        keys, values = layer.take(there)
        read = held.retrieve(index, random(5, SPEC.retrieval_size, seed=index))
        found[f"layer {index}"] = {
            "positions": there.tolist(),
            "keys": bits(keys),
            "values": bits(values),
            "serial": layer.known("serial", there).tolist(),
            "ages": held.ages(index).tolist(),
            "retrieved": [read.positions.tolist(), bits(read.keys), bits(read.values)],
        }
    return found


def new_slots(number: int, count: int = SPEC.slots_per_write) -> NewSlots:
    hidden = random(SPEC.layers, count, SPEC.hidden_size, seed=number)
    keys, values = hidden.unflatten(2, (2, SPEC.kv_heads, SPEC.head_dim)).unbind(2)
    return NewSlots(hidden, keys, values, tokens=5, retrieval=hidden[..., : SPEC.retrieval_size])


def write(memory: Memory, number: int, chunks: int = 1) -> None:
    with memory.changing() as undo:
        first = memory.next_serial
        for place in range(chunks):
            memory.put(new_slots(number + 1000 * place), undo)
        memory.record(undo, 5 * chunks, first, time=datetime(2024, 1, 1, tzinfo=UTC))


def written(
    writes: int,
    rules: LongTermConfig = RULES,
    storage: StorageConfig | None = None,
    frequencies: Frequencies | None = None,
) -> Memory:
    """Each write but the first drops 64 slots per layer into long-term memory."""
    memory = Memory(SPEC, longterm=longterm(rules, storage, frequencies=frequencies))
    for number in range(writes):
        write(memory, number)
    return memory
