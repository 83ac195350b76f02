"""Memories leave a store and come into another: whole, the same, and never on the word of a file."""

import base64
import json
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from remanence import Store
from remanence.errors import (
    ConflictError,
    InvalidInputError,
    MemoryFileError,
    MemoryMismatchError,
    QuotaError,
    StoreError,
)
from remanence.store.checking import check
from remanence.store.copying import backup
from remanence.store.exchange import export_memory, import_file, import_memory, reencode
from remanence.store.handle import StoredMemory
from tests.support.databases import postgres
from tests.support.stores import WRITERS, content, model_of, store_in

LATER = datetime(2030, 1, 1, tzinfo=UTC)


def told(store: Store, name: str = "notes") -> StoredMemory:
    """A memory with a row of every kind, and one that is forked off."""
    memory = store.memory(name, create=True, seed=3, metadata={"topic": "travel"})
    memory.tell("Alice Brown was born in Oslo.", source="a.txt", metadata={"n": 1}, idempotency_key="first")
    memory.tell("She works as a baker in Bergen.", expires_at=LATER, actor="ann")
    memory.tell("Bob Green lives in Paris. " * 20)
    memory.forget(2)
    memory.undo(4)
    memory.forget(3)
    memory.tell("Bob Green lives in Rome.", supersedes=1)
    memory.undo()
    return memory


def facts(memory: StoredMemory) -> Any:
    rows = memory._store.ledger.rows(memory.found, kinds=("write", "forget", "undo", "expire"), limit=1000)
    return rows, memory.found.settings, memory.found.fingerprint, memory.found.metadata


def state(memory: StoredMemory) -> Any:
    with memory.opened() as held:
        return content(held)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with store_in(tmp_path / "store") as made:
        yield made


@pytest.mark.parametrize("kept", [True, False], ids=["snapshot", "replayed"])
@pytest.mark.parametrize("writer", WRITERS)
def test_a_memory_comes_back_as_it_was(writer: str, kept: bool, tmp_path: Path) -> None:
    with store_in(tmp_path / "one", writer, snapshot_every=1) as one, store_in(tmp_path / "two", writer) as two:
        memory = told(one)
        before, answer = state(memory), memory.ask("Where was Alice Brown born?", max_new_tokens=3)
        done = export_memory(one, memory, tmp_path / "notes.zip")
        assert done["rows"] == memory.version and done["snapshot"] is not None
        again = import_memory(two, tmp_path / "notes.zip", "ann", "hers", snapshot=kept)
        assert (again.owner, again.name, again.version) == ("ann", "hers", memory.version)
        assert facts(again) == facts(one.memory("notes"))
        assert len(list(two.snapshots.folder.rglob("*.safetensors"))) == kept
        assert state(again) == before
        assert again.ask("Where was Alice Brown born?", max_new_tokens=3).sources == answer.sources
        assert again.tell("One more.").seq == memory.version + 1


def test_rows_come_back_and_are_found_by_their_words(store: Store, tmp_path: Path) -> None:
    memory = told(store)
    export_memory(store, memory, tmp_path / "notes.zip")
    again = import_memory(store, tmp_path / "notes.zip", "local", "again")
    assert [row.seq for row in again.search("alice")] == [row.seq for row in memory.search("alice")] != []
    assert again.tell("Alice Brown was born in Oslo.", idempotency_key="first").deduplicated


def test_a_fork_takes_its_parents_rows_with_it(tmp_path: Path, store: Store) -> None:
    memory = told(store)
    fork = memory.fork("fork")
    fork.tell("Carol sings.", idempotency_key="second")
    memory.tell("Not for the fork.")
    export_memory(store, fork, tmp_path / "fork.zip")
    with store_in(tmp_path / "two") as other:
        again = import_memory(other, tmp_path / "fork.zip", "local", "fork")
        assert again.found.parent is None
        assert facts(again)[0] == facts(fork)[0]
        assert state(again) == state(fork)


def test_what_was_erased_is_not_exported(store: Store, tmp_path: Path) -> None:
    memory = told(store)
    memory.redact(2)
    export_memory(store, memory, tmp_path / "notes.zip")
    with zipfile.ZipFile(tmp_path / "notes.zip") as file:
        assert b"baker" not in file.read("ledger.jsonl")
    again = import_memory(store, tmp_path / "notes.zip", "local", "again")
    assert facts(again)[0] == facts(memory)[0]


