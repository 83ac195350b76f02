"""Training beyond the pool (M+, section 3.3): rows ask about chunks whose slots have gone to long-term memory.

One step writes M chunks side by side, and draws on a bank of chunks that earlier steps wrote. Each row reads a pool of
some of these chunks, and retrieves from all others and the bank, layer by layer, as a read does. Two losses come of it:
that of the answer, and that of the retriever. The latter is -log p+ - log(1 - p-), where p is the mean sigmoid score of
the slots of the chunk asked about (p+) and of others (p-), or a cross-entropy over the scores of single slots.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import CacheLayerMixin, DynamicLayer

from remanence.memory.scoring import CrossLayerPrior, mean_sigmoid
from remanence.model.model import MemoryModel
from remanence.training.tasks.pool_task import PoolBatch, TrainingCache, surviving_slots
from remanence.training.tasks.prompts import Prompts

_EPS = 1e-5  # inside logarithms, as in the published code
_SATURATED = 6.0  # |q·k| past which a sigmoid has hardly a gradient, and many slots score exactly alike


@dataclass(frozen=True, kw_only=True)
class LongTermBatch(PoolBatch):
    """Rows ask about one chunk each, or all about none; they retrieve what their pools do not hold.

    Attributes:
        ignore_mask: `[R, M]` bool, others about the same, left out of the retriever's loss: no key says which of two
            facts is the newer.
        query_mask: `[R, T]` bool, the tokens that ask.
    """

    ignore_mask: Tensor
    query_mask: Tensor


@dataclass(frozen=True)
class RetrieverLoss:
    """How the retriever is trained.

    Attributes:
        temperature: each slot of the chunk asked about is told from all wrong ones by cross-entropy over score /
            temperature. None: -log p+ - log(1 - p-), as published; where what is asked about has near doubles, it is
            smallest with all slots scored alike.
        push_back: weight of a loss on products that saturate their sigmoid, without which queries and keys that learn
            together by cross-entropy outgrow it.
        detach: keep the gradient from the hidden states of slots, as published. Queries are always detached.
        random_prefix: how often the loss sees the beginning of a prompt only.
        weight: of the loss against that of the answers, whose gradient is so much larger that where slots do not say
            yet what they are about, the writer is never told to make them say it.
    """

    temperature: float | None = None
    push_back: float = 0.0
    detach: bool = True
    random_prefix: float = 0.5
    weight: float = 1.0


class SlotBank:
    """What earlier steps wrote: it fills pools, stands in front of the next writes, and is retrieved by mistake.

    A slot of a memory of a hundred thousand is mistaken for others that a few thousand do not hold, so the bank is
    about as large as the memory to come. Only what is hardest to tell from what is asked about takes part in a step.
    It holds the newest chunks: at most `capacity`, or those of one step where that is more.

    Attributes:
        slots: `[L, C, K, d]` float32, in no order.
        keys: `[L, C, K, P]`, their retrieval keys as they were when written; P is 0 without a retriever.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.slots, self.keys = torch.empty(0), torch.empty(0)
        self._count = self._next = 0

    def __len__(self) -> int:
        return self._count

    @torch.no_grad()
    def add(self, made: Tensor, keys: Tensor) -> None:  # [M, L, K, d], [M, L, K, P]
        """Take a step's chunks in; the oldest go. Copies nothing of what is there."""
        parts = [part.transpose(0, 1).float() for part in (made, keys)]
        count = len(made)
        if count >= self.capacity:
            self.slots, self.keys = (part.clone() for part in parts)
            self._count, self._next = count, 0
            return
        if self.slots.shape[1:2] != (self.capacity,):
            self.slots, self.keys = (part.new_empty(len(part), self.capacity, *part.shape[2:]) for part in parts)
            self._count = self._next = 0
        at = (self._next + torch.arange(count, device=made.device)) % self.capacity
        self.slots[:, at], self.keys[:, at] = parts
        self._next = (self._next + count) % self.capacity
        self._count = min(self.capacity, self._count + count)

    def draw(self, count: int, generator: torch.Generator) -> Tensor:  # [min(count, C)], numbers of chunks
        """Different chunks, in no order."""
        return torch.randperm(self._count, generator=generator)[:count]

    def chunks(self, numbers: Tensor) -> Tensor:  # [n] -> [n, L, K, d]
        return self.slots[:, numbers.to(self.slots.device)].transpose(0, 1)

    @torch.no_grad()
    def hardest(
        self, layer: int, queries: Tensor, query_mask: Tensor, each: int, known: Tensor
    ) -> tuple[Tensor, Tensor]:  # [H, d], [H]
        """Slots that any row scores among its `each` best, as a read scores them, and their numbers: K to a chunk.

        None of the chunks `known` is among them.

        `queries` `[R, T, P]`, of which those tokens count that `query_mask` `[R, T]` says.
        """
        keys = self.keys[layer, : self._count].flatten(0, 1)  # [C · K, P]
        asking = [row[tokens].float() for row, tokens in zip(queries, query_mask, strict=True)]
        scores = torch.stack([mean_sigmoid(row, keys) for row in asking]).unflatten(1, (self._count, -1))
        scores[:, known.to(scores.device)] = -torch.inf
        free = (self._count - len(known)) * scores.shape[2]
        best = scores.flatten(1).topk(min(each, free), dim=1, sorted=False).indices.unique()
        return self.slots[layer, : self._count].flatten(0, 1)[best], best

    def state_dict(self) -> dict[str, Tensor]:
        """Tensors only."""
        filled = slice(0, self._count)
        parts = {"slots": self.slots[:, filled], "keys": self.keys[:, filled]}
        return {**{name: part.contiguous().cpu() for name, part in parts.items()}, "next": torch.tensor(self._next)}

    def load_state_dict(self, state: dict[str, Tensor], device: torch.device) -> None:
        slots, keys = (state[name].to(device) for name in ("slots", "keys"))
        self._count = self._next = 0
        self.add(slots.transpose(0, 1), keys.transpose(0, 1))
        self._next = int(state["next"])


