"""The chunks of a text memory, and what they are found by: their words and a latent vector each."""

import hashlib
from collections.abc import Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from remanence.config import StorageConfig
from remanence.memory.lexical import Postings, words
from remanence.memory.scoring import fused
from remanence.memory.storage import KeptSlots
from remanence.memory.undo import Undo

_FEWEST_ROWS = 64
_AT_ONCE = 2**22  # numbers of latent vectors that are compared at once


@dataclass(frozen=True, eq=False)
class Chunk:
    """One chunk of a write. Never changes, so forks share it.

    Attributes:
        key: chunks are numbered as they are added.
        write: id of its write; place: which of that write's chunks it is, from 0.
        tokens: n.
        ids: `[n]` int32; None where the memory keeps no text.
        text: what it says; None where it was given as ids and there is no tokenizer, or no text is kept.
        latent: `[S]`, float16, unit length: what the latent score compares.
        slots: None in the text tier, which encodes `ids` again.
    """

    key: int
    write: int
    place: int
    tokens: int
    ids: Tensor | None
    text: str | None
    latent: Tensor
    slots: KeptSlots | None

    @property
    def words(self) -> Sequence[Hashable]:
        """What the lexical score compares: words, else token ids."""
        if self.text is not None:
            return words(self.text)
        return [] if self.ids is None else self.ids.tolist()

    @property
    def nbytes(self) -> int:
        """Bytes of what stands for its slots in the text tier: ids, text and latent vector."""
        ids = 0 if self.ids is None else self.ids.nbytes
        return ids + self.latent.nbytes + (0 if self.text is None else len(self.text.encode()))


@dataclass(frozen=True)
class Query:
    """What a prompt asks: its words and its latent vector `[S]`, float32."""

    words: Sequence[Hashable]
    latent: Tensor


