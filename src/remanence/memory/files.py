"""Files of a memory: a state to files and back. Knows no `Memory`.

One safetensors file, and beside it a folder with a file for each block of slots. The file names the blocks and their
digests, and is replaced last, in one step: whatever cuts a save short, the old file and the blocks that it names are
still there.
"""

import os
import re
import secrets
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from remanence.errors import CorruptMemoryError, MemoryConflictError, MemoryFileError
from remanence.memory.envelope import (
    BlockEntry,
    Piece,
    damaged,
    digest_of,
    folder_of,
    metadata_of,
    read_envelope,
    read_layout,
)
from remanence.memory.state import FrozenBlock, MemoryState

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

Version = tuple[int, int, int]  # inode, bytes, time of change: tells a file from the one that takes its place
Made = TypeVar("Made")

_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_BLOCK_FILE = re.compile(r"(layer-\d+-block-\d+|write-\d+)(-[0-9a-f]{12}\.safetensors|\.new)|\..*\.partial")


def resolved(path: str | os.PathLike[str]) -> Path:
    """The file that a path leads to, through links; worked out once, so that a link stays one."""
    return Path(os.path.realpath(path))


def version_of(path: Path) -> Version | None:
    """None: there is no file, which is a version like any other."""
    try:
        about = path.stat()
    except OSError:
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns


def load(path: Path, make: Callable[[MemoryState], Made]) -> tuple[Made, Version | None]:
    """What `make` makes of the state in a file, and the file's version. The state's tensors are nobody else's.

    Raises:
        FileNotFoundError: there is no such file.
        MemoryFileError: it, or a file of its slots, is missing, truncated, damaged or foreign.
    """
    while True:
        version = version_of(path)
        try:
            return make(_read(path)), version
        except (MemoryFileError, CorruptMemoryError) as error:
            if version_of(path) == version:
                if str(path) in str(error) or isinstance(error, CorruptMemoryError):
                    raise
                raise damaged(path, error) from error
            # Another process saved meanwhile, and cleared blocks away that the file of before named.


def _read(path: Path) -> MemoryState:
    envelope = read_envelope(path)
    try:
        with open(path, "rb") as file:
            tensors = _read_tensors(file.fileno(), envelope.pieces, envelope.tensors)
    except (OSError, ValueError, LookupError) as error:
        raise damaged(path, error) from error
    return MemoryState(envelope.header, tensors, _BlockFiles(folder_of(path), envelope.blocks))


def _read_tensors(handle: int, pieces: Mapping[str, Piece], digests: Mapping[str, str] | None) -> dict[str, Tensor]:
    """Tensors that own their bytes, checked against their digests.

    Raises:
        ValueError, LookupError: one is missing or was changed.
    """
    if digests is not None and digests.keys() != pieces.keys():
        raise ValueError("it does not hold the tensors that it names")
    tensors = {}
    for name, piece in pieces.items():
        content = bytearray(piece.end - piece.start)
        if os.preadv(handle, [content], piece.start) != len(content):
            raise ValueError(f"tensor {name} is cut short")
        if digests is not None and _digest(piece.dtype, piece.shape, memoryview(content)) != digests[name]:
            raise ValueError(f"tensor {name} was changed since it was saved")
        dtype = _DTYPES[piece.dtype]
        tensors[name] = (torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)).view(
            piece.shape
        )
    return tensors


def _digest(dtype: str, shape: tuple[int, ...], content: bytes | memoryview) -> str:
    return digest_of([f"{dtype} {list(shape)} ".encode(), content])


def tensor_digest(tensor: Tensor) -> str:
    """Of a tensor's dtype, shape and bytes."""
    name = next(name for name, dtype in _DTYPES.items() if dtype == tensor.dtype)
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return _digest(name, tuple(tensor.shape), flat.view(torch.uint8).numpy().data if flat.numel() else b"")


class _BlockFiles(Mapping[str, Mapping[str, Tensor]]):
    """The blocks of a state in a folder, each read and checked when it is looked up."""

    def __init__(self, folder: Path, entries: Mapping[str, BlockEntry]) -> None:
        self._folder, self._entries = folder, entries

    def __getitem__(self, name: str) -> Mapping[str, Tensor]:
        entry = self._entries[name]
        path = self._folder / entry.file
        if Path(entry.file).name != entry.file or not path.is_file():
            raise MemoryFileError(
                f"{path}, which holds slots of this memory, is missing; nothing was changed. A memory is its file and "
                f"the folder {self._folder.name} beside it: copy or move both"
            )
        try:
            with open(path, "rb") as file:
                if _file_digest(file.fileno()) != entry.digest:
                    raise MemoryFileError(
                        f"{path}, which holds slots of this memory, was cut or changed since it was saved; put the "
                        "saved one back, or load an older copy of the memory"
                    )
                return _read_tensors(file.fileno(), read_layout(file)[1], None)
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            if isinstance(error, MemoryFileError):
                raise
            raise damaged(path, error) from error

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


