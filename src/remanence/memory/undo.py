"""Changes that happen whole or not at all: each leaves a step that takes it back."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Undo:
    """Steps that take changes back, the last change first.

    A step is added before its change is made, so an interrupt between the two finds it. So a step must do no harm where
    its change was made in part, or not at all, and may be run twice.
    """

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []

    def add(self, step: Callable[[], object]) -> None:
        self._steps.append(step)

    def set(self, holder: object, **values: object) -> None:
        """Set attributes of `holder`, and remember what they were."""
        before = {name: getattr(holder, name) for name in values}
        self.add(lambda: _assign(holder, before))
        _assign(holder, values)

    def run(self) -> None:
        """Take everything back, through a second interrupt too."""
        while self._steps:
            try:
                self._steps[-1]()
                self._steps.pop()
            except KeyboardInterrupt:
                continue


def _assign(holder: object, values: dict[str, object]) -> None:
    for name, value in values.items():
        setattr(holder, name, value)


@contextmanager
def undoing() -> Iterator[Undo]:
    """A scope whose changes are taken back if it is left by an exception."""
    undo = Undo()
    try:
        yield undo
    except BaseException:
        undo.run()
        raise
