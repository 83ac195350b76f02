"""Training beyond the pool (M+, section 3.3): rows ask about chunks whose slots have gone to long-term memory.

One step writes M chunks side by side, and draws on a bank of chunks that earlier steps wrote. Each row reads a pool of
some of these chunks, and retrieves from all others, layer by layer, as a read does. Two losses come of it: that of the
answer, and that of the retriever, -log p+ - log(1 - p-), where p is the mean sigmoid score of the slots of the chunk
asked about (p+) and of others (p-).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from remanence.model.families import rotate
from remanence.model.memory_model import MemoryModel
from remanence.model.prefix import PrefixCache
from remanence.training.objectives import Prompts, surviving_slots

_EPS = 1e-5  # inside logarithms, as in the published code


@dataclass(frozen=True)
class Recollections:
    """One step: M chunks to write, and R rows that ask about one chunk each.

    Attributes:
        chunks: `[M, n]`, left-padded; lengths: tokens of each.
        order: `[R, C]`, what each row has written into its pool, oldest first: chunks, or past them the bank's.
        asked: `[R]`, the chunk that a row asks about; counted: `[R, T]` bool, the tokens that ask.
    """

    chunks: Tensor
    lengths: list[int]
    order: Tensor
    asked: Tensor
    prompts: Prompts
    counted: Tensor


@dataclass(frozen=True)
class RetrieverLoss:
    """How the retriever is trained.

    Attributes:
        temperature: p- weighs wrong slots by the softmax of score / temperature; None: all alike, as published. Most
            slots are easy to tell apart and teach nothing; yet the hardest alone would first teach the retriever to
            score all slots alike.
        detach: keep the gradient from the hidden states of slots, as published. Queries are always detached.
        random_prefix: how often the loss sees the beginning of a prompt only.
        weight: of the loss against that of the answers, whose gradient is so much larger that where slots do not say
            yet what they are about, the writer is never told to make them say it.
    """

    temperature: float | None = None
    detach: bool = True
    random_prefix: float = 0.5
    weight: float = 1.0


class RecallingCache(PrefixCache):
    """The prefix of a training read: [bos | retrieved | pool], each layer's made when its queries are there.

    Attributes:
        losses: the retriever's, per layer; share: how much of the chunk asked about was within reach, per layer: in the
            pool or among the retrieved.
    """

    def __init__(
        self,
        model: MemoryModel,
        slots: Tensor,  # [S, L, d], in the order in which they were written
        pool: Tensor,  # [R, L, N], of them
        asked: Tensor,  # [R, S] bool
        counted: Tensor,  # [R, T] bool, the tokens that ask
        loss: RetrieverLoss,
        generator: torch.Generator,
    ) -> None:
        assert model.longterm is not None and model.retriever is not None
        layers: list[CacheLayerMixin] = [DynamicLayer() for _ in model.backbone.layers]
        self.wanted = min(model.longterm.retrieved, len(slots) - pool.shape[2])
        super().__init__(layers, (model.bos_embedding is not None) + self.wanted + pool.shape[2])
        self.model, self.slots, self.pool, self.asked, self.counted = model, slots, pool, asked, counted
        self.settings, self.generator = loss, generator
        self.losses: list[Tensor] = []
        self.share: list[float] = []
        positions = torch.arange(self.prefix, device=slots.device)[None]
        self.rotary = model.backbone.rotary(positions, slots[..., :0].to(model.backbone.dtype))

    def retrieving(self, layer: int, normed: Tensor) -> None:  # [R, T, d]
        backbone, hidden = self.model.backbone, self.slots[:, layer]
        scores = self._scores(layer, normed.detach(), hidden)  # [R, S]
        pool = self.pool[:, layer]
        picked = scores.detach().scatter(1, pool, -1).topk(self.wanted).indices.sort(dim=1).values
        chosen = torch.cat([picked, pool], dim=1)
        self.share.append(float((self.asked.gather(1, chosen).sum(1) / self.asked.sum(1)).mean()))
        keys, values = (part[chosen] for part in backbone.project(layer, hidden))  # [R, K0 + N, H, D]
        if self.model.bos_embedding is not None:
            bos = backbone.project(layer, self.model.bos_embedding[layer])
            keys, values = (
                torch.cat([first.expand(len(rows), -1, -1, -1).to(rows.dtype), rows], dim=1)
                for first, rows in zip(bos, (keys, values), strict=True)
            )
        cos, sin = self.rotary(layer)
        self.layers[layer].update(rotate(keys, cos, sin).transpose(1, 2), values.transpose(1, 2))

    def _scores(self, layer: int, normed: Tensor, hidden: Tensor) -> Tensor:
        retriever = self.model.retriever
        assert retriever is not None
        queries = retriever.query[layer](normed)  # [R, T, P]
        seen = self.model.backbone.normed(layer, hidden.detach() if self.settings.detach else hidden)
        each = (queries @ retriever.key[layer](seen).t()).float().sigmoid()  # [R, T, S]
        scores = _mean(each, self.counted)
        trained = _mean(each, self._beginnings()) if self.settings.random_prefix else scores
        self.losses.append(self._loss(trained))
        return scores

    def _beginnings(self) -> Tensor:  # [R, T]
        """Each row's tokens, or of some rows only the first few."""
        number = self.counted.long().cumsum(1)
        last = number[:, -1:].float()
        rows = len(last)
        cut = (torch.rand(rows, 1, generator=self.generator).to(last.device) * last).ceil().clamp(min=1)
        whole = torch.rand(rows, 1, generator=self.generator).to(last.device) >= self.settings.random_prefix
        return self.counted & (number <= torch.where(whole, last, cut))

    def _loss(self, scores: Tensor) -> Tensor:
        positive = (scores * self.asked).sum(1) / self.asked.sum(1)
        if self.settings.temperature is None:
            negative = (scores * ~self.asked).sum(1) / (~self.asked).sum(1)
        else:
            logits = scores.detach() / self.settings.temperature
            negative = (scores * logits.masked_fill(self.asked, -torch.inf).softmax(1)).sum(1)
        return (-(positive + _EPS).log() - (1 - negative + _EPS).log()).mean()


