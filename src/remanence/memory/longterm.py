"""Long-term memory: what the pool drops, and what of it matters for a prompt (M+, section 3.2).

Per layer, slots stand at positions that count up as slots arrive, and never move. Appending costs O(K) at any size:
a slot's age is the clock less the clock at which it was born, so that nothing has to be counted up.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal

import torch
from torch import Tensor

from remanence.errors import CorruptMemoryError, InvalidInputError
from remanence.memory.agreement import Agreement
from remanence.memory.pool import Pool
from remanence.memory.scoring import mean_sigmoid
from remanence.memory.tiers import Block, Layout

Policy = Literal["oldest", "recall_frequency"]
_GONE = -torch.inf
_SURVIVES = 0.01
_ALIKE = 2**-22  # further apart than rounding puts scores of at most 1


@dataclass(frozen=True)
class LongTermRules:
    """How long-term memory is read and what it drops.

    Attributes:
        retrieved: K0, slots per layer that a prompt reads.
        capacity: M, slots per layer.
        policy: "oldest" drops those that have been there longest (M+, section 3.2). "recall_frequency" is what the
            published code does: slots wait in a buffer; at a merge, each of them gets `initial_frequency`, all slots
            lose `decay`, and those that have some left stay, if they are more than K0. `capacity` is not looked at.
        merge_after: slots written between two merges.
        repeat: fewer slots than K0 are repeated to make K0, as the published code does.
        agreement: layers agree on which writes a prompt asks about: what a layer found weighs in the layers above it.
            They look in the pool too, and what is best there is read twice, rather than others that resemble it. The
            temperature of a softmax; 0, as published: each layer retrieves for itself, from long-term memory.
    """

    retrieved: int
    capacity: int = 150_000
    policy: Policy = "oldest"
    merge_after: int = 15_360
    initial_frequency: float = 10.0
    decay: float = 1.0
    repeat: bool = False
    agreement: float = 0.0

    def __post_init__(self) -> None:
        if self.policy not in ("oldest", "recall_frequency"):
            raise InvalidInputError(f"policy is 'oldest' or 'recall_frequency', not {self.policy!r}")
        if self.retrieved < 1 or self.capacity < 0 or self.merge_after < 1:
            raise InvalidInputError("long-term memory needs retrieved > 0, capacity >= 0 and merge_after > 0")
        if not (isfinite(self.agreement) and self.agreement >= 0):
            raise InvalidInputError(f"agreement is a temperature, at least 0, not {self.agreement}")
        if not (isfinite(self.initial_frequency) and isfinite(self.decay)):
            raise InvalidInputError("initial_frequency and decay must be finite; a decay of 0 keeps every slot")

    def agreeing(self, slots_per_write: int) -> Agreement | None:
        """What the layers of one retrieval share, if they do. Layer 0 has no say: there the tokens of a prompt have not
        seen each other yet, and ask one by one."""
        return Agreement(self.agreement, slots_per_write) if self.agreement else None


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
    """Slots of one layer that a prompt reads, oldest first, `[K0, H, D]`.

    Attributes:
        positions: in long-term memory; fewer than K0 where the last of them are from the pool.
    """

    keys: Tensor
    values: Tensor
    positions: Tensor


class LongTermLayer:
    """The long-term slots of one layer.

    Positions from `start` to `count` are there; those from `merged` on wait in the buffer. Under "recall_frequency",
    `frequency` `[merged - start]` says which of the others are gone.
    """

    def __init__(self, layout: Layout) -> None:
        self.layout = layout
        self.blocks: dict[int, Block] = {}
        self.start = self.merged = self.count = 0
        self.frequency: Tensor | None = None

    @property
    def size(self) -> int:
        """Slots behind the buffer."""
        merged = self.merged - self.start
        return merged if self.frequency is None else merged - int((self.frequency == _GONE).sum())

    @property
    def buffered(self) -> int:
        return self.count - self.merged

    def append(self, slots: Tensor, keys: Tensor, born: Tensor, serial: Tensor) -> None:
        """Add n rows: slots `[n, 2, H, D]`, keys `[n, P]`, born and serial `[n]`."""
        size, rows, done = self.layout.block_rows, len(slots), 0
        while done < rows:
            number, at = divmod(self.count + done, size)
            if number not in self.blocks:
                self.blocks[number] = Block.empty(self.layout, whole=number > 0)
            part = slice(done, done + min(rows - done, size - at))
            self.blocks[number].write(at, slots[part], keys[part], born[part], serial[part])
            done = part.stop
        self.count += rows

    def drop(self, capacity: int) -> None:
        """Leave the `capacity` slots that came last; everything is merged."""
        self.merged = self.count
        self.start = max(self.start, self.count - capacity)

    def merge(self, rules: LongTermRules) -> None:
        """Take the buffer in, and drop what is not recalled any more."""
        held = torch.empty(0) if self.frequency is None else self.frequency
        frequency = torch.cat([held, torch.full((self.buffered,), rules.initial_frequency)])
        self.merged = self.count
        left = frequency - rules.decay
        alive = left > _SURVIVES
        if int(alive.sum()) > rules.retrieved:
            frequency = torch.where(alive, left, _GONE)
            first = int(alive.nonzero()[0])
            frequency, self.start = frequency[first:], self.start + first
        self.frequency = frequency

    def release(self) -> None:
        """Let go of blocks in which nothing is left."""
        size = self.layout.block_rows
        while self.blocks and (first := next(iter(self.blocks))) < self.start // size:
            del self.blocks[first]

    def candidates(self) -> Tensor:  # positions, ascending, the buffer last
        if self.frequency is None:
            return torch.arange(self.start, self.count)
        return torch.cat(
            [self.start + (self.frequency != _GONE).nonzero()[:, 0], torch.arange(self.merged, self.count)]
        )

    @torch.no_grad()
    def scores(self, queries: Tensor) -> Tensor:  # [T, P] -> [count - start], -1 where a slot is gone
        """Raises CorruptMemoryError where one is not a number."""
        size, parts = self.layout.block_rows, []
        for number in range(self.start // size, -(-self.count // size)):
            first = number * size
            keys = self.blocks[number].rows["keys"].first(min(size, self.count - first))
            parts.append(mean_sigmoid(queries, keys[max(0, self.start - first) :]))
        scores = _numbers(torch.cat(parts)) if parts else queries.new_empty(0)
        if self.frequency is not None:
            scores[: len(self.frequency)].masked_fill_((self.frequency == _GONE).to(scores.device), -1)
        return scores

    def serials(self) -> Tensor:  # [count - start], those of slots that are gone too
        size, end = self.layout.block_rows, self.count
        numbers = range(self.start // size, -(-end // size))
        parts = [self.blocks[number].rows["serial"].first(min(size, end - number * size)) for number in numbers]
        return torch.cat(parts)[self.start % size :]

    def chosen(self, queries: Tensor, wanted: int, repeat: bool) -> Tensor:  # [T, P] -> positions [wanted]
        """The slots with the highest scores, oldest first; of equal age the later first.

        `repeat`: if fewer than `wanted` are merged they are taken over and over, and the buffer is not looked at.
        """
        size = self.size
        if repeat and size < wanted:
            return self.by_age(self.candidates()[:size][(torch.arange(wanted) - wanted) % size])
        return self.by_age(_best(self.scores(queries), wanted) + self.start)

    def by_age(self, positions: Tensor) -> Tensor:  # ascending
        """Oldest first; of equal age the later first."""
        picked = positions.flip(0)
        return picked[self.known("born", picked).argsort(stable=True)]

    def moved(self, layout: Layout) -> "LongTermLayer":
        copy = self.fork()
        copy.layout = layout
        size = layout.block_rows
        for number, block in copy.blocks.items():
            copy.blocks[number] = block.moved(layout, min(size, self.count - number * size))
        return copy

    def fork(self) -> "LongTermLayer":
        """Shares full blocks, which never change, and copies the last if it has room left."""
        copy = LongTermLayer(self.layout)
        size = self.layout.block_rows
        copy.blocks = {number: block for number, block in self.blocks.items() if number * size < self.count}
        copy.start, copy.merged, copy.count, copy.frequency = self.start, self.merged, self.count, self.frequency
        number, used = divmod(self.count, size)
        if used:
            copy.blocks[number] = copy.blocks[number].copy(used)
        return copy

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


class LongTerm:
    """The long-term memory of one memory: a `LongTermLayer` for each layer, and the clock that ages are read off."""

    def __init__(self, rules: LongTermRules, layers: Sequence[LongTermLayer], clock: int = 0, waited: int = 0) -> None:
        self.rules, self.layers, self.clock, self.waited = rules, list(layers), clock, waited

    @property
    def layout(self) -> Layout:
        return self.layers[0].layout

    def sizes(self) -> list[int]:
        """Slots per layer, those in the buffer not counted."""
        return [layer.size for layer in self.layers]

    def buffered(self) -> list[int]:
        """Slots per layer that wait to be merged."""
        return [layer.buffered for layer in self.layers]

    @property
    def readable(self) -> int:
        """Slots that a prompt reads in every layer."""
        if self.rules.repeat:
            return self.rules.retrieved if min(self.sizes()) else 0
        return min(self.rules.retrieved, *(layer.size + layer.buffered for layer in self.layers))

    def ages(self, layer: int) -> Tensor:  # [size + buffered]
        """How long each slot has been there, in slots written since, in the order of `candidates`."""
        held = self.layers[layer]
        return self.clock - held.known("born", held.candidates())

    @contextmanager
    def appending(self, evicted: Evicted, step: int) -> Iterator[None]:
        """Take in what one write evicted; `step` is how much the write ages the others. Undone if the body raises."""
        before = [(held.start, held.merged, held.count, held.frequency) for held in self.layers]
        clock, waited = self.clock, self.waited
        born = clock + step - evicted.ages.cpu()
        slots = torch.stack([evicted.keys, evicted.values], dim=2)  # [L, P, 2, H, D]
        serial = evicted.serial.cpu()
        try:
            for index, held in enumerate(self.layers):
                held.release()
                held.append(slots[index], evicted.retrieval[index], born[index], serial[index])
            self.clock, self.waited = clock + step, waited + step
            self._settle()
            yield
        except BaseException:
            for held, (start, merged, count, frequency) in zip(self.layers, before, strict=True):
                held.start, held.merged, held.count, held.frequency = start, merged, count, frequency
            self.clock, self.waited = clock, waited
            raise

    def _settle(self) -> None:
        if self.rules.policy == "oldest":
            for held in self.layers:
                held.drop(self.rules.capacity)
        elif self.waited >= self.rules.merge_after:
            for held in self.layers:
                held.merge(self.rules)
            self.waited = 0

    def retrieve(  # [T, P]
        self,
        layer: int,
        queries: Tensor,
        wanted: int | None = None,
        agreement: Agreement | None = None,
        pool: Pool | None = None,
    ) -> Retrieved:
        """What a prompt with these queries reads in one layer.

        Args:
            wanted: `readable`, where it is known already; it looks at all layers.
            agreement: what the layers below found; holds what this one finds afterwards.
            pool: where to look too, if layers agree.

        Raises:
            CorruptMemoryError: a score is not a number.
        """
        held, wanted = self.layers[layer], self.readable if wanted is None else wanted
        if agreement is None or not wanted or (self.rules.repeat and held.size < wanted):
            positions = held.chosen(queries, wanted, self.rules.repeat)
            return Retrieved(*held.take(positions), positions)
        scores, serial = held.scores(queries), held.serials()
        there = len(scores)
        if pool is not None and pool.retrieval is not None:
            scores = torch.cat([scores, _numbers(mean_sigmoid(queries, pool.retrieval[layer]))])
            serial = torch.cat([serial, pool.serial[layer].to(serial.device)])
        picked = _best(agreement.weighed(scores, serial.to(scores.device)), wanted)
        positions = held.by_age(picked[picked < there] + held.start)
        keys, values = held.take(positions)
        if len(positions) < wanted and pool is not None:
            places = (picked[picked >= there] - there).to(pool.serial.device)
            places = places[pool.serial[layer][places].argsort()]
            keys, values = torch.cat([keys, pool.keys[layer][places]]), torch.cat([values, pool.values[layer][places]])
        return Retrieved(keys, values, positions)

    def alive(self) -> Tensor:  # serial numbers of all slots, each once
        """For the table of writes: who is still there."""
        return torch.cat([held.known("serial", held.candidates()) for held in self.layers]).unique()

    def to(self, device: torch.device) -> "LongTerm":
        """The same on another device: its retrieval keys, and in the device tier its slots, lie there."""
        if device == self.layout.device:
            return self
        layout = replace(self.layout, device=device)
        return LongTerm(self.rules, [held.moved(layout) for held in self.layers], self.clock, self.waited)

    def fork(self) -> "LongTerm":
        """An independent copy."""
        return LongTerm(self.rules, [held.fork() for held in self.layers], self.clock, self.waited)

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes of slots and of retrieval keys."""
        slots = sum(held.count - held.start for held in self.layers)
        layout = self.layout
        return {"slots": slots * layout.slot_bytes, "keys": slots * layout.key_size * layout.dtype.itemsize}


def _best(scores: Tensor, wanted: int) -> Tensor:  # [M] -> [wanted], ascending
    """Of slots that score alike but for rounding, such as those of one token in layer 0, the first.

    A product rounds equal keys differently by how many stand beside them, and `topk` takes any of equal scores.
    """
    if not wanted:
        return torch.empty(0, dtype=torch.long)
    last = scores.topk(wanted).values[-1]
    above = (scores > last + _ALIKE).nonzero()[:, 0]
    alike = ((scores >= last - _ALIKE) & (scores <= last + _ALIKE)).nonzero()[: wanted - len(above), 0]
    return torch.cat([above, alike]).cpu().sort().values


def _numbers(scores: Tensor) -> Tensor:
    if bool(scores.isnan().any()):
        raise CorruptMemoryError(
            "scores of long-term slots are not numbers: the retriever or its keys hold NaN or infinity. "
            "Go back to a saved memory, or check the model in float32"
        )
    return scores