def test_nothing_is_written_over(store: Store, tmp_path: Path) -> None:
    memory = told(store)
    (tmp_path / "notes.zip").write_text("mine")
    with pytest.raises(InvalidInputError, match="there already"):
        export_memory(store, memory, tmp_path / "notes.zip")
    with pytest.raises(StoreError, match="cannot write"):
        export_memory(store, memory, tmp_path / "none" / "notes.zip")
    assert (tmp_path / "notes.zip").read_text() == "mine"


def test_a_memory_is_imported_whole_or_not_at_all(store: Store, tmp_path: Path) -> None:
    export_memory(store, told(store), tmp_path / "notes.zip")
    with pytest.raises(ConflictError):
        import_memory(store, tmp_path / "notes.zip", "local", "notes")
    store.ledger.set_quota("poor", max_writes=3)
    with pytest.raises(QuotaError):
        import_memory(store, tmp_path / "notes.zip", "poor", "notes")
    store.ledger.set_quota("poor", max_bytes=20)
    with pytest.raises(QuotaError):
        import_memory(store, tmp_path / "notes.zip", "poor", "notes")
    assert store.memories(owner="poor") == []
    assert store.ledger.used("poor") == {"writes": 0, "bytes": 0}


Change = Callable[[dict[str, bytes]], Any]


def rewritten(path: Path, change: Change) -> None:
    """The same zip with other parts."""
    with zipfile.ZipFile(path) as file:
        parts = {name: file.read(name) for name in file.namelist()}
    change(parts)
    with zipfile.ZipFile(path, "w") as file:
        for name, part in parts.items():
            file.writestr(name, part)


def manifest(**changes: Any) -> Change:
    def change(parts: dict[str, bytes]) -> None:
        parts["manifest.json"] = json.dumps(json.loads(parts["manifest.json"]) | changes).encode()

    return change


def settings(**changes: Any) -> Change:
    def change(parts: dict[str, bytes]) -> None:
        there = json.loads(parts["manifest.json"])
        manifest(settings=there["settings"] | changes)(parts)

    return change


def line(number: int, **changes: Any) -> Change:
    def change(parts: dict[str, bytes]) -> None:
        rows = [json.loads(row) for row in parts["ledger.jsonl"].splitlines()]
        rows[number - 1] |= changes
        parts["ledger.jsonl"] = b"".join(json.dumps(row).encode() + b"\n" for row in rows)

    return change


def part(name: str, content: bytes | None) -> Change:
    def change(parts: dict[str, bytes]) -> None:
        parts.pop(name, None)
        if content is not None:
            parts[name] = content

    return change


NOT_IDS = base64.b64encode(b"\0\1").decode()
WRONG = {
    "lacks ledger.jsonl": part("ledger.jsonl", None),
    "lacks manifest.json": part("manifest.json", None),
    "no part of a memory": part("../../evil.py", b"import os"),
    "format is 2, this version reads 1": manifest(format=2),
    "metadata: Input should be an object": manifest(metadata=[]),
    "owner: Extra inputs": manifest(owner="root"),
    "it has 8 rows, and speaks of 9": manifest(rows=9),
    "rows, and speaks of": part("ledger.jsonl", b""),
    "row 1 is cut": part("ledger.jsonl", b'{"seq": 1'),
    "row 1: Invalid JSON": part("ledger.jsonl", b"not json\n"),
    "row 2: its number is 3": line(2, seq=3),
    "row 4: it is about row 9": line(4, target=9),
    "row 4: it is about no row": line(4, target=None),
    "row 6: it is about row 4, which is no write": line(6, target=4),
    "row 1: kind: Input should be": line(1, kind="drop"),
    "row 1: its ids are not base64": line(1, ids="?"),
    "row 1: its token ids do not fit its cuts": line(1, ids=NOT_IDS),
    "row 1: its text does not fit its cuts": line(1, text="Something else was said."),
    "row 1: its token ids do not fit their digest": line(1, sha256="0" * 64),
    "row 1: Invalid JSON: unexpected end of hex escape": line(1, text="\ud800"),
    "row 1: its text holds NUL": line(1, text="Alice Brown was born in Oslo\0"),
    "row 4: it says something": line(4, text="hidden"),
    "row 2: created: ": line(2, created="yesterday"),
    "row 3: memory: Extra inputs": line(3, memory="0" * 32),
    "a text memory has a head": settings(head=None),
    "Invalid isoformat": settings(date="today"),
    "token id 999, and tiny-text knows 300": settings(head=[999]),
    "a snapshot that it does not speak of": part("memory.safetensors", b"pickle"),
}


