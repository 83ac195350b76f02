"""Every kind of rotation that transformers knows, at lengths short and long, against the stock decoder."""

from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from remanence.model.backbone import Backbone
from tests.support import tiny
from tests.support.tiny import decoder, ids

TRAINED = 64  # positions, past which lengths matter
MEMORY = 20  # tokens in front of the rest of a call
DEFAULT = {"rope_type": "default", "rope_theta": 10000.0}
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "factor": 4.0,
    "original_max_position_embeddings": TRAINED,
}
KINDS: dict[str, dict[str, Any]] = {
    "default": DEFAULT,
    "linear": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10000.0, "factor": 4.0},
    "yarn": {
        "rope_type": "yarn",
        "rope_theta": 10000.0,
        "factor": 4.0,
        "original_max_position_embeddings": TRAINED,
    },
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": TRAINED,
    },
    "longrope": {**LONGROPE, "short_factor": [1.0] * 4, "long_factor": [2.0, 3.0, 4.0, 5.0]},
}
BY_LENGTH = ["dynamic", "longrope"]


def made(family: str, rope: dict[str, Any], **changes: Any) -> PreTrainedModel:
    hf = decoder(family, dtype=torch.float64, max_position_embeddings=TRAINED, rope_parameters=rope, **changes)
    assert isinstance(hf, PreTrainedModel)
    return hf


def model_of(family: str, kind: str) -> PreTrainedModel:
    rope = dict(KINDS[kind])
    if family == "phi3":
        rope["partial_rotary_factor"] = 1.0
        return made(family, rope, original_max_position_embeddings=TRAINED)
    if family in ("gemma3_text", "olmo3"):
        return made(family, {"full_attention": rope, "sliding_attention": dict(DEFAULT)}, head_dim=8)
    return made(family, rope, head_dim=8)


CASES = [
    *(("llama", kind) for kind in KINDS),
    *(("gemma3_text", kind) for kind in KINDS),
    *(("olmo3", kind) for kind in ("dynamic", "longrope")),
    *(("cohere", kind) for kind in BY_LENGTH),
    *(("gpt_oss", kind) for kind in BY_LENGTH),
    ("phi3", "longrope"),
]
every_rope = pytest.mark.parametrize(("family", "kind"), CASES)


@torch.no_grad()
def keys_of(hf: PreTrainedModel, tokens: int) -> tuple[list[Tensor], list[Tensor]]:
    """Each layer's inputs and rotated keys `[1, T, ...]` of a call with so many tokens."""
    inputs: list[Tensor] = []
    hooks = [layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0])) for layer in Backbone(hf).layers]
    cache = DynamicCache()
    hf(ids(tokens)[None], past_key_values=cache, use_cache=True)
    for hook in hooks:
        hook.remove()
    return inputs, [layer.keys.transpose(1, 2) for layer in cache.layers]


@torch.no_grad()
def off(hf: PreTrainedModel, tokens: int, longest: int | None) -> float:
    """How far memory's keys, turned on their own, are from those of a call with memory and all other tokens."""
    backbone = Backbone(hf)
    rotary = backbone.rotary(torch.arange(MEMORY)[None], torch.empty(0, dtype=torch.float64), longest)
    angles = [rotary(layer) for layer in range(tiny.LAYERS)]
    inputs, right = keys_of(hf, tokens)
    worst = 0.0
    for layer, part in enumerate(angles):
        keys, _ = backbone.project(layer, inputs[layer][:, :MEMORY])
        turned = backbone.rotate(layer, keys, *part)
        worst = max(worst, float((turned - right[layer][:, :MEMORY]).abs().max()))
    return worst


@every_rope
@pytest.mark.parametrize("tokens", [MEMORY, TRAINED, TRAINED + 1, 2 * TRAINED])
def test_rotary_turns_memory_as_a_call_of_this_length_does(family: str, kind: str, tokens: int) -> None:
    assert off(model_of(family, kind), tokens, longest=tokens - 1) <= 1e-12


@every_rope
def test_length_dependent_says_whether_the_length_of_a_call_matters(family: str, kind: str) -> None:
    hf = model_of(family, kind)
    assert Backbone(hf).length_dependent == (kind in BY_LENGTH)
    assert (off(hf, 2 * TRAINED, longest=None) > 1e-3) == (kind in BY_LENGTH)


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "gpt_oss"])
@pytest.mark.parametrize("tokens", [MEMORY, 80, 120, 200])
def test_rotary_follows_what_dynamic_ntk_remembers_of_longer_calls(family: str, tokens: int) -> None:
    hf = model_of(family, "dynamic")
    keys_of(hf, 120)
    assert off(hf, tokens, longest=tokens - 1) <= 1e-12


@pytest.mark.parametrize(("family", "kind"), [("llama", "dynamic"), ("llama", "longrope"), ("gemma3_text", "dynamic")])
@pytest.mark.parametrize("earlier", [MEMORY, 100])
def test_rotary_leaves_no_trace_in_the_decoder(family: str, kind: str, earlier: int) -> None:
    asked, untouched = model_of(family, kind), model_of(family, kind)
    for hf in (asked, untouched):
        keys_of(hf, earlier)
    rotary = Backbone(asked).rotary(torch.arange(MEMORY)[None], torch.empty(0, dtype=torch.float64), longest=200)
    for layer in range(tiny.LAYERS):
        rotary(layer)
    for one, other in zip(asked.buffers(), untouched.buffers(), strict=True):
        assert torch.equal(one, other)
    for tokens in (80, MEMORY, 70):
        for one, other in zip(keys_of(asked, tokens)[1], keys_of(untouched, tokens)[1], strict=True):
            assert torch.equal(one, other)


def test_rotary_is_computed_once_for_each_kind_of_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    for family, kinds in (("llama", 1), ("gemma3_text", 2), ("olmo3", 2), ("cohere2", 1)):
        backbone, calls = Backbone(decoder(family)), []
        right = type(backbone.decoder.rotary_emb).forward

        def forward(*args: Any, right: Any = right, calls: list[Any] = calls, **kwargs: Any) -> Any:
            calls.append(args)
            return right(*args, **kwargs)

        monkeypatch.setattr(type(backbone.decoder.rotary_emb), "forward", forward)
        rotary = backbone.rotary(torch.arange(MEMORY)[None], torch.empty(0))
        for _ in range(2):
            for layer in range(tiny.LAYERS):
                assert rotary(layer)[0].shape[:2] == (1, MEMORY)
        assert len(calls) == kinds
