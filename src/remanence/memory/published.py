"""What the published code of M+ does otherwise, bug for bug: to replay its runs and its checkpoints.

`formats/memoryllm.py` hands `RecallFrequency` to the long-term memory of a published checkpoint. Nothing else here is
used outside of replays.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from remanence.memory.longterm import LongTerm, LongTermLayer, Policy
from remanence.memory.pool import Pool
from remanence.memory.state import Frequencies
from remanence.memory.undo import Undo

_SURVIVES = 0.01


class RecallFrequency(Policy):
    """Slots whose frequency is used up go at a merge, if more than K0 are left. `capacity` is not looked at.

    Fewer merged slots than K0 are repeated to make K0, whatever they score, and the buffer is not looked at then.

    Attributes:
        waited: slots written since the last merge.
        merged: per layer, positions below it have left the buffer.
        frequency: per layer, `[merged - start]`.
    """

    def __init__(
        self, settings: Frequencies, frequency: list[Tensor], merged: list[int] | None = None, waited: int = 0
    ) -> None:
        self.settings, self.frequency, self.waited = settings, frequency, waited
        self.merged = [len(held) for held in frequency] if merged is None else merged

    def settle(self, longterm: LongTerm, step: int, undo: Undo) -> None:
        undo.set(self, waited=self.waited + step)
        if self.waited < self.settings.merge_after:
            return
        merged = [self._merge(held, index, longterm, undo) for index, held in enumerate(longterm.layers)]
        undo.set(self, waited=0, frequency=merged, merged=[held.count for held in longterm.layers])

    def _merge(self, held: LongTermLayer, index: int, longterm: LongTerm, undo: Undo) -> Tensor:
        fresh = torch.full((held.count - self.merged[index],), self.settings.initial)
        frequency = torch.cat([self.frequency[index], fresh])
        left = frequency - self.settings.decay
        alive = left > _SURVIVES
        if int(alive.sum()) > longterm.rules.retrieved:
            first = int(alive.nonzero()[0])
            frequency = torch.where(alive, left, -torch.inf)[first:]
            undo.set(held, start=held.start + first)
        undo.set(held, gone=frequency == -torch.inf)
        return frequency

    def sizes(self, longterm: LongTerm) -> list[int]:
        return [held.size - (held.count - merged) for held, merged in zip(longterm.layers, self.merged, strict=True)]

    def buffered(self, longterm: LongTerm) -> list[int]:
        """Slots per layer that wait to be merged."""
        return [held.count - merged for held, merged in zip(longterm.layers, self.merged, strict=True)]

    def readable(self, longterm: LongTerm) -> int:
        return longterm.rules.retrieved if min(self.sizes(longterm)) else 0

    def repeated(self, longterm: LongTerm, layer: int, wanted: int) -> Tensor | None:
        size = self.sizes(longterm)[layer]
        if size >= wanted:
            return None
        return longterm.layers[layer].candidates()[:size][(torch.arange(wanted) - wanted) % size]

    def fork(self) -> "RecallFrequency":
        return RecallFrequency(self.settings, list(self.frequency), list(self.merged), self.waited)


def replace_growing(pool: Pool, ranks: Tensor, new: Pool, undo: Undo) -> dict[str, Tensor]:
    """`Pool.replace` where fewer slots leave than come, as rounding makes the published code do: the pool grows."""
    order, evicted = pool.order, pool.rows(pool.places(ranks))
    stays = torch.ones_like(order, dtype=torch.bool).scatter_(1, ranks.to(order.device), False)
    survivors = pool.rows(order.masked_select(stays).view(len(order), -1))
    undo.add(lambda: setattr(pool, "version", pool.version + 1))
    pool.version += 1
    grown = {name: torch.cat([rows, new.tensors[name]], dim=1) for name, rows in survivors.items()}
    undo.set(pool, _order=None, **grown)
    return evicted


def pool_with_pending(pool: Pool, keys: Tensor, values: Tensor, sampled: Tensor | None) -> Pool:
    """A temporary pool: the given ranks `[L, N - q]` of `pool`, then uncommitted slots `[L, q, H, D]`."""
    if sampled is not None:
        places = pool.rows(pool.places(sampled))
        keys, values = torch.cat([places["keys"], keys], dim=1), torch.cat([places["values"], values], dim=1)
    return Pool(keys, values, torch.arange(keys.shape[1], device=keys.device).repeat(len(keys), 1))


@dataclass(frozen=True)
class Direct:
    """How an update with explicit ages differs from a write.

    Attributes:
        ages: `[L, Q]`, what the new slots count as their ages when they are evicted.
        passed: slots that go to long-term memory at once, behind those that leave the pool, by the names of a pool's
            tensors; `[L, P, ...]` each.
        passed_ages: `[L, P]`.
    """

    ages: Tensor
    passed: dict[str, Tensor] | None = None
    passed_ages: Tensor | None = None

    @property
    def passed_count(self) -> int:
        return 0 if self.passed_ages is None else self.passed_ages.shape[1]

    def joined(self, gone: dict[str, Tensor], first_serial: int, step: int) -> tuple[dict[str, Tensor], int]:
        """What long-term memory takes in, and how much the update ages the others."""
        if self.passed is None or self.passed_ages is None:
            return gone, step
        step = 1 + int(max(self.ages.max(), self.passed_ages.max()))
        layers, count = self.passed_ages.shape
        serial = (first_serial + torch.arange(count, device=gone["serial"].device)).repeat(layers, 1)
        behind = {**self.passed, "serial": serial, "ages": self.passed_ages.to(gone["ages"].device)}
        gone = {**gone, "ages": gone["ages"] + step}
        return {name: torch.cat([part, behind[name]], dim=1) for name, part in gone.items() if name in behind}, step


def aged(pool: Pool, ages: Tensor) -> Pool:
    """New slots with ages of their own."""
    return Pool(**{**pool.tensors, "ages": ages.to(pool.serial.device)}) if pool.ages is not None else pool
