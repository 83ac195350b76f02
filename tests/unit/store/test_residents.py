"""Memories in RAM catch up with the ledger, from what is nearest, and leave RAM when there is no room."""

from pathlib import Path

import pytest
import torch

from remanence import MemoryModel, Store
from remanence.errors import MemoryMismatchError
from remanence.store import replay
from remanence.store.handle import StoredMemory
from tests.support.stores import WRITERS, content, model_of, store_in


def held_in(memory: StoredMemory) -> list[int]:
    with memory.opened() as one:
        return [record.id for record in one.writes]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_write_that_an_undo_brings_back_stands_where_it_stood(writer: str, tmp_path: Path) -> None:
    """Also on a snapshot that was made after it was forgotten."""
    with store_in(tmp_path, writer) as store:
        memory = store.memory("m", create=True)
        for number in range(3):
            memory.tell(f"Note {number}.")
        assert held_in(memory) == [1, 2, 3]
        memory.forget(3)
        memory.forget(2)
        assert held_in(memory) == [1]
    with store_in(tmp_path, writer) as store:
        memory = store.memory("m")
        memory.undo(5)
        assert held_in(memory) == [1, 2]
        memory.undo(4)
        assert held_in(memory) == [1, 2, 3]


@pytest.mark.parametrize("writer", WRITERS)
def test_a_snapshot_spares_the_replay_of_what_it_holds(
    writer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with store_in(tmp_path, writer) as store:
        memory = store.memory("m", create=True)
        for number in range(4):
            memory.tell(f"Note {number}.")
        with memory.opened() as one:
            before = content(one)
    replayed = list[int]()
    write = replay.replay

    def noting(model: MemoryModel, held: replay.Held, told: list[replay.Told]) -> None:
        replayed.extend(one.seq for one in told)
        write(model, held, told)

    monkeypatch.setattr(replay, "replay", noting)
    with store_in(tmp_path, writer) as store:
        memory = store.memory("m")
        memory.tell("Note 4.")
        with memory.opened() as one:
            assert content(one) != before
        assert replayed == ([5] if writer == "text" else [])
        memory.forget(5)
        with memory.opened() as one:
            assert content(one) == before


@pytest.mark.parametrize("harm", ["cut", "gone", "other"])
def test_a_bad_snapshot_is_made_up_for_by_a_replay(harm: str, tmp_path: Path) -> None:
    with store_in(tmp_path) as store:
        memory = store.memory("m", create=True)
        memory.tell("Ann lives in Oslo.")
        with memory.opened() as one:
            before = content(one)
    (file,) = (tmp_path / "snapshots").glob("*/*.safetensors")
    if harm == "gone":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-9] if harm == "cut" else b"something else")
    with store_in(tmp_path) as store, store.memory("m").opened() as one:
        assert content(one) == before


def test_memories_leave_ram_when_there_is_no_room_and_come_back(tmp_path: Path) -> None:
    with store_in(tmp_path, "learned", budget=0) as store:
        for name in ("a", "b", "c"):
            store.memory(name, create=True).tell(f"This is {name}.")
        assert not store.residents.open_ids
        assert len(list((tmp_path / "snapshots").glob("*/*.safetensors"))) == 3
        with store.memory("a").opened(), store.memory("b").opened():
            assert len(store.residents.open_ids) == 2, "what is in use stays"
        assert not store.residents.open_ids


def test_another_models_memory_is_refused(tmp_path: Path) -> None:
    with store_in(tmp_path) as store:
        store.memory("m", create=True).ask("Who?", max_new_tokens=1)
    weight = next(model_of("text").hf.parameters())
    before = weight.data.clone()
    try:
        with torch.no_grad():
            weight.mul_(1.5)
        with store_in(tmp_path) as store, pytest.raises(MemoryMismatchError, match="reencode"):
            store.memory("m").ask("Who?")
    finally:
        with torch.no_grad():
            weight.copy_(before)


def test_telling_a_text_memory_loads_no_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, text = model_of("text"), "Ann lives in Oslo. " * 40
    model.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(MemoryModel, "from_pretrained", lambda *_, **__: pytest.fail("the weights were loaded"))
    with Store.open(tmp_path / "store", model=str(tmp_path / "model")) as store:
        row = store.memory("m", create=True).tell(text)
        (told,) = store.ledger.told(store.memory("m").found, [row.seq])
    assert row.tokens == told.content.tokens > 256
    pieces = model.writer.pieces(model.new_memory(), text, False)
    assert [tokens for tokens, _ in told.content.cuts] == [len(ids) for ids, _ in pieces]
