"""Memory: a value. Fork it, save it, load it; only a model writes it."""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from remanence.config import StorageConfig
from remanence.errors import CorruptMemoryError, InvalidInputError, MemoryFileError
from remanence.memory import files
from remanence.memory.chunks import Chunk, Chunks
from remanence.memory.eviction import check_evicted, draw_evicted
from remanence.memory.longterm import Evicted, LongTerm
from remanence.memory.pool import NewSlots, Pool
from remanence.memory.published import Direct, aged, replace_growing
from remanence.memory.snapshot import (
    check_pool,
    chunks_of,
    chunks_state,
    kept_storage,
    longterm_of,
    longterm_state,
)
from remanence.memory.spec import MemorySpec
from remanence.memory.state import MemoryHeader, MemoryState
from remanence.memory.storage import exact
from remanence.memory.undo import Undo, undoing
from remanence.memory.writes import WriteRecord, WriteTable, now


class Memory:
    """Slots, the table of the writes that made them, and the random state that decides who leaves.

    Threads may write, read, fork, forget and save one memory: each call takes its lock.

    Attributes:
        spec: what a model must agree on to read it.
        newest: `[L, K, d]`, the K newest slots in hidden form, from which a learned write starts.
        longterm: what the pool of a learned memory evicted; None where the model has no retriever.
        chunks: of a text memory; None in a learned one, which has a pool.
        write_count: writes since the memory was new.
        model_name: what the model that it was made with is called.
        lock: held while the memory is changed or looked at; may be taken again by the thread that holds it.
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
        chunks: Chunks | None = None,
        model_name: str = "",
    ) -> None:
        self.spec, self.pool_or_none, self.newest, self.keep_hidden = spec, pool, newest, keep_hidden
        self.longterm, self.model_name = longterm, model_name
        self.chunks = Chunks(StorageConfig("text"), seed=seed) if spec.writer == "text" and chunks is None else chunks
        self.lock = threading.RLock()
        self.write_count = 0
        self._next_serial = 0 if pool is None else int(pool.serial.max()) + 1
        self._writes = WriteTable()
        self._most_writes = 64 + 8 * spec.slots // max(1, spec.slots_per_write)
        self._generator = torch.Generator().manual_seed(seed)
        self._files: dict[Path, files.Version | None] = {}  # as they were when it was loaded or saved there

    @property
    def written(self) -> bool:
        """Whether there is anything to read."""
        return bool(self.chunks) if self.chunks is not None else self.pool_or_none is not None

    @property
    def pool(self) -> Pool:
        if self.pool_or_none is None:
            what = "a text memory keeps chunks" if self.chunks is not None else "this memory was never written"
            raise InvalidInputError(f"{what}, so it has no pool of slots")
        return self.pool_or_none

    @property
    def writes(self) -> list[WriteRecord]:
        """The writes of which something may be left, oldest first. Records of others are dropped in time."""
        with self.lock:
            return list(self._writes)

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes by tier: "device", "host", "disk", "text". The pool counts as "device"."""
        with self.lock:
            if self.chunks is not None:
                return self.chunks.nbytes
            newest = 0 if self.newest is None else self.newest.nbytes
            held = {"device": newest + (0 if self.pool_or_none is None else self.pool_or_none.nbytes)}
            if self.longterm is not None:
                about, tier = self.longterm.nbytes, self.longterm.layout.storage.tier
                held["device"] += about["keys"]
                held[tier] = held.get(tier, 0) + about["slots"]
            return held

    @property
    def devices(self) -> set[torch.device]:
        """Where its pool and its long-term memory belong: one device, or none if it holds nothing yet."""
        held = set() if self.pool_or_none is None else {self.pool_or_none.keys.device}
        return held if self.longterm is None else held | {self.longterm.layout.device}

    def provenance(self) -> Tensor:  # [L, N], id of the write that made each slot, oldest first; -1: not by a write
        with self.lock:
            return self.written_by(self.pool.serial.gather(1, self.pool.order))

    def written_by(self, serials: Tensor) -> Tensor:  # any shape; -1: not by a write
        """The id of the write that made each slot."""
        serials = serials.cpu()
        starts = torch.tensor([record.first_serial for record in self._writes], dtype=torch.long)
        ids = torch.tensor([-1] + [record.id for record in self._writes])
        return ids[torch.searchsorted(starts, serials, right=True)]

    def seed(self, seed: int) -> None:
        """Set the random state that draws evictions."""
        self._generator.manual_seed(seed)

    @contextmanager
    def changing(self) -> Iterator[Undo]:
        """The scope of one write: the memory's lock, and an undo list that runs if the body raises."""
        with self.lock, undoing() as undo:
            state, writes = self._generator.get_state(), self._most_writes
            undo.add(lambda: self._generator.set_state(state))
            undo.set(self, _most_writes=writes)
            yield undo

    def put(
        self, new: NewSlots, undo: Undo, evict: Tensor | None = None, direct: Direct | None = None
    ) -> Tensor | None:  # [L, K] ranks that were evicted
        """Put the slots of one chunk into the pool, and what leaves into long-term memory.

        Args:
            evict: replays a draw: ranks `[L, P]` of the slots that leave.
            direct: replays an update with ages of its own.

        Raises:
            InvalidInputError: `evict` does not fit.
            CorruptMemoryError: a new slot, or one that leaves, is not finite.
        """
        if not all(bool(torch.isfinite(part).all()) for part in new.tensors):
            raise CorruptMemoryError(
                "the write made slots that are not finite; the memory is unchanged. Either the weights or the memory "
                "hold NaN or infinity: check the model in float32, or go back to a saved memory"
            )
        k, first = self.spec.slots_per_write, self._next_serial
        if self.pool_or_none is None:
            if evict is not None:
                raise InvalidInputError("evict= was given, but the first write of a memory evicts nothing")
            new = new.tiled(self.spec.slots)
            undo.set(self, newest=new.hidden[:, -k:].detach().clone(), _next_serial=first + new.count)
            undo.set(self, pool_or_none=self._pool_of(new, first))
            return None
        passed = 0 if direct is None or direct.passed_ages is None else direct.passed_ages.shape[1]
        coming = self._pool_of(new, first + passed)
        if direct is not None:
            coming = aged(coming, direct.ages)
        evicted = self._evicted(new.count, evict)
        undo.set(self, newest=self._newest(new.hidden, evicted), _next_serial=first + passed + new.count)
        if evicted.shape[1] < new.count:
            gone = replace_growing(self.pool, evicted, coming, undo)
        else:
            gone = self.pool.replace(evicted, coming, undo)
        if self.longterm is not None:
            step = new.count if direct is None else k
            if direct is not None:
                gone, step = direct.joined(gone, first, step)
            names = ("keys", "values", "retrieval", "ages", "serial")
            self.longterm.append(Evicted(**{name: gone[name] for name in names}), step, undo)
        return evicted

    def record(
        self, undo: Undo, tokens: int, first_serial: int | None = None, *, id: int | None = None, **about: Any
    ) -> WriteRecord:
        """Enter a write into the table. `first_serial`: of the slots it made, in a learned memory."""
        id = self.next_id if id is None else id
        first = 0 if first_serial is None else first_serial
        made = 0 if first_serial is None else self._next_serial - first
        record = WriteRecord(id, tokens, first, made, now(), **about)
        undo.set(self, write_count=max(self.write_count, id) + 1)
        if self.chunks is None and len(self._writes) >= self._most_writes:
            alive = set(self.provenance().unique().tolist()) if self.written else set()
            if self.longterm is not None:
                alive |= set(self.written_by(self.longterm.alive()).unique().tolist())
            self._writes.keep(alive, undo)
            self._most_writes = max(self._most_writes, 2 * len(self._writes))
        self._writes.add(record, undo)
        return record

    @property
    def next_id(self) -> int:
        """The id of the next write."""
        return self.write_count

    @property
    def next_serial(self) -> int:
        """The number of the next slot."""
        return self._next_serial

    def drop(self, write: int, undo: Undo) -> list[Chunk]:
        """Take a write and its chunks out of a text memory; returns the chunks."""
        assert self.chunks is not None
        gone = self.chunks.of(write)
        for chunk in gone:
            self.chunks.remove(chunk, undo)
        self._writes.remove(write, undo)
        return gone

    def evict(self, write: int, undo: Undo) -> None:
        """Make room in a text memory after a write, and drop the records of writes of which nothing is left."""
        assert self.chunks is not None
        evicted = {chunk.write for chunk in self.chunks.evict(write, undo)}
        for gone in evicted - {chunk.write for chunk in self.chunks} if evicted else ():
            self._writes.remove(gone, undo)

    def _evicted(self, made: int, evict: Tensor | None) -> Tensor:  # [L, P]
        layers, size = self.spec.layers, self.pool.size
        if evict is None:
            return draw_evicted(layers, size, made, self._generator, shared=self.spec.shared_eviction)
        evict = check_evicted(evict, layers, size)
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

    def _pool_of(self, new: NewSlots, first_serial: int) -> Pool:
        made, layers, device = new.count, self.spec.layers, new.keys.device
        serial = torch.arange(first_serial, first_serial + made, device=device).repeat(layers, 1)
        hidden = new.hidden.detach() if self.keep_hidden else None
        retrieval = ages = None
        if self.longterm is not None:
            assert new.retrieval is not None
            retrieval = new.retrieval.detach()
            ages = torch.arange(made - 1, -1, -1, device=device).repeat(layers, 1)
        return Pool(new.keys.detach(), new.values.detach(), serial, hidden, retrieval, ages)

    def pool_only(self) -> "Memory":
        """This memory as it reads without its long-term part. It shares the pool: do not write to it."""
        if self.longterm is None:
            return self
        view = copy(self)
        view.longterm = None
        return view

    def fork(self) -> "Memory":
        """An independent copy, random state included. Chunks and full blocks of long-term slots are shared."""
        with self.lock:
            fork = Memory(
                self.spec,
                pool=None if self.pool_or_none is None else self.pool_or_none.clone(),
                newest=None if self.newest is None else self.newest.clone(),
                keep_hidden=self.keep_hidden,
                longterm=None if self.longterm is None else self.longterm.fork(),
                chunks=None if self.chunks is None else self.chunks.fork(),
                model_name=self.model_name,
            )
            if self.longterm is None and fork.pool_or_none is not None:
                fork.pool_or_none.retrieval = fork.pool_or_none.ages = None  # a view of the pool only was forked
            fork.write_count, fork._next_serial = self.write_count, self._next_serial
            fork._writes, fork._most_writes = self._writes.copy(), self._most_writes
            fork._generator.set_state(self._generator.get_state())
            fork._files = dict(self._files)
            return fork

    def __deepcopy__(self, memo: Mapping[int, Any]) -> "Memory":
        return self.fork()

    def __getstate__(self) -> Any:
        raise InvalidInputError("a memory is not pickled: save it to a file, or hand over memory.state()")

    def to(self, device: torch.device | str) -> "Memory":
        """Move the tensors, all or, if there is no room for them, none; the memory stays the same object."""
        device = exact(device)
        with self.lock:
            pool = None if self.pool_or_none is None else self.pool_or_none.to(device)
            newest = None if self.newest is None else self.newest.to(device)
            longterm = None if self.longterm is None else self.longterm.to(device)
            self.pool_or_none, self.newest, self.longterm = pool, newest, longterm
        return self

    def state(self) -> MemoryState:
        """All of it as plain data, as it is now: later writes do not change it."""
        with self.lock:
            tensors = {"generator": self._generator.get_state()}
            if self.pool_or_none is not None and self.newest is not None:
                left_out = {"retrieval", "ages"} if self.longterm is None else set()
                pool = self.pool_or_none.tensors
                tensors |= {f"pool.{name}": pool[name].clone() for name in pool.keys() - left_out}
                tensors["newest"] = self.newest
            longterm = chunks = None
            blocks: dict[str, dict[str, Tensor]] = {}
            if self.longterm is not None:
                longterm, more, blocks = longterm_state(self.longterm)
                tensors |= more
            if self.chunks is not None:
                chunks, more, blocks = chunks_state(self.chunks)
                tensors |= more
            header = MemoryHeader(
                spec=self.spec,
                model_name=self.model_name,
                keep_hidden=self.keep_hidden,
                write_count=self.write_count,
                next_serial=self._next_serial,
                writes=list(self._writes),
                longterm=longterm,
                chunks=chunks,
            )
            return MemoryState(header, tensors, blocks)

    @classmethod
    def from_state(
        cls, state: MemoryState, device: torch.device | str = "cpu", *, storage: StorageConfig | None = None
    ) -> "Memory":
        """The memory that `state` was taken of. It takes over the pool's tensors.

        Args:
            storage: where slots are to lie; None: as they lay.

        Raises:
            MemoryFileError: the parts do not fit together.
            CorruptMemoryError: a slot is not finite.
        """
        try:
            return cls._from_state(state, exact(device), storage)
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError, ArithmeticError) as error:
            if isinstance(error, (MemoryFileError, CorruptMemoryError, torch.OutOfMemoryError)):
                raise
            raise MemoryFileError(f"what is to be a memory does not fit together: {error}") from error

    @classmethod
    def _from_state(cls, state: MemoryState, device: torch.device, storage: StorageConfig | None) -> "Memory":
        header, spec, tensors = state.header, state.header.spec, state.tensors
        held = {name.removeprefix("pool."): t for name, t in tensors.items() if name.startswith("pool.")}
        longterm = chunks = None
        if header.longterm is not None:
            kept = kept_storage(header.longterm.storage, storage)
            longterm = longterm_of(header.longterm, spec, tensors, state.blocks, kept, device)
        if header.chunks is not None:
            kept = kept_storage(header.chunks.storage, storage)
            chunks = chunks_of(header.chunks, spec, tensors, state.blocks, kept)
        pool, newest = Pool(**held) if held else None, tensors.get("newest")
        if pool is not None:
            check_pool(spec, pool, newest, keep_hidden=header.keep_hidden, longterm=longterm is not None)
        memory = cls(
            spec,
            pool=pool,
            newest=newest,
            keep_hidden=header.keep_hidden,
            longterm=longterm,
            chunks=chunks,
            model_name=header.model_name,
        )
        if header.next_serial != memory._next_serial:
            raise ValueError(f"its slots end at {memory._next_serial}, its record at {header.next_serial}")
        memory.write_count, memory._writes = header.write_count, WriteTable(header.writes)
        memory._writes.check(header.write_count, header.next_serial)
        memory._generator.set_state(tensors["generator"])
        return memory.to(device)

    def save(self, path: str | os.PathLike[str], *, overwrite: bool = False) -> None:
        """Write one safetensors file, whole or not at all: a full disk or Ctrl-C leaves what was there.

        Long-term slots, and the slots of a text memory in a tier that keeps them, go into files of their own, in a
        folder beside it that is named like it, with `.longterm` behind. Those that are there already stay as they are,
        so that saving again costs what is new.

        Args:
            overwrite: take the place of whatever was saved there since this memory, or the one that it is a fork of,
                was loaded from the file or saved to it.

        Raises:
            MemoryFileError: the file could not be written.
            MemoryConflictError: another save came in between, which this one would undo.
        """
        target = files.resolved(path)
        with self.lock:
            known = self._files.get(target)
            self._files[target] = files.save(self.state(), target, known, overwrite=overwrite)

    @classmethod
    def load(
        cls, path: str | os.PathLike[str], device: torch.device | str = "cpu", *, storage: StorageConfig | None = None
    ) -> "Memory":
        """Read a file that `save` made. What happens to the file later does not touch the memory.

        Args:
            storage: where slots are to lie; None: in the tier in which they lay, and where that is the disk, with
                working files in the folder of then, if this machine has it. They stay int8, or as they are, unless
                `storage.int8` says otherwise.

        Raises:
            FileNotFoundError: there is no such file.
            MemoryFileError: the file, or one that holds slots, is missing, truncated, damaged or foreign.
            CorruptMemoryError: a slot is not finite.
        """
        target = files.resolved(path)
        memory, version = files.load(target, lambda state: cls.from_state(state, device, storage=storage))
        memory._files[target] = version
        return memory

    def __repr__(self) -> str:
        if self.chunks is not None:
            return f"Memory(text, {len(self._writes)} writes, {len(self.chunks)} chunks, {self.chunks.tokens} tokens)"
        spec = self.spec
        slots = f"{self.pool.size} slots" if self.written else "never written"
        return f"Memory({spec.layers} layers, {slots}, K={spec.slots_per_write}, {self.write_count} writes)"


@contextmanager
def locked(memories: "list[Memory]") -> Iterator[None]:
    """Hold the locks of several memories, taken in one order by all threads."""
    with ExitStack() as locks:
        for memory in sorted(memories, key=id):
            locks.enter_context(memory.lock)
        yield
