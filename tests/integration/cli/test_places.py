"""What comes from files and goes into them: encodings, places that cannot be written, work that is cut short."""

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest

from remanence import Memory, MemoryModel
from remanence.cli import memories
from tests.support.cli import a_memory, done, refused, run

LATIN1 = "Zoë was born in Málaga.\n".encode("latin-1")


def test_standard_input_in_another_encoding_is_refused_with_a_remedy() -> None:
    text = refused("write", "new.mem", "-", stdin=LATIN1)
    assert "standard input is not text in UTF-8: byte 2 is 0xeb" in text
    assert "iconv -f LATIN1 -t UTF-8" in text
    assert not Path("new.mem").exists()


def test_a_byte_order_mark_and_line_ends_of_other_systems_are_no_text(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    monkeypatch.setattr(memories, "write_all", lambda model, memory, texts: seen.extend(one.text for one in texts) or 0)
    Path("notes.txt").write_bytes(b"\xef\xbb\xbfAlice\r\nBrown.\r\n\r\nBob.\r\n")
    done("write", "new.mem", "notes.txt")
    done("write", "new.mem", "notes.txt", "--whole")
    assert seen == ["Alice Brown.", "Bob.", "Alice\nBrown.\n\nBob.\n"]


def test_a_chat_that_meets_another_encoding_says_so_and_saves_what_was_written() -> None:
    padding = b" " * 8192 + b"\n"  # input is decoded by so many bytes
    text = done("chat", "new.mem", stdin=b"/write Bob Green lives in Paris.\n" + padding + LATIN1)
    assert "error: standard input is not text in utf-8" in text
    assert Memory.load("new.mem").write_count == 1


def test_a_question_that_was_not_decoded_is_refused() -> None:
    assert r"'\udceb', which is no character" in refused("ask", str(a_memory()), "Where is Zo\udceb?")


@pytest.mark.parametrize(
    "words",
    [
        ["write", "here/notes.mem", "notes.txt"],
        ["chat", "here/notes.mem"],
        ["eval", "retention", "--json", "here/r.json"],
        ["eval", "retention", "--plot", "here/r.png"],
        ["eval", "integrity", "--resume", "here/deeper/kept"],
        ["demo", "--output", "here"],
        ["train", "mine.py", "--output", "here/run"],
    ],
    ids=" ".join,
)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    a_memory()
    Path("here").mkdir()
    Path("mine.py").write_text("def train(output, *, resume, minutes):\n    raise AssertionError('trained')\n")

    def full(*_: Any, dir: Path, **__: Any) -> Any:
        assert str(dir) == "here"
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    monkeypatch.setattr(MemoryModel, "from_pretrained", lambda *_, **__: pytest.fail("loaded before refusing"))
    text = refused(*words, stdin="")
    assert "nothing can be put into here (Permission denied)" in text


def test_a_file_that_cannot_be_written_over_is_refused_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("r.json").write_text("older figures")
    monkeypatch.setattr(Path, "open", lambda *_: (_ for _ in ()).throw(PermissionError(13, "Permission denied")))
    monkeypatch.setattr(MemoryModel, "from_pretrained", lambda *_, **__: pytest.fail("loaded before refusing"))
    assert "cannot write r.json: Permission denied" in refused("eval", "retention", "--json", "r.json")


def test_what_the_system_refuses_in_the_end_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device", "r.json")

    monkeypatch.setattr(Path, "write_text", full)
    words = ["--count", "1", "--distances", "0", "--columns", "nothing", "--json", "r.json"]
    assert "No space left on device" in refused("eval", "retention", *words)


def test_figures_can_go_to_a_pipe() -> None:
    reader, writer = os.pipe()
    words = ["--count", "1", "--distances", "0", "--columns", "nothing", "--json", f"/dev/fd/{writer}"]
    done("eval", "retention", *words)
    os.close(writer)
    with open(reader, encoding="utf-8") as pipe:
        assert {row["column"] for row in json.load(pipe)["rows"]} == {"nothing"}


def saved_by_another(monkeypatch: pytest.MonkeyPatch, times: int) -> None:
    """Before the first saves of a command, another writes into the same file, with texts of its own."""
    save, left = Memory.save, iter(range(times))

    def saving(memory: Memory, path: Path, **options: Any) -> None:
        if (number := next(left, None)) is not None:
            monkeypatch.setattr(Memory, "save", save)
            done("write", str(path), "-", "--source", f"another {number}", stdin="Ann Ray lives in Paris.")
            monkeypatch.setattr(Memory, "save", saving)
        save(memory, path, **options)

    monkeypatch.setattr(Memory, "save", saving)


@pytest.mark.parametrize("there", [False, True], ids=["a new file", "a file that is there"])
def test_write_beside_another_write_loses_nothing(there: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("notes.txt").write_text("Bob Green lives in Rome.\n\nEve Hill lives in Bern.\n")
    if there:
        done("write", "notes.mem", "notes.txt")
    saved_by_another(monkeypatch, 1)
    result = run("write", "notes.mem", "notes.txt", "--json")
    assert json.loads(result.stdout) == {"memory": "notes.mem", "written": 2, "writes": 5 if there else 3}
    assert "note: notes.mem was saved by another meanwhile" in result.stderr
    sources = [record.source for record in Memory.load("notes.mem").writes]
    assert sources == ["notes.txt"] * (2 * there) + ["another 0", "notes.txt", "notes.txt"]


def test_write_beside_others_that_do_not_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("notes.txt").write_text("Bob Green lives in Rome.\n")
    saved_by_another(monkeypatch, 2)
    result = run("write", "notes.mem", "notes.txt")
    assert result.exit_code == 2
    assert "run it once more" in result.stderr.splitlines()[-1]
    assert [record.source for record in Memory.load("notes.mem").writes] == ["another 0", "another 1"]


def test_an_interrupted_write_says_that_nothing_was_saved(monkeypatch: pytest.MonkeyPatch) -> None:
    path = a_memory()
    before = path.read_bytes()
    whole, calls = MemoryModel.write, []

    def interrupted(self: MemoryModel, memory: Any, content: Any, **kwargs: Any) -> Any:
        calls.append(content)
        if len(calls) % 2 == 0:
            raise KeyboardInterrupt
        return whole(self, memory, content, **kwargs)

    monkeypatch.setattr(MemoryModel, "write", interrupted)
    for name, state in (("notes.mem", "is as it was"), ("new.mem", "was not made")):
        result = run("write", name, "notes.txt")
        assert result.exit_code == 130
        assert f"interrupted; nothing was saved: {name} {state}" in result.stderr
    assert path.read_bytes() == before
    assert not Path("new.mem").exists()


def test_progress_of_a_write_counts_bytes_within_a_long_text(monkeypatch: pytest.MonkeyPatch) -> None:
    class Model:
        def write(self, memory: Any, text: str, *, progress: Any, **about: Any) -> Any:
            for chunk in range(1, 5):
                progress(chunk, 4)
            return type("Receipt", (), {"tokens": 2000})

    seen: list[tuple[int, int]] = []

    class Bar:
        def __enter__(self) -> Any:
            return lambda done, total: seen.append((done, total))

        def __exit__(self, *_: Any) -> None:
            pass

    monkeypatch.setattr(memories, "progress_bar", lambda *_, **__: Bar())
    model: Any = Model()
    memory: Any = None
    assert memories.write_all(model, memory, [memories.Text("x" * 400), memories.Text("é" * 100)]) == 0
    assert seen == [(100, 600), (200, 600), (300, 600), (400, 600), (450, 600), (500, 600), (550, 600), (600, 600)]


def test_short_texts_get_one_note_beside_the_output() -> None:
    Path("notes.txt").write_text("Alice is in Oslo.\n\nBob is in Rome.\n\n" + "Ann Ray lives in Paris. " * 9)
    result = run("write", "new.mem", "notes.txt", "--json")
    assert json.loads(result.stdout)["written"] == 3
    assert result.stderr.count("note:") == 1
    assert "2 of 3 texts had fewer than 16 tokens" in result.stderr
    assert run("write", "new.mem", "-", stdin="Ann Ray lives in Paris. " * 9).stderr == ""
