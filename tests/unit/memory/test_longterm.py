"""Long-term memory: what comes back, what is dropped, and what an undone write leaves."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from remanence.config import LongTermConfig, StorageConfig, Tier
from remanence.errors import CorruptMemoryError
from remanence.memory import LongTerm
from remanence.memory.longterm import Evicted
from remanence.memory.published import RecallFrequency
from remanence.memory.state import Frequencies
from remanence.memory.storage import MemoryRows
from remanence.memory.undo import Undo, undoing
from tests.support.longterms import (
    ROWS,
    RULES,
    SPEC,
    append,
    everything,
    frequencies,
    joined,
    longterm,
    random,
    use_small_blocks,
)


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    use_small_blocks(monkeypatch)


def queries(count: int = 4, seed: int = 0) -> Tensor:
    return random(count, SPEC.retrieval_size, seed=seed)


def best(asked: Tensor, keys: Tensor, ages: Tensor, wanted: int) -> list[int]:
    """The published rule in plain words: highest scores, oldest first, of equal age the later first."""
    picked = torch.sigmoid(asked @ keys.T).mean(0).topk(wanted).indices.tolist()
    return sorted(picked, key=lambda at: (-int(ages[at]), -at))


def positions(held: LongTerm, layer: int, asked: Tensor | None = None) -> list[int]:
    return held.retrieve(layer, queries() if asked is None else asked).positions.tolist()


def published(retrieved: int, initial: float = 2.0, decay: float = 1.0) -> tuple[LongTerm, RecallFrequency]:
    """With the published policy, which merges after six slots."""
    held = longterm(LongTermConfig(retrieved), frequencies=Frequencies(6, initial, decay))
    assert isinstance(held.policy, RecallFrequency)
    return held, held.policy


def test_take_gives_slots_by_position_from_any_block() -> None:
    held = longterm()
    parts = [append(held, count) for count in (3, 300, 1, 400)]
    asked = torch.tensor([703, 0, 256, 255, 511, 512, 2, 3, 303, 304, 0])
    for index, layer in enumerate(held.layers):
        assert list(layer.blocks) == [0, 1, 2] and layer.layout.block_rows == ROWS
        keys, values = layer.take(asked)
        assert torch.equal(keys, joined(parts, "keys", index)[asked])
        assert torch.equal(values, joined(parts, "values", index)[asked])
        assert layer.known("serial", asked).tolist() == asked.tolist()


@pytest.mark.parametrize("tokens", [1, 9])
def test_retrieve_gives_the_highest_scores_of_all_blocks_oldest_first(tokens: int) -> None:
    held = longterm()
    parts = [append(held, count, step=0) for count in (40, 600)]
    for layer in range(SPEC.layers):
        asked = queries(tokens, seed=layer)
        found = held.retrieve(layer, asked)
        expected = best(asked, joined(parts, "retrieval", layer), joined(parts, "ages", layer), RULES.retrieved)
        assert found.positions.tolist() == expected
        assert torch.equal(found.keys, joined(parts, "keys", layer)[expected])
        assert torch.equal(found.values, joined(parts, "values", layer)[expected])


def test_retrieve_puts_the_later_of_equal_age_first() -> None:
    held = longterm()
    append(held, 7, ages=torch.tensor([[1, 4, 1, 4, 0, 4, 1], [3] * 7]))
    assert positions(held, 0) == [5, 3, 1, 6, 2, 0, 4]
    assert positions(held, 1) == [6, 5, 4, 3, 2, 1, 0]


def test_retrieve_repeats_too_few_slots_without_the_buffer_as_published() -> None:
    held, policy = published(16)
    append(held, 10, step=6, ages=torch.tensor([[2, 2, 0, 1, 2, 1, 0, 2, 1, 0], [*range(10)]]))
    append(held, 3, step=3)
    assert held.sizes() == [10, 10] and policy.buffered(held) == [3, 3]
    for layer in range(SPEC.layers):
        ages = held.ages(layer).tolist()
        sequence = [*range(4, 10), *range(10)]
        assert positions(held, layer) == sorted(sequence, key=lambda at: ages[at])[::-1]


def test_retrieve_repeats_nothing_where_all_wait_in_the_buffer() -> None:
    held, _ = published(16)
    append(held, 5, step=5)
    assert held.sizes() == [0, 0] and held.readable == 0 and positions(held, 0) == []


def test_retrieve_reads_equally_many_slots_in_layers_of_different_size() -> None:
    held = longterm()
    append(held, 20)
    held.layers[1].start = 17
    assert held.readable == 3
    assert len(positions(held, 0)) == 3 and sorted(positions(held, 1)) == [17, 18, 19]


def test_retrieve_from_nothing_gives_no_slots() -> None:
    found = longterm().retrieve(0, queries())
    assert found.keys.shape == found.values.shape == (0, SPEC.kv_heads, SPEC.head_dim)


def test_ages_grow_by_the_step_of_each_later_write() -> None:
    held = longterm()
    append(held, 2, step=100, ages=torch.tensor([[5, 0], [1, 9]]))
    assert [held.ages(layer).tolist() for layer in (0, 1)] == [[5, 0], [1, 9]]
    append(held, 1, step=3, ages=torch.tensor([[7], [7]]))
    append(held, 1, step=4, ages=torch.tensor([[2], [2]]))
    assert [held.ages(layer).tolist() for layer in (0, 1)] == [[12, 7, 11, 2], [8, 16, 11, 2]]


def test_append_beyond_capacity_drops_the_first_arrivals_whatever_their_ages() -> None:
    held = longterm(LongTermConfig(retrieved=30, capacity=30))
    append(held, 20, ages=torch.zeros(2, 20, dtype=torch.long))
    append(held, 20, ages=torch.full((2, 20), 90))
    assert held.sizes() == [30, 30] and held.alive().tolist() == [*range(10, 40)]
    assert sorted(positions(held, 0)) == [*range(10, 40)]


def test_append_lets_go_of_blocks_in_which_nothing_is_left() -> None:
    held = longterm(LongTermConfig(retrieved=5, capacity=300))
    parts = [append(held, 100, step=0) for _ in range(12)]
    assert list(held.layers[0].blocks) == [3, 4] and held.sizes() == [300, 300]
    asked, keys, ages = queries(), joined(parts, "retrieval", 1)[900:], joined(parts, "ages", 1)[900:]
    assert positions(held, 1, asked) == [900 + at for at in best(asked, keys, ages, 5)]


def test_append_keeps_nothing_at_a_capacity_of_zero() -> None:
    held = longterm(LongTermConfig(retrieved=5, capacity=0))
    for _ in range(12):
        append(held, 100)
        assert held.sizes() == [0, 0] and positions(held, 0) == [] and len(held.layers[0].blocks) <= 2
    assert held.nbytes == {"slots": 0, "keys": 0}


def test_settle_lets_slots_wait_in_a_buffer_until_enough_were_written() -> None:
    held, policy = published(4, decay=0.0)
    for count, sizes, buffered in [(4, 0, 4), (1, 0, 5), (1, 6, 0), (5, 6, 5), (1, 12, 0)]:
        append(held, count, step=count)
        assert (held.sizes(), policy.buffered(held)) == ([sizes] * 2, [buffered] * 2)


def test_settle_drops_at_a_merge_what_has_decayed() -> None:
    held, _ = published(4)
    for number in range(3):
        append(held, 6, step=6)
        assert frequencies(held) == [[1.0] * 6] * 2
        assert held.alive().tolist() == [*range(6 * number, 6 * number + 6)]


def test_settle_drops_nothing_unless_more_than_a_prompt_reads_survive() -> None:
    held, _ = published(6)
    for frequency in ([2.0] * 6, [1.0] * 12, [1.0] * 12 + [2.0] * 6):
        append(held, 6, step=6)
        assert frequencies(held) == [frequency] * 2
    assert held.sizes() == [18, 18]


@pytest.mark.parametrize(("initial", "survivors"), [(1.02, 12), (1.005, 6)])
def test_settle_keeps_a_slot_with_more_than_a_hundredth_left(initial: float, survivors: int) -> None:
    held, policy = published(5)
    append(held, 6, step=6)
    policy.frequency = [torch.full((6,), initial)] * 2
    append(held, 6, step=6)
    assert held.sizes() == [survivors] * 2


def test_retrieve_never_gives_dropped_slots() -> None:
    held, policy = published(8)
    parts = [append(held, 20, step=6)]
    policy.frequency = [torch.tensor([1.0, 5.0, 1.0, 1.0, 5.0] * 4)] * 2
    parts.append(append(held, 6, step=6))
    parts.append(append(held, 2, step=2))
    alive = [at for at in range(20) if at % 5 in (1, 4)] + [*range(20, 28)]
    assert held.sizes() == [14, 14] and held.alive().tolist() == alive
    for layer in range(SPEC.layers):
        keys, ages = joined(parts, "retrieval", layer)[alive], held.ages(layer)
        for seed in range(20):
            asked = queries(2, seed)
            assert positions(held, layer, asked) == [alive[at] for at in best(asked, keys, ages, 8)]


UNDONE = [
    pytest.param(RULES, None, id="oldest"),
    pytest.param(LongTermConfig(retrieved=7, capacity=30), None, id="with a capacity"),
    pytest.param(RULES, Frequencies(60, 10.0, 6.0), id="as published"),
]


@pytest.mark.parametrize(("rules", "settings"), UNDONE)
@pytest.mark.parametrize("there", [60, 250, ROWS])
def test_append_that_is_taken_back_leaves_no_trace(
    rules: LongTermConfig, settings: Frequencies | None, there: int
) -> None:
    held = longterm(rules, frequencies=settings)
    append(held, there, step=60)
    before, twin = everything(held), held.fork()
    with pytest.raises(KeyboardInterrupt):
        append(held, 300, step=60, seed=1, fails=True)
    assert everything(held) == before
    for count in (20, 300):
        append(held, count, step=60)
        append(twin, count, step=60)
        assert everything(held) == everything(twin)


def appended(held: LongTerm, count: int, seed: int, undo: Undo) -> None:
    """As `append`, in a scope that goes on."""
    keys, values = random(2, SPEC.layers, count, SPEC.kv_heads, SPEC.head_dim, seed=seed)
    retrieval, zeros = random(SPEC.layers, count, SPEC.retrieval_size, seed=seed), torch.zeros(2, count).long()
    held.append(Evicted(keys, values, retrieval, zeros, zeros), 1, undo)


@pytest.mark.parametrize(("capacity", "count"), [(300, 200), (50, 10)])
def test_append_of_a_long_write_that_is_taken_back_returns_the_blocks_it_let_go(capacity: int, count: int) -> None:
    held = longterm(LongTermConfig(retrieved=5, capacity=capacity))
    append(held, 300)
    before = everything(held)
    with pytest.raises(KeyboardInterrupt), undoing() as undo:  # noqa: PT012
        for chunk in range(6):
            appended(held, count, chunk, undo)
        assert 0 not in held.layers[0].blocks
        raise KeyboardInterrupt
    assert everything(held) == before


@pytest.mark.parametrize("tier", ["host", "disk"])
@pytest.mark.parametrize("look", [LongTerm.fork, LongTerm.view])
def test_append_after_one_that_was_taken_back_does_not_change_what_others_saw(
    tier: Tier, look: Callable[[LongTerm], LongTerm]
) -> None:
    """A commit inside the write may fork the memory, or save its state, and fail then."""
    held = longterm(storage=StorageConfig(tier))
    append(held, 200)
    with pytest.raises(KeyboardInterrupt), undoing() as undo:  # noqa: PT012
        appended(held, 100, 1, undo)  # fills the first block
        seen = look(held)
        before = everything(seen)
        raise KeyboardInterrupt
    append(held, 100, seed=2)
    assert everything(seen) == before != everything(held)


def test_view_stays_as_it_is_while_others_write() -> None:
    held = longterm(LongTermConfig(retrieved=5, capacity=300))
    append(held, 200)
    view = held.view()
    before = everything(view)
    for seed in range(5):
        append(held, 200, seed=seed)
    assert everything(view) == before


@pytest.mark.parametrize("there", [250, ROWS, 300])
@pytest.mark.parametrize("undone", [False, True])
def test_fork_and_original_go_separate_ways(there: int, undone: bool) -> None:
    def start() -> LongTerm:
        held = longterm()
        append(held, there)
        return held

    held = start()
    if undone:  # leaves an empty block behind
        with pytest.raises(KeyboardInterrupt):
            append(held, 300, seed=3, fails=True)
    fork, first, second = held.fork(), start(), start()
    for one, other in [(held, fork), (first, second)]:
        append(one, 20, seed=1)
        append(other, 20, seed=2)
        append(one, 300, seed=1)
    assert everything(held) == everything(first) != everything(second) == everything(fork)


def test_fork_shares_full_blocks_only() -> None:
    held = longterm()
    append(held, 2 * ROWS + 1)
    for layer, twin in zip(held.layers, held.fork().layers, strict=True):
        assert [layer.blocks[number] is twin.blocks[number] for number in range(3)] == [True, True, False]


@pytest.mark.parametrize("where", ["keys", "queries"])
def test_retrieve_refuses_scores_that_are_not_numbers(where: str) -> None:
    held, asked = longterm(), queries()
    append(held, 300)
    if where == "keys":
        held.layers[0].blocks[1].rows["keys"].write(0, torch.full((1, SPEC.retrieval_size), torch.nan))
    else:
        asked[0, 0] = torch.nan
    with pytest.raises(CorruptMemoryError, match="not numbers"):
        held.retrieve(0, asked)


def test_to_another_device_leaves_the_slots_in_host_memory() -> None:
    held = longterm()
    append(held, 300)
    before, moved = everything(held), held.to(torch.device("meta"))
    for number, block in moved.layers[1].blocks.items():
        keys, slots = block.rows["keys"], block.rows["slots"]
        assert isinstance(keys, MemoryRows) and keys.tensor.is_meta
        assert isinstance(slots, MemoryRows) and not slots.tensor.is_meta
        assert (slots is held.layers[1].blocks[number].rows["slots"]) == (number == 0)
    assert everything(held) == before and held.to(torch.device("cpu")) is held
