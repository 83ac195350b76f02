"""A prefix that is kept for the next prompt is used for the very same prefix only; and chunks that are kept encoded."""

import copy
import pickle
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor

from remanence import Memory, MemoryModel
from remanence.model import read as reading
from remanence.model.cache import pool_prefix
from remanence.model.prefix_store import Buffers, PrefixStore, SlotCache
from tests.support import tiny
from tests.support.models import told, with_longterm
from tests.support.threads import together
from tests.support.tiny import ids, with_memory

CLOSE = {"atol": 1e-5, "rtol": 0.0}
GREEDY = {"max_new_tokens": 3, "do_sample": False, "eos_token_id": None}
LOGITS = {**GREEDY, "output_logits": True, "return_dict_in_generate": True}


class Owner:
    """Stands for a pool."""


def room(numbers: int = 4) -> list[Buffers]:
    return [(torch.zeros(numbers // 2), torch.zeros(numbers // 2))]


def holds(store: PrefixStore, owner: Owner, key: Any = ()) -> bool:
    buffers, found = store.acquire(owner, key)
    if found:
        store.release(owner, key, buffers)
    return found


def test_acquire_finds_a_prefix_by_its_owner_and_all_that_it_hangs_on_and_once() -> None:
    owner, store, buffers = Owner(), PrefixStore(), room()
    assert store.acquire(owner, (1, 2)) == ([], False)
    for key, filled in (((1, 2), True), ((1, 3), False)):
        store.release(owner, (1, 2), buffers)
        acquired, found = store.acquire(owner, key)
        assert acquired is buffers and found is filled
        assert store.acquire(owner, (1, 2)) == ([], False)


def test_acquire_finds_each_owners_own_prefix_while_there_is_room() -> None:
    owners, store = [Owner() for _ in range(3)], PrefixStore(limit=3 * 16)
    buffers = [room() for _ in owners]
    for owner, own in zip(owners, buffers, strict=True):
        assert store.acquire(owner, ()) == ([], False)
        store.release(owner, (), own)
    for owner, own in zip(owners, buffers, strict=True):
        acquired, found = store.acquire(owner, ())
        assert acquired is own and found
        store.release(owner, (), own)


def test_acquire_without_room_takes_the_buffers_of_the_prefix_that_was_read_longest_ago() -> None:
    (*owners, another), store = [Owner() for _ in range(3)], PrefixStore(limit=2 * 16)
    buffers = [room() for _ in owners]
    for at in (0, 1, 0):
        store.acquire(owners[at], ())
        store.release(owners[at], (), buffers[at])
    acquired, found = store.acquire(another, ())
    assert acquired is buffers[1] and not found
    assert holds(store, owners[0]) and not holds(store, owners[1])


def test_release_lets_go_of_prefixes_that_outgrow_the_room_but_not_of_the_last() -> None:
    owners, store = [Owner() for _ in range(3)], PrefixStore(limit=2 * 16)
    for owner in owners[:2]:
        store.release(owner, (), room())
    store.release(owners[2], (), room(100))
    assert holds(store, owners[2])
    store.acquire(owners[2], ())
    assert [store.acquire(owner, ()) for owner in owners] == [([], False)] * 3


def test_acquire_takes_the_buffers_of_an_owner_that_is_gone_first() -> None:
    gone, owner, store, buffers = Owner(), Owner(), PrefixStore(), room()
    store.release(gone, (), buffers)
    del gone
    acquired, found = store.acquire(owner, ())
    assert acquired is buffers and not found


def test_release_keeps_one_prefix_of_an_owner_however_many_calls_made_one() -> None:
    owner, store, later = Owner(), PrefixStore(), room()
    for buffers in (room(), later):
        store.release(owner, (), buffers)
    assert store.acquire(owner, ())[0] is later
    assert not holds(store, owner)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda store: pickle.loads(pickle.dumps(store))])
def test_copies_of_both_stores_start_with_nothing(copied: Callable[[Any], Any]) -> None:
    owner, prefixes, slots = Owner(), PrefixStore(limit=50), SlotCache(60)
    prefixes.release(owner, (), room())
    slots.put("a", torch.zeros(3))
    assert copied(prefixes).limit == 50 and not copied(prefixes)._held
    assert copied(slots).limit == 60 and copied(slots).get("a") is None


def test_slot_cache_keeps_what_was_used_last_within_its_limit() -> None:
    cache, chunks = SlotCache(limit=3 * 40), {name: torch.full((10,), float(at)) for at, name in enumerate("abcd")}
    for name in "abc":
        cache.put(name, chunks[name])
    assert cache.get("a") is chunks["a"]
    cache.put("d", chunks["d"])
    assert [name for name in "abcd" if cache.get(name) is not None] == ["a", "c", "d"]
    cache.put("a", chunks["b"])  # again: it does not count twice
    assert cache.get("a") is chunks["b"] and cache.get("c") is not None


def test_slot_cache_keeps_the_newest_whatever_it_takes() -> None:
    cache = SlotCache(limit=50)
    cache.put("a", torch.zeros(10))
    cache.put("b", torch.zeros(100))
    assert cache.get("a") is None and cache.get("b") is not None
    cache.put("c", torch.zeros(10))
    assert cache.get("b") is None and cache.get("c") is not None


def test_slot_cache_and_store_may_be_used_by_threads_side_by_side() -> None:
    store, cache = PrefixStore(limit=64), SlotCache(limit=64)

    def work(who: int) -> None:
        owners = [Owner() for _ in range(3)]
        for step in range(300):
            buffers, _ = store.acquire(owners[step % 3], step % 2)
            mine = buffers or room()
            mine[0][0].fill_(who)
            assert bool((mine[0][0] == who).all()), "two calls own one buffer"
            store.release(owners[step % 3], step % 2, mine)
            cache.put((who, step % 5), torch.zeros(4))
            cache.get((step % 4, step % 5))

    together(*(partial(work, who) for who in range(4)))
    assert cache._bytes == sum(slots.nbytes for slots in cache._held.values()) <= 64


def written_again(model: MemoryModel, memory: Memory) -> Memory:
    model.write(memory, ids(9, seed=99))
    return memory


def undone(model: MemoryModel, memory: Memory) -> Memory:
    with pytest.raises(KeyboardInterrupt):
        model.write(memory, ids(9, seed=99), commit=_interrupt)
    return memory


def _interrupt(_: Any) -> None:
    raise KeyboardInterrupt


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
    "a write that is undone": undone,
    "other weights": with_other_weights,
    "without its long-term part": lambda model, memory: memory.pool_only(),
    "a fork": lambda model, memory: written_again(model, memory.fork()),
    "another memory": lambda model, memory: told(model, 5),
}


