"""Memory is a value: what it records, how it forks, and what an interrupted write leaves."""

import copy
import pickle
import threading
from contextlib import suppress
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from remanence.config import LongTermConfig
from remanence.errors import CorruptMemoryError, InvalidInputError, MemoryMismatchError
from remanence.memory import Memory, MemorySpec, NewSlots, WriteRecord
from remanence.memory.memory import locked
from tests.support import longterms
from tests.support.contents import contents
from tests.support.texts import TIME, tell, text_memory

SPEC = replace(longterms.SPEC, slots=12, slots_per_write=3, hidden_size=8, kv_heads=1, retrieval_size=0)


def new_slots(number: int, count: int = 3) -> NewSlots:
    generator = torch.Generator().manual_seed(number)
    hidden = torch.randn(2, count, 8, generator=generator)
    return NewSlots(hidden, hidden[..., None, :4], hidden[..., None, 4:], tokens=10 + number)


def write(memory: Memory, number: int, count: int = 3, evict: Tensor | None = None) -> Tensor | None:
    with memory.changing() as undo:
        first, evicted = memory.next_serial, memory.put(new_slots(number, count), undo, evict)
        memory.record(undo, 10 + number, first, time=TIME)
        return evicted


def written(writes: int, *, seed: int = 0, keep_hidden: bool = True) -> Memory:
    memory = Memory(SPEC, seed=seed, keep_hidden=keep_hidden)
    for number in range(writes):
        write(memory, number)
    return memory


def test_put_fills_a_new_pool_with_the_first_slots_over_and_over() -> None:
    memory = Memory(SPEC, keep_hidden=True)
    assert write(memory, 0, count=5) is None
    made = new_slots(0, 5).hidden
    assert torch.equal(memory.pool.slots(), torch.cat([made, made, made[:, -2:]], dim=1))
    assert memory.newest is not None and torch.equal(memory.newest, memory.pool.slots()[:, -3:])


def test_tiled_keeps_the_last_of_more_slots_than_fit() -> None:
    made = new_slots(0, 17)
    assert torch.equal(made.tiled(12).hidden, made.hidden[:, -12:])


@pytest.mark.parametrize("count", [1, 2, 3, 5, 12])
def test_put_keeps_the_newest_slots_of_the_pool(count: int) -> None:
    memory = written(3)
    for number in range(20):
        write(memory, number, count)
        assert memory.newest is not None and torch.equal(memory.newest, memory.pool.slots()[:, -3:])


def test_put_grows_the_pool_where_a_replayed_draw_is_short() -> None:
    memory = written(2)
    before = memory.pool.slots()
    write(memory, 5, evict=torch.tensor([[0, 11], [3, 4]]))
    assert memory.pool.size == 13
    kept = [[*range(1, 11)], [*range(3), *range(5, 12)]]
    survivors = torch.stack([before[layer, rows] for layer, rows in enumerate(kept)])
    assert torch.equal(memory.pool.slots(), torch.cat([survivors, new_slots(5).hidden], dim=1))


def test_provenance_names_the_write_that_made_each_slot() -> None:
    memory = written(30)
    for layer, row in enumerate(memory.provenance().tolist()):
        for slot, made_by in zip(memory.pool.slots()[layer], row, strict=True):
            assert bool((new_slots(made_by).hidden[layer] == slot).all(dim=-1).any())
    assert memory.provenance()[:, -3:].eq(29).all()


def test_provenance_of_slots_that_no_write_made_is_none() -> None:
    start = written(1)
    memory = Memory(SPEC, pool=start.pool, newest=start.newest, keep_hidden=True)
    write(memory, 4)
    assert memory.provenance().tolist() == [[-1] * 9 + [0] * 3] * 2


def test_record_keeps_the_table_bounded_and_complete() -> None:
    memory = Memory(SPEC)
    for number in range(1000):
        write(memory, number % 7)
        alive = set(memory.provenance().unique().tolist())
        assert alive <= {record.id for record in memory.writes}
        assert len(memory.writes) <= 64 + 8 * 4 + 1
    assert memory.write_count == 1000
    assert memory.writes[-1] == WriteRecord(999, 10 + 999 % 7, memory.next_serial - 3, 3, TIME)


@pytest.mark.parametrize("writes", [0, 1, 5])
@pytest.mark.parametrize("chunks", [1, 7])
@pytest.mark.parametrize("evict", [None, torch.tensor([[0], [1]])], ids=["in place", "growing"])
def test_changing_that_is_interrupted_leaves_no_trace(writes: int, chunks: int, evict: Tensor | None) -> None:
    memory = written(writes)
    before = contents(memory)
    if writes == 0:
        evict = None
    with pytest.raises(KeyboardInterrupt), memory.changing() as undo:  # noqa: PT012
        first = memory.next_serial
        for number in range(9, 9 + chunks):
            memory.put(new_slots(number), undo, evict)
        memory.record(undo, 5, first)
        raise KeyboardInterrupt
    assert contents(memory) == before


