"""The layout of a memory's file: a safetensors file whose one metadata entry is canonical JSON. Imports no torch.

That entry holds the header and the digests of all tensors and blocks, and a digest of itself.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from io import BufferedReader
from math import prod
from pathlib import Path
from typing import Any

from remanence.errors import MemoryFileError
from remanence.memory.state import LongTermHeader, MemoryHeader

FORMAT = "remanence-memory-2"
_OLD_FORMAT = "remanence-memory-1"
_ENTRY = "remanence"
_SIZES = {"F64": 8, "I64": 8, "F32": 4, "I32": 4, "F16": 2, "BF16": 2, "I8": 1, "U8": 1, "BOOL": 1}


# What reading and putting together raise when they meet something else than was saved.
DAMAGE = (OSError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError, RuntimeError)


@dataclass(frozen=True)
class Piece:
    """Where one tensor lies in a file: dtype and shape as safetensors writes them, bytes from `start` to `end`."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class BlockEntry:
    """A file beside the memory's own, by its name in the folder, and the digest of its bytes."""

    file: str
    digest: str


@dataclass(frozen=True)
class Envelope:
    """What a memory's file says before its tensors are read.

    Attributes:
        header: of the memory.
        pieces: where its tensors lie.
        tensors: their digests; None in files of version 0.1, which have none.
        blocks: files that belong to it, by the names of a state's blocks.
    """

    header: MemoryHeader
    pieces: Mapping[str, Piece]
    tensors: Mapping[str, str] | None
    blocks: Mapping[str, BlockEntry] = field(default_factory=dict)


def folder_of(path: Path) -> Path:
    """Where the blocks of the memory in a file lie."""
    return path.with_name(path.name + ".longterm")


def canonical(content: Any) -> str:
    """The same text for the same content."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(parts: Iterable[bytes | bytearray | memoryview]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for part in parts:
        digest.update(part)
    return digest.hexdigest()


def metadata_of(header: MemoryHeader, tensors: Mapping[str, str], blocks: Mapping[str, BlockEntry]) -> dict[str, str]:
    """The metadata of a memory's file; `tensors`: the digest of each."""
    content = {
        "format": FORMAT,
        "header": header.to_json(),
        "tensors": dict(tensors),
        "blocks": {name: {"file": block.file, "digest": block.digest} for name, block in blocks.items()},
    }
    return {_ENTRY: canonical({**content, "digest": digest_of([canonical(content).encode()])})}


def read_envelope(path: Path) -> Envelope:
    """Read all of a memory's file but its tensors.

    Raises:
        FileNotFoundError: there is no such file.
        MemoryFileError: it is truncated, damaged or not a memory.
    """
    with opened(path) as file:
        return envelope_in(file)


@contextmanager
def opened(path: Path) -> Iterator[BufferedReader]:
    """A memory's file; whatever shows that it is none raises `MemoryFileError`.

    Raises:
        FileNotFoundError: there is no such file.
    """
    try:
        if path.is_dir():
            raise MemoryFileError(f"{path} is a folder; name the memory's file in it")
        if not path.is_file():
            raise FileNotFoundError(f"there is no memory file at {path}")
        with open(path, "rb") as file:
            yield file
    except (FileNotFoundError, MemoryFileError):
        raise
    except DAMAGE as error:
        raise damaged(path, error) from error


def envelope_in(file: BufferedReader) -> Envelope:
    """As `read_envelope`; raises one of `DAMAGE` where that raises `MemoryFileError`."""
    metadata, pieces = read_layout(file)
    if metadata.get("format") == _OLD_FORMAT:
        return _old(metadata["memory"], pieces)
    if _ENTRY not in metadata:
        raise ValueError("it is a safetensors file, but not one that Memory.save made")
    content = json.loads(metadata[_ENTRY], parse_constant=_refuse)
    digest = content.pop("digest")
    if digest_of([canonical(content).encode()]) != digest:
        raise ValueError("its header was changed since it was saved")
    if content["format"] != FORMAT:
        raise ValueError(f"its format is {content['format']!r}, this version reads {FORMAT!r}")
    blocks = {name: BlockEntry(**block) for name, block in content["blocks"].items()}
    return Envelope(MemoryHeader.from_json(canonical(content["header"])), pieces, content["tensors"], blocks)


