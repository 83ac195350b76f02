"""Memory: a value. Fork it, save it, load it; only a model writes it."""

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from remanence.config import StorageConfig
from remanence.errors import CorruptMemoryError, InvalidInputError, MemoryFileError
from remanence.memory import files
from remanence.memory.chunks import Chunk, Chunks
from remanence.memory.envelope import DAMAGE
from remanence.memory.eviction import chosen
from remanence.memory.longterm import Evicted, LongTerm
from remanence.memory.parts import Parts
from remanence.memory.pool import NewSlots, Pool
from remanence.memory.published import Direct, aged, replace_growing
from remanence.memory.spec import MemorySpec
from remanence.memory.state import MemoryHeader, MemoryState
from remanence.memory.storage import exact
from remanence.memory.undo import Undo, undoing
from remanence.memory.writes import WriteRecord, WriteTable, checked, now


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
        self._scope: Undo | None = None  # of `changing`, while it is open
        self._files: dict[Path, files.Version | None] = {}  # as they were when it was loaded or saved there

    @property
    def _parts(self) -> Parts:
        return Parts(self.pool_or_none, self.newest, self.longterm, self.chunks)

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
        """The writes of which something may be left, oldest first. Records of others are dropped in time.

        A record has as much of the text as is left, where the memory keeps it.
        """
        with self.lock:
            texts = {} if self.chunks is None else self.chunks.texts()
            return [replace(record, text=texts.get(record.id, record.text)) for record in self._writes]

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes by tier: "device", "host", "disk", "text". The pool counts as "device"."""
        with self.lock:
            return self._parts.nbytes

    @property
    def devices(self) -> set[torch.device]:
        """Where its slots belong: one device, or none if it holds nothing yet, or nothing on a device."""
        with self.lock:
            return self._parts.devices

    def provenance(self) -> Tensor:  # [L, N], id of the write that made each slot, oldest first; -1: not by a write
        with self.lock:
            return self.written_by(self.pool.serial.gather(1, self.pool.order))

    def written_by(self, serials: Tensor) -> Tensor:  # any shape; -1: not by a write
        """The id of the write that made each slot."""
        with self.lock:
            starts = torch.tensor([record.first_serial for record in self._writes], dtype=torch.long)
            ids = torch.tensor([-1] + [record.id for record in self._writes])
        return ids[torch.searchsorted(starts, serials.cpu(), right=True)]

    def seed(self, seed: int) -> None:
        """Set the random state that draws evictions."""
        with self.lock:
            self._generator.manual_seed(seed)
            if self.chunks is not None:
                self.chunks.seed = seed

    @contextmanager
    def changing(self) -> Iterator[Undo]:
        """The scope of one write: the memory's lock, and an undo list that runs if the body raises.

        A scope inside another is taken back with it too.
        """
        with self.lock, undoing(self._next_serial) as undo:
            outer, state = self._scope, self._generator.get_state()
            undo.add(lambda: self._generator.set_state(state))
            self._scope = undo
            try:
                yield undo
            finally:
                self._scope = outer
            if outer is not None:
                outer.join(undo)

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
        new.check()
        spec, first, with_longterm = self.spec, self._next_serial, self.longterm is not None
        if self.pool_or_none is None:
            if evict is not None:
                raise InvalidInputError("evict= was given, but the first write of a memory evicts nothing")
            new = new.tiled(spec.slots)
            coming = Pool.of(new, first, keep_hidden=self.keep_hidden, longterm=with_longterm)
            newest = new.hidden[:, -spec.slots_per_write :].detach().clone()
            undo.set(self, newest=newest, pool_or_none=coming, _next_serial=first + new.count)
            return None
        pool, passed = self.pool_or_none, 0 if direct is None else direct.passed_count
        coming = Pool.of(new, first + passed, keep_hidden=self.keep_hidden, longterm=with_longterm)
        if direct is not None:
            coming = aged(coming, direct.ages)
        evicted = chosen(evict, spec.layers, pool.size, new.count, self._generator, shared=spec.shared_eviction)
        newest = new.newest(self.newest, evicted, spec.slots_per_write, pool.size)
        undo.set(self, newest=newest, _next_serial=first + passed + new.count)
        put_in = pool.replace if evicted.shape[1] == new.count else partial(replace_growing, pool)
        gone = put_in(evicted, coming, undo)
        if self.longterm is not None:
            step = new.count if direct is None else spec.slots_per_write
            if direct is not None:
                gone, step = direct.joined(gone, first, step)
            names = ("keys", "values", "retrieval", "ages", "serial")
            self.longterm.append(Evicted(**{name: gone[name] for name in names}), step, undo)
        return evicted

    def record(
        self,
        undo: Undo,
        tokens: int,
        first_serial: int | None = None,
        *,
        id: int | None = None,
        source: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        text: str | None = None,
        time: datetime | None = None,
    ) -> WriteRecord:
        """Enter a write into the table.

        Args:
            first_serial: of the slots it made, in a learned memory.
            id, time: of a write that is made again; None: the next one, now.

        Raises:
            InvalidInputError: `source`, `metadata` or `text` cannot be kept in a file.
        """
        id = self.next_id if id is None else id
        made = 0 if first_serial is None else self._next_serial - first_serial
        about = checked(source, metadata, text)
        record = WriteRecord(id, tokens, first_serial or 0, made, time or now(), **about)
        undo.set(self, write_count=max(self.write_count, id + 1))
        if self.chunks is None and len(self._writes) >= self._most_writes:
            alive = set(self.provenance().unique().tolist()) if self.written else set()
            if self.longterm is not None:
                alive |= set(self.written_by(self.longterm.alive()).unique().tolist())
            self._writes.keep(alive, undo)
            undo.set(self, _most_writes=max(self._most_writes, 2 * len(self._writes)))
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
        """Take a write and its chunks out of a text memory; returns the chunks.

        Raises:
            InvalidInputError: there is no such write.
        """
        assert self.chunks is not None
        self._writes.remove(write, undo)
        gone = self.chunks.of(write)
        for chunk in gone:
            self.chunks.remove(chunk, undo)
        return gone

    def evict(self, write: int, undo: Undo) -> None:
        """Make room in a text memory after a write was recorded; writes of which nothing is left go from the table."""
        assert self.chunks is not None
        for gone in {chunk.write for chunk in self.chunks.evict(write, undo)}:
            if not self.chunks.of(gone):
                self._writes.remove(gone, undo)

    def pool_only(self) -> "Memory":
        """This memory as it reads without its long-term part. It shares the pool: do not write to it."""
        if self.longterm is None:
            return self
        view = object.__new__(Memory)
        vars(view).update(vars(self), longterm=None)
        return view

    def fork(self) -> "Memory":
        """An independent copy, random state included. Chunks and full blocks of long-term slots are shared."""
        with self.lock:
            parts = vars(self._parts.fork())
            fork = Memory(self.spec, keep_hidden=self.keep_hidden, model_name=self.model_name, **parts)
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
            parts = self._parts.to(device)
            held = {"pool_or_none": parts.pool, "newest": parts.newest, "longterm": parts.longterm}
            with undoing() as undo:
                undo.set(self, **held, chunks=parts.chunks)
        return self

    def state(self) -> MemoryState:
        """All of it as plain data, as it is now: later writes do not change it."""
        with self.lock:
            state = self._looked_at()
            return replace(state, tensors={name: tensor.clone() for name, tensor in state.tensors.items()})

    def _looked_at(self) -> MemoryState:
        """Its state, good as long as the lock is held: the pool is not copied."""
        longterm, chunks, tensors, blocks = self._parts.state()
        header = MemoryHeader(
            spec=self.spec,
            model_name=self.model_name,
            keep_hidden=self.keep_hidden,
            write_count=self.write_count,
            next_serial=self._next_serial,
            writes=list(self._writes),
            longterm=longterm,
            chunks=chunks,
            most_writes=self._most_writes,
        )
        return MemoryState(header, {**tensors, "generator": self._generator.get_state()}, blocks)

    @classmethod
    def from_state(
        cls, state: MemoryState, device: torch.device | str = "cpu", *, storage: StorageConfig | None = None
    ) -> "Memory":
        """The memory that `state` was taken of.

        Args:
            storage: where slots are to lie; None: as they lay.

        Raises:
            InvalidInputError: they cannot lie there.
            MemoryFileError: the parts do not fit together, or there is no room for them.
            CorruptMemoryError: a slot is not finite.
        """
        tensors = {name: tensor.clone() for name, tensor in state.tensors.items()}
        try:
            return cls._of(replace(state, tensors=tensors), exact(device), storage)
        except (MemoryFileError, CorruptMemoryError, InvalidInputError, torch.OutOfMemoryError):
            raise
        except DAMAGE as error:
            raise MemoryFileError(f"what is to be a memory does not fit together: {error}") from error

    @classmethod
    def _of(cls, state: MemoryState, device: torch.device, storage: StorageConfig | None) -> "Memory":
        """The memory of a state whose tensors it takes over; raises one of `DAMAGE` where they do not fit together."""
        header, parts = state.header, vars(Parts.of(state, device, storage))
        memory = cls(header.spec, keep_hidden=header.keep_hidden, model_name=header.model_name, **parts)
        if header.next_serial != memory._next_serial:
            raise ValueError(f"its slots end at {memory._next_serial}, its record at {header.next_serial}")
        memory.write_count, memory._writes = header.write_count, WriteTable(header.writes)
        memory._writes.check(header.write_count, header.next_serial)
        if any(chunk.write not in memory._writes for chunk in memory.chunks or ()):
            raise ValueError("it holds chunks of no write")
        memory._most_writes = header.most_writes or memory._most_writes
        memory._generator.set_state(state.tensors["generator"])
        return memory

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
            files.save(self._looked_at(), target, self._files, overwrite=overwrite)

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
            InvalidInputError: slots cannot lie where `storage` says.
        """
        target, place = files.resolved(path), exact(device)
        memory, version = files.load(target, lambda state: cls._of(state, place, storage))
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
