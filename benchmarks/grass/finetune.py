r"""Fine-tuning SmolLM2-135M on real text: AdamW, LoRA, GaLore, APOLLO and Grass, each at its own best learning rate.

    remanence setup smollm2
    pip install galore-torch apollo-torch bitsandbytes
    python benchmarks/run.py grass_finetune --text PATH... --output runs/finetune

The same tokens and schedule for all. Learning rates are those of the linear layers; embeddings and norms learn at one
rate, the same for all methods, but LoRA's stay as they are. Every run is a process of its own, whose peak of resident
memory is measured; finished runs are kept in --output.
"""

import math
import resource
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from torch import nn

from grass.corpus import Corpus, read
from grass.methods import METHODS, TARGETS, Maker, Projecting, adamw, two_groups
from grass.quality import same_setup
from grass.search import Cell, figures_of, sweep
from grass.training import Setup, train
from remanence import MemoryModel
from remanence.checkpoints import bundled
from remanence.optim import GrassAdamW, grass_param_groups
from tables import Figures

REST = 2e-5  # the learning rate of embeddings and norms
FIRST = {"adamw": -4, "lora": 0, "galore": -2, "apollo": 1, "grass-subspace": -2, "grass-top": -2}
ABOUT = (
    "SmolLM2-135M, trained further on {tokens:,} tokens of real text, {steps} steps, the same for all; rank {rank}, of "
    "LoRA 16. Learning rates are those of linear layers, chosen on validation from powers of two; {seeds} seeds, of "
    "several the mean with one standard error."
)


@dataclass(frozen=True)
class FineTuning(Setup):
    """What is the same for all; the model is SmolLM2."""

    def model(self, vocabulary: int, seed: int) -> Any:
        torch.manual_seed(seed)
        return MemoryModel.from_pretrained(bundled("smollm2"), dtype=torch.float32).detach()


SETUP = FineTuning(30, 576, 1536, 9, rank=64, gap=25, steps=40, batch=4, length=128, held_out=8_192)


def in_two_groups(
    make: Callable[..., Any], settings: dict[str, Any], model: nn.Module, by: Projecting, lr: float
) -> Any:
    """By an optimizer that takes its settings with the group of linear layers."""
    rest, linear = two_groups(model, {name: by.rank if name == "rank" else value for name, value in settings.items()})
    return make([{**rest, "lr": REST}, linear], lr=lr)


def full(model: nn.Module, by: Projecting, lr: float) -> Any:
    return in_two_groups(partial(torch.optim.AdamW, weight_decay=0.0), {"lr": lr}, model, by, lr)


def galore(model: nn.Module, by: Projecting, lr: float) -> Any:
    from galore_torch import GaLoreAdamW

    settings = {"rank": 0, "update_proj_gap": by.gap, "scale": 1.0, "proj_type": "std"}
    return in_two_groups(partial(GaLoreAdamW, no_deprecation_warning=True), settings, model, by, lr)


def apollo(model: nn.Module, by: Projecting, lr: float) -> Any:
    from apollo_torch import APOLLOAdamW

    settings = {"rank": 0, "update_proj_gap": by.gap, "scale": 1.0, "proj_type": "std"}
    settings |= {"proj": "random", "scale_type": "channel"}
    return in_two_groups(APOLLOAdamW, settings, model, by, lr)


def grass(model: nn.Module, by: Projecting, lr: float, **settings: Any) -> Any:
    linear, rest = grass_param_groups(model, by.rank, scale=1.0, target_modules=TARGETS, seed=by.seed, **settings)
    return GrassAdamW([linear, {**rest, "lr": REST}], lr=lr)


def lora(model: nn.Module, by: Projecting, lr: float) -> Any:
    """r 16 on all linear layers, as people use it."""
    from peft import LoraConfig, inject_adapter_in_model

    words = "|".join(TARGETS)
    inject_adapter_in_model(LoraConfig(r=16, lora_alpha=32, target_modules=rf".*({words})\.\w+_proj"), model)
    return adamw(model, by, lr)


FINE: dict[str, Maker] = {
    "adamw": full,
    "lora": lora,
    "galore": galore,
    "apollo": apollo,
    "grass-subspace": grass,
    "grass-top": partial(grass, selection="top", update_proj_gap=SETUP.gap),
}


@dataclass(frozen=True)
class Settings:
    output: Path = field(metadata={"help": "folder of finished runs, and of the tokens"})
    text: list[Path] = field(
        default_factory=list, metadata={"help": "WikiExtractor or .jsonl files, or folders; none once there are tokens"}
    )
    steps: int = SETUP.steps
    seeds: int = 3
    methods: list[str] = field(default_factory=lambda: list(FINE))
    minutes: float = field(default=math.inf, metadata={"help": "begin no run later than this"})
    threads: int = 1


def measure(on: Settings) -> Figures:
    setup = replace(SETUP, steps=on.steps, threads=on.threads)
    same_setup(setup, on.output)
    corpus_of(on.output, setup, on.text)
    cells = sweep(on.methods, on.seeds, partial(apart, setup=setup, folder=on.output), on.output, FIRST, on.minutes)
    about = {**asdict(setup), "tokens": setup.tokens, "seeds": on.seeds, "rest_lr": REST}
    return {**figures_of(cells, FINE, on.seeds, about), "note": ABOUT.format(**about)}


def corpus_of(folder: Path, setup: Setup, text: list[Path]) -> Corpus:
    file = folder / "tokens.pt"
    if not file.is_file():
        made = read(text, setup.tokens, setup.held_out, MemoryModel.from_pretrained(bundled("smollm2")).tokenizer)
        torch.save(vars(made), file)
    return Corpus(**torch.load(file, weights_only=True))


def apart(cell: Cell, setup: Setup, folder: Path) -> Figures:
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as own:
        return own.submit(run, cell, setup, folder).result()


def run(cell: Cell, setup: Setup, folder: Path) -> Figures:
    METHODS[cell.method] = FINE[cell.method]
    figures = train(setup, cell.method, cell.lr, cell.seed, corpus_of(folder, setup, []))
    return {**figures, "peak_resident_bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}
