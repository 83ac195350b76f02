"""Saved long-term memory: it comes back from any tier into any other, and no accident costs what was saved before."""

import errno
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from remanence.memory.tiers import TIERS, Tier
from safetensors.torch import save_file

from remanence import Memory
from remanence.errors import MemoryFileError
from remanence.memory import LongTerm, LongTermRules, Storage
from remanence.memory import saving as module
from remanence.memory import tiers as tiers_module
from tests.support.longterms import bits, everything, random, use_small_blocks, write, written
from tests.support.tiny import decoder, ids, with_memory

WRITES = 7  # 384 slots: a full block and half of another in each layer
DISK = Storage("disk")


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch)


@pytest.fixture
def target(tmp_path: Path) -> Path:
    return tmp_path / "m.safetensors"


def longterm_of(memory: Memory) -> LongTerm:
    assert memory.longterm is not None
    return memory.longterm


def state(memory: Memory) -> dict[str, Any]:
    pool = {name: bits(tensor) for name, tensor in memory.pool.tensors.items()}
    return {**pool, **everything(longterm_of(memory)), "writes": memory.writes}


def files(target: Path) -> list[Path]:
    """The blocks beside a memory: of both layers, the full one first."""
    return sorted(module.folder_of(target).iterdir())


def contents(target: Path) -> dict[str, bytes]:
    return {str(file): file.read_bytes() for file in target.parent.rglob("*") if file.is_file()}


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("before", TIERS)
@pytest.mark.parametrize("after", [*TIERS, None])
def test_a_memory_comes_back_in_every_tier_and_goes_on_the_same_way(
    target: Path, before: Tier, after: Tier | None, int8: bool
) -> None:
    memory = written(WRITES, LongTermRules(retrieved=7, capacity=300), Storage(before, int8))
    memory.save(target)
    loaded = Memory.load(target, storage=None if after is None else Storage(after, int8))
    assert longterm_of(loaded).layout.storage.tier == (after or before)
    for number in range(WRITES, WRITES + 4):
        assert state(loaded) == state(memory)
        write(memory, number)
        write(loaded, number)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("after", TIERS)
def test_a_memory_moves_into_int8_and_out_of_it(target: Path, after: Tier, int8: bool) -> None:
    memory = written(WRITES, storage=Storage("disk", int8))
    memory.save(target)
    loaded = Memory.load(target, storage=Storage(after, not int8))
    for layer in range(2):
        asked = random(5, 3, seed=layer)
        old, new = longterm_of(memory).retrieve(layer, asked), longterm_of(loaded).retrieve(layer, asked)
        assert torch.equal(old.positions, new.positions)
        # what int8 made of the numbers stays; rounding them is off by half a step at most
        assert torch.allclose(old.keys, new.keys, atol=0 if int8 else 0.02)
        assert torch.equal(old.values, new.values) == int8
    loaded.save(target)
    assert state(Memory.load(target)) == state(loaded)


def test_recall_frequencies_and_the_buffer_come_back(target: Path) -> None:
    rules = LongTermRules(70, policy="recall_frequency", merge_after=128, initial_frequency=3.0, repeat=True)
    memory = written(8, rules)  # merges after 2, 4 and 6 evictions; the third deletes slots
    memory.save(target)
    loaded, held = Memory.load(target), longterm_of(memory)
    assert held.sizes() == [256, 256] and held.buffered() == [64, 64] and held.layers[0].start > 0
    for number in range(8, 14):
        assert state(loaded) == state(memory)
        write(memory, number)
        write(loaded, number)


@pytest.mark.parametrize("tier", TIERS)
def test_a_loaded_memory_reads_the_same_logits(target: Path, tier: Tier) -> None:
    model = with_memory(decoder(), longterm=LongTermRules(retrieved=8), retrieval_size=16)
    memory = model.new_memory(storage=Storage(tier))
    for number in range(5):
        model.write(memory, ids(9, seed=number))
    memory.save(target)
    loaded = Memory.load(target)
    assert torch.equal(model.read(loaded, ids(7)).logits, model.read(memory, ids(7)).logits)
    model.write(memory, ids(20))
    model.write(loaded, ids(20))
    assert torch.equal(model.read(loaded, ids(7)).logits, model.read(memory, ids(7)).logits)


@pytest.mark.parametrize("storage", [Storage("host"), DISK])
@pytest.mark.parametrize("reloaded", [False, True])
def test_saving_again_leaves_full_blocks_alone_and_clears_up(target: Path, storage: Storage, reloaded: bool) -> None:
    memory = written(WRITES, storage=storage)
    memory.save(target)
    old = {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files(target)}
    full = [name for name in old if "block-000000" in name]
    memory = Memory.load(target) if reloaded else memory
    write(memory, WRITES)
    memory.save(target)
    new = {file.name: (file.stat().st_ino, file.stat().st_mtime_ns) for file in files(target)}
    assert len(full) == 2 and len(old) == len(new) == 4
    assert old.keys() & new.keys() == set(full) and all(old[name] == new[name] for name in full)


