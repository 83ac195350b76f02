"""Saved memories: bytes, blocks, permissions, links, and what a save leaves alone."""

import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from remanence.config import StorageConfig
from remanence.memory import Memory, NewSlots
from remanence.memory.envelope import folder_of
from tests.support import longterms, texts
from tests.support.contents import contents
from tests.support.kinds import DISK, KINDS, WRITES, blocks, go_on, longterm_of, on_disk, told, written
from tests.support.longterms import random

pytestmark = pytest.mark.usefixtures("small_blocks")


@pytest.mark.parametrize("kind", KINDS)
def test_save_gives_the_same_bytes_for_the_same_memory(target: Path, kind: str) -> None:
    memory = KINDS[kind]()
    memory.save(target)
    before = on_disk(target)
    for again in (memory, Memory.load(target), Memory.load(target).fork()):
        again.save(target, overwrite=True)
        assert on_disk(target) == before
    target.unlink()
    memory.fork().save(target)
    assert on_disk(target) == before


@pytest.mark.parametrize("storage", [StorageConfig("host"), DISK])
@pytest.mark.parametrize("reloaded", [False, True])
@pytest.mark.parametrize("text", [False, True])
def test_save_again_writes_only_blocks_that_are_new(
    target: Path, storage: StorageConfig, reloaded: bool, text: bool
) -> None:
    memory = told(storage) if text else written(storage=storage)
    memory.save(target)
    old = {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in blocks(target)}
    full = set(old) if text else {name for name in old if "block-000000" in name}
    memory = Memory.load(target) if reloaded else memory.fork()
    go_on(memory, WRITES)
    memory.save(target)
    new = {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in blocks(target)}
    assert (len(full), len(old), len(new)) == ((7, 7, 8) if text else (2, 4, 4))
    assert old.keys() & new.keys() == full and all(old[name] == new[name] for name in full)


def test_save_again_writes_a_block_that_was_filled_since_it_was_loaded(target: Path) -> None:
    written().save(target)
    memory = Memory.load(target)
    for number in range(WRITES, WRITES + 3):
        go_on(memory, number)
    memory.save(target)
    assert contents(Memory.load(target)) == contents(memory)


def test_save_again_after_a_write_that_was_taken_back_writes_what_is_there(target: Path) -> None:
    """A commit inside the write may save the memory, and fail then."""
    memory = written(WRITES - 3)  # the next write fills the first block
    with pytest.raises(KeyboardInterrupt), memory.changing() as undo:  # noqa: PT012
        memory.put(longterms.new_slots(50), undo)
        memory.save(target)
        raise KeyboardInterrupt
    go_on(memory, 60)
    memory.save(target)
    assert contents(Memory.load(target)) == contents(memory)


@pytest.mark.parametrize("text", [False, True])
def test_save_removes_blocks_of_what_was_dropped(target: Path, text: bool) -> None:
    memory = told(DISK) if text else written(storage=DISK, capacity=100)
    memory.save(target)
    if text:
        texts.forget(memory, 3)
        memory.save(target)
    names = {file.name[:-25] for file in blocks(target)}
    assert names == (
        {f"write-{write:09d}" for write in range(WRITES) if write != 3}
        if text
        else {"layer-000-block-000001", "layer-001-block-000001"}
    )
    assert contents(Memory.load(target)) == contents(memory)


def test_save_in_two_places_keeps_both_whole(target: Path, tmp_path: Path) -> None:
    memory = written(storage=DISK)
    places = [target, tmp_path / "n"]
    for place in (*places, target):
        memory.save(place)
    for place in places:
        assert contents(Memory.load(place)) == contents(memory)


