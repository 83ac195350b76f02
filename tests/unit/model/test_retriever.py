"""Retrieving again while a text is generated: when, by which tokens, and for which row."""

from typing import Any

import pytest
import torch
from remanence.memory.agreement import Agreement
from torch import Tensor
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from remanence import Memory, MemoryModel
from remanence.memory import LongTermRules, Retrieved
from remanence.model.retriever import Retrieval, Retriever
from tests.support import tiny
from tests.support.tiny import ids

SIZE = 8


class Asked:
    """Stands for a long-term memory, and keeps what it is asked with."""

    readable = 1
    rules = LongTermRules(retrieved=1, agreement=0.02)

    def __init__(self) -> None:
        self.queries: list[Tensor] = []
        self.agreements: list[Agreement | None] = []

    def retrieve(self, layer: int, queries: Tensor, wanted: int, agreement: Agreement | None, pool: None) -> Retrieved:
        self.queries.append(queries)
        self.agreements.append(agreement)
        none = torch.zeros(1, 1, 1)
        return Retrieved(none, none, torch.zeros(1))


def retrieval_of(memories: int, every: int, layers: int = 1) -> tuple[Retrieval, list[Any]]:
    torch.manual_seed(0)
    asked: list[Any] = [Asked() for _ in range(memories)]
    return Retrieval(Retriever(layers, SIZE, 4), asked, [None] * memories, slots_per_write=1, every=every), asked


def test_a_memory_is_asked_again_with_the_tokens_since_it_was_asked_last() -> None:
    retrieval, (asked,) = retrieval_of(memories=1, every=3)
    query = retrieval.retriever.query[0]
    text = torch.randn(1, 4 + 7, SIZE)
    steps = [text[:, :4], *text[:, 4:].split(1, dim=1)]
    assert [retrieval.observe(0, step, None) for step in steps] == [True, *[False, False, True] * 2, False]
    for queries, part in zip(asked.queries, (text[0, :4], text[0, 4:7], text[0, 7:10]), strict=True):
        torch.testing.assert_close(queries, query(part))


def test_beams_start_from_one_prompt_and_go_on_to_ask_together() -> None:
    retrieval, asked = retrieval_of(memories=2, every=2)
    query = retrieval.retriever.query[0]
    prompts, text = torch.randn(6, 4, SIZE), torch.randn(6, 2, SIZE)  # three beams of each memory
    retrieval.observe(0, prompts, None)
    retrieval.observe(0, text, None)
    for row, memory in enumerate(asked):
        first, again = memory.queries
        torch.testing.assert_close(first, query(prompts[3 * row]))
        torch.testing.assert_close(again, query(text[3 * row : 3 * row + 3]).flatten(0, 1))


def test_layers_agree_anew_each_time_and_each_memory_for_itself() -> None:
    retrieval, asked = retrieval_of(memories=2, every=1, layers=4)
    for _ in range(2):
        for layer in range(4):
            assert retrieval.observe(layer, torch.randn(2, 1, SIZE), None)
    seen = []
    for memory in asked:
        assert memory.agreements[0] is memory.agreements[4] is None  # of layer 0
        for start in (1, 5):
            assert len({id(one) for one in memory.agreements[start : start + 3]}) == 1
            seen.append(id(memory.agreements[start]))
    assert len(set(seen)) == 4


class Recite(LogitsProcessor):
    """Allows one text only."""

    def __init__(self, text: Tensor) -> None:
        self.text = text

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        forced = torch.full_like(scores, -torch.inf)
        forced[:, self.text[input_ids.shape[1]]] = 0
        return forced


def written(model: MemoryModel, seed: int) -> Memory:
    memory = model.new_memory(seed)
    for number in range(16):
        model.write(memory, ids(9, seed=100 * seed + number))
    return memory


@pytest.mark.parametrize("where", ["as options", "in a configuration"])
def test_each_of_several_sequences_retrieves_for_its_own_text(where: str) -> None:
    model = tiny.with_memory(longterm=LongTermRules(retrieved=SIZE), retrieval_size=16)
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
