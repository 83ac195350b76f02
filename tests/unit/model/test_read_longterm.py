"""Reading retrieves from long-term memory, in every family, row by row, and as its plain definition says."""

from typing import Any

import pytest
import torch
from torch import Tensor

from remanence import Memory, MemoryModel
from remanence.config import LongTermConfig, StorageConfig
from remanence.errors import CorruptMemoryError, InvalidInputError, MemoryMismatchError
from remanence.memory import Pool
from remanence.memory.longterm import Retrieved
from remanence.memory.scoring import CrossLayerPrior, best
from tests.support import tiny
from tests.support.models import with_longterm
from tests.support.replay import encode, read_pending, update
from tests.support.tiny import decoder, ids

K0 = 8
CLOSE = {"atol": 2e-5, "rtol": 0.0}


def model_of(family: str = "llama", prior: float = 0.0, retrieved: int = K0, **changes: Any) -> MemoryModel:
    rules = LongTermConfig(retrieved=retrieved, cross_layer_prior=prior)
    return with_longterm(decoder(family, **changes), longterm=rules)


def written(model: MemoryModel, seed: int = 0, writes: int = 9, **settings: Any) -> Memory:
    memory = model.new_memory(seed, **settings)
    for number in range(writes):
        model.write(memory, ids(9 + number % 4, seed=100 * seed + number))
    return memory


def found_in(out: Any) -> list[list[Retrieved | None]]:
    retrieval = getattr(out.past_key_values, "retrieval", None)
    return retrieval.found if retrieval is not None else []


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_each_layer_retrieves_what_scores_highest_for_what_its_attention_sees(family: str) -> None:
    model = model_of(family)
    memory, prompt = written(model), ids(7, seed=5)
    assert memory.longterm is not None and model.retriever is not None
    seen: list[Tensor] = []
    for layer in model.backbone.layers:
        attention: Any = getattr(layer, model.backbone.family.attention)
        attention.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]),
            with_kwargs=True,
        )
    out = model.read(memory, prompt)
    assert len(seen) == tiny.LAYERS
    for layer, (normed, held) in enumerate(zip(seen, memory.longterm.layers, strict=True)):
        keys = torch.cat([block.rows["keys"].first(held.count) for block in held.blocks.values()])
        scores = torch.sigmoid(model.retriever.query[layer](normed[0]) @ keys.T).mean(0)
        found = found_in(out)[layer][0]
        assert found is not None
        left_out = torch.ones_like(scores, dtype=torch.bool).scatter_(0, found.positions, False)
        assert scores[found.positions].min() > scores[left_out].max() - 1e-6
        ages = memory.longterm.clock - held.known("born", found.positions)
        assert ages.tolist() == sorted(ages.tolist(), reverse=True)


@pytest.mark.parametrize("family", sorted(tiny.FAMILIES))
def test_what_is_retrieved_is_read_as_if_it_stood_at_the_front_of_a_larger_pool(family: str) -> None:
    model = model_of(family)
    memory, prompt = written(model), ids(7, seed=5)
    out = model.read(memory, prompt)
    larger, pool, stacked = memory.pool_only(), memory.pool, list[Tensor]()
    for name in ("keys", "values"):
        layers = []
        for layer, found in enumerate(found_in(out)):
            assert found[0] is not None
            layers.append(torch.cat([getattr(found[0], name), getattr(pool, name)[layer][pool.order[layer]]]))
        stacked.append(torch.stack(layers))
    larger.pool_or_none = Pool(*stacked, torch.arange(K0 + tiny.SLOTS).repeat(tiny.LAYERS, 1))
    torch.testing.assert_close(model.read(larger, prompt).logits, out.logits, **CLOSE)
    assert not torch.allclose(model.read(memory.pool_only(), prompt).logits, out.logits, atol=1e-3)
    assert model.new_memory(longterm=False).longterm is None


