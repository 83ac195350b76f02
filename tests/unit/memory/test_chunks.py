"""Chunks of a text memory: what is found, who leaves, and what is left after one was forgotten."""

from collections.abc import Sequence

import pytest
import torch

from remanence.config import StorageConfig, Tier
from remanence.errors import CorruptMemoryError, InvalidInputError
from remanence.memory import Memory
from remanence.memory.chunks import Chunk, Chunks, Query
from remanence.memory.scoring import fused
from remanence.memory.undo import Undo, undoing
from tests.support.contents import contents
from tests.support.texts import forget, latent_of, scores, slots_of, tell, tell_in, text_memory, text_of

QUESTION = "where does Alice the baker live, in Oslo or in Rome?"


def chunks_of(memory: Memory) -> Chunks:
    assert memory.chunks is not None
    return memory.chunks


def told(numbers: Sequence[int], **settings: object) -> Memory:
    memory = text_memory(**settings)  # type: ignore[arg-type]
    for number in numbers:
        tell(memory, number)
    return memory


def left(memory: Memory) -> list[tuple[int, int]]:
    return [(chunk.write, chunk.place) for chunk in chunks_of(memory)]


def test_scores_are_those_of_words_and_vectors_in_one() -> None:
    memory = told(range(4))
    query = Query(["alice"], latent_of(7).float())
    for chunk, score in chunks_of(memory).scores(query).items():
        lexical = chunks_of(memory)._postings.scores(["alice"]).get(chunk.key, 0.0)
        assert score == pytest.approx(fused(lexical, float(chunk.latent.float() @ query.latent)), abs=1e-6)
    assert len(set(scores(memory, QUESTION).values())) > 4


def test_scores_of_an_empty_memory_are_none() -> None:
    assert scores(text_memory(), QUESTION) == {}


def test_scores_without_text_go_by_vectors_alone() -> None:
    memory = told(range(4), storage=StorageConfig("host"), keep_text=False)
    assert scores(memory, "one question") == scores(memory, "another")
    assert all(chunk.ids is None and chunk.text is None for chunk in chunks_of(memory))
    assert all(record.text is None for record in memory.writes)


def test_writes_have_the_text_that_is_left_of_them() -> None:
    memory = text_memory(capacity=12)
    for text in ("One. ", "Two. ", "Three. "):
        with memory.changing() as undo:
            for place, tokens in enumerate((3, 2)):
                kept = Chunk(chunks_of(memory).next_key, memory.next_id, place, tokens, None, text, latent_of(1), None)
                chunks_of(memory).add(kept, undo)
            memory.evict(memory.record(undo, 5).id, undo)
    assert [record.text for record in memory.writes] == ["One. ", "Two. Two. ", "Three. Three. "]
    assert [record.text for record in memory.fork().writes] == ["One. ", "Two. Two. ", "Three. Three. "]
    forget(memory, 1)
    assert [record.text for record in memory.writes] == ["One. ", "Three. Three. "]


def test_chunks_without_text_need_a_tier_that_keeps_slots() -> None:
    with pytest.raises(InvalidInputError, match="another tier"):
        text_memory(keep_text=False)


@pytest.mark.parametrize("forgotten", [[0], [3], [9], [4, 0, 7], list(range(1, 10))])
def test_drop_leaves_what_a_memory_told_only_the_rest_has_bit_for_bit(forgotten: list[int]) -> None:
    memory, rest = told(range(10)), text_memory()
    for number in range(10):
        if number in forgotten:
            rest.write_count += 1
        else:
            tell(rest, number)
    for write in forgotten:
        forget(memory, write)
    assert left(memory) == left(rest) and [one.id for one in memory.writes] == [one.id for one in rest.writes]
    assert scores(memory, QUESTION) == scores(rest, QUESTION)
    tell(memory, 20)
    tell(rest, 20)
    assert scores(memory, QUESTION) == scores(rest, QUESTION) and memory.next_id == rest.next_id == 11


