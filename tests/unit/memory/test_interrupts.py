"""A write that is interrupted at any step leaves the memory as it was or as it is after, and free for others."""

from collections.abc import Callable
from threading import Thread

import pytest

from remanence.config import LongTermConfig, StorageConfig
from remanence.memory import Memory
from tests.support import longterms, texts
from tests.support.contents import contents
from tests.support.interrupts import steps
from tests.support.kinds import DISK, KINDS, told, written
from tests.support.longterms import use_small_blocks

START: dict[str, Callable[[], Memory]] = {
    "never written": KINDS["never written"],
    "long-term": lambda: written(storage=DISK, capacity=300),
    "published": KINDS["published"],
    "table that is full": lambda: longterms.written(80, LongTermConfig(retrieved=7, capacity=300)),
    "text, oldest": lambda: told(capacity=40),
    "text, at random": lambda: told(StorageConfig("host"), capacity=40, random=True),
}


def change(memory: Memory, number: int) -> None:
    """A write of several chunks; in a text memory, one that evicts, and a write that is forgotten."""
    if memory.chunks is None:
        longterms.write(memory, number, chunks=2)
        return
    with memory.changing() as undo:
        memory.drop(memory.writes[-1].id, undo)
        texts.tell_in(memory, undo, number, (9, 9))


def free(memory: Memory) -> bool:
    taken = list[bool]()

    def take() -> None:
        taken.append(memory.lock.acquire(blocking=False))
        if taken[0]:
            memory.lock.release()

    thread = Thread(target=take)
    thread.start()
    thread.join()
    return taken[0]


@pytest.mark.parametrize("kind", START)
@pytest.mark.parametrize("every", [29, pytest.param(1, marks=pytest.mark.slow)])
def test_changing_that_is_interrupted_at_any_step_is_whole(
    monkeypatch: pytest.MonkeyPatch, kind: str, every: int
) -> None:
    use_small_blocks(monkeypatch)
    memory = START[kind]()
    before, changed, following = contents(memory), memory.fork(), memory.fork()
    count = steps(lambda: change(changed, 50))
    after = contents(changed)
    change(following, 60)
    for at in range(1, count + 1, every):
        fork = memory.fork()
        with pytest.raises(KeyboardInterrupt):
            steps(lambda: change(fork, 50), interrupt_at=at)  # noqa: B023
        assert contents(fork) in (before, after) and free(fork), at
        if contents(fork) == before:
            change(fork, 60)
            assert contents(fork) == contents(following), at
