"""Tiny random models of every family, and ids to feed them."""

from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.models.auto import CONFIG_MAPPING

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
# What sets a family apart: head sizes of their own, biases, partial rotation, windows on some layers.
FAMILIES: dict[str, dict[str, Any]] = {
    "llama": {"num_key_value_heads": 2, "attention_bias": True},
    "mistral": {"num_key_value_heads": 2, "head_dim": 16, "sliding_window": 128},
    "qwen2": {"num_key_value_heads": 1},
    "qwen3": {"num_key_value_heads": 2, "head_dim": 16},
    "gemma3_text": {
        "num_key_value_heads": 2,
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
    },
    "phi3": {"num_key_value_heads": 2, "partial_rotary_factor": 0.5},
    "olmo2": {"num_key_value_heads": 2},
    "gpt_neox": {"rotary_pct": 0.5, "attention_bias": True},
}


def decoder(
    family: str = "llama", *, attention: str = "sdpa", dtype: torch.dtype = torch.float32, **changes: Any
) -> PreTrainedModel:
    """A decoder whose norms and biases are random too, so that leaving one out shows."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](**{**SIZES, **FAMILIES.get(family, {}), **changes})
    model = AutoModelForCausalLM.from_config(config, attn_implementation=attention)
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.2 * torch.randn_like(parameter)
    assert isinstance(model, PreTrainedModel)
    return model.to(dtype).eval()


def with_memory(hf: PreTrainedModel | None = None, *, slots: int = SLOTS, k: int = K, **settings: Any) -> MemoryModel:
    model = MemoryModel.attach(decoder() if hf is None else hf, slots=slots, slots_per_write=k, **settings)
    torch.manual_seed(1)
    torch.nn.init.normal_(model.new_memory_positional_emb, std=0.3)
    return model


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
