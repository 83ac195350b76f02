"""Threads that write, fork, save, forget and look at one memory: each sees a whole one."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from remanence.config import StorageConfig
from remanence.errors import InvalidInputError
from remanence.memory import Memory, MemoryState
from remanence.memory.chunks import Query
from tests.support import texts
from tests.support.contents import contents
from tests.support.kinds import go_on, told, written
from tests.support.longterms import use_small_blocks
from tests.support.threads import together

KINDS: dict[str, Callable[[], Memory]] = {
    "learned": lambda: written(storage=StorageConfig("disk"), capacity=300),
    "text": lambda: told(StorageConfig("host"), capacity=400),
}


def check(state: MemoryState) -> Memory:
    """Raise where a state is not that of a memory between two writes."""
    memory, header = Memory.from_state(state), state.header
    ids = [record.id for record in header.writes]
    assert ids == sorted(set(ids)) and ids[-1] == header.write_count - 1
    if header.chunks is None:
        end = header.next_serial
        assert all(record.first_serial == (64 * record.id + 64 if record.id else 0) for record in header.writes)
        assert memory.pool.serial.sort(dim=1).values[:, -64:].tolist() == [[*range(end - 64, end)]] * 2
        assert memory.longterm is not None and memory.longterm.clock == end - 128
    else:
        assert [item.write for item in header.chunks.items if item.place == 1] == ids
        assert len(header.chunks.items) == 2 * len(ids)
    return memory


def look(memory: Memory) -> None:
    assert memory.writes and memory.nbytes and repr(memory)
    with memory.lock:
        if memory.chunks is not None:
            found = memory.chunks.scores(Query(["alice"], texts.latent_of(0).float()))
            assert len(found) == len(memory.chunks)
        else:
            assert memory.longterm is not None
            view = memory.longterm.view()
    if memory.chunks is None:
        for layer in view.layers:
            there = layer.candidates()
            assert len(layer.take(there)[0]) == len(layer.known("serial", there)) == layer.size
        assert memory.provenance().shape == (2, 128)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rounds", [50, pytest.param(200, marks=pytest.mark.slow)])
def test_memory_is_whole_for_each_of_several_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, rounds: int
) -> None:
    use_small_blocks(monkeypatch)
    memory, target = KINDS[kind](), tmp_path / "m"
    start, forgotten = memory.write_count, list[int]()

    def forget() -> None:
        with memory.lock:
            write = memory.writes[len(memory.writes) // 2].id
            texts.forget(memory, write)
            forgotten.append(write)

    def work(who: int) -> None:
        for number in range(rounds):
            go_on(memory, 1000 * who + number)
            what = (number + who) % 5
            if what == 0:
                fork = memory.fork()
                go_on(fork, number)
                check(fork.state())
            elif what == 1:
                memory.save(target)
            elif what == 2:
                check(memory.state())
            elif what == 3 and memory.chunks is not None:
                forget()
            else:
                look(memory)

    together(*(partial(work, who) for who in range(4)))
    assert memory.write_count == start + 4 * rounds
    check(memory.state())
    memory.save(target)
    assert contents(Memory.load(target)) == contents(memory)
    for write in forgotten[:3]:
        with pytest.raises(InvalidInputError):
            texts.forget(memory, write)
