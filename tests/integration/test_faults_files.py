"""Files of memories: no save undoes another unasked, a loaded memory is a value, and links are followed."""

import faulthandler
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from remanence import Memory, MemoryModel
from remanence.config import LongTermConfig
from remanence.errors import MemoryConflictError, RemanenceError
from remanence.memory import Storage
from tests.support.longterms import use_small_blocks
from tests.support.reading import written
from tests.support.tiny import ids, with_memory

LONGTERM: dict[str, Any] = {"longterm": LongTermConfig(retrieved=1000), "retrieval_size": 8}  # all of it is read


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch)


def state(model: MemoryModel, memory: Memory) -> Tensor:
    """Logits that hang on every slot there is."""
    return model.read(memory, ids(5)).logits


def full(model: MemoryModel, seed: int, writes: int = 60, **settings: Any) -> Memory:
    """With a full block of long-term slots and a part of one, where the model has long-term memory."""
    memory = model.new_memory(seed=seed, **settings)
    for number in range(writes):
        model.write(memory, ids(20, seed=100 * seed + number))
    return memory


# Two that save to one file.


def another_new_one(model: MemoryModel, folder: Path) -> Memory:
    return written(model, 2)


def one_saved_elsewhere(model: MemoryModel, folder: Path) -> Memory:
    memory = written(model, 2)
    memory.save(folder / "elsewhere")
    return memory


def one_loaded_from_elsewhere(model: MemoryModel, folder: Path) -> Memory:
    one_saved_elsewhere(model, folder)
    return Memory.load(folder / "elsewhere")


def a_fork_of_one_that_was_never_saved(model: MemoryModel, folder: Path) -> Memory:
    return written(model, 2).fork()


@pytest.mark.parametrize("settings", [{}, LONGTERM], ids=["a pool", "long-term memory"])
@pytest.mark.parametrize(
    "make", [another_new_one, one_saved_elsewhere, one_loaded_from_elsewhere, a_fork_of_one_that_was_never_saved]
)
def test_save_onto_a_file_that_this_memory_never_saw_is_a_conflict(
    make: Callable[..., Memory], settings: dict[str, Any], tmp_path: Path
) -> None:
    model, target = with_memory(**settings), tmp_path / "notes.mem"
    first = written(model, 1)
    second = make(model, tmp_path)
    first.save(target)
    with pytest.raises(MemoryConflictError, match="overwrite=True"):
        second.save(target)
    assert torch.equal(state(model, Memory.load(target)), state(model, first))
    second.save(target, overwrite=True)
    second.save(target)
    assert torch.equal(state(model, Memory.load(target)), state(model, second))
    with pytest.raises(MemoryConflictError):
        first.save(target)


def test_save_onto_a_file_that_is_no_memory_is_refused(tmp_path: Path) -> None:
    target = tmp_path / "notes.txt"
    target.write_text("Alice Brown was born in Oslo.")
    with pytest.raises(RemanenceError):
        written(with_memory()).save(target)
    assert target.read_text() == "Alice Brown was born in Oslo."


# What happens to a file later.


def written_over(file: Path, other: Path) -> None:
    """In place, as `cp` and `rsync --inplace` write."""
    with open(file, "r+b") as opened:
        opened.write(other.read_bytes())
        opened.truncate()


@pytest.mark.parametrize("settings", [{}, LONGTERM], ids=["a pool", "long-term memory"])
def test_a_loaded_memory_stays_when_its_file_is_written_over(settings: dict[str, Any], tmp_path: Path) -> None:
    model = with_memory(**settings)
    for seed in (1, 2):
        written(model, seed).save(tmp_path / str(seed))
    held, before = Memory.load(tmp_path / "1"), state(model, written(model, 1))
    written_over(tmp_path / "1", tmp_path / "2")
    assert torch.equal(state(model, held), before)


