"""A learned writer for SmolLM2-135M-Instruct: K slots for a chunk of 2K or 4K tokens, written and read by twin LoRA.

    remanence train smollm2_writer -- base=path/to/smollm2 data=path/to/questions held_out=path/to/dev.json

First passages are recited from their slots alone, then also asked about.
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch.optim import AdamW
from transformers import AutoModelForCausalLM, AutoTokenizer

from remanence import MemoryModel
from remanence.config import LoraSettings, MemoryConfig
from remanence.model.lora import adapter_parameters
from remanence.recipes.smollm2 import questions_of
from remanence.training.curriculum import Curriculum
from remanence.training.model_card import finish
from remanence.training.recipes import training_arguments
from remanence.training.tasks.compression import CompressionSettings, CompressionTask
from remanence.training.trainer import MemoryTrainer, stopping_after

SLOTS_PER_WRITE = 32
POOL = 32  # writes
LORA = LoraSettings(r=16, lora_alpha=32.0)


def train(
    output: Path,
    *,
    resume: bool = False,
    minutes: float | None = None,
    base: str,
    data: str,
    held_out: str = "",
    ratios: Sequence[int] = (2, 4),
    steps: int = 1500,
    reciting: float = 0.4,
    lr: float = 5e-4,
    passages: int = 12,
    log_to: str = "none",
) -> Path | None:
    """Train it; returns the folder of the model, or None while there are steps left to take.

    Args:
        data, held_out: as the reader takes them.
        ratios: tokens of a chunk for each slot; each step draws one, and the model takes the highest.
        reciting: share of the steps that only recite.
        passages: written in a step.
    """
    decoder = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    chunks = [ratio * SLOTS_PER_WRITE for ratio in ratios]
    config = MemoryConfig(
        writer="learned",
        slots=POOL * SLOTS_PER_WRITE,
        slots_per_write=SLOTS_PER_WRITE,
        chunk=max(chunks),
        lora=LORA,
    )
    model = MemoryModel.attach(decoder, AutoTokenizer.from_pretrained(base), config)
    questions, _ = questions_of(data, held_out)
    task = CompressionTask(model, questions, CompressionSettings(chunks, passages=passages))
    adapters = (parameter for _, parameter in adapter_parameters(model))
    trained = {id(p) for p in (model.bos_embedding, model.new_memory_positional_emb, *adapters)}
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in trained)
    optimizer = AdamW([p for p in model.parameters() if p.requires_grad], lr=lr, betas=(0.9, 0.98), weight_decay=0.0)
    model.hf.set_attn_implementation("sdpa_float32")
    trainer = MemoryTrainer(
        model,
        through="all",
        text_weight=1.0,
        args=training_arguments(
            output, steps=steps, warmup=50, decay=steps // 3, save_steps=100, log_steps=25, log_to=log_to
        ),
        curriculum=Curriculum(
            lambda step, _: task.batch(step, recite=step < reciting * steps), levels=1, steps=steps, threshold=()
        ),
        optimizers=(optimizer, None),
        callbacks=stopping_after(minutes),
    )
    if not trainer.run(resume=resume):
        return None
    model.hf.set_attn_implementation("sdpa")
    settings = {"ratios": list(ratios), "lr": lr}
    finish(trainer, output / "model", recipe="smollm2_writer", base=base, data=[data], settings=settings)
    return output / "model"
