"""Late interaction: the score of tokens, on int8 keys, beside the plain sum in float64."""

import math
from dataclasses import replace

import pytest
import torch

from remanence.config import StorageConfig
from remanence.memory import Memory
from remanence.memory import late as late_module
from remanence.memory.chunks import Chunk, Chunks, Query
from remanence.memory.late import LateQuery, late_scores, to_int8
from remanence.memory.undo import Undo, undoing
from tests.support.late import FUSION, late_query, unit
from tests.support.texts import SPEC, latent_of

LENGTHS = (3, 1, 7, 20, 2)


def keys_of(number: int) -> torch.Tensor:
    return to_int8(unit(LENGTHS[number % len(LENGTHS)], 16, seed=100 + number))


def plain(keys: torch.Tensor, query: LateQuery) -> float:
    products = query.vectors.double() @ keys.double().t() / 127**2
    return float((products.max(dim=1).values * query.shares.double()).sum())


def told(numbers: range | list[int], *, keyed: bool = True) -> Memory:
    chunks = Chunks(StorageConfig("text"), head=(1,))
    memory = Memory(SPEC, chunks=chunks)
    for number in numbers:
        keys = keys_of(number) if keyed else None
        count, text = LENGTHS[number % len(LENGTHS)], f"alice number {number}"
        ids = torch.arange(count, dtype=torch.int32)
        with memory.changing() as undo:
            made = Chunk(chunks.next_key, memory.next_id, 0, count, ids, text, latent_of(number), None, keys)
            chunks.add(made, undo)
            memory.record(undo, count)
    return memory


def asked(memory: Memory, late: LateQuery | None) -> list[float]:
    assert memory.chunks is not None
    return list(memory.chunks.scores(Query(["alice", "7"], latent_of(1).float(), late)).values())


@pytest.mark.parametrize("at_once", [1, 40, 2**22])
def test_late_scores_are_the_plain_sum_of_best_products(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    monkeypatch.setattr(late_module, "_AT_ONCE", at_once)
    query, keys = late_query(), [keys_of(number) for number in range(12)]
    assert late_scores(keys, query) == pytest.approx([plain(each, query) for each in keys], abs=1e-6)
    assert late_scores([], query) == []


def test_late_scores_of_a_chunk_do_not_depend_on_those_beside_it() -> None:
    query, keys = late_query(tokens=9, size=64), [to_int8(unit(30 + n, 64, seed=n)) for n in range(20)]
    together = late_scores(keys, query)
    assert [late_scores([each], query)[0] for each in keys] == together
    assert late_scores(keys[::-1], query)[::-1] == together


def test_to_int8_loses_less_than_a_hundredth_of_a_score() -> None:
    exact_keys, exact = [unit(40, 64, seed=n) for n in range(20)], unit(8, 64, seed=77)
    query = LateQuery(to_int8(exact), torch.full((8,), 1 / 8), 0.0, FUSION)
    got = late_scores([to_int8(each) for each in exact_keys], query)
    wanted = [float((exact @ each.t()).max(dim=1).values.mean()) for each in exact_keys]
    assert max(abs(a - b) for a, b in zip(got, wanted, strict=True)) < 0.01


def test_scores_with_keys_are_words_and_tokens_in_one() -> None:
    memory, query = told(range(6)), late_query()
    assert memory.chunks is not None
    lexical = memory.chunks._postings.scores(["alice", "7"])
    for got, chunk in zip(asked(memory, query), memory.chunks, strict=True):
        logit = 8 * lexical[chunk.key] + 10 * plain(keys_of(chunk.write), query) - 6 + 0.25
        assert got == pytest.approx(1 / (1 + math.exp(-logit)), abs=1e-6)


def test_scores_without_words_go_by_tokens_alone() -> None:
    query = late_query()
    assert query.fused(None, 0.5) == pytest.approx(1 / (1 + math.exp(-(12 * 0.5 - 5 + 0.25))))
    assert query.fused(0.0, 0.5) == pytest.approx(1 / (1 + math.exp(-(10 * 0.5 - 6 + 0.25))))


def test_scores_where_a_chunk_lacks_keys_are_those_of_no_retriever() -> None:
    assert asked(told(range(4), keyed=False), late_query()) == asked(told(range(4)), None)


def test_drop_leaves_the_scores_of_a_memory_that_was_told_the_rest() -> None:
    memory, rest, query = told(range(8)), told([0, 1, 2, 4, 5, 6, 7]), late_query()
    with memory.changing() as undo:
        memory.drop(3, undo)
    assert asked(memory, query) == asked(rest, query)


def test_replace_keys_changes_those_chunks_and_is_taken_back() -> None:
    memory, query = told(range(4)), late_query()
    fork, before = memory.fork(), asked(memory, query)
    chunks = memory.chunks
    assert chunks is not None
    undo = Undo()
    chunks.replace_keys({2: keys_of(7)[:1].repeat(7, 1)}, undo)
    undo.run()
    assert asked(memory, query) == before
    with undoing() as undo:
        chunks.replace_keys({2: keys_of(7)[:1].repeat(7, 1)}, undo)
    changed = [a != b for a, b in zip(asked(memory, query), before, strict=True)]
    assert changed == [False, False, True, False]
    assert asked(fork, query) == before
    assert [chunk.key for chunk in chunks] == [0, 1, 2, 3]


def test_state_keeps_keys() -> None:
    memory, query = told(range(6)), late_query()
    back = Memory.from_state(memory.state())
    assert asked(back, query) == asked(memory, query)
    assert back.nbytes == memory.nbytes
    assert back.nbytes["text"] - told(range(6), keyed=False).nbytes["text"] == 16 * sum(
        LENGTHS[n % 5] for n in range(6)
    )


def test_state_of_chunks_some_of_which_lack_keys_has_none() -> None:
    memory = told(range(3))
    chunks = memory.chunks
    assert chunks is not None
    with memory.changing() as undo:
        made = Chunk(chunks.next_key, memory.next_id, 0, 1, torch.zeros(1, dtype=torch.int32), "x", latent_of(1), None)
        chunks.add(made, undo)
        memory.record(undo, 1)
    assert "chunks.keys" not in memory.state().tensors
    back = Memory.from_state(memory.state())
    assert back.chunks is not None
    assert all(chunk.keys is None for chunk in back.chunks)


def test_from_state_refuses_keys_of_another_kind() -> None:
    state = told(range(3)).state()
    for wrong in (state.tensors["chunks.keys"].float(), state.tensors["chunks.keys"][1:]):
        with pytest.raises(Exception, match="fit together"):
            Memory.from_state(replace(state, tensors={**state.tensors, "chunks.keys": wrong}))


def test_save_keeps_keys(tmp_path: object) -> None:
    memory, query = told(range(6)), late_query()
    memory.save(f"{tmp_path}/a.safetensors")
    assert asked(Memory.load(f"{tmp_path}/a.safetensors"), query) == asked(memory, query)
