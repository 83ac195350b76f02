"""Reading retrieves from long-term memory, in every family, row by row, and as its plain definition says."""

from typing import Any

import pytest
import torch
from remanence.memory.agreement import Agreement
from remanence.model.adapters import LoraSettings
from torch import Tensor

from remanence import Memory, MemoryModel
from remanence.errors import CorruptMemoryError, InvalidInputError
from remanence.memory import LongTerm, LongTermRules, Retrieved, Storage
from tests.support import tiny
from tests.support.tiny import ids

K0 = 8
CLOSE = {"atol": 1e-5, "rtol": 0.0}


def model_of(family: str = "llama", **settings: Any) -> MemoryModel:
    changes = {"attention": settings.pop("attention", "sdpa")}
    rules = settings.pop("longterm", LongTermRules(retrieved=K0))
    model = tiny.with_memory(tiny.decoder(family, **changes), longterm=rules, retrieval_size=16, **settings)
    torch.manual_seed(3)
    assert model.retriever is not None
    for parameter in model.retriever.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def written(model: MemoryModel, seed: int = 0, writes: int = 9, **settings: Any) -> Memory:
    memory = model.new_memory(seed, **settings)
    for number in range(writes):
        model.write(memory, ids(9 + number % 4, seed=100 * seed + number))
    return memory


def found_in(out: Any) -> list[list[Retrieved | None]]:
    retrieval = out.past_key_values.retrieval
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
    pools = model.new_memory(longterm=False)
    larger = memory.pool_only()
    pool = memory.pool.clone()
    for name in ("keys", "values"):
        stacked = []
        for layer, found in enumerate(found_in(out)):
            assert found[0] is not None
            kept = getattr(pool, name)[layer][pool.order[layer]]
            stacked.append(torch.cat([getattr(found[0], name), kept]))
        setattr(pool, name, torch.stack(stacked))
    pool.serial = torch.arange(K0 + tiny.SLOTS).repeat(tiny.LAYERS, 1)
    pool._order = None
    larger.pool_or_none = pool
    torch.testing.assert_close(model.read(larger, prompt).logits, out.logits, **CLOSE)
    assert not torch.allclose(model.read(memory.pool_only(), prompt).logits, out.logits, atol=1e-3)
    assert pools.longterm is None


def test_layers_above_the_second_go_by_what_those_below_found_where_they_agree() -> None:
    by_itself, agreeing = (model_of(longterm=LongTermRules(retrieved=K0, agreement=share)) for share in (0.0, 0.02))
    memory, prompt = written(by_itself), ids(7, seed=5)
    assert memory.longterm is not None and by_itself.retriever is not None
    seen: list[Tensor] = []
    for layer in by_itself.backbone.layers:
        layer.self_attn.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
        )
    before = found_in(by_itself.read(memory, prompt))
    after = found_in(agreeing.read(written(agreeing), prompt))
    weighed, agreement = [], Agreement(0.02, tiny.K)
    pool = memory.pool
    assert pool.retrieval is not None
    for layer, held in list(enumerate(memory.longterm.layers))[1:]:
        queries = by_itself.retriever.query[layer](seen[layer][0])
        keys = torch.cat([block.rows["keys"].first(held.count) for block in held.blocks.values()])
        scores = torch.sigmoid(queries @ torch.cat([keys, pool.retrieval[layer]]).T).mean(0)
        serial = torch.cat([held.serials(), pool.serial[layer]])
        best = agreement.weighed(scores, serial).topk(K0).indices
        weighed.append(
            (best[best < held.count].sort().values.tolist(), pool.keys[layer][best[best >= held.count] - held.count])
        )
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
    model = model_of(longterm=LongTermRules(retrieved=tiny.K, agreement=0.02))
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


@pytest.mark.parametrize("agreement", [0.0, 0.02])
def test_of_slots_that_score_alike_the_first_are_read_whatever_the_others_score(agreement: float) -> None:
    """Slots of one token are the same in layer 0, so the last places often fall among such."""
    wanted, size, alike = 8, 60, torch.arange(3, 60, 5)
    model = model_of(longterm=LongTermRules(retrieved=wanted, agreement=agreement))
    longterm = written(model, writes=14).longterm
    assert longterm is not None and longterm.layers[0].size >= size
    held = longterm.layers[0]
    for seed in range(20):
        scores = torch.rand(held.size, generator=torch.Generator().manual_seed(seed)) * 0.1
        scores[alike] = 0.5 + 1e-7 * torch.rand(len(alike), generator=torch.Generator().manual_seed(seed))
        held.scores = lambda _, scores=scores: scores  # type: ignore[method-assign]
        agreed = longterm.rules.agreeing(tiny.K)
        found = longterm.retrieve(0, torch.zeros(1, 16), wanted, agreed)
        assert sorted(found.positions.tolist()) == [int(at) + held.start for at in alike[:wanted]]


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("agreement", [0.0, 0.02])
def test_rows_with_different_long_term_memories_equal_single_calls(attention: str, agreement: float) -> None:
    model = model_of(attention=attention, longterm=LongTermRules(retrieved=K0, agreement=agreement))
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
    made, ranks = model.encode(memory, ids(9)), torch.arange(tiny.SLOTS).repeat(tiny.LAYERS, 1)
    updated = memory.pool_only().fork()
    model.update(updated, made, evict=ranks[:, : tiny.K])
    without = model.read(updated, prompt).logits
    updated.longterm = memory.longterm
    expected, out = (
        model.read(updated, prompt),
        model.read(memory, prompt, pending=made, sampled=ranks[:, tiny.K :]),
    )
    torch.testing.assert_close(out.logits, expected.logits, **CLOSE)
    assert not torch.allclose(out.logits, without, atol=1e-3)
    for one, other in zip(found_in(out), found_in(expected), strict=True):
        assert one[0] is not None and other[0] is not None
        assert one[0].positions.tolist() == other[0].positions.tolist()


