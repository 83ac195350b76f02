"""Reading the files of a memory back, and refusing those that do not fit together."""

import json
import math
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor

from remanence.errors import CorruptMemoryError, MemoryFileError
from remanence.memory.longterm import LongTerm, LongTermLayer, LongTermRules
from remanence.memory.pool import Pool
from remanence.memory.saving import FORMAT, block_file, digest_of, folder_of, mapped, version_of
from remanence.memory.spec import MemorySpec
from remanence.memory.tiers import Block, Layout, Rows, Storage, exact, restored

if TYPE_CHECKING:
    from remanence.memory.memory import Memory

Record = TypeVar("Record")


def load(path: Path, device: torch.device | str, storage: Storage | None) -> "Memory":
    """See `Memory.load`."""
    if not path.is_file():
        raise FileNotFoundError(f"there is no memory file at {path}")
    device = exact(device)
    while True:
        version = version_of(path)
        try:
            memory = _read(path, device, storage)
        except MemoryFileError:
            if version_of(path) == version:
                raise
            continue  # another process saved meanwhile, and cleared blocks away that the file of before named
        memory._files[path.resolve()] = version
        return memory.to(device)


def _read(path: Path, device: torch.device, storage: Storage | None) -> "Memory":
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            metadata = file.metadata() or {}
            if metadata.get("format") != FORMAT:
                raise MemoryFileError(f"{path} is a safetensors file, but not a memory saved by Memory.save")
            about = json.loads(metadata["memory"], parse_float=_finite, parse_constant=_finite)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return _memory_of(about, tensors, path, device, storage)
    except (MemoryFileError, CorruptMemoryError, torch.OutOfMemoryError):
        raise
    except (
        SafetensorError,
        LookupError,
        TypeError,
        ValueError,
        AttributeError,
        OSError,
        RuntimeError,
        ArithmeticError,
    ) as error:
        raise MemoryFileError(
            f"{path} is truncated, damaged or not a memory: {error}. Go back to an older copy of it, if there is one"
        ) from error


def _memory_of(
    about: dict[str, Any],
    tensors: Mapping[str, Tensor],
    path: Path,
    device: torch.device,
    storage: Storage | None,
) -> "Memory":
    """Raises ValueError, or what Python does, where something does not fit."""
    from remanence.memory.memory import Memory, WriteRecord

    spec = _made(MemorySpec, about["spec"])
    held = {name.removeprefix("pool."): t for name, t in tensors.items() if name.startswith("pool.")}
    longterm = None
    if "longterm" in about:
        longterm = _longterm_of(about["longterm"], tensors, spec, folder_of(path), device, storage)
    [keep_hidden] = _typed(bool, about, "keep_hidden")
    pool, newest = Pool(**held) if held else None, tensors.get("newest")
    memory = Memory(spec, pool=pool, newest=newest, keep_hidden=keep_hidden, longterm=longterm)
    _check_pool(memory, path)
    count, serial = _typed(int, about, "write_count", "next_serial")
    if serial != memory._next_serial:
        raise ValueError(f"its slots end at {memory._next_serial}, its record at {serial}")
    memory._restore(about)
    for record in (_made(WriteRecord, write) for write in reversed(about["writes"])):
        if not (0 <= record.id < count and 0 <= record.first_serial <= record.first_serial + record.slots <= serial):
            raise ValueError(f"write {record.id} does not fit between the others")
        count, serial = record.id, record.first_serial
    memory._generator.set_state(tensors["generator"])
    return memory


def _finite(number: str) -> float:
    if not math.isfinite(float(number)):
        raise ValueError(f"it holds the number {number}")
    return float(number)


def _made(kind: type[Record], record: dict[str, Any]) -> Record:
    """What `asdict` made a record of, each field of the type that it had."""
    made = kind(**record)
    for field in fields(kind):  # type: ignore[arg-type]
        if field.type in (int, str, bool) and type(getattr(made, field.name)) is not field.type:
            raise ValueError(f"{field.name} is {getattr(made, field.name)!r}")
    return made


def _typed(kind: type[Any], record: dict[str, Any], *names: str) -> list[Any]:
    """Values of a record, if they are of this type; whole numbers are counts."""
    for name in names:
        if type(record[name]) is not kind or (kind is int and not 0 <= record[name] < 2**63):
            raise ValueError(f"{name} is {record[name]!r}")
    return [record[name] for name in names]