def damaged(path: Path, error: Exception) -> MemoryFileError:
    reason = str(error).split("\n")[0] or type(error).__name__
    if isinstance(error, KeyError):
        reason = f"it lacks {error}"
    elif isinstance(error, OSError):
        reason = error.strerror or reason
    return MemoryFileError(
        f"{path} is truncated, damaged or not a memory: {reason}. Go back to an older copy of it, if there is one"
    )


def read_layout(file: BufferedReader) -> tuple[dict[str, str], dict[str, Piece]]:
    """Metadata and pieces of a safetensors file, which have to fill it without gaps. Raises one of `DAMAGE`."""
    size = file.seek(0, 2)
    file.seek(0)
    length = int.from_bytes(file.read(8), "little")
    if length > size - 8:
        raise ValueError("it is shorter than it says")
    content = json.loads(file.read(length).decode(), parse_constant=_refuse)
    metadata = content.pop("__metadata__", {})
    pieces, at = {}, 8 + length
    for name, about in sorted(content.items(), key=lambda item: item[1]["data_offsets"]):
        start, end = (8 + length + offset for offset in about["data_offsets"])
        shape = tuple(about["shape"])
        fits = all(type(edge) is int and edge >= 0 for edge in shape)
        if not fits or start != at or end - start != prod(shape) * _SIZES[about["dtype"]]:
            raise ValueError(f"its tensor {name} does not fit")
        pieces[name] = Piece(about["dtype"], shape, start, end)
        at = end
    if at != size:
        raise ValueError(f"it has {size} bytes, {at} were expected")
    return metadata, pieces


def layout_bytes(tensors: Mapping[str, tuple[str, tuple[int, ...]]], metadata: Mapping[str, str] | None) -> bytes:
    """What a safetensors file begins with; `tensors`: dtype and shape of each, in the order in which they follow."""
    content: dict[str, Any] = {} if metadata is None else {"__metadata__": dict(metadata)}
    at = 0
    for name, (dtype, shape) in tensors.items():
        end = at + prod(shape) * _SIZES[dtype]
        content[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = canonical(content).encode()
    text += b" " * (-len(text) % 8)  # tensors are aligned
    return len(text).to_bytes(8, "little") + text


def _refuse(constant: str) -> None:
    raise ValueError(f"it holds the number {constant}")


def _old(text: str, pieces: Mapping[str, Piece]) -> Envelope:
    """A file of version 0.1: other names, each chunk a write of its own, and no digests but those of blocks."""
    about = json.loads(text, parse_constant=_refuse)
    blocks: dict[str, BlockEntry] = {}
    if (old := about.pop("longterm", None)) is not None:
        rules, frequency = old["rules"], None
        if rules["policy"] == "recall_frequency":
            settings = {"merge_after": rules["merge_after"], "initial": rules["initial_frequency"]}
            frequency = {
                "settings": {**settings, "decay": rules["decay"]},
                "waited": old["waited"],
                "merged": [layer["merged"] for layer in old["layers"]],
            }
        for index, layer in enumerate(old["layers"]):
            for block in layer["blocks"]:
                name = LongTermHeader.block_name(index, block["number"])
                blocks[name] = BlockEntry(block["file"], block["digest"])
        about["longterm"] = {
            "rules": {
                "retrieved": rules["retrieved"],
                "capacity": rules["capacity"],
                "cross_layer_prior": rules.get("agreement", 0.0),
            },
            "storage": {"tier": old["tier"], "int8": old["int8"], "folder": old.get("folder")},
            "clock": old["clock"],
            "rows": old["rows"],
            "layers": [{"start": layer["start"], "count": layer["count"]} for layer in old["layers"]],
            "frequency": frequency,
        }
    return Envelope(MemoryHeader.from_json(canonical({"model_name": "", **about})), pieces, None, blocks)