def test_pending_slots_that_are_read_alone_retrieve_nothing() -> None:
    model = model_of()
    memory, prompt = written(model), ids(7, seed=5)
    made = model.encode(memory, ids(9))
    out = model.read(memory, prompt, pending=made)
    assert not found_in(out)
    assert torch.equal(out.logits, model.read(memory.pool_only(), prompt, pending=made).logits)


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


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
def test_retrieval_can_follow_the_generated_text(options: dict[str, Any]) -> None:
    model = model_of()
    memory, prompt = written(model, writes=20), ids(3)
    generate = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    often = model.generate(memory, prompt, retrieve_every=2, **generate, **options)
    once = model.generate(memory, prompt, **generate, **options)
    moved = [
        a[0].positions.tolist() != b[0].positions.tolist()  # type: ignore[union-attr]
        for a, b in zip(found_in(often), found_in(once), strict=True)
    ]
    assert any(moved)
    cache = often.past_key_values
    for layer, rows in enumerate(found_in(often)):
        found = rows[0]
        assert found is not None
        held = cache.layers[layer].values[:, 1 : 1 + K0]
        assert all(torch.equal(row, found.values) for row in held)
    with pytest.raises(InvalidInputError, match="retrieve_every"):
        model.generate(memory, prompt, retrieve_every=0, **generate)


def test_each_retrieval_is_asked_by_what_was_written_since_the_last(monkeypatch: pytest.MonkeyPatch) -> None:
    model = model_of()
    memory, real = written(model, writes=20), LongTerm.retrieve
    tokens: list[list[int]] = [[] for _ in range(tiny.LAYERS)]

    def counting(self: LongTerm, layer: int, queries: Tensor, *rest: Any) -> Retrieved:
        tokens[layer].append(len(queries))
        return real(self, layer, queries, *rest)

    monkeypatch.setattr(LongTerm, "retrieve", counting)
    model.generate(memory, ids(3), retrieve_every=2, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert tokens == [[3, 2, 2, 2]] * tiny.LAYERS


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


def test_a_capacity_below_one_write_is_refused() -> None:
    model = model_of()
    with pytest.raises(InvalidInputError, match="smaller than one write"):
        model.new_memory(capacity=tiny.K - 1)
    assert written(model, capacity=0).longterm.sizes() == [0] * tiny.LAYERS  # type: ignore[union-attr]


def test_a_memory_with_keys_of_another_retriever_is_refused() -> None:
    one, other = model_of(), model_of()
    assert other.retriever is not None
    memory = written(one)
    with torch.no_grad():
        next(other.retriever.parameters()).mul_(2)
    with pytest.raises(ValueError, match="another model"):
        other.read(memory, ids(4))


def test_tiers_read_alike(tmp_path: Any) -> None:
    model = model_of()
    read = [
        model.read(written(model, storage=storage), ids(6)).logits
        for storage in (Storage("host"), Storage("device"), Storage("disk", folder=tmp_path))
    ]
    assert torch.equal(read[0], read[1]) and torch.equal(read[0], read[2])
    rounded = model.read(written(model, storage=Storage(int8=True)), ids(6)).logits
    torch.testing.assert_close(rounded, read[0], atol=0.1, rtol=0.0)
    assert not torch.equal(rounded, read[0])


def test_a_model_with_adapters_and_retriever_comes_back_as_it_was_saved(tmp_path: Any) -> None:
    model = model_of(lora=LoraSettings(r=4))
    for name, parameter in model.named_parameters():
        if ".lora_B." in name:
            torch.nn.init.normal_(parameter, std=0.1)
    memory = written(model)
    model.save_pretrained(tmp_path)
    again = MemoryModel.from_pretrained(tmp_path)
    assert again.fingerprint() == model.fingerprint()
    assert (again.longterm, again.slots) == (model.longterm, model.slots)
    torch.testing.assert_close(again.read(memory, ids(5)).logits, model.read(memory, ids(5)).logits, **CLOSE)
    assert not any(
        ".lora_" in name for name in (tmp_path / "model.safetensors").read_bytes()[:4000].decode("latin1").split('"')
    )


def test_writing_and_reading_use_an_adapter_each() -> None:
    model = model_of(lora=LoraSettings(r=4), bos=False)
    plain = model_of(bos=False)
    before = written(model)
    torch.testing.assert_close(model.read(before, ids(5)).logits, plain.read(written(plain), ids(5)).logits, **CLOSE)
    for name, parameter in model.named_parameters():
        if ".lora_B.reader" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    torch.testing.assert_close(model.encode(written(model), ids(9)), plain.encode(written(plain), ids(9)), **CLOSE)
    assert not torch.allclose(
        model.read(written(model), ids(5)).logits, plain.read(written(plain), ids(5)).logits, atol=1e-2
    )
