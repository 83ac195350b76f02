"""`remanence store`: every command from end to end; what goes wrong is one line and exit code 2."""

import json
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import typer

from remanence.cli import app, storing
from remanence.cli.shared import out
from remanence.store import queries
from tests.support.cli import done, refused, run

COMMANDS = sorted(typer.main.get_command(app).commands["store"].commands)  # type: ignore[attr-defined]
OSLO = "Alice Brown was born in Oslo."


@pytest.fixture(autouse=True)
def place(workplace: Path, monkeypatch: pytest.MonkeyPatch, text_checkpoint: str) -> Path:
    monkeypatch.setenv("REMANENCE_STORE", str(workplace / "store"))
    monkeypatch.setenv("REMANENCE_MODEL", text_checkpoint)
    return workplace / "store"


def store(*words: str, stdin: str | None = None) -> str:
    return done("store", *words, stdin=stdin)


def asked(*words: str) -> Any:
    return json.loads(store(*words, "--json"))


@pytest.fixture
def notes(place: Path) -> str:
    store("create", "notes", "--metadata", "topic=travel")
    store("tell", "notes", OSLO, "--source", "mail")
    store("tell", "notes", "Bob Green lives in Rome.")
    return "notes"


def test_all_commands_are_there() -> None:
    assert set(COMMANDS) == {
        *("init", "list", "create", "show", "tell", "ask", "search", "history", "forget", "undo", "fork", "rename"),
        *("expire", "export", "import", "erase", "backup", "check", "compact", "quota", "reencode"),
    }


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_help_teaches_by_example(command: str) -> None:
    text = store(*command.split(), "--help")
    assert f"remanence store {command}".strip() in text.partition("Examples:")[2]


