"""A prefix that is kept for the next prompt is used for the very same prefix only."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from remanence.model.prefix import PrefixCache
from remanence.model.spare import Buffers, Spare

from remanence import Memory, MemoryModel
from remanence.memory import LongTermRules, Pool
from remanence.model import generation, prefix
from tests.support import tiny
from tests.support.tiny import ids


def written(model: MemoryModel, seed: int = 0) -> Memory:
    memory = model.new_memory(seed)
    for number in range(4):
        model.write(memory, ids(9, seed=10 * seed + number))
    return memory


def room(numbers: int = 4) -> list[Buffers]:
    return [(torch.zeros(numbers // 2), torch.zeros(numbers // 2))]


def pools(count: int) -> list[Pool]:
    return [written(tiny.with_memory(), seed).pool for seed in range(count)]


def test_a_prefix_is_found_by_its_pool_and_all_that_it_hangs_on_and_taken_once() -> None:
    (pool,) = pools(1)
    spare, buffers = Spare(), room()
    assert spare.take(pool, (1, 2)) == ([], False)
    for about, filled in (((1, 2), True), ((1, 3), False)):
        spare.give(pool, (1, 2), buffers)
        taken, found = spare.take(pool, about)
        assert taken is buffers and found is filled
        assert spare.take(pool, (1, 2)) == ([], False)


def test_each_memory_finds_its_own_prefix_while_there_is_room() -> None:
    held, spare = pools(3), Spare(limit=3 * 16)
    buffers = [room() for _ in held]
    for pool, own in zip(held, buffers, strict=True):
        assert spare.take(pool, ()) == ([], False)
        spare.give(pool, (), own)
    for pool, own in zip(held, buffers, strict=True):
        taken, found = spare.take(pool, ())
        assert taken is own and found
        spare.give(pool, (), own)


def test_without_room_a_prompt_takes_over_the_buffers_of_the_memory_that_was_read_longest_ago() -> None:
    (*held, another), spare = pools(3), Spare(limit=2 * 16)
    buffers = [room() for _ in held]
    for at in (0, 1, 0):
        spare.take(held[at], ())
        spare.give(held[at], (), buffers[at])
    taken, found = spare.take(another, ())
    assert taken is buffers[1] and not found
    assert spare.holds(held[0]) and not spare.holds(held[1])


def test_prefixes_that_outgrow_the_room_go_but_the_last_stays() -> None:
    held, spare = pools(3), Spare(limit=2 * 16)
    for pool in held[:2]:
        spare.give(pool, (), room())
    spare.give(held[2], (), room(100))
    assert [spare.holds(pool) for pool in held] == [False, False, True]


def test_buffers_of_a_memory_that_is_gone_are_taken_first() -> None:
    held, spare = pools(2), Spare()
    buffers = room()
    spare.give(held.pop(), (), buffers)
    taken, found = spare.take(held[0], ())
    assert taken is buffers and not found


def test_a_memory_has_one_prefix_however_many_calls_made_one() -> None:
    (pool,) = pools(1)
    spare, later = Spare(), room()
    for buffers in (room(), later):
        spare.give(pool, (), buffers)
    assert spare.take(pool, ())[0] is later
    assert not spare.holds(pool)


def written_again(model: MemoryModel, memory: Memory) -> Memory:
    model.write(memory, ids(9, seed=99))
    return memory


def with_other_weights(model: MemoryModel, memory: Memory) -> Memory:
    """Weights that change without a trace in the model's fingerprint."""
    before = model.fingerprint()
    weight = model.backbone.layers[0].self_attn.k_proj.weight
    with torch.no_grad():
        weight.view(-1)[1::8] += 1
    assert model.fingerprint() == before
    return memory


CHANGES: dict[str, Callable[[MemoryModel, Memory], Memory]] = {
    "nothing": lambda model, memory: memory,
    "a write": written_again,
    "other weights": with_other_weights,
    "without its long-term part": lambda model, memory: memory.pool_only(),
    "a fork": lambda model, memory: written_again(model, memory.fork()),
    "another memory": lambda model, memory: written(model, 5),
}


@pytest.mark.parametrize("change", sorted(CHANGES))
def test_the_next_prompt_reads_what_is_there_by_then(change: str) -> None:
    model = tiny.with_memory(longterm=LongTermRules(retrieved=4), retrieval_size=8)
    memory, prompt = written(model), ids(5)
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    model.generate(memory, prompt, **options)
    memory = CHANGES[change](model, memory)
    out = model.generate(memory, prompt, **options, output_logits=True, return_dict_in_generate=True)
    torch.testing.assert_close(out.logits[0], model.read(memory, prompt).logits[:, -1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("length", [9, 700], ids=["one chunk", "several chunks"])
@pytest.mark.parametrize("longterm", [None, LongTermRules(retrieved=4)], ids=["pool", "longterm"])
def test_a_write_to_a_memory_whose_prefix_is_kept_makes_the_next(
    length: int, longterm: LongTermRules | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = tiny.with_memory(**({} if longterm is None else {"longterm": longterm, "retrieval_size": 8}))
    memory, other, prompt = written(model), written(model, 5), ids(5)
    options = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
    model.generate(memory, prompt, **options)
    model.write(memory, ids(length, seed=99))
    model.write(other, ids(9, seed=98))
    filled, made = [], prefix.pool_prefix

    def watched(*args: Any) -> PrefixCache:
        cache = made(*args)
        reuse = cache.reuse
        cache.reuse = lambda spare, found: (filled.append(found), reuse(spare, found))[1]  # type: ignore[method-assign]
        return cache

    monkeypatch.setattr(generation, "pool_prefix", watched)
    out = model.generate(memory, prompt, **options, output_logits=True, return_dict_in_generate=True)
    assert filled == [True]
    torch.testing.assert_close(out.logits[0], model.read(memory, prompt).logits[:, -1], atol=1e-5, rtol=0)


def test_a_prefix_that_grew_out_of_its_buffers_is_made_by_the_next_prompt() -> None:
    model = tiny.with_memory()
    memory = model.new_memory()
    model.write(memory, ids(3))
    model.generate(memory, ids(2), max_new_tokens=1)
    for number in range(4):
        model.write(memory, ids(9, seed=number))
    torch.testing.assert_close(
        model.generate(memory, ids(5), max_new_tokens=2, output_logits=True, return_dict_in_generate=True).logits[0],
        model.read(memory, ids(5)).logits[:, -1],
        atol=1e-5,
        rtol=0,
    )
