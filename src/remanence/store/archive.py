"""The file that a memory is exported to: a zip of its ledger as JSON lines, what it is, and perhaps a snapshot.

Whoever made it is not trusted: all of it is checked as it is read, and nothing in it is run.
"""

import base64
import binascii
import json
import re
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from remanence.errors import MemoryFileError
from remanence.store.rows import Content

FORMAT = 1
MANIFEST, LEDGER, SNAPSHOT = "manifest.json", "ledger.jsonl", "memory.safetensors"
BESIDE = f"{SNAPSHOT}.longterm/"  # slots that a snapshot keeps in files of their own
_BLOCK = re.compile(rf"{re.escape(BESIDE)}(layer-\d+-block-\d+|write-\d+)-[0-9a-f]{{12}}\.safetensors")
_LINE = 2**26  # bytes of one row
_MANIFEST = 2**22

_Count = Annotated[int, Field(ge=0, lt=2**63)]
_Token = Annotated[int, Field(ge=0, lt=2**31)]
_Short = Annotated[str, Field(max_length=200)]
_STRICT = ConfigDict(strict=True, extra="forbid", frozen=True, allow_inf_nan=False)


class Settings(BaseModel):
    """What a replay begins with."""

    model_config = _STRICT

    model: Annotated[str, Field(min_length=1, max_length=1000)]
    writer: Literal["text", "learned"]
    seed: int
    date: str | None = None
    head: list[_Token] | None = None

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if self.writer == "text":
            if self.head is None or self.date is None:
                raise ValueError("a text memory has a head and a date")
            date.fromisoformat(self.date)
        return self


class Kept(BaseModel):
    """The snapshot in the file: at which row it was taken, and the writes in it, as `history.ranges` has them."""

    model_config = _STRICT

    seq: _Count
    holds: Annotated[str, Field(pattern=r"^\d+(-\d+)?(,\d+(-\d+)?)*$")]


class Manifest(BaseModel):
    """What a memory is, besides its rows; `rows`: how many there are."""

    model_config = _STRICT

    format: int
    name: _Short
    settings: Settings
    fingerprint: _Short | None
    metadata: dict[str, Any]
    created: AwareDatetime
    expires_at: AwareDatetime | None
    rows: _Count
    snapshot: Kept | None = None


class Line(BaseModel):
    """A row of the ledger; `ids` in base64."""

    model_config = _STRICT

    seq: _Count
    kind: Literal["write", "forget", "undo", "expire", "redact"]
    target: _Count | None
    text: str | None
    ids: str | None
    cuts: list[tuple[_Count, Annotated[int, Field(ge=-1)]]] | None
    source: str | None
    metadata: dict[str, Any]
    actor: _Short | None
    idempotency_key: _Short | None
    sha256: str | None
    stamp: dict[str, Any] | None
    expires_at: AwareDatetime | None
    redacted_at: AwareDatetime | None
    created: AwareDatetime

    def content(self) -> Content | None:
        """What a write says; None where it is no write, or was redacted.

        Raises:
            ValueError: its parts do not fit together.
        """
        if self.kind != "write" or self.redacted_at is not None:
            if (self.text, self.ids, self.cuts) != (None, None, None):
                raise ValueError("it says something that it should not")
            return None
        if self.ids is None or self.cuts is None:
            raise ValueError("it is a write without token ids")
        try:
            ids = base64.b64decode(self.ids, validate=True)
        except binascii.Error as error:
            raise ValueError("its ids are not base64") from error
        content = Content(self.text, ids, tuple(self.cuts))
        if problem := unfitting(content, self.sha256):
            raise ValueError(problem)
        return content


def unfitting(content: Content, sha256: str | None) -> str | None:
    """What does not fit together in a write; None: all of it does."""
    if not content.ids or len(content.ids) != 4 * content.tokens or min(tokens for tokens, _ in content.cuts) < 1:
        return "its token ids do not fit its cuts"
    if content.text is not None:
        said = [characters for _, characters in content.cuts]
        if sum(max(0, one) for one in said) != len(content.text) and min(said) >= 0:
            return "its text does not fit its cuts"
        if "\0" in content.text:
            return "its text holds NUL characters"
    if content.digest != sha256:
        return "its token ids do not fit their digest"
    return None