def test_the_store_lies_among_the_users_data_unless_it_is_named(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    assert storing.place_of("other") == "other"
    monkeypatch.delenv("REMANENCE_STORE")
    monkeypatch.setenv("XDG_DATA_HOME", str(place))
    assert f"the store is at {place / 'remanence' / 'store'}" in store("init").replace("\n", "")
    assert (place / "remanence" / "store" / "ledger.db").is_file()
    monkeypatch.delenv("XDG_DATA_HOME")
    assert storing.place_of(None).endswith(".local/share/remanence/store")


def test_where_there_is_no_store_it_is_said_how_to_make_one() -> None:
    assert "make one with: remanence store init" in refused("store", "list")
    assert "remanence store init --store none.db" in refused("store", "list", "--store", "none.db")
    assert not Path("none.db").exists()


def test_memories_are_created_and_listed(notes: str, text_checkpoint: str) -> None:
    store("create", "other", "--seed", "3")
    found = asked("list")["memories"]
    assert [(one["name"], one["version"]) for one in found] == [("notes", 2), ("other", 0)]
    assert (found[0]["metadata"], found[0]["model"]) == ({"topic": "travel"}, text_checkpoint)
    assert [one["name"] for one in asked("list", "--after", "notes")["memories"]] == ["other"]
    assert "there may be more: --after notes" in run("store", "list", "--limit", "1").stderr
    assert "other" in store("list")
    assert "has a memory 'notes' already" in refused("store", "create", "notes")
    assert "ann has no memories" in store("list", "--owner", "ann")


def test_a_text_is_told_and_shown(notes: str) -> None:
    about = asked("show", notes)
    assert (about["version"], about["holds"], about["writes"][0]["text"]) == (2, 2, OSLO)
    text = store("show", notes)
    assert all(word in text for word in ("topic=travel", "mail", OSLO))
    assert "no memory 'none'" in refused("store", "show", "none")
    assert "no memory 'notes'" in refused("store", "show", notes, "--owner", "ann")


def test_files_and_standard_input_are_told_by_paragraphs(notes: str) -> None:
    Path("a.txt").write_text("One is told.\n\nTwo is told.\n")
    assert store("tell", notes, "--file", "a.txt", "--file", "a.txt") == "notes: writes 3 to 6\n"
    assert store("tell", notes, "-", "--whole", stdin="Three.\n\nFour.\n") == "notes: write 7\n"
    rows = asked("show", notes)["writes"][2:]
    assert [(row.get("source"), row["text"]) for row in rows] == [
        *[("a.txt", "One is told."), ("a.txt", "Two is told.")] * 2,
        (None, "Three.\n\nFour.\n"),
    ]
    assert "nothing to tell" in refused("store", "tell", notes)
    assert "add --whole" in refused("store", "tell", notes, "--file", "a.txt", "--key", "k")
    assert "no memory 'new'" in refused("store", "tell", "new", "Hello there.")
    assert store("tell", "new", "Hello there.", "--create") == "new: write 1\n"


def test_what_is_said_with_a_write_is_kept(notes: str) -> None:
    said = ("--key", "k", "--metadata", "by=Ann", "--expires", "30d", "--supersedes", "2")
    assert asked("tell", notes, "Bob Green lives in Paris.", *said)["writes"] == [3]
    again = asked("tell", notes, "Bob Green lives in Paris.", *said)
    assert again == {"memory": notes, "writes": [3], "deduplicated": 1, "version": 3}
    rows = asked("show", notes)["writes"]
    assert [row["state"] for row in rows] == ["held", "superseded", "held"]
    left = datetime.fromisoformat(rows[2]["expires_at"]) - datetime.now(UTC)
    assert rows[2]["metadata"] == {"by": "Ann"} and timedelta(days=29) < left <= timedelta(days=30)
    assert "known already" in store("tell", notes, "Bob Green lives in Paris.", *said)
    assert "a time is 30d" in refused("store", "tell", notes, "Hello.", "--expires", "soon")


def test_a_memory_is_asked(notes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = asked("ask", notes, "Where was Alice Brown born?", "--max-new-tokens", "3")
    assert found["found"] in (True, False) and {row["seq"] for row in found["sources"]} <= {1, 2}
    plain = store("ask", notes, "Where was Alice Brown born?", "--max-new-tokens", "3", "--sources")
    assert found["answer"].strip() in plain
    assert "no question" in refused("store", "ask", notes, " ")


def test_writes_are_found_by_words_and_by_meaning(notes: str) -> None:
    assert [row["seq"] for row in asked("search", notes, "alice oslo")["writes"]] == [1]
    assert OSLO in store("search", notes, "alice")
    assert "No write" in store("search", notes, "nobody")
    assert [row["seq"] for row in asked("search", notes, "Alice Brown", "--by-meaning", "--limit", "1")["writes"]] == [
        1
    ]


def test_what_was_done_is_on_record_and_can_be_undone(notes: str) -> None:
    assert store("forget", notes, "2") == "notes: 1 forgotten\n"
    assert "it was forgotten" in refused("store", "forget", notes, "2")
    assert [row["kind"] for row in asked("history", notes, "2")["rows"]] == ["write", "forget"]
    assert store("undo", notes) == "notes: row 3 was taken back, by row 4\n"
    assert [row["kind"] for row in asked("history", notes)["rows"]] == ["write", "write", "forget", "undo"]
    assert [row["seq"] for row in asked("history", notes, "--after", "2", "--limit", "1")["rows"]] == [3]
    assert "undo" in store("history", notes)
    assert "no row 9" in refused("store", "undo", notes, "9")


def test_many_are_forgotten_at_once_after_a_look(notes: str) -> None:
    assert asked("forget", notes, "--source", "mail", "--dry-run")["forgotten"] == [1]
    assert "1 would be forgotten" in store("forget", notes, "--before", "0s", "--source", "mail", "--dry-run")
    assert run("store", "forget", notes, "--before", "0s", stdin="n\n").exit_code == 1
    assert asked("show", notes)["holds"] == 2
    assert "2 forgotten" in store("forget", notes, "--before", "0s", stdin="y\n")
    assert asked("forget", notes, "--before", "0s", "--yes")["forgotten"] == []
    assert "name either one write" in refused("store", "forget", notes)
    assert "name either one write" in refused("store", "forget", notes, "1", "--source", "mail")


def test_forks_and_names(notes: str) -> None:
    assert store("fork", notes, "trial") == "trial is a fork of notes, from row 2\n"
    store("tell", "trial", "Carol sings.")
    assert asked("show", "trial")["fork_at"] == 2 and asked("show", notes)["forks"] == ["trial"]
    assert len(asked("show", "trial")["writes"]) == 3
    store("rename", "trial", "kept")
    assert "no memory 'trial'" in refused("store", "show", "trial")


def test_what_is_past_its_time_expires(notes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "past already" in refused("store", "tell", notes, "For now.", "--expires", "2020-01-01")
    store("tell", notes, "For now.", "--expires", "1d")
    later = datetime.now(UTC) + timedelta(days=2)
    monkeypatch.setattr(queries, "now", lambda: later)
    assert asked("expire") == {"expired": 1}
    assert store("expire") == "0 expired\n"
    assert [row["state"] for row in asked("show", notes)["writes"]][2] == "expired"


def test_memories_leave_and_come_back(notes: str) -> None:
    assert "2 rows in" in store("export", notes, "notes.zip")
    assert "again: 2 rows" in store("import", "notes.zip", "again", "--owner", "ann")
    assert asked("show", "again", "--owner", "ann")["writes"][0]["text"] == OSLO
    assert "there already" in refused("store", "export", notes, "notes.zip")
    whole = Path("notes.zip").read_bytes()
    Path("cut.zip").write_bytes(whole[: len(whole) // 2])
    assert "cut, damaged" in refused("store", "import", "cut.zip", "cut")
    Path("a.txt").write_text("hello")
    assert "not a memory" in refused("store", "import", "a.txt", "cut")
    assert "there is no file" in refused("store", "import", "none.zip", "cut")


def test_a_file_of_the_write_command_comes_in_with_one_command() -> None:
    Path("notes.txt").write_text("Alice was born in Oslo.\n\nBob lives in Rome.\n")
    done("write", "notes.mem", "notes.txt")
    assert "notes: 2 rows" in store("import", "notes.mem", "notes")
    assert [row["source"] for row in asked("show", "notes")["writes"]] == ["notes.txt"] * 2


def test_another_model_reads_the_same_writes(notes: str, checkpoint: str) -> None:
    assert f"2 rows, for {checkpoint}" in store("reencode", notes, "learned", "--model", checkpoint).replace("\n", "")
    assert asked("show", "learned")["writer"] == "learned"


def test_nothing_is_left_of_what_is_erased(notes: str, place: Path) -> None:
    store("fork", notes, "trial")
    assert "cascade" in refused("store", "erase", notes, "1", "--yes")
    assert asked("erase", notes, "1", "--cascade", "--dry-run")["dry_run"]
    assert run("store", "erase", notes, "1", "--cascade", stdin="n\n").exit_code == 1
    assert b"Oslo" in (place / "ledger.db").read_bytes()
    text = store("erase", notes, "1", "--cascade", stdin="y\n")
    assert "out of reach" in text
    assert b"Oslo" not in (place / "ledger.db").read_bytes()
    assert asked("show", notes)["holds"] == 1
    receipt = asked("erase", notes, "--cascade", "--yes")
    assert receipt["whole"] and receipt["names"] == ["notes", "trial"]
    assert asked("list")["memories"] == []


def test_a_backup_opens_as_a_store(notes: str) -> None:
    assert "--store copies" in store("backup", "copies")
    assert asked("list", "--store", "copies")["memories"][0]["name"] == notes
    assert "there already" in refused("store", "backup", "copies")


def test_a_store_is_checked_repaired_and_compacted(notes: str, place: Path) -> None:
    store("ask", notes, "Where was Alice Brown born?", "--max-new-tokens", "1")
    assert "fits together" in store("check")
    snapshot = next((place / "snapshots").rglob("*.safetensors"))
    snapshot.write_bytes(b"")
    found = run("store", "check", "--json")
    assert found.exit_code == 1 and json.loads(found.stdout)["findings"][0]["what"] == "snapshot"
    assert "snapshot" in store("check", "--repair")
    assert asked("check") == {"findings": []}
    assert asked("compact") == {"snapshots": 0}
    assert "written anew" in store("compact")


def test_quotas_are_set_one_by_one_and_hold(notes: str) -> None:
    assert asked("quota")["max_writes"] is None
    store("quota", "--bytes", "1000")
    assert "of 2" in store("quota", "--writes", "2")
    assert "may keep 2 writes" in refused("store", "tell", notes, "One more.")
    found = asked("quota", "--writes", "none")
    assert (found["writes"], found["max_bytes"], found["max_writes"]) == (2, 1000, None)
    assert "a whole number" in refused("store", "quota", "--bytes", "much")


def test_lines_fit_a_terminal(notes: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setattr(out, "_width", None)
    store("tell", notes, "Carol " * 60, "--source", "a very long name of a source, as they come up in life.txt")
    for words in (["list"], ["show", notes], ["history", notes], ["quota"], ["erase", notes, "--dry-run"]):
        assert max(map(len, store(*words).splitlines())) <= 80, words


LIGHT = [
    ["list"],
    ["show", "notes"],
    ["search", "notes", "alice"],
    ["history", "notes"],
    ["forget", "notes", "1"],
    ["undo", "notes"],
    ["fork", "notes", "trial"],
    ["expire"],
    ["quota"],
    ["compact"],
    ["backup", "copy"],
    ["erase", "notes", "2", "--yes", "--cascade"],
]
RUN = """
import json, sys
from typer.testing import CliRunner
from remanence.cli import app
for words in json.loads(sys.argv[1]):
    result = CliRunner().invoke(app, ["store", *words])
    print(json.dumps([words, result.exit_code, [name for name in ("torch", "transformers") if name in sys.modules]]))
"""


def test_what_needs_no_model_does_not_wait_for_torch(notes: str) -> None:
    words = [sys.executable, "-c", RUN, json.dumps(LIGHT)]
    lines = subprocess.run(words, capture_output=True, text=True, check=True).stdout.splitlines()
    assert [json.loads(line) for line in lines] == [[one, 0, []] for one in LIGHT]