def _file_digest(handle: int) -> str:
    def parts() -> Iterator[bytes]:
        at = 0
        while part := os.pread(handle, 2**20, at):
            yield part
            at += len(part)

    return digest_of(parts())


@dataclass(frozen=True)
class _Saved:
    """Where a frozen block was saved: its file, as it was then, and the names of its tensors."""

    file: Path
    version: Version | None
    names: tuple[str, ...]
    entry: BlockEntry


_saved: "weakref.WeakKeyDictionary[object, _Saved]" = weakref.WeakKeyDictionary()  # by the source of a block


def save(state: MemoryState, target: Path, known: Version | None, *, overwrite: bool) -> Version | None:
    """Write a state, whole or not at all; returns the version of the file.

    Args:
        known: the version of the file that this state goes on from; None: there was none.
        overwrite: write whatever version is there.

    Raises:
        MemoryFileError: a file could not be written.
        MemoryConflictError: another version is there.
    """
    folder = folder_of(target)
    with _alone(target.parent):
        version = version_of(target)
        if not overwrite and version not in (known, None):
            raise MemoryConflictError(
                f"{target} was saved by another since this memory was made, loaded from it or saved to it; nothing was "
                "changed. Load it and write again, or save under another name, or give up what was saved there "
                "meanwhile with save(path, overwrite=True)"
            )
        before = {file.name for file in folder.iterdir()} if folder.is_dir() else None
        try:
            blocks = _save_blocks(state.blocks, folder) if state.header.longterm or state.blocks else {}
            digests = {name: tensor_digest(tensor) for name, tensor in state.tensors.items()}
            _write_whole(target, state.tensors, metadata_of(state.header, digests, blocks))
        except BaseException:
            if version_of(target) == version:
                _clear(folder, keep=before or set())
                if before is None:
                    with suppress(OSError):
                        folder.rmdir()
            raise
        _clear(folder, keep={block.file for block in blocks.values()})
        for left in target.parent.glob(f".{_escaped(target.name)}.*.partial"):  # of saves that were killed
            with suppress(OSError):
                left.unlink()
        return version_of(target)


def _escaped(name: str) -> str:
    return re.sub(r"([*?[])", r"[\1]", name)


def _clear(folder: Path, keep: set[str]) -> None:
    for file in folder.glob("*") if folder.is_dir() else ():
        if _BLOCK_FILE.fullmatch(file.name) and file.name not in keep:
            with suppress(OSError):  # what is left over harms nothing
                file.unlink()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One at a time saves in a folder: another would clear away blocks that no file names yet."""
    if fcntl is None or not folder.is_dir():
        yield
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except OSError as error:
        raise MemoryFileError(f"cannot write in {folder}: {error.strerror}") from error
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


def _save_blocks(blocks: Mapping[str, Mapping[str, Tensor]], folder: Path) -> dict[str, BlockEntry]:
    """Write the blocks that the folder lacks.

    Raises:
        MemoryFileError: the disk is full, or the folder cannot be made.
    """
    try:
        folder.mkdir(exist_ok=True)
    except OSError as error:
        raise MemoryFileError(f"cannot make {folder}: {error.strerror}") from error
    return {name: _save_block(name, block, folder) for name, block in blocks.items()}


def _save_block(name: str, block: Mapping[str, Tensor], folder: Path) -> BlockEntry:
    source = block.source if isinstance(block, FrozenBlock) else None
    known = None if source is None else _saved.get(source)
    if known is not None and known.file.parent == folder and known.names == tuple(sorted(block)):
        there = version_of(known.file)
        if there is not None and there == known.version:
            return known.entry
    partial = folder / f"{name}.new"
    try:
        _write_whole(partial, block)
        with open(partial, "rb") as file:
            digest = _file_digest(file.fileno())
        final = folder / f"{name}-{digest[:12]}.safetensors"  # so that another content never takes its place
        os.replace(partial, final)
    except OSError as error:
        raise MemoryFileError(f"could not write {partial}: {error}; what was there is unchanged") from error
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
    entry = BlockEntry(final.name, digest)
    if source is not None:
        _saved[source] = _Saved(final, version_of(final), tuple(sorted(block)), entry)
    return entry
