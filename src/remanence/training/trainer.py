"""Training on `transformers.Trainer`: its loop, schedules, logs and resuming, with our tasks."""

import json
import time
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch.utils.data import Dataset
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from remanence.errors import InvalidInputError
from remanence.model.model import MemoryModel
from remanence.optim import GrassAdamW
from remanence.training.checkpoints import (
    CARRIED,
    load_random_states,
    load_state,
    require_state,
    save_state,
    written_whole,
)
from remanence.training.curriculum import Curriculum
from remanence.training.distributed import PreWrapped, all_gather_objects, is_sharded, require_one_unit, whole_weights
from remanence.training.progress import readable
from remanence.training.tasks.longterm_task import RetrieverLoss
from remanence.training.tasks.memory_task import TEXT_WEIGHT, MemoryTask
from remanence.training.tasks.pool_task import Through
from remanence.training.tasks.task import Batch, Output, Task


class TaskTrainer(Trainer):
    """Trains what a task says. Each checkpoint holds the whole state of the run, and what was trained, for use."""

    def __init__(self, task: Task, **kwargs: Any) -> None:
        """`kwargs`: the Trainer's own."""
        self.task, self._batches = task, _Batches(task, kwargs["args"])
        super().__init__(model=task, train_dataset=self._batches, data_collator=_only, **kwargs)
        readable(self)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise InvalidInputError(
                "memories are written through layers' single weights, which DeepSpeed and the Trainer's own FSDP take "
                "apart; leave them out, and call torch's fully_shard(model) before the optimizer is made"
            )
        require_one_unit(task.trained)
        if is_sharded(task.trained) and isinstance(self.optimizer, GrassAdamW) and self.args.max_grad_norm:
            raise InvalidInputError(
                "what Grass selects of a sharded weight is added up over the processes in its step, after the Trainer "
                "clips; set max_grad_norm=0 in TrainingArguments, and GrassAdamW(..., max_grad_norm=...)"
            )
        self._metrics: dict[str, list[float]] = {}
        self._outputs: list[Output] = []  # of the batches since the last step of the optimizer

    def run(self, *, resume: bool) -> bool:
        """Train; `resume` from the last checkpoint in the output folder, if it has one.

        Returns:
            Whether all steps are done.
        """
        self.train(resume_from_checkpoint=get_last_checkpoint(self.args.output_dir) if resume else None)
        return self.state.global_step >= self.args.max_steps

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        if training and is_sharded(self.task.trained):
            return PreWrapped(self.task)
        return super()._wrap_model(model, training, dataloader)

    def _prepare_inputs(self, inputs: Any) -> Any:
        return inputs if "batch" in inputs else {**inputs, **self.task.batch(inputs["number"])}

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        seed = self.args.seed * 1_000_003 + inputs.get("number", self.state.global_step)
        with torch.autocast(self.args.device.type, torch.bfloat16, enabled=self.args.bf16):
            loss, output = model(inputs["batch"], inputs["task"], seed)
        for name, value in output.metrics.items():
            self._metrics.setdefault(name, []).append(value)
        if self.task.training:
            self._outputs.append(output)
            if self.accelerator.sync_gradients:
                self.task.after_step(self._outputs)
                self._outputs.clear()
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        together: dict[str, list[float]] = {}
        for metrics in all_gather_objects(self._metrics):
            for name, values in metrics.items():
                together.setdefault(name, []).extend(values)
        self._metrics.clear()
        averaged = {name: sum(values) / len(values) for name, values in together.items()}
        super().log({**logs, **averaged, **self.task.figures()}, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        weights = whole_weights(self.task.trained)
        if self.args.should_save:
            self.task.save(Path(output_dir or self.args.output_dir), weights)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        with written_whole(self.args, self.accelerator.wait_for_everyone):
            super()._save_checkpoint(model, trial)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        place = {"batches": self._batches.first + self.state.global_step * self._batches.each, **self.task.place()}
        rank, folder = self.args.process_index, Path(output_dir)
        save_state(folder, self.task.trained, self.optimizer, self.lr_scheduler, rank, place)
        if self.args.should_save and (carried := self.task.carried_state()):
            save_file(carried, folder / CARRIED)

    def _save_rng_state(self, output_dir: str) -> None:
        """Random states are saved with all else."""

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Weights are loaded with the state of their optimizer."""
        require_state(Path(resume_from_checkpoint))

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            folder = Path(checkpoint)
            place = load_state(folder, self.task.trained, self.optimizer, self.lr_scheduler)
            # Others may have taken more batches in a step, or fewer.
            self._batches.first = place.pop("batches") - self.state.global_step * self._batches.each
            self.task.go_to(place)
            if (folder / CARRIED).is_file():
                self.task.load_carried_state(load_file(folder / CARRIED), self.args.device)

    def _load_rng_state(self, checkpoint: str | None) -> None:
        if checkpoint is not None:
            rank = self.args.process_index
            load_random_states(Path(checkpoint), rank, self.args.seed + 1_000_003 * self.state.global_step + rank)


class MemoryTrainer(TaskTrainer):
    """Trains a `MemoryModel` that writes learned slots.

    Each checkpoint directory can be loaded by `MemoryModel.from_pretrained`.
    """

    def __init__(
        self,
        model: MemoryModel,
        *,
        through: Through = "last",
        curriculum: Curriculum | None = None,
        retriever_loss: RetrieverLoss | None = None,
        bank: int = 0,
        text_weight: float = TEXT_WEIGHT,
        **kwargs: Any,
    ) -> None:
        """The first are as `MemoryTask` has them; `kwargs`: the Trainer's own."""
        self.memory_model, self.curriculum = model, curriculum
        retriever_loss = retriever_loss or RetrieverLoss()
        super().__init__(MemoryTask(model, curriculum, through, retriever_loss, bank, text_weight), **kwargs)


class _Batches(Dataset[Batch]):
    """Numbers of batches, which are built when their step comes: not before what precedes it has been observed. With
    workers, the batches themselves.

    In a step each process takes the next number, so often as gradients are accumulated.
    """

    def __init__(self, task: Task, args: TrainingArguments) -> None:
        self.task, self.first, self.ahead = task, 0, args.dataloader_num_workers > 0
        self.each = args.gradient_accumulation_steps * args.world_size  # in a step
        self.count = args.max_steps * self.each if args.max_steps > 0 else task.batches

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, place: int) -> Batch:
        number = self.first + place
        return {"number": number, **(self.task.batch(number) if self.ahead else {})}


def _only(items: list[Batch]) -> Batch:
    (item,) = items
    return item


class StopAfter(TrainerCallback):
    """Ends a run, with a checkpoint, when it has taken so many minutes."""

    def __init__(self, minutes: float) -> None:
        self.deadline = time.monotonic() + 60 * minutes

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        # One clock is ahead of the other, and processes have to stop together.
        if any(all_gather_objects(time.monotonic() > self.deadline)):
            control.should_training_stop = control.should_save = True
        return control


def stopping_after(minutes: float | None) -> list[TrainerCallback]:
    return [] if minutes is None else [StopAfter(minutes)]


def write_log(trainer: TaskTrainer, path: Path, **about: Any) -> None:
    """The run's curves and how it was made, as one JSON file."""
    path.write_text(json.dumps({**about, "log": trainer.state.log_history}, indent=1) + "\n")
