"""What is erased is nowhere in the store's files any more, and the memory is as if it had never been told."""

import hashlib
from pathlib import Path

import pytest

from remanence.errors import ConflictError, NotFoundError
from tests.support.stores import WRITERS, content, store_in

SECRET = "Ann's password is xyzzy-plugh-4711."


def traces(folder: Path, needles: list[bytes]) -> list[str]:
    """Files, and what of the secret they hold: raw bytes, so pages and journals too."""
    found = []
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            held = file.read_bytes()
            found += [f"{file.name}: {needle[:12]!r}" for needle in needles if needle in held]
    return found


@pytest.mark.parametrize("writer", WRITERS)
def test_nothing_of_an_erased_write_is_left(writer: str, tmp_path: Path) -> None:
    with store_in(tmp_path, writer, snapshot_every=1) as store:
        memory = store.memory("m", create=True)
        memory.tell("Bo lives in Rome.")
        row = memory.tell(
            SECRET, source="secret-source", metadata={"k": "secret-metadata"}, idempotency_key="secret-key"
        )
        memory.tell("Cy lives in Lima.")
        with memory.opened():
            pass
        (told,) = store.ledger.told(memory.found, [row.seq])
        digest = hashlib.sha256(told.content.ids).hexdigest()
        needles = [b"xyzzy", b"plugh", b"4711", b"secret-", told.content.ids[:16], digest.encode()]
        assert traces(tmp_path, needles)
        receipt = memory.redact(row.seq)
        assert receipt["writes"] == [row.seq] and receipt["snapshots"] >= 1
        assert receipt["out_of_reach"] == ["exported files", "backups"]
        assert not traces(tmp_path, needles)
        with memory.opened() as one:
            left = content(one)
        assert memory.write(row.seq).state == "redacted" and memory.write(row.seq).text is None
        assert not memory.search("password")
        with pytest.raises(NotFoundError):
            memory.forget(row.seq)
    assert not traces(tmp_path, needles)
    with store_in(tmp_path / "never", writer) as store:
        other = store.memory("m", create=True)
        other.tell("Bo lives in Rome.")
        other.tell("-")
        other.tell("Cy lives in Lima.")
        other.forget(2)
        with other.opened() as one:
            never = content(one)
    if writer == "text":
        assert [part[:-1] for part in left[0]] == [part[:-1] for part in never[0]]
    else:
        assert left[0] == never[0]


def test_forks_that_have_it_are_named_and_erased_too_if_so_asked(tmp_path: Path) -> None:
    with store_in(tmp_path, snapshot_every=1) as store:
        memory = store.memory("m", create=True)
        memory.tell("Bo lives in Rome.")
        before = memory.fork("before")
        memory.tell(SECRET)
        fork = memory.fork("fork")
        deep = fork.fork("deep")
        for one in (memory, fork, deep, before):
            with one.opened():
                pass
        with pytest.raises(ConflictError, match="'fork', 'deep'"):
            memory.redact(2)
        with pytest.raises(NotFoundError, match="no write of its own"):
            deep.redact(2)
        plan = store.erase(memory, [2], cascade=True, dry_run=True)
        assert plan["names"] == ["m", "fork", "deep"] and plan["dry_run"] and traces(tmp_path, [b"xyzzy"])
        memory.redact(2, cascade=True)
        assert not traces(tmp_path, [b"xyzzy"])
        for one in (memory, fork, deep, before):
            with one.opened() as held:
                assert [record.id for record in held.writes] == [1]


def test_a_memory_is_erased_as_a_whole(tmp_path: Path) -> None:
    with store_in(tmp_path, snapshot_every=1) as store:
        memory = store.memory("m", create=True)
        memory.tell(SECRET)
        with memory.opened():
            pass
        store.erase(memory)
        assert not traces(tmp_path, [b"xyzzy"])
        assert store.memories() == []
        with pytest.raises(NotFoundError):
            memory.tell("more")
        assert [one["action"] for one in store.ledger.audited("local")][-1] == "erase"
        assert not list((tmp_path / "snapshots").rglob("*.safetensors"))


def test_forgetting_gives_the_memory_that_never_had_it(tmp_path: Path) -> None:
    texts = ["Bo lives in Rome.", SECRET, "Cy lives in Lima."]
    with store_in(tmp_path / "a") as store:
        memory = store.memory("m", create=True)
        for text in texts:
            memory.tell(text)
        with memory.opened():
            pass
        memory.forget(2)
        answers = [memory.ask(question, max_new_tokens=6).text for question in ("Who lives in Rome?", "Password?")]
    with store_in(tmp_path / "b") as store:
        memory = store.memory("m", create=True)
        for text in texts[::2]:
            memory.tell(text)
        assert [memory.ask(q, max_new_tokens=6).text for q in ("Who lives in Rome?", "Password?")] == answers


def test_a_snapshot_that_comes_late_does_not_bring_it_back(tmp_path: Path) -> None:
    """Another process had the memory open, and keeps it as a file when the write is erased already."""
    with store_in(tmp_path, snapshot_every=10**6) as store, store_in(tmp_path, snapshot_every=10**6) as other:
        memory = store.memory("m", create=True)
        memory.tell(SECRET)
        with other.memory("m").opened():
            pass
        memory.redact(1)
        other.residents.close()
        assert not traces(tmp_path, [b"xyzzy"])
