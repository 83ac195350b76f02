"""The folder of a base: its files, their digests, and whether all of it is there."""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

from remanence.bases.registry import Base, base_folder, base_of
from remanence.errors import CheckpointError, InvalidInputError

Progress = Callable[[str, int, int], None]  # what is being done, bytes done, bytes in all (0: nobody knows)

WEIGHTS = "model.safetensors"
NEEDED = ("config.json", WEIGHTS, "tokenizer.json", "tokenizer_config.json")
FILES = (*NEEDED, "generation_config.json", "special_tokens_map.json", "chat_template.jinja")
MANIFEST = "remanence-base.json"
_FORMAT = "remanence-base-1"
_BLOCK = 2**22


def silent(doing: str, done: int, total: int) -> None:
    """Progress that nobody looks at."""


def find_base(name: str) -> Path:
    """The folder of a base that is on this machine: made by `setup`, or else in the cache of the hub.

    Raises:
        FileNotFoundError: it is in neither; says what to do.
        InvalidInputError: there is no base of this name.
    """
    base, folder = base_of(name), base_folder(name)
    if _whole(folder):
        return folder
    cached = _in_hub_cache(base)
    if cached is None:
        raise FileNotFoundError(f"the model {name} is not on this machine; get it once with: remanence setup {name}")
    return cached


def describe(folder: Path, name: str, origin: str, progress: Progress = silent) -> str:
    """Write what a finished folder holds beside it: digests of its files, and where they are from.

    Returns:
        The digest of the weights.
    """
    files = {file: folder / file for file in FILES if (folder / file).is_file()}
    about = {
        "format": _FORMAT,
        "name": name,
        "origin": origin,
        "weights": weights_digest(folder / WEIGHTS, progress),
        "files": {
            file: {"bytes": path.stat().st_size, "sha256": file_digest(path, progress)} for file, path in files.items()
        },
    }
    (folder / MANIFEST).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
    return str(about["weights"])


def manifest(folder: Path) -> dict[str, Any] | None:
    """What `describe` wrote; None: nothing that can be read."""
    try:
        about = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        readable = about["format"] == _FORMAT and all(
            {"bytes", "sha256"} <= of.keys() for of in about["files"].values()
        )
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return about if readable else None


def verify(folder: Path, progress: Progress = silent) -> str | None:
    """Compare all files with their digests.

    Returns:
        What is wrong with the folder; None: nothing.
    """
    about = manifest(folder)
    if about is None:
        return f"{MANIFEST} is missing or damaged"
    if missing := set(NEEDED) - about["files"].keys():
        return f"{MANIFEST} does not name {missing.pop()}"
    for file, of in about["files"].items():
        path = folder / file
        if not path.is_file():
            return f"{file} is missing"
        if path.stat().st_size != of["bytes"] or file_digest(path, progress) != of["sha256"]:
            return f"{file} is damaged: it differs from its digest"
    return None


def require_shapes(base: Base, folder: Path, given: str) -> None:
    """Raise `InvalidInputError` where a folder holds another model than this base, in whatever weights."""
    try:
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    except ValueError as error:
        raise CheckpointError(f"{given}: its config.json cannot be read: {error}") from error
    for setting, value in base.shapes.items():
        if config.get(setting) != value:
            raise InvalidInputError(
                f"{given} is another model than {base.hub_id}: {setting} is {config.get(setting)}, not {value}"
            )


def file_digest(path: Path, progress: Progress = silent) -> str:
    """SHA-256 of a file."""
    digest, total, done = hashlib.sha256(), path.stat().st_size, 0
    with path.open("rb") as file:
        for block in _blocks(file, total):
            digest.update(block)
            done += len(block)
            progress("checking", done, total)
    return digest.hexdigest()


def weights_digest(path: Path, progress: Progress = silent) -> str:
    """SHA-256 of the tensors of a safetensors file by name, dtype, shape and bytes, in whatever order they lie there.

    Raises:
        CheckpointError: it is no safetensors file.
    """
    digest, total, done = hashlib.sha256(), path.stat().st_size, 0
    with path.open("rb") as file:
        try:
            length = int.from_bytes(file.read(8), "little")
            header = json.loads(file.read(length) if length < total else b"")
            header.pop("__metadata__", None)
            tensors = [(name, of["dtype"], of["shape"], *of["data_offsets"]) for name, of in sorted(header.items())]
        except (ValueError, TypeError, KeyError, AttributeError) as error:
            raise CheckpointError(f"{path} is no safetensors file: {error}") from error
        for name, dtype, shape, start, end in tensors:
            digest.update(f"{name} {dtype} {shape}\n".encode())
            file.seek(8 + length + start)
            for block in _blocks(file, end - start):
                digest.update(block)
                done += len(block)
                progress("checking", done, total)
    return digest.hexdigest()


def _blocks(file: IO[bytes], size: int) -> Iterator[bytes]:
    while size > 0 and (block := file.read(min(size, _BLOCK))):
        size -= len(block)
        yield block


def _whole(folder: Path) -> bool:
    """Whether all files are there in their sizes: a look that takes no time."""
    about = manifest(folder)
    if about is None or not set(NEEDED) <= about["files"].keys():
        return False
    files = [(folder / file, of["bytes"]) for file, of in about["files"].items()]
    return all(path.is_file() and path.stat().st_size == size for path, size in files)


def _in_hub_cache(base: Base) -> Path | None:
    from huggingface_hub import try_to_load_from_cache

    found = [try_to_load_from_cache(base.hub_id, file) for file in NEEDED]
    return Path(str(found[0])).parent if all(isinstance(file, str) for file in found) else None