@pytest.mark.parametrize("change", sorted(CHANGES))
@pytest.mark.parametrize("bos", [True, False])
def test_generate_reads_what_is_there_by_then(change: str, bos: bool) -> None:
    model = with_longterm(bos=bos)
    memory, prompt = told(model, writes=4), ids(5)
    model.generate(memory, prompt, **GREEDY)
    memory = CHANGES[change](model, memory)
    out = model.generate(memory, prompt, **LOGITS)
    torch.testing.assert_close(out.logits[0], model.read(memory, prompt).logits[:, -1], **CLOSE)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[bool]:
    """Whether each prefix had to be built, in the order in which they were asked for."""
    seen: list[bool] = []

    def watched(*args: Any, **kwargs: Any) -> Any:
        _, found = kwargs["spare"]
        seen.append(not found)
        return pool_prefix(*args, **kwargs)

    monkeypatch.setattr(reading, "pool_prefix", watched)
    return seen


@pytest.mark.parametrize("make", [with_memory, with_longterm])
def test_generate_builds_the_prefix_of_an_unchanged_memory_once(
    make: Callable[[], MemoryModel], built: list[bool]
) -> None:
    model = make()
    memory, other = told(model), told(model, 1)
    for prompt in (ids(5), ids(3, seed=1), ids(9, seed=2)):
        out: Tensor = model.generate(memory, prompt, **GREEDY)
        fresh = make()
        assert torch.equal(out, fresh.generate(told(fresh), prompt, **GREEDY))
        model.generate(other, prompt, **GREEDY)
    assert built == [True, True, True, *[False, True, False] * 2]


def test_generate_builds_a_prefix_anew_after_a_write(built: list[bool]) -> None:
    model = with_memory()
    memory = told(model)
    for expected in (True, False, True):
        model.generate(memory, ids(5), **GREEDY)
        assert built[-1] is expected
        if built.count(False):
            model.write(memory, ids(9))


def test_generate_with_beams_leaves_the_prefix_of_the_next_prompt_alone() -> None:
    model = with_memory()
    memory, prompt = told(model), ids(5)
    expected = model.read(memory, prompt).logits[:, -1]
    for options in ({"num_beams": 3}, {"num_beams": 2, "num_return_sequences": 2}, {}):
        model.generate(memory, prompt, **GREEDY, **options)
        torch.testing.assert_close(model.generate(memory, prompt, **LOGITS).logits[0], expected, **CLOSE)


def test_generate_builds_a_prefix_that_does_not_fit_into_the_buffers_of_another() -> None:
    model = with_longterm()
    model.prefixes.limit = 0
    memory = model.new_memory()
    model.write(memory, ids(3))
    model.generate(memory, ids(2), max_new_tokens=1)
    for number in range(4):
        model.write(memory, ids(9, seed=number))
    assert memory.longterm is not None and memory.longterm.sizes() == [4 * tiny.K] * tiny.LAYERS
    torch.testing.assert_close(
        model.generate(memory, ids(5), **LOGITS).logits[0], model.read(memory, ids(5)).logits[:, -1], **CLOSE
    )
