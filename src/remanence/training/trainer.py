"""Training on `transformers.Trainer`: its loop, schedules, logs and resuming, with our objectives."""

import json
import time
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AttentionInterface, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
from transformers.trainer import SCHEDULER_NAME

from remanence.errors import InvalidInputError
from remanence.model import checkpoint
from remanence.model.memory_model import MemoryModel
from remanence.optim import GrassAdamW
from remanence.training.bank import Bank
from remanence.training.curriculum import Curriculum
from remanence.training.objectives import Episodes, Prompts, Through, label_loss, pools_of, read_prompts, write_chunks
from remanence.training.processes import Left, objects_of_all_processes, of_all_processes
from remanence.training.recollection import Recollections, RetrieverLoss, recall_prompts, recalling
from remanence.training.sharded import (
    Wrapped,
    is_shared_out,
    load_optimizer,
    load_whole,
    require_one_unit,
    save_optimizer,
    touching_all,
    whole_state,
)

CARRIED = "carried.safetensors"
CURRICULUM = "curriculum.json"
TEXT_WEIGHT = 0.15  # of predicting text, against answering about it: Muon would drown the rarer lesson in the denser


def _sdpa_in_float32(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    # Under bfloat16 autocast, the backward pass of attention is several times slower on CPU than in float32.
    with torch.autocast(query.device.type, enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), *args, **kwargs)


AttentionInterface.register("sdpa_float32", _sdpa_in_float32)
AttentionMaskInterface.register("sdpa_float32", sdpa_mask)


