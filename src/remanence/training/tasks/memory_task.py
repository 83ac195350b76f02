"""One training step: a batch goes in, its loss and what later steps need come out."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from remanence.errors import InvalidInputError
from remanence.model.model import MemoryModel
from remanence.training.distributed import as_forward, zero_grad_for_unused
from remanence.training.tasks.longterm_task import (
    LongTermBatch,
    RetrieverLoss,
    SlotBank,
    build_retrieval_cache,
    recall_prompts,
)
from remanence.training.tasks.pool_task import PoolBatch, Through, label_loss, pools_of, read_prompts, write_chunks
from remanence.training.tasks.prompts import Prompts

Batch = PoolBatch | LongTermBatch | Prompts


@dataclass(frozen=True)
class StepOutput:
    """What one batch leaves to later steps, and to the log.

    Attributes:
        made: `[M, L, K, d]`, the slots that it wrote; keys: `[M, L, K, P]`, their retrieval keys. M is 0 where nothing
            was written, and in an evaluation.
        observed: tasks, and the exact match in each; none in an evaluation.
        metrics: figures by name.
    """

    made: Tensor
    keys: Tensor
    observed: list[tuple[str, float]]
    metrics: dict[str, float] = field(default_factory=dict)

    @classmethod
    def empty(cls, model: MemoryModel) -> "StepOutput":
        shape = (0, len(model.backbone.layers), model.slots_per_write)
        size, keys = model.hf.config.hidden_size, 0 if model.retriever is None else model.retriever.size
        made = torch.zeros(*shape, size, device=model.device)
        return cls(made, made.new_zeros(*shape, keys), [])


class TrainingStep(nn.Module):
    """A model with memory, and what a batch has it do. DDP and the Trainer wrap this module.

    FSDP2 shards the model inside, whose parameters keep their names.

    Attributes:
        model: what is trained.
        carried: slots of earlier steps. They stand in the pool when a step writes, fill pools, and are retrieved.
    """

    def __init__(
        self, model: MemoryModel, *, through: Through, retriever_loss: RetrieverLoss, bank: int, text_weight: float
    ) -> None:
        """The arguments are those of `MemoryTrainer`.

        Raises:
            InvalidInputError: the model writes text slots.
        """
        super().__init__()
        if model.config.writer != "learned":
            raise InvalidInputError(
                "text slots need no training; to train a learned writer, attach one: "
                "MemoryModel.attach(hf_model, tokenizer, slots=..., slots_per_write=...)"
            )
        self.model, self.through, self.retriever_loss, self.text_weight = model, through, retriever_loss, text_weight
        self.carried = SlotBank(bank)

    def activation_checkpointing_enable(self, **settings: Any) -> None:
        """What the Trainer calls for `gradient_checkpointing=True`."""
        self.model.activation_checkpointing_enable(**settings)

    def gradient_checkpointing_enable(self, **settings: Any) -> None:
        """The same by its older name."""
        self.model.gradient_checkpointing_enable(**settings)

    def forward(self, batch: Batch, task: str, seed: int) -> tuple[Tensor, StepOutput]:
        """The loss of a batch, and what it leaves.

        Args:
            task: the name of its metrics.
            seed: of what the step draws: who survives in pools, which slots are old.
        """
        run = as_forward(self.model, self._loss_and_output)
        made: tuple[Tensor, StepOutput] = run(batch, task, torch.Generator().manual_seed(seed))
        return made

    def _loss_and_output(self, batch: Batch, task: str, generator: torch.Generator) -> tuple[Tensor, StepOutput]:
        if isinstance(batch, LongTermBatch):
            loss, metrics, made = self._beyond_pool(batch, task, generator)
        elif isinstance(batch, PoolBatch):
            loss, metrics, made = self._through_memory(batch, task, generator)
        else:
            loss, metrics = self._answers(read_prompts(self.model, None, batch), batch, task)
            made = None
        return zero_grad_for_unused(loss, self.model), self._output(made, task, metrics)

    def _through_memory(
        self, batch: PoolBatch, task: str, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float], Tensor]:
        made = slots = self._written(batch, batch.order[batch.target_mask], generator)
        if batch.num_bank_chunks and len(self.carried):
            near = self.carried.draw(batch.num_bank_chunks, generator)
            slots = torch.cat([made, self.carried.chunks(near).to(made.dtype)])
        pools = pools_of(self.model, slots, batch, self.through, generator)
        loss, metrics = self._answers(read_prompts(self.model, pools, batch.prompts), batch.prompts, task)
        return loss, metrics, made

    def _beyond_pool(
        self, batch: LongTermBatch, task: str, generator: torch.Generator
    ) -> tuple[Tensor, dict[str, float], Tensor]:
        made = self._written(batch, batch.target[batch.target >= 0], generator)
        cache = build_retrieval_cache(self.model, made, self.carried, batch, self.retriever_loss, generator)
        loss, metrics = self._answers(recall_prompts(self.model, cache, batch.prompts), batch.prompts, task)
        for layer, (retriever, share) in enumerate(zip(cache.losses, cache.share, strict=True)):
            metrics[f"{task}_within_reach_{layer}"] = share
            loss = loss + self.retriever_loss.weight * retriever
        return loss, metrics, made

    def _written(self, batch: PoolBatch | LongTermBatch, asked: Tensor, generator: torch.Generator) -> Tensor:
        previous = self._previous(len(batch.chunks), generator)
        through: Sequence[int] = range(len(batch.chunks)) if self.through == "all" else asked.unique().tolist()
        return write_chunks(self.model, batch.chunks, batch.lengths, previous, through)

    def _previous(self, count: int, generator: torch.Generator) -> Tensor:  # [M, L, K, d]
        """What stands in the pool in front of each write."""
        model = self.model
        if not len(self.carried):
            shape = (count, len(model.backbone.layers), model.slots_per_write, model.hf.config.hidden_size)
            std = float(model.hf.get_input_embeddings().weight.detach().std())
            return torch.randn(shape, generator=generator).to(model.device) * std
        return self.carried.chunks(torch.randint(len(self.carried), (count,), generator=generator))

    def _answers(self, hidden: Tensor, prompts: Prompts, task: str) -> tuple[Tensor, dict[str, float]]:
        model, front = self.model, prompts.context
        loss, right = label_loss(model, hidden[:, front:], prompts.labels[:, front:])
        exact = float(right.unflatten(1, (prompts.examples, -1)).all(dim=-1).float().mean())
        metrics = {f"{task}_loss": float(loss.detach()), f"{task}_exact_match": exact}
        if prompts.text:
            loss = self.text_weight * loss
        if front:
            loss = loss + self.text_weight * label_loss(model, hidden[:, :front], prompts.labels[:, :front])[0]
        return loss, metrics

    @torch.no_grad()
    def _output(self, made: Tensor | None, task: str, metrics: dict[str, float]) -> StepOutput:
        nothing = StepOutput.empty(self.model)
        if not self.model.training:  # an evaluation leaves no trace
            return StepOutput(nothing.made, nothing.keys, [], metrics)
        observed = [(task, metrics[f"{task}_exact_match"])]
        if made is None:
            return StepOutput(nothing.made, nothing.keys, observed, metrics)
        retriever = self.model.retriever
        keys = made[..., :0] if retriever is None else retriever.keys(self.model.backbone.normed, made)
        return StepOutput(made.detach().float(), keys.float(), observed, metrics)
