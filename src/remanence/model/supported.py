"""Which models can have a memory. Others are refused before anything is done to them, with the cause and the remedy."""

import sys
from collections.abc import Callable, Collection
from typing import Any

from torch import nn
from transformers import PreTrainedModel

from remanence.errors import UnsupportedModelError

_LAYER_TYPES = {"full_attention", "sliding_attention"}


def unwrapped(model: Any) -> PreTrainedModel:
    """The model inside a `PeftModel`, with its adapters; any other model as it is.

    Raises:
        UnsupportedModelError: an adapter puts tokens of its own in front of the text, or this is no transformers model.
    """
    if hasattr(model, "get_base_model") and hasattr(model, "peft_config"):
        for name, config in model.peft_config.items():
            if getattr(config, "is_prompt_learning", False):
                raise UnsupportedModelError(
                    f"the adapter {name!r} ({config.peft_type}) puts tokens of its own in front of the text, where "
                    "memory stands; use an adapter that changes weights, such as LoRA, or the model without it"
                )
        model = model.get_base_model()
    if not isinstance(model, PreTrainedModel):
        raise UnsupportedModelError(
            f"expected a transformers model, got {type(model).__name__}; pass what AutoModelForCausalLM loads, and "
            "wrap or compile it afterwards"
        )
    return model


def require_supported(hf: PreTrainedModel, families: Collection[str]) -> None:
    """Raise `UnsupportedModelError` with the cause and the remedy if memory cannot be exact with this model."""
    config, name = hf.config, type(hf).__name__
    if getattr(config, "is_encoder_decoder", False):
        raise UnsupportedModelError(f"{name} is an encoder-decoder; memory needs a decoder-only language model")
    text = config.get_text_config()
    if text is not config:
        raise UnsupportedModelError(
            f"{name} wraps a language model (family {text.model_type!r}) in a multimodal one; pass the language model: "
            "with torch.device('meta'): lm = AutoModelForCausalLM.from_config(model.config.get_text_config()), then "
            "lm.model, lm.lm_head = model.model.language_model, model.lm_head"
        )
    if config.model_type not in families:
        raise UnsupportedModelError(
            f"model family {config.model_type!r} ({name}) is not supported; supported: {', '.join(sorted(families))}. "
            "Adding one takes an entry in remanence/model/backbone.py that says where its layers keep their norm and "
            "their key and value projections, and sizes in tests/support/tiny.py for tests/unit/model/test_backbone.py"
        )
    if hf.get_output_embeddings() is None:
        raise UnsupportedModelError(f"{name} has no language-model head; load the model with AutoModelForCausalLM")
    if getattr(config, "use_bidirectional_attention", False) or not getattr(config, "is_causal", True):
        raise UnsupportedModelError(
            "bidirectional attention leaves no past; set use_bidirectional_attention=False and is_causal=True"
        )
    if unknown := set(getattr(config, "layer_types", None) or ()) - _LAYER_TYPES:
        raise UnsupportedModelError(
            f"layers of type {', '.join(sorted(unknown))} in layer_types of {name} are not supported; memory knows "
            f"{', '.join(sorted(_LAYER_TYPES))}"
        )
    _require_weights(hf)


def _require_weights(hf: PreTrainedModel) -> None:
    devices = {str(parameter.device) for parameter in hf.parameters()}
    if "meta" in devices and any(hasattr(module, "_hf_hook") for module in hf.modules()):
        raise UnsupportedModelError(
            "part of the weights is offloaded to disk or host memory by device_map; load the model whole onto one "
            "device, such as device_map={'': 0}, in a smaller dtype or quantized if it does not fit"
        )
    if "meta" in devices:
        raise UnsupportedModelError(
            "the weights are on the meta device, so there are none; load them with from_pretrained first"
        )
    if len(devices) > 1:
        raise UnsupportedModelError(
            f"the weights lie on several devices ({', '.join(sorted(devices))}), and a memory on one; load the model "
            "onto one device, such as device_map={'': 0}"
        )


def rotation_of(attention: nn.Module, family: str) -> Callable[..., Any]:
    """The `apply_rotary_pos_emb` of the module that defines this attention.

    Raises:
        UnsupportedModelError: the attention is not the one of this family in transformers.
    """
    for kind in type(attention).__mro__:
        function: Callable[..., Any] | None = getattr(sys.modules.get(kind.__module__), "apply_rotary_pos_emb", None)
        if function is not None:
            return function
    raise UnsupportedModelError(
        f"{type(attention).__name__} is not the attention of family {family!r} in transformers; load the model without "
        "trust_remote_code, and without adapters that replace attention"
    )
