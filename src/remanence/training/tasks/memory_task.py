"""A model with a learned memory is trained: through the pool, beyond it, in context, on plain text."""

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from remanence.errors import InvalidInputError
from remanence.model.model import MemoryModel
from remanence.training.curriculum import Curriculum
from remanence.training.distributed import all_gather_objects, all_gather_rows, as_forward, zero_grad_for_unused
from remanence.training.tasks.longterm_task import (
    LongTermBatch,
    RetrieverLoss,
    SlotBank,
    build_retrieval_cache,
    recall_prompts,
)
from remanence.training.tasks.pool_task import PoolBatch, Through, label_loss, pools_of, read_prompts, write_chunks
from remanence.training.tasks.prompts import Prompts
from remanence.training.tasks.task import Batch, Output, Task

TEXT_WEIGHT = 0.15  # of predicting text, against answering about it: Muon would drown the rarer lesson in the denser


def _sdpa_in_float32(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, *args: Any, **kwargs: Any) -> Any:
    # Under bfloat16 autocast, the backward pass of attention is several times slower on CPU than in float32.
    with torch.autocast(query.device.type, enabled=False):
        return sdpa_attention_forward(module, query.float(), key.float(), value.float(), *args, **kwargs)


AttentionInterface.register("sdpa_float32", _sdpa_in_float32)
AttentionMaskInterface.register("sdpa_float32", sdpa_mask)


@dataclass(frozen=True, kw_only=True)
class StepOutput(Output):
    """
    Attributes:
        made: `[M, L, K, d]`, the slots that a batch wrote; keys: `[M, L, K, P]`, their retrieval keys. M is 0 where
            nothing was written.
        observed: the name of the batch, and the exact match in it.
    """

    made: Tensor
    keys: Tensor
    observed: tuple[str, float]