def test_files_of_blocks_that_were_dropped_go(target: Path) -> None:
    memory = written(WRITES, LongTermRules(retrieved=7, capacity=100), DISK)
    memory.save(target)
    assert [file.name[:22] for file in files(target)] == ["layer-000-block-000001", "layer-001-block-000001"]
    assert state(Memory.load(target)) == state(memory)


def test_a_memory_can_be_moved_with_its_folder(target: Path, tmp_path: Path) -> None:
    memory = written(WRITES, storage=DISK)
    memory.save(target)
    moved = tmp_path / "elsewhere" / "n"
    moved.parent.mkdir()
    target.rename(moved)
    module.folder_of(target).rename(module.folder_of(moved))
    assert state(Memory.load(moved)) == state(memory)


def test_a_memory_can_be_saved_in_two_places(target: Path, tmp_path: Path) -> None:
    memory = written(WRITES, storage=DISK)
    places = [target, tmp_path / "n"]
    for place in (*places, target):
        memory.save(place)
    for place in places:
        assert state(Memory.load(place)) == state(memory)


def cut(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-5] ^= 1
    file.write_bytes(content)


@pytest.mark.parametrize(("damage", "says"), [(Path.unlink, "missing"), (cut, "cut or"), (flip, "changed")])
@pytest.mark.parametrize("which", range(4))
def test_a_damaged_block_is_named(target: Path, damage: Callable[[Path], None], says: str, which: int) -> None:
    written(WRITES, storage=DISK).save(target)
    file = files(target)[which]
    damage(file)
    before = contents(target)
    with pytest.raises(MemoryFileError, match=f"{file}.*{says}"):
        Memory.load(target)
    assert contents(target) == before