@pytest.mark.parametrize("says", WRONG)
def test_what_is_wrong_with_a_file_is_named_and_nothing_of_it_stays(says: str, store: Store, tmp_path: Path) -> None:
    path = tmp_path / "notes.zip"
    export_memory(store, told(store), path)
    rewritten(path, WRONG[says])
    with pytest.raises(MemoryFileError, match=re.escape(says)) as raised:
        import_memory(store, path, "local", "again")
    assert "\n" not in str(raised.value) and str(path) in str(raised.value)
    assert [memory.name for memory in store.memories()] == ["notes"]


def test_a_cut_file_and_a_foreign_one_are_named(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "notes.zip"
    export_memory(store, told(store), path)
    whole = path.read_bytes()
    for count in (0, 100, len(whole) // 2, len(whole) - 30):
        path.write_bytes(whole[:count])
        with pytest.raises(MemoryFileError, match="cut, damaged"):
            import_memory(store, path, "local", "again")
    for place in range(40, len(whole) - 200, 97):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 255]) + whole[place + 1 :])
        with pytest.raises((MemoryFileError, MemoryMismatchError)):
            import_memory(store, path, "local", "again")
    with pytest.raises(FileNotFoundError):
        import_memory(store, tmp_path / "none.zip", "local", "again")
    path.write_bytes(whole)
    with pytest.raises(MemoryFileError, match="are allowed"):
        import_memory(store, path, "local", "again", most_bytes=500)
    assert len(store.memories()) == 1


def test_a_file_does_not_choose_the_model(store: Store, tmp_path: Path) -> None:
    path = tmp_path / "notes.zip"
    export_memory(store, told(store), path)
    rewritten(path, settings(model="somebody/elses-model"))
    with pytest.raises(MemoryMismatchError, match="if you trust it, name it: --model somebody/elses-model"):
        import_memory(store, path, "local", "again")
    rewritten(path, settings(model="tiny-text"))
    rewritten(path, manifest(fingerprint="other"))
    with pytest.raises(MemoryMismatchError, match="other weights"):
        import_memory(store, path, "local", "again")


def test_a_snapshot_that_says_other_than_the_ledger_is_refused(tmp_path: Path) -> None:
    with store_in(tmp_path / "store", snapshot_every=1) as store:
        memory, other = told(store), told(store, "other")
        other.tell("The bank's number is 999.")
        for each in (memory, other):
            state(each)
            export_memory(store, each, tmp_path / f"{each.name}.zip")
        with zipfile.ZipFile(tmp_path / "other.zip") as file:
            foreign = file.read("memory.safetensors")
        for held in (foreign, foreign[:100], b""):
            rewritten(tmp_path / "notes.zip", part("memory.safetensors", held))
            with pytest.raises(MemoryFileError, match="damaged"):
                import_memory(store, tmp_path / "notes.zip", "local", "again")
        assert len(list(store.snapshots.folder.iterdir())) == 2
        import_memory(store, tmp_path / "notes.zip", "local", "again", snapshot=False)


def test_a_file_of_the_write_command_becomes_a_memory(store: Store, tmp_path: Path) -> None:
    model = model_of("text")
    made = model.new_memory(seed=5)
    for number, text in enumerate(("Alice was born in Oslo.", "Dropped.", "Bob lives in Rome. " * 300)):
        model.write(made, text, source=f"{number}.txt", metadata={"n": number})
    model.forget(made, 1)
    made.save(tmp_path / "notes.mem")
    memory = import_file(store, tmp_path / "notes.mem", "ann", "notes")
    rows = memory.writes()
    assert [(row.seq, row.source, row.metadata) for row in rows] == [(1, "0.txt", {"n": 0}), (2, "2.txt", {"n": 2})]
    assert [row.created for row in rows] == [record.time for record in made.writes]
    assert (rows[0].text, rows[1].text) == ("Alice was born in Oslo.", "Bob lives in Rome. " * 300)
    with memory.opened() as held:
        assert held.chunks is not None and made.chunks is not None
        assert [one.ids.tolist() for one in held.chunks] == [one.ids.tolist() for one in made.chunks]  # type: ignore[union-attr]
        assert held.chunks.head == made.chunks.head
        question = "Where was Alice born?"
        assert model.ask(held, question, max_new_tokens=3).text == model.ask(made, question, max_new_tokens=3).text
    assert memory.found.fingerprint == model.fingerprint()
    assert [row.seq for row in memory.search("rome")] == [2]


