"""Do flash-attention, sdpa and eager attention agree when they read a memory?

    python benchmarks/gpu/attention.py --json benchmarks/gpu/attention.json

The same memory and the same prompt, on a random Llama in bfloat16, against the same weights in float32 with eager
attention. Two implementations agree if each is as far from float32 as the other: what is left is rounding.
Flash-attention is left out where `flash-attn` is not installed.
"""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor
from transformers.utils import is_flash_attn_2_available

sys.path.insert(0, str(Path(__file__).parent.parent))

from gpu.common import device_of, parser, write_down
from remanence import MemoryModel
from shapes import PROMPT, SHAPES, Shape
from tables import Figures


def logits(on: Shape, implementation: str, dtype: torch.dtype) -> Tensor:  # [tokens, vocabulary]
    """Of a prompt behind a full pool, whose slots are the same in every dtype."""
    decoder = on.decoder().to(dtype)
    decoder.set_attn_implementation(implementation)
    model = MemoryModel.attach(decoder, slots=on.slots, slots_per_write=on.slots_per_write)
    memory = model.memory_from_slots(on.random(on.layers, on.slots, on.size).to(dtype))
    with torch.no_grad():
        return model.read(memory, on.prompt()).logits[0].float()


def agreement(on: Shape) -> Figures:
    truth = logits(on, "eager", torch.float32)
    implementations = ["eager", "sdpa", *(["flash_attention_2"] if is_flash_attn_2_available() else [])]
    made = {name: logits(on, name, torch.bfloat16) for name in implementations}
    rows = []
    for name, out in made.items():
        apart, eager = (out - truth).abs(), (out - made["eager"]).abs()
        columns = ("mean difference from float32", "largest", "largest from eager")
        values = (float(apart.mean()), float(apart.max()), float(eager.max()))
        cells = {column: f"{value:.2e}" for column, value in zip(columns, values, strict=True)}
        rows.append({"name": name, "cells": cells})
    note = (
        f"Logits of one prompt of {PROMPT} tokens behind a full pool, in bfloat16, against the same weights in "
        f"float32; the largest logit is {float(truth.abs().max()):.2f}. One run, in which nothing is drawn."
    )
    return {"largest_logit": float(truth.abs().max()), "rows": rows, "note": note}


def main(arguments: list[str] | None = None) -> None:
    options = parser(__doc__).parse_args(arguments)
    device = device_of(options)
    on = replace(SHAPES["tiny" if options.smoke else "small"], device=device, dtype=torch.bfloat16)
    write_down(agreement(on), device, options.json)


if __name__ == "__main__":
    main()
