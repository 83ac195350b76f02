"""Where long-term slots lie, how much room they take, and which model a memory belongs to."""

import json
from pathlib import Path

import pytest

from remanence import Memory
from remanence.memory import Storage
from tests.support.cli import a_memory, done, refused

NOTES = "\n\n".join(f"Alice Brown was born in Oslo in {year}." for year in range(1950, 1960))


def storage_of(path: str) -> Storage:
    longterm = Memory.load(path).longterm
    assert longterm is not None
    return longterm.layout.storage


@pytest.fixture
def with_longterm(longterm_checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMANENCE_MODEL", longterm_checkpoint)
    Path("notes.txt").write_text(NOTES)


@pytest.mark.usefixtures("with_longterm")
def test_a_memory_moves_to_the_tier_that_a_write_names_and_stays_there() -> None:
    done("write", "long.mem", "notes.txt")
    assert storage_of("long.mem") == Storage("host", int8=False)
    done("write", "long.mem", "notes.txt", "--tier", "disk")
    assert storage_of("long.mem") == Storage("disk", int8=False)
    done("write", "long.mem", "notes.txt", "--int8")
    assert storage_of("long.mem") == Storage("disk", int8=True)
    done("write", "long.mem", "notes.txt")
    assert storage_of("long.mem") == Storage("disk", int8=True)
    longterm = Memory.load("long.mem").longterm
    assert longterm is not None
    assert longterm.sizes() == [39 * 6]
    assert done("ask", "long.mem", "Where?") != ""


def test_a_tier_without_long_term_slots_is_refused() -> None:
    path = str(a_memory())
    assert "this memory has no long-term slots" in refused("write", path, "notes.txt", "--tier", "disk")
    assert "this model has no long-term slots" in refused("write", "new.mem", "notes.txt", "--int8")
    assert "this model has no long-term slots" in refused("eval", "retention", "--tier", "host", "--samples", "1")


@pytest.mark.usefixtures("with_longterm")
def test_bytes_on_disk_count_the_folder_of_long_term_slots() -> None:
    done("write", "long.mem", "notes.txt")
    beside = sum(file.stat().st_size for file in Path("long.mem.longterm").iterdir())
    assert beside > 0
    details = json.loads(done("show", "long.mem", "--json"))
    assert details["file_bytes"] == Path("long.mem").stat().st_size + beside
    assert f"{details['file_bytes']:,}" in done("chat", "long.mem", stdin="/show\n")


def test_a_memory_of_another_bundled_checkpoint_is_refused_with_its_name() -> None:
    Path("notes.txt").write_text(NOTES)
    done("write", "tiny.mem", "notes.txt", "--model", "tiny")
    for words in (["ask", "tiny.mem", "Who?"], ["write", "tiny.mem", "notes.txt"], ["chat", "tiny.mem"]):
        assert refused(*words, "--model", "tiny_longterm").endswith("use --model tiny")
    assert "use --model tiny" in done("show", "tiny.mem", "--model", "tiny_longterm")
    assert json.loads(done("show", "tiny.mem", "--model", "tiny_longterm", "--json"))["checkpoint"] == "tiny"