@pytest.mark.parametrize(
    ("holder", "name", "after"),
    [(module, "save_file", 0), (module, "save_file", 3), (module, "save_file", 4)]
    + [(os, "replace", calls) for calls in (0, 1, 5, 8)],
)
@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_an_interrupted_save_leaves_the_old_memory(
    target: Path, monkeypatch: pytest.MonkeyPatch, holder: Any, name: str, after: int, error: type[BaseException]
) -> None:
    memory = written(WRITES, storage=DISK)
    memory.save(target)
    before = state(memory)
    for number in range(4):  # the next save writes two more full blocks, two parts of blocks and the main file
        write(memory, WRITES + number)
    real, calls = getattr(holder, name), iter(range(after))

    def failing(*args: Any, **settings: Any) -> None:
        if next(calls, None) is None:
            raise error(errno.ENOSPC, "No space left on device")
        real(*args, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(holder, name, failing)
        with pytest.raises(MemoryFileError if error is OSError else error):
            memory.save(target)
    assert state(Memory.load(target)) == before
    assert all(file.suffix == ".safetensors" for file in (target, *files(target)))
    assert [path.name for path in sorted(target.parent.iterdir())] == [target.name, target.name + ".longterm"]
    memory.save(target)
    assert state(Memory.load(target)) == state(memory) and len(files(target)) == 6


@pytest.mark.parametrize("storage", [Storage("host"), DISK])
@pytest.mark.parametrize("saved_before", [False, True])
@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_save_that_fails_leaves_no_files_of_its_own(
    target: Path, monkeypatch: pytest.MonkeyPatch, storage: Storage, saved_before: bool, after: int
) -> None:
    memory = written(WRITES, storage=storage)
    if saved_before:
        memory.save(target)
    for number in range(4):
        write(memory, WRITES + number)
    before, held, turns = sorted(target.parent.rglob("*")), state(memory), iter(range(after))

    def full(*args: Any, **settings: Any) -> None:
        if next(turns, None) is None:
            raise OSError(errno.ENOSPC, "No space left on device")
        save_file(*args, **settings)

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_file", full)
        with pytest.raises(MemoryFileError, match="No space left"):
            memory.save(target)
    assert sorted(target.parent.rglob("*")) == before and state(memory) == held
    memory.save(target)
    assert state(Memory.load(target)) == held


def test_a_save_cut_off_at_its_very_end_is_whole(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    memory, real = written(WRITES), os.replace
    memory.save(target)
    write(memory, WRITES)

    def interrupted(partial: Path, final: Path) -> None:
        real(partial, final)
        if final == target:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            memory.save(target)
    assert state(Memory.load(target)) == state(memory)


def test_files_of_blocks_have_the_permissions_of_any_other(target: Path) -> None:
    before = os.umask(0o027)
    try:
        written(WRITES).save(target)
    finally:
        os.umask(before)
    assert {file.stat().st_mode & 0o777 for file in (target, *files(target))} == {0o640}


def rows_of(memory: Memory) -> list[dict[str, bytes]]:
    """What lies in the blocks, as it lies there."""
    used = (WRITES - 1) * 64 - 256
    return [
        {name: bits(part.first(256 if number == 0 else used)) for name, part in block.rows.items()}
        for layer in longterm_of(memory).layers
        for number, block in layer.blocks.items()
    ]


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("storage", [None, *(Storage(tier) for tier in TIERS)])
def test_slots_are_kept_as_they_were_saved_unless_asked_otherwise(
    target: Path, storage: Storage | None, int8: bool
) -> None:
    memory = written(WRITES, storage=Storage("disk", int8))
    memory.save(target)
    loaded = Memory.load(target, storage=storage)
    assert longterm_of(loaded).layout.storage.int8 == int8
    assert rows_of(loaded) == rows_of(memory)


@pytest.mark.parametrize("there", [True, False])
def test_working_files_go_where_they_went_if_that_is_still_there(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    memory = written(WRITES, storage=Storage("disk", int8=True, folder=Path("work")))
    memory.save(target)
    if not there:
        folder.rmdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = Memory.load(target)
    assert longterm_of(loaded).layout.storage == Storage("disk", int8=True, folder=folder if there else None)
    for number in range(WRITES, WRITES + 3):  # more blocks than were saved
        write(loaded, number)


def test_a_memory_moves_whole_or_not_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    memory = written(WRITES)
    before = state(memory)

    def full(self: LongTerm, device: torch.device) -> LongTerm:
        raise torch.OutOfMemoryError(f"no room on {device}")

    with monkeypatch.context() as patch:
        patch.setattr(LongTerm, "to", full)
        with pytest.raises(torch.OutOfMemoryError):
            memory.to("meta")
    assert memory.devices == {torch.device("cpu")} and state(memory) == before
    assert memory.to("meta").devices == {torch.device("meta")}


def test_a_memory_that_a_device_has_no_room_for_is_not_called_damaged(
    target: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written(WRITES).save(target)

    def full(*args: Any, **settings: Any) -> None:
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(tiers_module.Block, "empty", full)
    with pytest.raises(torch.OutOfMemoryError):
        Memory.load(target)


def test_a_file_where_the_folder_should_be_is_named(target: Path) -> None:
    module.folder_of(target).touch()
    with pytest.raises(MemoryFileError, match=r"cannot make .*longterm"):
        written(3).save(target)
    assert not target.exists()


def test_forks_of_a_memory_loaded_from_disk_go_separate_ways(target: Path) -> None:
    written(WRITES, storage=DISK).save(target)
    before = contents(target)
    memory = Memory.load(target)
    fork, twins = memory.fork(), [written(WRITES), written(WRITES)]
    for number in range(6):
        for one, offset in ((memory, 20), (fork, 30), (twins[0], 20), (twins[1], 30)):
            write(one, offset + number)
    assert state(memory) == state(twins[0]) != state(twins[1]) == state(fork)
    assert contents(target) == before


def test_a_memory_outlives_the_files_that_it_was_loaded_from(target: Path) -> None:
    memory = written(WRITES, storage=DISK)
    memory.save(target)
    loaded, before = Memory.load(target), state(memory)
    other = Memory(memory.spec, seed=5, longterm=written(1).longterm)
    for number in range(WRITES):
        write(other, 50 + number)
    other.save(target)
    assert state(loaded) == state(memory) == before != state(Memory.load(target))
    loaded.save(target, overwrite=True)
    assert state(Memory.load(target)) == before


def test_blocks_of_another_size_are_refused(target: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written(WRITES).save(target)
    monkeypatch.setattr(tiers_module, "_BLOCK_BYTES", 2**15)
    with pytest.raises(MemoryFileError, match="blocks of 256 rows"):
        Memory.load(target)


def test_files_that_are_not_ours_stay(target: Path) -> None:
    folder = module.folder_of(target)
    folder.mkdir()
    (folder / "thesis.txt").write_text("years of work")
    memory = written(WRITES, LongTermRules(retrieved=7, capacity=300), Storage())
    memory.save(target)
    memory.pool_only().save(target)
    assert [file.name for file in folder.iterdir()] == ["thesis.txt"]


def test_two_that_save_to_one_path_leave_a_memory_that_loads(target: Path) -> None:
    context = multiprocessing.get_context("spawn")
    savers = [context.Process(target=save_often, args=(target, seed)) for seed in range(2)]
    for saver in savers:
        saver.start()
    for saver in savers:
        saver.join()
    loader = context.Process(target=Memory.load, args=(target,))
    loader.start()
    loader.join()
    assert [one.exitcode for one in (*savers, loader)] == [0, 0, 0]


def save_often(target: Path, seed: int) -> None:
    for writes in range(6):
        written(4 + seed + writes, LongTermRules(retrieved=7, capacity=300), Storage()).save(target)


def test_a_block_that_was_cut_on_disk_is_written_again(target: Path) -> None:
    memory = written(WRITES, LongTermRules(retrieved=7, capacity=300), Storage())
    memory.save(target)
    before = everything(longterm_of(memory))
    for file in files(target)[:1]:
        cut(file)
    memory.save(target)
    assert everything(longterm_of(Memory.load(target))) == before
