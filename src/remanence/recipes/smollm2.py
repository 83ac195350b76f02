"""The reader of SmolLM2-135M-Instruct, or of another decoder: an adapter that answers from text slots, or says that it
was not told.

    remanence train smollm2 -- data=path/to/questions held_out=path/to/dev.json
    remanence train smollm2 -- start=smollm2 data=path/to/questions
    remanence train smollm2 -- base=path/to/decoder data=path/to/questions

Questions come in the formats of `remanence.training.questions`. Those about passages of `held_out` are left out.
"""

import math
import os
import time
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoTokenizer

from remanence import MemoryModel
from remanence.bases import find_base
from remanence.config import LoraSettings, RetrievalConfig
from remanence.errors import InvalidInputError
from remanence.model.prefix_store import SlotCache
from remanence.model.text import TextWriter
from remanence.training.questions import QuestionSet, load_questions, own_questions, passages_of
from remanence.training.recipes import reporters, training_arguments
from remanence.training.tasks.reader import Group, ReaderTask, adapter, answer_loss, prepare
from remanence.training.tasks.reader_data import REFUSAL, Lessons, LessonSettings
from remanence.training.trainer import TaskTrainer, stopping_after, write_log

NAME = "smollm2"
_LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_VALIDATION = 0.08  # of the passages of what is named
_CACHE = 0.35  # of the memory of the machine, for encoded passages: each is read many times
_VALIDATED = 8  # steps whose loss is measured before and after


def train(
    output: Path,
    *,
    resume: bool = False,
    minutes: float | None = None,
    data: str | None = None,
    held_out: str | None = None,
    base: str | None = None,
    start: str | None = None,
    steps: int = 1100,
    lr: float = 1e-3,
    rank: int = 16,
    groups: int = 8,
    save_steps: int = 250,
    workers: int = 0,
    log_to: str = "none",
) -> Path:
    """Train a reader; returns the folder of the finished checkpoint.

    Args:
        data: files or folders of questions beside those that come with the package, separated by commas.
        held_out: files whose passages are never trained on, separated by commas.
        base: the folder of another decoder; None: SmolLM2, where `remanence setup` put it.
        start: a checkpoint whose reader is trained further. When a memory was told has to be fitted anew.
        rank: of a new adapter; groups: sets of passages in a step.
        workers: processes that encode the passages of the next steps; 1 pays where another core is free, on a CPU.
    """
    out = Console(soft_wrap=True)
    reporters(log_to)  # an unknown one is refused before all work
    folder = Path(base) if base else find_base(NAME)
    questions, validation = questions_of(data, held_out)
    model = _model(folder, rank, start)
    prepare(model)
    settings = LessonSettings(groups=groups)
    lessons, checks = Lessons(model, questions, settings), Lessons(model, validation, settings, seed=1)
    if workers and torch.cuda.is_available():
        raise InvalidInputError("workers= is for training on a CPU; on a GPU passages are encoded there")
    args = training_arguments(
        output,
        steps=steps,
        save_steps=save_steps,
        warmup=min(50, math.ceil(steps / 10)),
        log_steps=25,
        log_to=log_to,
        bf16=model.backbone.dtype == torch.bfloat16,
        learning_rate=lr,
        adam_beta2=0.98,
        weight_decay=0.0,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.02},
        dataloader_num_workers=workers,
    )
    _announce(out, model, questions, lessons, steps)
    held = [checks.step(number) for number in range(_VALIDATED)]
    before = _loss(model, held)
    task = ReaderTask(model, lessons.step, base or NAME)
    trainer = TaskTrainer(task, args=args, callbacks=stopping_after(minutes))
    if not trainer.run(resume=resume):
        out.print(f"stopped at step {trainer.state.global_step} of {steps}; go on with --resume")
    after = _loss(model, held)
    out.print(f"validation loss: {before:.3f} before, {after:.3f} now")
    model.eval().save_pretrained(output / "final", base=base or NAME)
    write_log(trainer, output / "curve.json", validation={"before": before, "after": after}, steps=steps, lr=lr)
    return output / "final"


def questions_of(data: str | None, held_out: str | None) -> tuple[QuestionSet, QuestionSet]:
    """To train on and to validate on: questions about what comes with the package, and those that are named.

    Whatever is trained for SmolLM2 with the same arguments has the same questions to validate on.
    """
    train, validation = own_questions(), own_questions(held_out=True)
    if data:
        kept = load_questions(_paths(data)).without(passages_of(_paths(held_out)))
        more, checked = kept.split(_VALIDATION)
        train, validation = train.joined(more), validation.joined(checked)
    return train, validation


def _paths(listed: str | None) -> list[Path]:
    return [Path(part) for part in (listed or "").split(",") if part]


def _model(folder: Path, rank: int, start: str | None) -> MemoryModel:
    """The decoder in bfloat16 where the machine multiplies in it, with a fresh adapter or that of a checkpoint."""
    dtype = torch.bfloat16 if _has_bfloat16() else torch.float32
    if start is not None:
        device = "cuda" if torch.cuda.is_available() else None
        return _caching(MemoryModel.from_pretrained(start, base=folder, dtype=dtype, device=device, parts=["reader"]))
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, local_files_only=True)
    if torch.cuda.is_available():
        hf = hf.to("cuda")
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    there = {name.rsplit(".", 1)[-1] for name, _ in hf.named_modules()}
    targets = tuple(name for name in _LINEAR if name in there) or None
    lora = LoraSettings(r=rank, lora_alpha=2.0 * rank, target_modules=targets)
    return _caching(MemoryModel.attach(hf, tokenizer, lora=lora, retrieval=RetrievalConfig(refusal=REFUSAL)))


def _caching(model: MemoryModel) -> MemoryModel:
    assert isinstance(model.writer, TextWriter)
    model.writer.cache = SlotCache(int(_CACHE * os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")))
    return model


def _has_bfloat16() -> bool:
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported()
    known: Any = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(known and known())


def _announce(out: Console, model: MemoryModel, data: QuestionSet, lessons: Lessons, steps: int) -> None:
    """What is trained on what, how much memory it takes, and how long."""
    trained = sum(parameter.numel() for parameter in adapter(model).values())
    every = sum(parameter.numel() for parameter in model.parameters())
    passages = {passage for question in data.questions for passage in question.passages}
    words = sum(len(data.passages[passage].split()) for passage in passages)
    taken = sum(parameter.numel() * parameter.element_size() for parameter in model.parameters()) + 12 * trained
    out.print(
        f"{len(data.questions):,} questions about {len(passages):,} passages ({words:,} words); "
        f"{trained:,} of {every:,} parameters are trained; weights and moments take {taken / 2**20:,.0f} MiB"
    )
    group = lessons.step(0)
    answer_loss(model, group).backward()  # warms up
    start = time.monotonic()
    answer_loss(model, lessons.step(1)).backward()
    seconds = time.monotonic() - start
    model.zero_grad()
    out.print(f"about {seconds:.1f} s a step, {steps * seconds / 3600:.1f} hours for {steps:,} steps")


@torch.no_grad()
def _loss(model: MemoryModel, steps: list[list[Group]]) -> float:
    return sum(float(answer_loss(model, groups)) for groups in steps) / len(steps)
