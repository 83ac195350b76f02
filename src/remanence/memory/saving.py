"""Files of a memory: one safetensors file, and beside it a folder with a file for each block of long-term slots.

The file names the blocks and their digests, and is replaced last, in one step: whatever cuts a save short, the old file
and the blocks that it names are still there.
"""

import hashlib
import json
import os
import re
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from remanence.errors import CorruptMemoryError, MemoryFileError
from remanence.memory.longterm import LongTerm, LongTermLayer, LongTermRules
from remanence.memory.pool import Pool
from remanence.memory.spec import MemorySpec
from remanence.memory.tiers import Block, DiskRows, Layout, Rows, Storage, restored

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

if TYPE_CHECKING:
    from remanence.memory.memory import Memory

FORMAT = "remanence-memory-1"
_READ_AT_ONCE = 2**20
_BLOCK_FILE = re.compile(r"layer-\d+-block-\d+-[0-9a-f]{12}\.safetensors|layer-\d+-block-\d+\.safetensors\.new")


def folder_of(path: Path) -> Path:
    """Where the long-term slots of the memory in a file lie."""
    return path.with_name(path.name + ".longterm")


def save(memory: "Memory", target: Path) -> None:
    """See `Memory.save`."""
    tensors = {"generator": memory._generator.get_state()}
    if memory.pool_or_none is not None and memory.newest is not None:
        left_out = {"retrieval", "ages"} if memory.longterm is None else set()
        pool = memory.pool_or_none.tensors
        tensors |= {f"pool.{name}": pool[name] for name in pool.keys() - left_out}
        tensors["newest"] = memory.newest
    about = {"spec": memory.spec.to_json(), "keep_hidden": memory.keep_hidden, **memory._bookkeeping()}
    named: set[str] = set()
    with _alone(target.parent):
        if memory.longterm is not None:
            about["longterm"] = save_longterm(memory.longterm, folder_of(target))
            named = {block["file"] for layer in about["longterm"]["layers"] for block in layer["blocks"]}
            for index, held in enumerate(memory.longterm.layers):
                if held.frequency is not None:
                    tensors[f"longterm.frequency.{index}"] = held.frequency
        _write_whole(target, tensors, {"format": FORMAT, "memory": json.dumps(about)})
        for file in folder_of(target).glob("*"):
            if _BLOCK_FILE.fullmatch(file.name) and file.name not in named:
                with suppress(OSError):  # the memory is saved; what is left over harms nothing
                    file.unlink()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One process at a time saves in a folder: another would clear away blocks that no file names yet."""
    if fcntl is None or not folder.is_dir():
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _write_whole(target: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str] | None = None) -> None:
    """One file, complete and on disk, or what was there before."""
    held = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        handle, partial = tempfile.mkstemp(prefix=f".{target.name}.", suffix=".partial", dir=target.parent)
    except OSError as error:
        raise MemoryFileError(f"cannot write {target}: {error.strerror}") from error
    os.close(handle)
    try:
        save_file(held, partial, metadata=metadata)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
    except (OSError, SafetensorError) as error:
        raise MemoryFileError(f"could not write {target}: {error}; what was there before is unchanged") from error
    finally:
        Path(partial).unlink(missing_ok=True)


def save_longterm(longterm: LongTerm, folder: Path) -> dict[str, Any]:
    """Write the blocks that the folder lacks; says what a file must know to find them again.

    Raises:
        MemoryFileError: the disk is full, or the folder cannot be made.
    """
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise MemoryFileError(f"cannot make {folder}: {error.strerror}") from error
    storage = longterm.layout.storage
    return {
        "rules": asdict(longterm.rules),
        "tier": storage.tier,
        "int8": storage.int8,
        "clock": longterm.clock,
        "waited": longterm.waited,
        "rows": longterm.layout.block_rows,
        "layers": [_save_layer(held, index, folder) for index, held in enumerate(longterm.layers)],
    }


def _save_layer(held: LongTermLayer, index: int, folder: Path) -> dict[str, Any]:
    size, blocks = held.layout.block_rows, []
    for number, block in held.blocks.items():
        used = min(size, held.count - number * size)
        if used <= 0 or (number + 1) * size <= held.start:
            continue
        file, digest = _save_block(block, used, folder, f"layer-{index:03d}-block-{number:06d}")
        if used == size:
            block.saved = (folder / file, digest, (folder / file).stat().st_size)
        blocks.append({"number": number, "rows": used, "file": file, "digest": digest})
    return {"start": held.start, "merged": held.merged, "count": held.count, "blocks": blocks}


def _save_block(block: Block, used: int, folder: Path, name: str) -> tuple[str, str]:
    """A file's name holds part of its digest, so that another content never takes its place."""
    if block.saved is not None:
        file, known, length = block.saved
        if file.parent == folder and file.is_file() and file.stat().st_size == length:
            return file.name, known
    partial = folder / f"{name}.safetensors.new"
    try:
        _write_whole(partial, {part: rows.first(used) for part, rows in block.rows.items()})
        digest = digest_of(partial)
        final = folder / f"{name}-{digest[:12]}.safetensors"
        os.replace(partial, final)
    except OSError as error:
        raise MemoryFileError(f"could not write {folder / name}: {error}; what was there is unchanged") from error
    finally:
        partial.unlink(missing_ok=True)
    slots = block.rows["slots"]
    if isinstance(slots, DiskRows) and used == block.layout.block_rows:
        block.rows["slots"] = _mapped(final, block.layout)  # the working file goes with the rows it held
    return final.name, digest