class MemoryTrainer(Trainer):
    """Trains a `MemoryModel` on batches that are `Episodes` (through memory) or `Prompts` (in context).

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
            retriever_loss: how the retriever is trained, where batches are `Recollections`.
            bank: how many chunks of earlier steps stand in long-term memory beside a step's own; at least those of the
                last step do.
            text_weight: of predicting text, against answering about it.
        """
        args: TrainingArguments = kwargs["args"]
        super().__init__(
            model=model,
            train_dataset=None if curriculum is None else _numbers(args, curriculum),
            data_collator=_only,
            **kwargs,
        )
        if self.is_fsdp_enabled or self.is_deepspeed_enabled:
            raise InvalidInputError(
                "memories are written through layers' single weights, which DeepSpeed and the Trainer's own FSDP take "
                "apart; leave them out, and call torch's fully_shard(model) before the optimizer is made"
            )
        require_one_unit(model)
        if is_shared_out(model) and isinstance(self.optimizer, GrassAdamW) and self.args.max_grad_norm:
            raise InvalidInputError(
                "what Grass selects of a sharded weight is added up over the processes in its step, after the Trainer "
                "clips; set max_grad_norm=0 in TrainingArguments, and GrassAdamW(..., max_grad_norm=...)"
            )
        self.through, self.curriculum, self.text_weight = through, curriculum, text_weight
        self.retriever_loss, self._carried = retriever_loss or RetrieverLoss(), Bank(bank)
        self._metrics: dict[str, list[float]] = {}
        self._left: list[Left] = []

    def train(self, resume_from_checkpoint: str | bool | None = None, *rest: Any, **settings: Any) -> Any:
        """As the Trainer's; but `True` passes over a checkpoint that was cut off while it was saved."""
        if resume_from_checkpoint is True:
            resume_from_checkpoint = last_checkpoint(Path(self.args.output_dir or ".")) or True
        return super().train(resume_from_checkpoint, *rest, **settings)

    def _wrap_model(self, model: Any, training: bool = True, dataloader: Any = None) -> Any:
        if training and is_shared_out(model):
            return Wrapped(model)
        return super()._wrap_model(model, training, dataloader)

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        with self._autocast():
            loss = model(self._loss_of, inputs)
        if model.training and self.accelerator.sync_gradients:
            self._agree()
        return loss

    def _loss_of(self, model: MemoryModel, inputs: Any) -> Tensor:
        return touching_all(self._loss_of_batch(model, inputs), model)

    def _loss_of_batch(self, model: MemoryModel, inputs: Any) -> Tensor:
        batch, task = inputs["batch"], inputs["task"]
        if model.training:
            self._left.append(Left.nothing(model))
        number = inputs.get("number", self.state.global_step)
        generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + number)
        if isinstance(batch, Recollections):
            return self._beyond_pool(model, batch, task, generator)
        if isinstance(batch, Episodes):
            return self._through_memory(model, batch, task, generator)
        return self._answers(model, read_prompts(model, None, batch), batch, task)

    def _agree(self) -> None:
        """Let all processes go on from what each of them wrote and observed in this step, in one order."""
        left = [one for mine in self._left for one in of_all_processes(mine)]
        self._left.clear()
        if self.curriculum is not None:
            for one in left:
                for task, exact in one.observed:
                    self.curriculum.observe(task, exact)
        if any(len(one.made) for one in left):
            self._carried.add(torch.cat([one.made for one in left]), torch.cat([one.keys for one in left]))

    def _autocast(self) -> Any:
        device = self.args.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.args.bf16)

    def _through_memory(self, model: MemoryModel, episodes: Episodes, task: str, generator: torch.Generator) -> Tensor:
        made = self._written(model, episodes, episodes.order[episodes.asked], generator)
        self._carry(model, made)
        if episodes.near and len(self._carried):
            near = self._carried.draw(episodes.near, generator)
            made = torch.cat([made, self._carried.chunks(near).to(made.dtype)])
        pools = pools_of(model, made, episodes, self.through, generator)
        return self._answers(model, read_prompts(model, pools, episodes.prompts), episodes.prompts, task)

    def _beyond_pool(self, model: MemoryModel, batch: Recollections, task: str, generator: torch.Generator) -> Tensor:
        made = self._written(model, batch, batch.asked[batch.asked >= 0], generator)
        cache = recalling(model, made, self._carried, batch, self.retriever_loss, generator)
        loss = self._answers(model, recall_prompts(model, cache, batch.prompts), batch.prompts, task)
        self._carry(model, made)
        for layer, (retriever, share) in enumerate(zip(cache.losses, cache.share, strict=True)):
            self._metrics.setdefault(f"{task}_within_reach_{layer}", []).append(share)
            loss = loss + self.retriever_loss.weight * retriever
        return loss

    def _written(
        self, model: MemoryModel, batch: Episodes | Recollections, asked: Tensor, generator: torch.Generator
    ) -> Tensor:
        previous = self._previous(model, len(batch.chunks), generator)
        through = range(len(batch.chunks)) if self.through == "all" else asked.unique().tolist()
        return write_chunks(model, batch.chunks, batch.lengths, previous, through)

    @torch.no_grad()
    def _carry(self, model: MemoryModel, made: Tensor) -> None:
        """What later steps find written. An evaluation leaves no trace."""
        if model.training:
            keys = made[..., :0] if model.retriever is None else model.retriever.keys(model.backbone, made)
            self._left[-1] = replace(self._left[-1], made=made.detach().float(), keys=keys.float())

    def _previous(self, model: MemoryModel, count: int, generator: torch.Generator) -> Tensor:  # [M, L, K, d]
        if not len(self._carried):
            shape = (count, len(model.backbone.layers), model.slots_per_write, model.hf.config.hidden_size)
            std = float(model.hf.get_input_embeddings().weight.detach().std())
            return torch.randn(shape, generator=generator).to(model.device) * std
        return self._carried.chunks(torch.randint(len(self._carried), (count,), generator=generator))

    def _answers(self, model: MemoryModel, hidden: Tensor, prompts: Prompts, task: str) -> Tensor:
        front = prompts.context
        loss, right = label_loss(model, hidden[:, front:], prompts.labels[:, front:])
        exact = float(right.unflatten(1, (prompts.examples, -1)).all(dim=-1).float().mean())
        self._metrics.setdefault(f"{task}_loss", []).append(float(loss.detach()))
        self._metrics.setdefault(f"{task}_exact_match", []).append(exact)
        if model.training:
            self._left[-1].observed.append((task, exact))
        if task.startswith("language"):
            loss = self.text_weight * loss
        if front:
            loss = loss + self.text_weight * label_loss(model, hidden[:, :front], prompts.labels[:, :front])[0]
        return loss

    def _prepare_inputs(self, inputs: Any) -> Any:
        if self.curriculum is not None and "batch" not in inputs:
            inputs = {**inputs, **self.curriculum[inputs["number"]]}
        return {**inputs, "batch": _to(inputs["batch"], self.args.device)}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        together: dict[str, list[float]] = {}
        for metrics in objects_of_all_processes(self._metrics):
            for name, values in metrics.items():
                together.setdefault(name, []).extend(values)
        averaged = {name: sum(values) / len(values) for name, values in together.items()}
        self._metrics.clear()
        if self.curriculum is not None:
            averaged["level"] = self.curriculum.level
        super().log({**logs, **averaged}, start_time)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        if not is_shared_out(self.model):
            super().save_model(output_dir, _internal_call)
            return
        state = whole_state(self.model)
        if self.args.should_save:
            self._save(output_dir, state)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        path = Path(output_dir or self.args.output_dir or ".")
        self.accelerator.unwrap_model(self.model).save_pretrained(path, state_dict=state_dict)
        if len(self._carried):
            save_file(self._carried.state_dict(), path / CARRIED)
        if self.curriculum is not None:
            (path / CURRICULUM).write_text(json.dumps(self.curriculum.state_dict()))

    def _save_optimizer_and_scheduler(self, output_dir: str) -> None:
        if not is_shared_out(self.model):
            super()._save_optimizer_and_scheduler(output_dir)
            return
        save_optimizer(self.optimizer, Path(output_dir))
        if self.args.should_save:
            torch.save(self.lr_scheduler.state_dict(), Path(output_dir) / SCHEDULER_NAME)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        if checkpoint is None or not is_shared_out(self.model):
            super()._load_optimizer_and_scheduler(checkpoint)
            return
        load_optimizer(self.optimizer, Path(checkpoint))
        self.lr_scheduler.load_state_dict(torch.load(Path(checkpoint) / SCHEDULER_NAME, weights_only=True))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        path = Path(resume_from_checkpoint)
        saved = checkpoint.load(path, keep_hidden=False, dtype=None, attn_implementation=None)
        assert self.model is not None
        load_whole(self.model, saved.state_dict())
        if (path / CARRIED).is_file():
            self._carried.load_state_dict(load_file(path / CARRIED), self.args.device)
        if self.curriculum is not None and (path / CURRICULUM).is_file():
            self.curriculum.load_state_dict(json.loads((path / CURRICULUM).read_text()))


