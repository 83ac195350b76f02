"""From chunks to new slots in every form that a memory keeps."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from remanence.memory import Memory, NewSlots
from remanence.model.adapters import Role
from remanence.model.encoder import encode
from remanence.model.inputs import left_padded

if TYPE_CHECKING:
    from remanence.model.memory_model import MemoryModel


def new_slots(model: "MemoryModel", memories: Sequence[Memory], chunks: Sequence[Tensor]) -> list[NewSlots]:
    """The slots that one chunk each makes in several memories, as one batch."""
    hidden = encode_rows(model, chunks, [m.newest if m.written else None for m in memories])
    tokens = [len(chunk) for chunk in chunks]
    if len({h.shape[1] for h in hidden}) == 1:
        return projected(model, torch.stack(hidden), tokens)
    return [projected(model, h[None], [n])[0] for h, n in zip(hidden, tokens, strict=True)]


def encode_rows(
    model: "MemoryModel", rows: Sequence[Tensor], newest: Sequence[Tensor | None]
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
    model: "MemoryModel", hidden: Tensor, tokens: Sequence[int], role: Role = "read"
) -> list[NewSlots]:  # hidden [B, L, q, d]
    """Slots in hidden form as keys and values, by the adapter that will read them, and as retrieval keys."""
    with model.role(role):
        pairs = [model.backbone.project(layer, hidden[:, layer]) for layer in range(hidden.shape[1])]
    keys, values = (torch.stack(part, dim=1) for part in zip(*pairs, strict=True))
    retrieval = [None] * len(hidden) if model.retriever is None else model.retriever.keys(model.backbone, hidden)
    parts = zip(hidden, keys, values, tokens, retrieval, strict=True)
    return [NewSlots(h, k, v, n, r) for h, k, v, n, r in parts]
