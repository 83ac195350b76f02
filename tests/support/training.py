"""A random model small enough to train in a test, and how it is trained."""

from pathlib import Path
from typing import Any

import torch
from transformers import Qwen3Config, Qwen3ForCausalLM, TrainingArguments

from remanence import MemoryModel


def tiny_model(layers: int = 2, **settings: Any) -> MemoryModel:
    torch.manual_seed(0)
    config = Qwen3Config(
        vocab_size=64,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=True,
        pad_token_id=0,
        eos_token_id=1,
        bos_token_id=None,
    )
    return MemoryModel.attach(Qwen3ForCausalLM(config), **settings)


def arguments(output: Path, steps: int, every: int) -> TrainingArguments:
    """At one learning rate, with a log entry and a checkpoint after every so many steps."""
    return TrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
        use_cpu=True,
        lr_scheduler_type="constant",
        logging_steps=every,
        save_steps=every,
        report_to="none",
        remove_unused_columns=False,
        disable_tqdm=True,
    )
