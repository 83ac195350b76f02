"""After `os.fork` each process has its memories for itself, in every tier."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from remanence.config import StorageConfig, Tier
from remanence.memory import Memory
from tests.support.contents import contents
from tests.support.forks import exit_code, forked
from tests.support.kinds import TIERS, go_on, told, written
from tests.support.longterms import use_small_blocks


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch)


def learned(tier: Tier) -> Memory:
    return written(7, StorageConfig(tier), capacity=300)  # the last block has room for what two more writes evict


def text(tier: Tier) -> Memory:
    return told(StorageConfig(tier), capacity=60)


class Turns:
    """Two processes that take turns: each waits until the other says so."""

    def __init__(self) -> None:
        self.pipes = os.pipe(), os.pipe()

    def to_other(self, child: bool) -> None:
        os.write(self.pipes[child][1], b"x")

    def wait(self, child: bool) -> None:
        assert os.read(self.pipes[not child][0], 1) == b"x"


@pytest.mark.parametrize("child_first", [True, False])
@pytest.mark.parametrize("undone", [True, False])
@pytest.mark.parametrize("make", [learned, text])
@pytest.mark.parametrize("tier", TIERS)
def test_write_after_os_fork_is_seen_by_one_process_only(
    make: Callable[[Tier], Memory], tier: Tier, undone: bool, child_first: bool
) -> None:
    memory, twin, turns = make(tier), make("host"), Turns()

    def write(memory: Memory, first: int) -> None:
        if undone:
            with pytest.raises(KeyboardInterrupt), memory.changing():  # noqa: PT012
                go_on(memory, first + 50)
                raise KeyboardInterrupt
        for number in range(first, first + 2):
            go_on(memory, number)

    def in_child() -> None:
        write(twin, 20)
        if not child_first:
            turns.wait(True)
        write(memory, 20)
        turns.to_other(True)
        turns.wait(True)
        assert contents(memory) == contents(twin)

    child = forked(in_child)
    write(twin, 30)
    if child_first:
        turns.wait(False)
    write(memory, 30)
    turns.to_other(False)
    if not child_first:
        turns.wait(False)
    turns.to_other(False)
    assert contents(memory) == contents(twin) and exit_code(child) == 0


@pytest.mark.parametrize("make", [learned, text])
@pytest.mark.parametrize("tier", TIERS)
def test_fork_and_save_after_os_fork_see_what_the_child_wrote(
    tmp_path: Path, make: Callable[[Tier], Memory], tier: Tier
) -> None:
    memory, twin = make(tier), make("host")
    memory.save(tmp_path / "m")

    def in_child() -> None:
        for one in (memory, twin):
            go_on(one, 20)
        fork = memory.fork()
        memory.save(tmp_path / "m")
        assert contents(Memory.load(tmp_path / "m")) == contents(fork) == contents(twin)

    child = forked(in_child)
    for one in (memory, twin):
        go_on(one, 30)
    assert exit_code(child) == 0 and contents(memory) == contents(twin)
    assert contents(Memory.load(tmp_path / "m")) != contents(memory)
