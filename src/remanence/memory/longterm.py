"""Long-term memory: what the pool evicts, and what of it matters for a prompt (M+, section 3.2).

Per layer, slots stand at positions that count up as slots arrive, and never move. Appending costs O(K) at any size:
a slot's age is the clock less the clock at which it was born, so that nothing has to be counted up.
"""

from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from remanence.config import LongTermConfig
from remanence.memory.pool import Pool
from remanence.memory.scoring import CrossLayerPrior, best, mean_sigmoid
from remanence.memory.storage import Block, Layout
from remanence.memory.undo import Undo


@dataclass(frozen=True)
class Evicted:
    """P slots per layer that leave the pool, oldest first.

    Attributes:
        keys, values: `[L, P, H, D]`, keys unrotated; retrieval: `[L, P, R]`, retrieval keys.
        ages, serial: `[L, P]`, int64.
    """

    keys: Tensor
    values: Tensor
    retrieval: Tensor
    ages: Tensor
    serial: Tensor


@dataclass(frozen=True)
class Retrieved:
    """Slots of one layer that a prompt reads, oldest first.

    Attributes:
        keys, values: `[K0, H, D]`.
        positions: in long-term memory; fewer than K0 where the last of them are from the pool.
        serial: `[K0]`, their numbers, which say by which write they were made.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor
    serial: Tensor


class LongTermLayer:
    """The long-term slots of one layer: positions from `start` to `count`, less those that a policy dropped between.

    Attributes:
        gone: `[n]` bool, which of the first n positions were dropped; None: none was.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.blocks: dict[int, Block] = {}
        self.start = self.count = 0
        self.gone: Tensor | None = None

    @property
    def size(self) -> int:
        there = self.count - self.start
        return there if self.gone is None else there - int(self.gone.sum())

    def append(self, slots: Tensor, keys: Tensor, born: Tensor, serial: Tensor, undo: Undo) -> None:
        """Add n rows: slots `[n, 2, H, D]`, keys `[n, P]`, born and serial `[n]`."""
        undo.set(self, count=self.count)
        size, rows, done = self.layout.block_rows, len(slots), 0
        while done < rows:
            number, at = divmod(self.count + done, size)
            block = self.blocks.get(number)
            if block is None:
                block = Block.empty(self.layout, whole=number > 0)
            elif block.used > at:  # rows of a write that was taken back; who saw them there may still look at them
                block = block.copy(at)
            if block is not self.blocks.get(number):
                undo.set(self, blocks={**self.blocks, number: block})
            part = slice(done, done + min(rows - done, size - at))
            block.write(at, slots[part], keys[part], born[part], serial[part])
            done = part.stop
        self.count += rows

    def release(self, undo: Undo) -> None:
        """Let go of blocks in which nothing is left."""
        first = self.start // self.layout.block_rows
        if self.blocks and next(iter(self.blocks)) < first:
            undo.set(self, blocks={number: block for number, block in self.blocks.items() if number >= first})

    def candidates(self) -> Tensor:  # positions, ascending
        there = torch.arange(self.start, self.count)
        if self.gone is None:
            return there
        return torch.cat([there[: len(self.gone)][~self.gone], there[len(self.gone) :]])

    @torch.no_grad()
    def scores(self, queries: Tensor) -> Tensor:  # [T, P] -> [count - start], -1 where a slot was dropped
        """Raises CorruptMemoryError where one is not a number."""
        if self.count == self.start:
            return queries.new_empty(0, dtype=torch.float32)
        scores = torch.cat([mean_sigmoid(queries, keys) for keys in self._parts("keys")])
        if self.gone is not None:
            scores[: len(self.gone)].masked_fill_(self.gone.to(scores.device), -1)
        return scores

    def serials(self) -> Tensor:  # [count - start], those of dropped slots too
        return torch.cat(self._parts("serial"))

    def _parts(self, name: str) -> list[Tensor]:
        """The rows from `start` to `count`, block by block."""
        size, end = self.layout.block_rows, self.count
        numbers = range(self.start // size, -(-end // size))
        parts = [self.blocks[number].rows[name].first(min(size, end - number * size)) for number in numbers]
        return [parts[0][self.start % size :], *parts[1:]]

    def by_age(self, positions: Tensor) -> Tensor:  # ascending
        """Oldest first; of equal age the later first."""
        picked = positions.flip(0)
        return picked[self.known("born", picked).argsort(stable=True)]

    def known(self, name: str, positions: Tensor) -> Tensor:  # [n] -> [n], of "born" or "serial"
        return self._gathered(positions, lambda block, offsets: block.rows[name].take(offsets))

    def take(self, positions: Tensor) -> tuple[Tensor, Tensor]:  # [n] -> keys, values [n, H, D], on the model's device
        if not len(positions):
            layout = self.layout
            none = torch.empty(0, layout.heads, layout.head_dim, dtype=layout.dtype, device=layout.device)
            return none, none
        slots = self._gathered(positions, lambda block, offsets: block.take(offsets))
        return slots[:, 0], slots[:, 1]

    def _gathered(self, positions: Tensor, take: Callable[[Block, Tensor], Tensor]) -> Tensor:
        if not len(positions):
            return positions
        size = self.layout.block_rows
        ordered, order = positions.sort()
        numbers, counts = (ordered // size).unique_consecutive(return_counts=True)
        offsets = (ordered % size).split(counts.tolist())
        parts = [take(self.blocks[number], at) for number, at in zip(numbers.tolist(), offsets, strict=True)]
        rows = torch.cat(parts)
        back = torch.empty_like(order)
        back[order] = torch.arange(len(order))
        return rows.index_select(0, back.to(rows.device))

    def view(self) -> "LongTermLayer":
        """What is there now, sharing all blocks: rows that are there never change, whatever is appended behind them."""
        view = copy(self)
        view.blocks = {n: block for n, block in self.blocks.items() if n * self.layout.block_rows < self.count}
        return view

    def fork(self) -> "LongTermLayer":
        """Shares full blocks, which never change, and copies the last if it has room left."""
        fork = self.view()
        number, used = divmod(self.count, self.layout.block_rows)
        if used:
            fork.blocks[number] = fork.blocks[number].copy(used)
        return fork

    def moved(self, layout: Layout) -> "LongTermLayer":
        moved = self.fork()
        moved.layout = layout
        size = layout.block_rows
        for number, block in moved.blocks.items():
            moved.blocks[number] = block.moved(layout, min(size, self.count - number * size))
        return moved


class Policy:
    """What long-term memory drops, and what it reads. This one drops the slots that have been there longest."""

    def settle(self, longterm: "LongTerm", step: int, undo: Undo) -> None:
        """Drop what is too much, after a write that made `step` slots in each layer."""
        for held in longterm.layers:
            undo.set(held, start=max(held.start, held.count - longterm.rules.capacity))

    def sizes(self, longterm: "LongTerm") -> list[int]:
        return [held.size for held in longterm.layers]

    def readable(self, longterm: "LongTerm") -> int:
        return min(longterm.rules.retrieved, *(held.size for held in longterm.layers))

    def repeated(self, longterm: "LongTerm", layer: int, wanted: int) -> Tensor | None:  # ascending positions
        """Positions to read whatever they score; None: score them."""
        return None

    def fork(self) -> "Policy":
        return self


class LongTerm:
    """The long-term memory of one memory: a `LongTermLayer` for each layer, and the clock that ages are read off."""

    def __init__(
        self, rules: LongTermConfig, layers: Sequence[LongTermLayer], clock: int = 0, policy: Policy | None = None
    ) -> None:
        self.rules, self.layers, self.clock, self.policy = rules, list(layers), clock, policy or Policy()

    @classmethod
    def empty(cls, rules: LongTermConfig, layout: Layout, layers: int) -> "LongTerm":
        return cls(rules, [LongTermLayer(layout) for _ in range(layers)])

    @property
    def layout(self) -> Layout:
        return self.layers[0].layout

    def sizes(self) -> list[int]:
        """Slots per layer; under the published policy those that wait in its buffer are not counted."""
        return self.policy.sizes(self)

    @property
    def readable(self) -> int:
        """Slots that a prompt reads in every layer."""
        return self.policy.readable(self)

    def ages(self, layer: int) -> Tensor:  # [size]
        """How long each slot has been there, in slots written since, in the order of `candidates`."""
        held = self.layers[layer]
        return self.clock - held.known("born", held.candidates())

    def append(self, evicted: Evicted, step: int, undo: Undo) -> None:
        """Take in what one write evicted; `step` is how much the write ages the others."""
        born = self.clock + step - evicted.ages.cpu()
        slots = torch.stack([evicted.keys, evicted.values], dim=2)  # [L, P, 2, H, D]
        serial = evicted.serial.cpu()
        for index, held in enumerate(self.layers):
            held.release(undo)
            held.append(slots[index], evicted.retrieval[index], born[index], serial[index], undo)
        undo.set(self, clock=self.clock + step)
        self.policy.settle(self, step, undo)

    def retrieve(  # queries [T, P]
        self,
        layer: int,
        queries: Tensor,
        wanted: int | None = None,
        prior: CrossLayerPrior | None = None,
        pool: Pool | None = None,
    ) -> Retrieved:
        """What a prompt with these queries reads in one layer.

        Args:
            wanted: `readable`, where it is known already; it looks at all layers.
            prior: what the layers below found; updated by what this one finds.
            pool: whose slots compete for the places too, given a prior.

        Raises:
            CorruptMemoryError: a score is not a number.
        """
        held, wanted = self.layers[layer], self.readable if wanted is None else wanted
        repeated = self.policy.repeated(self, layer, wanted)
        if repeated is not None or prior is None or not wanted:
            positions = best(held.scores(queries), wanted) + held.start if repeated is None else repeated
            positions = held.by_age(positions)
            return Retrieved(*held.take(positions), positions, held.known("serial", positions))
        scores, serial = held.scores(queries), held.serials()
        there = len(scores)
        if pool is not None and pool.retrieval is not None:
            scores = torch.cat([scores, mean_sigmoid(queries, pool.retrieval[layer])])
            serial = torch.cat([serial, pool.serial[layer].to(serial.device)])
        picked = best(prior.apply(scores, serial.to(scores.device)), wanted)
        positions = held.by_age(picked[picked < there] + held.start)
        keys, values = held.take(positions)
        serials = held.known("serial", positions)
        if len(positions) < wanted and pool is not None:
            places = (picked[picked >= there] - there).to(pool.serial.device)
            places = places[pool.serial[layer][places].argsort()]
            keys, values = torch.cat([keys, pool.keys[layer][places]]), torch.cat([values, pool.values[layer][places]])
            serials = torch.cat([serials, pool.serial[layer][places].cpu()])
        return Retrieved(keys, values, positions, serials)

    def alive(self) -> Tensor:  # serial numbers of all slots, each once
        """For the table of writes: who is still there."""
        return torch.cat([held.known("serial", held.candidates()) for held in self.layers]).unique()

    def to(self, device: torch.device) -> "LongTerm":
        """The same on another device: its retrieval keys, and in the device tier its slots, lie there."""
        if device == self.layout.device:
            return self
        layout = replace(self.layout, device=device)
        return self._with([held.moved(layout) for held in self.layers])

    def fork(self) -> "LongTerm":
        """An independent copy."""
        return self._with([held.fork() for held in self.layers])

    def view(self) -> "LongTerm":
        """What is there now, to read from while others write."""
        return self._with([held.view() for held in self.layers])

    def _with(self, layers: list[LongTermLayer]) -> "LongTerm":
        return LongTerm(self.rules, layers, self.clock, self.policy.fork())

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes of slots and of retrieval keys."""
        slots = sum(held.count - held.start for held in self.layers)
        layout = self.layout
        return {"slots": slots * layout.slot_bytes, "keys": slots * layout.key_size * layout.dtype.itemsize}
