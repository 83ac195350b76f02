"""Several processes and one memory file: no save undoes another unasked, and a load gets a whole memory."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from remanence.errors import MemoryConflictError, MemoryFileError
from remanence.memory import Memory, files
from remanence.memory.envelope import folder_of
from tests.support import texts
from tests.support.contents import contents
from tests.support.forks import exit_code, forked
from tests.support.kinds import DISK, KINDS, go_on, on_disk, told
from tests.support.longterms import use_small_blocks

SAVED = ["pool", "long-term, disk", "text", "text, int8"]


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch)


@pytest.fixture(params=SAVED)
def target(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    KINDS[request.param]().save(tmp_path / "m.safetensors")
    return tmp_path / "m.safetensors"


def changed(target: Path, number: int) -> Memory:
    memory = Memory.load(target)
    go_on(memory, number)
    return memory


def same(one: Memory, other: Memory) -> bool:
    return contents(one) == contents(other)


def test_save_after_another_is_refused_until_it_is_asked_to_overwrite(target: Path) -> None:
    first, second = changed(target, 20), changed(target, 30)
    first.save(target)
    before = on_disk(target)
    for _ in range(2):
        with pytest.raises(MemoryConflictError, match=f"{target} was saved by another.*Load it.*overwrite=True"):
            second.save(target)
    assert on_disk(target) == before and same(Memory.load(target), first)
    second.save(target, overwrite=True)
    second.save(target)
    assert same(Memory.load(target), second)
    with pytest.raises(MemoryConflictError):
        first.save(target)


@pytest.mark.parametrize("kind", SAVED)
def test_save_of_the_second_of_two_new_memories_is_refused(tmp_path: Path, kind: str) -> None:
    first, second, target = KINDS[kind](), KINDS[kind](), tmp_path / "new"
    first.save(target)
    go_on(second, 9)
    before = on_disk(target)
    with pytest.raises(MemoryConflictError):
        second.save(target)
    with pytest.raises(MemoryConflictError):
        second.fork().save(target)
    assert on_disk(target) == before
    first.save(target)


def test_save_onto_a_foreign_file_is_refused(tmp_path: Path) -> None:
    foreign = tmp_path / "thesis.txt"
    foreign.write_text("years of work")
    with pytest.raises(MemoryConflictError):
        told().save(foreign)
    assert foreign.read_text() == "years of work"


def test_save_sees_a_conflict_by_any_name_of_the_file(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(target.parent)
    Path("link").symlink_to(target)
    first, second, third = changed(Path(target.name), 20), changed(target, 30), changed(Path("link"), 40)
    first.save(target)
    for memory, name in ((second, target.name), (second, "link"), (third, target), (third, "link")):
        with pytest.raises(MemoryConflictError):
            memory.save(name)


def test_save_elsewhere_forgets_no_conflict(target: Path) -> None:
    first, second = changed(target, 20), changed(target, 30)
    first.save(target)
    second.save(target.with_name("n"))
    with pytest.raises(MemoryConflictError):
        second.save(target)


def test_save_in_one_line_is_no_conflict(target: Path) -> None:
    memory = Memory.load(target)
    for number in range(3):
        memory.save(target)
        go_on(memory, number)
    memory.pool_only().save(target)
    memory.save(target)
    fork = memory.fork()
    go_on(fork, 6)
    fork.save(target)
    assert same(Memory.load(target), fork)


@pytest.mark.parametrize("fork_first", [True, False])
def test_save_of_a_fork_and_its_original_do_not_undo_each_other(target: Path, fork_first: bool) -> None:
    memory = changed(target, 20)
    fork = memory.fork()
    go_on(fork, 21)
    first, second = (fork, memory) if fork_first else (memory, fork)
    first.save(target)
    with pytest.raises(MemoryConflictError):
        second.save(target)


def test_save_where_the_file_was_deleted_is_no_conflict(target: Path) -> None:
    memory = changed(target, 20)
    target.unlink()
    memory.save(target)
    assert same(Memory.load(target), memory)


def test_save_after_one_that_failed_knows_the_file_still(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, other = changed(target, 20), changed(target, 30)
    with monkeypatch.context() as patch:
        patch.setattr(files, "write", denied)
        with pytest.raises(MemoryFileError):
            memory.save(target)
    other.save(target)
    with pytest.raises(MemoryConflictError):
        memory.save(target)


def denied(*args: Any, **settings: Any) -> None:
    raise OSError("no")


@pytest.mark.parametrize("saves", [1, 2])
@pytest.mark.parametrize("forgets", [False, True])
def test_load_during_a_save_reads_a_whole_memory_and_knows_which(
    target: Path, monkeypatch: pytest.MonkeyPatch, saves: int, forgets: bool
) -> None:
    other, turns, real = Memory.load(target), iter(range(saves)), files._BlockFiles
    saved = [contents(other)]

    def late(folder: Path, entries: Mapping[str, Any]) -> Any:  # the main file was read, its blocks were not
        number = next(turns, None)
        if number is not None:
            if forgets and other.chunks is not None:
                texts.forget(other, other.writes[0].id)
            go_on(other, 40 + number)
            other.save(target)
            saved.append(contents(other))
        return real(folder, entries)

    monkeypatch.setattr(files, "_BlockFiles", late)
    loaded = Memory.load(target)
    which = saved.index(contents(loaded))
    if other.longterm is not None or (forgets and folder_of(target).exists()):  # blocks were cleared away meanwhile
        assert which == saves
    if which == len(saved) - 1:
        loaded.save(target)
    else:
        with pytest.raises(MemoryConflictError):
            loaded.save(target)


@pytest.mark.parametrize("kind", ["long-term, disk", "text, int8"])
def test_load_and_save_of_several_processes_leave_a_memory_that_loads(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "m"
    memory = KINDS[kind]()
    memory.save(target)

    def save_often(seed: int) -> None:
        for number in range(8):
            go_on(memory, 100 * seed + number)
            memory.save(target, overwrite=True)

    def load_often() -> None:
        for _ in range(20):
            loaded = Memory.load(target)
            go_on(loaded, 5)

    children = [forked(lambda: save_often(1)), forked(lambda: save_often(2)), forked(load_often)]
    assert [exit_code(child) for child in children] == [0, 0, 0]
    loaded = Memory.load(target)
    loaded.save(target)
    assert {path.name for path in tmp_path.iterdir()} == {"m", "m.longterm"}


def test_save_waits_for_no_process_that_was_forked_during_another(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A child inherits the handle of the lock, and may live long."""
    memory, real, children = told(DISK), os.replace, list[int]()
    hold, release = os.pipe()

    def wait() -> None:
        os.close(release)
        os.read(hold, 1)

    def forking(*args: Any) -> None:
        if not children:
            children.append(forked(wait))
        real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", forking)
        memory.save(tmp_path / "m")
    saver = forked(lambda: memory.save(tmp_path / "n"))
    assert exit_code(saver) == 0
    os.close(release)
    assert exit_code(children[0]) == 0
