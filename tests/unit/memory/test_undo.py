"""Undo lists: everything is taken back, last first, whatever else happens meanwhile."""

from types import SimpleNamespace

import pytest

from remanence.memory.undo import Undo, undoing


def test_undoing_takes_back_the_last_change_first() -> None:
    held = SimpleNamespace(a=1, b=2)
    with pytest.raises(ValueError, match="enough"), undoing() as undo:  # noqa: PT012
        undo.set(held, a=3, b=4)
        undo.set(held, a=5)
        raise ValueError("enough")
    assert vars(held) == {"a": 1, "b": 2}


def test_undoing_leaves_what_was_done_without_an_error() -> None:
    held = SimpleNamespace(a=1)
    with undoing() as undo:
        undo.set(held, a=3)
    assert held.a == 3


@pytest.mark.parametrize("interrupts", [1, 2, 5])
def test_run_goes_on_through_interrupts(interrupts: int) -> None:
    """Each hits a step that has to be run again."""
    undo, done = Undo(), list[int]()
    for number in range(5):
        turns = iter(range(1))

        def step(number: int = number, turns: object = turns) -> None:
            if number < interrupts and next(turns, None) is not None:  # type: ignore[call-overload]
                raise KeyboardInterrupt
            done.append(number)

        undo.add(step)
    with pytest.raises(KeyboardInterrupt):
        undo.run()
    assert done == [4, 3, 2, 1, 0]


def test_run_goes_on_after_a_step_that_fails_and_raises_its_error() -> None:
    undo, done = Undo(), list[int]()

    def failing() -> None:
        raise OSError("no room")

    undo.add(lambda: done.append(1))
    undo.add(failing)
    undo.add(lambda: done.append(2))
    with pytest.raises(OSError, match="no room"):
        undo.run()
    assert done == [2, 1]