def digest_of(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while part := file.read(_READ_AT_ONCE):
            digest.update(part)
    return digest.hexdigest()


def load(path: Path, device: torch.device, storage: Storage | None) -> "Memory":
    """See `Memory.load`."""
    from remanence.memory.memory import Memory

    if not path.is_file():
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
        longterm = None
        if "longterm" in about:
            longterm = load_longterm(about["longterm"], tensors, spec, folder_of(path), device, storage)
        memory = Memory(
            spec,
            pool=Pool(**held) if held else None,
            newest=tensors.get("newest"),
            keep_hidden=about["keep_hidden"],
            longterm=longterm,
        )
        memory._restore(about)
        memory._generator.set_state(tensors["generator"])
        _check_pool(memory, path)
    except (MemoryFileError, CorruptMemoryError):
        raise
    except (SafetensorError, LookupError, TypeError, ValueError, AttributeError, OSError, RuntimeError) as error:
        raise MemoryFileError(f"{path} is truncated, damaged or not a memory: {error}") from error
    return memory.to(device)


def load_longterm(
    about: dict[str, Any],
    tensors: Mapping[str, Tensor],
    spec: MemorySpec,
    folder: Path,
    device: torch.device,
    storage: Storage | None,
) -> LongTerm:
    """Read the blocks that `save_longterm` wrote, into the tier that `storage` names; None: the one they lay in.

    Raises:
        MemoryFileError: a block is missing, cut or changed; names it.
    """
    storage = Storage(about["tier"], about["int8"]) if storage is None else storage
    layout = Layout(spec.kv_heads, spec.head_dim, spec.torch_dtype, spec.retrieval_size, device, storage)
    if layout.block_rows != about["rows"]:
        raise MemoryFileError(f"{folder} has blocks of {about['rows']} rows, this version has {layout.block_rows}")
    layers = []
    for index, record in enumerate(about["layers"]):
        held = LongTermLayer(layout)
        for block in record["blocks"]:
            file = folder / block["file"]
            _check_block(file, block["digest"])
            held.blocks[block["number"]] = _load_block(file, layout, block["rows"], int8=about["int8"])
            if block["rows"] == layout.block_rows and storage.int8 == about["int8"]:
                held.blocks[block["number"]].saved = (file, block["digest"], file.stat().st_size)
        held.start, held.merged, held.count = record["start"], record["merged"], record["count"]
        held.frequency = tensors.get(f"longterm.frequency.{index}")
        _check_layer(held, index, folder)
        layers.append(held)
    if len(layers) != spec.layers:
        raise MemoryFileError(f"the long-term memory of {folder} has {len(layers)} layers, its pool {spec.layers}")
    return LongTerm(LongTermRules(**about["rules"]), layers, about["clock"], about["waited"])


def _check_layer(held: LongTermLayer, index: int, folder: Path) -> None:
    size, merged = held.layout.block_rows, held.merged - held.start
    needed = range(held.start // size, -(-held.count // size)) if held.count > held.start else range(0)
    whole = set(needed) <= set(held.blocks) and 0 <= held.start <= held.merged <= held.count
    if not whole or (held.frequency is not None and len(held.frequency) != merged):
        raise MemoryFileError(
            f"the record of long-term memory beside {folder} is damaged: layer {index} does not add up"
        )


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
    if int8 != layout.storage.int8:
        block = Block.empty(layout)
        slots = restored(held["slots"], held["scales"], layout.dtype) if int8 else held["slots"]
        block.write(0, slots, held["keys"].to(layout.device), held["born"], held["serial"])
        return block
    if layout.storage.tier == "disk" and full:
        known: dict[str, Rows] = {name: layout.rows_of(name, rows) for name, rows in held.items() if name != "slots"}
        return Block(layout, {**known, "slots": _mapped(file, layout)})
    block = Block.empty(layout)
    for name, rows in held.items():
        block.rows[name].write(0, rows)
    return block


def _mapped(file: Path, layout: Layout) -> DiskRows:
    """The slots of a full block, where they lie in its file."""
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        start, _ = json.loads(opened.read(length))["slots"]["data_offsets"]
    return DiskRows(file, layout.slots_shape, layout.slot_dtype, 8 + length + start)


def _check_pool(memory: "Memory", path: Path) -> None:
    if memory.pool_or_none is None:
        return
    spec, pool, newest = memory.spec, memory.pool_or_none, memory.newest
    slot = (spec.kv_heads, spec.head_dim)
    shapes = {
        "keys": (pool.keys, (spec.layers, pool.size, *slot)),
        "values": (pool.values, (spec.layers, pool.size, *slot)),
        "serial": (pool.serial, (spec.layers, pool.size)),
        "newest": (newest, (spec.layers, spec.slots_per_write, spec.hidden_size)),
    }
    if memory.keep_hidden:
        shapes["hidden"] = (pool.hidden, (spec.layers, pool.size, spec.hidden_size))
    if memory.longterm is not None:
        shapes["retrieval"] = (pool.retrieval, (spec.layers, pool.size, spec.retrieval_size))
        shapes["ages"] = (pool.ages, (spec.layers, pool.size))
    for name, (tensor, shape) in shapes.items():
        dtype = torch.int64 if name in ("serial", "ages") else spec.torch_dtype
        if tensor is None or tuple(tensor.shape) != shape or tensor.dtype != dtype:
            raise MemoryFileError(f"{path} is damaged: {name} does not have shape {list(shape)} and {dtype}")
    held = (pool.keys, pool.values, pool.retrieval, newest)
    if not all(bool(torch.isfinite(t).all()) for t in held if t is not None):
        raise CorruptMemoryError(f"{path} holds slots that are not finite; go back to an older copy of the memory")
