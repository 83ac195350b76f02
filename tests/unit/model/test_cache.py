"""Cache layers that begin with memory: text goes behind it, whatever a decoder does with its cache."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig

from remanence import MemoryModel
from remanence.errors import UnsupportedModelError
from remanence.memory import Pool
from remanence.model.backbone import Backbone
from remanence.model.cache import PrefixLayer, pool_prefix
from remanence.model.hooks import expecting
from remanence.model.text import text_prefix
from tests.support import tiny
from tests.support.models import KINDS, told
from tests.support.tiny import ids, with_memory

CLOSE = {"atol": 2e-5, "rtol": 0.0}
PREFIX, HEADS, SIZE = 3, 2, 4
every_kind = pytest.mark.parametrize("kind", KINDS)


def layer(rows: int = 2, room: int = 2, places: Tensor | None = None) -> PrefixLayer:
    made = PrefixLayer((numbers(rows, PREFIX + room), 10 + numbers(rows, PREFIX + room)), PREFIX)
    made.places = places
    return made


def numbers(rows: int, entries: int) -> Tensor:  # [rows, entries, H, D], every entry another number
    return (torch.arange(rows * entries, dtype=torch.float32).view(rows, entries, 1, 1)).repeat(1, 1, HEADS, SIZE)


def text(rows: int, tokens: int, first: float = 100.0) -> Tensor:  # [rows, H, T, D]
    return first + numbers(rows, tokens).transpose(1, 2)


def seen(keys: Tensor) -> list[list[float]]:  # [rows, H, S, D] -> a number for each entry
    assert bool((keys == keys[:, :1, :, :1]).all())
    return keys[:, 0, :, 0].tolist()


def test_prefix_layer_gives_its_prefix_and_all_text_so_far() -> None:
    held = layer(rows=1)
    keys, values = held.update(text(1, 2), text(1, 2, 200.0))
    assert seen(keys) == [[0, 1, 2, 100, 101]] and seen(values) == [[10, 11, 12, 200, 201]]
    keys, _ = held.update(text(1, 1, 300.0), text(1, 1))
    assert seen(keys) == [[0, 1, 2, 100, 101, 300]]
    assert held.get_seq_length() == 6 and held.get_mask_sizes(2) == (8, 0)


def test_prefix_layer_takes_text_where_there_is_room_without_a_copy_and_grows_where_there_is_none() -> None:
    held = layer(rows=1, room=4)
    where = held.keys.data_ptr()
    for _ in range(4):
        held.update(text(1, 1), text(1, 1))
    assert held.keys.data_ptr() == where
    sizes = set()
    for _ in range(60):
        held.update(text(1, 1), text(1, 1))
        sizes.add(held.keys.shape[1])
    assert len(sizes) < 8 and held.get_seq_length() == PREFIX + 64
    assert seen(held.update(text(1, 1), text(1, 1))[0])[0][:PREFIX] == [0, 1, 2]


@pytest.mark.parametrize("taken", [1, -1, 2, 50])
def test_prefix_layer_crops_text_and_never_its_prefix(taken: int) -> None:
    held = layer(rows=1)
    held.update(text(1, 4), text(1, 4))
    held.crop(taken)
    assert held.get_seq_length() == PREFIX + max(0, 4 - abs(taken))
    keys, _ = held.update(text(1, 1, 300.0), text(1, 1))
    assert seen(keys)[0] == [0, 1, 2, *[100, 101, 102, 103][: max(0, 4 - abs(taken))], 300]


def test_prefix_layer_is_reset_to_its_prefix() -> None:
    held = layer(rows=1)
    held.update(text(1, 4), text(1, 4))
    held.reset()
    assert seen(held.update(text(1, 1, 300.0), text(1, 1))[0]) == [[0, 1, 2, 300]]


def test_prefix_layer_repeats_its_prefix_for_every_beam_and_reorders_their_text() -> None:
    held = layer(rows=2)
    held.update(text(4, 2), text(4, 2))
    held.reorder_cache(torch.tensor([1, 1, 3, 2]))
    keys, _ = held.update(text(4, 1, 300.0), text(4, 1))
    assert [row[:PREFIX] for row in seen(keys)] == [[0, 1, 2], [0, 1, 2], [5, 6, 7], [5, 6, 7]]
    assert [row[PREFIX:] for row in seen(keys)] == [[102, 103, 300], [102, 103, 301], [106, 107, 302], [104, 105, 303]]


def test_prefix_layer_keeps_the_rows_that_are_picked() -> None:
    held = layer(rows=2)
    held.batch_select_indices(torch.tensor([1]))
    assert seen(held.update(text(1, 1), text(1, 1))[0]) == [[5, 6, 7, 100]]
    held.batch_repeat_interleave(2)
    assert len(held.keys) == len(held.values) == 2


def test_prefix_layer_takes_on_the_dtype_of_the_text() -> None:
    held = layer(rows=1)
    keys, values = held.update(text(1, 1).bfloat16(), text(1, 1).bfloat16())
    assert keys.dtype == values.dtype == torch.bfloat16 and seen(keys) == [[0, 1, 2, 100]]


@pytest.mark.parametrize("parts", [[3], [2, 1], [1, 1, 1], [5], [2, 3]], ids=str)
def test_prefix_layer_puts_the_first_text_where_its_places_are(parts: list[int]) -> None:
    """A head of two tokens in front of the prefix, which lies behind it; more than the first text goes behind all."""
    held = layer(rows=1, places=torch.tensor([[0, 1, 5]]))
    held.keys[:, 2:5] = numbers(1, 3)
    done, keys = 0, torch.empty(0)
    for tokens in parts:
        keys, _ = held.update(text(1, tokens, 100.0 + done), text(1, tokens))
        done += tokens
    assert seen(keys) == [[100, 101, 0, 1, 2, 102, 103, 104][: PREFIX + done]]


@pytest.mark.parametrize(
    "options",
    [
        {"max_new_tokens": 50},
        {"max_length": 57},
        {"generation_config": GenerationConfig(max_new_tokens=50, do_sample=False, pad_token_id=0)},
        {"max_new_tokens": 50, "num_beams": 3},
        {"max_new_tokens": 50, "prefill_chunk_size": 3},
        {"max_new_tokens": 50, "prompt_lookup_num_tokens": 2},
    ],
    ids=lambda options: " ".join(options),
)
@pytest.mark.parametrize("kind", ["pool", "text"])
def test_generate_neither_moves_nor_changes_the_prefix(options: dict[str, Any], kind: str) -> None:
    model = KINDS[kind]()
    calls: list[list[tuple[int, int]]] = []
    prefixes: list[Tensor] = []

    def look(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> None:
        cache = kwargs["past_key_values"]
        calls.append([(one.keys.data_ptr(), one.values.data_ptr()) for one in cache.layers])
        front = 0 if kind == "pool" else 1  # the head
        prefixes.append(torch.stack([one.keys[:, front : front + cache.prefix] for one in cache.layers]).clone())

    model.hf.register_forward_hook(look, with_kwargs=True)
    model.generate(told(model), ids(7), **{"do_sample": False, "eos_token_id": None, **options})
    assert len(calls) > 4 and all(pointers == calls[0] for pointers in calls)
    assert all(torch.equal(prefix, prefixes[0]) for prefix in prefixes)


@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("kind", ["pool", "text"])
def test_read_can_be_continued_by_hand(kind: str, rows: int) -> None:
    model = KINDS[kind]()
    memories = [told(model, seed, writes=2 + seed) for seed in range(rows)]
    texts = torch.stack([ids(20, seed=seed) for seed in range(rows)])
    whole = model.read(memories, texts).logits
    cache = model.read(memories, texts[:, :5]).past_key_values
    head = 0 if kind == "pool" else 1
    for end in (6, 9, 20):  # the buffers grow twice
        start = cache.get_seq_length() - cache.prefix - head
        with torch.no_grad():
            out = model.hf(texts[:, start:end], past_key_values=cache, use_cache=True)
    torch.testing.assert_close(out.logits, whole[:, 9:], **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2])
def test_pool_prefix_is_slots_turned_by_their_places(rows: int) -> None:
    model = with_memory()
    pools = [told(model, seed).pool for seed in range(rows)]
    cache = pool_prefix(model.backbone, pools, model.bos_slots(), tokens=4)
    assert cache.prefix == 1 + tiny.SLOTS and cache.positions is None
    rotary = model.backbone.rotary(torch.arange(cache.prefix)[None], pools[0].keys)
    bos = model.bos_embedding
    assert bos is not None
    for index, held in enumerate(cache.layers):
        first, value = model.backbone.project(index, bos[index])
        for row, pool in enumerate(pools):
            order = pool.order[index]
            keys = torch.cat([first, pool.keys[index][order]])
            turned = model.backbone.rotate(index, keys[None], *rotary(index))[0]
            torch.testing.assert_close(held.keys[row, : cache.prefix], turned, **CLOSE)
            values = torch.cat([value, pool.values[index][order]])
            torch.testing.assert_close(held.values[row, : cache.prefix], values, **CLOSE)


def a_pool(backbone: Backbone, slots: int) -> Pool:
    generator = torch.Generator().manual_seed(slots)
    shape = (tiny.LAYERS, slots, backbone.kv_heads, backbone.head_dim)
    keys, values = torch.randn(2, *shape, generator=generator)
    return Pool(keys, values, torch.arange(slots).repeat(tiny.LAYERS, 1))


@torch.no_grad()
def test_pool_prefix_takes_rows_of_other_lengths_and_rows_without() -> None:
    backbone, prompts = with_memory(bos=False).backbone, torch.stack([ids(5, seed=seed) for seed in range(3)])
    pools, mask = [a_pool(backbone, 7), None, a_pool(backbone, 2)], torch.ones(3, 5, dtype=torch.bool)
    mask[2, :2] = False
    together = pool_prefix(backbone, pools, None, tokens=5)
    together.set_prompt(mask)
    out = backbone.hf(prompts, past_key_values=together, use_cache=True).logits
    for row, pool in enumerate(pools):
        own = prompts[row, mask[row]][None]
        if pool is None:
            expected = backbone.hf(own).logits[0]
        else:
            alone = pool_prefix(backbone, [pool], None, tokens=5)
            expected = backbone.hf(own, past_key_values=alone, use_cache=True).logits[0]
        torch.testing.assert_close(out[row, mask[row]], expected, **CLOSE)


@torch.no_grad()
@pytest.mark.parametrize("fed", [True, False])
def test_text_prefix_takes_rows_of_other_heads_lengths_and_padding(fed: bool) -> None:
    """Each row is the stock call on its head, its chunks and its rest, where one chunk saw all that is before it.

    Not `fed`: columns that are head or padding in every row, here two, take no part in the pass.
    """
    model = KINDS["text"]()
    prompts, heads = [ids(7), ids(4, seed=1), ids(5, seed=2), ids(6, seed=3)], [2, 1, 3, 2]
    told_of = [ids(9, seed=4), ids(3, seed=5), None, ids(9, seed=6)]
    rows: list[list[Tensor]] = []
    writer: Any = model.writer
    for prompt, head, chunk in zip(prompts, heads, told_of, strict=True):
        slots = [] if chunk is None else [writer.encode([(prompt[:head].tolist(), chunk)])[0].slots]
        rows.append(slots)
    width = max(map(len, prompts))
    mask = torch.stack([torch.arange(width) >= width - len(prompt) for prompt in prompts])
    padded = torch.zeros(len(prompts), width, dtype=torch.long)
    padded[mask] = torch.cat(prompts)
    fronts = [
        writer.latents.head_slots(tuple(prompt[:head].tolist())) for prompt, head in zip(prompts, heads, strict=True)
    ]
    cache = text_prefix(model.backbone, rows, heads, mask, fronts=None if fed else fronts)
    with expecting(cache):
        out = model.hf(padded, past_key_values=cache, use_cache=True).logits
    assert out.shape[1] == (width if fed else width - 2)
    out = torch.nn.functional.pad(out, (0, 0, width - out.shape[1], 0))
    for row, (prompt, head, chunk) in enumerate(zip(prompts, heads, told_of, strict=True)):
        own = [prompt[:head], *([] if chunk is None else [chunk]), prompt[head:]]
        stock = model.hf(torch.cat(own)[None]).logits[0, -len(prompt) + head :]
        torch.testing.assert_close(out[row, width - len(prompt) + head :], stock, **CLOSE)


def read_without_cache(model: MemoryModel, cache: Any, prompt: Tensor) -> Tensor:
    """A read whose call lost the cache."""
    cache.set_prompt(torch.ones(1, len(prompt), dtype=torch.bool))
    with torch.no_grad(), expecting(cache):
        logits: Tensor = model.hf(input_ids=prompt[None]).logits
    return logits


def test_expecting_gives_a_call_that_lost_its_cache_memory_none_the_less() -> None:
    model = with_memory()
    memory, prompt = told(model), ids(6)
    cache = pool_prefix(model.backbone, [memory.pool], model.bos_slots(), tokens=6)
    assert torch.equal(read_without_cache(model, cache, prompt), model.read(memory, prompt).logits)
    longer = torch.cat([prompt, ids(2)])
    with torch.no_grad(), expecting(cache):  # the whole text again, as families do that turn all keys otherwise
        again = model.hf(input_ids=longer[None]).logits
    torch.testing.assert_close(again, model.read(memory, longer).logits, **CLOSE)


def test_expecting_refuses_a_call_that_lost_its_cache_in_the_middle_of_a_text() -> None:
    model = with_memory()
    memory, prompt = told(model), ids(6)
    cache = pool_prefix(model.backbone, [memory.pool], model.bos_slots(), tokens=6)
    read_without_cache(model, cache, prompt)
    with torch.no_grad(), expecting(cache), pytest.raises(UnsupportedModelError, match="dropped the cache"):
        model.hf(input_ids=prompt[None, :1])