class Archive:
    """An exported memory, opened to be read. Attributes: manifest: what it says of itself."""

    def __init__(self, path: Path, file: zipfile.ZipFile, most_bytes: int) -> None:
        self._path, self._file = path, file
        names = [info.filename for info in file.infolist()]
        odd = [name for name in names if name not in (MANIFEST, LEDGER, SNAPSHOT) and not _BLOCK.fullmatch(name)]
        if odd or len(set(names)) < len(names):
            raise ValueError(f"it holds {(odd or names)[0]!r:.80}, which is no part of a memory, or a part twice")
        if lacking := [name for name in (MANIFEST, LEDGER) if name not in names]:
            raise ValueError(f"it lacks {lacking[0]}")
        size = sum(info.file_size for info in file.infolist())
        if size > most_bytes or file.getinfo(MANIFEST).file_size > _MANIFEST:
            raise ValueError(f"unpacked it has {size:,} bytes, and {most_bytes:,} are allowed")
        content = file.read(MANIFEST)
        version = json.loads(content).get("format")
        if version != FORMAT:
            raise ValueError(
                f"its format is {version!r:.40}, this version reads {FORMAT}; update with pip if it is newer"
            )
        self.manifest = Manifest.model_validate_json(content)
        if (SNAPSHOT in names) != (self.manifest.snapshot is not None) or (
            SNAPSHOT not in names and any(name.startswith(BESIDE) for name in names)
        ):
            raise ValueError("it has a snapshot that it does not speak of, or the other way round")

    def lines(self) -> Iterator[tuple[Line, Content | None]]:
        """All rows with what they say, oldest first, each checked. Raises MemoryFileError."""
        with named(self._path):
            kinds = [""]
            with self._file.open(LEDGER) as file:
                while text := file.readline(_LINE):
                    number = len(kinds)
                    if not text.endswith(b"\n"):
                        raise ValueError(f"row {number} is cut or too long")
                    try:
                        line = Line.model_validate_json(text)
                        _check_place(line, kinds)
                        content = line.content()
                    except ValueError as error:
                        raise ValueError(f"row {number}: {first_line(error)}") from error
                    kinds.append(line.kind)
                    yield line, content
            if len(kinds) - 1 != self.manifest.rows:
                raise ValueError(f"it has {len(kinds) - 1} rows, and speaks of {self.manifest.rows}")

    def extract_snapshot(self, target: Path) -> None:
        """Write the snapshot to a file, and what lies beside it. Raises MemoryFileError."""
        with named(self._path):
            for info in self._file.infolist():
                if info.filename.startswith(SNAPSHOT):
                    place = target.with_name(target.name + info.filename.removeprefix(SNAPSHOT))
                    place.parent.mkdir(parents=True, exist_ok=True)
                    with self._file.open(info) as packed, open(place, "wb") as file:
                        while part := packed.read(2**20):
                            file.write(part)


def _check_place(line: Line, kinds: Sequence[str]) -> None:
    """Raise ValueError where a row does not follow those before it, whose kinds these are."""
    if line.seq != len(kinds):
        raise ValueError(f"its number is {line.seq}")
    if problem := misplaced(line.kind, line.seq, line.target, kinds):
        raise ValueError(problem)


def misplaced(kind: str, seq: int, target: int | None, kinds: Sequence[str]) -> str | None:
    """What is wrong with the row that another is about; None: nothing.

    Args:
        kinds: of the rows before it, by their numbers; there is no row 0.
    """
    if target is None:
        return None if kind == "write" else "it is about no row"
    if not 1 <= target < seq:
        return f"it is about row {target}, which is not before it"
    if kind != "undo" and kinds[target] != "write":
        return f"it is about row {target}, which is no write"
    return None


@contextmanager
def opened(path: Path, most_bytes: int) -> Iterator[Archive]:
    """An exported memory.

    Raises:
        FileNotFoundError: there is no such file.
        MemoryFileError: it is none, or damaged; says what is wrong with it.
    """
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    with named(path):
        file = zipfile.ZipFile(path)
    with file:
        with named(path):
            archive = Archive(path, file, most_bytes)
        yield archive


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Whatever shows that a file is no exported memory raises `MemoryFileError`, on one line."""
    try:
        yield
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, NotImplementedError) as error:
        raise _damaged(path, error) from error
    except (zipfile.BadZipFile, zlib.error, EOFError, RuntimeError) as error:
        raise _damaged(path, error) from error


def _damaged(path: Path, error: Exception) -> MemoryFileError:
    return MemoryFileError(f"{path} is cut, damaged, or no memory that a store exported: {first_line(error)}")


def first_line(error: Exception) -> str:
    if isinstance(error, ValidationError):
        first = error.errors()[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}".removeprefix(": ")
    return str(error).partition("\n")[0] or type(error).__name__
