"""What the published code can do and the public face does not: encode without writing, write slots that were encoded
before, and read slots that are in no pool."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from remanence import Memory, MemoryModel
from remanence.memory.published import Direct, pool_with_pending
from remanence.memory.undo import Undo
from remanence.model.cache import pool_prefix
from remanence.model.hooks import expecting
from remanence.model.inputs import left_padded
from remanence.model.learned import LearnedWriter
from remanence.model.lora import Role
from remanence.model.retriever import Retrieval


def writer_of(model: MemoryModel) -> LearnedWriter:
    assert isinstance(model.writer, LearnedWriter)
    return model.writer


@torch.no_grad()
def encode(model: MemoryModel, memory: Memory, ids: Tensor, after: Tensor | None = None) -> Tensor:  # [L, q, d]
    """The slots that a write would make; `after` stands for the K newest slots."""
    newest = memory.newest if after is None else after[:, -model.slots_per_write :]
    return writer_of(model).encoded([ids], [newest if memory.written else None])[0]


@torch.no_grad()
def update(
    model: MemoryModel,
    memory: Memory,
    slots: Tensor | Sequence[Tensor],  # [L, q, d]; several are joined in this order
    *,
    evict: Tensor | None = None,
    ages: Tensor | None = None,  # [L, q]
    passed: tuple[Tensor, Tensor] | None = None,  # slots [L, r, d] that go to long-term memory, and their ages [L, r]
    undo: Undo | None = None,
) -> None:
    """Put encoded slots into the pool as one write."""
    writer = writer_of(model)
    hidden = slots if isinstance(slots, Tensor) else torch.cat(list(slots), dim=1)
    new = writer.projected(hidden[None], [0])[0]
    direct = None
    if ages is not None:
        parts: dict[str, Any] = {}
        if passed is not None:
            by = writer.projected(passed[0][None], [0])[0]
            assert by.retrieval is not None
            parts = {"passed": {"keys": by.keys, "values": by.values, "retrieval": by.retrieval}}
            parts["passed_ages"] = passed[1]
        direct = Direct(ages, **parts)
    with memory.changing() as changes:
        first = memory.next_serial
        memory.put(new, changes, evict, direct)
        memory.record(changes, 0, first)


@torch.no_grad()
def read_pending(
    model: MemoryModel, memory: Memory, ids: Tensor, pending: Sequence[Tensor], sampled: Tensor | None
) -> Any:
    """A read of `sampled` ranks `[L, N - q]` of the pool and of pending slots; of these alone, by the writing adapter,
    if no ranks are given."""
    role: Role = "write" if sampled is None else "read"
    writer = writer_of(model)
    new = writer.projected(torch.cat(list(pending), dim=1)[None], [0], role)[0]
    pool = pool_with_pending(memory.pool, new.keys, new.values, sampled)
    retrieval, longterm = None, memory.longterm
    if longterm is not None and sampled is not None:
        assert model.retriever is not None
        retrieval = Retrieval(model.retriever, [longterm], [None], model.slots_per_write)
    rows, mask = left_padded([ids], model.pad)
    with model.role(role):
        bos = model.bos_slots(role)
        cache = pool_prefix(model.backbone, [pool], bos, tokens=len(ids), retrieval=retrieval)
        cache.set_prompt(mask)
        with expecting(cache):
            return model.hf(input_ids=rows, past_key_values=cache, use_cache=True)
