"""Long-term memory and chunks as plain data, and back."""

from collections.abc import Mapping
from dataclasses import replace
from itertools import groupby

import torch
from torch import Tensor

from remanence.config import StorageConfig
from remanence.errors import InvalidInputError
from remanence.memory.chunks import Chunk, Chunks
from remanence.memory.finite import all_finite
from remanence.memory.longterm import LongTerm, LongTermLayer
from remanence.memory.published import RecallFrequency
from remanence.memory.spec import MemorySpec
from remanence.memory.state import (
    ChunkHeader,
    ChunksHeader,
    FrequencyHeader,
    FrozenBlock,
    LayerHeader,
    LongTermHeader,
)
from remanence.memory.storage import Block, KeptSlots, Layout, restored

Blocks = Mapping[str, Mapping[str, Tensor]]


def layout_of(spec: MemorySpec, device: torch.device, storage: StorageConfig) -> Layout:
    """How the long-term slots of a memory are laid out."""
    return Layout(spec.kv_heads, spec.head_dim, spec.torch_dtype, spec.retrieval_size, device, storage)


def kept_storage(saved: StorageConfig, wanted: StorageConfig | None) -> StorageConfig:
    """Where slots lie after a load: as they lay, or as is wanted; int8 or not as they were unless that is said.

    Raises:
        InvalidInputError: such a memory cannot be had in the tier that is wanted.
    """
    if saved.folder is not None and not saved.folder.is_dir():
        saved = saved.replace(folder=None)  # this machine does not have the folder of then
    if wanted is None:
        return saved
    if saved.tier == "text" != wanted.tier:
        raise InvalidInputError(
            "this memory was saved as token ids, which a model encodes when it reads them, so there are no slots to "
            f"put into tier {wanted.tier!r}; load it without storage="
        )
    return wanted if wanted.int8 is not None or wanted.tier == "text" else wanted.replace(int8=saved.int8)


def _saved(storage: StorageConfig) -> StorageConfig:
    folder = None if storage.folder is None else storage.folder.absolute()
    return storage.replace(int8=bool(storage.int8), folder=folder)