def test_scores_of_a_chunk_do_not_depend_on_where_its_vector_lies() -> None:
    """Bit for bit, in a memory that grew, shrank and grew again."""
    memory = told(range(200), storage=StorageConfig("host"), keep_text=False)
    alone = {write: told([write], storage=StorageConfig("host"), keep_text=False) for write in (0, 77, 199)}
    for write in range(1, 77):
        forget(memory, write)
    for number in range(300, 330):
        tell(memory, number)
    found = scores(memory, QUESTION)
    for write, one in alone.items():
        assert [found[write, place] for place in (0, 1)] == list(scores(one, QUESTION).values())


def test_drop_of_a_write_that_is_not_there_is_refused() -> None:
    memory = told(range(3))
    forget(memory, 1)
    before = contents(memory)
    with pytest.raises(InvalidInputError, match="no write 1"):
        forget(memory, 1)
    assert contents(memory) == before


def test_drop_that_is_taken_back_leaves_no_trace() -> None:
    memory = told(range(10), capacity=60, random=True)
    before, asked = contents(memory), scores(memory, QUESTION)
    with pytest.raises(KeyboardInterrupt), memory.changing() as undo:  # noqa: PT012
        for record in memory.writes[:3]:
            memory.drop(record.id, undo)
        raise KeyboardInterrupt
    assert contents(memory) == before and scores(memory, QUESTION) == asked
    for number in range(20, 24):
        tell(memory, number)


def test_evict_drops_the_oldest_chunks_until_the_others_fit() -> None:
    memory = told(range(5), capacity=22)
    assert left(memory) == [(2, 1), (3, 0), (3, 1), (4, 0), (4, 1)] and chunks_of(memory).dropped == 4
    assert [record.id for record in memory.writes] == [2, 3, 4]


def test_evict_drops_nothing_that_fits() -> None:
    memory = told(range(5), capacity=40)
    assert len(left(memory)) == 10 and chunks_of(memory).dropped == -1


def test_evict_may_drop_the_first_chunks_of_a_write_that_does_not_fit_whole() -> None:
    memory = told([0], capacity=20)
    tell(memory, 1, (8, 8, 8))
    assert left(memory) == [(1, 1), (1, 2)]


def test_evict_at_random_depends_on_seed_and_write_alone() -> None:
    one, other = (told(range(30), capacity=60, random=True, seed=seed) for seed in (1, 2))
    assert left(one) == left(told(range(30), capacity=60, random=True, seed=1)) != left(other)
    assert [write for write, _ in left(one)] != list(range(30))[-len(left(one)) :]
    reseeded = told(range(30), capacity=10**6, random=True, seed=2)
    reseeded.seed(1)
    chunks_of(reseeded).capacity = 60
    tell(reseeded, 30)
    tell(one, 30)
    assert left(reseeded) == left(one)


def test_evict_at_random_takes_old_and_new_alike() -> None:
    """Who comes late stays more often only because it was at risk less often."""
    kept = [write for seed in range(60) for write, _ in left(told(range(20), capacity=80, random=True, seed=seed))]
    assert len(kept) == sum(kept.count(write) for write in range(20)) and min(map(kept.count, range(20))) > 10


@pytest.mark.parametrize("random", [False, True])
def test_add_that_is_taken_back_leaves_no_trace(random: bool) -> None:
    memory = told(range(8), capacity=50, random=random)
    before, asked, twin = contents(memory), scores(memory, QUESTION), memory.fork()
    with pytest.raises(KeyboardInterrupt), memory.changing() as undo:  # noqa: PT012
        for number in range(9, 16):
            tell_in(memory, undo, number)
        raise KeyboardInterrupt
    assert contents(memory) == before and scores(memory, QUESTION) == asked
    for one in (memory, twin):
        tell(one, 8)
    assert contents(memory) == contents(twin) and scores(memory, QUESTION) == scores(twin, QUESTION)