def _longterm_of(
    about: dict[str, Any],
    tensors: Mapping[str, Tensor],
    spec: MemorySpec,
    folder: Path,
    device: torch.device,
    storage: Storage | None,
) -> LongTerm:
    """Read the blocks that `save_longterm` wrote. `storage` as for `Memory.load`.

    Raises:
        MemoryFileError: a block is missing, cut or changed; names it.
    """
    rules = _made(LongTermRules, about["rules"])
    rows, clock, waited = _typed(int, about, "rows", "clock", "waited")
    [int8] = _typed(bool, about, "int8")
    folder_then = Path(about.get("folder") or "")  # older files do not name one
    kept = folder_then if folder_then.is_absolute() and folder_then.is_dir() else None
    saved = Storage(about["tier"], int8, kept)
    if storage is None:
        storage = saved
    elif storage.int8 is None:
        storage = replace(storage, int8=int8)
    layout = Layout(spec.kv_heads, spec.head_dim, spec.torch_dtype, spec.retrieval_size, device, storage)
    if layout.block_rows != rows:
        raise MemoryFileError(f"{folder} has blocks of {rows} rows, this version has {layout.block_rows}")
    if len(about["layers"]) != spec.layers:
        raise ValueError(f"its long-term memory has {len(about['layers'])} layers, its pool {spec.layers}")
    layers = []
    for index, record in enumerate(about["layers"]):
        held = LongTermLayer(layout)
        held.start, held.merged, held.count = _typed(int, record, "start", "merged", "count")
        held.frequency = tensors.get(f"longterm.frequency.{index}")
        _check_layer(held, index, record["blocks"], rules)
        for block in record["blocks"]:
            number, digest = block["number"], block["digest"]
            file = folder / block_file(index, number, digest)
            _check_block(file, digest)
            held.blocks[number] = _load_block(file, layout, block["rows"], int8)
            if block["rows"] == rows and layout.storage.int8 == int8:
                held.blocks[number].saved = (file, digest, file.stat().st_size)
        layers.append(held)
    return LongTerm(rules, layers, clock, waited)


def _check_layer(held: LongTermLayer, index: int, blocks: list[dict[str, Any]], rules: LongTermRules) -> None:
    """Raise where the record of a layer does not add up."""
    size, first = held.layout.block_rows, held.start // held.layout.block_rows
    for number, block in enumerate(blocks, start=first):
        used = min(size, held.count - number * size)
        named = block["number"] == number and block["file"] == block_file(index, number, block["digest"])
        if not named or block["rows"] != used:
            raise ValueError(f"block {number} in layer {index} of its long-term memory is another than it should be")
    merged = held.merged - held.start if rules.policy == "recall_frequency" else 0
    frequency = torch.empty(0) if held.frequency is None else held.frequency
    if (
        not held.start <= held.merged <= held.count
        or len(blocks) != -(-held.count // size) - first
        or frequency.shape != (merged,)
        or bool(frequency.isnan().any())
    ):
        raise ValueError(f"layer {index} of its long-term memory does not add up")


def _check_block(file: Path, digest: str) -> None:
    if not file.is_file():
        raise MemoryFileError(
            f"{file}, which holds long-term slots of this memory, is missing; nothing was changed. "
            f"A memory is its file and the folder {file.parent.name} beside it: copy or move both"
        )
    if digest_of(file) != digest:
        raise MemoryFileError(
            f"{file}, which holds long-term slots of this memory, was cut or changed since it was saved; "
            "put the saved one back, or load an older copy of the memory"
        )


def _load_block(file: Path, layout: Layout, used: int, int8: bool) -> Block:
    full = used == layout.block_rows
    held = load_file(file)
    parts = replace(layout, storage=Storage(int8=int8)).parts
    shapes = {name: ((used, *shape), dtype) for name, (shape, dtype) in parts.items()}
    if {name: (tuple(rows.shape), rows.dtype) for name, rows in held.items()} != shapes:
        raise ValueError(f"{file} does not hold {used} slots of this memory")
    if int8 != layout.storage.int8:
        block = Block.empty(layout)
        slots = restored(held["slots"], held["scales"], layout.dtype) if int8 else held["slots"]
        block.write(0, slots, held["keys"], held["born"], held["serial"])
        return block
    if layout.storage.tier == "disk" and full:
        known: dict[str, Rows] = {name: layout.rows_of(name, rows) for name, rows in held.items() if name != "slots"}
        return Block(layout, {**known, "slots": mapped(file, layout)})
    block = Block.empty(layout)
    for name, rows in held.items():
        block.rows[name].write(0, rows)
    return block


def _check_pool(memory: "Memory", path: Path) -> None:
    if memory.pool_or_none is None:
        return
    spec, pool, newest = memory.spec, memory.pool_or_none, memory.newest
    slot, size = (spec.kv_heads, spec.head_dim), max(pool.size, spec.slots)
    shapes = {
        "keys": (pool.keys, (spec.layers, size, *slot)),
        "values": (pool.values, (spec.layers, size, *slot)),
        "serial": (pool.serial, (spec.layers, size)),
        "newest": (newest, (spec.layers, spec.slots_per_write, spec.hidden_size)),
    }
    if memory.keep_hidden:
        shapes["hidden"] = (pool.hidden, (spec.layers, size, spec.hidden_size))
    if memory.longterm is not None:
        shapes["retrieval"] = (pool.retrieval, (spec.layers, size, spec.retrieval_size))
        shapes["ages"] = (pool.ages, (spec.layers, size))
    for name, (tensor, shape) in shapes.items():
        dtype = torch.int64 if name in ("serial", "ages") else spec.torch_dtype
        if tensor is None or tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise ValueError(f"{name} does not have shape {list(shape)} and {dtype}")
    held = (pool.keys, pool.values, pool.retrieval, newest)
    if not all(bool(torch.isfinite(t).all()) for t in held if t is not None):
        raise CorruptMemoryError(f"{path} holds slots that are not finite; go back to an older copy of the memory")
