"""Loaded memories: as they were saved, in any tier, and nobody else's."""

from pathlib import Path

import pytest
import torch

from remanence.config import StorageConfig, Tier
from remanence.errors import InvalidInputError, MemoryFileError
from remanence.memory import Memory
from remanence.memory.envelope import folder_of
from tests.support.contents import contents
from tests.support.kinds import DISK, KINDS, TIERS, WRITES, go_on, longterm_of, on_disk, told, written
from tests.support.longterms import bits, random

pytestmark = pytest.mark.usefixtures("small_blocks")


@pytest.mark.parametrize("kind", KINDS)
def test_load_gives_back_what_was_saved_and_it_goes_on_the_same_way(target: Path, kind: str) -> None:
    memory = KINDS[kind]()
    before = contents(memory)
    memory.save(target)
    assert contents(memory) == before
    loaded = Memory.load(target)
    assert loaded.nbytes == memory.nbytes and loaded.keep_hidden == memory.keep_hidden
    for number in range(WRITES, WRITES + 5):
        assert contents(loaded) == contents(memory)
        go_on(memory, number)
        go_on(loaded, number)


@pytest.mark.parametrize("kind", KINDS)
def test_from_state_gives_back_what_state_took_as_often_as_asked(kind: str) -> None:
    memory = KINDS[kind]()
    state, before = memory.state(), contents(memory)
    first, second = Memory.from_state(state), Memory.from_state(state)
    for number in range(WRITES, WRITES + 5):
        go_on(memory, number)
        go_on(first, number)
    assert contents(second) == before and contents(first) == contents(memory)
    assert contents(Memory.from_state(state)) == before


def tier_of(memory: Memory) -> Tier:
    return memory.chunks.storage.tier if memory.chunks is not None else longterm_of(memory).layout.storage.tier


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("before", TIERS)
@pytest.mark.parametrize("after", TIERS)
@pytest.mark.parametrize("text", [False, True])
def test_load_moves_slots_to_any_tier_that_keeps_them(
    target: Path, before: Tier, after: Tier, int8: bool, text: bool
) -> None:
    storage = StorageConfig(before, int8)
    memory = told(storage, capacity=30) if text else written(storage=storage, capacity=300)
    memory.save(target)
    loaded = Memory.load(target, storage=StorageConfig(after))
    assert sum(loaded.nbytes.values()) == sum(memory.nbytes.values()) and tier_of(loaded) == after
    for number in range(WRITES, WRITES + 4):
        assert contents(loaded) == contents(memory)
        go_on(memory, number)
        go_on(loaded, number)


def test_load_moves_slots_into_the_text_tier(target: Path) -> None:
    memory, text = told(StorageConfig("host", int8=True)), told()
    memory.save(target)
    loaded = Memory.load(target, storage=StorageConfig("text"))
    assert contents(loaded) == contents(text) and "host" not in loaded.nbytes
    loaded.save(target)
    assert not folder_of(target).exists()


@pytest.mark.parametrize(
    ("kind", "tier", "says"),
    [
        ("text", "host", "load it without storage="),
        ("text, not kept", "text", "keep_text=False"),
        ("long-term, host", "text", "another tier"),
    ],
)
def test_load_refuses_a_tier_that_a_memory_cannot_have(target: Path, kind: str, tier: Tier, says: str) -> None:
    memory = KINDS[kind]()
    memory.save(target)
    for load in (lambda: Memory.load(target, storage=StorageConfig(tier)), lambda: from_state(memory, tier)):
        with pytest.raises(InvalidInputError, match=says):
            load()


def from_state(memory: Memory, tier: Tier) -> Memory:
    return Memory.from_state(memory.state(), storage=StorageConfig(tier))


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("after", TIERS)
def test_load_moves_slots_into_int8_and_out_of_it(target: Path, after: Tier, int8: bool) -> None:
    memory = written(storage=StorageConfig("disk", int8))
    memory.save(target)
    loaded = Memory.load(target, storage=StorageConfig(after, not int8))
    for layer in range(2):
        asked = random(5, 3, seed=layer)
        old, new = longterm_of(memory).retrieve(layer, asked), longterm_of(loaded).retrieve(layer, asked)
        assert torch.equal(old.positions, new.positions)
        # what int8 made of the numbers stays; rounding them is off by half a step at most
        assert torch.allclose(old.keys, new.keys, atol=0 if int8 else 0.02)
        assert torch.equal(old.values, new.values) == int8
    loaded.save(target)
    assert contents(Memory.load(target)) == contents(loaded)


def rows_of(memory: Memory) -> list[dict[str, bytes]]:
    """What lies in the blocks, as it lies there."""
    used = (WRITES - 1) * 64 - 256
    return [
        {name: bits(part.first(256 if number == 0 else used)) for name, part in block.rows.items()}
        for layer in longterm_of(memory).layers
        for number, block in layer.blocks.items()
    ]


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("storage", [None, *(StorageConfig(tier) for tier in TIERS)])
def test_load_keeps_slots_as_they_were_saved_unless_asked_otherwise(
    target: Path, storage: StorageConfig | None, int8: bool
) -> None:
    memory = written(storage=StorageConfig("disk", int8))
    memory.save(target)
    loaded = Memory.load(target, storage=storage)
    assert longterm_of(loaded).layout.storage.int8 == int8
    assert rows_of(loaded) == rows_of(memory)


@pytest.mark.parametrize("there", [True, False])
def test_load_puts_working_files_where_they_were_if_that_is_still_there(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, there: bool
) -> None:
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    memory = written(storage=StorageConfig("disk", int8=True, folder=Path("work")))
    memory.save(target)
    if not there:
        folder.rmdir()
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    loaded = Memory.load(target)
    expected = StorageConfig("disk", int8=True, folder=folder if there else None)
    assert longterm_of(loaded).layout.storage == expected
    for number in range(WRITES, WRITES + 3):  # more blocks than were saved
        go_on(loaded, number)


def test_load_owns_its_tensors_whatever_happens_to_the_files(target: Path) -> None:
    for kind in KINDS:
        memory = KINDS[kind]()
        memory.save(target, overwrite=True)
        loaded, before = Memory.load(target), contents(memory)
        for file in on_disk(target):
            Path(file).write_bytes(b"")  # in place, as `cp` writes over a file
        assert contents(loaded) == before
        go_on(loaded, 50)


def test_load_of_files_that_were_removed_still_goes_on(target: Path) -> None:
    memory = written(storage=DISK)
    memory.save(target)
    loaded, twin = Memory.load(target), memory.fork()
    for file in on_disk(target):
        Path(file).unlink()
    for number in range(20, 26):
        go_on(loaded, number)
        go_on(twin, number)
    assert contents(loaded) == contents(twin)
    loaded.save(target)
    assert contents(Memory.load(target)) == contents(loaded)


def test_load_after_a_move_with_the_folder(target: Path, tmp_path: Path) -> None:
    memory = written(storage=DISK)
    memory.save(target)
    moved = tmp_path / "elsewhere" / "n"
    moved.parent.mkdir()
    target.rename(moved)
    folder_of(target).rename(folder_of(moved))
    assert contents(Memory.load(moved)) == contents(memory)


def test_load_of_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    for missing in (tmp_path / "nowhere", tmp_path / "no" / "where"):
        with pytest.raises(FileNotFoundError, match=str(missing)):
            Memory.load(missing)
    with pytest.raises(MemoryFileError, match="is a folder"):
        Memory.load(tmp_path)
