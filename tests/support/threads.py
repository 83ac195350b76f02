"""Acts that run all at once."""

import threading
from collections.abc import Callable
from typing import Any

HANGS = 120  # seconds after which threads are taken to wait for each other


def raised_together(*acts: Callable[[], Any]) -> list[BaseException]:
    """Run each in a thread of its own, all at once; returns what they raised."""
    start, raised = threading.Barrier(len(acts)), list[BaseException]()

    def run(act: Callable[[], Any]) -> None:
        start.wait()
        try:
            act()
        except BaseException as error:
            raised.append(error)

    threads = [threading.Thread(target=run, args=(act,), daemon=True) for act in acts]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(HANGS)
    assert not any(thread.is_alive() for thread in threads), "threads wait for each other"
    return raised


def together(*acts: Callable[[], Any]) -> None:
    """Run each in a thread of its own, all at once; raises what one of them raised."""
    for error in raised_together(*acts):
        raise error
