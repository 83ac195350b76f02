r"""Fine-tuning SmolLM2-135M on real text: AdamW, LoRA, GaLore, APOLLO and Grass, each at its own best learning rate.

    remanence setup smollm2
    pip install galore-torch apollo-torch bitsandbytes
    python benchmarks/grass/finetune.py --text PATH... --output runs/finetune --json benchmarks/grass/finetune.json

The same tokens and schedule for all. Learning rates are those of the linear layers; embeddings and norms learn at one
rate, the same for all methods, but LoRA's stay as they are. Each cell is a process of its own, whose peak of resident
memory is measured; finished cells are kept, and not run again.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent))

import torch
from torch import nn

from grass.corpus import Corpus, read
from grass.methods import METHODS, TARGETS, Maker, Projecting, adamw, two_groups
from grass.training import Setup, train
from measure import Figures, circumstances, write_down
from remanence import MemoryModel
from remanence.checkpoints import bundled
from remanence.kernels.onednn import use_onednn
from remanence.optim import GrassAdamW, grass_param_groups

REST = 2e-5  # the learning rate of embeddings and norms
RATES = {  # of linear layers, tried in this order
    "adamw": (1e-4, 5e-5, 2e-4),
    "lora": (1e-3, 5e-4, 2e-3),
    "galore": (2e-4, 1e-4, 4e-4),
    "apollo": (2e-3, 1e-3, 4e-3),
    "grass": (2e-4, 1e-4, 4e-4),
    "grass-top": (2e-4, 1e-4, 4e-4),
}


@dataclass(frozen=True)
class FineTuning(Setup):
    """What is the same for all; the model is SmolLM2, whatever is asked for."""

    def model(self, vocabulary: int, seed: int) -> Any:
        torch.manual_seed(seed)
        return MemoryModel.from_pretrained(bundled("smollm2"), dtype=torch.float32).detach()


SETUP = FineTuning(30, 576, 1536, 9, rank=64, gap=25, steps=60, batch=4, length=128)


def _adamw(model: nn.Module, by: Projecting, lr: float) -> Any:
    rest, linear = two_groups(model, {"lr": lr})
    use_onednn(model)
    return torch.optim.AdamW([{**rest, "lr": REST}, linear], lr=lr, weight_decay=0.0)


def _galore(model: nn.Module, by: Projecting, lr: float) -> Any:
    from galore_torch import GaLoreAdamW

    settings = {"rank": by.rank, "update_proj_gap": by.gap, "scale": 1.0, "proj_type": "std"}
    rest, linear = two_groups(model, settings)
    use_onednn(model)
    return GaLoreAdamW([{**rest, "lr": REST}, linear], lr=lr, no_deprecation_warning=True)


def _apollo(model: nn.Module, by: Projecting, lr: float) -> Any:
    from apollo_torch import APOLLOAdamW

    settings = {"rank": by.rank, "update_proj_gap": by.gap, "scale": 1.0, "proj_type": "std", "proj": "random"}
    rest, linear = two_groups(model, {**settings, "scale_type": "channel"})
    use_onednn(model)
    return APOLLOAdamW([{**rest, "lr": REST}, linear], lr=lr)


def _grass(model: nn.Module, by: Projecting, lr: float, **settings: Any) -> Any:
    linear, rest = grass_param_groups(model, by.rank, scale=1.0, target_modules=TARGETS, seed=by.seed, **settings)
    return GrassAdamW([linear, {**rest, "lr": REST}], lr=lr)


def _lora(model: nn.Module, by: Projecting, lr: float) -> Any:
    """r 16 on all linear layers, as people use it."""
    from peft import LoraConfig, inject_adapter_in_model

    words = "|".join(TARGETS)
    inject_adapter_in_model(LoraConfig(r=16, lora_alpha=32, target_modules=rf".*({words})\.\w+_proj"), model)
    use_onednn(model)
    return adamw(model, by, lr)


FINE: dict[str, Maker] = {
    "adamw": _adamw,
    "lora": _lora,
    "galore": _galore,
    "apollo": _apollo,
    "grass": _grass,
    "grass-top": partial(_grass, selection="top", update_proj_gap=SETUP.gap),
}


def corpus_of(folder: Path, text: list[Path], tokens: int, held_out: int) -> Corpus:
    file = folder / "tokens.pt"
    if not file.is_file():
        made = read(text, tokens, held_out, MemoryModel.from_pretrained(bundled("smollm2")).tokenizer)
        file.parent.mkdir(parents=True, exist_ok=True)
        torch.save(vars(made), file)
    return Corpus(**torch.load(file, weights_only=True))


def cell(method: str, lr: float, seed: int, setup: Setup, folder: Path) -> Figures:
    """One training, in this process."""
    METHODS[method] = FINE[method]
    corpus = corpus_of(folder, [], setup.tokens, setup.held_out)
    figures = train(setup, method, lr, seed, corpus)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    return {"method": method, "lr": lr, "seed": seed, **figures, "peak_resident_bytes": peak}


def finished(folder: Path) -> list[Figures]:
    return [json.loads(file.read_text()) for file in sorted(folder.glob("cell-*.json"))]


def summary(cells: list[Figures]) -> Figures:
    """By method: at the rate that is best on validation with seed 0, what all seeds gave on test."""
    found = {}
    for method in FINE:
        first = [one for one in cells if one["method"] == method and one["seed"] == 0 and one["validation"] is not None]
        if not first:
            continue
        lr = min(first, key=lambda one: one["validation"])["lr"]
        those = [one for one in cells if one["method"] == method and one["lr"] == lr]
        tests = [one["test"] for one in those]
        found[method] = {
            "lr": lr,
            "seeds": len(those),
            "test": round(statistics.mean(tests), 5),
            "stderr": round(statistics.stdev(tests) / len(tests) ** 0.5, 5) if len(tests) > 1 else None,
            "validation": round(statistics.mean(one["validation"] for one in those), 5),
            "seconds_per_step": round(statistics.median(one["seconds_per_step"] for one in those), 3),
            **{name: those[0][name] for name in ("gradient_bytes", "state_bytes")},
            "peak_resident_bytes": max(one["peak_resident_bytes"] for one in those),
        }
    return found


def wanted(cells: list[Figures], methods: list[str], seeds: int) -> tuple[str, float, int] | None:
    """The next cell: all rates with seed 0, then the other seeds at the best."""
    done = {(one["method"], one["lr"], one["seed"]) for one in cells}
    every = [(method, lr, 0) for method in methods for lr in RATES[method]]
    if not (left := [one for one in every if one not in done]):
        best = {method: figures["lr"] for method, figures in summary(cells).items()}
        every = [(method, best[method], seed) for seed in range(1, seeds) for method in methods if method in best]
        left = [one for one in every if one not in done]
    return left[0] if left else None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--text", type=Path, nargs="+", default=[], help="WikiExtractor or .jsonl files, or folders")
    parser.add_argument("--output", type=Path, required=True, help="folder of finished cells, and of the tokens")
    parser.add_argument("--json", type=Path, help="where the figures go, renewed with every cell")
    parser.add_argument("--steps", type=int, default=SETUP.steps)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--methods", nargs="+", choices=FINE, default=list(FINE))
    parser.add_argument("--cell", nargs=3, metavar=("METHOD", "LR", "SEED"), help="train this one, and no more")
    options = parser.parse_args()
    setup = replace(SETUP, steps=options.steps)
    if options.cell:
        method, lr, seed = options.cell
        made = cell(method, float(lr), int(seed), setup, options.output)
        file = options.output / f"cell-{method}-{float(lr):g}-{seed}.json"
        file.with_suffix(".partial").write_text(json.dumps(made))
        os.replace(file.with_suffix(".partial"), file)
        return
    corpus_of(options.output, options.text, setup.tokens, setup.held_out)
    heading = circumstances()
    while (next_one := wanted(finished(options.output), options.methods, options.seeds)) is not None:
        words = [sys.executable, __file__, "--output", str(options.output), "--steps", str(options.steps)]
        subprocess.run([*words, "--cell", *map(str, next_one)], check=True)
        cells = finished(options.output)
        print(next_one, cells[-1]["seconds_per_step"], file=sys.stderr, flush=True)
        if options.json is not None:
            tokens = {"setup": {**asdict(setup), "tokens": setup.tokens}, "rest_lr": REST}
            shown = [{name: value for name, value in one.items() if name != "training"} for one in cells]
            write_down({**heading, **tokens, "methods": summary(cells), "cells": shown}, options.json)


if __name__ == "__main__":
    main()