def _mean(scores: Tensor, counted: Tensor) -> Tensor:  # [R, T, S], [R, T] -> [R, S]
    weight = counted.to(scores.dtype)
    return torch.einsum("rts,rt->rs", scores, weight) / weight.sum(1, keepdim=True)


def recalling(
    model: MemoryModel,
    made: Tensor,  # [M, L, K, d]
    bank: Tensor,  # [B, L, K, d], oldest first
    batch: Recollections,
    loss: RetrieverLoss,
    generator: torch.Generator,
) -> RecallingCache:
    """The cache of a step's read. Where the bank is not full yet, chunks past its end stand for others in it.

    Which chunks count as old is drawn anew: what is asked about must not always be the newest of what is retrieved.
    """
    chunks = torch.cat([made, bank.to(made.dtype)])
    count, layers, k, size = chunks.shape
    place = torch.randperm(count, generator=generator)  # of each chunk in time
    slots = chunks[place.argsort().to(chunks.device)].transpose(1, 2).reshape(count * k, layers, size)
    pool = surviving_slots(place[batch.order.cpu() % count], layers, model.slots, k, generator)
    asked = torch.zeros(len(batch.asked), count, dtype=torch.bool)
    asked[torch.arange(len(asked)), place[batch.asked.cpu()]] = True
    device = made.device
    return RecallingCache(
        model, slots, pool.to(device), asked.repeat_interleave(k, dim=1).to(device), batch.counted, loss, generator
    )


def recall_prompts(model: MemoryModel, cache: RecallingCache, prompts: Prompts) -> Tensor:  # [R, T, d]
    """A read whose prefix comes layer by layer."""
    seen = prompts.mask
    seen = torch.cat([seen.new_ones(len(seen), seen.shape[1], cache.prefix), seen], dim=2)
    with model.role("read"):
        out: Any = model.backbone.decoder(
            input_ids=prompts.ids,
            attention_mask=seen[:, None],
            position_ids=prompts.positions + cache.prefix,
            past_key_values=cache,
            use_cache=True,
        )
    hidden: Tensor = out.last_hidden_state
    return hidden


def asking(prompts: Prompts, cues: Sequence[Sequence[int]]) -> Tensor:
    """`[R, T]` bool: the tokens of the questions, without those of the answers."""
    width = prompts.ids.shape[1] // prompts.examples
    counted = torch.zeros(len(prompts.ids), prompts.examples, width, dtype=torch.bool)
    for row, lengths in enumerate(cues):
        for example, length in enumerate(lengths):
            counted[row, example, :length] = True
    return counted.flatten(1)
