"""The three objectives of MemoryLLM (section 3.2) as ways to put a row's memory together.

One training step writes M chunks side by side, with gradient. Each of its R rows then reads a pool of its own, made of
the slots that would be left had some of these chunks been written one after another:

| objective | chunks written | the question is about | gradient |
|---|---|---|---|
| two chunks | one | it | through its write |
| many chunks | several | the last | through the last write |
| revisit | several | an earlier one | through the chosen write |

The published code writes one memory, chunk after chunk, and can afford gradient through one write only. Side by side, a
write costs the same for all rows that use it, so old chunks may keep their gradient too (`through="all"`).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from remanence.model.cache import PrefixCache, hidden_prefix
from remanence.model.learned import encode
from remanence.model.model import MemoryModel
from remanence.training.tasks.prompts import Prompts

Through = Literal["last", "all"]


@dataclass(frozen=True)
class PoolBatch:
    """One step: M chunks to write, and R rows that read the pools made of them.

    Attributes:
        chunks: `[M, n]`, left-padded; lengths: tokens of each.
        order: `[R, C]`, what each row has written into its pool, oldest first: chunks, or past them those of the bank.
        targets: `[R, M]` bool, the chunks that a row's questions are about.
        num_bank_chunks: chunks of earlier steps that pools are filled with too.
    """

    chunks: Tensor
    lengths: list[int]
    order: Tensor
    targets: Tensor
    prompts: Prompts
    num_bank_chunks: int = 0


class TrainingCache(PrefixCache):
    """A prefix in front of rows whose masks and positions come with the call: examples side by side in one row do not
    see each other."""

    def before_decoder(self, rows: int, tokens: int, device: torch.device) -> dict[str, Any]:
        return {}


def surviving_slots(
    order: Tensor, layers: int, slots: int, k: int, generator: torch.Generator
) -> Tensor:  # [R, L, min(N, C * K)]
    """Which of M * K slots (chunk m made m * K .. m * K + K - 1) a pool of N holds after C writes, oldest first.

    Evictions are drawn as a write draws them: a slot outlives t later writes with probability (1 - K/N)^t, in each
    layer on its own (MemoryLLM, eq. 3). A pool that was not full before the first of them is not full here either.
    """
    rows, count = order.shape
    numbered = (order[:, :, None] * k + torch.arange(k)).view(rows, 1, -1).expand(rows, layers, -1)
    if count * k <= slots:
        return numbered
    age = torch.arange(count - 1, -1, -1).repeat_interleave(k)
    alive = torch.rand(rows, layers, count * k, generator=generator) < (1 - k / slots) ** age
    # Survivors vary in number around N: keep the newest N, and fill up with the oldest of the dead.
    place = torch.arange(count * k)
    rank = torch.where(alive, place, -1 - place).argsort(dim=-1)[..., -slots:]
    return numbered.gather(-1, rank.sort(dim=-1).values)


def write_chunks(
    model: MemoryModel,
    chunks: Tensor,
    lengths: list[int],
    previous: Tensor | None,
    through: Sequence[int] | None = None,
) -> Tensor:  # chunks [M, n] -> [M, L, K, d]
    """The slots of all chunks, with gradient; `previous` `[M, L, K, d]` stands for the newest slots before each.

    Args:
        through: the chunks whose write takes gradient; None: all. Others keep no activations.
    """
    if through is None or len(through) == len(chunks):
        return _write_chunks(model, chunks, lengths, previous)
    others = sorted(set(range(len(chunks))) - set(through))
    parts = []
    for numbers, gradient in ((list(through), torch.is_grad_enabled()), (others, False)):
        if numbers:
            before = None if previous is None else previous[numbers]
            with torch.set_grad_enabled(gradient):
                parts.append(_write_chunks(model, chunks[numbers], [lengths[n] for n in numbers], before))
    return torch.cat(parts)[torch.tensor([*through, *others]).argsort().to(chunks.device)]


def _write_chunks(model: MemoryModel, chunks: Tensor, lengths: list[int], previous: Tensor | None) -> Tensor:
    assert model.new_memory_positional_emb is not None
    with model.role("write"):
        return encode(
            model.backbone,
            chunks,
            previous,
            slots_per_write=model.slots_per_write,
            bos=model.bos_embedding,
            positional=model.new_memory_positional_emb,
            lengths=lengths,
        )


def pools_of(
    model: MemoryModel, made: Tensor, batch: PoolBatch, through: Through, generator: torch.Generator
) -> Tensor:  # [R, L, P, d]
    """Each row's pool, gathered from the new slots `[M, L, K, d]`; where gradient may not flow they are detached.

    `made` may have chunks of earlier steps behind those of this one. Where these are too few, others stand for them.
    """
    count, layers, k, size = made.shape
    order = batch.order % count
    index = surviving_slots(order, layers, model.slots, k, generator).to(made.device)
    by_layer = made.transpose(0, 1).reshape(layers, count * k, size)
    picked = [by_layer[layer].index_select(0, index[:, layer].reshape(-1)) for layer in range(layers)]
    pools = torch.stack(picked).view(layers, len(index), -1, size).transpose(0, 1)
    if through == "last":
        targets = F.pad(batch.targets, (0, count - batch.targets.shape[1])).to(index.device)
        kept = targets[:, None].expand(-1, layers, -1).gather(2, index // k)
        pools = torch.where(kept[..., None], pools, pools.detach())
    return pools


def read_prompts(model: MemoryModel, pools: Tensor | None, prompts: Prompts) -> Tensor:  # [R, T, d], last hidden states
    """A read in hidden form: gradients reach the pools `[R, L, P, d]` through the projections. None: no memory."""
    with model.role("read"):
        return _read_prompts(model, pools, prompts)


def _read_prompts(model: MemoryModel, pools: Tensor | None, prompts: Prompts) -> Tensor:
    rows = len(prompts.ids)
    cache, seen, positions = None, prompts.mask, prompts.positions
    if pools is not None:
        if model.bos_embedding is not None:
            pools = torch.cat([model.bos_embedding[None].expand(rows, -1, -1, -1), pools], dim=2)
        prefix = pools.shape[2]
        cache = TrainingCache(model.backbone, hidden_prefix(model.backbone, pools), prefix)
        seen = torch.cat([seen.new_ones(rows, seen.shape[1], prefix), seen], dim=2)
        positions = positions + prefix
    out = model.backbone.decoder(
        input_ids=prompts.ids,
        attention_mask=seen[:, None],
        position_ids=positions,
        past_key_values=cache,
        use_cache=cache is not None,
    )
    hidden: Tensor = out.last_hidden_state
    return hidden


def label_loss(model: MemoryModel, hidden: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Mean next-token loss over the labels, and which are right `[R, T]` (positions without a label count as right)."""
    counted = labels != -100
    logits = model.hf.get_output_embeddings()(hidden[counted]).float()
    right = torch.ones_like(counted)
    right[counted] = logits.argmax(-1) == labels[counted]
    return F.cross_entropy(logits, labels[counted]), right
