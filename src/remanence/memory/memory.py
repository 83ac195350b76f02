"""Memory: a value. Fork it, save it, load it; only a model writes it."""

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from remanence.errors import CorruptMemoryError, InvalidInputError, MemoryFileError
from remanence.memory.eviction import check_evicted, draw_evicted
from remanence.memory.pool import Pool
from remanence.memory.spec import MemorySpec

FORMAT = "remanence-memory-1"


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
    """

    hidden: Tensor
    keys: Tensor
    values: Tensor
    tokens: int


class Memory:
    """A pool of latent slots, the record of the writes that made them, and the random state that decides who leaves.

    Attributes:
        spec: what a model must agree on to read it.
        pool: N slots per layer; None as long as nothing was written (the model then reads as a plain language model).
        newest: `[L, K, d]`, the K newest slots in hidden form. A write starts from them.
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
    ) -> None:
        self.spec, self.pool_or_none, self.newest, self.keep_hidden = spec, pool, newest, keep_hidden
        self.write_count = 0
        self._next_serial = 0 if pool is None else int(pool.serial.max()) + 1
        self._records: list[WriteRecord] = []
        self._generator = torch.Generator().manual_seed(seed)

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
        """Bytes of all tensors: the pool, and the K newest slots in hidden form."""
        newest = 0 if self.newest is None else self.newest.numel() * self.newest.element_size()
        return newest + (0 if self.pool_or_none is None else self.pool_or_none.nbytes)

    def provenance(self) -> Tensor:  # [L, N], id of the write that made each slot, oldest first; -1: not by a write
        serials = self.pool.serial.gather(1, self.pool.order).cpu()
        starts = torch.tensor([record.first_serial for record in self._records], dtype=torch.long)
        ids = torch.tensor([-1] + [record.id for record in self._records])
        return ids[torch.searchsorted(starts, serials, right=True)]

    def seed(self, seed: int) -> None:
        """Set the random state that draws evictions."""
        self._generator.manual_seed(seed)

    def draw(self, count: int) -> Tensor:  # [L, count] ranks
        return draw_evicted(self.spec.layers, self.pool.size, count, self._generator, shared=self.spec.shared_eviction)

    @contextmanager
    def committing(self, new: NewSlots, evict: Tensor | None = None) -> Iterator[tuple[WriteRecord, Tensor | None]]:
        """Put new slots into the pool in place; everything is undone if the body raises.

        `evict` replays a draw: ranks `[L, P]` of the slots that leave. If fewer leave than come, the pool grows.

        Raises:
            InvalidInputError: `evict` does not fit.
            CorruptMemoryError: a new slot, or one that leaves, is not finite.
        """
        if not all(bool(torch.isfinite(t).all()) for t in (new.hidden, new.keys, new.values)):
            raise CorruptMemoryError(
                "the write made slots that are not finite; the memory is unchanged. Either the weights or the memory "
                "hold NaN or infinity: check the model in float32, or go back to a saved memory"
            )
        before = dict(vars(self), _records=list(self._records))
        state = self._generator.get_state()
        record = WriteRecord(self.write_count, new.tokens, self._next_serial, new.hidden.shape[1])
        try:
            if self.pool_or_none is None:
                if evict is not None:
                    raise InvalidInputError("evict= was given, but the first write of a memory evicts nothing")
                new = tiled(new, self.spec.slots)
                self.newest = new.hidden[:, -self.spec.slots_per_write :].detach().clone()
                self._record(record, new)
                self.pool_or_none = self._pool_of(new, record)
                yield record, None
            else:
                evicted = self._evicted(new.hidden.shape[1], evict)
                self.newest = self._newest(new.hidden, evicted)
                self._record(record, new)
                with self.pool_or_none.replacing(evicted, self._pool_of(new, record)):
                    yield record, evicted
        except BaseException:
            vars(self).update(before)
            self._generator.set_state(state)
            raise

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

    def _record(self, record: WriteRecord, new: NewSlots) -> None:
        self.write_count += 1
        self._next_serial += new.hidden.shape[1]
        if len(self._records) >= 64 + 8 * self.spec.slots // self.spec.slots_per_write:
            alive = set(self.provenance().unique().tolist())
            self._records = [kept for kept in self._records if kept.id in alive]
        self._records.append(record)

    def _pool_of(self, new: NewSlots, record: WriteRecord) -> Pool:
        last = record.first_serial + new.hidden.shape[1]
        serial = torch.arange(record.first_serial, last, device=new.keys.device)
        hidden = new.hidden.detach() if self.keep_hidden else None
        return Pool(new.keys.detach(), new.values.detach(), serial.repeat(self.spec.layers, 1), hidden)

    def become(self, other: "Memory") -> None:
        """Take over another memory's content, in one step. The other must not be used afterwards."""
        vars(self).update(vars(other))

    def fork(self) -> "Memory":
        """An independent copy, random state included."""
        copy = Memory(
            self.spec,
            pool=None if self.pool_or_none is None else self.pool_or_none.clone(),
            newest=None if self.newest is None else self.newest.clone(),
            keep_hidden=self.keep_hidden,
        )
        copy._restore(self._bookkeeping())
        copy._generator.set_state(self._generator.get_state())
        return copy

    def to(self, device: torch.device | str) -> "Memory":
        """Move the tensors, in place."""
        if self.pool_or_none is not None and self.newest is not None:
            self.pool_or_none, self.newest = self.pool_or_none.to(device), self.newest.to(device)
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

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write one safetensors file, whole or not at all: a full disk or Ctrl-C leaves what was there.

        Raises:
            MemoryFileError: the file could not be written.
        """
        target = Path(path)
        tensors = {"generator": self._generator.get_state()}
        if self.pool_or_none is not None and self.newest is not None:
            tensors |= {f"pool.{name}": tensor for name, tensor in self.pool_or_none.tensors.items()}
            tensors["newest"] = self.newest
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        about = {"spec": self.spec.to_json(), "keep_hidden": self.keep_hidden, **self._bookkeeping()}
        try:
            handle, partial = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
        except OSError as error:
            raise MemoryFileError(f"cannot write {target}: {error.strerror}") from error
        os.close(handle)
        try:
            save_file(tensors, partial, metadata={"format": FORMAT, "memory": json.dumps(about)})
            with open(partial, "rb") as file:
                os.fsync(file.fileno())
            os.replace(partial, target)
        except (OSError, SafetensorError) as error:
            raise MemoryFileError(f"could not write {target}: {error}; what was there before is unchanged") from error
        finally:
            Path(partial).unlink(missing_ok=True)

    @classmethod
    def load(cls, path: str | os.PathLike[str], device: torch.device | str = "cpu") -> "Memory":
        """Read a file that `save` made.

        Raises:
            FileNotFoundError: there is no such file.
            MemoryFileError: the file is truncated, damaged, or not a memory.
            CorruptMemoryError: a slot is not finite.
        """
        if not Path(path).is_file():
            raise FileNotFoundError(f"there is no memory file at {path}")
        try:
            with safe_open(path, framework="pt", device="cpu") as file:
                metadata = file.metadata() or {}
                if metadata.get("format") != FORMAT:
                    raise MemoryFileError(f"{path} is a safetensors file, but not a memory saved by Memory.save")
                about = json.loads(metadata["memory"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            spec = MemorySpec(**about["spec"])
            held = {name.removeprefix("pool."): t for name, t in tensors.items() if name.startswith("pool.")}
            memory = cls(
                spec,
                pool=Pool(**held) if held else None,
                newest=tensors.get("newest"),
                keep_hidden=about["keep_hidden"],
            )
            memory._restore(about)
            memory._generator.set_state(tensors["generator"])
            memory._check_tensors(Path(path))
        except (MemoryFileError, CorruptMemoryError):
            raise
        except (SafetensorError, LookupError, TypeError, ValueError, AttributeError, OSError, RuntimeError) as error:
            raise MemoryFileError(f"{path} is truncated, damaged or not a memory: {error}") from error
        return memory.to(device)

    def _check_tensors(self, path: Path) -> None:
        if self.pool_or_none is None:
            return
        spec, pool, newest = self.spec, self.pool_or_none, self.newest
        slot = (spec.kv_heads, spec.head_dim)
        shapes = {
            "keys": (pool.keys, (spec.layers, pool.size, *slot)),
            "values": (pool.values, (spec.layers, pool.size, *slot)),
            "serial": (pool.serial, (spec.layers, pool.size)),
            "newest": (newest, (spec.layers, spec.slots_per_write, spec.hidden_size)),
        }
        if self.keep_hidden:
            shapes["hidden"] = (pool.hidden, (spec.layers, pool.size, spec.hidden_size))
        for name, (tensor, shape) in shapes.items():
            dtype = torch.int64 if name == "serial" else spec.torch_dtype
            if tensor is None or tuple(tensor.shape) != shape or tensor.dtype != dtype:
                raise MemoryFileError(f"{path} is damaged: {name} does not have shape {list(shape)} and {dtype}")
        if not all(bool(torch.isfinite(t).all()) for t in (pool.keys, pool.values, newest) if t is not None):
            raise CorruptMemoryError(f"{path} holds slots that are not finite; go back to an older copy of the memory")

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
    return NewSlots(slots.hidden[:, index], slots.keys[:, index], slots.values[:, index], slots.tokens)