def test_layers_above_the_second_go_by_what_those_below_found_where_there_is_a_prior() -> None:
    by_itself, with_prior = (model_of(prior=temperature) for temperature in (0.0, 0.02))
    memory, prompt = written(with_prior), ids(7, seed=5)
    assert memory.longterm is not None and with_prior.retriever is not None
    seen: list[Tensor] = []
    for layer in with_prior.backbone.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
        )
    before = found_in(by_itself.read(written(by_itself), prompt))
    after = found_in(with_prior.read(memory, prompt))
    weighed, prior = [], CrossLayerPrior(0.02, tiny.K)
    pool = memory.pool
    assert pool.retrieval is not None
    for layer, held in list(enumerate(memory.longterm.layers))[1:]:
        queries = with_prior.retriever.query[layer](seen[layer][0])
        keys = torch.cat([block.rows["keys"].first(held.count) for block in held.blocks.values()])
        scores = torch.sigmoid(queries @ torch.cat([keys, pool.retrieval[layer]]).T).mean(0)
        serial = torch.cat([held.serials(), pool.serial[layer]])
        picked = best(prior.apply(scores, serial), K0)
        there = picked[picked < held.count].tolist()
        weighed.append((there, pool.keys[layer][picked[picked >= held.count] - held.count]))
    for layer, (positions, keys) in enumerate(weighed, start=1):
        found = after[layer][0]
        assert found is not None and found.positions.sort().values.tolist() == positions
        behind = found.keys[len(positions) :]
        assert len(behind) == len(keys) == K0 - len(positions) and {*map(float, behind[:, 0, 0])} == {
            *map(float, keys[:, 0, 0])
        }
    assert 0 < sum(len(positions) for positions, _ in weighed) < 2 * K0, "nothing is read twice, or all is"
    first, second = (found[0][0] for found in (before, after))
    assert first is not None and second is not None and first.positions.tolist() == second.positions.tolist()


def test_what_is_best_in_the_pool_is_read_twice_rather_than_others_that_resemble_it() -> None:
    model = model_of(prior=0.02, retrieved=tiny.K)
    memory, prompt = written(model), ids(7, seed=5)
    assert model.retriever is not None
    pool = memory.pool
    assert pool.retrieval is not None
    newest = pool.order[:, -tiny.K :]
    queries: list[Tensor] = [torch.empty(0)] * tiny.LAYERS
    for layer, decoder_layer in enumerate(model.backbone.layers):
        decoder_layer.self_attn.register_forward_pre_hook(
            lambda _, args, kwargs, layer=layer: queries.__setitem__(
                layer, model.retriever.query[layer](kwargs["hidden_states"][0])
            ),
            with_kwargs=True,
        )
    model.read(memory, prompt)
    for layer in range(tiny.LAYERS):
        pool.retrieval[layer][newest[layer]] = 1e3 * queries[layer].mean(0)
    found = found_in(model.read(memory, prompt))
    rows = found[1][0]  # what layer 1 reads changes what the next asks
    assert rows is not None and not len(rows.positions)
    assert torch.equal(rows.keys, pool.keys[1][newest[1]])
    assert torch.equal(rows.values, pool.values[1][newest[1]])


