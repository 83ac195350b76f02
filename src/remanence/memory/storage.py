"""Where slots lie: on the model's device, in host memory, or on disk.

A block holds the long-term slots of one layer at consecutive positions. Rows are written once, in order, and never
move. A full block never changes again, so forks share it. Retrieval keys, birth and serial numbers are always in
memory. The slots of a text memory's chunk never change either; `KeptSlots` holds them in one piece.
"""

import os
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, Self

import torch
from torch import Tensor

from remanence.config import StorageConfig
from remanence.errors import CorruptMemoryError, InvalidInputError
from remanence.memory.finite import all_finite
from remanence.memory.mapped import let_go, on_disk
from remanence.memory.state import FrozenBlock, Source

_BLOCK_BYTES = 32 * 2**20  # of slots: ten million in each of 32 layers stay under the limit of mappings per process
_FEWEST_ROWS = 256


@dataclass(frozen=True)
class Layout:
    """What the rows of a block look like: slots `[2, H, D]`, key and value, and retrieval keys `[P]`."""

    heads: int
    head_dim: int
    dtype: torch.dtype
    key_size: int
    device: torch.device
    storage: StorageConfig

    def __post_init__(self) -> None:
        if self.storage.tier == "text":
            raise InvalidInputError("long-term slots cannot be made again from text; keep them in another tier")

    @property
    def slot_dtype(self) -> torch.dtype:
        return torch.int8 if self.storage.int8 else self.dtype

    @property
    def slot_bytes(self) -> int:
        """Bytes of one slot as it is kept, its scales counted, its retrieval key not."""
        return 2 * self.heads * self.head_dim * self.slot_dtype.itemsize + (8 if self.storage.int8 else 0)

    @property
    def block_rows(self) -> int:
        """Rows of a block, a power of two; the same in every tier, so that a memory can move between them."""
        return 1 << max(8, (_BLOCK_BYTES // (2 * self.heads * self.head_dim * self.dtype.itemsize)).bit_length() - 1)

    @property
    def slots_shape(self) -> tuple[int, ...]:
        return (self.block_rows, 2, self.heads, self.head_dim)

    @property
    def parts(self) -> dict[str, tuple[tuple[int, ...], torch.dtype]]:
        """Shape and dtype of one row of each part of a block."""
        return {
            "slots": (self.slots_shape[1:], self.slot_dtype),
            "keys": ((self.key_size,), self.dtype),
            "born": ((), torch.int64),
            "serial": ((), torch.int64),
        } | ({"scales": ((2,), torch.float32)} if self.storage.int8 else {})

    @property
    def with_model(self) -> set[str]:
        """The parts that lie on the model's device."""
        return {"keys", "slots", "scales"} if self.storage.tier == "device" else {"keys"}

    def rows_of(self, name: str, rows: Tensor | None = None, *, whole: bool = False) -> "MemoryRows":
        """Room in memory for one part of a block, with rows in it if they are given."""
        shape, dtype = self.parts[name]
        device = self.device if name in self.with_model else torch.device("cpu")
        room = MemoryRows(self.block_rows, shape, dtype, device, whole=whole)
        if rows is not None:
            room.write(0, rows)
        return room


class Rows(Protocol):
    """Rows of a block in one tier."""

    def write(self, at: int, rows: Tensor) -> None: ...
    def take(self, offsets: Tensor) -> Tensor: ...
    def first(self, count: int) -> Tensor: ...


class MemoryRows:
    """Rows in a tensor that grows by doubling up to the size of a block, or has that size at once (`whole`)."""

    def __init__(
        self, size: int, shape: Sequence[int], dtype: torch.dtype, device: torch.device, *, whole: bool
    ) -> None:
        self._size, self._shape = size, tuple(shape)
        self._pin = device.type == "cpu" and torch.cuda.is_available()
        self.tensor = self._empty(size if whole else min(size, _FEWEST_ROWS), dtype, device)

    def _empty(self, rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
        return torch.empty(rows, *self._shape, dtype=dtype, device=device, pin_memory=self._pin)

    def write(self, at: int, rows: Tensor) -> None:
        capacity, end = len(self.tensor), at + len(rows)
        if end > capacity:
            grown = self._empty(min(self._size, max(end, 2 * capacity)), self.tensor.dtype, self.tensor.device)
            grown[:at] = self.tensor[:at]
            self.tensor = grown
        self.tensor[at:end] = rows

    def take(self, offsets: Tensor) -> Tensor:
        return self.tensor.index_select(0, offsets.to(self.tensor.device))

    def first(self, count: int) -> Tensor:
        return self.tensor[:count]


class DiskRows:
    """Rows on disk. A process made by `os.fork` writes into a copy: processes share mapped files, but no memory."""

    def __init__(self, folder: Path | None, shape: Sequence[int], dtype: torch.dtype) -> None:
        """Take all the room of `[S, ...]` rows at once.

        Raises:
            MemoryFileError: there is no room for it, or no right to make it.
        """
        self._folder = folder
        self.tensor = on_disk(folder, torch.Size(shape), dtype)
        self._process = os.getpid()

    def write(self, at: int, rows: Tensor) -> None:
        if self._process != os.getpid():
            own = on_disk(self._folder, self.tensor.shape, self.tensor.dtype)
            own[:at] = self.tensor[:at]
            self.tensor, self._process = own, os.getpid()
        self.tensor[at : at + len(rows)] = rows
        let_go(self.tensor)

    def take(self, offsets: Tensor) -> Tensor:
        taken = self.tensor.index_select(0, offsets.cpu())
        let_go(self.tensor)
        return taken

    def first(self, count: int) -> Tensor:
        return self.tensor[:count]


class Block:
    """Slots at consecutive positions of one layer, with their retrieval keys and what is known of them.

    Attributes:
        rows: by name. "slots": `[2, H, D]`, key (unrotated) and value, int8 where the storage says so; "scales": `[2]`,
            of int8 slots only; "keys": `[P]`; "born": int64, the clock at which a slot had age 0; "serial": int64, the
            number it was made with, which says by which write.
        used: rows that were ever written.
        source: names what it holds; another after every write.
    """

    def __init__(self, layout: Layout, rows: dict[str, Rows], used: int = 0, source: Source | None = None) -> None:
        self.layout, self.rows, self.used = layout, rows, used
        self.source = Source() if source is None else source

    @classmethod
    def empty(cls, layout: Layout, *, whole: bool = False) -> Self:
        """Room for a block. A memory's first starts small; where others came before it will be filled, so that growing
        it step by step would leave the allocator with pieces that it cannot give back."""
        storage = layout.storage
        rows: dict[str, Rows] = {
            name: layout.rows_of(name, whole=whole)
            for name in layout.parts
            if name != "slots" or storage.tier != "disk"
        }
        if storage.tier == "disk":
            rows["slots"] = DiskRows(storage.folder, layout.slots_shape, layout.slot_dtype)
        return cls(layout, rows)

    @classmethod
    def of(cls, layout: Layout, rows: Mapping[str, Tensor]) -> Self:
        """A block that begins with some rows, given as they are kept."""
        block = cls.empty(layout)
        block.used = len(rows["serial"])
        for name, part in rows.items():
            block.rows[name].write(0, part)
        if isinstance(rows, FrozenBlock):
            block.source = rows.source
        return block

    def write(self, at: int, slots: Tensor, keys: Tensor, born: Tensor, serial: Tensor) -> None:
        """Put n rows at `at`: slots `[n, 2, H, D]`, keys `[n, P]`, born and serial `[n]`."""
        self.used, self.source = max(self.used, at + len(slots)), Source()
        if self.layout.storage.int8:
            slots, scales = quantised(slots)
            self.rows["scales"].write(at, scales)
        self.rows["slots"].write(at, slots)
        for name, new in (("keys", keys), ("born", born), ("serial", serial)):
            self.rows[name].write(at, new)

    def take(self, offsets: Tensor) -> Tensor:  # [n] -> [n, 2, H, D] on the model's device
        slots, device = self.rows["slots"].take(offsets), self.layout.device
        if not self.layout.storage.int8:
            return slots.to(device, non_blocking=True)
        scales = self.rows["scales"].take(offsets)
        return restored(slots.to(device, non_blocking=True), scales.to(device), self.layout.dtype)

    def copy(self, used: int) -> "Block":
        """A block of its own with the first `used` rows."""
        return Block.of(self.layout, {name: rows.first(used) for name, rows in self.rows.items()})

    def moved(self, layout: Layout, used: int) -> "Block":
        """A block with the same rows on another device; those that do not depend on it are shared."""
        rows = {
            name: layout.rows_of(name, part.first(used).to(layout.device)) if name in layout.with_model else part
            for name, part in self.rows.items()
        }
        return Block(layout, rows, used, self.source)


def exact(device: torch.device | str) -> torch.device:
    """A device as tensors on it name it: "cuda" with its number."""
    return torch.empty(0, device=device).device


def quantised(slots: Tensor) -> tuple[Tensor, Tensor]:  # [..., H, D] -> int8 of that shape, scales [...]
    """Round to 255 steps between the largest numbers of either sign, for the key and the value of each slot."""
    scales = slots.float().abs().amax(dim=(-2, -1)).clamp(min=torch.finfo(torch.float32).tiny) / 127
    return (slots.float() / scales[..., None, None]).round().to(torch.int8), scales


def restored(slots: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    return (slots.to(scales.dtype) * scales[..., None, None]).to(dtype)


class KeptSlots:
    """The slots of one chunk `[2, L, n, H, D]`, keys (unrotated) and values, in the tier of a memory. Never changes.

    Attributes:
        slots: as kept; int8 where the storage says so.
        scales: `[2, L, n]` of int8 slots, else None.
        tier: where `slots` lie.
        source: names them; chunks of one write that were loaded share it.

    Raises:
        CorruptMemoryError: a slot is not finite.
        MemoryFileError: there is no room on disk.
    """

    def __init__(self, slots: Tensor, storage: StorageConfig) -> None:
        self.dtype, self.tier, self.source = slots.dtype, storage.tier, Source()
        self.scales: Tensor | None = None
        if not all_finite(slots):
            raise CorruptMemoryError(
                "slots of a chunk are not finite. Either the weights or the memory hold NaN or infinity: check the "
                "model in float32, or go back to a saved memory"
            )
        if storage.int8:
            slots, self.scales = quantised(slots)
        if storage.tier == "disk":
            self.slots = on_disk(storage.folder, slots.shape, slots.dtype)
            self.slots.copy_(slots)
            let_go(self.slots)
        elif storage.tier == "host":
            self.slots = slots.to("cpu", copy=True)
            self.slots = self.slots.pin_memory() if torch.cuda.is_available() else self.slots
        else:
            self.slots = slots.clone()
        self.scales = None if self.scales is None else self.scales.to(self.slots.device)

    @classmethod
    def as_kept(cls, slots: Tensor, scales: Tensor | None, dtype: torch.dtype, storage: StorageConfig) -> "KeptSlots":
        """From `slots` and `scales` as they were kept before, of slots made in `dtype`."""
        if (scales is not None) != bool(storage.int8):
            return cls(slots if scales is None else restored(slots, scales, dtype), storage)
        kept = cls(slots, storage.replace(int8=False))
        kept.dtype, kept.scales = dtype, scales
        return kept

    @property
    def nbytes(self) -> int:
        return self.slots.nbytes + (0 if self.scales is None else self.scales.nbytes)

    def load(self, device: torch.device) -> Tensor:  # [2, L, n, H, D]
        """The slots on a device, in the dtype they were made in. Not to be changed."""
        slots = self.slots.to(device, non_blocking=True, copy=self.tier == "disk")
        if self.scales is not None:
            slots = restored(slots, self.scales.to(device), self.dtype)
        if self.tier == "disk":
            let_go(self.slots)
        return slots

    def moved(self, device: torch.device) -> "KeptSlots":
        """The same on another device, which the device tier is about."""
        moved = copy(self)
        moved.slots, moved.scales = self.slots.to(device), None if self.scales is None else self.scales.to(device)
        return moved
