"""A chat asks, tells, forgets, says what was read, and saves whenever it is left."""

import re
from pathlib import Path
from typing import Any

import pytest
from rich.control import strip_control_codes

from remanence import Memory, MemoryModel
from remanence.errors import CorruptMemoryError, MemoryFileError
from remanence.model.read import Answer
from tests.support.cli import a_memory, done


@pytest.fixture
def text_slots(text_checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMANENCE_MODEL", text_checkpoint)


def chat(path: Path | str, *lines: str) -> str:
    return done("chat", str(path), stdin="".join(f"{line}\n" for line in lines))


def test_chat_asks_tells_shows_and_saves_at_the_end_of_input() -> None:
    path = a_memory()
    text = chat(path, "Who?", "/tell Bob [Green] lives in Paris.", "/show", "/nonsense")
    assert "written: " in text
    assert "slots per write (K)" in text and "notes.txt" in text
    assert "there is no /nonsense" in text
    assert "saved to notes.mem" in text
    assert Memory.load(path).write_count == 3


def test_chat_makes_a_memory_and_saves_on_demand() -> None:
    text = chat("new.mem", "/write Bob Green lives in Paris.", "/save", "/quit")
    assert Memory.load("new.mem").write_count == 1
    assert text.count("saved to new.mem") == 1
    assert "nothing new to save" in text


def test_chat_help_lists_every_command() -> None:
    text = chat("new.mem", "/help")
    for command in ("/tell TEXT", "/sources", "/why", "/forget ID", "/undo", "/show", "/save", "/help", "/quit"):
        assert re.search(rf"^(> )?  {command}  +\w", text, re.MULTILINE), command
    assert not Path("new.mem").exists()


@pytest.mark.usefixtures("text_slots")
def test_chat_names_what_an_answer_was_read_from() -> None:
    path = a_memory()
    text = chat(path, "/why", "Where was Alice Brown born?", "/sources", "/why", "Zyx?", "/why")
    assert "nothing was asked yet" in text
    assert "from notes.txt [0]" in text
    table, why = text.split("> [0] score ")
    assert "Alice Brown was born in Oslo." in table
    assert re.match(r"[01]\.\d\d, notes\.txt\nAlice Brown was born in Oslo\.\n", why)
    assert "these are the model's own words" in why
    assert "nothing was read for it" in why
    assert "nothing new to save" in why


def test_chat_says_that_what_was_read_does_not_answer(text_slots: None, monkeypatch: pytest.MonkeyPatch) -> None:
    path, answer = a_memory(), Answer("I was not told.", False, [(1, 0.3)])
    monkeypatch.setattr(MemoryModel, "ask", lambda *_, **__: answer)
    text = chat(path, "Who?", "/why")
    assert "I was not told.\nThe memory was not told this.\n" in text
    assert "[1] score 0.30, notes.txt\nShe works as a baker in Bergen.\n" in text


def test_chat_names_each_source_once(text_slots: None, monkeypatch: pytest.MonkeyPatch) -> None:
    path = a_memory()
    answer = Answer("In Oslo.", True, [(1, 0.9), (2, 0.8), (0, 0.7)])
    monkeypatch.setattr(MemoryModel, "ask", lambda *_, **__: answer)
    text = chat(path, "/tell Ann Ray lives in Rome.", "Who?")
    assert "In Oslo.\nfrom notes.txt [1] [0], chat [2]\n" in text


@pytest.mark.usefixtures("text_slots")
def test_chat_explains_an_answer_as_it_was_read_then() -> None:
    path = a_memory()
    text = chat(path, "Where was Alice Brown born?", "/forget 0", "/why", "Where was Alice Brown born?", "/why")
    before, after = text.split("forgotten: write 0")
    assert "from notes.txt [0]" in before
    assert "Alice Brown was born in Oslo." in after.partition("own words")[0]
    assert "[0] score" not in after.partition("own words")[2]


@pytest.mark.usefixtures("text_slots")
def test_chat_forgets_a_write_or_what_was_told_last() -> None:
    path = a_memory()
    lines = [
        "/tell Ann lives in Rome.",
        "/tell Bob lives in Bern.",
        "/forget 0",
        "/undo",
        "/undo",
        "/undo",
        "/forget 9",
    ]
    text = chat(path, *lines, "/forget first", "/forget", "/tell")
    [tokens] = re.findall(r"forgotten: write 0, (\d+) tokens", text)
    assert [line for line in text.splitlines() if "forgotten" in line] == [
        f"> forgotten: write 0, {tokens} tokens",
        "> forgotten: write 3",
        "> forgotten: write 2",
    ]
    assert text.count("error: nothing was told in this conversation") == 1
    assert text.count("error: this memory has no write 9") == 1
    assert text.count("name a write by its number") == 2
    assert "/tell TEXT" in text.splitlines()[-3]
    assert [one.id for one in Memory.load(path).writes] == [1]


def test_chat_with_a_learned_memory_says_in_a_line_that_it_cannot_forget() -> None:
    path = a_memory()
    text = chat(path, "/tell Bob Green lives in Paris.", "/undo", "/forget 0", "Who?", "/sources")
    errors = [line for line in text.splitlines() if "error: " in line]
    assert len(errors) == 2
    assert all("learned memory" in line and "cannot be taken out" in line for line in errors)
    assert "a pool is read as a whole" in text
    assert Memory.load(path).write_count == 3


@pytest.mark.usefixtures("text_slots")
def test_chat_streams_an_answer_and_goes_on_in_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    path, loads, load = a_memory(), list[Any](), MemoryModel.from_pretrained
    monkeypatch.setattr(MemoryModel, "from_pretrained", lambda *given: loads.append(given) or load(*given))
    expected = strip_control_codes(done("ask", str(path), "Where was Alice Brown born?")).strip()
    loads.clear()
    text = chat(path, "Where was Alice Brown born?", "Where was Alice Brown born?")
    assert text.count(expected) == 2
    assert len(loads) == 1


@pytest.mark.parametrize("end", [KeyboardInterrupt, EOFError])
def test_chat_that_cannot_answer_goes_on_and_saves_when_cut_short(
    end: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = a_memory()
    errors = iter([CorruptMemoryError("reading gave no numbers"), end()])

    def ask(*_: Any, **__: Any) -> str:
        raise next(errors)

    monkeypatch.setattr(MemoryModel, "ask", ask)
    text = chat(path, "Who?", "/tell Bob Green lives in Paris.", "Who?", "/tell never read")
    assert "error: reading gave no numbers" in text
    assert "saved to notes.mem" in text
    assert Memory.load(path).write_count == 3


def test_chat_saves_though_it_is_interrupted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    save, tried = Memory.save, []

    def interrupted_at_first(self: Memory, path: Path) -> None:
        tried.append(path)
        if len(tried) == 1:
            raise KeyboardInterrupt
        save(self, path)

    monkeypatch.setattr(Memory, "save", interrupted_at_first)
    assert "saved to new.mem" in chat("new.mem", "/tell Bob Green lives in Paris.")
    assert Memory.load("new.mem").write_count == 1


def test_chat_goes_on_after_a_save_that_fails_and_leaves_nothing_unsaved(monkeypatch: pytest.MonkeyPatch) -> None:
    save, tried = Memory.save, []

    def fails_at_first(self: Memory, path: Path) -> None:
        tried.append(path)
        if len(tried) < 3:
            raise MemoryFileError("the disk is full")
        save(self, path)

    monkeypatch.setattr(Memory, "save", fails_at_first)
    text = chat("new.mem", "/tell Bob Green lives in Paris.", "/save", "/tell Ann Ray too.", "/quit")
    assert text.count("the disk is full") == 2
    assert Memory.load(tried[-1]).write_count == 2
