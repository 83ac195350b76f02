"""Changes that happen whole or not at all: each leaves a step that takes it back."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Undo:
    """Steps that take changes back, the last change first.

    A step is added before its change is made, so an interrupt between the two finds it. So a step must do no harm where
    its change was made in part, or not at all, and may be run twice.

    Attributes:
        first_serial: number of the first slot that this scope makes. The scope overwrites slots that it made itself
            without keeping them, so that a long write keeps no more than a pool.
    """

    def __init__(self, first_serial: int = sys.maxsize) -> None:
        self.first_serial = first_serial
        self._steps: list[Callable[[], object]] = []

    def add(self, step: Callable[[], object]) -> None:
        self._steps.append(step)

    def set(self, holder: object, **values: object) -> None:
        """Set attributes of `holder`, and remember what they were."""
        before = {name: getattr(holder, name) for name in values}
        self.add(lambda: _assign(holder, before))
        _assign(holder, values)

    def join(self, other: "Undo") -> None:
        """Take back another's changes too, which came after these."""
        self._steps.extend(other._steps)

    def run(self) -> None:
        """Take everything back, through further interrupts too.

        Raises:
            Exception: that of the first step that failed, after all others were run.
        """
        failed: Exception | None = None
        try:
            while self._steps:
                try:
                    self._steps[-1]()
                except Exception as error:
                    failed = failed or error
                self._steps.pop()
        finally:
            if self._steps:  # an interrupt: the step that it hit is run again
                self.run()
        if failed is not None:
            raise failed


def _assign(holder: object, values: dict[str, object]) -> None:
    for name, value in values.items():
        setattr(holder, name, value)


@contextmanager
def undoing(first_serial: int = sys.maxsize) -> Iterator[Undo]:
    """A scope whose changes are taken back if it is left by an exception."""
    undo = Undo(first_serial)
    try:
        yield undo
    except BaseException:
        undo.run()
        raise
