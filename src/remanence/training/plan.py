"""What a step of training a learned memory will take, told before any of it is allocated."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM, PretrainedConfig

from remanence.config import LoraSettings, MemoryConfig
from remanence.model.lora import NOT_ADAPTED
from remanence.model.model import MemoryModel
from remanence.optim.plan import Adapters, Method, Plan, add_adapters, plan_step
from remanence.training.tasks.pool_task import PoolBatch, pools_of, read_prompts, write_chunks
from remanence.training.tasks.prompts import Prompts


@dataclass(frozen=True)
class Writes:
    """What a step writes.

    Attributes:
        chunks: how many; chunk: tokens of each.
        slots: N, of a layer's pool; slots_per_write: K, that a chunk becomes.
        bank: chunks of earlier steps that are kept; None: as many as one and a half pools hold.
    """

    chunks: int = 8
    chunk: int = 512
    slots: int = 12_800
    slots_per_write: int = 256
    bank: int | None = None

    def config(self, lora: LoraSettings | None = None) -> MemoryConfig:
        return MemoryConfig(writer="learned", slots=self.slots, slots_per_write=self.slots_per_write, lora=lora)


def plan_memory(
    config: PretrainedConfig,
    method: Method,
    writes: Writes,
    *,
    rank: int = 128,
    tokens: int = 256,
    batch: int = 1,
    dtype: torch.dtype = torch.bfloat16,
    checkpointing: bool = False,
) -> Plan:
    """Memory of one step in which chunks are written and `batch` rows read pools of them and of earlier chunks.

    Gradients go through a write for each row (MemoryLLM, section 3.2). Every token that a row reads is predicted.

    Args:
        rank: of the projection, or of the twin LoRA.
        tokens: that each row reads behind its memory.
        dtype, checkpointing: as in `remanence.optim.plan.plan`.

    Raises:
        ValueError: as there; or slots that are no pool.
    """
    if min(rank, tokens, batch, writes.chunks, writes.chunk) < 1:
        raise ValueError("rank, tokens, batch, writes and chunk are at least 1")
    with FakeTensorMode():
        hf: Any = AutoModelForCausalLM.from_config(config, dtype=dtype)
        twins = add_adapters(hf, method, rank, twins=2, but=NOT_ADAPTED)
        model = MemoryModel.attach(hf, None, writes.config())
        if checkpointing:
            model.train().activation_checkpointing_enable()
        step = WritingStep(model, writes, tokens, batch, twins)
        return plan_step(model, method, rank, step.loss, decoder=hf, kept=step.earlier.nbytes)


class WritingStep:
    """The forward pass of such a step, on whatever tensors the model has.

    Attributes:
        earlier: `[C, L, K, d]` float32, the bank's chunks.
    """

    def __init__(
        self, model: MemoryModel, writes: Writes, tokens: int, batch: int, twins: Adapters | None = None
    ) -> None:
        self.model, self.twins = model, twins
        pool, k = max(1, writes.slots // writes.slots_per_write), writes.slots_per_write
        held = 3 * pool // 2 if writes.bank is None else writes.bank
        self.earlier = torch.zeros(held, len(model.backbone.layers), k, model.hf.config.hidden_size)
        ids, seen = torch.zeros(batch, tokens, dtype=torch.long), torch.ones(batch, tokens, tokens, dtype=torch.bool)
        self.batch = PoolBatch(
            chunks=torch.zeros(writes.chunks, writes.chunk, dtype=torch.long),
            lengths=[writes.chunk] * writes.chunks,
            order=torch.zeros(batch, pool, dtype=torch.long),
            targets=torch.ones(batch, writes.chunks, dtype=torch.bool),
            prompts=Prompts(ids, ids, seen, torch.arange(tokens).expand(batch, -1)),
        )

    def loss(self) -> Tensor:
        model, batch, count = self.model, self.batch, len(self.batch.chunks)
        previous = self.earlier[:1].to(model.backbone.dtype).expand(count, -1, -1, -1)
        made = write_chunks(model, batch.chunks, batch.lengths, previous, range(min(len(batch.order), count)))
        if self.twins is not None:
            self.twins.acting = 1
        pools = pools_of(model, made, batch, "all", torch.Generator())
        logits = model.hf.get_output_embeddings()(read_prompts(model, pools, batch.prompts)).float()
        return F.cross_entropy(logits.flatten(0, 1), batch.prompts.labels.flatten())
