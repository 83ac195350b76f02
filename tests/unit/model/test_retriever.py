"""The retriever: when a memory is asked, by which tokens, and for which row."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from remanence import Memory, MemoryModel
from remanence.config import LongTermConfig
from remanence.errors import InvalidInputError
from remanence.memory import LongTerm
from remanence.memory.longterm import Retrieved
from remanence.memory.scoring import CrossLayerPrior
from remanence.model.retriever import Retrieval, Retriever, new_retriever
from tests.support import tiny
from tests.support.models import with_longterm
from tests.support.tiny import decoder, ids

SIZE = 8


class Asked:
    """Stands for a long-term memory, and keeps what it is asked with."""

    readable = 1
    rules = LongTermConfig(retrieved=1, cross_layer_prior=0.02)

    def __init__(self) -> None:
        self.queries: list[Tensor] = []
        self.priors: list[CrossLayerPrior | None] = []

    def retrieve(
        self, layer: int, queries: Tensor, wanted: int, prior: CrossLayerPrior | None, pool: None
    ) -> Retrieved:
        self.queries.append(queries)
        self.priors.append(prior)
        none = torch.zeros(1, 1, 1)
        return Retrieved(none, none, torch.zeros(1), torch.zeros(1))


def retrieval_of(memories: int, every: int | None, layers: int = 1) -> tuple[Retrieval, list[Any]]:
    torch.manual_seed(0)
    asked: list[Any] = [Asked() for _ in range(memories)]
    return Retrieval(Retriever(layers, SIZE, 4), asked, [None] * memories, slots_per_write=1, every=every), asked


def test_observe_asks_at_the_prompt_only_unless_it_is_told_when() -> None:
    retrieval, (asked,) = retrieval_of(memories=1, every=None)
    steps = [torch.randn(1, 4, SIZE), *torch.randn(5, 1, 1, SIZE)]
    assert [retrieval.observe(0, step, None) for step in steps] == [True, *[False] * 5]
    assert len(asked.queries) == 1


def test_observe_asks_again_with_the_tokens_since_it_asked_last() -> None:
    retrieval, (asked,) = retrieval_of(memories=1, every=3)
    query = retrieval.retriever.query[0]
    text = torch.randn(1, 4 + 7, SIZE)
    steps = [text[:, :4], *text[:, 4:].split(1, dim=1)]
    assert [retrieval.observe(0, step, None) for step in steps] == [True, *[False, False, True] * 2, False]
    for queries, part in zip(asked.queries, (text[0, :4], text[0, 4:7], text[0, 7:10]), strict=True):
        torch.testing.assert_close(queries, query(part))


def test_observe_leaves_out_padding_and_what_stands_behind_the_prompt() -> None:
    retrieval, asked = retrieval_of(memories=2, every=None)
    query, text = retrieval.retriever.query[0], torch.randn(2, 6, SIZE)
    mask = torch.tensor([[False, False, True, True], [True, True, True, True]])
    retrieval.observe(0, text, mask)  # four tokens of a prompt, and two that an assistant proposes
    torch.testing.assert_close(asked[0].queries[0], query(text[0, 2:4]))
    torch.testing.assert_close(asked[1].queries[0], query(text[1, :4]))


def test_observe_starts_the_beams_of_one_memory_from_one_prompt_and_asks_with_all_of_them_later() -> None:
    retrieval, asked = retrieval_of(memories=2, every=2)
    query = retrieval.retriever.query[0]
    prompts, text = torch.randn(6, 4, SIZE), torch.randn(6, 2, SIZE)  # three beams of each memory
    retrieval.observe(0, prompts, None)
    retrieval.observe(0, text, None)
    for row, memory in enumerate(asked):
        first, again = memory.queries
        torch.testing.assert_close(first, query(prompts[3 * row]))
        torch.testing.assert_close(again, query(text[3 * row : 3 * row + 3]).flatten(0, 1))


def test_observe_begins_a_prior_each_time_for_each_memory_and_without_the_first_layer() -> None:
    retrieval, asked = retrieval_of(memories=2, every=1, layers=4)
    for _ in range(2):
        for layer in range(4):
            assert retrieval.observe(layer, torch.randn(2, 1, SIZE), None)
    seen = []
    for memory in asked:
        assert memory.priors[0] is memory.priors[4] is None
        for start in (1, 5):
            assert len({id(one) for one in memory.priors[start : start + 3]}) == 1
            seen.append(id(memory.priors[start]))
    assert len(set(seen)) == 4


@pytest.mark.parametrize("depth", [1, 2])
def test_keys_are_projected_from_what_attention_sees(depth: int) -> None:
    model = with_longterm(longterm=LongTermConfig(retrieved=4, key_layers=depth))
    retriever, hidden = model.retriever, torch.randn(2, tiny.LAYERS, 5, 32)
    assert retriever is not None and (retriever.size, retriever.depth) == (16, depth)
    with torch.no_grad():
        keys = retriever.keys(model.backbone.normed, hidden)
        for layer in range(tiny.LAYERS):
            normed = model.hf.base_model.layers[layer].input_layernorm(hidden[:, layer])
            torch.testing.assert_close(keys[:, layer], retriever.key[layer](normed))
    assert keys.shape == (2, tiny.LAYERS, 5, 16)


def test_new_retriever_has_the_dtype_of_the_decoder() -> None:
    made = new_retriever(decoder(dtype=torch.bfloat16))
    assert made.size == 256 and {parameter.dtype for parameter in made.parameters()} == {torch.bfloat16}


def written(model: MemoryModel, seed: int = 0, writes: int = 16) -> Memory:
    memory = model.new_memory(seed)
    for number in range(writes):
        model.write(memory, ids(9, seed=100 * seed + number))
    return memory


def test_generate_asks_with_what_was_written_since_the_last_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model = with_longterm()
    memory, real = written(model), LongTerm.retrieve
    tokens: list[list[int]] = [[] for _ in range(tiny.LAYERS)]

    def counting(self: LongTerm, layer: int, queries: Tensor, *rest: Any) -> Retrieved:
        tokens[layer].append(len(queries))
        return real(self, layer, queries, *rest)

    monkeypatch.setattr(LongTerm, "retrieve", counting)
    model.generate(memory, ids(3), retrieve_every=2, max_new_tokens=8, do_sample=False, eos_token_id=None)
    assert tokens == [[3, 2, 2, 2]] * tiny.LAYERS


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}])
def test_generate_reads_what_it_retrieves_on_its_way(options: dict[str, Any]) -> None:
    model = with_longterm()
    memory, prompt = written(model), ids(3)
    generate = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "return_dict_in_generate": True}
    often = model.generate(memory, prompt, retrieve_every=2, **generate, **options).past_key_values
    once = model.generate(memory, prompt, **generate, **options).past_key_values
    pairs = zip(often.retrieval.found, once.retrieval.found, strict=True)
    assert any(one[0].positions.tolist() != other[0].positions.tolist() for one, other in pairs)
    for layer, (found,) in enumerate(often.retrieval.found):
        held = often.layers[layer].values[:, 1 : 1 + len(found.values)]
        assert all(torch.equal(row, found.values) for row in held)


@pytest.mark.parametrize("every", [0, -1])
def test_generate_refuses_to_retrieve_every_no_tokens(every: int) -> None:
    model = with_longterm()
    with pytest.raises(InvalidInputError, match="retrieve_every"):
        model.generate(written(model, writes=3), ids(3), retrieve_every=every, max_new_tokens=1)


class Recite(LogitsProcessor):
    """Allows one text only."""

    def __init__(self, text: Tensor) -> None:
        self.text = text

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.text[input_ids.shape[1]]] = 0
        return forced


@pytest.mark.parametrize("where", ["as options", "in a configuration"])
def test_generate_retrieves_for_the_text_of_each_of_several_sequences(where: str) -> None:
    model = with_longterm()
    memories, prompt = [written(model, seed) for seed in range(2)], ids(3)
    drawing: dict[str, Any] = {"do_sample": True, "num_return_sequences": 3, "max_new_tokens": 9, "eos_token_id": None}
    if where == "in a configuration":
        drawing = {"generation_config": GenerationConfig(**{**drawing, "eos_token_id": -1, "pad_token_id": 0})}
    returned = {"return_dict_in_generate": True, "output_logits": True}
    torch.manual_seed(0)
    out = model.generate(memories, [prompt, prompt], retrieve_every=2, **drawing, **returned)
    found: list[list[Any]] = out.past_key_values.retrieval.found
    assert out.sequences.shape == (6, 3 + 9)
    for row, text in enumerate(out.sequences):
        alone = model.generate(
            memories[row // 3],
            prompt,
            retrieve_every=2,
            max_new_tokens=9,
            do_sample=False,
            eos_token_id=None,
            logits_processor=LogitsProcessorList([Recite(text)]),
            **returned,
        )
        torch.testing.assert_close(torch.stack(out.logits)[:, row], torch.cat(alone.logits), atol=1e-4, rtol=0)
        for rows, single in zip(found, alone.past_key_values.retrieval.found, strict=True):
            assert rows[row].positions.tolist() == single[0].positions.tolist()
    assert len({tuple(layer[row].positions.tolist()) for layer in found for row in range(3)}) > tiny.LAYERS
