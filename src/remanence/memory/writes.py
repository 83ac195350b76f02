"""The table of writes: which text made which slots. Imports no torch."""

import json
from collections.abc import Container, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from remanence.errors import InvalidInputError
from remanence.memory.undo import Undo

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class WriteRecord:
    """One write: one text given to a memory.

    Attributes:
        id: counts up with every write of a memory; never given to another.
        tokens: of the text.
        first_serial, slots: a learned memory's slots are numbered as they are made; these are the first number and
            how many were made in each layer. 0 for text memories, whose chunks know their write.
        time: when it was written, UTC; None in memories of older files.
        source: where the text came from, such as a file name.
        metadata: whatever the caller wants to find again, JSON.
        text: where it is kept.
    """

    id: int
    tokens: int
    first_serial: int = 0
    slots: int = 0
    time: datetime | None = None
    source: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    text: str | None = None


@dataclass(frozen=True)
class Receipt:
    """What a call did to one memory.

    Attributes:
        id: of the write.
        tokens: of the text.
        chunks: forward passes that the text took, or chunks that were forgotten.
        evicted: per chunk, ranks `[L, K]` of the pool's slots that it evicted; None for a pool's first (learned).
        exact: of `forget`: slots and scores are now those of a memory that was never told this write. False where
            something was dropped for good after it, which such a memory might still hold.
    """

    id: int
    tokens: int
    chunks: int = 1
    evicted: tuple["Tensor | None", ...] = ()
    exact: bool = True


class WriteTable:
    """Records of writes by id, oldest first."""

    def __init__(self, records: Iterable[WriteRecord] = ()) -> None:
        self._records = {record.id: record for record in records}

    def __iter__(self) -> Iterator[WriteRecord]:
        return iter(self._records.values())

    def __len__(self) -> int:
        return len(self._records)

    def __contains__(self, id: int) -> bool:
        return id in self._records

    def __getitem__(self, id: int) -> WriteRecord:
        return self._records[id]

    def add(self, record: WriteRecord, undo: Undo) -> None:
        """Add the newest record."""
        undo.add(lambda: self._records.pop(record.id, None))
        self._records[record.id] = record

    def keep(self, ids: Container[int], undo: Undo) -> None:
        """Drop all records but these."""
        undo.set(self, _records={id: record for id, record in self._records.items() if id in ids})

    def remove(self, id: int, undo: Undo) -> None:
        """Drop one record.

        Raises:
            InvalidInputError: there is none.
        """
        record = self._records.get(id)
        if record is None:
            raise InvalidInputError(f"this memory has no write {id}; memory.writes lists those that it has")
        undo.add(lambda: self._put_back(record))
        del self._records[id]

    def _put_back(self, record: WriteRecord) -> None:
        self._records = dict(sorted({**self._records, record.id: record}.items()))

    def check(self, count: int, serial: int) -> None:
        """Raise ValueError where the records do not fit `count` writes and `serial` slots."""
        for record in reversed(self._records.values()):
            end = record.first_serial + record.slots
            if not (0 <= record.id < count and 0 <= record.first_serial <= end <= serial):
                raise ValueError(f"write {record.id} does not fit between the others")
            count, serial = record.id, record.first_serial if record.slots else serial

    def copy(self) -> "WriteTable":
        return WriteTable(self)


def now() -> datetime:
    return datetime.now(UTC)


def checked(
    source: str | None = None, metadata: Mapping[str, Any] | None = None, text: str | None = None
) -> dict[str, Any]:
    """What a caller says of a write, as a file gives it back.

    Raises:
        InvalidInputError: it is not JSON, or not text that UTF-8 can write.
    """
    try:
        if not (isinstance(source, str | None) and isinstance(text, str | None)):
            raise TypeError("source and text are strings")
        about = {"source": source, "metadata": dict(metadata or {}), "text": text}
        content = json.dumps(about, allow_nan=False, ensure_ascii=False)
        content.encode()
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidInputError(
            f"source, metadata and text of a write must be JSON in valid Unicode: {error}"
        ) from error
    kept: dict[str, Any] = json.loads(content)
    return kept
