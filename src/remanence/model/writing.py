"""From texts to new slots in every form that a memory keeps, and into memories."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from remanence.errors import InvalidInputError
from remanence.memory import Memory, NewSlots, Receipt
from remanence.model.adapters import Role
from remanence.model.checks import require_ages, require_slots
from remanence.model.decoder import MemoryDecoder
from remanence.model.encoder import encode
from remanence.model.inputs import chunked, left_padded

Progress = Callable[[int, int], None]


def write_rows(
    model: MemoryDecoder,
    memories: Sequence[Memory],
    rows: Sequence[Tensor],
    evict: Tensor | None,
    progress: Progress | None,
) -> list[Receipt]:
    """Write each row into its memory, chunk by chunk: all of it, or nothing."""
    texts = [chunked(row) for row in rows]
    rounds = max(len(chunks) for chunks in texts)
    if evict is not None and (len(memories) > 1 or rounds > 1):
        raise InvalidInputError(f"evict= replays one write, but this call makes {sum(map(len, texts))}")
    targets = memories if rounds == 1 else [memory.fork() for memory in memories]
    made: list[list[Any]] = [[] for _ in memories]
    for index in range(rounds):
        active = [row for row, chunks in enumerate(texts) if index < len(chunks)]
        new = new_slots(model, [targets[row] for row in active], [texts[row][index] for row in active])
        with ExitStack() as commits:
            for row, slots in zip(active, new, strict=True):
                made[row].append(commits.enter_context(targets[row].committing(slots, evict)))
            if progress is not None:
                progress(index + 1, rounds)
    if rounds > 1:
        for old, written in zip(memories, targets, strict=True):
            old.become(written)
    return [Receipt(tuple(record for record, _ in m), tuple(ranks for _, ranks in m)) for m in made]


def put(
    model: MemoryDecoder,
    memory: Memory,
    slots: Tensor | Sequence[Tensor],
    tokens: int,
    evict: Tensor | None,
    ages: Tensor | None,
    passed: tuple[Tensor, Tensor] | None,
) -> Receipt:
    """Encoded slots as one write; see `MemoryModel.update`."""
    hidden = require_slots(model, slots)
    if not memory.written and (ages is not None or passed is not None):
        raise InvalidInputError("the first write of a memory evicts nothing, so it takes neither ages= nor passed=")
    new = replace(projected(model, hidden[None], [tokens])[0], ages=require_ages(ages, hidden))
    by = None
    if passed is not None:
        if memory.longterm is None or ages is None:
            raise InvalidInputError("passed= takes a memory with long-term memory, and ages=")
        straight = require_slots(model, passed[0])
        by = replace(projected(model, straight[None], [0])[0], ages=require_ages(passed[1], straight))
    with memory.committing(new, evict, by) as (record, evicted):
        pass
    return Receipt((record,), (evicted,))


def new_slots(model: MemoryDecoder, memories: Sequence[Memory], chunks: Sequence[Tensor]) -> list[NewSlots]:
    """The slots that one chunk each makes in several memories, as one batch."""
    hidden = encode_rows(model, chunks, [m.newest if m.written else None for m in memories])
    tokens = [len(chunk) for chunk in chunks]
    if len({h.shape[1] for h in hidden}) == 1:
        return projected(model, torch.stack(hidden), tokens)
    return [projected(model, h[None], [n])[0] for h, n in zip(hidden, tokens, strict=True)]


def encode_rows(
    model: MemoryDecoder, rows: Sequence[Tensor], newest: Sequence[Tensor | None]
) -> list[Tensor]:  # [L, q, d] each
    """New slots in hidden form; `newest` `[L, K, d]` of each memory, None where it was never written."""
    k = model.slots_per_write
    written = [n is not None for n in newest]
    lengths = [len(row) for row in rows]
    short = any(w and n < k for w, n in zip(written, lengths, strict=True))
    ids, _ = left_padded(rows, model.pad, k if short else 0)
    held = [n for n in newest if n is not None]
    stacked = torch.stack([torch.zeros_like(held[0]) if n is None else n for n in newest]) if held else None
    with model.role("write"):
        delta = encode(
            model.backbone,
            ids,
            stacked,
            slots_per_write=k,
            bos=model.bos_embedding,
            positional=model.new_memory_positional_emb,
            lengths=lengths,
            written=written,
        )
    counts = [k if w else min(n, k) for w, n in zip(written, lengths, strict=True)]
    return [delta[row][:, -count:] for row, count in enumerate(counts)]


def projected(
    model: MemoryDecoder, hidden: Tensor, tokens: Sequence[int], role: Role = "read"
) -> list[NewSlots]:  # hidden [B, L, q, d]
    """Slots in hidden form as keys and values, by the adapter that will read them, and as retrieval keys."""
    with model.role(role):
        pairs = [model.backbone.project(layer, hidden[:, layer]) for layer in range(hidden.shape[1])]
    dtype = model.backbone.dtype  # whatever autocast makes of them
    hidden, keys, values = hidden.to(dtype), *(torch.stack(part, dim=1).to(dtype) for part in zip(*pairs, strict=True))
    retrieval = (
        [None] * len(hidden) if model.retriever is None else model.retriever.keys(model.backbone, hidden).to(dtype)
    )
    parts = zip(hidden, keys, values, tokens, retrieval, strict=True)
    return [NewSlots(h, k, v, n, r) for h, k, v, n, r in parts]
