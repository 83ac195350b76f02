"""Memories of every kind and tier, small, with blocks that are full and blocks that are not."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from remanence.config import LongTermConfig, StorageConfig, Tier
from remanence.memory import LongTerm, Memory
from remanence.memory.envelope import folder_of
from remanence.memory.state import Frequencies
from tests.support import longterms, texts

WRITES = 7  # 384 slots: a full block and half of another in each layer
TIERS: list[Tier] = ["device", "host", "disk"]
DISK = StorageConfig("disk")


def written(writes: int = WRITES, storage: StorageConfig | None = None, *, capacity: int = 150_000) -> Memory:
    return longterms.written(writes, LongTermConfig(retrieved=7, capacity=capacity), storage)


def told(storage: StorageConfig | None = None, **settings: Any) -> Memory:
    memory = texts.text_memory(storage, **settings)
    for number in range(WRITES):
        texts.tell(memory, number)
    return memory


def go_on(memory: Memory, number: int) -> None:
    """One more write."""
    (texts.tell if memory.chunks is not None else longterms.write)(memory, number)


KINDS: dict[str, Callable[[], Memory]] = {
    "pool": lambda: written().pool_only().fork(),
    "never written": lambda: written(0),
    "long-term, host": lambda: written(),
    "long-term, disk": lambda: written(storage=DISK, capacity=300),
    "long-term, int8": lambda: written(storage=StorageConfig("disk", int8=True)),
    "published": lambda: longterms.written(WRITES, LongTermConfig(70), frequencies=Frequencies(128, 3.0)),
    "text": lambda: told(),
    "text, at random": lambda: told(capacity=40, random=True, seed=3),
    "text, host": lambda: told(StorageConfig("host"), capacity=40),
    "text, int8": lambda: told(StorageConfig("disk", int8=True)),
    "text, not kept": lambda: told(DISK, keep_text=False),
    "text, never told": lambda: texts.text_memory(),
}


def longterm_of(memory: Memory) -> LongTerm:
    assert memory.longterm is not None
    return memory.longterm


def blocks(target: Path) -> list[Path]:
    """The files beside a memory; of a learned one: of both layers, the full block first."""
    return sorted(folder_of(target).glob("*"))


def on_disk(target: Path) -> dict[str, bytes]:
    """All files in the folder of a memory, and below it."""
    return {str(file): file.read_bytes() for file in target.parent.rglob("*") if file.is_file()}
