"""Memories as plain lists, in plain words: what the real ones have to agree with."""

import hashlib
from dataclasses import dataclass, field

import torch
from torch import Tensor

from remanence.memory import Memory
from remanence.memory.chunks import Chunk, Chunks, Query
from remanence.memory.undo import Undo
from tests.support import longterms, texts

LAYERS, N = longterms.SPEC.layers, longterms.SPEC.slots


@dataclass
class PlainText:
    """Chunks oldest first: write, place, tokens, and the number that they are made of."""

    capacity: int | None
    random: bool
    seed: int
    next_id: int = 0
    dropped: int = -1
    chunks: list[tuple[int, int, int, int]] = field(default_factory=list)

    def copy(self) -> "PlainText":
        return PlainText(self.capacity, self.random, self.seed, self.next_id, self.dropped, list(self.chunks))

    def write(self, number: int, lengths: tuple[int, ...]) -> None:
        id, self.next_id = self.next_id, self.next_id + 1
        self.chunks += [(id, place, tokens, 1000 * number + place) for place, tokens in enumerate(lengths)]
        while self.capacity is not None and sum(chunk[2] for chunk in self.chunks) > self.capacity:
            self.chunks.remove(min(self.chunks, key=self._draw) if self.random else self.chunks[0])
            self.dropped = id

    def _draw(self, chunk: tuple[int, int, int, int]) -> bytes:
        return hashlib.blake2b(f"{self.seed} {chunk[0]} {chunk[1]}".encode(), digest_size=8).digest()

    def forget(self, write: int) -> None:
        self.chunks = [chunk for chunk in self.chunks if chunk[0] != write]

    @property
    def writes(self) -> list[int]:
        return sorted({chunk[0] for chunk in self.chunks})

    def check(self, memory: Memory) -> None:
        """Raise AssertionError where a memory holds something else."""
        held = memory.chunks
        assert held is not None
        expected = [(write, place, tokens, texts.text_of(made, tokens)) for write, place, tokens, made in self.chunks]
        assert [(c.write, c.place, c.tokens, c.text) for c in held] == expected
        assert [record.id for record in memory.writes] == self.writes
        assert (memory.next_id, held.dropped, held.tokens) == (self.next_id, self.dropped, sum(c.tokens for c in held))
        assert all(
            [c.place for c in held.of(write)] == [c[1] for c in self.chunks if c[0] == write] for write in self.writes
        )
        for chunk, (_, _, tokens, made) in zip(held, self.chunks, strict=True):
            if held.storage.tier != "text":
                assert torch.equal(chunk.kept.load(torch.device("cpu")), texts.slots_of(made, tokens))
            assert chunk.ids is not None and chunk.ids.tolist() == list(range(made, made + tokens))

    def check_scores(self, memory: Memory, question: Query) -> None:
        """Those of a memory that was only ever told what is left, bit for bit."""
        assert memory.chunks is not None
        alone = Chunks(texts.StorageConfig("text"))
        for key, (write, place, tokens, made) in enumerate(self.chunks):
            ids, text = torch.arange(made, made + tokens).int(), texts.text_of(made, tokens)
            alone.add(Chunk(key, write, place, tokens, ids, text, texts.latent_of(made), None), Undo())
        assert list(memory.chunks.scores(question).values()) == list(alone.scores(question).values())


@dataclass
class PlainSlots:
    """Of each layer: slots of the pool, oldest first, and of long-term memory as they came; a slot is its number.

    Attributes:
        made: by number, what a slot is in hidden form `[L, d]`, and its write.
    """

    capacity: int
    next_id: int = 0
    pool: list[list[int]] = field(default_factory=lambda: [[] for _ in range(LAYERS)])
    longterm: list[list[int]] = field(default_factory=lambda: [[] for _ in range(LAYERS)])
    made: list[tuple[Tensor, int]] = field(default_factory=list)

    def copy(self) -> "PlainSlots":
        pool, longterm = [list(row) for row in self.pool], [list(row) for row in self.longterm]
        return PlainSlots(self.capacity, self.next_id, pool, longterm, list(self.made))

    def write(self, numbers: list[int], evicted: list[Tensor | None]) -> None:
        """Of one chunk for each number; `evicted`: the ranks that left for each."""
        for number, ranks in zip(numbers, evicted, strict=True):
            hidden = longterms.new_slots(number).hidden
            hidden = hidden if self.made else hidden.repeat(1, N // hidden.shape[1], 1)
            first = len(self.made)
            self.made += [(slot, self.next_id) for slot in hidden.unbind(1)]
            for layer in range(LAYERS):
                gone = [] if ranks is None else ranks[layer].tolist()
                self.longterm[layer] += [self.pool[layer][rank] for rank in gone]
                stays = [slot for rank, slot in enumerate(self.pool[layer]) if rank not in gone]
                self.pool[layer] = [*stays, *range(first, len(self.made))]
                self.longterm[layer] = self.longterm[layer][max(0, len(self.longterm[layer]) - self.capacity) :]
        self.next_id += 1

    def check(self, memory: Memory) -> None:
        """Raise AssertionError where a memory holds something else."""
        assert memory.next_id == self.next_id and memory.next_serial == len(self.made)
        if not self.made:
            assert not memory.written
            return
        pool, longterm = memory.pool, memory.longterm
        assert longterm is not None and memory.newest is not None
        hidden = torch.stack([slot for slot, _ in self.made], dim=1)  # [L, all, d]
        keys, values = hidden.unflatten(2, (2, longterms.SPEC.kv_heads, longterms.SPEC.head_dim)).unbind(2)
        for layer in range(LAYERS):
            order, numbers = pool.order[layer], self.pool[layer]
            assert pool.serial[layer][order].tolist() == numbers
            assert torch.equal(pool.keys[layer][order], keys[layer][numbers])
            assert torch.equal(pool.values[layer][order], values[layer][numbers])
            held, numbers = longterm.layers[layer], self.longterm[layer]
            there = held.candidates()
            assert held.known("serial", there).tolist() == numbers
            found = held.take(there)
            assert torch.equal(found[0], keys[layer][numbers]) and torch.equal(found[1], values[layer][numbers])
            assert memory.provenance()[layer].tolist() == [self.made[slot][1] for slot in self.pool[layer]]
        assert torch.equal(memory.newest, hidden[:, -longterms.SPEC.slots_per_write :])
