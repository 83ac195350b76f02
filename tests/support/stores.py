"""Stores for tests: tiny models of both writers, and what makes two memories the same."""

from functools import cache
from pathlib import Path
from typing import Any

import torch

from remanence import Memory, MemoryModel, Store
from tests.support.tiny import decoder, tokenizer, with_memory

WRITERS = ("text", "learned")


@cache
def model_of(writer: str) -> MemoryModel:
    """A tiny random model; the same for all tests of a process."""
    torch.manual_seed(0)
    hf = decoder(vocab_size=300, num_hidden_layers=2, max_position_embeddings=512)
    if writer == "text":
        model = MemoryModel.attach(hf, tokenizer(), min_score=None)
    else:
        model = with_memory(hf, tokenizer=tokenizer())
    model.name = f"tiny-{writer}"
    return model.eval()


def store_in(folder: Path, writer: str = "text", **options: Any) -> Store:
    return Store.open(folder, model=model_of(writer), **options)


def content(memory: Memory) -> Any:
    """All that an answer can depend on, to be compared bit for bit; numbers that only count up are left out."""
    if memory.chunks is not None:
        held = [(one.write, one.place, one.ids, one.text, one.latent, one.keys) for one in memory.chunks]
        about = [(record.id, record.source, dict(record.metadata), record.time) for record in memory.writes]
        return [[_plain(part) for part in one] for one in held], about, memory.chunks.head
    state = memory.state()
    return {name: _plain(tensor) for name, tensor in state.tensors.items()}, list(state.header.writes)


def _plain(part: Any) -> Any:
    return part.contiguous().view(torch.uint8).numpy().tobytes() if isinstance(part, torch.Tensor) else part
