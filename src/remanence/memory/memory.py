"""Memory: a value. Fork it, save it, load it; only a model writes it."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import copy
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from remanence.errors import CorruptMemoryError, InvalidInputError
from remanence.memory.eviction import check_evicted, draw_evicted
from remanence.memory.longterm import Evicted, LongTerm
from remanence.memory.pool import Pool
from remanence.memory.spec import MemorySpec
from remanence.memory.tiers import Storage, exact


@dataclass(frozen=True)
class WriteRecord:
    """One write of one chunk: its number, the tokens it read, and the serial numbers of the slots it made."""

    id: int
    tokens: int
    first_serial: int
    slots: int


@dataclass(frozen=True)
class Receipt:
    """What a call of `write` did to one memory: its writes, one per chunk, and the ranks that each evicted `[L, K]`."""

    writes: tuple[WriteRecord, ...]
    evicted: tuple[Tensor | None, ...]

    @property
    def tokens(self) -> int:
        return sum(write.tokens for write in self.writes)


@dataclass(frozen=True)
class NewSlots:
    """Q slots per layer made by one encode, in every form the memory keeps.

    Attributes:
        hidden: `[L, Q, d]`.
        keys, values: `[L, Q, H, D]`, keys unrotated.
        tokens: how many tokens were read to make them.
        retrieval: `[L, Q, R]`, their retrieval keys, where the model has a retriever.
        ages: `[L, Q]`, None for Q - 1, ..., 1, 0.
    """

    hidden: Tensor
    keys: Tensor
    values: Tensor
    tokens: int
    retrieval: Tensor | None = None
    ages: Tensor | None = None

    @property
    def tensors(self) -> list[Tensor]:
        """All that must be finite."""
        return [self.hidden, self.keys, self.values, *([] if self.retrieval is None else [self.retrieval])]


class Memory:
    """A pool of latent slots, the record of the writes that made them, and the random state that decides who leaves.

    Attributes:
        spec: what a model must agree on to read it.
        pool: N slots per layer; None as long as nothing was written (the model then reads as a plain language model).
        newest: `[L, K, d]`, the K newest slots in hidden form. A write starts from them.
        longterm: what the pool evicted; None where the model has no retriever.
        write_count: writes since the memory was new.
    """

    def __init__(
        self,
        spec: MemorySpec,
        *,
        seed: int = 0,
        pool: Pool | None = None,
        newest: Tensor | None = None,
        keep_hidden: bool = False,
        longterm: LongTerm | None = None,
    ) -> None:
        self.spec, self.pool_or_none, self.newest, self.keep_hidden = spec, pool, newest, keep_hidden
        self.longterm = longterm
        self.write_count = 0
        self._next_serial = 0 if pool is None else int(pool.serial.max()) + 1
        self._records: list[WriteRecord] = []
        self._most_records = 64 + 8 * spec.slots // spec.slots_per_write
        self._generator = torch.Generator().manual_seed(seed)
        self._files: dict[Path, tuple[int, int, int] | None] = {}  # as they were when it was loaded or saved there

    @property
    def written(self) -> bool:
        return self.pool_or_none is not None

    @property
    def pool(self) -> Pool:
        if self.pool_or_none is None:
            raise InvalidInputError("this memory was never written, so it has no slots yet; write to it first")
        return self.pool_or_none

    @property
    def writes(self) -> list[WriteRecord]:
        """The writes of which a slot may be left, oldest first. Writes whose slots are all gone are dropped in time."""
        return list(self._records)

    @property
    def nbytes(self) -> int:
        """Bytes of the pool, of the K newest slots in hidden form, and of long-term memory, whatever its tier."""
        newest = 0 if self.newest is None else self.newest.numel() * self.newest.element_size()
        longterm = 0 if self.longterm is None else sum(self.longterm.nbytes.values())
        return newest + longterm + (0 if self.pool_or_none is None else self.pool_or_none.nbytes)

    @property
    def devices(self) -> set[torch.device]:
        """Where its pool and its long-term memory belong: one device, or none if it holds nothing yet."""
        held = set() if self.pool_or_none is None else {self.pool_or_none.keys.device}
        return held if self.longterm is None else held | {self.longterm.layout.device}

    def provenance(self) -> Tensor:  # [L, N], id of the write that made each slot, oldest first; -1: not by a write
        return self.written_by(self.pool.serial.gather(1, self.pool.order))

    def written_by(self, serials: Tensor) -> Tensor:  # any shape; -1: not by a write
        """The id of the write that made each slot."""
        serials = serials.cpu()
        starts = torch.tensor([record.first_serial for record in self._records], dtype=torch.long)
        ids = torch.tensor([-1] + [record.id for record in self._records])
        return ids[torch.searchsorted(starts, serials, right=True)]

    def seed(self, seed: int) -> None:
        """Set the random state that draws evictions."""
        self._generator.manual_seed(seed)

    def draw(self, count: int) -> Tensor:  # [L, count] ranks
        return draw_evicted(self.spec.layers, self.pool.size, count, self._generator, shared=self.spec.shared_eviction)

    @contextmanager
    def committing(
        self, new: NewSlots, evict: Tensor | None = None, passed: NewSlots | None = None
    ) -> Iterator[tuple[WriteRecord, Tensor | None]]:
        """Put new slots into the pool in place; everything is undone if the body raises.

        `evict` replays a draw: ranks `[L, P]` of the slots that leave. If fewer leave than come, the pool grows.
        `passed` are slots that go to long-term memory at once, behind those that leave the pool.

        Raises:
            InvalidInputError: `evict` does not fit.
            CorruptMemoryError: a new slot, or one that leaves, is not finite.
        """
        coming = [part for slots in (new, passed) if slots is not None for part in slots.tensors]
        if not all(bool(torch.isfinite(part).all()) for part in coming):
            raise CorruptMemoryError(
                "the write made slots that are not finite; the memory is unchanged. Either the weights or the memory "
                "hold NaN or infinity: check the model in float32, or go back to a saved memory"
            )
        before = dict(vars(self), _records=list(self._records))
        state = self._generator.get_state()
        made = new.hidden.shape[1] + (0 if passed is None else passed.hidden.shape[1])
        record = WriteRecord(self.write_count, new.tokens, self._next_serial, made)
        try:
            if self.pool_or_none is None:
                if evict is not None:
                    raise InvalidInputError("evict= was given, but the first write of a memory evicts nothing")
                new = tiled(new, self.spec.slots)
                record = replace(record, slots=self.spec.slots)
                self.newest = new.hidden[:, -self.spec.slots_per_write :].detach().clone()
                self._record(record)
                self.pool_or_none = self._pool_of(new, record)
                yield record, None
            else:
                evicted = self._evicted(new.hidden.shape[1], evict)
                self.newest = self._newest(new.hidden, evicted)
                self._record(record)
                with (
                    self.pool_or_none.replacing(evicted, self._pool_of(new, record)) as gone,
                    self._keeping(gone, new, passed, record),
                ):
                    yield record, evicted
        except BaseException:
            vars(self).update(before)
            self._generator.set_state(state)
            raise

    def _keeping(
        self, gone: dict[str, Tensor], new: NewSlots, passed: NewSlots | None, record: WriteRecord
    ) -> AbstractContextManager[None]:
        """Hand what left the pool over to long-term memory, which ages by as many slots as the write made.

        Slots that pass by the pool have ages of their own; the clock then follows them (published code).
        """
        if self.longterm is None:
            return nullcontext()
        step = new.hidden.shape[1] if new.ages is None else self.spec.slots_per_write
        ages = gone["ages"]
        parts = {name: gone[name] for name in ("keys", "values", "retrieval", "serial")}
        if passed is not None:
            assert passed.ages is not None and passed.retrieval is not None and new.ages is not None
            step = 1 + int(max(new.ages.max(), passed.ages.max()))
            ages = torch.cat([ages + step, passed.ages.to(ages.device)], dim=1)
            serial = record.first_serial + torch.arange(passed.hidden.shape[1], device=ages.device)
            by = {"keys": passed.keys, "values": passed.values, "retrieval": passed.retrieval}
            by["serial"] = serial.repeat(self.spec.layers, 1)
            parts = {name: torch.cat([part, by[name]], dim=1) for name, part in parts.items()}
        return self.longterm.appending(Evicted(**parts, ages=ages), step)

    def _evicted(self, made: int, evict: Tensor | None) -> Tensor:  # [L, P]
        if evict is None:
            return self.draw(made)
        evict = check_evicted(evict, self.spec.layers, self.pool.size)
        if evict.shape[1] > made:
            raise InvalidInputError(f"evict names {evict.shape[1]} slots per layer, but the write makes only {made}")
        return evict

    def _newest(self, made: Tensor, evicted: Tensor) -> Tensor:  # [L, K, d]; made [L, Q, d], evicted [L, P], P <= Q
        k, missing = self.spec.slots_per_write, self.spec.slots_per_write - made.shape[1]
        if missing > 0:
            assert self.newest is not None
            ranks = torch.arange(self.pool.size - k, self.pool.size)
            kept = [~torch.isin(ranks, row) for row in evicted.cpu()]
            older = [slots[mask.to(slots.device)][-missing:] for slots, mask in zip(self.newest, kept, strict=True)]
            made = torch.cat([torch.stack(older), made], dim=1)
        return made[:, -k:].detach().clone()

    def _record(self, record: WriteRecord) -> None:
        self.write_count += 1
        self._next_serial += record.slots
        if len(self._records) >= self._most_records:
            alive = set(self.provenance().unique().tolist())
            if self.longterm is not None:
                alive |= set(self.written_by(self.longterm.alive()).unique().tolist())
            self._records = [kept for kept in self._records if kept.id in alive]
            self._most_records = max(self._most_records, 2 * len(self._records))
        self._records.append(record)

    def _pool_of(self, new: NewSlots, record: WriteRecord) -> Pool:
        last = record.first_serial + record.slots
        made, device = new.hidden.shape[1], new.keys.device
        serial = torch.arange(last - made, last, device=device)
        hidden = new.hidden.detach() if self.keep_hidden else None
        retrieval = ages = None
        if self.longterm is not None:
            assert new.retrieval is not None
            retrieval = new.retrieval.detach()
            ages = torch.arange(made - 1, -1, -1, device=device).repeat(self.spec.layers, 1)
            ages = ages if new.ages is None else new.ages.to(device)
        serial = serial.repeat(self.spec.layers, 1)
        return Pool(new.keys.detach(), new.values.detach(), serial, hidden, retrieval, ages)

    def become(self, other: "Memory") -> None:
        """Take over another memory's content, in one step. The other must not be used afterwards."""
        vars(self).update(vars(other))

    def pool_only(self) -> "Memory":
        """This memory as it reads without its long-term part. It shares the pool: do not write to it."""
        if self.longterm is None:
            return self
        view = copy(self)
        view.longterm = None
        return view

    def fork(self) -> "Memory":
        """An independent copy, random state included."""
        twin = Memory(
            self.spec,
            pool=None if self.pool_or_none is None else self.pool_or_none.clone(),
            newest=None if self.newest is None else self.newest.clone(),
            keep_hidden=self.keep_hidden,
            longterm=None if self.longterm is None else self.longterm.fork(),
        )
        if self.longterm is None and twin.pool_or_none is not None:
            twin.pool_or_none.retrieval = twin.pool_or_none.ages = None  # a view of the pool only was forked
        twin._restore(self._bookkeeping())
        twin._most_records = self._most_records
        twin._generator.set_state(self._generator.get_state())
        twin._files = dict(self._files)
        return twin

    def to(self, device: torch.device | str) -> "Memory":
        """Move the tensors, all or, if there is no room for them, none; the memory stays the same object."""
        device = exact(device)
        pool = None if self.pool_or_none is None else self.pool_or_none.to(device)
        newest = None if self.newest is None else self.newest.to(device)
        longterm = None if self.longterm is None else self.longterm.to(device)
        self.pool_or_none, self.newest, self.longterm = pool, newest, longterm
        return self

    def _bookkeeping(self) -> dict[str, Any]:
        return {
            "write_count": self.write_count,
            "next_serial": self._next_serial,
            "writes": [asdict(record) for record in self._records],
        }

    def _restore(self, kept: dict[str, Any]) -> None:
        self.write_count, self._next_serial = int(kept["write_count"]), int(kept["next_serial"])
        self._records = [WriteRecord(**record) for record in kept["writes"]]

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write one safetensors file, whole or not at all: a full disk or Ctrl-C leaves what was there.

        Long-term slots go into files of their own, in a folder beside it that is named like it, with `.longterm`
        behind. Those that are there already stay as they are, so that saving again costs what is new.

        Args:
            overwrite: take the place of whatever was saved there since this memory, or the one that it is a fork of,
                was loaded from the file or saved to it.

        Raises:
            MemoryFileError: the file could not be written.
            MemoryConflictError: another save came in between, which this one would undo.
        """
        from remanence.memory.saving import save

        save(self, Path(path), overwrite)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], device: torch.device | str = "cpu", *, storage: Storage | None = None
    ) -> "Memory":
        """Read a file that `save` made.

        Args:
            storage: where long-term slots are to lie; None: in the tier in which they lay, and where that is the disk,
                with working files in the folder of then, if this machine has it. They stay int8, or as they are,
                unless `storage.int8` says otherwise.

        Raises:
            FileNotFoundError: there is no such file.
            MemoryFileError: the file, or one that holds long-term slots, is missing, truncated, damaged or foreign.
            CorruptMemoryError: a slot is not finite.
        """
        from remanence.memory.loading import load

        return load(Path(path), device, storage)

    def __repr__(self) -> str:
        spec = self.spec
        slots = f"{self.pool.size} slots" if self.written else "never written"
        return f"Memory({spec.layers} layers, {slots}, K={spec.slots_per_write}, {self.write_count} writes)"


def tiled(slots: NewSlots, size: int) -> NewSlots:
    """What the first write puts into a pool of `size`: its slots over and over, cut at the end.

    The remainder repeats the last slots; of more slots than fit the last stay (published code, `initialized` = 0).
    """
    made = slots.hidden.shape[1]
    index = torch.arange(made).repeat(size // made)
    if size % made:
        index = torch.cat([index, torch.arange(made)[-(size % made) :]])
    index = index.to(slots.hidden.device)
    retrieval = None if slots.retrieval is None else slots.retrieval[:, index]
    return NewSlots(slots.hidden[:, index], slots.keys[:, index], slots.values[:, index], slots.tokens, retrieval)
