"""Text memories whose chunks are made up, without a model."""

from dataclasses import replace
from datetime import UTC, datetime

import torch
from torch import Tensor

from remanence.config import StorageConfig
from remanence.memory import Memory
from remanence.memory.chunks import Chunk, Chunks, Query
from remanence.memory.lexical import words
from remanence.memory.storage import KeptSlots
from remanence.memory.undo import Undo
from tests.support import longterms
from tests.support.longterms import random

SPEC = replace(longterms.SPEC, slots=0, slots_per_write=0, retrieval_size=6, writer="text")
TIME = datetime(2024, 1, 1, tzinfo=UTC)
WORDS = ("Alice", "Bob", "Oslo", "Lima", "Rome", "baker", "plumber", "born", "lives", "works", "cat", "river", "music")


def text_memory(
    storage: StorageConfig | None = None,
    *,
    capacity: int | None = None,
    random: bool = False,
    seed: int = 0,
    keep_text: bool = True,
) -> Memory:
    chunks = Chunks(
        storage or StorageConfig("text"), head=(1,), capacity=capacity, random=random, seed=seed, keep_text=keep_text
    )
    return Memory(SPEC, seed=seed, chunks=chunks)


def text_of(number: int, tokens: int) -> str:
    return " ".join(WORDS[(7 * number + 5 * at * at) % len(WORDS)] for at in range(tokens))


def slots_of(number: int, tokens: int) -> Tensor:  # [2, L, n, H, D]
    return random(2, SPEC.layers, tokens, SPEC.kv_heads, SPEC.head_dim, seed=number)


def latent_of(number: int) -> Tensor:  # [S]
    return torch.nn.functional.normalize(random(SPEC.retrieval_size, seed=number), dim=0).half()


def tell_in(memory: Memory, undo: Undo, number: int, lengths: tuple[int, ...] = (3, 5)) -> int:
    """In a scope that goes on, one write of chunks of these lengths, made of a number; returns its id."""
    chunks, write = memory.chunks, memory.next_id
    assert chunks is not None
    for place, tokens in enumerate(lengths):
        own = 1000 * number + place
        kept = None if chunks.storage.tier == "text" else KeptSlots(slots_of(own, tokens), chunks.storage)
        ids = torch.arange(own, own + tokens, dtype=torch.int32)
        text = text_of(own, tokens)
        chunks.add(Chunk(chunks.next_key, write, place, tokens, ids, text, latent_of(own), kept), undo)
    text = "; ".join(text_of(1000 * number + place, tokens) for place, tokens in enumerate(lengths))
    kept_text = text if chunks.keep_text else None
    record = memory.record(undo, sum(lengths), source=f"{number}.md", metadata={"n": number}, text=kept_text, time=TIME)
    memory.evict(record.id, undo)
    return record.id


def tell(memory: Memory, number: int, lengths: tuple[int, ...] = (3, 5)) -> int:
    with memory.changing() as undo:
        return tell_in(memory, undo, number, lengths)


def forget(memory: Memory, write: int) -> None:
    with memory.changing() as undo:
        memory.drop(write, undo)


def scores(memory: Memory, question: str, latent: int = 0) -> dict[tuple[int, int], float]:
    """By write and place."""
    assert memory.chunks is not None
    found = memory.chunks.scores(Query(words(question), latent_of(latent).float()))
    return {(chunk.write, chunk.place): score for chunk, score in found.items()}
