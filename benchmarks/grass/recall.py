"""Memory training by AdamW and by Grass: the same lessons from the same start, each at its own best learning rate.

    python benchmarks/run.py grass_recall --output runs/recall

The start is the bundled checkpoint `tiny`, which has learned to recall two to four facts of a biography. Here it learns
six to eight, through a full pool, on the trainer that made it. Embeddings are frozen, as they are where a memory is
trained onto a base model; all other weights learn. Runs that are finished are kept in --output (search.py).
"""

import random
import statistics
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch.optim import AdamW
from transformers import TrainerCallback, set_seed

from grass.methods import gradient_bytes, state_bytes
from grass.search import Cell, figures_of, sweep
from remanence import MemoryModel
from remanence.checkpoints import bundled
from remanence.data.prose import paragraphs
from remanence.training.curriculum import Batch, Curriculum
from remanence.training.optimizer import make_optimizer
from remanence.training.recipes import training_arguments
from remanence.training.tasks.pool_task import label_loss, pools_of, read_prompts, write_chunks
from remanence.training.tasks.recall import Difficulty, RecallTask
from remanence.training.trainer import MemoryTrainer
from tables import Figures
from timing import now

LESSON = Difficulty(0, (6, 8), pronouns=0.5)
SCALE = 0.5  # of a recipe's batch
RANK, GAP, HELD_OUT = 32, 10, 8
FIRST = {"adamw": 0, "grass": 1}
ABOUT = (
    "The checkpoint `tiny` learns to recall biographies of {facts[0]} to {facts[1]} facts through a full pool, in "
    "{steps} steps, the same for both; before, the loss of its answers is {loss:.4f}, and {exact_match:.3f} are right. "
    "Embeddings are frozen, all other weights learn; rank {rank}, a refresh every {gap} steps, moments kept. Learning "
    "rates were chosen on validation, from powers of two; means over {seeds} seeds with one standard error, on "
    "episodes that no run learns from."
)


@dataclass(frozen=True)
class Settings:
    output: Path = field(metadata={"help": "folder of finished runs"})
    steps: int = 60
    seeds: int = 2
    threads: int = 2


def measure(on: Settings) -> Figures:
    on.output.mkdir(parents=True, exist_ok=True)
    run_one = partial(run, steps=on.steps, output=on.output / "trainer")
    cells = sweep(list(FIRST), on.seeds, run_one, on.output, FIRST)
    set_seed(0)
    model = start()
    before = held_out(model, lessons(model), "test")
    about = {
        "rank": RANK,
        "gap": GAP,
        "facts": LESSON.facts,
        "held_out": HELD_OUT,
        "steps": on.steps,
        "seeds": on.seeds,
    }
    return {**figures_of(cells, FIRST, on.seeds, about), "start": before, "note": ABOUT.format(**about, **before)}


def start() -> MemoryModel:
    return MemoryModel.from_pretrained(bundled("tiny")).optimize_for_cpu()


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


def run(cell: Cell, steps: int, output: Path) -> Figures:
    set_seed(cell.seed)
    model = start()
    model.hf.get_input_embeddings().weight.requires_grad_(False)
    lesson, default = lessons(model), partial(AdamW, model.parameters())
    optimizer = make_optimizer(cell.method, model, lr=cell.lr, rank=RANK, default=default)
    gradients, begun = Gradients(), now()
    trainer = MemoryTrainer(
        model,
        through="all",
        args=training_arguments(output, steps=steps, warmup=steps // 10, decay=steps // 2, save_steps=10 * steps),
        curriculum=Curriculum(lambda step, _: lesson(f"{cell.seed}/{step}"), levels=1, steps=steps, threshold=()),
        optimizers=(optimizer, None),
        callbacks=[gradients],
    )
    trainer.train()
    return {
        "seconds": round(now() - begun, 1),
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
