"""Saves and loads that fail: no accident costs what was saved before."""

import errno
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from remanence.errors import MemoryFileError
from remanence.memory import LongTerm, Memory, files
from remanence.memory.envelope import folder_of, read_envelope
from remanence.memory.storage import Block
from tests.support.contents import contents
from tests.support.kinds import DISK, KINDS, WRITES, blocks, go_on, on_disk, told, written

pytestmark = pytest.mark.usefixtures("small_blocks")


def failing(real: Callable[..., Any], after: int, error: type[BaseException]) -> Callable[..., Any]:
    """From the call on that comes after so many."""
    calls = iter(range(after))

    def fails(*args: Any, **settings: Any) -> Any:
        if next(calls, None) is None:
            raise error(errno.ENOSPC, "No space left on device")
        return real(*args, **settings)

    return fails


@pytest.mark.parametrize(
    ("holder", "name", "after"),
    [(files, "write", calls) for calls in (0, 3, 4)]
    + [(os, "replace", calls) for calls in (0, 1, 4)]
    + [(os, "fsync", calls) for calls in (0, 3)],
)
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
@pytest.mark.parametrize("saved_before", [False, True])
@pytest.mark.parametrize("kind", ["text, int8", "long-term, disk"])
def test_save_that_fails_leaves_what_was_there_and_no_files_of_its_own(
    target: Path,
    monkeypatch: pytest.MonkeyPatch,
    holder: Any,
    name: str,
    after: int,
    error: type[BaseException],
    saved_before: bool,
    kind: str,
) -> None:
    memory = KINDS[kind]()
    if saved_before:
        memory.save(target)
    for number in range(4):  # the next save writes at least four blocks and the main file
        go_on(memory, WRITES + number)
    before, held = on_disk(target), contents(memory)
    with monkeypatch.context() as patch:
        patch.setattr(holder, name, failing(getattr(holder, name), after, error))
        with pytest.raises(MemoryFileError if error is OSError else error, match="No space left"):
            memory.save(target)
    assert on_disk(target) == before and contents(memory) == held
    assert folder_of(target).exists() == saved_before
    memory.save(target)
    assert contents(Memory.load(target)) == held
    assert {block.file for block in read_envelope(target).blocks.values()} == {file.name for file in blocks(target)}


def test_save_cut_off_at_its_very_end_is_whole_and_no_conflict(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, real = written(), os.replace
    memory.save(target)
    go_on(memory, WRITES)

    def interrupted(partial: Path, final: Path) -> None:
        real(partial, final)
        if final == target:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            memory.save(target)
    assert contents(Memory.load(target)) == contents(memory)
    go_on(memory, WRITES + 1)
    memory.save(target)
    assert contents(Memory.load(target)) == contents(memory) and len(blocks(target)) == 4


@pytest.mark.parametrize(
    "name", [".m.safetensors.0123abcd.partial", "m.safetensors.longterm/.write-000000003.0123abcd.partial"]
)
@pytest.mark.parametrize("kind", ["text", "text, int8", "long-term, disk"])
def test_save_removes_what_a_killed_save_left(target: Path, kind: str, name: str) -> None:
    memory, left = KINDS[kind](), target.parent / name
    memory.save(target)
    folder_of(target).mkdir(exist_ok=True)
    left.write_bytes(b"half a file")
    stale = [
        folder_of(target) / f"{block}-0123456789ab.safetensors"
        for block in ("write-000000009", "layer-000-block-000009")
    ]
    for file in stale:
        file.write_bytes(b"of a save that did not come to its end")
    memory.save(target)
    assert not any(file.exists() for file in (left, *stale)) and contents(Memory.load(target)) == contents(memory)


def test_save_where_there_is_no_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MemoryFileError, match="No such file"):
        written(1).save(tmp_path / "no" / "folder")


def test_save_names_a_file_where_the_folder_of_blocks_should_be(target: Path) -> None:
    folder_of(target).touch()
    with pytest.raises(MemoryFileError, match=r"File exists .*longterm"):
        written(3).save(target)
    assert not target.exists()
    told().save(target)  # needs no folder
    assert folder_of(target).read_bytes() == b""


@pytest.mark.parametrize("kind", ["pool", "text", "text, int8", "long-term, host"])
def test_save_in_a_read_only_folder_is_refused(target: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """As the system answers anyone but root."""
    memory = KINDS[kind]()

    def denied(*args: Any, **settings: Any) -> Any:
        raise PermissionError(errno.EACCES, "Permission denied", str(args[0]))

    with monkeypatch.context() as patch:
        for name in ("mkdir", "replace"):
            patch.setattr(os, name, denied)
        patch.setattr(Path, "open", lambda path, mode: denied(path))
        with pytest.raises(MemoryFileError, match=r"could not write .*Permission denied"):
            memory.save(target)
    assert on_disk(target) == {} and not folder_of(target).exists()


@pytest.mark.parametrize("kind", ["pool", "text", "text, int8", "long-term, host"])
def test_save_in_a_folder_of_the_system_is_refused(kind: str) -> None:
    with pytest.raises(MemoryFileError, match="could not write /proc/m"):
        KINDS[kind]().save("/proc/m")


@pytest.mark.parametrize("where", ["listdir", "stat"])
def test_save_and_load_in_a_folder_that_cannot_be_looked_at_are_refused(
    target: Path, monkeypatch: pytest.MonkeyPatch, where: str
) -> None:
    memory, real = written(), getattr(os, where)
    memory.save(target)

    def denied(path: Any, **settings: Any) -> Any:
        if str(target) in str(path):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, **settings)

    monkeypatch.setattr(os, where, denied)
    with pytest.raises(MemoryFileError, match="Permission denied"):
        memory.save(target)
    if where == "stat":
        with pytest.raises(MemoryFileError, match="Permission denied"):
            Memory.load(target)


def test_load_names_a_full_disk_and_not_the_file(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written().save(target)

    def full(handle: int, size: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("remanence.memory.mapped.allocate", full)
    with pytest.raises(MemoryFileError, match=r"^no room for slots in .*No space left"):
        Memory.load(target, storage=DISK)


def test_load_to_a_device_without_room_is_not_called_damaged(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory = written()
    memory.save(target)

    def full(*args: Any, **settings: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(Block, "empty", full)
    for load in (lambda: Memory.load(target), lambda: Memory.from_state(memory.state())):
        with pytest.raises(torch.OutOfMemoryError):
            load()


def test_to_moves_a_memory_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = written()
    before = contents(memory)

    def full(self: LongTerm, device: torch.device) -> LongTerm:
        raise torch.OutOfMemoryError(f"no room on {device}")

    with monkeypatch.context() as patch:
        patch.setattr(LongTerm, "to", full)
        with pytest.raises(torch.OutOfMemoryError):
            memory.to("meta")
    assert memory.devices == {torch.device("cpu")} and contents(memory) == before
    assert memory.to("meta").devices == {torch.device("meta")}
