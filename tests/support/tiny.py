"""Tiny random models of every family, and ids to feed them."""

from copy import deepcopy
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING

from remanence import MemoryModel

VOCABULARY = 61
LAYERS = 3
SLOTS, K = 24, 6

SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": 4,
    "initializer_range": 0.2,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
WINDOW = 12
_WINDOWED = {"sliding_window": WINDOW, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
# What sets a family apart: head sizes of their own, biases, partial rotation, windows on some layers, experts.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "attention_bias": True},
    "mistral": {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": WINDOW},
    "qwen2": {"num_key_value_heads": 1},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16, "use_sliding_window": True, **_WINDOWED},
    "gemma2": {"num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16, **_WINDOWED},
    "gemma3_text": {"num_key_value_heads": 2, "head_dim": 16, "query_pre_attn_scalar": 16, **_WINDOWED},
    "phi3": {"num_key_value_heads": 2, "partial_rotary_factor": 0.5},
    "olmo2": {"num_key_value_heads": 2},
    "olmo3": {
        "num_key_value_heads": 2,
        **_WINDOWED,
        "rope_parameters": {
            "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0},
        },
    },
    "gpt_neox": {"rotary_pct": 0.5, "attention_bias": True},
    "gpt_oss": {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
        **_WINDOWED,
        "rope_parameters": {
            "rope_type": "yarn",
            "rope_theta": 10000.0,
            "factor": 4.0,
            "original_max_position_embeddings": 64,
            "attention_factor": 1.0,
            "truncate": False,
        },
    },
    "qwen3_moe": {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "num_experts": 4,
        "num_experts_per_tok": 2,
        "moe_intermediate_size": 24,
        "use_sliding_window": True,
        "sliding_window": WINDOW,
    },
    "mixtral": {
        "num_key_value_heads": 2,
        "num_local_experts": 3,
        "num_experts_per_tok": 2,
        "sliding_window": WINDOW,
    },
    "granite": {
        "num_key_value_heads": 2,
        "embedding_multiplier": 1.5,
        "attention_multiplier": 0.25,
        "residual_multiplier": 0.5,
        "logits_scaling": 0.5,
    },
    "cohere": {"num_key_value_heads": 2, "use_qk_norm": True, "logit_scale": 1.0},
    "cohere2": {"num_key_value_heads": 2, "logit_scale": 1.0, **_WINDOWED},
    "starcoder2": {"num_key_value_heads": 2, "sliding_window": WINDOW},
    "smollm3": {
        "num_key_value_heads": 2,
        "no_rope_layers": [1, 0, 1],
        "use_sliding_window": True,
        "sliding_window": WINDOW,
        "layer_types": ["full_attention", "sliding_attention", "full_attention"],
    },
}


def attentions(family: str) -> list[str]:
    """The implementations that memory works with and the family has."""
    kind = MODEL_FOR_CAUSAL_LM_MAPPING[CONFIG_MAPPING[family]]
    return ["sdpa", "eager"] if kind._supports_sdpa else ["eager"]


def decoder(
    family: str = "llama", *, attention: str | None = None, dtype: torch.dtype = torch.float32, **changes: Any
) -> PreTrainedModel:
    """A decoder whose norms and biases are random too, so that leaving one out shows.

    `attention` None: sdpa where the family has it.
    """
    torch.manual_seed(0)
    settings = {**SIZES, **FAMILIES.get(family, {}), **changes}
    config = CONFIG_MAPPING[family](**deepcopy(settings))  # which keep what they are given, and change it
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention or attentions(family)[0])
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    assert isinstance(model, PreTrainedModel)
    if model._can_set_experts_implementation():
        model.set_experts_implementation("eager")  # the only one that takes float64
    return model.to(dtype).eval()


def with_memory(hf: PreTrainedModel | None = None, *, slots: int = SLOTS, k: int = K, **settings: Any) -> MemoryModel:
    """A learned writer, random as one that was trained."""
    model = MemoryModel.attach(decoder() if hf is None else hf, slots=slots, slots_per_write=k, **settings)
    torch.manual_seed(1)
    assert model.new_memory_positional_emb is not None
    torch.nn.init.normal_(model.new_memory_positional_emb, std=0.3)
    return model


def with_text(hf: PreTrainedModel | None = None, tokenizer: Any = None, **settings: Any) -> MemoryModel:
    """A text writer, which reads whatever it was told unless `min_score` says otherwise."""
    return MemoryModel.attach(decoder() if hf is None else hf, tokenizer, **{"min_score": None, **settings})


def tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level pairs learned from one sentence: 300 tokens, for a decoder with `vocab_size=300`."""
    bytes_to_pairs = Tokenizer(models.BPE())
    bytes_to_pairs.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bytes_to_pairs.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<pad>", "<s>", "</s>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    bytes_to_pairs.train_from_iterator(["Alice Brown was born in Oslo, and works as a baker in Bergen."] * 3, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=bytes_to_pairs, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def ids(count: int, seed: int = 0) -> Tensor:  # [count], none of them special
    return torch.randint(3, VOCABULARY, (count,), generator=torch.Generator().manual_seed(seed))
