"""A byte of a memory's files that was changed is found, wherever it lies."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from remanence.errors import CorruptMemoryError, MemoryFileError
from remanence.memory import Memory
from remanence.memory.envelope import folder_of
from tests.support.contents import contents
from tests.support.kinds import KINDS, blocks
from tests.support.longterms import use_small_blocks

OLD = sorted(Path("tests/golden/memories").resolve().glob("*.mem"))
NEW = ["pool", "long-term, disk", "long-term, int8", "published", "text", "text, int8", "text, not kept"]
COUNTS = [200, pytest.param(2000, marks=pytest.mark.slow)]


def changes(files: list[Path], count: int) -> Iterator[tuple[Path, int, int]]:
    """File, place, new byte. Every other change is where files are most easily misunderstood: in their headers."""
    rng = random.Random(0)
    for number in range(count):
        path = files[0] if rng.random() < 0.6 else rng.choice(files)
        content = path.read_bytes()
        header = 8 + int.from_bytes(content[:8], "little")
        at = rng.randrange(8) if number % 20 == 0 else rng.randrange(header if number % 2 else len(content))
        was = content[at]
        yield path, at, rng.choice([byte for byte in (*range(256), *b'0123456789",.{}[] eE-') if byte != was])


def damaged(files: list[Path], count: int) -> Iterator[Path]:
    """The files with one byte changed at a time; afterwards they are as they were. Gives the file that was changed."""
    for path, at, to in changes(files, count):
        before = path.read_bytes()
        path.write_bytes(before[:at] + bytes([to]) + before[at + 1 :])
        yield path
        path.write_bytes(before)


@pytest.mark.parametrize("kind", NEW)
@pytest.mark.parametrize("count", COUNTS)
def test_load_finds_any_byte_that_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, count: int
) -> None:
    use_small_blocks(monkeypatch)
    target, refused = tmp_path / "m", 0
    memory = KINDS[kind]()
    memory.save(target)
    before = contents(memory)
    for _ in damaged([target, *blocks(target)], count):
        try:
            assert contents(Memory.load(target)) == before
        except MemoryFileError:
            refused += 1
    assert refused > 0.95 * count


@pytest.mark.parametrize("saved", OLD, ids=lambda path: path.stem)
@pytest.mark.parametrize("count", COUNTS)
def test_load_of_an_old_file_refuses_what_it_cannot_read(tmp_path: Path, saved: Path, count: int) -> None:
    """Version 0.1 has digests of blocks only: other changes are refused, or lead to a memory."""
    target, refused = tmp_path / saved.name, 0
    shutil.copy(saved, target)
    if blocks(saved):
        shutil.copytree(folder_of(saved), folder_of(target))
    before = contents(Memory.load(target))
    for path in damaged([target, *blocks(target)], count):
        try:
            loaded = Memory.load(target)
        except MemoryFileError:
            refused += 1
        except CorruptMemoryError:
            assert path == target
        else:
            assert path == target or contents(loaded) == before
    assert refused > 0.3 * count


@pytest.mark.parametrize("kind", ["pool", "long-term, disk", "text, int8"])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.5, 0.999])
def test_load_refuses_files_that_were_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, share: float
) -> None:
    use_small_blocks(monkeypatch)
    target = tmp_path / "m"
    KINDS[kind]().save(target)
    for path in (target, *blocks(target)):
        content = path.read_bytes()
        path.write_bytes(content[: int(share * len(content))])
        with pytest.raises(MemoryFileError, match=f"{path} is truncated"):
            Memory.load(target)
        path.write_bytes(content + b" ")
        with pytest.raises(MemoryFileError, match=f"{path} is truncated, damaged.*bytes"):
            Memory.load(target)
        path.write_bytes(content)
    Memory.load(target)


@pytest.mark.parametrize("content", [b"", b"not a memory", bytes(range(256)) * 40, b"\x08" + bytes(7) + b'{"a": 1}'])
def test_load_refuses_other_bytes(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m").write_bytes(content)
    with pytest.raises(MemoryFileError, match=str(tmp_path / "m")):
        Memory.load(tmp_path / "m")
