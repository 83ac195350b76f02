"""Memory training by AdamW and by Grass: the same lessons from the same start, each at its own best learning rate.

    python benchmarks/grass/recall.py --output runs/recall --json benchmarks/grass/recall.json

The start is the bundled checkpoint `tiny`, which has learned to recall two to four facts of a biography. Here it learns
six to eight, through a full pool, on the trainer that made it. Embeddings are frozen, as they are where a memory is
trained onto a base model; all other weights learn. Learning rates are powers of two, until the best on validation has
a worse neighbour on both sides; reported is the loss of answers on other episodes, over seeds. A finished run is kept
in --output, and not run again.
"""

import argparse
import json
import os
import random
import statistics
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.optim import AdamW
from transformers import TrainerCallback, set_seed

sys.path.insert(0, str(Path(__file__).parent.parent))

from grass.methods import gradient_bytes, state_bytes
from measure import Figures, circumstances, now, write_down
from remanence import MemoryModel
from remanence.checkpoints import bundled
from remanence.data.prose import paragraphs
from remanence.training.curriculum import Batch, Curriculum
from remanence.training.objectives import label_loss, pools_of, read_prompts, write_chunks
from remanence.training.optimizer import make_optimizer
from remanence.training.recall import Difficulty, RecallTask
from remanence.training.recipes import training_arguments
from remanence.training.trainer import MemoryTrainer

LESSON = Difficulty(0, (6, 8), pronouns=0.5)
SCALE = 0.5  # of a recipe's batch
RANK, GAP, STEPS, HELD_OUT = 32, 10, 60, 8
METHODS = ("adamw", "grass")
BASE, FIRST = 1e-3, {"adamw": 0, "grass": 1}  # learning rates are this times a power of two; the power to begin with


def lessons(model: MemoryModel) -> Callable[[str], Batch]:
    ids = model.tokenizer(list(paragraphs()), add_special_tokens=False)["input_ids"]
    task = RecallTask(
        model.tokenizer,
        [text for text in ids if len(text) >= model.slots_per_write],
        slots=model.slots,
        slots_per_write=model.slots_per_write,
    )
    return lambda name: {"batch": task.through_memory(random.Random(name), LESSON, SCALE), "task": "memory"}


class Gradients(TrainerCallback):
    """Notes the bytes of gradients before a step."""

    bytes = 0

    def on_pre_optimizer_step(self, *_: Any, model: Any, **__: Any) -> None:
        self.bytes = gradient_bytes(model)


