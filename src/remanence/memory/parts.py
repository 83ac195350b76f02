"""All of a memory that holds slots: pool, newest slots, long-term memory, chunks."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from remanence.config import StorageConfig
from remanence.errors import CorruptMemoryError
from remanence.memory.chunks import Chunks
from remanence.memory.finite import all_finite
from remanence.memory.longterm import LongTerm
from remanence.memory.pool import Pool
from remanence.memory.snapshot import chunks_of, chunks_state, kept_storage, longterm_of, longterm_state
from remanence.memory.spec import MemorySpec
from remanence.memory.state import ChunksHeader, LongTermHeader, MemoryState

Plain = tuple[LongTermHeader | None, ChunksHeader | None, dict[str, Tensor], dict[str, dict[str, Tensor]]]


@dataclass(frozen=True)
class Parts:
    """What `Memory` says of each of them holds here too; None where a memory has none."""

    pool: Pool | None = None
    newest: Tensor | None = None
    longterm: LongTerm | None = None
    chunks: Chunks | None = None

    def fork(self) -> "Parts":
        """Independent copies. Chunks and full blocks of long-term slots are shared."""
        pool = None if self.pool is None else self.pool.clone()
        if self.longterm is None and pool is not None:
            pool.retrieval = pool.ages = None  # a view of the pool only was forked
        return Parts(
            pool,
            None if self.newest is None else self.newest.clone(),
            None if self.longterm is None else self.longterm.fork(),
            None if self.chunks is None else self.chunks.fork(),
        )

    def to(self, device: torch.device) -> "Parts":
        """The same on another device, as far as they belong on one."""
        return Parts(
            None if self.pool is None else self.pool.to(device),
            None if self.newest is None else self.newest.to(device),
            None if self.longterm is None else self.longterm.to(device),
            None if self.chunks is None else self.chunks.to(device),
        )

    @property
    def devices(self) -> set[torch.device]:
        """Where slots belong: one device, or none if there are none, or none on a device."""
        held = set() if self.pool is None else {self.pool.keys.device}
        held |= set() if self.longterm is None else {self.longterm.layout.device}
        return held if self.chunks is None else held | self.chunks.devices

    @property
    def nbytes(self) -> dict[str, int]:
        """Bytes by tier: "device", "host", "disk", "text". The pool counts as "device"."""
        if self.chunks is not None:
            return self.chunks.nbytes
        newest, pool = (0 if part is None else part.nbytes for part in (self.newest, self.pool))
        held = {"device": newest + pool}
        if self.longterm is not None:
            about, tier = self.longterm.nbytes, self.longterm.layout.storage.tier
            held["device"] += about["keys"]
            held[tier] = held.get(tier, 0) + about["slots"]
        return held

    def state(
        self,
    ) -> tuple[LongTermHeader | None, ChunksHeader | None, dict[str, Tensor], dict[str, dict[str, Tensor]]]:
        """Headers, tensors and blocks. The next write changes the pool's tensors, and no others."""
        longterm = chunks = None
        tensors: dict[str, Tensor] = {}
        blocks: dict[str, dict[str, Tensor]] = {}
        if self.longterm is not None:
            longterm, tensors, blocks = longterm_state(self.longterm)
        if self.chunks is not None:
            chunks, tensors, blocks = chunks_state(self.chunks)
        if self.pool is not None and self.newest is not None:
            left_out = {"retrieval", "ages"} if self.longterm is None else set()
            pool = self.pool.tensors
            tensors |= {f"pool.{name}": pool[name] for name in pool.keys() - left_out}
            tensors["newest"] = self.newest
        return longterm, chunks, tensors, blocks

    @classmethod
    def of(cls, state: MemoryState, device: torch.device, storage: StorageConfig | None) -> "Parts":
        """What a state was taken of; it takes over the state's tensors.

        Raises:
            InvalidInputError: slots cannot lie where `storage` says.
            CorruptMemoryError: a slot is not finite.
            ValueError, and others of `DAMAGE`: the parts do not add up.
        """
        header, spec, tensors = state.header, state.header.spec, state.tensors
        if (header.chunks is not None) != (spec.writer == "text"):
            raise ValueError(f"it does not hold what a {spec.writer} memory holds")
        longterm = chunks = None
        if header.longterm is not None:
            kept = kept_storage(header.longterm.storage, storage)
            longterm = longterm_of(header.longterm, spec, tensors, state.blocks, kept, device)
        if header.chunks is not None:
            kept = kept_storage(header.chunks.storage, storage)
            chunks = chunks_of(header.chunks, spec, tensors, state.blocks, kept)
        held = {name.removeprefix("pool."): part for name, part in tensors.items() if name.startswith("pool.")}
        newest = tensors.get("newest")
        if held:
            _check_pool(spec, held, newest, keep_hidden=header.keep_hidden, longterm=longterm is not None)
        return cls(Pool(**held) if held else None, newest, longterm, chunks).to(device)


def _check_pool(
    spec: MemorySpec, pool: Mapping[str, Tensor], newest: Tensor | None, *, keep_hidden: bool, longterm: bool
) -> None:
    """Raise where a pool does not have the shapes and dtypes of a memory, or is not finite."""
    layers, slot = spec.layers, (spec.kv_heads, spec.head_dim)
    size = max(pool["serial"].shape[1], spec.slots)
    shapes = {
        "keys": (layers, size, *slot),
        "values": (layers, size, *slot),
        "serial": (layers, size),
        "newest": (layers, spec.slots_per_write, spec.hidden_size),
    }
    if keep_hidden:
        shapes["hidden"] = (layers, size, spec.hidden_size)
    if longterm:
        shapes |= {"retrieval": (layers, size, spec.retrieval_size), "ages": (layers, size)}
    held = dict(pool) if newest is None else {**pool, "newest": newest}
    for name, shape in shapes.items():
        dtype = torch.int64 if name in ("serial", "ages") else spec.torch_dtype
        if tuple(held[name].shape) != shape or held[name].dtype != dtype:
            raise ValueError(f"{name} does not have shape {list(shape)} and {dtype}")
    if not all_finite(*(held[name] for name in shapes)):
        raise CorruptMemoryError("it holds slots that are not finite; go back to an older copy of the memory")
