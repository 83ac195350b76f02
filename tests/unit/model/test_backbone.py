"""What a backbone says of a decoder is what the stock decoder does, for every family and rotation."""

import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.cache_utils import DynamicCache

from remanence.errors import UnsupportedModelError
from remanence.kernels.gqa_sdpa import SHARED_HEADS, share_heads
from remanence.kernels.rotation import rotate_rows
from remanence.model.backbone import FAMILIES, Backbone
from tests.support import tiny
from tests.support.tiny import attentions, decoder, ids

TOKENS = 40  # more than the windows of the tiny models
TEXT = torch.stack([ids(TOKENS), ids(TOKENS, seed=1)])
POSITIONS = torch.stack([torch.arange(TOKENS), torch.arange(TOKENS) + 90])

every_family = pytest.mark.parametrize("family", sorted(FAMILIES))
every_attention = pytest.mark.parametrize(
    ("family", "attention"), [(family, attention) for family in sorted(FAMILIES) for attention in attentions(family)]
)


@dataclass
class Call:
    """One call of a stock decoder: what its layers and attention modules were given, and what they left in the cache.

    Attributes:
        inputs, seen: `[B, T, d]` of each layer, before and behind the norm; masks: of each layer.
        keys, values: `[B, T, H, D]` of each layer, keys rotated.
    """

    inputs: list[Tensor] = field(default_factory=list)
    seen: list[Tensor] = field(default_factory=list)
    masks: list[Any] = field(default_factory=list)
    keys: list[Tensor] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)
    logits: Tensor = field(default_factory=lambda: torch.empty(0))


@contextmanager
def watched(backbone: Backbone, call: Call) -> Iterator[None]:
    def layer(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call.inputs.append(args[0])
        call.masks.append(kwargs["attention_mask"])

    def attention(_: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        call.seen.append(kwargs["hidden_states"] if "hidden_states" in kwargs else args[0])

    hooks = []
    for index, module in enumerate(backbone.layers):
        hooks.append(module.register_forward_pre_hook(layer, with_kwargs=True))
        hooks.append(backbone.attention(index).register_forward_pre_hook(attention, with_kwargs=True))
    yield
    for hook in hooks:
        hook.remove()


@torch.no_grad()
def stock(hf: PreTrainedModel, text: Tensor = TEXT, positions: Tensor | None = None, **kwargs: Any) -> Call:
    call, cache = Call(), DynamicCache()
    positions = torch.arange(text.shape[1]).repeat(len(text), 1) if positions is None else positions
    with watched(Backbone(hf), call):
        call.logits = hf(text, position_ids=positions, past_key_values=cache, use_cache=True, **kwargs).logits
    call.keys = [layer.keys.transpose(1, 2) for layer in cache.layers]
    call.values = [layer.values.transpose(1, 2) for layer in cache.layers]
    return call


def assert_same(got: Tensor, right: Tensor) -> None:
    torch.testing.assert_close(got, right, atol=1e-12 if right.dtype == torch.float64 else 0.0, rtol=0.0)


def like(backbone: Backbone) -> Tensor:
    return torch.empty(0, dtype=backbone.dtype)


@every_attention
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16], ids=["float64", "bfloat16"])
@torch.no_grad()
def test_project_and_rotate_give_what_the_stock_decoder_caches(family: str, attention: str, dtype: torch.dtype) -> None:
    hf = decoder(family, attention=attention, dtype=dtype)
    backbone, call = Backbone(hf), stock(hf, positions=POSITIONS)
    rotary = backbone.rotary(POSITIONS, like(backbone))
    for layer in range(tiny.LAYERS):
        keys, values = backbone.project(layer, call.inputs[layer])
        assert keys.shape == values.shape == (*TEXT.shape, backbone.kv_heads, backbone.head_dim)
        assert_same(backbone.rotate(layer, keys, *rotary(layer)), call.keys[layer])
        assert_same(values, call.values[layer])


@every_family
@torch.no_grad()
def test_project_gives_keys_that_are_not_rotated(family: str) -> None:
    hf = decoder(family)
    call = stock(hf, positions=torch.zeros_like(POSITIONS))  # where nothing is rotated
    for layer in range(tiny.LAYERS):
        assert_same(Backbone(hf).project(layer, call.inputs[layer])[0], call.keys[layer])


@every_family
@torch.no_grad()
def test_normed_is_what_attention_sees(family: str) -> None:
    hf = decoder(family, dtype=torch.float64)
    backbone, call = Backbone(hf), stock(hf)
    for layer in range(tiny.LAYERS):
        assert_same(backbone.normed(layer, call.inputs[layer]), call.seen[layer])
        for one, other in zip(
            backbone.project_normed(layer, call.seen[layer]), backbone.project(layer, call.inputs[layer]), strict=True
        ):
            assert_same(one, other)


def test_rotate_leaves_keys_as_they_are_in_a_layer_without_rotation() -> None:
    for family, still in (("smollm3", [1]), ("cohere2", [1]), ("llama", [])):
        backbone = Backbone(decoder(family))
        keys = torch.randn(TOKENS, backbone.kv_heads, backbone.head_dim)
        rotary = backbone.rotary(POSITIONS[:1], like(backbone))
        turned = [backbone.rotate(layer, keys, *(part[0] for part in rotary(layer))) for layer in range(tiny.LAYERS)]
        assert [layer for layer in range(tiny.LAYERS) if torch.equal(turned[layer], keys)] == still


