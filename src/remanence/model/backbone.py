"""What memory needs to know of each model family, and a decoder seen as just that.

A slot in hidden form becomes keys and values exactly as a token of the text does: the layer's input norm, the key and
value projections, and whatever the family puts behind them. Rotation is left out: a slot's position is its rank, which
changes with every write. It is done last, by the family's own functions.

To add a family: give its `model_type` an entry in `FAMILIES`, and its sizes one in `tests/support/tiny.py`, from which
`tests/unit/model/test_backbone.py` takes what it compares with the stock decoder. If its attention makes keys and
values in a way none of the functions below covers, write one more: what attention sees `[..., d]` to keys and values
`[..., H, D]`, unrotated.
"""

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask

from remanence.errors import UnsupportedModelError
from remanence.kernels.gqa_sdpa import SHARED_HEADS
from remanence.model.validation import require_supported, rotation_of, unwrapped

Projection = Callable[[Any, Tensor], tuple[Tensor, Tensor]]
Angles = tuple[Tensor, Tensor]  # cosines and sines, [B, S, R] each


def _heads(projected: Tensor, size: int) -> Tensor:
    return projected.unflatten(-1, (-1, size))


def _separate(attention: Any, normed: Tensor) -> tuple[Tensor, Tensor]:
    size = attention.head_dim
    return _heads(attention.k_proj(normed), size), _heads(attention.v_proj(normed), size)


def _separate_head_norm(attention: Any, normed: Tensor) -> tuple[Tensor, Tensor]:
    keys, values = _separate(attention, normed)
    return attention.k_norm(keys), values


def _separate_head_norm_if_asked(attention: Any, normed: Tensor) -> tuple[Tensor, Tensor]:
    return (_separate_head_norm if attention.use_qk_norm else _separate)(attention, normed)


def _separate_full_norm(attention: Any, normed: Tensor) -> tuple[Tensor, Tensor]:
    size = attention.head_dim
    return _heads(attention.k_norm(attention.k_proj(normed)), size), _heads(attention.v_proj(normed), size)


def _fused(attention: Any, normed: Tensor) -> tuple[Tensor, Tensor]:
    size, kv = attention.head_dim, attention.num_key_value_heads * attention.head_dim
    keys, values = attention.qkv_proj(normed)[..., -2 * kv :].split(kv, dim=-1)
    return _heads(keys, size), _heads(values, size)


def _fused_per_head(attention: Any, normed: Tensor) -> tuple[Tensor, Tensor]:
    _, keys, values = _heads(attention.query_key_value(normed), 3 * attention.head_size).chunk(3, dim=-1)
    return keys, values


def _always(attention: Any) -> bool:
    return True


def _with_window(attention: Any) -> bool:
    return attention.sliding_window is not None


def _if_asked(attention: Any) -> bool:
    return bool(attention.use_rope)


@dataclass(frozen=True)
class Family:
    """Where a family keeps what memory needs, and how its layers differ among themselves.

    Attributes:
        project: the attention module and what it sees `[..., d]` to keys and values `[..., H, D]`, unrotated.
        norm: a layer's norm in front of its attention; None where attention sees the layer's raw input (post-norm).
        attention: a layer's attention module.
        cache: what layers call the K/V cache.
        windows: which layers see `config.sliding_window` tokens of the text only: none, every one, or those whose type
            in `config.layer_types` is "sliding_attention". Layers of types take a mask for each type, others one mask.
        rotary_by_type: each layer type has a rotation of its own.
        rotates: whether an attention module rotates at all.
        halves: the first R features of a key rotate, each with the one R/2 further on; cosines and sines have R.
        float32: cosines and sines are float32 whatever the dtype of keys, and so are their products.
    """

    project: Projection = _separate
    norm: str | None = "input_layernorm"
    attention: str = "self_attn"
    cache: str = "past_key_values"
    windows: Literal["none", "every", "by type"] = "none"
    rotary_by_type: bool = False
    rotates: Callable[[Any], bool] = _always
    halves: bool = True
    float32: bool = False


