"""`check` finds what does not fit, and repairs what can be made again; nothing else."""

import os
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text

from remanence import Memory, Store
from remanence.store import checking
from remanence.store.checking import check
from remanence.store.database import writing
from tests.support.stores import WRITERS, model_of, store_in


def told(store: Store) -> Any:
    memory = store.memory("notes", create=True)
    for one in ("Alice was born in Oslo.", "Bob lives in Rome.", "Carol sings in Lima."):
        memory.tell(one)
    memory.forget(2)
    with memory.opened():
        pass
    fork = memory.fork("fork")
    fork.tell("Dave walks.")
    with fork.opened():
        pass
    return memory


def run(store: Store, statement: str, **values: Any) -> None:
    with writing(store.ledger.engine) as connection:
        connection.execute(text("PRAGMA defer_foreign_keys = ON"))
        connection.execute(text(statement), values)


@pytest.fixture
def store(tmp_path: Path) -> Any:
    with store_in(tmp_path, snapshot_every=1) as made:
        yield made


@pytest.mark.parametrize("writer", WRITERS)
def test_a_sound_store_has_no_findings(writer: str, tmp_path: Path) -> None:
    with store_in(tmp_path, writer, snapshot_every=1) as store:
        memory = told(store)
        memory.undo()
        with memory.opened():
            pass
        store.memory("other", owner="ann", create=True).tell("Ann's own.")
        assert check(store) == []
        memory.redact(2, cascade=True)
        assert check(store) == []
    assert list((tmp_path / "snapshots").rglob("*.safetensors"))


LEDGER = {
    "1 of 4 rows are missing": "DELETE FROM writes WHERE seq = 3 AND kind = 'write'",
    "about row 9": "UPDATE writes SET target = 9 WHERE kind = 'forget'",
    "its token ids do not fit their digest": "UPDATE writes SET sha256 = 'x' WHERE seq = 1",
    "its token ids do not fit its cuts": "UPDATE writes SET ids = x'00' WHERE seq = 1",
    "its text does not fit its cuts": "UPDATE writes SET text = 'other' WHERE seq = 1",
    "its sizes are not": "UPDATE writes SET bytes = 1 WHERE seq = 1",
    "a write without token ids": "UPDATE writes SET ids = NULL WHERE seq = 1",
    "it should say nothing, and has text": "UPDATE writes SET redacted_at = created, ids = NULL, cuts = 'null', "
    "sha256 = NULL WHERE seq = 1",
}


@pytest.mark.parametrize("says", LEDGER)
def test_damage_of_the_ledger_is_reported_and_left(says: str, store: Store) -> None:
    memory = told(store)
    run(store, LEDGER[says])
    for repair in (False, True):
        found = check(store, repair=repair)
        assert any(says in one.says and one.memory == "notes" and not one.repaired for one in found), found
    assert memory.version == 4


def snapshot_of(store: Store, memory: Any) -> Path:
    return next((store.snapshots.folder / memory.found.id).glob("*.safetensors"))


@pytest.mark.parametrize("damage", ["gone", "cut", "other", "claims", "slightly"])
def test_snapshots_that_are_wrong_are_dropped_and_made_again(damage: str, store: Store) -> None:
    memory = told(store)
    path = snapshot_of(store, memory)
    if damage == "gone":
        path.unlink()
    elif damage == "cut":
        path.write_bytes(path.read_bytes()[:-9])
    elif damage == "claims":
        run(store, "UPDATE snapshots SET holds = '1-3'")
    else:
        held = Memory.load(path)
        if damage == "other":
            model_of("text").write(held, "Somebody else's words.")
        else:
            assert held.chunks is not None
            next(iter(held.chunks)).latent[0] += 0.001
        held.save(path)
    assert any(one.what == "snapshot" for one in check(store))
    assert all(one.repaired for one in check(store, repair=True))
    assert check(store) == []
    store.residents.drop([memory.found.id])
    with memory.opened() as held:
        assert [record.id for record in held.writes] == [1, 3]


def test_what_other_versions_encoded_may_differ_a_little(store: Store) -> None:
    memory = told(store)
    path = snapshot_of(store, memory)
    held = Memory.load(path)
    assert held.chunks is not None
    latent = next(iter(held.chunks)).latent
    latent[latent.abs().argmin()] += 0.00002
    held.save(path)
    small = [one for one in check(store) if one.memory == "notes"]
    run(store, "UPDATE snapshots SET stamp = '{}'")
    assert len(small) == 1 and check(store) == []


def test_a_store_without_snapshots_needs_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with store_in(tmp_path) as store:
        store.memory("notes", create=True).tell("Alice was born in Oslo.")
        monkeypatch.setattr(Store, "model_of", lambda *_: pytest.fail("a model was loaded"))
        assert check(store) == []


def test_the_index_is_made_anew(store: Store) -> None:
    memory = told(store)
    run(store, "DELETE FROM writes_fts WHERE rowid = (SELECT id FROM writes WHERE seq = 1)")
    assert memory.search("alice") == []
    assert [one.says for one in check(store)] == ["the index for searches lacks the texts of 1 writes"]
    assert check(store, repair=True)[0].repaired
    assert [row.seq for row in memory.search("alice")] == [1]


def test_words_of_erased_texts_in_the_index_are_found(store: Store) -> None:
    told(store)
    run(
        store,
        "UPDATE writes SET text = NULL, ids = NULL, cuts = NULL, sha256 = NULL, redacted_at = created WHERE seq = 2",
    )
    assert [one.what for one in check(store)] == ["index"]
    check(store, repair=True)
    assert check(store) == []


def test_files_that_nothing_names_are_removed_once_they_are_old(store: Store) -> None:
    memory = told(store)
    left = snapshot_of(store, memory).with_name("9-00000000.safetensors")
    left.write_bytes(b"")
    assert check(store, repair=True) == []
    os.utime(left, (0, 0))
    assert [one.what for one in check(store)] == ["file"]
    assert check(store, repair=True)[0].repaired
    assert not left.exists() and check(store) == []
    assert checking.SETTLED > 60