def longterm_state(longterm: LongTerm) -> tuple[LongTermHeader, dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Header, tensors and blocks. The blocks are views: their rows never change."""
    layout, policy, frequency = longterm.layout, longterm.policy, None
    tensors: dict[str, Tensor] = {}
    if isinstance(policy, RecallFrequency):
        frequency = FrequencyHeader(policy.settings, policy.waited, list(policy.merged))
        tensors = {f"longterm.frequency.{layer}": held for layer, held in enumerate(policy.frequency)}
    header = LongTermHeader(
        rules=longterm.rules,
        storage=_saved(layout.storage),
        clock=longterm.clock,
        rows=layout.block_rows,
        layers=[LayerHeader(held.start, held.count) for held in longterm.layers],
        frequency=frequency,
    )
    blocks = {}
    for index, held in enumerate(longterm.layers):
        for number in header.blocks(index):
            used = min(layout.block_rows, held.count - number * layout.block_rows)
            block = held.blocks[number]
            rows = {name: part.first(used) for name, part in block.rows.items()}
            name = header.block_name(index, number)
            blocks[name] = FrozenBlock(rows, block.source) if used == layout.block_rows else rows
    return header, tensors, blocks


def longterm_of(
    header: LongTermHeader,
    spec: MemorySpec,
    tensors: Mapping[str, Tensor],
    blocks: Blocks,
    storage: StorageConfig,
    device: torch.device,
) -> LongTerm:
    """What `longterm_state` was made of, in a storage of its own.

    Raises:
        ValueError: the parts do not add up.
    """
    layout = layout_of(spec, device, storage)
    if layout.block_rows != header.rows:
        raise ValueError(f"its blocks have {header.rows} rows, those of this version {layout.block_rows}")
    if len(header.layers) != spec.layers:
        raise ValueError(f"its long-term memory has {len(header.layers)} layers, its pool {spec.layers}")
    layers = []
    for index, about in enumerate(header.layers):
        if about.start > about.count:
            raise ValueError(f"layer {index} of its long-term memory does not add up")
        held = LongTermLayer(layout)
        held.start, held.count = about.start, about.count
        for number in header.blocks(index):
            used = min(header.rows, about.count - number * header.rows)
            rows = blocks[header.block_name(index, number)]
            held.blocks[number] = _block(rows, layout, used, bool(header.storage.int8))
        layers.append(held)
    longterm = LongTerm(header.rules, layers, header.clock)
    if header.frequency is not None:
        longterm.policy = _frequencies(header.frequency, longterm, tensors)
    return longterm


def _block(rows: Mapping[str, Tensor], layout: Layout, used: int, int8: bool) -> Block:
    parts = replace(layout, storage=StorageConfig(int8=int8)).parts
    shapes = {name: ((used, *shape), dtype) for name, (shape, dtype) in parts.items()}
    if {name: (tuple(part.shape), part.dtype) for name, part in rows.items()} != shapes:
        raise ValueError(f"a block does not hold {used} long-term slots of this memory")
    if int8 == bool(layout.storage.int8):
        return Block.of(layout, rows)
    slots = restored(rows["slots"], rows["scales"], layout.dtype) if int8 else rows["slots"]
    block = Block.empty(layout)
    block.write(0, slots, rows["keys"], rows["born"], rows["serial"])
    return block


def _frequencies(header: FrequencyHeader, longterm: LongTerm, tensors: Mapping[str, Tensor]) -> RecallFrequency:
    frequency = []
    for index, (held, merged) in enumerate(zip(longterm.layers, header.merged, strict=True)):
        one = tensors[f"longterm.frequency.{index}"].float()
        if one.shape != (merged - held.start,) or bool(one.isnan().any()):
            raise ValueError(f"frequencies of layer {index} do not add up")
        held.gone = one == -torch.inf
        frequency.append(one)
    return RecallFrequency(header.settings, frequency, list(header.merged), header.waited)


def chunks_state(chunks: Chunks) -> tuple[ChunksHeader, dict[str, Tensor], dict[str, dict[str, Tensor]]]:
    """Header, tensors and blocks: one for each write, in tiers that keep slots."""
    header = ChunksHeader(
        storage=_saved(chunks.storage),
        head=None if chunks.head is None else list(chunks.head),
        date=chunks.date,
        capacity=chunks.capacity,
        random=chunks.random,
        seed=chunks.seed,
        keep_text=chunks.keep_text,
        next_key=chunks.next_key,
        dropped=chunks.dropped,
        items=[ChunkHeader(c.key, c.write, c.place, c.tokens, c.text) for c in chunks],
    )
    held, blocks = list(chunks), dict[str, dict[str, Tensor]]()
    tensors: dict[str, Tensor] = {}
    if held:
        tensors["chunks.latents"] = torch.stack([chunk.latent for chunk in held])
        if chunks.keep_text:
            tensors["chunks.ids"] = torch.cat([chunk.ids for chunk in held if chunk.ids is not None])
        keys = [chunk.keys for chunk in held if chunk.keys is not None]
        if len(keys) == len(held):  # else they are made anew
            tensors["chunks.keys"] = torch.cat(keys)
    for chunk in held if chunks.storage.tier != "text" else ():
        block = blocks.setdefault(header.block_name(chunk.write), FrozenBlock({}, chunk.kept.source))
        block[f"slots.{chunk.place}"] = chunk.kept.slots
        if chunk.kept.scales is not None:
            block[f"scales.{chunk.place}"] = chunk.kept.scales
    return header, tensors, blocks


def chunks_of(
    header: ChunksHeader, spec: MemorySpec, tensors: Mapping[str, Tensor], blocks: Blocks, storage: StorageConfig
) -> Chunks:
    """What `chunks_state` was made of.

    Raises:
        ValueError: the parts do not add up.
    """
    chunks = Chunks(
        storage,
        head=None if header.head is None else tuple(header.head),
        date=header.date,
        capacity=header.capacity,
        random=header.random,
        seed=header.seed,
        keep_text=header.keep_text,
    )
    count = len(header.items)
    latents = tensors["chunks.latents"] if count else torch.empty(0, spec.retrieval_size, dtype=torch.float16)
    if latents.shape != (count, spec.retrieval_size) or not all_finite(latents):
        raise ValueError("its latent vectors do not fit its chunks")
    ids: list[Tensor | None] = [None] * count
    if header.keep_text and count:
        ids = list(tensors["chunks.ids"].split([about.tokens for about in header.items]))
    numbers = [about.key for about in header.items]
    if numbers != sorted(set(numbers)) or (numbers and numbers[-1] >= header.next_key):
        raise ValueError("its chunks are not in order")
    items = zip(header.items, latents, ids, _keys(header, tensors), strict=True)
    for write, own in groupby(items, lambda item: item[0].write):
        block = None if storage.tier == "text" else blocks[header.block_name(write)]
        chunks.load(
            Chunk(a.key, write, a.place, a.tokens, one, a.text, latent, _slots(a, spec, block, storage), keys)
            for a, latent, one, keys in own
        )
    chunks.next_key, chunks.dropped = header.next_key, header.dropped
    return chunks


def _keys(header: ChunksHeader, tensors: Mapping[str, Tensor]) -> list[Tensor | None]:
    """The keys of each chunk; None where none were saved."""
    keys = tensors.get("chunks.keys")
    if keys is None:
        return [None] * len(header.items)
    if keys.dtype != torch.int8 or keys.ndim != 2:
        raise ValueError("its retrieval keys are not int8 rows")
    return list(keys.split([about.tokens for about in header.items]))


def _slots(
    about: ChunkHeader, spec: MemorySpec, block: Mapping[str, Tensor] | None, storage: StorageConfig
) -> KeptSlots | None:
    if block is None:
        return None
    slots, scales = block[f"slots.{about.place}"], block.get(f"scales.{about.place}")
    if tuple(slots.shape) != (2, spec.layers, about.tokens, spec.kv_heads, spec.head_dim):
        raise ValueError(f"slots of chunk {about.key} do not have the shape of this memory's")
    kept = KeptSlots.as_kept(slots, scales, spec.torch_dtype, storage)
    if isinstance(block, FrozenBlock) and kept.scales is scales:
        kept.source = block.source
    return kept
