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
from torch import Tensor

from remanence.errors import CorruptMemoryError, InvalidInputError, MemoryConflictError, MemoryFileError
from remanence.memory.envelope import (
    DAMAGE,
    BlockEntry,
    damaged,
    digest_of,
    envelope_in,
    folder_of,
    metadata_of,
    opened,
    read_layout,
)
from remanence.memory.state import FrozenBlock, MemoryState, Source
from remanence.memory.tensorfile import check, contents_of, tensor_digest, tensors_of, write

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

Version = tuple[int, int, int]  # inode, bytes, time of change: tells a file from the one that takes its place
Made = TypeVar("Made")

_BLOCK = r"(layer-\d+-block-\d+|write-\d+)"
_BLOCK_FILE = re.compile(rf"{_BLOCK}-[0-9a-f]{{12}}\.safetensors|{_BLOCK}\.safetensors\.new|\.{_BLOCK}\..*partial")


def resolved(path: str | os.PathLike[str]) -> Path:
    """The file that a path leads to, through links; worked out once, so that a link stays one."""
    return Path(os.path.realpath(path))


def version_of(file: Path | int) -> Version | None:
    """Of a file, given by path or handle. None: there is no file, which is a version like any other."""
    try:
        about = os.stat(file)
    except OSError:
        return None
    return about.st_ino, about.st_size, about.st_mtime_ns


def load(path: Path, make: Callable[[MemoryState], Made]) -> tuple[Made, Version | None]:
    """What `make` makes of the state in a file, and the file's version. The state's tensors are nobody else's.

    Raises:
        FileNotFoundError: there is no such file.
        MemoryFileError: it, or a file of its slots, is missing, truncated, damaged or foreign.
        CorruptMemoryError: `make` found a slot that is not finite.
    """
    while True:
        with opened(path) as file:
            version = version_of(file.fileno())
            envelope = envelope_in(file)
            contents = contents_of(file, envelope.pieces)
            if envelope.tensors is not None:
                check(contents, envelope.pieces, envelope.tensors)
            tensors = tensors_of(contents, envelope.pieces)
        blocks = _BlockFiles(folder_of(path), envelope.blocks)
        try:
            return make(MemoryState(envelope.header, tensors, blocks)), version
        except (InvalidInputError, torch.OutOfMemoryError):
            raise
        except DAMAGE as error:
            if version_of(path) != version:
                continue  # another process saved meanwhile, and cleared blocks away that the file of before named
            if isinstance(error, MemoryFileError):
                raise
            if isinstance(error, CorruptMemoryError):
                raise CorruptMemoryError(f"{path}: {error}") from error
            raise damaged(path, error) from error


class _BlockFiles(Mapping[str, Mapping[str, Tensor]]):
    """The blocks of a state in a folder, each read and checked when it is looked up."""

    def __init__(self, folder: Path, entries: Mapping[str, BlockEntry]) -> None:
        self._folder, self._entries = folder, entries

    def __getitem__(self, name: str) -> Mapping[str, Tensor]:
        entry = self._entries[name]
        path = self._folder / entry.file
        try:
            if Path(entry.file).name != entry.file or not path.is_file():
                raise MemoryFileError(
                    f"{path}, which holds slots of this memory, is missing; nothing was changed. A memory is its file "
                    f"and the folder {self._folder.name} beside it: copy or move both"
                )
            with open(path, "rb") as file:
                version, (_, pieces) = version_of(file.fileno()), read_layout(file)
                contents = contents_of(file, pieces)
                file.seek(0)
                head = file.read(min((piece.start for piece in pieces.values()), default=0))
                if digest_of([head, *contents.values()]) != entry.digest:
                    raise ValueError("it was cut or changed since it was saved")
                tensors = tensors_of(contents, pieces)
        except MemoryFileError:
            raise
        except DAMAGE as error:
            raise damaged(path, error) from error
        block = FrozenBlock(tensors, Source())
        _saved[block.source] = _Saved(path, version, tuple(sorted(tensors)), entry)
        return block

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)


@dataclass(frozen=True)
class _Saved:
    """Where a frozen block was saved: its file, as it was then, and the names of its tensors."""

    file: Path
    version: Version | None
    names: tuple[str, ...]
    entry: BlockEntry