def run(method: str, lr: float, seed: int, steps: int, output: Path) -> Figures:
    set_seed(seed)
    model = MemoryModel.from_pretrained(bundled("tiny")).optimize_for_cpu()
    model.hf.get_input_embeddings().weight.requires_grad_(False)
    lesson = lessons(model)
    optimizer = make_optimizer(method, model, lr=lr, rank=RANK, gap=GAP, default=lambda: AdamW(model.parameters()))
    gradients, start = Gradients(), now()
    arguments = training_arguments(output, steps=steps, warmup=steps // 10, decay=steps // 2, save_steps=10 * steps)
    trainer = MemoryTrainer(
        model,
        through="all",
        args=arguments,
        curriculum=Curriculum(lambda step, _: lesson(f"{seed}/{step}"), levels=1, steps=steps, threshold=()),
        optimizers=(optimizer, None),
        callbacks=[gradients],
    )
    trainer.train()
    return {
        "seconds": round(now() - start, 1),
        **{part: held_out(model.eval(), lesson, part) for part in ("validation", "test")},
        "gradient_bytes": gradients.bytes,
        "state_bytes": state_bytes(optimizer),
    }


@torch.no_grad()
def held_out(model: MemoryModel, lesson: Callable[[str], Batch], part: str) -> Figures:
    """Mean loss and exact match of answers in episodes that no run learns from."""
    losses, exact = [], []
    for number in range(HELD_OUT):
        batch = lesson(f"{part}/{number}")["batch"]
        generator = torch.Generator().manual_seed(number)
        assert model.shipped_pool is not None
        picked = torch.randint(model.slots, (len(batch.chunks), model.slots_per_write), generator=generator)
        before = model.shipped_pool[:, picked].transpose(0, 1)
        made = write_chunks(model, batch.chunks, batch.lengths, before)
        hidden = read_prompts(model, pools_of(model, made, batch, "all", generator), batch.prompts)
        loss, right = label_loss(model, hidden, batch.prompts.labels)
        losses.append(float(loss))
        exact.append(float(right.unflatten(1, (batch.prompts.examples, -1)).all(-1).float().mean()))
    return {"loss": round(statistics.mean(losses), 5), "exact_match": round(statistics.mean(exact), 4)}


Cells = dict[tuple[str, int, int], Figures]


def wanted(cells: Cells, seeds: int) -> tuple[str, int, int] | None:
    """The next run: method, power of two, seed."""
    for method in METHODS:
        known = {power: cells[method, power, 0]["validation"]["loss"] for m, power, s in cells if (m, s) == (method, 0)}
        middle = min(known, key=lambda power: known[power]) if known else FIRST[method]
        runs = [(at, 0) for at in (middle, middle - 1, middle + 1)] + [(middle, seed) for seed in range(1, seeds)]
        for power, seed in runs:
            if (method, power, seed) not in cells:
                return method, power, seed
    return None


def summary(cells: Cells, method: str, seeds: int) -> Figures | None:
    known = {power: cells[method, power, 0]["validation"]["loss"] for m, power, s in cells if (m, s) == (method, 0)}
    best = min(known, key=lambda power: known[power], default=None)
    if best is None or any((method, best, seed) not in cells for seed in range(seeds)):
        return None
    at_best = [cells[method, best, seed] for seed in range(seeds)]
    losses = [one["test"]["loss"] for one in at_best]
    return {
        "lr": BASE * 2.0**best,
        "test": round(statistics.mean(losses), 5),
        "stderr": round(statistics.stdev(losses) / seeds**0.5, 5) if seeds > 1 else None,
        "exact_match": round(statistics.mean(one["test"]["exact_match"] for one in at_best), 4),
        "gradient_bytes": at_best[0]["gradient_bytes"],
        "state_bytes": at_best[0]["state_bytes"],
    }


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True, help="folder of finished runs")
    parser.add_argument("--json", type=Path, help="where the figures go; printed otherwise")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--seeds", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(min(2, torch.get_num_threads()))
    options.output.mkdir(parents=True, exist_ok=True)
    cells: Cells = {}
    for file in options.output.glob("*_seed*.json"):
        one = json.loads(file.read_text())
        cells[one["method"], one["power"], one["seed"]] = one
    while (cell := wanted(cells, options.seeds)) is not None:
        method, power, seed = cell
        made = run(method, BASE * 2.0**power, seed, options.steps, options.output / "trainer")
        cells[cell] = {"method": method, "power": power, "seed": seed, "lr": BASE * 2.0**power, **made}
        partial = options.output / "run.partial"
        partial.write_text(json.dumps(cells[cell]))
        os.replace(partial, options.output / f"{method}_lr{power}_seed{seed}.json")
        print(f"{method} lr {BASE * 2.0**power:g} seed {seed}: {made}", file=sys.stderr, flush=True)
    set_seed(0)
    start = MemoryModel.from_pretrained(bundled("tiny")).optimize_for_cpu()
    setup = {
        "steps": options.steps,
        "rank": RANK,
        "gap": GAP,
        "seeds": options.seeds,
        "facts": LESSON.facts,
        "held_out": HELD_OUT,
    }
    figures = {
        **circumstances(),
        "setup": setup,
        "start": held_out(start, lessons(start), "test"),
        "methods": {method: summary(cells, method, options.seeds) for method in METHODS},
        "cells": [cells[cell] for cell in sorted(cells)],
    }
    write_down(figures, options.json)


if __name__ == "__main__":
    main()