class Chunks:
    """All chunks of a text memory, oldest first.

    Attributes:
        head: token ids in front of every chunk when it is encoded, and of every prompt; None until the first write.
        date: what templates that print today's date print in this memory; ISO.
        storage: where slots lie.
        capacity: most slots; None: no limit.
        random: evict chunks drawn by seed and write id, not the oldest.
        keep_text: keep text, words and token ids.
        dropped: id of the last write at which chunks were evicted; -1: none ever was.
    """

    def __init__(
        self,
        storage: StorageConfig,
        *,
        head: tuple[int, ...] | None = None,
        date: str = "2024-01-01",
        capacity: int | None = None,
        random: bool = False,
        seed: int = 0,
        keep_text: bool = True,
    ) -> None:
        self.storage, self.head, self.date, self.capacity = storage, head, date, capacity
        self.random, self.seed, self.keep_text = random, seed, keep_text
        self.next_key, self.dropped = 0, -1
        self._items: dict[int, Chunk] = {}
        self._postings = Postings()
        self._latents = LatentTable()

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self._items.values())

    @property
    def tokens(self) -> int:
        return sum(chunk.tokens for chunk in self)

    def of(self, write: int) -> list[Chunk]:
        """The chunks of one write that are left."""
        return [chunk for chunk in self if chunk.write == write]

    def add(self, chunk: Chunk, undo: Undo) -> None:
        """Add the newest chunk."""
        undo.set(self, next_key=chunk.key + 1)
        undo.add(lambda: self._drop(chunk))
        self._insert(chunk)

    def load(self, chunks: Iterable[Chunk]) -> None:
        """Take in chunks that were saved."""
        for chunk in chunks:
            self._insert(chunk)

    def remove(self, chunk: Chunk, undo: Undo) -> None:
        undo.add(lambda: self._insert(chunk))
        self._drop(chunk)

    def _insert(self, chunk: Chunk) -> None:
        if chunk.key in self._items:
            return
        last = next(reversed(self._items), -1)
        self._latents.add(chunk.key, chunk.latent)
        self._postings.add(chunk.key, chunk.words)
        self._items[chunk.key] = chunk
        if chunk.key < last:
            self._items = dict(sorted(self._items.items()))

    def _drop(self, chunk: Chunk) -> None:
        if self._items.pop(chunk.key, None) is not None:
            self._postings.remove(chunk.key)
            self._latents.remove(chunk.key)

    def evict(self, write: int, undo: Undo) -> list[Chunk]:
        """Drop whole chunks, oldest first or by draw, until the others fit; `write`: the id of the newest write."""
        gone: list[Chunk] = []
        if self.capacity is None or (excess := self.tokens - self.capacity) <= 0:
            return gone
        order = sorted(self, key=self._draw) if self.random else list(self)
        for chunk in order:
            if excess <= 0:
                break
            self.remove(chunk, undo)
            gone.append(chunk)
            excess -= chunk.tokens
        undo.set(self, dropped=write)
        return gone

    def _draw(self, chunk: Chunk) -> bytes:
        """Depends on the seed, the write and the place in it only, whatever else the memory holds."""
        return hashlib.blake2b(f"{self.seed} {chunk.write} {chunk.place}".encode(), digest_size=8).digest()

    def scores(self, query: Query) -> dict[Chunk, float]:
        """The score of every chunk against a prompt, in [0, 1], oldest first."""
        if not self._items:
            return {}
        latent = self._latents.cosines(query.latent)
        lexical = self._postings.scores(query.words) if self.keep_text else None
        return {
            chunk: fused(None if lexical is None else lexical.get(key, 0.0), latent[key])
            for key, chunk in self._items.items()
        }

    def fork(self) -> "Chunks":
        """An independent copy; chunks are shared."""
        copy = Chunks(
            self.storage,
            head=self.head,
            date=self.date,
            capacity=self.capacity,
            random=self.random,
            seed=self.seed,
            keep_text=self.keep_text,
        )
        copy.next_key, copy.dropped, copy._items = self.next_key, self.dropped, dict(self._items)
        copy._postings, copy._latents = self._postings.copy(), self._latents.copy()
        return copy

    def moved(self, storage: StorageConfig, device: torch.device) -> "Chunks":
        """The same chunks in another tier that keeps slots; they must have slots, or go to the text tier."""
        copy = self.fork()
        copy.storage = storage
        for key, chunk in self._items.items():
            kept = None
            if storage.tier != "text":
                assert chunk.slots is not None
                kept = KeptSlots(chunk.slots.load(device), storage)
            copy._items[key] = replace(chunk, slots=kept)
        return copy

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes by tier; ids, text and latent vectors count as "text"."""
        held = {"text": sum(chunk.nbytes for chunk in self)}
        if self.storage.tier != "text":
            held[self.storage.tier] = sum(chunk.slots.nbytes for chunk in self if chunk.slots is not None)
        return held


class LatentTable:
    """Latent vectors by key, in one tensor; adding and removing one costs nothing of the others."""

    def __init__(self) -> None:
        self._rows: Tensor | None = None  # [capacity, S]
        self._place: dict[int, int] = {}
        self._key: list[int] = []

    def add(self, key: int, latent: Tensor) -> None:
        count = len(self._key)
        if self._rows is None:
            self._rows = latent.new_zeros(_FEWEST_ROWS, len(latent))
        if count == len(self._rows):
            self._rows = torch.cat([self._rows, torch.zeros_like(self._rows)])
        self._rows[count] = latent
        self._place[key] = count
        self._key.append(key)

    def remove(self, key: int) -> None:
        """The last vector takes the place of the one that goes."""
        assert self._rows is not None
        place, last = self._place.pop(key), self._key.pop()
        if last != key:
            self._rows[place] = self._rows[len(self._key)]
            self._key[place], self._place[last] = last, place

    def cosines(self, query: Tensor) -> dict[int, float]:  # [S], unit length -> by key
        """Each row's product by itself, so that a score does not depend on the rows beside it."""
        assert self._rows is not None
        rows = self._rows[: len(self._key)]
        size = max(1, _AT_ONCE // rows.shape[1])
        products = torch.cat([(block.float() * query).sum(dim=1) for block in rows.split(size)])
        return dict(zip(self._key, products.tolist(), strict=True))

    def copy(self) -> "LatentTable":
        copy = LatentTable()
        copy._rows = None if self._rows is None else self._rows.clone()
        copy._place, copy._key = dict(self._place), list(self._key)
        return copy