@pytest.mark.parametrize("prior", [0.0, 0.02])
def test_of_slots_that_score_alike_the_first_are_read_whatever_the_others_score(prior: float) -> None:
    """Slots of one token are the same in layer 0, so the last places often fall among such."""
    wanted, size, alike = 8, 60, torch.arange(3, 60, 5)
    model = model_of(prior=prior, retrieved=wanted)
    longterm = written(model, writes=14).longterm
    assert longterm is not None and longterm.layers[0].size >= size
    held = longterm.layers[0]
    for seed in range(20):
        scores = torch.rand(held.size, generator=torch.Generator().manual_seed(seed)) * 0.1
        scores[alike] = 0.5 + 1e-7 * torch.rand(len(alike), generator=torch.Generator().manual_seed(seed))
        held.scores = lambda _, scores=scores: scores  # type: ignore[method-assign]
        weighing = CrossLayerPrior(prior, tiny.K) if prior else None
        found = longterm.retrieve(0, torch.zeros(1, 16), wanted, weighing)
        assert sorted(found.positions.tolist()) == [int(at) + held.start for at in alike[:wanted]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("prior", [0.0, 0.02])
def test_rows_with_different_long_term_memories_equal_single_calls(attention: str, prior: float) -> None:
    model = model_of(attention=attention, prior=prior)
    memories = [written(model, 1, 9), written(model, 2, 3), written(model, 3, 0), written(model, 4, 14)]
    memories.append(written(model, 5, 12, longterm=False))
    prompts = [ids(length, seed=length) for length in (6, 2, 9, 1, 4)]
    together = model.read(memories, prompts)
    for row, (memory, prompt) in enumerate(zip(memories, prompts, strict=True)):
        alone = model.read(memory, prompt)
        torch.testing.assert_close(together.logits[row, -len(prompt) :], alone.logits[0], **CLOSE)
        for layer, found in enumerate(found_in(alone)):
            one, other = found[0], found_in(together)[layer][row]
            assert (one is None) == (other is None)
            assert one is None or other is None or one.positions.tolist() == other.positions.tolist()


def test_pending_slots_stand_behind_what_is_retrieved_and_sampled() -> None:
    model = model_of()
    memory, prompt = written(model), ids(7, seed=5)
    assert memory.longterm is not None
    made, ranks = encode(model, memory, ids(9)), torch.arange(tiny.SLOTS).repeat(tiny.LAYERS, 1)
    updated = memory.pool_only().fork()
    update(model, updated, made, evict=ranks[:, : tiny.K])
    without = model.read(updated, prompt).logits
    updated.longterm = memory.longterm
    expected, out = model.read(updated, prompt), read_pending(model, memory, prompt, [made], ranks[:, tiny.K :])
    torch.testing.assert_close(out.logits, expected.logits, **CLOSE)
    assert not torch.allclose(out.logits, without, atol=1e-3)
    for one, other in zip(found_in(out), found_in(expected), strict=True):
        assert one[0] is not None and other[0] is not None
        assert one[0].positions.tolist() == other[0].positions.tolist()


def test_pending_slots_that_are_read_alone_retrieve_nothing() -> None:
    model = model_of()
    memory, prompt = written(model), ids(7, seed=5)
    made = [encode(model, memory, ids(9))]
    out = read_pending(model, memory, prompt, made, None)
    assert not found_in(out)
    assert torch.equal(out.logits, read_pending(model, memory.pool_only(), prompt, made, None).logits)


@pytest.mark.parametrize("options", [{}, {"num_beams": 3}, {"do_sample": True, "num_return_sequences": 2}])
def test_generation_retrieves_at_the_prompt_only(options: dict[str, Any]) -> None:
    model = model_of()
    memory, prompt = written(model), ids(7)
    found = found_in(model.read(memory, prompt))
    out = model.generate(
        memory,
        prompt,
        max_new_tokens=6,
        eos_token_id=None,
        return_dict_in_generate=True,
        **{"do_sample": False, **options},
    )
    for layer, rows in enumerate(found_in(out)):
        assert rows[0] is not None and found[layer][0] is not None
        assert rows[0].positions.tolist() == found[layer][0].positions.tolist()


def test_greedy_generation_is_a_loop_of_steps_on_one_read() -> None:
    model = model_of()
    memory, sequence = written(model), ids(7)
    out = model.generate(memory, sequence, max_new_tokens=5, do_sample=False, eos_token_id=None)
    cache = model.read(memory, sequence).past_key_values
    for _ in range(5):
        step = torch.tensor([[out[0, cache.get_seq_length() - cache.prefix]]])
        with torch.no_grad():
            logits = model.hf(step, past_key_values=cache, use_cache=True).logits
        if cache.get_seq_length() - cache.prefix < out.shape[1]:
            assert int(logits[0, -1].argmax()) == int(out[0, cache.get_seq_length() - cache.prefix])


def test_long_term_memory_that_lies_elsewhere_is_refused_before_the_first_write() -> None:
    model = model_of()
    memory = model.new_memory().to("meta")
    with pytest.raises(InvalidInputError, match=r"memory is on meta, the model on cpu; move it with"):
        model.write(memory, ids(9))
    model.write(memory.to("cpu"), ids(9))


def test_a_second_prompt_on_an_unchanged_memory_answers_like_the_first() -> None:
    model = model_of()
    memory = written(model)
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    prompts = [ids(7), ids(4, seed=3), ids(7)]
    fresh = [model_of().generate(memory, prompt, **options).tolist() for prompt in prompts]
    assert [model.generate(memory, prompt, **options).tolist() for prompt in prompts] == fresh


def test_few_slots_are_all_read_and_none_at_first() -> None:
    model = model_of()
    memory = written(model, writes=1)
    assert found_in(model.read(memory, ids(4)))[0][0].positions.tolist() == []  # type: ignore[union-attr]
    model.write(memory, ids(9))
    found = found_in(model.read(memory, ids(4)))[0][0]
    assert found is not None and sorted(found.positions.tolist()) == list(range(tiny.K))


def test_numbers_that_are_none_stop_the_read() -> None:
    model = model_of()
    memory = written(model)
    assert memory.longterm is not None
    memory.longterm.layers[1].blocks[0].rows["keys"].first(4)[2] = torch.nan
    with pytest.raises(CorruptMemoryError, match="scores of long-term slots"):
        model.read(memory, ids(4))


def test_a_capacity_of_none_keeps_nothing_and_reads_the_pool_only() -> None:
    model = model_of()
    memory = written(model, capacity=0)
    assert memory.longterm is not None and memory.longterm.sizes() == [0] * tiny.LAYERS
    assert torch.equal(model.read(memory, ids(4)).logits, model.read(memory.pool_only(), ids(4)).logits)


def test_a_capacity_keeps_the_newest_and_reads_them_as_a_memory_without_bounds_does_while_it_is_not_full() -> None:
    model = model_of()
    bounded, free = written(model, capacity=2 * tiny.K), written(model)
    assert bounded.longterm is not None and bounded.longterm.sizes() == [2 * tiny.K] * tiny.LAYERS
    assert not torch.allclose(model.read(bounded, ids(4)).logits, model.read(free, ids(4)).logits, atol=1e-3)
    few = written(model, writes=3, capacity=2 * tiny.K), written(model, writes=3)
    assert torch.equal(*(model.read(memory, ids(4)).logits for memory in few))


def test_a_memory_with_keys_of_another_retriever_is_refused() -> None:
    one, other = model_of(), model_of()
    assert other.retriever is not None
    memory = written(one)
    with torch.no_grad():
        next(other.retriever.parameters()).mul_(2)
    with pytest.raises(MemoryMismatchError, match="another model"):
        other.read(memory, ids(4))


def test_tiers_read_alike(tmp_path: Any) -> None:
    model = model_of()
    read = [
        model.read(written(model, storage=storage), ids(6)).logits
        for storage in (StorageConfig("host"), StorageConfig("device"), StorageConfig("disk", folder=tmp_path))
    ]
    assert torch.equal(read[0], read[1]) and torch.equal(read[0], read[2])
    rounded = model.read(written(model, storage=StorageConfig(int8=True)), ids(6)).logits
    torch.testing.assert_close(rounded, read[0], atol=0.1, rtol=0.0)
    assert not torch.equal(rounded, read[0])


def test_a_fork_of_a_memorys_pool_and_what_was_saved_of_it_can_be_written(tmp_path: Any) -> None:
    model = model_of()
    view = written(model).pool_only()
    view.save(tmp_path / "view")
    for twin in (view.fork(), Memory.load(tmp_path / "view")):
        model.write(twin, ids(40, seed=2))
        assert twin.longterm is None
