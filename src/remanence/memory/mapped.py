"""Tensors in nameless files, which go when the last tensor that uses them goes, or the process.

Such a tensor holds no open file, and `let_go` gives back the memory that its pages take.
"""

import ctypes
import mmap
import os
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from remanence.errors import MemoryFileError

_libc = ctypes.CDLL(None) if hasattr(mmap, "MADV_DONTNEED") else None
_madvise = None if _libc is None else _libc.madvise
if _madvise is not None:
    _madvise.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)


def on_disk(folder: Path | None, shape: torch.Size, dtype: torch.dtype) -> Tensor:
    """An empty tensor in a new file, for which all the room is taken at once.

    Raises:
        MemoryFileError: there is no room for it, or no right to make it.
    """
    size = dtype.itemsize * shape.numel()
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            allocate(file.fileno(), size)
            storage = _mapped(file.fileno(), size)
    except (OSError, RuntimeError) as error:
        raise MemoryFileError(
            f"no room for slots in {folder or tempfile.gettempdir()}: {getattr(error, 'strerror', error)}; nothing was "
            f"changed. Free {-(-size // 2**20)} MiB there, or keep the memory in another folder or tier"
        ) from error
    tensor = torch.empty(0, dtype=dtype).set_(storage).view(shape)
    _advise(tensor, "MADV_RANDOM")
    return tensor


def _mapped(handle: int, size: int) -> torch.UntypedStorage:
    """All of a file. Torch opens it again and keeps no handle; `mmap` would keep one, and a process has few."""
    if os.path.isdir("/dev/fd"):
        storage = torch.UntypedStorage.from_file(f"/dev/fd/{handle}", True, size)
        assert isinstance(storage, torch.UntypedStorage)
        return storage
    return torch.frombuffer(mmap.mmap(handle, size), dtype=torch.uint8).untyped_storage()


def allocate(handle: int, size: int) -> None:
    """Take the room now: a mapped file that finds the disk full later kills the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(handle, 0, size)
        return
    for start in range(0, size, 2**20):
        os.pwrite(handle, bytes(min(2**20, size - start)), start)


def let_go(tensor: Tensor) -> None:
    """Give the memory back in which pages of a tensor on disk lie; they are read again when they are looked at."""
    _advise(tensor, "MADV_DONTNEED")


def _advise(tensor: Tensor, advice: str) -> None:
    if _madvise is not None:
        _madvise(tensor.data_ptr(), tensor.untyped_storage().nbytes(), getattr(mmap, advice))