def _numbers(args: TrainingArguments, curriculum: Curriculum) -> range:
    """Numbers of batches, which are built when their step comes: not before what precedes it has been observed.

    In a step each process takes the next number, so often as gradients are accumulated.
    """
    each = args.gradient_accumulation_steps * args.world_size
    return range(args.max_steps * each if args.max_steps > 0 else len(curriculum))


def _only(items: list[Any]) -> dict[str, Any]:
    (item,) = items
    return item if isinstance(item, dict) else {"number": item}


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was not cut off while it was saved."""
    # The Trainer writes this file after all others.
    whole = [file.parent for file in folder.glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda path: int(path.name.rpartition("-")[2]))) if whole else None


def _to(batch: Any, device: torch.device) -> Any:
    """A batch with all its tensors on a device; what draws places stays where it is drawn."""
    moved = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Prompts):
            moved[field.name] = _to(value, device)
        elif isinstance(value, Tensor) and field.name not in ("order", "asked", "spared"):
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
        if any(objects_of_all_processes(time.monotonic() > self.deadline)):
            control.should_training_stop = control.should_save = True
        return control


def write_log(trainer: MemoryTrainer, path: Path, **about: Any) -> None:
    """The run's curves and how it was made, as one JSON file."""
    path.write_text(json.dumps({**about, "log": trainer.state.log_history}, indent=1) + "\n")
