"""The default model, a real one: it answers from what it was told, names the source, and says what it was not told."""

from pathlib import Path

import pytest

from remanence import Memory, MemoryModel
from remanence.model.formats.adapters import PARTS
from tests.support.cli import done, refused

KEY = "The spare key hangs behind the blue boiler in the cellar."
NIGHT = "Ines Halloran took over the night shift from Tomas in March 2021."
BOAT = "The ferry to Varrick leaves at 7:40 from pier three, except on Sundays, when it leaves at 9:15."


@pytest.fixture(scope="module")
def model(smollm2: str) -> MemoryModel:
    return MemoryModel.from_pretrained(smollm2)


def told(model: MemoryModel, *texts: str) -> Memory:
    memory = model.new_memory()
    for text in texts:
        model.write(memory, text)
    return memory


def test_it_answers_with_its_source_and_says_what_it_was_not_told(model: MemoryModel) -> None:
    assert model.parts == PARTS
    memory = told(model, KEY, NIGHT, BOAT)
    for write, (question, word) in enumerate(
        [
            ("Where is the spare key?", "boiler"),
            ("Who has the night shift?", "Ines"),
            ("When does the ferry to Varrick leave on Sundays?", "9:15"),
        ]
    ):
        answer = model.ask(memory, question, max_new_tokens=16)
        assert answer.found and answer.sources[0][0] == memory.writes[write].id
        assert word in answer.text
    assert not model.ask(memory, "Who won the cup in 1954?", max_new_tokens=2).found
    model.forget(memory, memory.writes[0].id)
    assert not model.ask(memory, "Where is the spare key?", max_new_tokens=2).found


def test_where_nothing_is_read_it_is_the_stock_model(model: MemoryModel, smollm2: str) -> None:
    stock = MemoryModel.from_pretrained(smollm2, parts=[])
    assert stock.parts == ()
    memory, other = told(model, KEY), told(stock, KEY)
    for question in ("Write a haiku about the sea.", "What is 12 times 12?"):
        answer = model.ask(memory, question, max_new_tokens=12)
        assert not answer.found and answer.text == stock.ask(stock.new_memory(), question, max_new_tokens=12).text
    assert (
        model.spec.model == stock.spec.model and stock.search(other, "spare key") and stock.search(memory, "spare key")
    )


def test_commands_take_it_by_default(smollm2: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REMANENCE_MODEL")
    (tmp_path / "notes.txt").write_text("\n\n".join([KEY, NIGHT, BOAT]), encoding="utf-8")
    done("write", str(tmp_path / "notes.mem"), str(tmp_path / "notes.txt"))
    assert "boiler" in done("ask", str(tmp_path / "notes.mem"), "Where is the spare key?")


def test_commands_say_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("REMANENCE_MODEL")
    monkeypatch.setenv("REMANENCE_CACHE", str(tmp_path))
    (tmp_path / "notes.txt").write_text(KEY, encoding="utf-8")
    assert "remanence setup smollm2" in refused("write", str(tmp_path / "notes.mem"), str(tmp_path / "notes.txt"))