_saved: "weakref.WeakKeyDictionary[Source, _Saved]" = weakref.WeakKeyDictionary()


def save(state: MemoryState, target: Path, versions: dict[Path, Version | None], *, overwrite: bool) -> None:
    """Write a state, whole or not at all.

    Args:
        versions: of the files that this state goes on from; that of the target is entered as soon as it is replaced.
        overwrite: write whatever version is there.

    Raises:
        MemoryFileError: a file could not be written.
        MemoryConflictError: another version is there.
    """
    try:
        with _alone(target.parent):
            _save(state, target, versions, overwrite)
    except OSError as error:
        reason = f"{error.strerror} ({error.filename})" if error.filename else error.strerror or error
        raise MemoryFileError(f"could not write {target}: {reason}; what was there before is unchanged") from error


def _save(state: MemoryState, target: Path, versions: dict[Path, Version | None], overwrite: bool) -> None:
    folder, before = folder_of(target), version_of(target)
    if target.is_dir():
        raise MemoryFileError(f"{target} is a folder; name a file in it")
    if not overwrite and before not in (versions.get(target), None):
        raise MemoryConflictError(
            f"{target} was saved by another since this memory was made, loaded from it or saved to it; nothing was "
            "changed. Load it and write again, or save under another name, or give up what was saved there "
            "meanwhile with save(path, overwrite=True)"
        )
    there, blocks = _names(folder), dict[str, BlockEntry]()
    try:
        if state.blocks:
            folder.mkdir(exist_ok=True)
            blocks = {name: _save_block(name, block, folder) for name, block in state.blocks.items()}
            _names_to_disk(folder)  # before the file that names them
        digests = {name: tensor_digest(tensor) for name, tensor in state.tensors.items()}
        with _partial(target) as partial:
            write(partial, state.tensors, metadata_of(state.header, digests, blocks))
            if before is not None:
                with suppress(OSError):  # a file system without permissions
                    partial.chmod(target.stat().st_mode & 0o777)
            os.replace(partial, target)
    finally:
        after = version_of(target)
        if after == before:
            _clear(folder, keep=there)
        else:
            versions[target] = after
    _names_to_disk(target.parent)
    _clear(folder, keep={block.file for block in blocks.values()})
    left = re.compile(rf"\.{re.escape(target.name)}\.[0-9a-f]{{8}}\.partial")  # by saves that were killed
    for name in filter(left.fullmatch, _names(target.parent)):
        with suppress(OSError):
            (target.parent / name).unlink()


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return set()


def _clear(folder: Path, keep: set[str]) -> None:
    """Remove files of blocks, and the folder if nothing is left. What cannot be removed harms nothing."""
    for name in filter(_BLOCK_FILE.fullmatch, _names(folder) - keep):
        with suppress(OSError):
            (folder / name).unlink()
    with suppress(OSError):
        folder.rmdir()


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """One at a time saves in a folder: another would clear away blocks that no file names yet."""
    if fcntl is None:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # a process that was forked meanwhile has the handle too
        os.close(handle)


def _names_to_disk(folder: Path) -> None:
    """Wait until the names in a folder would outlive a power cut, on a file system that can say so."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def _partial(final: Path) -> Iterator[Path]:
    """A name for a new file beside the final one; the file is gone afterwards if it was not renamed."""
    partial = final.with_name(f".{final.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)


def _save_block(name: str, block: Mapping[str, Tensor], folder: Path) -> BlockEntry:
    """Write a block, if the folder lacks it."""
    source = block.source if isinstance(block, FrozenBlock) else Source()
    names, known = tuple(sorted(block)), _saved.get(source)
    if known is not None and (known.file.parent, known.names) == (folder, names):
        there = version_of(known.file)
        if there is not None and there == known.version:
            return known.entry
    with _partial(folder / name) as partial:
        digest = write(partial, block)
        final = folder / f"{name}-{digest[:12]}.safetensors"  # so that another content never takes its place
        os.replace(partial, final)
    entry = BlockEntry(final.name, digest)
    _saved[source] = _Saved(final, version_of(final), names, entry)
    return entry
