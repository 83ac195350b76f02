"""Which writes a memory holds, worked out from the rows of its ledger. Pure: no database, no tensors."""

from collections.abc import Iterable, Sequence
from typing import Protocol


class Entry(Protocol):
    """A row of the ledger, as far as this matters."""

    @property
    def seq(self) -> int: ...
    @property
    def kind(self) -> str: ...
    @property
    def target(self) -> int | None: ...


def holding(rows: Sequence[Entry]) -> list[int]:
    """The numbers of the writes that a memory holds after these rows, oldest first.

    A `write` adds itself and takes out its target, if it has one; `forget` and `expire` take out their target. An
    `undo` takes back what its target did, unless it was taken back itself. Rows of the kinds `redacted` and `expired`
    were writes, and are not held.
    """
    undone = set[int]()
    for row in reversed(rows):
        if row.kind == "undo" and row.seq not in undone and row.target is not None:
            undone.add(row.target)
    acting = [row for row in rows if row.kind != "undo" and row.seq not in undone]
    gone = {row.target for row in acting if row.target is not None}
    return [row.seq for row in acting if row.kind == "write" and row.seq not in gone]


def undoable(rows: Sequence[Entry]) -> int | None:
    """The newest row that an undo without a name takes back: a write or a forget that still acts."""
    undone = {row.target for row in rows if row.kind == "undo"}
    acting = (row.seq for row in reversed(rows) if row.kind in ("write", "forget") and row.seq not in undone)
    return next(acting, None)


def state_of(seq: int, rows: Iterable[Entry], held: Iterable[int]) -> str:
    """Of a write: "held", or what took it out: "forgotten", "expired", "superseded", "undone", "redacted"."""
    if seq in held:
        return "held"
    said = {"forget": "forgotten", "expire": "expired", "write": "superseded", "undo": "undone", "redact": "redacted"}
    own = next((row.kind for row in rows if row.seq == seq), "")
    if own in ("redacted", "expired"):
        return own
    return [said[row.kind] for row in rows if row.target == seq and row.kind in said][-1]


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers as "1-3,5"."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], number]
        else:
            parts.append([number])
    return ",".join("-".join(map(str, part)) for part in parts)


def numbers(text: str) -> list[int]:
    """What `ranges` made, back."""
    found = list[int]()
    for part in filter(None, text.split(",")):
        first, _, last = part.partition("-")
        found += range(int(first), int(last or first) + 1)
    return found