FAMILIES: dict[str, Family] = {
    "cohere": Family(_separate_head_norm_if_asked, halves=False),
    "cohere2": Family(windows="by type", rotates=_with_window, halves=False),
    "gemma2": Family(windows="by type"),
    "gemma3_text": Family(_separate_head_norm, windows="by type", rotary_by_type=True),
    "gpt_neox": Family(_fused_per_head, attention="attention", cache="layer_past"),
    "gpt_oss": Family(windows="by type", halves=False),
    "granite": Family(),
    "llama": Family(),
    "mistral": Family(windows="every"),
    "mixtral": Family(windows="every"),
    "olmo2": Family(_separate_full_norm, norm=None, float32=True),
    "olmo3": Family(_separate_full_norm, norm=None, windows="by type", rotary_by_type=True, float32=True),
    "phi3": Family(_fused, windows="every"),
    "qwen2": Family(windows="by type"),
    "qwen3": Family(_separate_head_norm, windows="by type"),
    "qwen3_moe": Family(_separate_head_norm, windows="every"),
    "smollm3": Family(windows="by type", rotates=_if_asked),
    "starcoder2": Family(windows="every"),
}


class Backbone:
    """A transformers decoder with its head, seen as what memory needs of it.

    Attributes:
        hf: the model; of a `PeftModel`, the one inside, with its adapters.
        family: its entry in `FAMILIES`; config: its configuration.
    """

    def __init__(self, model: Any) -> None:
        """
        Raises:
            UnsupportedModelError: the family, a setting, or where the weights are is not supported; says which.
        """
        hf = unwrapped(model)
        require_supported(hf, FAMILIES)
        self.hf: PreTrainedModel = hf
        self.family: Family = FAMILIES[hf.config.model_type]
        self.config = hf.config
        self._turn = rotation_of(self.attention(0), hf.config.model_type)

    @property
    def decoder(self) -> Any:
        return self.hf.base_model

    @property
    def layers(self) -> nn.ModuleList:
        layers = self.decoder.layers
        assert isinstance(layers, nn.ModuleList)
        return layers

    def attention(self, layer: int) -> Any:
        return getattr(self.layers[layer], self.family.attention)

    @property
    def device(self) -> torch.device:
        return self.hf.get_input_embeddings().weight.device

    @property
    def dtype(self) -> torch.dtype:
        """What the decoder computes in, whatever its weights are stored as."""
        embeddings: torch.dtype = self.hf.get_input_embeddings().weight.dtype
        if embeddings in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
            return embeddings
        computed: torch.dtype = self.config.dtype
        return computed

    @property
    def head_dim(self) -> int:
        size = getattr(self.config, "head_dim", None) or self.config.hidden_size // self.config.num_attention_heads
        return int(size)

    @property
    def kv_heads(self) -> int:
        return int(getattr(self.config, "num_key_value_heads", None) or self.config.num_attention_heads)

    @property
    def layer_types(self) -> list[str] | None:
        """Each layer's type, where the decoder takes a mask for each type; None where it takes one for all layers."""
        return self.config.layer_types[: len(self.layers)] if self.family.windows == "by type" else None

    @property
    def windows(self) -> list[int | None]:
        """For each layer how many tokens a query sees, itself among them; None: all."""
        window = None if self.family.windows == "none" else getattr(self.config, "sliding_window", None)
        types = self.layer_types or ["sliding_attention"] * len(self.layers)
        return [window if kind == "sliding_attention" else None for kind in types]

    @property
    def sliding(self) -> bool:
        """Whether some layer sees a window of the text only."""
        return any(window is not None for window in self.windows)

    def masks_of(self, by_window: Callable[[int | None], Tensor]) -> Tensor | dict[str, Tensor]:
        """An `attention_mask` that the decoder passes on to its layers as it is.

        Args:
            by_window: bool `[B, 1, T, S]` for the layers that see so many tokens (None: all): True where the query sees
                the key. Called once for each kind of layer.

        Returns:
            `[B, 1, T, S]`, one for all layers or one for each layer type: bool where attention is "sdpa" or takes the
            same masks, else numbers to add to the scores, in the decoder's dtype.

        Raises:
            UnsupportedModelError: the attention implementation takes no such mask.
        """
        implementation = self.config._attn_implementation
        as_bool = ALL_MASK_ATTENTION_FUNCTIONS.get(implementation) is sdpa_mask
        if not as_bool and implementation not in (SHARED_HEADS, "eager"):
            raise UnsupportedModelError(
                f"attention {implementation!r} takes no mask that says which query sees which key; use "
                "attn_implementation='sdpa' or 'eager' with this model"
            )

        def prepared(window: int | None) -> Tensor:
            seen = by_window(window)
            if as_bool:
                return seen
            return torch.zeros_like(seen, dtype=self.dtype).masked_fill_(~seen, torch.finfo(self.dtype).min)

        types, windows = self.layer_types, self.windows
        if types is None:
            return prepared(windows[0])
        return {kind: prepared(windows[types.index(kind)]) for kind in sorted(set(types))}

    def normed(self, layer: int, hidden: Tensor) -> Tensor:  # [..., d]
        """What a layer's attention sees of the layer's input."""
        norm = self.family.norm
        normed: Tensor = hidden if norm is None else getattr(self.layers[layer], norm)(hidden)
        return normed

    def project(self, layer: int, hidden: Tensor) -> tuple[Tensor, Tensor]:  # [..., d] -> 2 x [..., H, D]
        """Keys (unrotated) and values that a token with this layer input has."""
        return self.project_normed(layer, self.normed(layer, hidden))

    def project_normed(self, layer: int, normed: Tensor) -> tuple[Tensor, Tensor]:  # [..., d] -> 2 x [..., H, D]
        """Keys (unrotated) and values of what a layer's attention sees."""
        return self.family.project(self.attention(layer), normed)

    @property
    def length_dependent(self) -> bool:
        """Whether the largest position of a call decides how the others rotate (dynamic NTK, longrope)."""
        parameters: Mapping[str, Any] = getattr(self.config, "rope_parameters", None) or {}
        by_type = [each for each in parameters.values() if isinstance(each, Mapping)]
        kinds = [each.get("rope_type", "default") for each in by_type or [parameters]]
        return any(kind == "longrope" or "dynamic" in kind for kind in kinds)

    @property
    def positions(self) -> int | None:
        """Positions that the decoder can read, stretched rotations counted; None: it does not say."""
        return positions_of(self.config)

    def rotary(self, positions: Tensor, like: Tensor, longest: int | None = None) -> Callable[[int], Angles]:
        """Cosines and sines for a layer, as the decoder's own `rotary_emb` makes them; once for each kind of layer.

        Args:
            positions: `[B, S]`; like: any tensor of the decoder's dtype and device.
            longest: the largest position of the call for which they are made, at least that of `positions`; None: that
                of `positions`. It matters where `length_dependent` says so. Dynamic NTK also remembers the longest call
                of the decoder so far, as the decoder itself does; what is asked here is no call.

        Returns:
            A function from a layer to cosines and sines `[B, S, R]` each, in the dtype of `like` (in float32 where the
            family leaves them so).
        """
        module, depends = self.decoder.rotary_emb, self.length_dependent
        if depends:
            module = _apart(module)
            if longest is not None:
                positions = torch.cat([positions, positions.new_full((len(positions), 1), longest)], dim=1)
        known: dict[str | None, Angles] = {}

        def of_layer(layer: int) -> Angles:
            kind = self.layer_types[layer] if self.family.rotary_by_type and self.layer_types else None
            if kind not in known:
                cos, sin = module(like, positions, *([] if kind is None else [kind]))
                known[kind] = (cos[:, :-1], sin[:, :-1]) if depends and longest is not None else (cos, sin)
            return known[kind]

        return of_layer

    def rotate(self, layer: int, keys: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Keys turned by the family's own function; as they are in a layer without rotation.

        Args:
            keys: `[..., S, H, D]`; cos, sin: `[..., S, R]`, of this layer.
        """
        if not self._rotates(layer):
            return keys
        _, turned = self._turn(keys[..., :1, :], keys, cos, sin, unsqueeze_dim=-2)
        rotated: Tensor = turned.to(keys.dtype)
        return rotated

    @property
    def split_halves(self) -> bool:
        """Whether `rotation.rotate_rows`, which makes no temporaries, gives the bits of `rotate` in every layer."""
        whole = not self.family.float32 or self.dtype in (torch.float32, torch.float64)
        return self.family.halves and whole and all(map(self._rotates, range(len(self.layers))))

    def _rotates(self, layer: int) -> bool:
        return self.family.rotates(self.attention(layer))


def _apart(module: nn.Module) -> nn.Module:
    """A copy of a rotary module that can choose other frequencies without a trace in the decoder."""
    twin = copy.copy(module)
    twin._buffers = {name: None if buffer is None else buffer.clone() for name, buffer in module._buffers.items()}
    return twin


def positions_of(config: Any) -> int | None:
    """Positions that a decoder can read, stretched rotations counted; None: its config does not say."""
    most: int | None = getattr(config, "max_position_embeddings", None)
    if most is None:
        return None
    parameters = getattr(config, "rope_parameters", None) or {}
    for each in (parameters, *parameters.values()):
        if isinstance(each, dict) and each.get("factor"):
            stretched = each.get("rope_type") in ("linear", "dynamic", "longrope")
            first = most if stretched else each.get("original_max_position_embeddings") or 0
            most = max(most, int(first * float(each["factor"])))
    return most
