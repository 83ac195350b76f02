"""A random model small enough to train in a test."""

from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM

from remanence import MemoryModel


def tiny_model(**settings: Any) -> MemoryModel:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    return MemoryModel.attach(Qwen3ForCausalLM(config), **settings)
