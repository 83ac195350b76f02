"""Files of a memory: one safetensors file, and beside it a folder with a file for each block of long-term slots.

The file names the blocks and their digests, and is replaced last, in one step: whatever cuts a save short, the old file
and the blocks that it names are still there.
"""

import hashlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from remanence.errors import MemoryConflictError, MemoryFileError
from remanence.memory.longterm import LongTerm, LongTermLayer
from remanence.memory.tiers import Block, DiskRows, Layout

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


def version_of(path: Path) -> tuple[int, int, int] | None:
    """Tells a file from the one that another save puts in its place; None: there is no file."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns


def save(memory: "Memory", target: Path, overwrite: bool) -> None:
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
        version, folder = version_of(target), folder_of(target)
        known = memory._files.get(target.resolve(), version)
        if not overwrite and version not in (known, None):
            raise MemoryConflictError(
                f"{target} was saved again since this memory was loaded from it or saved to it; nothing was changed. "
                "Load it and write again, or save under another name, "
                "or give up what was saved there meanwhile with save(path, overwrite=True)"
            )
        before = {file.name for file in folder.glob("*")} if folder.is_dir() else None
        try:
            if memory.longterm is not None:
                about["longterm"] = save_longterm(memory.longterm, folder)
                named = {block["file"] for layer in about["longterm"]["layers"] for block in layer["blocks"]}
                for index, held in enumerate(memory.longterm.layers):
                    if held.frequency is not None:
                        tensors[f"longterm.frequency.{index}"] = held.frequency
            _write_whole(target, tensors, {"format": FORMAT, "memory": json.dumps(about)})
        except BaseException:
            if version_of(target) == version:
                _clear(folder, keep=before or set())
                if before is None:
                    with suppress(OSError):
                        folder.rmdir()
            raise
        memory._files[target.resolve()] = version_of(target)
        _clear(folder, keep=named)


def _clear(folder: Path, keep: set[str]) -> None:
    for file in folder.glob("*"):
        if _BLOCK_FILE.fullmatch(file.name) and file.name not in keep:
            with suppress(OSError):  # what is left over harms nothing
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
    partial = target.with_name(f".{target.name}.{secrets.token_hex(4)}.partial")
    try:
        partial.open("xb").close()
    except OSError as error:
        raise MemoryFileError(f"cannot write {target}: {error.strerror}") from error
    try:
        mode = (target if target.exists() else partial).stat().st_mode  # safetensors would let the owner alone read it
        save_file(held, partial, metadata=metadata)
        with suppress(OSError):  # a file system without permissions
            partial.chmod(mode & 0o777)
        with open(partial, "rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, target)
    except (OSError, SafetensorError) as error:
        raise MemoryFileError(f"could not write {target}: {error}; what was there before is unchanged") from error
    finally:
        partial.unlink(missing_ok=True)


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
        "folder": None if storage.folder is None else os.path.abspath(storage.folder),
        "int8": bool(storage.int8),
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
        file, digest = _save_block(block, used, folder, index, number)
        if used == size:
            block.saved = (folder / file, digest, (folder / file).stat().st_size)
        blocks.append({"number": number, "rows": used, "file": file, "digest": digest})
    return {"start": held.start, "merged": held.merged, "count": held.count, "blocks": blocks}


def block_file(layer: int, number: int, digest: str) -> str:
    """The name of a block's file. It holds part of the digest, so that another content never takes its place."""
    return f"layer-{layer:03d}-block-{number:06d}-{digest[:12]}.safetensors"


def _save_block(block: Block, used: int, folder: Path, layer: int, number: int) -> tuple[str, str]:
    if block.saved is not None:
        file, known, length = block.saved
        if file.parent == folder and file.is_file() and file.stat().st_size == length:
            return file.name, known
    partial = folder / f"layer-{layer:03d}-block-{number:06d}.safetensors.new"
    try:
        _write_whole(partial, {part: rows.first(used) for part, rows in block.rows.items()})
        digest = digest_of(partial)
        final = folder / block_file(layer, number, digest)
        os.replace(partial, final)
    except OSError as error:
        raise MemoryFileError(f"could not write {partial}: {error}; what was there is unchanged") from error
    finally:
        partial.unlink(missing_ok=True)
    slots = block.rows["slots"]
    if isinstance(slots, DiskRows) and used == block.layout.block_rows:
        block.rows["slots"] = mapped(final, block.layout)  # the working file goes with the rows it held
    return final.name, digest


def digest_of(path: Path) -> str:
    digest = hashlib.blake2b(digest_size=16)
    with open(path, "rb") as file:
        while part := file.read(_READ_AT_ONCE):
            digest.update(part)
    return digest.hexdigest()


def mapped(file: Path, layout: Layout) -> DiskRows:
    """The slots of a full block, where they lie in its file."""
    with open(file, "rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        start, _ = json.loads(opened.read(length))["slots"]["data_offsets"]
    return DiskRows(file, layout.slots_shape, layout.slot_dtype, 8 + length + start)
