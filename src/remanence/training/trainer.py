"""Training on `transformers.Trainer`: its loop, schedules, logs and resuming, with our objectives."""

import json
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AttentionInterface, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from remanence.errors import InvalidInputError
from remanence.model.model import MemoryModel
from remanence.optim import GrassAdamW
from remanence.training.checkpoints import ResumableTrainer
from remanence.training.curriculum import Curriculum
from remanence.training.distributed import (
    PreWrapped,
    all_gather_objects,
    all_gather_rows,
    is_sharded,
    require_one_unit,
    whole_weights,
)
from remanence.training.progress import readable
from remanence.training.tasks.longterm_task import RetrieverLoss
from remanence.training.tasks.memory_task import StepOutput, TrainingStep
from remanence.training.tasks.pool_task import Through
from remanence.training.tasks.prompts import Prompts

CARRIED = "carried.safetensors"
TEXT_WEIGHT = 0.15  # of predicting text, against answering about it: Muon would drown the rarer lesson in the denser


def _sdpa_in_float32(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    # Under bfloat16 autocast, the backward pass of attention is several times slower on CPU than in float32.
    with torch.autocast(query.device.type, enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), *args, **kwargs)


AttentionInterface.register("sdpa_float32", _sdpa_in_float32)
AttentionMaskInterface.register("sdpa_float32", sdpa_mask)


class MemoryTrainer(ResumableTrainer):
    """Trains a `MemoryModel` on batches that are `PoolBatch` (through memory) or `Prompts` (in context).

    The slots that a step writes go on, detached, as what stands in the pool when the next step writes: the memory
    really is updated as training goes, which keeps new slots and old ones alike (MemoryLLM, section 3.2). They are
    saved with every checkpoint, so that a resumed run goes on where it stopped.

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
        """Besides the Trainer's own arguments:

        Args:
            through: which writes the gradient goes through.
            curriculum: builds the batches.
            retriever_loss: how the retriever is trained, where batches are `LongTermBatch`.
            bank: how many chunks of earlier steps stand in long-term memory beside a step's own; at least those of the
                last step do.
            text_weight: of predicting text, against answering about it.
        """
        args: TrainingArguments = kwargs["args"]
        self._step = TrainingStep(
            model,
            through=through,
            retriever_loss=retriever_loss or RetrieverLoss(),
            bank=bank,
            text_weight=text_weight,
        )
        self.memory_model = model
        super().__init__(
            model=self._step,
            train_dataset=None if curriculum is None else _numbers(args, curriculum),
            data_collator=_only,
            **kwargs,
        )
        readable(self)
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise InvalidInputError(
                "memories are written through layers' single weights, which DeepSpeed and the Trainer's own FSDP take "
                "apart; leave them out, and call torch's fully_shard(model) before the optimizer is made"
            )
        require_one_unit(model)
        if is_sharded(model) and isinstance(self.optimizer, GrassAdamW) and self.args.max_grad_norm:
            raise InvalidInputError(
                "what Grass selects of a sharded weight is added up over the processes in its step, after the Trainer "
                "clips; set max_grad_norm=0 in TrainingArguments, and GrassAdamW(..., max_grad_norm=...)"
            )
        self.curriculum = curriculum
        self._metrics: dict[str, list[float]] = {}
        self._outputs: list[StepOutput] = []  # of the batches since the last step of the optimizer

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        if training and is_sharded(self.memory_model):
            return PreWrapped(self._step)
        return super()._wrap_model(model, training, dataloader)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        seed = self.args.seed * 1_000_003 + inputs.get("number", self.state.global_step)
        with self._autocast():
            loss, output = model(inputs["batch"], inputs["task"], seed)
        for name, value in output.metrics.items():
            self._metrics.setdefault(name, []).append(value)
        if self.memory_model.training:
            self._outputs.append(output)
            if self.accelerator.sync_gradients:
                self._agree()
        return loss

    def _agree(self) -> None:
        """Let all processes go on from what each of them wrote and observed in this step, in one order."""
        made, keys = list[Tensor](), list[Tensor]()
        for mine in self._outputs:
            made += all_gather_rows(mine.made)
            keys += all_gather_rows(mine.keys)
            observed = [one for of_rank in all_gather_objects(mine.observed) for one in of_rank]
            if self.curriculum is not None:
                for task, exact in observed:
                    self.curriculum.observe(task, exact)
        self._outputs.clear()
        if any(map(len, made)):
            self._step.carried.add(torch.cat(made), torch.cat(keys))

    def _autocast(self) -> Any:
        device = self.args.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.args.bf16)

    def _prepare_inputs(self, inputs: Any) -> Any:
        if self.curriculum is not None and "batch" not in inputs:
            number = inputs["number"] + self._shift
            inputs = {"number": number, **self.curriculum[number]}
        return {**inputs, "batch": _to(inputs["batch"], self.args.device)}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        together: dict[str, list[float]] = {}
        for metrics in all_gather_objects(self._metrics):
            for name, values in metrics.items():
                together.setdefault(name, []).extend(values)
        averaged = {name: sum(values) / len(values) for name, values in together.items()}
        self._metrics.clear()
        if self.curriculum is not None:
            averaged["level"] = self.curriculum.level
        super().log({**logs, **averaged}, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        state = whole_weights(self.memory_model)
        if self.args.should_save:
            self.memory_model.save_pretrained(output_dir or self.args.output_dir, state_dict=state)

    def place_in_data(self) -> dict[str, Any]:
        return {} if self.curriculum is None else self.curriculum.state_dict()

    def go_to(self, place: dict[str, Any]) -> None:
        if self.curriculum is not None:
            self.curriculum.load_state_dict(place)

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        super()._save_optimizer_and_scheduler(output_dir)
        if self.args.should_save and len(self._step.carried):
            save_file(self._step.carried.state_dict(), Path(output_dir) / CARRIED)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (file := Path(checkpoint) / CARRIED).is_file():
            self._step.carried.load_state_dict(load_file(file), self.args.device)


def _numbers(args: TrainingArguments, curriculum: Curriculum) -> range:
    """Numbers of batches, which are built when their step comes: not before what precedes it has been observed.

    In a step each process takes the next number, so often as gradients are accumulated.
    """
    each = args.gradient_accumulation_steps * args.world_size
    return range(args.max_steps * each if args.max_steps > 0 else len(curriculum))


def _only(items: list[Any]) -> dict[str, Any]:
    (item,) = items
    return item if isinstance(item, dict) else {"number": item}


def _to(batch: Any, device: torch.device) -> Any:
    """A batch with all its tensors on a device; what draws places stays where it is drawn."""
    moved = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Prompts):
            moved[field.name] = _to(value, device)
        elif isinstance(value, Tensor) and field.name not in ("order", "target_mask", "target", "ignore_mask"):
            moved[field.name] = value.to(device)
    return replace(batch, **moved)


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


def write_log(trainer: MemoryTrainer, path: Path, **about: Any) -> None:
    """The run's curves and how it was made, as one JSON file."""
    path.write_text(json.dumps({**about, "log": trainer.state.log_history}, indent=1) + "\n")
