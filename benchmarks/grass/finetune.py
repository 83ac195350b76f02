r"""Fine-tuning SmolLM2-135M on real text: AdamW, LoRA, GaLore, APOLLO and Grass, each at its own best learning rate.

    remanence setup smollm2
    pip install galore-torch apollo-torch bitsandbytes
    python benchmarks/run.py grass_finetune --text PATH... --output runs/finetune

The same tokens and schedule for all. Learning rates are those of the linear layers; embeddings and norms learn at one
rate, the same for all methods, but LoRA's stay as they are. Every run is a process of its own, whose peak of resident
memory is measured; finished runs are kept in --output.
"""

from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import torch

from grass import quality
from grass.methods import Maker, adamw_scaled, apollo, galore, grass, lora
from grass.search import Cell
from grass.training import Setup
from processes import apart, resident
from remanence import MemoryModel
from remanence.checkpoints import bundled
from tables import Figures

FIRST = {"adamw": -4, "lora": 0, "galore": -2, "apollo": 1, "grass-subspace": -2, "grass-top": -2}
ABOUT = (
    "SmolLM2-135M, trained further on {tokens:,} tokens of real text, {steps} steps, the same for all; rank {rank}, of "
    "LoRA 16. Learning rates are those of linear layers, chosen on validation from powers of two; {seeds} seeds, of "
    "several the mean with one standard error."
)
FINE: dict[str, Maker] = {
    "adamw": adamw_scaled,
    "lora": partial(lora, r=16, alpha=32, alone=True),  # on all linear layers, as people use it
    "galore": partial(galore, scale=1.0),
    "apollo": apollo,
    "grass-subspace": partial(grass, scale=1.0, update_proj_gap=None),
    "grass-top": partial(grass, scale=1.0, selection="top"),
}


@dataclass(frozen=True)
class FineTuning(Setup):
    """What is the same for all; the model is SmolLM2."""

    methods: ClassVar[dict[str, Maker]] = FINE
    rest: ClassVar[float | None] = 2e-5

    def model(self, vocabulary: int, seed: int) -> Any:
        torch.manual_seed(seed)
        return MemoryModel.from_pretrained(bundled("smollm2"), dtype=torch.float32).detach()

    def tokenizer(self) -> Any:
        return MemoryModel.from_pretrained(bundled("smollm2")).tokenizer


SETUP = FineTuning(30, 576, 1536, 9, rank=64, gap=25, steps=40, batch=4, length=128, held_out=8_192)


@dataclass(frozen=True)
class Settings(quality.Settings):
    methods: list[str] = field(default_factory=lambda: list(FINE))


def measure(on: Settings) -> Figures:
    return quality.swept(on, SETUP, partial(apart, run), FIRST, ABOUT)


def run(cell: Cell, setup: Setup, folder: Path) -> Figures:
    return {**quality.run(cell, setup, folder), "peak_resident_bytes": resident("VmHWM")}
