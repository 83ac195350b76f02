"""Where long-term slots lie, how much room they take, and which model a memory belongs to."""

import json
from pathlib import Path

import pytest
import torch

from remanence import Memory, MemoryModel
from remanence.checkpoints import bundled
from remanence.memory import Storage
from tests.support.cli import a_memory, done, refused
from tests.support.tiny import decoder, tokenizer, with_memory

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


@pytest.mark.usefixtures("with_longterm")
def test_long_term_slots_do_not_become_text() -> None:
    done("write", "long.mem", "notes.txt")
    assert "cannot be made again" in refused("write", "long.mem", "notes.txt", "--tier", "text")
    assert "cannot be made again" in refused("write", "new.mem", "notes.txt", "--tier", "text")


def test_slots_of_a_text_memory_lie_in_the_tier_that_its_first_write_names(text_checkpoint: str) -> None:
    model = ["--model", text_checkpoint]
    a_memory(*model)
    assert json.loads(done("show", "notes.mem", "--json"))["tier"] == "text"
    assert "no slots that could move" in refused("write", "notes.mem", "notes.txt", "--tier", "disk", *model)
    done("write", "disk.mem", "notes.txt", "--tier", "disk", *model)
    done("write", "disk.mem", "notes.txt", *model)
    done("write", "int8.mem", "notes.txt", "--int8", *model)
    for name, tier, int8 in (("disk.mem", "disk", False), ("int8.mem", "host", True)):
        details = json.loads(done("show", name, "--json"))
        assert (details["tier"], details["int8"]) == (tier, int8)
        assert details["bytes"] == Memory.load(name).nbytes
    done("write", "disk.mem", "notes.txt", "--tier", "host", *model)
    assert json.loads(done("show", "disk.mem", "--json"))["tier"] == "host"
    assert done("ask", "disk.mem", "Where was Alice Brown born?", *model) != ""


def test_a_tier_without_long_term_slots_is_refused() -> None:
    path = str(a_memory())
    assert "this memory has no long-term slots" in refused("write", path, "notes.txt", "--tier", "disk")
    assert "this model has no long-term slots" in refused("write", "new.mem", "notes.txt", "--int8")
    assert "this model has no long-term slots" in refused("eval", "retention", "--tier", "host", "--count", "1")


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
    assert "--model tiny" in done("show", "tiny.mem")
    details = json.loads(done("show", "tiny.mem", "--model", "tiny_longterm", "--json"))
    assert (details["model_name"], details["checkpoint"], details["readable"]) == ("tiny", "tiny", False)
    assert details["differs"] == ["model", "retrieval_size"]
    assert json.loads(done("show", "tiny.mem", "--model", "tiny", "--json"))["readable"] is True


def test_a_memory_that_the_api_wrote_names_its_bundled_checkpoint_too() -> None:
    model = MemoryModel.from_pretrained(bundled("tiny"))
    memory = model.new_memory()
    model.write(memory, NOTES)
    memory.save("api.mem")
    assert json.loads(done("show", "api.mem", "--json"))["checkpoint"] == "tiny"
    assert refused("ask", "api.mem", "Who?", "--model", "tiny_longterm").endswith("use --model tiny")


def test_a_memory_that_does_not_say_is_recognised_by_its_weights() -> None:
    model = MemoryModel.from_pretrained(bundled("tiny"))
    model.name = ""  # as in files of version 0.1
    memory = model.new_memory()
    model.write(memory, NOTES)
    memory.save("old.mem")
    assert refused("ask", "old.mem", "Who?", "--model", "tiny_longterm").endswith("use --model tiny")
    assert "not known" in done("show", "old.mem")


def test_a_memory_of_the_same_model_before_it_was_trained_on_is_refused(tmp_path: Path) -> None:
    for seed in (1, 2):
        model = with_memory(decoder(vocab_size=300, num_hidden_layers=1), tokenizer=tokenizer())
        torch.manual_seed(seed)
        torch.nn.init.normal_(model.new_memory_positional_emb)
        model.save_pretrained(tmp_path / "mine")
        if seed == 1:
            a_memory("--model", "mine")
    assert "was written by mine as it was then" in refused("ask", "notes.mem", "Who?", "--model", "mine")