@pytest.mark.parametrize("part", ["hidden", "keys", "values"])
@pytest.mark.parametrize("number", [float("nan"), float("inf")])
def test_put_refuses_slots_that_are_not_finite(part: str, number: float) -> None:
    memory = written(3)
    before = contents(memory)
    new = new_slots(9)
    broken = {name: getattr(new, name).clone() for name in ("hidden", "keys", "values")}
    broken[part].view(-1)[0] = number
    with pytest.raises(CorruptMemoryError, match="unchanged"), memory.changing() as undo:
        memory.put(NewSlots(**broken, tokens=1), undo)
    assert contents(memory) == before


@pytest.mark.parametrize(
    ("writes", "evict", "says"),
    [
        (0, torch.zeros(2, 3, dtype=torch.long), "first write"),
        (2, torch.tensor([[0, 1, 2, 3], [0, 1, 2, 3]]), "makes only 3"),
        (2, torch.tensor([[0, 1, 12], [0, 1, 2]]), "outside"),
    ],
)
def test_put_refuses_a_draw_that_does_not_fit(writes: int, evict: Tensor, says: str) -> None:
    memory = written(writes)
    before = contents(memory)
    with pytest.raises(InvalidInputError, match=says):
        write(memory, 1, evict=evict)
    assert contents(memory) == before


def test_put_from_the_same_seed_gives_the_same_memory() -> None:
    assert contents(written(20, seed=4)) == contents(written(20, seed=4))
    assert contents(written(20, seed=4)) != contents(written(20, seed=5))


def test_fork_is_equal_and_independent() -> None:
    memory = written(6)
    copy, before = memory.fork(), contents(memory)
    assert contents(copy) == before
    write(copy, 7)
    assert contents(memory) == before
    write(memory, 7)
    assert contents(memory) == contents(copy)


def test_pool_of_a_memory_that_was_never_written_is_refused() -> None:
    memory = Memory(SPEC)
    assert not memory.written and memory.nbytes == {"device": 0}
    with pytest.raises(InvalidInputError, match="never written"):
        _ = memory.pool


@pytest.mark.parametrize("keep_hidden", [False, True])
def test_nbytes_are_those_of_its_tensors(keep_hidden: bool) -> None:
    pool, newest = 2 * 12 * (4 + 4 + 8 * keep_hidden), 2 * 3 * 8
    assert written(3, keep_hidden=keep_hidden).nbytes == {"device": 4 * (pool + newest) + 8 * 2 * 12}


@pytest.mark.parametrize("writes", [0, 3])
def test_to_moves_a_memory_in_place(writes: int) -> None:
    memory = written(writes)
    assert memory.devices == ({torch.device("cpu")} if writes else set())
    assert memory.to("meta") is memory
    held = [*memory.pool.tensors.values(), memory.newest] if writes else []
    assert all(tensor is not None and tensor.is_meta for tensor in held)
    assert memory.devices == ({torch.device("meta")} if writes else set()) and memory.write_count == writes


def test_require_lists_every_difference() -> None:
    other = MemorySpec(**{**SPEC.to_json(), "slots": 24, "dtype": "bfloat16", "model": "other weights"})
    with pytest.raises(MemoryMismatchError) as caught:
        SPEC.require(other)
    for part in ("slots: the memory has 24, the model 12", "dtype: the memory has bfloat16", "weights fingerprint"):
        assert part in str(caught.value)
    assert "layers" not in str(caught.value)


@pytest.mark.parametrize(("slots", "k", "says"), [(10, 3, "N=9 or N=12"), (2, 3, "between 1 and"), (4, 0, "between 1")])
def test_spec_refuses_sizes_that_do_not_fit(slots: int, k: int, says: str) -> None:
    with pytest.raises(InvalidInputError, match=says):
        MemorySpec(**{**SPEC.to_json(), "slots": slots, "slots_per_write": k})


@pytest.mark.parametrize("fails", ["inner", "outer"])
def test_changing_inside_another_scope_is_taken_back_with_it(fails: str) -> None:
    memory = written(3)
    expected = memory.fork()
    with suppress(KeyboardInterrupt), memory.changing():
        write(memory, 7)
        with suppress(ValueError), memory.changing():
            write(memory, 8)
            write(memory, 9)
            if fails == "inner":
                raise ValueError
        write(memory, 10)
        if fails == "outer":
            raise KeyboardInterrupt
    if fails == "inner":
        write(expected, 7)
        write(expected, 10)
    assert contents(memory) == contents(expected)
    write(memory, 11)
    write(expected, 11)
    assert contents(memory) == contents(expected)


