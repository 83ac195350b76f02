"""Long-term memory for the bundled checkpoint: twin LoRA for writing and reading, and a retriever.

    REMANENCE_PROSE=path/to/text remanence train tiny_longterm --output runs/tiny_longterm

REMANENCE_PROSE names a folder as for the recipe `tiny`. The start is the bundled checkpoint `tiny`, or what `--
base=PATH` names; one that has a retriever already goes through all phases but the first. So came the bundled result,
from the checkpoint that an earlier commit of this recipe made; its log names both. docs/research.md says what each
phase came to.
"""

import os
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import Parameter
from torch.optim import AdamW
from transformers import set_seed

from remanence import MemoryModel
from remanence.checkpoints import bundled
from remanence.config import LongTermConfig, LoraSettings
from remanence.recipes.tiny import prose, ship_pool
from remanence.training.curriculum import Batch, Curriculum
from remanence.training.model_card import LOG, finish
from remanence.training.recipes import training_arguments
from remanence.training.tasks.longterm_task import RetrieverLoss
from remanence.training.tasks.recall import Difficulty, RecallTask
from remanence.training.trainer import MemoryTrainer, stopping_after

SEED = 0
RETRIEVAL_SIZE = 64
RETRIEVED, AGREEMENT = 32, 0.02  # of what is shipped: where layers agree, a write's worth of slots is the right one's
CAPACITY = 150_000
LORA = LoraSettings(r=32, lora_alpha=64.0)
BIOGRAPHIES = Difficulty(0, (2, 4), pronouns=0.5)
ROWS = 48


@dataclass(frozen=True)
class Phase:
    """One phase.

    Attributes:
        trained: what of a parameter's name says that it is trained.
        lr: of queries and of the adapter for reading; rest: of everything else that is trained.
        shares: of batches of language, of language behind long-term memory, of questions in context, and through the
            pool; the others ask beyond it.
        chunks: written in a step that asks beyond the pool; shared: names that their people share, one of these.
        bank: chunks of earlier steps that are within reach; num_bank_chunks: how many of them pools are filled with.
        push_back: as `RetrieverLoss` has it; where keys rest it would only turn queries away from them.
        retrieving: weight of the retriever's loss.
        retrieved: K0. A quarter of the pool, 128, is published; where slots say well whom they are about, fewer mislead
            less.
    """

    name: str
    steps: int
    trained: tuple[str, ...]
    lr: float
    rest: float
    shares: tuple[float, float, float, float]
    chunks: int
    shared: tuple[int, ...]
    same_name: float
    bank: int
    num_bank_chunks: int
    text_weight: float
    push_back: float = 0.0
    retrieving: float = 0.15
    retrieved: int = 128


# Writer and retriever change in the first phase, so that nobody is to be told from chunks that they wrote long ago. In
# the second they rest, and the reader learns to read beside the likest of what a memory of some thousand writes holds.
# Then all weights learn together, so slowly that what the bank holds is still what the writer writes, and once more
# slower still, until a memory that says nothing about a text does not make it harder to read. By then slots say whom
# they are about, and what is left is to find them: the retriever goes on alone.
READ = Phase(
    "2-read",
    steps=1000,
    trained=(".query.", ".reader."),
    lr=1e-3,
    rest=1e-3,
    shares=(0.08, 0.27, 0.04, 0.06),
    chunks=64,
    shared=(15, 40, 0, 0),
    same_name=0.1,
    bank=768,
    num_bank_chunks=64,
    text_weight=0.3,
)
TOGETHER = replace(
    READ,
    name="3-together",
    steps=1500,
    trained=("",),
    lr=6e-4,
    rest=3e-4,
    shares=(0.03, 0.35, 0.04, 0.08),
    text_weight=0.5,
    retrieved=96,
)
SETTLE = replace(TOGETHER, name="4-settle", steps=2000, lr=4e-4, rest=2e-4, retrieved=64)
FIND = replace(
    SETTLE,
    name="5-find",
    steps=400,
    trained=("retriever.",),
    lr=6e-4,
    rest=6e-4,
    shares=(0.0, 0.0, 0.0, 0.0),
    bank=1024,
)
PHASES = (
    Phase(
        "1-retrieve",
        steps=2000,
        trained=("retriever.", ".lora_"),
        lr=1.5e-3,
        rest=1.5e-3,
        shares=(0.05, 0.06, 0.06, 0.12),
        chunks=160,
        shared=(15, 30, 60, 200),
        same_name=0.2,
        bank=0,
        num_bank_chunks=16,
        text_weight=0.15,
        push_back=0.5,
    ),
    READ,
    TOGETHER,
    SETTLE,
    FIND,
)