@every_family
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def test_split_halves_says_where_rotation_in_place_gives_the_same_bits(family: str, dtype: torch.dtype) -> None:
    backbone = Backbone(decoder(family, dtype=dtype))
    left_out = {"cohere", "cohere2", "gpt_oss", "smollm3"} | ({"olmo2", "olmo3"} if dtype == torch.bfloat16 else set())
    assert backbone.split_halves == (family not in left_out)
    if not backbone.split_halves:
        return
    keys = torch.randn(50, backbone.kv_heads, backbone.head_dim, dtype=dtype)
    rows, (out, scratch) = torch.randperm(50)[:TOKENS], torch.empty_like(keys)[None, :TOKENS].repeat(2, 1, 1, 1)
    rotary = backbone.rotary(POSITIONS, like(backbone))
    for layer in range(tiny.LAYERS):
        cos, sin = (part[1] for part in rotary(layer))
        rotate_rows(out, keys, rows, cos, sin, scratch)
        assert torch.equal(out, backbone.rotate(layer, keys[rows], cos, sin))


@every_family
@torch.no_grad()
def test_a_backbone_that_is_pickled_or_copied_stands_on_its_own_decoder(family: str) -> None:
    backbone, hidden = Backbone(decoder(family)), torch.randn(1, 5, 32)
    rotary = backbone.rotary(POSITIONS[:1, :5], hidden)
    right = backbone.rotate(0, backbone.project(0, hidden)[0], *rotary(0))
    for again in (pickle.loads(pickle.dumps(backbone)), deepcopy(backbone)):
        for parameter in backbone.hf.parameters():
            parameter.zero_()
        assert again.config is again.hf.config
        assert torch.equal(again.rotate(0, again.project(0, hidden)[0], *rotary(0)), right)
        backbone = again


# Masks


def causal(window: int | None, hidden: int | None = None) -> Tensor:  # [B, 1, T, T] bool
    query, key = torch.arange(TOKENS)[:, None], torch.arange(TOKENS)
    seen = (key <= query) & (key > query - (window or TOKENS))
    if hidden is not None:
        seen &= (key != hidden) | (query == hidden)
    return seen.expand(len(TEXT), 1, -1, -1)


@every_attention
def test_masks_of_the_decoders_own_windows_give_its_logits(family: str, attention: str) -> None:
    hf = decoder(family, attention=attention, dtype=torch.float64)
    backbone = Backbone(hf)
    assert_same(stock(hf, attention_mask=backbone.masks_of(causal)).logits, stock(hf).logits)


@every_attention
def test_masks_of_reaches_every_layer_as_it_is(family: str, attention: str) -> None:
    hf = decoder(family, attention=attention, dtype=torch.float64)
    backbone = Backbone(hf)
    masks = backbone.masks_of(lambda window: causal(window, hidden=2))
    assert isinstance(masks, dict) == (backbone.layer_types is not None)
    call = stock(hf, attention_mask=masks)
    for layer, window in enumerate(backbone.windows):
        kind = None if backbone.layer_types is None else backbone.layer_types[layer]
        given = masks[str(kind)] if isinstance(masks, dict) else masks
        assert call.masks[layer].data_ptr() == given.data_ptr()
        seen = given if attention == "sdpa" else given == 0
        assert torch.equal(seen, causal(window, hidden=2))
    other = torch.where(torch.arange(TOKENS) == 2, (TEXT + 1) % tiny.VOCABULARY, TEXT)  # its third token is unseen
    for last, same in ((-1, True), (2, False)):
        difference = (stock(hf, other, attention_mask=masks).logits - call.logits)[:, last].abs().amax()
        assert bool(difference == 0) == same


def test_masks_of_serves_attention_that_shares_heads() -> None:
    hf = decoder("gemma3_text", dtype=torch.float64)
    right = stock(hf).logits
    share_heads(hf)
    assert hf.config._attn_implementation == SHARED_HEADS
    assert_same(stock(hf, attention_mask=Backbone(hf).masks_of(causal)).logits, right)


def test_windows_are_those_of_each_layer() -> None:
    for family in FAMILIES:
        changes = {"sliding_window": 9} if "sliding_window" in tiny.FAMILIES[family] else {}
        types = tiny.FAMILIES[family].get("layer_types", ["sliding_attention"] * tiny.LAYERS)
        backbone = Backbone(decoder(family, **changes))
        assert backbone.windows == [9 if changes and kind == "sliding_attention" else None for kind in types]
        assert backbone.sliding == bool(changes)


def test_a_window_that_the_configuration_switches_off_is_none() -> None:
    assert not Backbone(decoder("qwen2", sliding_window=9, use_sliding_window=False)).sliding
    assert not Backbone(decoder("mistral", sliding_window=None)).sliding
    assert not Backbone(decoder("llama", sliding_window=9)).sliding  # which the family does not know


def test_masks_of_an_attention_that_takes_none_is_refused() -> None:
    backbone = Backbone(decoder("mistral"))
    backbone.config._attn_implementation = "flash_attention_2"
    with pytest.raises(UnsupportedModelError, match=r"flash_attention_2.*attn_implementation='sdpa' or 'eager'"):
        backbone.masks_of(causal)