def test_files_that_do_not_say_what_was_told_are_refused(store: Store, tmp_path: Path) -> None:
    learned = model_of("learned")
    made = learned.new_memory()
    learned.write(made, "Alice was born in Oslo, and works as a baker.")
    made.save(tmp_path / "learned.mem")
    with pytest.raises(InvalidInputError, match="slots only"):
        import_file(store, tmp_path / "learned.mem", "local", "notes")
    with pytest.raises(FileNotFoundError):
        import_file(store, tmp_path / "none.mem", "local", "notes")
    (tmp_path / "text").write_text("hello")
    with pytest.raises(MemoryFileError):
        import_file(store, tmp_path / "text", "local", "notes")
    foreign = model_of("text").new_memory()
    foreign.model_name = "somebody/elses-model"
    foreign.save(tmp_path / "foreign.mem")
    with pytest.raises(MemoryMismatchError, match="name it"):
        import_file(store, tmp_path / "foreign.mem", "local", "notes")


def test_the_same_rows_for_another_model(tmp_path: Path) -> None:
    with store_in(tmp_path / "store", "learned") as store:
        memory = told(store)
    with Store.open(tmp_path / "store", model=model_of("text")) as store:
        memory = store.memory("notes")
        again = reencode(store, memory, "again")
        assert again.found.settings["model"] == "tiny-text" and again.found.fingerprint is None
        assert [(row.seq, row.text, row.state) for row in again.writes()] == [
            (row.seq, row.text, row.state) for row in memory.writes()
        ]
        with again.opened() as held:
            assert [record.id for record in held.writes] == store.ledger.holding(again.found)[1]


def test_a_backup_is_a_store(store: Store, tmp_path: Path) -> None:
    memory = told(store)
    state(memory)
    backup(store, tmp_path / "copy")
    memory.tell("After the copy.")
    with store_in(tmp_path / "copy") as copy:
        again = copy.memory("notes")
        assert again.version == memory.version - 1
        state(again)
    with pytest.raises(InvalidInputError, match="there already"):
        backup(store, tmp_path / "copy")
    assert backup(store, tmp_path / "other.db").name == "other.db"


def test_times_are_kept_to_the_microsecond(store: Store, tmp_path: Path) -> None:
    memory = store.memory("notes", create=True)
    row = memory.tell("Alice.", expires_at=LATER + timedelta(microseconds=1))
    export_memory(store, memory, tmp_path / "notes.zip")
    again = import_memory(store, tmp_path / "notes.zip", "local", "again").write(1)
    assert (again.created, again.expires_at) == (row.created, row.expires_at)


@pytest.mark.slow
def test_memories_move_between_databases_and_are_checked_there(tmp_path: Path) -> None:
    with (
        postgres(tmp_path) as cluster,
        store_in(tmp_path / "one", snapshot_every=1) as one,
        Store.open(cluster.url("two"), model=model_of("text"), snapshots=tmp_path / "two", snapshot_every=1) as two,
    ):
        memory = told(one)
        before = state(memory)
        export_memory(one, memory, tmp_path / "there.zip")
        there = import_memory(two, tmp_path / "there.zip", "local", "notes")
        memory = one.memory("notes")
        assert facts(there) == facts(memory) and state(there) == before
        assert [row.seq for row in there.search("alice")] == [row.seq for row in memory.search("alice")]
        reencode(two, there, "other").fork("fork").tell("Carol sings.")
        export_memory(two, there, tmp_path / "back.zip")
        again = import_memory(one, tmp_path / "back.zip", "local", "again")
        assert facts(again) == facts(memory) and state(again) == before
        assert check(one) == check(two) == []
        with pytest.raises(StoreError, match="pg_dump"):
            backup(two, tmp_path / "copy")


def test_what_is_not_installed_is_named() -> None:
    code = "import sys; sys.modules['sqlalchemy'] = None\nimport remanence.store"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode and done.stderr.splitlines()[-1].endswith('pip install "remanence[store]"')
    code = (
        "import sys; sys.modules['alembic'] = None\n"
        "try: import remanence.store\nexcept ImportError as error: print(isinstance(error, ValueError))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"