class TrainingRetrievalCache(TrainingCache):
    """The prefix of a training read: [bos | retrieved | pool], each layer's made when its queries are there.

    Attributes:
        losses: the retriever's, per layer; share: how much of the chunk asked about was within reach, per layer: in the
            pool or among the retrieved.
    """

    def __init__(
        self,
        model: MemoryModel,
        slots: Tensor,  # [S, L, d]
        time: Tensor,  # [S], when they were written
        pool: Tensor,  # [R, L, N], of them
        target_mask: Tensor,  # [R, S] bool
        ignore_mask: Tensor,  # [R, S] bool
        query_mask: Tensor,  # [R, T] bool, the tokens that ask
        others: Callable[[int, Tensor], tuple[Tensor, Tensor]],  # layer, queries [R, T, P] -> more slots [H, d], [H]
        loss: RetrieverLoss,
        generator: torch.Generator,
    ) -> None:
        rules = model.config.longterm
        assert rules is not None and model.retriever is not None
        layers: list[CacheLayerMixin] = [DynamicLayer() for _ in model.backbone.layers]
        self.wanted = max(0, min(rules.retrieved, len(slots) - pool.shape[2]))
        super().__init__(model.backbone, layers, (model.bos_embedding is not None) + self.wanted + pool.shape[2])
        self.model, self.slots, self.time, self.pool, self.query_mask = model, slots, time, pool, query_mask
        self.target_mask, self.wrong = target_mask, ~(target_mask | ignore_mask)
        self.others, self.settings, self.generator = others, loss, generator
        self.losses: list[Tensor] = []
        self.share: list[float] = []
        temperature = rules.cross_layer_prior
        self.prior = CrossLayerPrior(temperature, model.slots_per_write) if temperature else None
        positions = torch.arange(self.prefix, device=slots.device)[None]
        self.rotary = model.backbone.rotary(positions, slots[..., :0].to(model.backbone.dtype))

    def before_attention(self, layer: int, normed: Tensor) -> None:  # [R, T, d]
        if self.layers[layer].is_initialized:
            return  # activation checkpointing asks again
        backbone, retriever = self.model.backbone, self.model.retriever
        assert retriever is not None
        queries = retriever.query[layer](normed.detach())  # [R, T, P]
        others, numbers = self.others(layer, queries.detach())
        hidden = torch.cat([self.slots[:, layer], others.to(self.slots.dtype)])  # [S + H, d]
        scores = self._scores(layer, queries, hidden)
        pool, asked = self.pool[:, layer], nn.functional.pad(self.target_mask, (0, len(others)))
        if self.prior is None or not layer:
            free = scores.detach().scatter(1, pool, -1)
        else:  # what is best may be read twice, as in a read
            serial = torch.cat([torch.arange(len(self.slots), device=numbers.device), len(self.slots) + numbers])
            free = self.prior.apply(scores.detach(), serial)
        picked = free.topk(self.wanted).indices
        time = torch.randint(len(self.slots), (len(others),), generator=self.generator).to(self.time.device)
        picked = picked.gather(1, torch.cat([self.time, time])[picked].argsort(dim=1))
        chosen = torch.cat([picked, pool], dim=1)
        if asked.any():
            within = asked & torch.zeros_like(asked).scatter(1, chosen, True)
            self.share.append(float((within.sum(1) / asked.sum(1)).mean()))
        keys, values = (part[chosen] for part in backbone.project(layer, hidden))  # [R, K0 + N, H, D]
        if self.model.bos_embedding is not None:
            bos = backbone.project(layer, self.model.bos_embedding[layer])
            keys, values = (
                torch.cat([first.expand(len(rows), -1, -1, -1).to(rows.dtype), rows], dim=1)
                for first, rows in zip(bos, (keys, values), strict=True)
            )
        cos, sin = self.rotary(layer)
        self.layers[layer].update(backbone.rotate(layer, keys, cos, sin).transpose(1, 2), values.transpose(1, 2))

    def _scores(self, layer: int, queries: Tensor, hidden: Tensor) -> Tensor:  # [R, S + H]
        retriever = self.model.retriever
        assert retriever is not None
        seen = self.model.backbone.normed(layer, hidden.detach() if self.settings.detach else hidden)
        products = (queries @ retriever.key[layer](seen).t()).float()  # [R, T, S + H]
        each = products.sigmoid()
        scores = _mean(each, self.query_mask)
        if self.target_mask.any():
            loss = self._loss(_mean(each, self._beginnings()) if self.settings.random_prefix else scores)
            if self.settings.push_back:
                past = (products.abs() - _SATURATED).relu().square().mean(2, keepdim=True)
                loss = loss + self.settings.push_back * _mean(past, self.query_mask).mean()
            self.losses.append(loss)
        return scores

    def _beginnings(self) -> Tensor:  # [R, T]
        """Each row's tokens, or of some rows only the first few."""
        number = self.query_mask.long().cumsum(1)
        last = number[:, -1:].float()
        rows = len(last)
        cut = (torch.rand(rows, 1, generator=self.generator).to(last.device) * last).ceil().clamp(min=1)
        whole = torch.rand(rows, 1, generator=self.generator).to(last.device) >= self.settings.random_prefix
        return self.query_mask & (number <= torch.where(whole, last, cut))

    def _loss(self, scores: Tensor) -> Tensor:  # [R, S + H]
        others = scores.shape[1] - len(self.slots)
        asked, wrong = (
            nn.functional.pad(self.target_mask, (0, others)),
            nn.functional.pad(self.wrong, (0, others), value=True),
        )
        if self.settings.temperature is not None:
            logits = scores / self.settings.temperature
            rivals = logits.masked_fill(~wrong, torch.finfo(logits.dtype).min).logsumexp(1, keepdim=True)
            each = nn.functional.softplus(rivals - logits)  # -log of a slot's share against its rivals
            return ((each * asked).sum(1) / asked.sum(1)).mean()
        positive = (scores * asked).sum(1) / asked.sum(1)
        negative = (scores * wrong).sum(1) / wrong.sum(1).clamp(min=1)  # a first batch may have no others
        return (-(positive + _EPS).log() - (1 - negative + _EPS).log()).mean()


