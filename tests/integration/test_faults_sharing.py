"""Threads and forked processes that have one memory: each write is whole, and nobody sees half of one."""

import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from remanence import Memory, MemoryModel
from remanence.config import LongTermConfig
from remanence.errors import RemanenceError
from remanence.memory import Storage
from tests.support.longterms import use_small_blocks
from tests.support.reading import written
from tests.support.threads import HANGS, raised_together, together
from tests.support.tiny import ids, with_memory

KINDS: dict[str, dict[str, Any]] = {
    "a pool": {},
    "long-term memory": {"longterm": LongTermConfig(retrieved=1000), "retrieval_size": 8},  # all of it is read
}


def state(model: MemoryModel, memory: Memory) -> Tensor:
    """Logits that hang on every slot there is."""
    return model.read(memory, ids(5)).logits


@pytest.mark.parametrize("settings", KINDS.values(), ids=KINDS)
def test_threads_that_write_one_memory_leave_what_the_same_writes_leave_one_by_one(settings: dict[str, Any]) -> None:
    model = with_memory(**settings)
    memory, order = model.new_memory(), dict[int, Tensor]()

    def work(who: int) -> None:
        for number in range(5):
            text = ids(20, seed=10 * who + number)
            order[model.write(memory, text).id] = text

    raised = raised_together(*(lambda who=who: work(who) for who in range(4)))
    assert all(isinstance(error, RemanenceError) for error in raised)
    assert memory.write_count == len(order) and (raised or len(order) == 20)
    again = model.new_memory()
    for number in sorted(order):
        model.write(again, order[number])
    assert torch.equal(state(model, memory), state(model, again))


def test_threads_with_memories_of_their_own_share_a_model() -> None:
    model = with_memory(**KINDS["long-term memory"])
    memories = [model.new_memory(seed) for seed in range(3)]

    def work(seed: int) -> None:
        for number in range(6):
            model.write(memories[seed], ids(20, seed=10 * seed + number))
            model.generate(memories[seed], ids(4), max_new_tokens=2)

    together(*(lambda seed=seed: work(seed) for seed in range(3)))
    for seed, memory in enumerate(memories):
        alone = model.new_memory(seed)
        for number in range(6):
            model.write(alone, ids(20, seed=10 * seed + number))
        assert torch.equal(state(model, memory), state(model, alone))


def test_threads_that_write_the_same_memories_in_another_order_do_not_wait_for_each_other() -> None:
    model = with_memory()
    one, two = model.new_memory(0), model.new_memory(1)

    def work(*memories: Memory) -> None:
        for number in range(10):
            model.write(list(memories), [ids(20, seed=number), ids(20, seed=number)])

    raised = raised_together(lambda: work(one, two), lambda: work(two, one))
    assert all(isinstance(error, RemanenceError) for error in raised)


def logits_of(model: MemoryModel, memory: Memory, _: Path) -> Tensor:
    return state(model, memory)


def fork_of(model: MemoryModel, memory: Memory, _: Path) -> Memory:
    return memory.fork()


def file_of(model: MemoryModel, memory: Memory, path: Path) -> Memory:
    memory.save(path / "m")
    return Memory.load(path / "m")


@pytest.mark.parametrize("look", [logits_of, fork_of, file_of])
def test_nobody_sees_a_write_that_is_undone(look: Callable[..., Any], tmp_path: Path) -> None:
    model = with_memory()
    memory = written(model)
    before, seen, done = state(model, memory), [], threading.Event()

    def looking() -> None:
        seen.append(look(model, memory, tmp_path))
        done.set()

    def interrupted(*_: int) -> None:
        threading.Thread(target=looking, daemon=True).start()
        done.wait(0.5)  # until it has looked, unless it waits for this write
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.write(memory, ids(20, seed=1), progress=interrupted)
    assert done.wait(HANGS)
    assert torch.equal(seen[0] if isinstance(seen[0], Tensor) else state(model, seen[0]), before)


# Processes.


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch)


def goes_on(model: MemoryModel, memory: Memory, who: int, writes: int = 20) -> Memory:
    for number in range(writes):
        model.write(memory, ids(20, seed=1000 * who + number))
    return memory


@pytest.fixture(params=["new", "loaded"])
def made(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Memory]:
    """Makes a memory with a full block of long-term slots and a part of one, which was loaded or not."""

    def make(model: MemoryModel, storage: Storage) -> Memory:
        memory = goes_on(model, model.new_memory(storage=storage), 0, writes=60)
        if request.param == "new":
            return memory
        memory.save(tmp_path / "m", overwrite=True)
        return Memory.load(tmp_path / "m")

    return make


@pytest.mark.slow
@pytest.mark.parametrize("tier", ["device", "host", "disk"])
def test_forked_processes_write_into_memories_of_their_own(
    tier: Any, made: Callable[..., Memory], tmp_path: Path
) -> None:
    model, storage = with_memory(**KINDS["long-term memory"]), Storage(tier)
    right = {who: state(model, goes_on(model, made(model, storage), who)) for who in (1, 2)}
    memory = made(model, storage)
    (child_wrote, tell_parent), (parent_wrote, tell_child) = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        try:
            signal.alarm(HANGS)
            os.close(tell_child)
            goes_on(model, memory, 1)
            os.write(tell_parent, b"x")
            os.read(parent_wrote, 1)
            torch.save(state(model, memory), tmp_path / "child")
        finally:
            os._exit(0)
    os.close(tell_parent)
    os.read(child_wrote, 1)
    goes_on(model, memory, 2)
    os.write(tell_child, b"x")
    os.waitpid(child, 0)
    assert torch.equal(torch.load(tmp_path / "child"), right[1])
    assert torch.equal(state(model, memory), right[2])
