"""Training the reading adapter of text slots, on `transformers.Trainer`: its loop, schedule, logs and resuming."""

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset
from transformers import Trainer, TrainingArguments

from remanence.errors import InvalidInputError
from remanence.kernels.grouped import GROUPED
from remanence.model.lora import adapter_parameters
from remanence.model.model import MemoryModel
from remanence.training.checkpoints import ResumableTrainer
from remanence.training.progress import readable
from remanence.training.tasks.reader import Group, answer_loss
from remanence.training.tasks.reader_data import Lessons


class _Loss(nn.Module):
    """What the Trainer calls: the loss of a step."""

    def __init__(self, model: MemoryModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, groups: list[Group]) -> dict[str, Tensor]:
        return {"loss": answer_loss(self.model, groups)}


class _Steps(Dataset[list[Group]]):
    """The steps by their numbers."""

    def __init__(self, lessons: Lessons, count: int) -> None:
        self._lessons, self._count = lessons, count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, number: int) -> list[Group]:
        return self._lessons.step(number)


class ReaderTrainer(ResumableTrainer):
    """Trains a reader. Each checkpoint directory can be loaded by `MemoryModel.from_pretrained`."""

    def __init__(self, model: MemoryModel, lessons: Lessons, base: str, args: TrainingArguments, **kwargs: Any) -> None:
        """`base`: the name of the decoder, which checkpoints leave out."""
        require_reader(model)
        self.memory_model, self._base = model, base
        steps = _Steps(lessons, args.max_steps)
        super().__init__(_Loss(model), args, train_dataset=steps, data_collator=_only, **kwargs)
        readable(self)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        device = self.args.device.type
        with torch.autocast(device, torch.bfloat16, enabled=self.memory_model.backbone.dtype == torch.bfloat16):
            out = model(**inputs)
        return (out["loss"], out) if return_outputs else out["loss"]

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if self.args.should_save:
            self.memory_model.save_pretrained(output_dir or self.args.output_dir, base=self._base)


def _only(items: list[list[Group]]) -> dict[str, list[Group]]:
    (groups,) = items
    return {"groups": groups}


def adapter(model: MemoryModel) -> dict[str, nn.Parameter]:
    """The parameters of the reading adapter, by name."""
    return dict(adapter_parameters(model))


def require_reader(model: MemoryModel) -> None:
    """Raise where a model has no reader to train, or its memory is a learned one."""
    if model.config.writer != "text" or model.adapters is None:
        raise InvalidInputError("a reader is an adapter of text slots: attach the model with lora=LoraSettings(...)")


def prepare(model: MemoryModel) -> None:
    """Train the reader alone, in float32, by attention whose backward pass is fast on a CPU."""
    require_reader(model)
    model.requires_grad_(False)
    for parameter in adapter(model).values():
        parameter.data = parameter.data.float()
        parameter.requires_grad_(True)
    if model.device.type == "cpu":
        model.hf.set_attn_implementation(GROUPED)
    model.train()


def arguments(
    output: Path, *, steps: int, lr: float, save_steps: int, log_to: str = "none", workers: int = 0
) -> TrainingArguments:
    """The Trainer's settings: a cosine that ends at 2 % of the learning rate.

    `workers`: processes that encode the passages of the next steps while this one learns (on a CPU).
    """
    return TrainingArguments(
        output_dir=str(output),
        max_steps=steps,
        per_device_train_batch_size=1,
        train_sampling_strategy="sequential",
        use_cpu=not torch.cuda.is_available(),
        learning_rate=lr,
        adam_beta2=0.98,
        weight_decay=0.0,
        max_grad_norm=1.0,
        lr_scheduler_type="cosine_with_min_lr",
        lr_scheduler_kwargs={"min_lr_rate": 0.02},
        warmup_steps=min(50, math.ceil(steps / 10)),
        logging_steps=25,
        save_steps=save_steps,
        save_total_limit=2,
        report_to=log_to,
        seed=0,
        remove_unused_columns=False,
        dataloader_num_workers=workers,
    )


def write_curve(trainer: Trainer, path: Path, **about: Any) -> None:
    """How the run was made, and its losses, as JSON."""
    path.write_text(json.dumps({**about, "log": trainer.state.log_history}, indent=1) + "\n")
