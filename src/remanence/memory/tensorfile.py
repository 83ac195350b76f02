"""Tensors in a safetensors file. Writing leaves no file under another name than the given one, whatever ends it."""

import os
from collections.abc import Iterator, Mapping
from io import BufferedReader
from pathlib import Path

import torch
from torch import Tensor

from remanence.memory.envelope import Piece, digest_of, layout_bytes

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
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}


def write(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> str:
    """Write a new file and wait until it is on disk; returns the digest of its bytes.

    Raises:
        OSError: the file is there already, or there is no room.
    """
    order = sorted(tensors, key=lambda name: (-tensors[name].dtype.itemsize, name))  # so that all are aligned
    shapes = {name: (_NAMES[tensors[name].dtype], tuple(tensors[name].shape)) for name in order}

    def written() -> Iterator[bytes | memoryview]:
        head = layout_bytes(shapes, metadata)
        file.write(head)
        yield head
        for name in order:
            content = _bytes(tensors[name])
            file.write(content)
            yield content

    with open(path, "xb") as file:
        digest = digest_of(written())
        file.flush()
        os.fsync(file.fileno())
    return digest


def contents_of(file: BufferedReader, pieces: Mapping[str, Piece]) -> dict[str, bytearray]:
    """The bytes of all tensors, in the order of the file. Raises ValueError where it ends too early."""
    contents = {}
    for name, piece in pieces.items():
        contents[name] = bytearray(piece.end - piece.start)
        file.seek(piece.start)
        if file.readinto(contents[name]) != len(contents[name]):
            raise ValueError(f"tensor {name} is cut short")
    return contents


def tensors_of(contents: Mapping[str, bytearray], pieces: Mapping[str, Piece]) -> dict[str, Tensor]:
    """Tensors that own their bytes."""
    tensors = {}
    for name, content in contents.items():
        dtype = _DTYPES[pieces[name].dtype]
        flat = torch.frombuffer(content, dtype=dtype) if content else torch.empty(0, dtype=dtype)
        tensors[name] = flat.view(pieces[name].shape)
    return tensors


def check(contents: Mapping[str, bytearray], pieces: Mapping[str, Piece], digests: Mapping[str, str]) -> None:
    """Raise ValueError where a tensor is missing or was changed."""
    if digests.keys() != pieces.keys():
        raise ValueError("it does not hold the tensors that it names")
    for name, piece in pieces.items():
        if _digest(piece.dtype, piece.shape, contents[name]) != digests[name]:
            raise ValueError(f"tensor {name} was changed since it was saved")


def tensor_digest(tensor: Tensor) -> str:
    """Of a tensor's dtype, shape and bytes."""
    return _digest(_NAMES[tensor.dtype], tuple(tensor.shape), _bytes(tensor))


def _digest(dtype: str, shape: tuple[int, ...], content: bytes | bytearray | memoryview) -> str:
    return digest_of([f"{dtype} {list(shape)} ".encode(), content])


def _bytes(tensor: Tensor) -> bytes | memoryview:
    flat = tensor.detach().cpu().contiguous().reshape(-1)
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""
