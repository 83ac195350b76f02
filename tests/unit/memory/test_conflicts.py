"""Several processes and one memory file: no save undoes another unasked, and a load gets a whole memory."""

from pathlib import Path

import pytest
from remanence.memory.saving import folder_of

from remanence import Memory
from remanence.errors import MemoryConflictError
from remanence.memory import Storage, loading
from tests.support.longterms import everything, use_small_blocks, write, written

WRITES = 7


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    written(WRITES).save(tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def contents(target: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in target.parent.rglob("*") if file.is_file()}


def changed(target: Path, number: int) -> Memory:
    memory = Memory.load(target)
    write(memory, number)
    return memory


def same(one: Memory, other: Memory) -> bool:
    assert one.longterm is not None and other.longterm is not None
    return one.writes == other.writes and everything(one.longterm) == everything(other.longterm)


def test_the_later_of_two_saves_is_refused_until_it_is_asked_to_overwrite(target: Path) -> None:
    first, second = changed(target, 20), changed(target, 30)
    first.save(target)
    before = contents(target)
    for _ in range(2):
        with pytest.raises(MemoryConflictError, match=f"{target} was saved again.*Load it.*overwrite=True"):
            second.save(target)
    assert contents(target) == before and same(Memory.load(target), first)
    second.save(target, overwrite=True)
    second.save(target)
    assert same(Memory.load(target), second)
    with pytest.raises(MemoryConflictError):
        first.save(target)


def test_a_conflict_is_seen_by_any_name_of_the_file(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(target.parent)
    first, second = changed(Path(target.name), 20), changed(target, 30)
    first.save(target)
    with pytest.raises(MemoryConflictError):
        second.save(target.name)


def test_a_save_elsewhere_forgets_no_conflict(target: Path) -> None:
    first, second = changed(target, 20), changed(target, 30)
    first.save(target)
    second.save(target.with_name("n"))
    with pytest.raises(MemoryConflictError):
        second.save(target)


def test_one_line_of_saves_is_no_conflict(target: Path) -> None:
    memory = written(WRITES)
    for number in range(3):
        memory.save(target)
        write(memory, number)
    again = changed(target, 5)
    again.pool_only().save(target)
    again.save(target)
    fork = again.fork()
    write(fork, 6)
    fork.save(target)
    again.become(fork)
    again.save(target)


@pytest.mark.parametrize("fork_first", [True, False])
def test_a_fork_and_its_original_do_not_undo_each_other(target: Path, fork_first: bool) -> None:
    memory = changed(target, 20)
    fork = memory.fork()
    write(fork, 21)
    first, second = (fork, memory) if fork_first else (memory, fork)
    first.save(target)
    with pytest.raises(MemoryConflictError):
        second.save(target)


def test_where_the_file_was_deleted_there_is_nothing_to_undo(target: Path) -> None:
    memory = changed(target, 20)
    target.unlink()
    memory.save(target)
    assert same(Memory.load(target), memory)


@pytest.mark.parametrize("saves", [1, 2])
def test_a_load_during_a_save_reads_what_was_saved(target: Path, monkeypatch: pytest.MonkeyPatch, saves: int) -> None:
    other, turns = Memory.load(target), iter(range(saves))

    def late(path: Path) -> Path:  # the main file was read, its blocks were not
        number = next(turns, None)
        if number is not None:
            write(other, number)
            other.save(target)
        return folder_of(path)

    monkeypatch.setattr(loading, "folder_of", late)
    loaded = Memory.load(target, storage=Storage("disk"))
    assert next(turns, None) is None and same(loaded, other)
    loaded.save(target)
