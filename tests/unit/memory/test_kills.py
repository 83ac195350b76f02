"""kill -9 in the middle of saves: no save that was acknowledged is lost, every file loads, and nothing is left over."""

import os
import random
import signal
from collections.abc import Callable
from pathlib import Path
from time import perf_counter

import pytest

from remanence.config import StorageConfig
from remanence.memory import Memory
from remanence.memory.envelope import folder_of, read_envelope
from tests.support.contents import contents
from tests.support.forks import forked
from tests.support.kinds import blocks, go_on, told, written
from tests.support.longterms import use_small_blocks

KILLS = int(os.environ.get("REMANENCE_KILLS", "20"))
TIERS: dict[str, Callable[[], Memory]] = {
    "long-term, host": lambda: written(capacity=300),
    "long-term, disk": lambda: written(storage=StorageConfig("disk"), capacity=300),
    "text, text": lambda: told(capacity=60),
    "text, host": lambda: told(StorageConfig("host"), capacity=60),
    "text, disk": lambda: told(StorageConfig("disk"), capacity=60),
}


def save_until_killed(memory: Memory, target: Path, told_to: int, asked: int) -> None:
    """Write and save, and say the number of writes after each save, and before it 0; go on when asked to."""
    while os.read(asked, 1):
        go_on(memory, memory.write_count)
        os.write(told_to, bytes(8))
        memory.save(target)
        os.write(told_to, memory.write_count.to_bytes(8, "little"))


@pytest.mark.slow
@pytest.mark.parametrize("tier", TIERS)
def test_save_that_is_killed_loses_nothing_that_was_acknowledged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tier: str
) -> None:
    use_small_blocks(monkeypatch)
    target, rng = tmp_path / "m", random.Random(0)
    memory = TIERS[tier]()
    memory.save(target)
    begun = perf_counter()
    memory.save(target)
    length = perf_counter() - begun  # of a save, in which the kills are to fall
    expected = {memory.write_count: contents(memory)}  # after so many writes; they are the same in every process
    leftovers = 0
    for _ in range(KILLS):
        reader, writer = os.pipe()
        asked, ask = os.pipe()
        child = forked(lambda: save_until_killed(memory, target, writer, asked))  # noqa: B023
        os.close(writer)
        os.write(ask, b"xxx")
        _, acknowledged, _ = (int.from_bytes(os.read(reader, 8), "little") for _ in range(3))  # the second has begun
        until = perf_counter() + rng.random() * length
        while perf_counter() < until:
            pass
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        while answer := os.read(reader, 8):
            acknowledged = int.from_bytes(answer, "little") or acknowledged
        for handle in (reader, asked, ask):
            os.close(handle)
        loaded = Memory.load(target)
        while max(expected) < loaded.write_count:
            go_on(memory, memory.write_count)
            expected[memory.write_count] = contents(memory)
        assert loaded.write_count >= acknowledged and contents(loaded) == expected[loaded.write_count]
        named = {block.file for block in read_envelope(target).blocks.values()}
        leftovers += len(list(tmp_path.glob(".*"))) + len({file.name for file in blocks(target)} - named)
        memory = loaded
        go_on(memory, memory.write_count)
        memory.save(target)
        expected = {memory.write_count: contents(memory)}
        named = {block.file for block in read_envelope(target).blocks.values()}
        assert {file.name for file in blocks(target)} == named
        assert {file.name for file in tmp_path.iterdir()} <= {"m", folder_of(target).name}
    assert KILLS < 20 or leftovers > 0  # else no kill hit a save
