"""Where each model family keeps its norms and projections.

A slot in hidden form becomes keys and values exactly as a token of the text does: the layer's input norm, the key and
value projections, and whatever the family puts behind them. Rotation is left out: a slot's position is its rank.

To add a family: give its `model_type` an entry in `FAMILIES`, and a row in `tests/unit/model/test_families.py`. If its
attention makes keys and values in a way none of the functions below covers, write one more: normed hidden states
`[..., d]` to keys and values `[..., H, D]`, unrotated.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from remanence.errors import UnsupportedModelError

Projection = Callable[[Any, Tensor], tuple[Tensor, Tensor]]


def _heads(projected: Tensor, size: int) -> Tensor:
    return projected.unflatten(-1, (-1, size))


def _separate(attention: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    size = attention.head_dim
    return _heads(attention.k_proj(hidden), size), _heads(attention.v_proj(hidden), size)


def _separate_head_norm(attention: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    keys, values = _separate(attention, hidden)
    return attention.k_norm(keys), values


def _separate_full_norm(attention: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    size = attention.head_dim
    return _heads(attention.k_norm(attention.k_proj(hidden)), size), _heads(attention.v_proj(hidden), size)


def _fused(attention: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    size, kv = attention.head_dim, attention.num_key_value_heads * attention.head_dim
    keys, values = attention.qkv_proj(hidden)[..., -2 * kv :].split(kv, dim=-1)
    return _heads(keys, size), _heads(values, size)


def _fused_per_head(attention: Any, hidden: Tensor) -> tuple[Tensor, Tensor]:
    _, keys, values = _heads(attention.query_key_value(hidden), 3 * attention.head_size).chunk(3, dim=-1)
    return keys, values


@dataclass(frozen=True)
class Family:
    """`norm` is None where a layer projects its raw input (post-norm); `cache` is its name for the K/V cache."""

    project: Projection
    norm: str | None = "input_layernorm"
    attention: str = "self_attn"
    cache: str = "past_key_values"


FAMILIES: dict[str, Family] = {
    "llama": Family(_separate),
    "mistral": Family(_separate),
    "qwen2": Family(_separate),
    "qwen3": Family(_separate_head_norm),
    "gemma3_text": Family(_separate_head_norm),
    "phi3": Family(_fused),
    "olmo2": Family(_separate_full_norm, norm=None),
    "gpt_neox": Family(_fused_per_head, attention="attention", cache="layer_past"),
}


class Backbone:
    """A transformers decoder, seen as what memory needs of it."""

    def __init__(self, hf: PreTrainedModel) -> None:
        family = FAMILIES.get(hf.config.model_type)
        if family is None:
            raise UnsupportedModelError(
                f"model family {hf.config.model_type!r} ({type(hf).__name__}) is not supported; supported: "
                f"{', '.join(sorted(FAMILIES))}. Adding one takes an entry in remanence/model/families.py that says "
                "where its layers keep their norm and their key and value projections, and a row in its test"
            )
        self.hf, self.family, self.config = hf, family, hf.config
        if getattr(self.config, "use_bidirectional_attention", False):
            raise UnsupportedModelError("bidirectional attention leaves no past; set use_bidirectional_attention=False")

    @property
    def decoder(self) -> Any:
        return self.hf.base_model

    @property
    def layers(self) -> nn.ModuleList:
        layers = self.decoder.layers
        assert isinstance(layers, nn.ModuleList)
        return layers

    @property
    def device(self) -> torch.device:
        return self.hf.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.hf.get_input_embeddings().weight.dtype

    @property
    def head_dim(self) -> int:
        size = getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads
        return int(size)

    @property
    def kv_heads(self) -> int:
        return int(getattr(self.config, "num_key_value_heads", None) or self.config.num_attention_heads)

    @property
    def sliding(self) -> bool:
        """Whether some layer sees a window of the text only."""
        if getattr(self.config, "sliding_window", None) is None:
            return False
        types = getattr(self.config, "layer_types", None)
        return types is None or "sliding_attention" in types

    def project(self, layer: int, hidden: Tensor) -> tuple[Tensor, Tensor]:  # [..., d] -> 2 x [..., H, D]
        """Keys (unrotated) and values that a token with this layer input would have."""
        return self.family.project(getattr(self.layers[layer], self.family.attention), self.normed(layer, hidden))

    def normed(self, layer: int, hidden: Tensor) -> Tensor:  # [..., d]
        """What a layer's attention sees of its input."""
        norm = self.family.norm
        normed: Tensor = hidden if norm is None else getattr(self.layers[layer], norm)(hidden)
        return normed

    def rotary(self, positions: Tensor, like: Tensor) -> Callable[[int], tuple[Tensor, Tensor]]:  # positions [B, S]
        """Cosines and sines `[B, S, R]` for a layer, in the dtype of `like`; computed once per kind of layer."""
        types = getattr(self.config, "layer_types", None) if self.config.model_type == "gemma3_text" else None
        known: dict[str | None, tuple[Tensor, Tensor]] = {}

        def of_layer(layer: int) -> tuple[Tensor, Tensor]:
            kind = None if types is None else types[layer]
            if kind not in known:
                known[kind] = self.decoder.rotary_emb(like, positions, *([] if kind is None else [kind]))
            return known[kind]

        return of_layer