class MemoryTask(Task):
    """Batches are a `PoolBatch`, a `LongTermBatch`, or `Prompts` (in context).

    The slots that a step writes go on, detached, as what stands in the pool when the next step writes: the memory
    really is updated as training goes, which keeps new slots and old ones alike (MemoryLLM, section 3.2).

    Attributes:
        carried: slots of earlier steps. They stand in the pool when a step writes, fill pools, and are retrieved.
    """

    def __init__(
        self,
        model: MemoryModel,
        curriculum: Curriculum | None,
        through: Through,
        retriever_loss: RetrieverLoss,
        bank: int,
        text_weight: float,
    ) -> None:
        """
        Args:
            curriculum: builds the batches.
            through: which writes the gradient goes through.
            retriever_loss: how the retriever is trained, where batches are `LongTermBatch`.
            bank: how many chunks of earlier steps stand in long-term memory beside a step's own; at least those of the
                last step do.
            text_weight: of predicting text, against answering about it.

        Raises:
            InvalidInputError: the model writes text slots.
        """
        super().__init__(model)
        if model.config.writer != "learned":
            raise InvalidInputError(
                "text slots need no training; to train a learned writer, attach one: "
                "MemoryModel.attach(hf_model, tokenizer, slots=..., slots_per_write=...)"
            )
        self.batches = 0 if curriculum is None else len(curriculum)
        self.curriculum, self.through, self.carried = curriculum, through, SlotBank(bank)
        self.retriever_loss, self.text_weight = retriever_loss, text_weight

    @property
    def model(self) -> MemoryModel:
        model: Any = self.trained
        return model

    def batch(self, number: int) -> Batch:
        assert self.curriculum is not None
        return self.curriculum[number]

    def forward(self, batch: Any, name: str, seed: int) -> tuple[Tensor, StepOutput]:
        """`seed`: of who survives in pools, and which slots are old."""
        run = as_forward(self.model, self._loss_and_output)
        made: tuple[Tensor, StepOutput] = run(_on(batch, self.model.device), name, torch.Generator().manual_seed(seed))
        return made

    def after_step(self, outputs: Sequence[StepOutput]) -> None:
        """Let all processes go on from what each of them wrote and observed in this step, in one order."""
        made, keys = list[Tensor](), list[Tensor]()
        for mine in outputs:
            made += all_gather_rows(mine.made)
            keys += all_gather_rows(mine.keys)
            for name, exact in all_gather_objects(mine.observed):
                if self.curriculum is not None:
                    self.curriculum.observe(name, exact)
        if any(map(len, made)):
            self.carried.add(torch.cat(made), torch.cat(keys))

    def figures(self) -> dict[str, Any]:
        return {} if self.curriculum is None else {"level": self.curriculum.level}

    def place(self) -> dict[str, Any]:
        return {} if self.curriculum is None else self.curriculum.state_dict()

    def go_to(self, place: dict[str, Any]) -> None:
        if self.curriculum is not None:
            self.curriculum.load_state_dict(place)

    def carried_state(self) -> dict[str, Tensor]:
        return self.carried.state_dict() if len(self.carried) else {}

    def load_carried_state(self, state: dict[str, Tensor], device: torch.device) -> None:
        self.carried.load_state_dict(state, device)

    def save(self, folder: Path, weights: dict[str, Tensor] | None) -> None:
        self.model.save_pretrained(folder, state_dict=weights)

    def _loss_and_output(self, batch: Any, name: str, generator: torch.Generator) -> tuple[Tensor, StepOutput]:
        made = None
        if isinstance(batch, LongTermBatch):
            loss, metrics, made = self._beyond_pool(batch, name, generator)
        elif isinstance(batch, PoolBatch):
            loss, metrics, made = self._through_memory(batch, name, generator)
        else:
            loss, metrics = self._answers(read_prompts(self.model, None, batch), batch, name)
        return zero_grad_for_unused(loss, self.model), self._output(made, name, metrics)

    def _through_memory(
        self, batch: PoolBatch, name: str, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float], Tensor]:
        made = slots = self._written(batch, generator)
        if batch.num_bank_chunks and len(self.carried):
            near = self.carried.draw(batch.num_bank_chunks, generator)
            slots = torch.cat([made, self.carried.chunks(near).to(made.dtype)])
        pools = pools_of(self.model, slots, batch, self.through, generator)
        loss, metrics = self._answers(read_prompts(self.model, pools, batch.prompts), batch.prompts, name)
        return loss, metrics, made

    def _beyond_pool(
        self, batch: LongTermBatch, name: str, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float], Tensor]:
        made = self._written(batch, generator)
        cache = build_retrieval_cache(self.model, made, self.carried, batch, self.retriever_loss, generator)
        loss, metrics = self._answers(recall_prompts(self.model, cache, batch.prompts), batch.prompts, name)
        for layer, (retriever, share) in enumerate(zip(cache.losses, cache.share, strict=True)):
            metrics[f"{name}_within_reach_{layer}"] = share
            loss = loss + self.retriever_loss.weight * retriever
        return loss, metrics, made

    def _written(self, batch: PoolBatch, generator: torch.Generator) -> Tensor:
        previous = self._previous(len(batch.chunks), generator)
        through = None if self.through == "all" else batch.targets.any(0).nonzero()[:, 0].tolist()
        return write_chunks(self.model, batch.chunks, batch.lengths, previous, through)

    def _previous(self, count: int, generator: torch.Generator) -> Tensor:  # [M, L, K, d]
        """What stands in the pool in front of each write."""
        model = self.model
        if not len(self.carried):
            shape = (count, len(model.backbone.layers), model.slots_per_write, model.hf.config.hidden_size)
            std = float(model.hf.get_input_embeddings().weight.detach().std())
            return torch.randn(shape, generator=generator).to(model.device) * std
        return self.carried.chunks(torch.randint(len(self.carried), (count,), generator=generator))

    def _answers(self, hidden: Tensor, prompts: Prompts, name: str) -> tuple[Tensor, dict[str, float]]:
        model, front = self.model, prompts.context
        loss, right = label_loss(model, hidden[:, front:], prompts.labels[:, front:])
        exact = float(right.unflatten(1, (prompts.examples, -1)).all(dim=-1).float().mean())
        metrics = {f"{name}_loss": float(loss.detach()), f"{name}_exact_match": exact}
        if prompts.text:
            loss = self.text_weight * loss
        if front:
            loss = loss + self.text_weight * label_loss(model, hidden[:, :front], prompts.labels[:, :front])[0]
        return loss, metrics

    @torch.no_grad()
    def _output(self, made: Tensor | None, name: str, metrics: dict[str, float]) -> StepOutput:
        model, retriever = self.model, self.model.retriever
        if made is None:
            shape = (0, len(model.backbone.layers), model.slots_per_write, model.hf.config.hidden_size)
            made = torch.zeros(shape, device=model.device)
        keys = made[..., :0] if retriever is None else retriever.keys(model.backbone.normed, made)
        observed = name, metrics[f"{name}_exact_match"]
        return StepOutput(metrics=metrics, made=made.detach().float(), keys=keys.float(), observed=observed)


def _on(batch: Any, device: torch.device) -> Any:
    """A batch with its tensors on a device; what draws places stays where it is drawn."""
    moved = {}
    for field in fields(batch):
        value = getattr(batch, field.name)
        if isinstance(value, Prompts):
            moved[field.name] = _on(value, device)
        elif isinstance(value, Tensor) and field.name not in ("order", "targets", "ignore_mask"):
            moved[field.name] = value.to(device)
    return replace(batch, **moved)
