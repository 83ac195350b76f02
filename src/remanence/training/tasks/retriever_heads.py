"""What is trained of a token retriever: two projections of frozen features, the shares of tokens, and the fusion."""

import math
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import dropout, normalize, softplus

from remanence.memory.late import Fusion
from remanence.model.retriever import TokenRetriever


class Segments(NamedTuple):
    """Features of several texts, one behind the other: `[N, F]`, and where each begins and the last ends, `[C + 1]`."""

    rows: Tensor
    starts: Tensor


class Batch(NamedTuple):
    """Questions against chunks.

    Attributes:
        kept: `[q]` bool, which tokens of the questions count.
        lexical: `[Q, C]`, the scores of words.
        right: `[Q, C]` bool, which chunks answer.
        silent: `[Q]` bool, questions whose words are not looked at.
    """

    questions: Segments
    chunks: Segments
    kept: Tensor
    lexical: Tensor
    right: Tensor
    silent: Tensor


class Heads(nn.Module):
    """f_q and f_k for each token, over standardised features; `shares` and `offset` of a question's tokens."""

    def __init__(self, features: int, size: int, drop: float) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(features, size), nn.Linear(features, size)
        self.share, self.offset = nn.Linear(features, 1, bias=False), nn.Linear(features, 1)
        nn.init.normal_(self.query.weight, std=1 / math.sqrt(features))
        with torch.no_grad():  # alike at first, so that a word finds itself
            self.key.weight.copy_(self.query.weight)
        for part in (self.query.bias, self.key.bias, self.share.weight, self.offset.weight, self.offset.bias):
            nn.init.zeros_(part)
        self.fusion = nn.Parameter(torch.tensor([10.0, 9.0, -6.0, 12.0, -6.0]))  # as `Fusion` has them
        self.sharpness = nn.Parameter(torch.tensor(0.0))  # log, of the softmax over chunks
        self._drop = drop

    def loss(self, batch: Batch) -> Tensor:
        """Cross-entropy over the chunks, and of the score of the right one and the likest wrong ones by themselves."""
        scores = self.scores(batch)
        sharp = scores * self.sharpness.exp()
        ranked = (sharp.logsumexp(1) - sharp.masked_fill(~batch.right, -torch.inf).logsumexp(1)).mean()
        right = scores.masked_fill(~batch.right, -torch.inf).amax(1)
        wrong = scores.masked_fill(batch.right, -torch.inf).topk(3, dim=1).values
        told = softplus(-right).mean() + softplus(wrong[:, 0]).mean() + 0.5 * softplus(wrong[:, 1:]).mean()
        return ranked + 0.5 * told

    def keys(self, chunks: Segments) -> Tensor:  # [N, S]
        """The vectors of the chunks' tokens."""
        return normalize(self.key(dropout(chunks.rows, self._drop, self.training)), dim=-1)

    def scores(self, batch: Batch, keys: Tensor | None = None) -> Tensor:  # [Q, C], logits
        """`keys`: what `keys` made of the chunks; None: made here."""
        asked = dropout(batch.questions.rows, self._drop, self.training)
        queries = normalize(self.query(asked), dim=-1)
        keys = self.keys(batch.chunks) if keys is None else keys
        weights = self.share(asked)[:, 0].masked_fill(~batch.kept, -30.0)
        shares = _softmax(weights, batch.questions.starts)
        best = _best(queries.detach(), keys.detach(), batch.chunks.starts)
        products = (queries[:, None] * keys[best]).sum(-1)  # [q, C]
        late = _sum(products * shares[:, None], batch.questions.starts)
        offset = _sum(self.offset(asked)[:, 0] * shares, batch.questions.starts)[:, None]
        with_words = self.fusion[0] * batch.lexical + self.fusion[1] * late + self.fusion[2]
        alone = self.fusion[3] * late + self.fusion[4]
        return torch.where(batch.silent[:, None], alone, with_words) + offset

    @torch.no_grad()
    def retriever(self, layers: tuple[int, ...], asked: "Scale", held: "Scale") -> TokenRetriever:
        """What reads features as they are: the scales go into the weights."""
        query, key = self.query.weight / asked.spread, self.key.weight / held.spread
        offset = self.offset.weight[0] / asked.spread
        weights = {
            "query": query,
            "query_bias": self.query.bias - query @ asked.mean,
            "key": key,
            "key_bias": self.key.bias - key @ held.mean,
            "share": self.share.weight[0] / asked.spread,
            "offset": offset,
            "offset_bias": self.offset.bias[0] - offset @ asked.mean,
        }
        return TokenRetriever(layers, weights, Fusion(*self.fusion.tolist()))


class Scale(NamedTuple):
    """Mean and spread of features, `[F]` each. Standardised ones are kept as int8, up to 4.5 spreads off."""

    mean: Tensor
    spread: Tensor

    @classmethod
    def of(cls, rows: Tensor) -> "Scale":
        return cls(rows.float().mean(0), rows.float().std(0) + 1e-4)

    def reduced(self, rows: Tensor) -> Tensor:  # int8
        return ((rows.float() - self.mean) / self.spread * _STEPS).round().clamp(-127, 127).to(torch.int8)


_STEPS = 28


def standardised(rows: Tensor) -> Tensor:
    """What `Scale.reduced` made, as numbers."""
    return rows.float() / _STEPS


def _owners(starts: Tensor) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(starts) - 1), starts.diff())


def _sum(values: Tensor, starts: Tensor) -> Tensor:  # [N, ...] -> [C, ...]
    return values.new_zeros(len(starts) - 1, *values.shape[1:]).index_add(0, _owners(starts), values)


def _softmax(weights: Tensor, starts: Tensor) -> Tensor:  # [N] -> [N], each segment by itself
    at, there = _padded(starts)
    return weights[at].masked_fill(~there, -torch.inf).softmax(-1)[there]


def _padded(starts: Tensor) -> tuple[Tensor, Tensor]:  # [C, T] each
    """Rows of each segment, and which of them there are."""
    column = torch.arange(int(starts.diff().max()))[None]
    there = column < starts.diff()[:, None]
    return torch.where(there, starts[:-1, None] + column, 0), there


def _best(queries: Tensor, keys: Tensor, starts: Tensor) -> Tensor:  # [q, S], [N, S] -> [q, C]
    """The key of each chunk that each token of a question finds; in bfloat16, since the product is made again."""
    at, there = _padded(starts)
    products = queries.bfloat16() @ keys.bfloat16()[at].flatten(0, 1).t()
    likest = products.unflatten(1, at.shape).masked_fill(~there, -2).argmax(-1)
    return at[torch.arange(len(at)), likest]