def build_batch(phase: Phase, task: RecallTask, wide: RecallTask, step: int) -> Batch:
    """Mostly questions beyond the pool; some within it and some in context, so that neither is unlearned."""
    rng = random.Random(f"{SEED}/{phase.name}/{step}")
    language, behind, context, memory = phase.shares
    drawn = rng.random()
    if drawn < language:
        return {"batch": task.language(rng), "task": "language"}
    if drawn < language + behind:
        batch = task.language_beyond_pool(rng, BIOGRAPHIES, num_bank_chunks=phase.num_bank_chunks)
        return {"batch": batch, "task": "language_longterm"}
    if drawn < language + behind + context:
        return {"batch": task.in_context(rng, BIOGRAPHIES), "task": "context"}
    if drawn < language + behind + context + memory:
        return {"batch": task.through_memory(rng, BIOGRAPHIES), "task": "memory"}
    shared, same_name = rng.choice(phase.shared), rng.random() < phase.same_name
    beyond = wide.beyond_pool(
        rng, BIOGRAPHIES, num_bank_chunks=phase.num_bank_chunks, shared=shared, allow_same_name=same_name
    )
    return {"batch": beyond, "task": "longterm"}


def train(
    output: Path,
    *,
    resume: bool = False,
    minutes: float | None = None,
    steps: int | None = None,
    base: str = "",
    log_to: str = "none",
) -> Path | None:
    """Train every phase, or go on where a run stopped; returns the folder with the trained model, None if the minutes
    were over before. `steps`: of each phase, instead of its own."""
    set_seed(SEED)
    if torch.get_num_threads() > 2 and not torch.cuda.is_available():
        torch.set_num_threads(2)
    paragraphs = prose(Path(os.environ.get("REMANENCE_PROSE", "data")))
    stop = stopping_after(minutes)
    model = MemoryModel.from_pretrained(base or bundled("tiny"))
    phases: Sequence[Phase] = PHASES[1:]
    if model.config.longterm is None:
        phases, rules = PHASES, LongTermConfig(retrieved=PHASES[0].retrieved, capacity=CAPACITY)
        model = model.with_longterm(rules, retrieval_size=RETRIEVAL_SIZE, lora=LORA)
    for phase in phases:
        folder = output / phase.name
        done = folder / "model"
        if not (resume and (done / LOG).is_file()):
            set_retrieval(model, phase.retrieved, cross_layer_prior=0.0)
            count = steps or phase.steps
            trainer = trainer_of(phase, model, paragraphs, folder, count, log_to, stop)
            if not trainer.run(resume=resume):
                return None
            model.hf.set_attn_implementation("sdpa")
            ship_pool(model.eval(), paragraphs)
            if phase is phases[-1]:
                set_retrieval(model, RETRIEVED, cross_layer_prior=AGREEMENT)
            finish(
                trainer,
                done,
                recipe=f"tiny_longterm, phase {phase.name}",
                base=base or "the bundled checkpoint tiny",
                data=[f"prose in {os.environ.get('REMANENCE_PROSE', 'data')}", "generated biographies"],
            )
        model = MemoryModel.from_pretrained(done)
    return done


def set_retrieval(model: MemoryModel, retrieved: int, cross_layer_prior: float) -> None:
    assert model.config.longterm is not None
    longterm = model.config.longterm.replace(retrieved=retrieved, cross_layer_prior=cross_layer_prior)
    model.config = model.config.replace(longterm=longterm)


def trainer_of(
    phase: Phase,
    model: MemoryModel,
    paragraphs: list[str],
    folder: Path,
    steps: int,
    log_to: str,
    stop: list[Any],
) -> MemoryTrainer:
    reading, others = list[Parameter](), list[Parameter]()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(any(part in name for part in phase.trained))
        if parameter.requires_grad:
            (reading if ".reader." in name or ".query." in name else others).append(parameter)
    model.shipped_pool = None
    ids = model.tokenizer(paragraphs, add_special_tokens=False)["input_ids"]
    prose = [i for i in ids if len(i) >= model.slots_per_write]
    sizes = {"slots": model.slots, "slots_per_write": model.slots_per_write, "rows": ROWS}
    task = RecallTask(model.tokenizer, prose, **sizes)
    wide = RecallTask(model.tokenizer, prose, chunks=phase.chunks, **sizes)
    model.hf.set_attn_implementation("sdpa_float32")
    groups = [{"params": reading, "lr": phase.lr}, {"params": others, "lr": phase.rest}]
    return MemoryTrainer(
        model,
        through="last",
        args=training_arguments(folder, steps=steps, warmup=20, decay=steps - 20, save_steps=250, log_to=log_to),
        curriculum=Curriculum(
            lambda step, _: build_batch(phase, task, wide, step), levels=1, steps=steps, threshold=()
        ),
        retriever_loss=RetrieverLoss(
            temperature=0.02,
            push_back=phase.push_back,
            detach=False,
            random_prefix=0.1,
            weight=phase.retrieving,
        ),
        bank=phase.bank,
        text_weight=phase.text_weight,
        optimizers=(
            AdamW([one for one in groups if one["params"]], lr=phase.lr, weight_decay=0.0, betas=(0.9, 0.99)),
            None,
        ),
        callbacks=stop,
    )