def test_changing_lets_the_lock_go_after_an_error() -> None:
    memory = written(1)
    with pytest.raises(KeyboardInterrupt), memory.changing():
        raise KeyboardInterrupt
    other = threading.Thread(target=write, args=(memory, 5))
    other.start()
    other.join(60)
    assert not other.is_alive() and memory.write_count == 2


def test_locked_takes_locks_in_one_order() -> None:
    memories = [written(1) for _ in range(3)]

    def take(order: list[Memory]) -> None:
        for _ in range(300):
            with locked(order), locked(order[:1]):
                pass

    orders = (memories, memories[::-1], [memories[0]] * 2)
    threads = [threading.Thread(target=take, args=(order,), daemon=True) for order in orders]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)


def test_record_keeps_what_the_caller_says_of_a_write() -> None:
    memory = written(0)
    metadata: dict[str, Any] = {"page": 3, "tags": ("a", "b")}
    with memory.changing() as undo:
        record = memory.record(undo, 9, source="notes.md", metadata=metadata, text="Alice lives in Oslo.")
    metadata["page"] = 4
    assert memory.writes == [record] and (record.id, record.tokens, record.source) == (0, 9, "notes.md")
    assert record.metadata == {"page": 3, "tags": ["a", "b"]} and record.text == "Alice lives in Oslo."
    assert record.time is not None and record.time.utcoffset() is not None


@pytest.mark.parametrize(
    "about",
    [
        {"source": 5},
        {"source": "notes\udcff.md"},
        {"text": b"bytes"},
        {"text": "half a pair \ud800"},
        {"metadata": {"score": float("nan")}},
        {"metadata": {"when": TIME}},
        {"metadata": ["a", "b"]},
        {"metadata": {"name": "\udcff"}},
    ],
)
def test_record_refuses_what_no_file_could_keep(about: dict[str, Any]) -> None:
    memory = written(1)
    before = contents(memory)
    with pytest.raises(InvalidInputError, match="JSON in valid Unicode"), memory.changing() as undo:
        memory.record(undo, 9, **about)
    assert contents(memory) == before


@pytest.mark.parametrize(("ids", "following"), [([0, 3], 4), ([5, 2], 6)])
def test_record_of_a_write_that_is_made_again_keeps_its_id(ids: list[int], following: int) -> None:
    memory = written(0)
    with memory.changing() as undo:
        for id in ids:
            memory.record(undo, 9, id=id)
    assert [record.id for record in memory.writes] == ids and memory.next_id == following


def test_record_drops_those_of_dead_writes_at_the_same_write_after_a_save_and_a_load() -> None:
    memory = longterms.written(200, LongTermConfig(retrieved=7, capacity=64 * 150))
    loaded, ids = Memory.from_state(memory.state()), list[int]()
    for number in range(200, 350):
        longterms.write(memory, number)
        longterms.write(loaded, number)
        ids = [one.id for one in memory.writes]
        assert ids == [one.id for one in loaded.writes]
    assert ids[0] > 100


def test_pool_only_reads_without_long_term_memory() -> None:
    memory = longterms.written(5)
    view = memory.pool_only()
    assert view.longterm is None and view.pool is memory.pool and memory.longterm is not None
    fork = view.fork()
    assert fork.pool.retrieval is None and fork.pool.ages is None and memory.pool.ages is not None
    assert view.pool_only() is view


def test_copies_are_forks_and_pickles_are_refused() -> None:
    memory = written(3)
    other = copy.deepcopy(memory)
    write(other, 5)
    assert memory.write_count == 3 and other.write_count == 4
    with pytest.raises(InvalidInputError, match="not pickled"):
        pickle.dumps(memory)


def test_seed_decides_who_leaves_from_then_on() -> None:
    one, other = written(3, seed=1), written(3, seed=2)
    first, second = (write(memory, 9) for memory in (one.fork(), other.fork()))
    assert first is not None and second is not None and not torch.equal(first, second)
    other.seed(1)
    fresh = Memory(SPEC, seed=1, pool=other.pool.clone(), newest=other.newest, keep_hidden=True)
    first, second = write(other, 9), write(fresh, 9)
    assert first is not None and second is not None and torch.equal(first, second)


def test_repr_says_how_much_there_is() -> None:
    assert "never written" in repr(Memory(SPEC)) and "12 slots" in repr(written(2))
    memory = text_memory()
    tell(memory, 0)
    assert repr(memory) == "Memory(text, 1 writes, 2 chunks, 8 tokens)"
    with pytest.raises(InvalidInputError, match="keeps chunks"):
        _ = memory.pool