@pytest.mark.parametrize("tier", ["device", "host", "disk"])
def test_a_loaded_memory_stays_when_files_of_its_long_term_slots_are_written_over(tier: Any, tmp_path: Path) -> None:
    model = with_memory(**LONGTERM)
    memory = full(model, 1)
    memory.save(tmp_path / "m")
    held, before = Memory.load(tmp_path / "m", storage=Storage(tier)), state(model, memory)
    files = sorted((tmp_path / "m.longterm").iterdir())
    assert len(files) > 3
    for file in files:
        with open(file, "r+b") as opened:
            opened.write(b"\xff" * file.stat().st_size)
    assert torch.equal(state(model, held), before)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("cut", "tier"),
    [
        ("its file", "host"),
        ("its file", "disk"),
        ("its long-term slots", "host"),
        ("its long-term slots", "disk"),
    ],
)
def test_a_process_outlives_a_cut_of_the_file_that_it_loaded(cut: str, tier: Any, tmp_path: Path) -> None:
    model = with_memory(**LONGTERM)
    memory = full(model, 1)
    memory.save(tmp_path / "m")
    before = state(model, memory)
    child = os.fork()
    if not child:
        signal.alarm(60)  # rather than hang
        faulthandler.disable()  # a crash is what is looked for
        code = 3
        try:
            held = Memory.load(tmp_path / "m", storage=Storage(tier))
            for file in [tmp_path / "m"] if cut == "its file" else (tmp_path / "m.longterm").iterdir():
                file.open("wb").close()
            code = 0 if torch.equal(state(model, held), before) else 2
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


# Links.


def linked_file(folder: Path) -> tuple[Path, Path]:
    (folder / "link").symlink_to(folder / "disk" / "m")
    return folder / "disk" / "m", folder / "link"


def linked_by_a_relative_path(folder: Path) -> tuple[Path, Path]:
    (folder / "link").symlink_to(Path("disk") / "m")
    return folder / "disk" / "m", folder / "link"


def linked_twice(folder: Path) -> tuple[Path, Path]:
    real, link = linked_file(folder)
    (folder / "again").symlink_to(link)
    return real, folder / "again"


def in_a_linked_folder(folder: Path) -> tuple[Path, Path]:
    (folder / "linked").symlink_to(folder / "disk")
    return folder / "disk" / "m", folder / "linked" / "m"


LINKS = [
    linked_file,
    linked_by_a_relative_path,
    linked_twice,
    in_a_linked_folder,
]


@pytest.fixture(params=LINKS)
def linked(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Path]:
    """Where a memory is to be, and a link that leads there."""
    (tmp_path / "disk").mkdir()
    make: Callable[[Path], tuple[Path, Path]] = request.param
    return make(tmp_path)


every_memory = pytest.mark.parametrize("settings", [{}, LONGTERM], ids=["a pool", "long-term memory"])


@every_memory
def test_a_memory_is_loaded_and_saved_through_a_link(
    linked: tuple[Path, Path], settings: dict[str, Any], tmp_path: Path
) -> None:
    real, link = linked
    model = with_memory(**settings)
    memory = full(model, 1, writes=8)
    memory.save(real)
    links = {path for path in tmp_path.rglob("*") if path.is_symlink()}
    held = Memory.load(link)
    model.write(held, ids(20))
    held.save(link)
    assert {path for path in tmp_path.rglob("*") if path.is_symlink()} == links
    for path in (real, link):
        again = Memory.load(path)
        assert again.write_count == 9
        assert torch.equal(state(model, again), state(model, held))
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted({"disk", *(path.name for path in links)})


@every_memory
def test_a_memory_is_made_through_a_link_that_leads_nowhere_yet(
    linked: tuple[Path, Path], settings: dict[str, Any]
) -> None:
    real, link = linked
    model = with_memory(**settings)
    memory = full(model, 1, writes=8)
    memory.save(link)
    assert torch.equal(state(model, Memory.load(real)), state(model, memory))
