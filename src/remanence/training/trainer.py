"""Training on `transformers.Trainer`: its loop, schedules, logs and resuming, with our objectives."""

import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AttentionInterface, Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from remanence.model import checkpoint
from remanence.model.memory_model import MemoryModel
from remanence.training.curriculum import Curriculum
from remanence.training.objectives import (
    Episodes,
    Prompts,
    Through,
    label_loss,
    pools_of,
    read_prompts,
    write_chunks,
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
        self, model: MemoryModel, *, through: Through = "last", curriculum: Curriculum | None = None, **kwargs: Any
    ) -> None:
        super().__init__(model=model, train_dataset=curriculum, data_collator=lambda items: items[0], **kwargs)
        self.through, self.curriculum = through, curriculum
        self._carried: Tensor | None = None
        self._metrics: dict[str, list[float]] = {}

    def compute_loss(self, model: Any, inputs: Any, return_outputs: bool = False, **_: Any) -> Any:
        batch, task = inputs["batch"], inputs["task"]
        memory_model: MemoryModel = self.accelerator.unwrap_model(model)
        with self._autocast():
            if isinstance(batch, Episodes):
                return self._through_memory(memory_model, batch, task)
            return self._answers(memory_model, None, batch, task)

    def _autocast(self) -> Any:
        device = self.args.device.type
        return torch.autocast(device, torch.bfloat16, enabled=self.args.bf16)

    def _through_memory(self, model: MemoryModel, episodes: Episodes, task: str) -> Tensor:
        generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + self.state.global_step)
        previous = self._previous(model, len(episodes.chunks), generator)
        made = write_chunks(model, episodes, previous)
        shuffled = torch.randperm(len(made), generator=generator).to(made.device)
        self._carried = made.detach()[shuffled].float()
        pools = pools_of(model, made, episodes, self.through, generator)
        return self._answers(model, pools, episodes.prompts, task)

    def _previous(self, model: MemoryModel, count: int, generator: torch.Generator) -> Tensor:  # [M, L, K, d]
        if self._carried is None:
            shape = (count, len(model.backbone.layers), model.slots_per_write, model.hf.config.hidden_size)
            std = float(model.hf.get_input_embeddings().weight.detach().std())
            return torch.randn(shape, generator=generator).to(model.device) * std
        return self._carried[torch.randint(len(self._carried), (count,), generator=generator).to(model.device)]

    def _answers(self, model: MemoryModel, pools: Tensor | None, prompts: Prompts, task: str) -> Tensor:
        hidden, front = read_prompts(model, pools, prompts), prompts.context
        loss, right = label_loss(model, hidden[:, front:], prompts.labels[:, front:])
        exact = float(right.unflatten(1, (prompts.examples, -1)).all(dim=-1).float().mean())
        self._metrics.setdefault(f"{task}_loss", []).append(float(loss.detach()))
        self._metrics.setdefault(f"{task}_exact_match", []).append(exact)
        if self.curriculum is not None and model.training:
            self.curriculum.observe(task, exact)
        if task == "language":
            loss = TEXT_WEIGHT * loss
        if front:
            loss = loss + TEXT_WEIGHT * label_loss(model, hidden[:, :front], prompts.labels[:, :front])[0]
        return loss

    def _prepare_inputs(self, inputs: Any) -> Any:
        return {**inputs, "batch": _to(inputs["batch"], self.args.device)}

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        averaged = {name: sum(values) / len(values) for name, values in self._metrics.items()}
        self._metrics.clear()
        if self.curriculum is not None:
            averaged["level"] = self.curriculum.level
        super().log({**logs, **averaged}, start_time)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        path = Path(output_dir or self.args.output_dir or ".")
        self.accelerator.unwrap_model(self.model).save_pretrained(path)
        if self._carried is not None:
            save_file({"carried": self._carried.cpu().contiguous()}, path / CARRIED)
        if self.curriculum is not None:
            (path / CURRICULUM).write_text(json.dumps(self.curriculum.state_dict()))

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        path = Path(resume_from_checkpoint)
        saved = checkpoint.load(path, keep_hidden=False, dtype=None, attn_implementation=None)
        assert self.model is not None
        self.model.load_state_dict(saved.state_dict())
        if (path / CARRIED).is_file():
            self._carried = load_file(path / CARRIED)["carried"].to(self.args.device)
        if self.curriculum is not None and (path / CURRICULUM).is_file():
            self.curriculum.load_state_dict(json.loads((path / CURRICULUM).read_text()))


def _to(batch: Episodes | Prompts, device: torch.device) -> Episodes | Prompts:
    if isinstance(batch, Episodes):
        return replace(batch, chunks=batch.chunks.to(device), prompts=_to(batch.prompts, device))  # type: ignore[arg-type]
    moved = {name: getattr(batch, name).to(device) for name in ("ids", "labels", "mask", "positions")}
    return replace(batch, **moved)


class StopAfter(TrainerCallback):
    """Ends a run, with a checkpoint, when it has taken so many minutes."""

    def __init__(self, minutes: float) -> None:
        self.deadline = time.monotonic() + 60 * minutes

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        if time.monotonic() > self.deadline:
            control.should_training_stop = control.should_save = True
        return control


def write_log(trainer: MemoryTrainer, path: Path, **about: Any) -> None:
    """The run's curves and how it was made, as one JSON file."""
    path.write_text(json.dumps({**about, "log": trainer.state.log_history}, indent=1) + "\n")
