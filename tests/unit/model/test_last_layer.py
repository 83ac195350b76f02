"""The last layer of a prompt runs for its last token only, and nothing that follows can tell."""

from typing import Any

import pytest
import torch
from torch import Tensor

from remanence import Memory, MemoryModel
from remanence.memory import LongTermRules
from remanence.model.adapters import LoraSettings
from tests.support import tiny
from tests.support.tiny import ids

CLOSE = {"atol": 1e-5, "rtol": 0.0}
GREEDY = {"max_new_tokens": 6, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}

every_family = pytest.mark.parametrize("family", sorted(tiny.FAMILIES))


def model_of(family: str = "llama", **changes: Any) -> MemoryModel:
    return tiny.with_memory(tiny.decoder(family, **changes))


def longterm_model() -> MemoryModel:
    rules = LongTermRules(retrieved=8)
    model = tiny.with_memory(tiny.decoder("qwen3"), longterm=rules, retrieval_size=16, lora=LoraSettings(r=2))
    for name, parameter in model.named_parameters():
        if ".lora_B." in name or name.startswith("retriever."):
            torch.nn.init.normal_(parameter, std=0.1)
    return model


def written(model: MemoryModel, count: int = 1) -> list[Memory]:
    memories = [model.new_memory(seed) for seed in range(count)]
    for number, memory in enumerate(memories):
        for step in range(9):
            model.write(memory, ids(9 + step, seed=10 * number + step))
    return memories


def tokens_seen(model: MemoryModel, layer: int) -> list[int]:
    """How many tokens a layer's feed-forward part sees, call by call."""
    seen: list[int] = []
    model.backbone.layers[layer].mlp.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
    return seen


def last_logits(out: Any) -> Tensor:
    logits: Tensor = out.logits
    return logits[:, -1]


@pytest.mark.parametrize(
    ("family", "attention"), [(family, way) for family in sorted(tiny.FAMILIES) for way in tiny.attentions(family)]
)
def test_one_row_of_logits_is_the_last_of_all(family: str, attention: str) -> None:
    model = model_of(family, attention=attention)
    memories, prompts = written(model, 2), [ids(7, seed=3), ids(12, seed=4)]
    seen = tokens_seen(model, -1)
    whole = last_logits(model.read(memories, prompts))
    narrow = last_logits(model.read(memories, prompts, logits_to_keep=1))
    torch.testing.assert_close(narrow, whole, **CLOSE)
    assert seen == [12, 1]


@every_family
def test_what_is_generated_after_it_is_the_same(family: str) -> None:
    """Asked for hidden states too, the last layer runs for all tokens."""
    model = model_of(family)
    memory, prompt = written(model)[0], ids(11, seed=5)
    seen = tokens_seen(model, -1)
    narrow = model.generate(memory, prompt, **GREEDY)
    assert seen[0] == 1
    whole = model.generate(memory, prompt, output_hidden_states=True, **GREEDY)
    assert seen[6] == 11
    assert torch.equal(narrow.sequences, whole.sequences)
    torch.testing.assert_close(torch.cat(narrow.logits), torch.cat(whole.logits), **CLOSE)


def test_a_window_smaller_than_the_prompt_slides_in_the_last_layer_too() -> None:
    model = model_of("mistral", sliding_window=4)
    memory, prompt = written(model)[0], ids(12, seed=6)
    whole = last_logits(model.read(memory, prompt))
    torch.testing.assert_close(last_logits(model.read(memory, prompt, logits_to_keep=1)), whole, **CLOSE)


def test_the_last_layer_retrieves_for_the_whole_prompt() -> None:
    model = longterm_model()
    memories, prompts = written(model, 2), [ids(7, seed=3), ids(12, seed=4)]
    outs = [model.read(memories, prompts, **kept) for kept in ({}, {"logits_to_keep": 1})]
    torch.testing.assert_close(last_logits(outs[1]), last_logits(outs[0]), **CLOSE)
    for whole, narrow in zip(*(out.past_key_values.retrieval.found[-1] for out in outs), strict=True):
        assert torch.equal(whole.positions, narrow.positions)


def test_where_retrieval_goes_on_every_layer_counts_all_tokens() -> None:
    model = longterm_model()
    memory, seen = written(model)[0], tokens_seen(model, -1)
    model.generate(memory, ids(7), retrieve_every=2, **GREEDY)
    assert seen[0] == 7


def test_without_memory_and_in_training_the_decoder_is_the_stock_one() -> None:
    model = model_of()
    seen = tokens_seen(model, -1)
    model.hf(input_ids=ids(9)[None], logits_to_keep=1)
    model.read(written(model)[0], ids(9))
    assert seen[0] == seen[-1] == 9