@pytest.mark.parametrize("kind", ["text, int8", "long-term, disk"])
def test_save_through_a_link_leaves_the_link(target: Path, tmp_path: Path, kind: str) -> None:
    memory, real = KINDS[kind](), tmp_path / "disk" / "real"
    real.parent.mkdir()
    memory.save(real)
    target.symlink_to(Path("disk") / "real")
    loaded = Memory.load(target)
    go_on(loaded, 20)
    loaded.save(target)
    assert target.is_symlink() and not folder_of(target).exists() and folder_of(real).is_dir()
    assert contents(Memory.load(real)) == contents(Memory.load(target)) == contents(loaded)
    dangling = tmp_path / "to be"
    dangling.symlink_to(tmp_path / "disk" / "new")
    loaded.save(dangling)
    assert dangling.is_symlink() and contents(Memory.load(tmp_path / "disk" / "new")) == contents(loaded)


def test_save_leaves_files_that_are_not_ours(target: Path) -> None:
    folder = folder_of(target)
    folder.mkdir()
    ours = {folder / "thesis.txt", folder / "notes.partial", target.parent / ".m.safetensors.notes.partial"}
    for file in ours:
        file.write_text("years of work")
    memory = written(capacity=300)
    memory.save(target)
    memory.pool_only().save(target)
    assert {Path(file) for file in on_disk(target)} == ours | {target}


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600), (0o027, 0o640)])
def test_save_gives_files_the_permissions_of_any_other(target: Path, umask: int, mode: int) -> None:
    before = os.umask(umask)
    try:
        written().save(target)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (target, *blocks(target))} == {mode}


def test_save_again_keeps_the_permissions_of_the_file(target: Path) -> None:
    memory = written(2)
    memory.save(target)
    target.chmod(0o640)
    memory.save(target)
    assert target.stat().st_mode & 0o777 == 0o640


def test_save_leaves_the_old_file_to_who_has_it_open(target: Path) -> None:
    memory = written(4)
    memory.save(target)
    before = target.read_bytes()
    with target.open("rb") as reader:
        go_on(memory, 5)
        memory.save(target)
        assert reader.read() == before != target.read_bytes()


def test_save_after_a_move_to_another_device_writes_no_full_block_again(target: Path) -> None:
    memory = written()
    memory.save(target)
    moved = longterm_of(memory).to(torch.device("meta"))
    for before, after in zip(longterm_of(memory).layers, moved.layers, strict=True):
        assert after.blocks[0].source is before.blocks[0].source


@pytest.mark.parametrize("capacity", [0, 1, 256, 300])
@pytest.mark.parametrize("writes", [0, 1, 2, 5, 6, 7, 9])
def test_save_is_whole_at_every_edge_of_blocks(target: Path, capacity: int, writes: int) -> None:
    memory = written(writes, capacity=capacity)
    memory.save(target)
    assert contents(Memory.load(target)) == contents(memory)


def test_save_writes_a_block_again_that_was_cut(target: Path) -> None:
    for memory in (written(), told(DISK)):
        memory.save(target, overwrite=True)
        for file in blocks(target)[:1]:
            file.write_bytes(file.read_bytes()[:-1])
        memory.save(target)
        assert contents(Memory.load(target)) == contents(memory)


def test_save_takes_tensors_that_lie_together(target: Path) -> None:
    """What shares memory, or is no whole piece of it, is saved all the same."""
    memory = Memory(longterms.SPEC, longterm=longterms.longterm())
    hidden = random(2, 200, 16, seed=1)[:, ::3]
    keys, values = hidden.unflatten(2, (2, 2, 4)).unbind(2)
    with memory.changing() as undo:
        memory.put(NewSlots(hidden, keys, values, 5, hidden[..., :3]), undo)
        memory.record(undo, 5, 0, time=texts.TIME)
    memory.save(target)
    assert contents(Memory.load(target)) == contents(memory)


def test_save_writes_a_file_that_any_reader_of_safetensors_opens(target: Path) -> None:
    memory = written(2)
    memory.save(target)
    assert torch.equal(load_file(target)["pool.keys"], memory.pool.keys)
    with safe_open(target, framework="pt") as file:
        assert list(file.metadata()) == ["remanence"]
