"""Training in stages on documents: each starts from the model of the one before, all as data of a recipe."""

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch.optim.lr_scheduler import LambdaLR
from transformers import AutoModelForCausalLM, AutoTokenizer, set_seed

from remanence import MemoryModel
from remanence.config import LongTermConfig, LoraSettings, MemoryConfig
from remanence.errors import InvalidInputError
from remanence.model.formats.native import SETTINGS, config_in
from remanence.model.lora import adapter_parameters
from remanence.training.curriculum import Curriculum
from remanence.training.distributed import shard_model
from remanence.training.model_card import LOG, finish
from remanence.training.optimizer import make_optimizer
from remanence.training.recipes import reporters, training_arguments
from remanence.training.sources import DocumentStream, mixed, open_documents, parts_of
from remanence.training.tasks.documents import DocumentTask, Lessons
from remanence.training.tasks.longterm_task import RetrieverLoss
from remanence.training.trainer import MemoryTrainer, stopping_after

SEED = 0
CLIP = 1.0  # norm of all gradients together
PUBLISHED = {"slots": 12_800, "slots_per_write": 256}
LORA = LoraSettings(r=16, lora_alpha=32.0, lora_dropout=0.1)  # as published


@dataclass(frozen=True)
class Stage:
    """One stage.

    Attributes:
        steps: of the optimizer; lr: at the first.
        falling: over so many steps the learning rate falls linearly to a tenth; None: it stays.
        short: the source of short documents, where the user names none; first: the number of its first document.
        weights: of short documents, and of each source of long ones; (1, 0): short ones alone.
        first_long: of each source of long documents, the number of the first.
        retrieved: K0; with it long-term memory begins, and the pool is smaller by so many slots. 0: none.
    """

    name: str
    lessons: Lessons
    steps: int
    lr: float
    short: str
    falling: int | None = None
    first: int = 0
    weights: tuple[int, int] = (1, 0)
    first_long: int = 0
    retrieved: int = 0


@dataclass(frozen=True)
class Setup:
    """What all stages have in common.

    Attributes:
        base: a decoder or a model with memory, folder or hub id.
        data: short documents; "": what each stage names. long: long ones, a folder with one file or folder for each
            source, or one source.
        slots: N; slots_per_write: K; None: those of a base with memory, else 12,800 and 256, as published.
        chunk: most tokens of a chunk.
        optimizer: "adamw" trains twin LoRA and what memory adds; "grass" trains every weight, without LoRA.
        rank: of Grass; accumulate: batches per step and process.
        shard: share out weights, gradients and optimizer state among the processes (FSDP2).
        bank: chunks of earlier steps that pools are filled with; 0: as many as one and a half pools hold.
        log_to: as `remanence train --log-to`.
    """

    recipe: str
    base: str
    data: str = ""
    long: str = ""
    slots: int | None = None
    slots_per_write: int | None = None
    chunk: int = 512
    lora: LoraSettings = LORA
    retriever_lr: float = 1e-4
    optimizer: str = "adamw"
    rank: int = 128
    accumulate: int = 1
    shard: bool = False
    bank: int = 0
    save_steps: int = 500
    log_to: str = "none"


def train_stages(
    stages: Sequence[Stage], setup: Setup, output: Path, *, resume: bool, minutes: float | None
) -> Path | None:
    """Train one stage after the other, each in a folder of its own.

    `resume` goes on where an earlier call stopped, within a stage or between two.

    Returns:
        The folder with the trained model; None if the minutes were over before.

    Raises:
        InvalidInputError: before the first step. The optimizer or the logger is unknown, a stage has no documents, a
            stage cannot take the slots, or a base with memory has others.
    """
    if setup.optimizer not in ("adamw", "grass"):
        raise InvalidInputError(f"there is no optimizer {setup.optimizer!r} for this recipe; take adamw or grass")
    reporters(setup.log_to)
    if not setup.long and any(stage.weights[1] for stage in stages):
        raise InvalidInputError(
            "this recipe has stages on long documents; name them: long=PATH, a folder with one file for each source"
        )
    setup = _with_slots(stages, setup)
    documents = [_documents(stage, setup) for stage in stages]
    stop = stopping_after(minutes)
    base = setup.base
    for stage, texts in zip(stages, documents, strict=True):
        folder = output / stage.name
        final = folder / "model"
        if not (resume and (final / LOG).is_file()):
            set_seed(SEED)
            trainer = _trainer(stage, setup, base, texts, folder, stop)
            if not trainer.run(resume=resume):
                return None
            _save(trainer, stage, replace(setup, base=base), final)
        base = str(final)
    return final


