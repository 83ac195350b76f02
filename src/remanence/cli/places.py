"""Places for what a command makes, tried before the long work and not at the end of it."""

import tempfile
from pathlib import Path

from remanence.errors import InvalidInputError


def require_writable(path: Path) -> None:
    """A file that is to be made, or written over.

    Raises:
        FileNotFoundError: there is no folder for it.
        InvalidInputError: it is a folder, or the system does not let it be written.
    """
    if path.is_dir():
        raise InvalidInputError(f"{path} is a folder; name a file in it")
    if not path.parent.is_dir():
        raise FileNotFoundError(f"there is no folder {path.parent} to put {path.name} into")
    if not path.exists():
        _try(path.parent, path)
    elif path.is_file():  # a pipe or a terminal is not tried
        try:
            path.open("ab").close()
        except OSError as error:
            raise InvalidInputError(f"cannot write {path}: {error.strerror}; name another file") from error


def require_input(path: Path) -> None:
    """A file that is to be read.

    Raises:
        FileNotFoundError: there is none.
        InvalidInputError: it is a folder.
    """
    if path.is_dir():
        raise InvalidInputError(f"{path} is a folder; name a file in it")
    if not path.exists():
        raise FileNotFoundError(f"there is no file {path}")


def require_memory_place(path: Path) -> None:
    """A memory, which replaces its file, and may have a folder beside it."""
    from remanence.memory.envelope import folder_of

    require_writable(path)
    _try(path.parent, path)
    beside = folder_of(path)
    if beside.exists():
        _try(beside, path)


def require_output_folder(path: Path) -> None:
    """A folder, which is made if it is not there."""
    _try(next(folder for folder in (path, *path.parents) if folder.exists()), path)


def _try(folder: Path, target: Path) -> None:
    try:
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        reason = f"nothing can be put into {folder} ({error.strerror})"
        raise InvalidInputError(f"cannot write {target}: {reason}; name another place") from error
