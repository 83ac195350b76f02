"""Which writes a memory holds follows from its rows, undone and undone again."""

from dataclasses import dataclass

import pytest

from remanence.store.history import holding, numbers, ranges, state_of, undoable


@dataclass
class Entry:
    seq: int
    kind: str
    target: int | None = None


def rows(*said: str) -> list[Entry]:
    """ "write", "forget 1", "undo 2", "write 1" (takes the place of 1)."""
    parts = [one.split() for one in said]
    return [Entry(n + 1, kind, int(target[0]) if target else None) for n, (kind, *target) in enumerate(parts)]


@pytest.mark.parametrize(
    ("said", "held"),
    [
        ([], []),
        (["write", "write"], [1, 2]),
        (["write", "write", "forget 1"], [2]),
        (["write", "expire 1"], []),
        (["write", "write 1"], [2]),
        (["write", "write 1", "undo 2"], [1]),
        (["write", "forget 1", "undo 2"], [1]),
        (["write", "forget 1", "undo 2", "undo 3"], []),
        (["write", "undo 1", "undo 2", "undo 3"], []),
        (["write", "forget 1", "undo 2", "forget 1"], []),
        (["write", "redacted", "write"], [1, 3]),
        (["write", "forget 1", "undo 1", "undo 2"], []),
    ],
)
def test_held_writes(said: list[str], held: list[int]) -> None:
    assert holding(rows(*said)) == held


def test_an_undo_without_a_name_takes_the_newest_that_acts() -> None:
    assert undoable(rows()) is None
    assert undoable(rows("write", "write")) == 2
    assert undoable(rows("write", "write", "undo 2")) == 1
    assert undoable(rows("write", "forget 1", "expire 1")) == 2


def test_the_state_of_a_write_names_what_took_it_out() -> None:
    for said, state in (
        ("forget 1", "forgotten"),
        ("expire 1", "expired"),
        ("write 1", "superseded"),
        ("undo 1", "undone"),
    ):
        known = rows("write", said)
        assert state_of(1, known, holding(known)) == state
    assert state_of(1, rows("redacted"), []) == "redacted"
    assert state_of(1, rows("write"), [1]) == "held"


@pytest.mark.parametrize("given", [[], [1], [1, 2, 3], [1, 3, 4, 9], [5, 6, 8]])
def test_ranges_come_back(given: list[int]) -> None:
    assert numbers(ranges(given)) == given
    assert ranges([1, 2, 3, 5]) == "1-3,5"
