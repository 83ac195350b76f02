"""What the ledger's rows are outside the database."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any


@dataclass(frozen=True)
class Found:
    """A memory as the ledger knows it.

    Attributes:
        version: number of its newest row.
        settings: what a replay begins with: model, writer, seed, head, date.
        fingerprint: of the model's weights; None until they were loaded for it.
        parent: id of the memory that it is a fork of; parent_seq: up to which row.
    """

    id: str
    owner: str
    name: str
    version: int
    settings: Mapping[str, Any]
    fingerprint: str | None
    parent: str | None
    parent_seq: int | None
    metadata: Mapping[str, Any]
    created: datetime
    expires_at: datetime | None


@dataclass(frozen=True)
class Row:
    """A row of the ledger, without what a replay needs.

    Attributes:
        seq: its number; of a write, the write's id.
        kind: "write", "forget", "undo", "expire", "redact".
        target: the row that it is about.
        state: of a write: "held", or what took it out.
        actor: who asked for it, as the caller named them.
        deduplicated: on what `tell` returns: it was there already.
    """

    seq: int
    kind: str
    created: datetime
    target: int | None = None
    text: str | None = None
    tokens: int = 0
    source: str | None = None
    metadata: Mapping[str, Any] = field(default_factory=dict)
    actor: str | None = None
    expires_at: datetime | None = None
    redacted_at: datetime | None = None
    state: str = ""
    deduplicated: bool = False


@dataclass(frozen=True)
class Content:
    """What a write says, as it is replayed.

    Attributes:
        ids: token ids of all chunks, int32, little-endian.
        cuts: of each chunk, tokens and characters of `text`; -1: it has no text.
    """

    text: str | None
    ids: bytes
    cuts: tuple[tuple[int, int], ...]

    @property
    def tokens(self) -> int:
        return sum(tokens for tokens, _ in self.cuts)

    @property
    def nbytes(self) -> int:
        return len(self.ids) + (0 if self.text is None else len(self.text.encode()))

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.ids).hexdigest()


@dataclass(frozen=True)
class Told:
    """A write and what it says, for a replay."""

    seq: int
    content: Content
    source: str | None
    metadata: Mapping[str, Any]
    created: datetime
