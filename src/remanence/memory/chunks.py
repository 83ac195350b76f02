"""The chunks of a text memory, and what they are found by: their words, a latent vector each, and keys of tokens."""

import hashlib
from bisect import bisect_left
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor

from remanence.config import StorageConfig
from remanence.errors import CorruptMemoryError, InvalidInputError
from remanence.memory.finite import all_finite
from remanence.memory.late import LateQuery, late_scores
from remanence.memory.latents import LatentTable
from remanence.memory.lexical import Postings, words
from remanence.memory.scoring import fused
from remanence.memory.storage import KeptSlots
from remanence.memory.undo import Undo
from remanence.memory.writes import checked


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
        keys: `[n, S]`, int8: what a trained retriever compares; None where there was none when they were to be made.
    """

    key: int
    write: int
    place: int
    tokens: int
    ids: Tensor | None
    text: str | None
    latent: Tensor
    slots: KeptSlots | None
    keys: Tensor | None = None

    @property
    def kept(self) -> KeptSlots:
        """Its slots, in tiers that keep them."""
        assert self.slots is not None
        return self.slots

    @property
    def words(self) -> Sequence[Hashable]:
        """What the lexical score compares: words, else token ids."""
        if self.text is not None:
            return words(self.text)
        return [] if self.ids is None else self.ids.tolist()

    @property
    def nbytes(self) -> int:
        """Bytes of what stands for its slots in the text tier: ids, text, latent vector and keys."""
        ids = sum(part.nbytes for part in (self.ids, self.keys) if part is not None)
        return ids + self.latent.nbytes + (0 if self.text is None else len(self.text.encode()))


@dataclass(frozen=True)
class Query:
    """What a prompt asks: its words, and its latent vector `[S]`, float32, or what a trained retriever makes of it."""

    words: Sequence[Hashable]
    latent: Tensor | None = None
    late: LateQuery | None = None


class Chunks:
    """All chunks of a text memory, oldest first. Adding, evicting and forgetting one costs nothing of the others.

    Attributes:
        head: token ids in front of every chunk when it is encoded, and of every prompt; None until the first write.
        date: what templates that print today's date print in this memory; ISO.
        storage: where slots lie.
        capacity: most slots; None: no limit.
        random: evict chunks drawn by seed and write id, not the oldest.
        keep_text: keep text, words and token ids. Without them the tier is one that keeps slots.
        tokens: of all chunks.
        next_key: of the next chunk.
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
        if storage.tier == "text" and not keep_text:
            raise InvalidInputError("the text tier keeps token ids only, so keep_text=False needs another tier")
        self.storage, self.head, self.date, self.capacity = storage, head, date, capacity
        self.random, self.keep_text = random, keep_text
        self.tokens, self.next_key, self.dropped = 0, 0, -1
        self._seed = seed
        self._items: dict[int, Chunk] = {}
        self._by_write: dict[int, dict[int, Chunk]] = {}
        self._draws: list[tuple[bytes, int]] = []  # ascending, with keys; only where they decide who leaves
        self._postings = Postings()
        self._latents = LatentTable()

    def __len__(self) -> int:
        return len(self._items)

    def __iter__(self) -> Iterator[Chunk]:
        return iter(self._items.values())

    def of(self, write: int) -> list[Chunk]:
        """The chunks of one write that are left."""
        return list(self._by_write.get(write, {}).values())

    def add(self, chunk: Chunk, undo: Undo) -> None:
        """Add the newest chunk.

        Raises:
            CorruptMemoryError: its latent vector is not finite.
            InvalidInputError: its text is not valid Unicode.
        """
        checked(text=chunk.text)
        if not all_finite(chunk.latent):
            raise CorruptMemoryError("the latent vector of a chunk is not finite; check the model in float32")
        if not self.keep_text:
            chunk = replace(chunk, ids=None, text=None)
        undo.set(self, next_key=chunk.key + 1, tokens=self.tokens + chunk.tokens)
        undo.add(lambda: self._drop(chunk))
        self._insert(chunk)

    def texts(self) -> dict[int, str]:
        """What is left of each write's text."""
        parts: dict[int, list[str]] = {}
        for chunk in self:
            if chunk.text is not None:
                parts.setdefault(chunk.write, []).append(chunk.text)
        return {write: "".join(texts) for write, texts in parts.items()}

    def load(self, chunks: Iterable[Chunk]) -> None:
        """Take in chunks that were saved."""
        for chunk in chunks:
            self._insert(chunk)
            self.tokens += chunk.tokens

    def replace_keys(self, keys: Mapping[int, Tensor], undo: Undo) -> None:
        """Give chunks, named by their numbers, other keys."""
        for number, each in keys.items():
            before = self._items[number]
            undo.add(partial(self._exchange, before))
            self._exchange(replace(before, keys=each))

    def _exchange(self, chunk: Chunk) -> None:
        self._items[chunk.key] = self._by_write[chunk.write][chunk.key] = chunk

    def remove(self, chunk: Chunk, undo: Undo) -> None:
        undo.set(self, tokens=self.tokens - chunk.tokens)
        undo.add(lambda: self._insert(chunk))
        self._drop(chunk)

    def _insert(self, chunk: Chunk) -> None:
        """Each step by itself, since an interrupt may have cut `_drop` short at any of them."""
        self._latents.add(chunk.key, chunk.latent)
        if chunk.key not in self._postings:
            self._postings.add(chunk.key, chunk.words)
        if self._drawn:
            draw = self._draw(chunk)
            at = bisect_left(self._draws, draw)
            if self._draws[at : at + 1] != [draw]:
                self._draws.insert(at, draw)
        self._by_write[chunk.write] = _with(self._by_write.get(chunk.write, {}), chunk)
        if chunk.key not in self._items:
            self._items = _with(self._items, chunk)

    def _drop(self, chunk: Chunk) -> None:
        """Each step by itself, since an interrupt may have cut `_insert` short at any of them."""
        self._items.pop(chunk.key, None)
        others = self._by_write.get(chunk.write, {})
        others.pop(chunk.key, None)
        if not others:
            self._by_write.pop(chunk.write, None)
        if self._drawn:
            draw = self._draw(chunk)
            at = bisect_left(self._draws, draw)
            if self._draws[at : at + 1] == [draw]:
                del self._draws[at]
        if chunk.key in self._postings:
            self._postings.remove(chunk.key)
        self._latents.remove(chunk.key)

    def evict(self, write: int, undo: Undo) -> list[Chunk]:
        """Drop whole chunks, oldest first or by draw, until the others fit; `write`: the id of the newest write."""
        gone: list[Chunk] = []
        while self.capacity is not None and self.tokens > self.capacity:
            chunk = self._items[self._draws[0][1] if self._drawn else next(iter(self._items))]
            self.remove(chunk, undo)
            gone.append(chunk)
        if gone:
            undo.set(self, dropped=write)
        return gone

    @property
    def _drawn(self) -> bool:
        return self.random and self.capacity is not None

    def _draw(self, chunk: Chunk) -> tuple[bytes, int]:
        """Depends on the seed, the write and the place in it only, whatever else the memory holds."""
        drawn = hashlib.blake2b(f"{self._seed} {chunk.write} {chunk.place}".encode(), digest_size=8)
        return drawn.digest(), chunk.key

    @property
    def seed(self) -> int:
        """Decides, with the ids of writes, who leaves."""
        return self._seed

    @seed.setter
    def seed(self, seed: int) -> None:
        self._seed = seed
        self._draws = sorted(self._draw(chunk) for chunk in self) if self._drawn else []

    def scores(self, query: Query) -> dict[Chunk, float]:
        """The score of every chunk against a prompt, in [0, 1], oldest first."""
        lexical = self._postings.scores(query.words) if self.keep_text else None
        words = {key: None if lexical is None else lexical.get(key, 0.0) for key in self._items}
        keys = [chunk.keys for chunk in self if chunk.keys is not None]
        if query.late is not None and len(keys) == len(self):
            late = late_scores(keys, query.late)
            return {chunk: query.late.fused(words[chunk.key], one) for chunk, one in zip(self, late, strict=True)}
        assert query.latent is not None, "chunks without keys are found by their latent vectors"
        latent = self._latents.cosines(query.latent)
        return {chunk: fused(words[key], latent[key]) for key, chunk in self._items.items()}

    def fork(self) -> "Chunks":
        """An independent copy; chunks are shared."""
        fork = copy(self)
        fork._items = dict(self._items)
        fork._by_write = {write: dict(chunks) for write, chunks in self._by_write.items()}
        fork._draws = list(self._draws)
        fork._postings, fork._latents = self._postings.copy(), self._latents.copy()
        return fork

    @property
    def devices(self) -> set[torch.device]:
        """Where slots of the device tier lie: one device, or none."""
        first = next(iter(self), None)
        return set() if self.storage.tier != "device" or first is None else {first.kept.slots.device}

    def to(self, device: torch.device) -> "Chunks":
        """The same with its slots on another device, if they lie on one; else itself."""
        if self.devices <= {device}:
            return self
        moved = self.fork()
        for chunk in self:
            moved._exchange(replace(chunk, slots=chunk.kept.moved(device)))
        return moved

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes by tier; ids, text, latent vectors and keys count as "text"."""
        held = {"text": sum(chunk.nbytes for chunk in self)}
        if self.storage.tier != "text":
            held[self.storage.tier] = sum(chunk.kept.nbytes for chunk in self)
        return held


def _with(chunks: dict[int, Chunk], chunk: Chunk) -> dict[int, Chunk]:
    """`chunks`, which it goes into at its place; in place if it is the newest."""
    newest = next(reversed(chunks), -1)
    if chunk.key > newest:
        chunks[chunk.key] = chunk
        return chunks
    return dict(sorted({**chunks, chunk.key: chunk}.items()))
