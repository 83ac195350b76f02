"""A generation reads memory through its cache, whatever a family, a configuration or an option makes of caches."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import GenerationConfig, PreTrainedModel
from transformers.cache_utils import DynamicCache
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from remanence import Memory, MemoryModel
from remanence.errors import RemanenceError
from tests.support.reading import CLOSE, or_refused, require_generate_to_read, steps, written
from tests.support.tiny import SLOTS, decoder, ids, with_memory

POSITIONS = 64


def long_phi3() -> PreTrainedModel:
    """As Phi-3-mini-128k: it takes other frequencies, and a new cache, where a text outgrows its first length."""
    rope = {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [1.5] * 4,
        "original_max_position_embeddings": POSITIONS,
    }
    return decoder("phi3", original_max_position_embeddings=POSITIONS, partial_rotary_factor=1.0, rope_parameters=rope)


@pytest.mark.parametrize("tokens", [POSITIONS, POSITIONS + 1])
def test_generate_reads_memory_in_front_of_a_long_prompt_of_phi3(tokens: int) -> None:
    model = with_memory(long_phi3())
    memory, other, prompt = written(model, 0), written(model, 1), ids(tokens)
    require_generate_to_read(model, memory, prompt, max_new_tokens=1)
    (_, first), (_, second) = (steps(model, held, prompt, max_new_tokens=1) for held in (memory, other))
    assert not torch.allclose(first, second, **CLOSE)


def test_generate_reads_memory_where_phi3_outgrows_its_first_length() -> None:
    model = with_memory(long_phi3())
    text, logits = steps(model, written(model), ids(POSITIONS - 2), max_new_tokens=6)
    for index, got in enumerate(logits):
        without = model.read(model.new_memory(), text[: POSITIONS - 2 + index]).logits[0, -1]
        assert not torch.allclose(got, without, **CLOSE), f"step {index}"


@pytest.mark.parametrize("instead", [None, DynamicCache], ids=["dropped", "replaced"])
@pytest.mark.parametrize("at", [0, 2], ids=["at the prompt", "later"])
def test_generate_notices_that_its_cache_went(at: int, instead: type[DynamicCache] | None) -> None:
    hf = decoder()
    model = with_memory(hf)
    memory, prepare, calls = written(model), hf.prepare_inputs_for_generation, []

    def careless(*args: Any, **kwargs: Any) -> Any:
        inputs = prepare(*args, **kwargs)
        if len(calls) == at:
            inputs["past_key_values"] = None if instead is None else instead()
        calls.append(at)
        return inputs

    right = model.generate(memory, ids(5), max_new_tokens=4, do_sample=False)
    hf.prepare_inputs_for_generation = careless
    if not at:  # the whole prompt is there, so it is put back
        assert torch.equal(model.generate(memory, ids(5), max_new_tokens=4, do_sample=False), right)
        return
    with pytest.raises(RemanenceError, match="cache"):
        model.generate(memory, ids(5), max_new_tokens=4, do_sample=False)


@pytest.mark.parametrize("kind", ["static", "offloaded"])
def test_generate_refuses_a_cache_of_another_kind_or_reads_memory_through_it(kind: str) -> None:
    hf = decoder()
    model = with_memory(hf)
    memory = written(model)
    hf.generation_config.cache_implementation = kind
    with or_refused("cache_implementation", ValueError):
        require_generate_to_read(model, memory, ids(5), max_new_tokens=4)


def off_as_keyword(hf: PreTrainedModel) -> dict[str, Any]:
    return {"use_cache": False}


def off_in_the_model(hf: PreTrainedModel) -> dict[str, Any]:
    hf.config.use_cache = False
    return {}


def off_in_its_options(hf: PreTrainedModel) -> dict[str, Any]:
    hf.generation_config.use_cache = False
    return {}


def off_in_options_handed_over(hf: PreTrainedModel) -> dict[str, Any]:
    return {"generation_config": GenerationConfig(use_cache=False, pad_token_id=0)}


@pytest.mark.parametrize(
    "switch",
    [
        off_as_keyword,
        off_in_the_model,
        off_in_its_options,
        off_in_options_handed_over,
    ],
)
def test_generate_reads_or_refuses_where_the_cache_is_off(switch: Any) -> None:
    hf = decoder()
    model = with_memory(hf)
    memory, options = written(model), switch(hf)
    with or_refused("use_cache"):
        require_generate_to_read(model, memory, ids(5), max_new_tokens=5, **options)


def test_generate_reads_or_refuses_a_checkpoint_that_was_saved_with_the_cache_off(tmp_path: Path) -> None:
    hf = decoder()
    hf.config.use_cache = False
    hf.save_pretrained(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    model = with_memory(type(hf).from_pretrained(tmp_path))
    with or_refused("use_cache"):
        require_generate_to_read(model, written(model), ids(5), max_new_tokens=5)


ROPES: dict[str, dict[str, Any]] = {
    "default": {"rope_type": "default", "rope_theta": 1e4},
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 1e4,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
        "original_max_position_embeddings": POSITIONS,
        "factor": 4.0,
    },
}


def with_rope(name: str, **settings: Any) -> MemoryModel:
    return with_memory(decoder(max_position_embeddings=POSITIONS, rope_parameters=dict(ROPES[name])), **settings)


def read_as_stock(model: MemoryModel, memory: Memory, prompt: Tensor) -> Tensor:  # [T, V]
    """The logits of a stock call behind the pool's slots, all turned as the decoder turns a text of that length."""
    hf, slots = model.hf, memory.pool.slots()  # [L, N, d]
    whole = torch.arange(SLOTS + len(prompt))[None]
    cos, sin = (part[:, :SLOTS] for part in hf.base_model.rotary_emb(slots, whole))
    cache = DynamicCache()
    for index, layer in enumerate(hf.base_model.layers):
        hidden, attention = layer.input_layernorm(slots[index][None]), layer.self_attn
        keys, values = (
            project(hidden).unflatten(2, (-1, attention.head_dim)).transpose(1, 2)
            for project in (attention.k_proj, attention.v_proj)
        )
        cache.update(apply_rotary_pos_emb(keys, keys, cos, sin)[0], values, index)
    logits: Tensor = hf(input_ids=prompt[None], past_key_values=cache, position_ids=whole[:, SLOTS:]).logits
    return logits[0]


@pytest.mark.parametrize(
    ("rope", "tokens"),
    [
        *((rope, 20) for rope in ROPES),
        ("default", 60),
        ("linear", 60),
        ("dynamic", 60),
        ("longrope", 60),
    ],
)
@torch.no_grad()
def test_read_turns_memory_and_text_by_the_same_frequencies(rope: str, tokens: int) -> None:
    model = with_rope(rope, keep_hidden=True, bos=False)
    memory, prompt = written(model), ids(tokens)
    torch.testing.assert_close(model.read(memory, prompt).logits[0], read_as_stock(model, memory, prompt), **CLOSE)


@pytest.mark.parametrize("rope", ROPES)
def test_read_of_a_short_prompt_is_the_same_after_a_long_one(rope: str) -> None:
    model = with_rope(rope)
    memory = written(model)
    before = model.read(memory, ids(10)).logits
    model.read(memory, ids(60))
    assert torch.equal(model.read(memory, ids(10)).logits, before)