def _with_slots(stages: Sequence[Stage], setup: Setup) -> Setup:
    """The slots that are trained, if every stage can take them."""
    there = config_in(Path(setup.base))
    sizes = dict(PUBLISHED)
    for name, asked in (("slots", setup.slots), ("slots_per_write", setup.slots_per_write)):
        has = None if there is None else getattr(there, name)
        if has is not None and asked not in (None, has):
            raise InvalidInputError(f"{name}={asked}, but {setup.base} has memory with {name}={has}; leave it out")
        sizes[name] = has or asked or sizes[name]
    left = slots = sizes["slots"]
    for stage in stages:
        if stage.retrieved and (there is None or there.longterm is None) and left == slots:
            left = slots - stage.retrieved
        try:
            MemoryConfig(writer="learned", slots=left, slots_per_write=sizes["slots_per_write"])
        except InvalidInputError as error:
            taken = "" if left == slots else f" with retrieved={stage.retrieved} of them for long-term memory"
            raise InvalidInputError(f"slots={slots} do not fit stage {stage.name}{taken}: {error}") from error
    return replace(setup, **sizes)  # type: ignore[arg-type]


def _trainer(
    stage: Stage,
    setup: Setup,
    base: str,
    documents: DocumentStream,
    folder: Path,
    callbacks: list[Any],
) -> MemoryTrainer:
    args = training_arguments(
        folder,
        steps=stage.steps,
        save_steps=setup.save_steps,
        log_steps=max(1, min(50, stage.steps // 2)),
        log_to=setup.log_to,
        gradient_accumulation_steps=setup.accumulate,
        gradient_checkpointing=True,
        max_grad_norm=0.0 if setup.optimizer == "grass" else CLIP,
    )
    model = _model(stage, setup, base)
    if setup.shard:
        shard_model(model)
    optimizer = make_optimizer(
        setup.optimizer,
        model,
        lr=stage.lr,
        rank=setup.rank,
        betas=(0.9, 0.999),
        own_rate=(() if model.retriever is None else list(model.retriever.parameters()), setup.retriever_lr),
        max_grad_norm=CLIP,
    )
    task = DocumentTask(
        model.tokenizer,
        documents,
        stage.lessons,
        slots=model.slots,
        slots_per_write=model.slots_per_write,
        chunk=setup.chunk,
        longterm=model.config.longterm is not None,
    )
    each = args.gradient_accumulation_steps * args.world_size
    falling = stage.falling
    return MemoryTrainer(
        model,
        args=args,
        curriculum=Curriculum(
            lambda number, _: task.batch(number, number // each),
            levels=1,
            steps=stage.steps * each,
            threshold=(),
            documents=documents,
        ),
        retriever_loss=RetrieverLoss(),
        bank=setup.bank or 3 * model.slots // (2 * model.slots_per_write),
        optimizers=(
            optimizer,
            LambdaLR(optimizer, lambda step: 1.0 if falling is None else 1 - 0.9 * min(1.0, step / falling)),
        ),
        callbacks=callbacks,
    )


def _model(stage: Stage, setup: Setup, base: str) -> MemoryModel:
    """In float32, of which autocast makes bfloat16: small updates would be lost in bfloat16 weights."""
    if (Path(base) / SETTINGS).is_file():
        model = MemoryModel.from_pretrained(base, dtype=torch.float32)
    else:
        model = MemoryModel.attach(
            AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32),
            AutoTokenizer.from_pretrained(base),
            MemoryConfig(
                writer="learned",
                slots=setup.slots,
                slots_per_write=setup.slots_per_write,
                lora=setup.lora if setup.optimizer == "adamw" else None,
            ),
        )
    if stage.retrieved and model.config.longterm is None:
        model = model.with_longterm(LongTermConfig(stage.retrieved), slots=model.slots - stage.retrieved)
    if model.adapters is not None:
        added = [] if model.retriever is None else list(model.retriever.parameters())
        adapters = (parameter for _, parameter in adapter_parameters(model))
        trained = {id(p) for p in (model.bos_embedding, model.new_memory_positional_emb, *added, *adapters)}
        for parameter in model.parameters():
            parameter.requires_grad_(id(parameter) in trained)
    return model


def _documents(stage: Stage, setup: Setup) -> DocumentStream:
    sources, weights = [open_documents(setup.data or stage.short, stage.first)], [stage.weights[0]]
    for long in parts_of(setup.long, stage.first_long) if stage.weights[1] else ():
        sources.append(long)
        weights.append(stage.weights[1])
    return DocumentStream(mixed(sources, weights))


def _save(trainer: MemoryTrainer, stage: Stage, setup: Setup, final: Path) -> None:
    data = [setup.data or stage.short, *([setup.long] if stage.weights[1] else [])]
    settings = {
        name: value
        for name, value in itertools.chain(asdict(stage).items(), asdict(setup).items())
        if name not in ("recipe", "base", "data", "long", "short", "name")
    }
    recipe = f"{setup.recipe}, stage {stage.name}"
    finish(trainer, final, recipe=recipe, base=setup.base, data=data, settings=settings)