def test_add_refuses_a_vector_that_is_not_finite() -> None:
    chunks, latent = Chunks(StorageConfig("text")), latent_of(0)
    latent[2] = torch.inf
    ids = torch.arange(3, dtype=torch.int32)
    with pytest.raises(CorruptMemoryError, match="not finite"), undoing() as undo:
        chunks.add(Chunk(0, 0, 0, 3, ids, "a b c", latent, None), undo)
    assert len(chunks) == 0 and chunks.tokens == 0


def test_add_refuses_text_that_no_file_could_keep() -> None:
    chunks, ids = Chunks(StorageConfig("text")), torch.arange(3, dtype=torch.int32)
    with pytest.raises(InvalidInputError, match="valid Unicode"):
        chunks.add(Chunk(0, 0, 0, 3, ids, "half a pair \ud800", latent_of(0), None), Undo())
    assert len(chunks) == 0


def test_scores_go_by_token_ids_where_there_is_no_text() -> None:
    chunks = Chunks(StorageConfig("text"))
    for key in range(2):
        ids = torch.arange(10 * key, 10 * key + 3, dtype=torch.int32)
        chunks.add(Chunk(key, key, 0, 3, ids, None, latent_of(0), None), Undo())
    first, second = chunks.scores(Query([10, 11, 12], latent_of(1).float())).values()
    assert first < second


def test_fork_shares_chunks_and_goes_its_own_way() -> None:
    memory = told(range(10), capacity=60)
    fork, before = memory.fork(), contents(memory)
    assert contents(fork) == before and list(chunks_of(fork)) == list(chunks_of(memory))
    for number in range(10, 20):
        tell(fork, number)
    assert contents(memory) == before
    for number in range(10, 20):
        tell(memory, number)
    assert contents(memory) == contents(fork) and scores(memory, QUESTION) == scores(fork, QUESTION)


@pytest.mark.parametrize("int8", [False, True])
@pytest.mark.parametrize("tier", ["device", "host", "disk"])
def test_slots_come_back_from_every_tier(tier: Tier, int8: bool) -> None:
    memory = told(range(3), storage=StorageConfig(tier, int8))
    for chunk in chunks_of(memory):
        slots = chunk.kept.load(torch.device("cpu"))
        torch.testing.assert_close(
            slots, slots_of(1000 * chunk.write + chunk.place, chunk.tokens), atol=0.02 * int8, rtol=0
        )


def test_nbytes_counts_what_lies_in_which_tier() -> None:
    text = sum(
        4 * n + 2 * 6 + len(text_of(1000 * number + place, n)) for number in range(3) for place, n in ((0, 3), (1, 5))
    )
    slots = 3 * (3 + 5) * 2 * 2 * 2 * 4
    assert told(range(3)).nbytes == {"text": text}
    assert told(range(3), storage=StorageConfig("host")).nbytes == {"text": text, "host": 4 * slots}
    small = told(range(3), storage=StorageConfig("disk", int8=True))
    assert small.nbytes == {"text": text, "disk": slots + 4 * 2 * 2 * 3 * (3 + 5)}


def test_to_moves_the_slots_of_the_device_tier_alone() -> None:
    meta = torch.device("meta")
    for tier, devices in (("text", set()), ("host", set()), ("device", {meta})):
        memory = told(range(3), storage=StorageConfig(tier))  # type: ignore[arg-type]
        assert memory.devices == ({torch.device("cpu")} if tier == "device" else set())
        shared = memory.fork()
        assert memory.to("meta").devices == devices
        kept = [chunk for chunk in chunks_of(memory) if chunk.slots is not None and chunk.kept.slots.is_meta]
        assert len(kept) == (6 if tier == "device" else 0) and shared.devices == (
            {torch.device("cpu")} if tier == "device" else set()
        )
        assert chunks_of(memory).of(2) == list(chunks_of(memory))[-2:]