def _mean(each: Tensor, counted: Tensor) -> Tensor:  # [R, T, X], [R, T] -> [R, X]
    """The mean over the tokens that count."""
    weight = counted.to(each.dtype)
    return torch.einsum("rtx,rt->rx", each, weight) / weight.sum(1, keepdim=True)


def build_retrieval_cache(
    model: MemoryModel,
    made: Tensor,  # [M, L, K, d]
    bank: SlotBank,
    batch: LongTermBatch,
    loss: RetrieverLoss,
    generator: torch.Generator,
) -> TrainingRetrievalCache:
    """The cache of a step's read. Where the bank is not full yet, chunks past its end stand for others.

    Which chunks count as old is drawn anew: what is asked about must not always be the newest of what is retrieved. The
    step's own chunks keep their order in time.
    """
    assert model.config.longterm is not None
    retrieved = model.config.longterm.retrieved
    near = bank.draw(batch.num_bank_chunks, generator)
    chunks = torch.cat([made, bank.chunks(near).to(made.dtype)]) if len(near) else made
    count, layers, k, size = chunks.shape
    slots = chunks.transpose(1, 2).reshape(count * k, layers, size)
    place = torch.randperm(count, generator=generator)  # of each chunk in time
    place[: len(made)] = place[: len(made)].sort().values
    pool = surviving_slots(batch.order % count, layers, model.slots, k, generator)
    marked = nn.functional.pad(torch.stack([batch.targets, batch.ignore_mask]), (0, count - len(made)))
    asked, spared = marked.repeat_interleave(k, dim=2).to(made.device)

    def others(layer: int, queries: Tensor) -> tuple[Tensor, Tensor]:
        if len(bank) <= len(near):
            return slots[:0, layer], asked.new_empty(0, dtype=torch.long)
        return bank.hardest(layer, queries, batch.query_mask, retrieved, near)

    time = (place[:, None] * k + torch.arange(k)).flatten().to(made.device)
    return TrainingRetrievalCache(
        model, slots, time, pool.to(made.device), asked, spared, batch.query_mask, others, loss, generator
    )


def recall_prompts(model: MemoryModel, cache: TrainingRetrievalCache, prompts: Prompts) -> Tensor:  # [R, T, d]
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


def question_mask(prompts: Prompts, cues: Sequence[Sequence[int]]) -> Tensor:
    """`[R, T]` bool: the tokens of the questions, without those of the answers."""
    width = prompts.ids.shape[1] // prompts.examples
    counted = torch.zeros(len(prompts.ids), prompts.examples, width, dtype=torch.bool)
    for row, lengths in enumerate(cues):
        for example, length in enumerate(lengths):
            counted[row, example, :length] = True
    return counted.flatten(1)
