"""Documents as lessons: the beginning is written into memory, and what follows is predicted from it.

| lesson | written | predicted |
|---|---|---|
| document | chunks x1 .. xn-1, into an empty pool or behind what is there | xn |
| revisit | the same, and then other chunks, as many as the distance says | xn |
| repeat | the same | xn-1 itself, behind the word "Repeat:" |

As published (MemoryLLM, section 3.2, algorithm 1; M+, appendix D), but for one thing: chunks of a step are written side
by side, so that none stands in front of the next one's write; slots of earlier steps do.
"""

import itertools
import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from remanence.errors import InvalidInputError
from remanence.training.curriculum import Batch
from remanence.training.sources import DocumentStream
from remanence.training.tasks.longterm_task import LongTermBatch
from remanence.training.tasks.pool_task import PoolBatch
from remanence.training.tasks.prompts import Example, left_pad, pack

REPEAT = "Repeat:"
MOST_JOINED = 1000


@dataclass(frozen=True)
class Lessons:
    """What a stage asks for.

    Attributes:
        tokens: of a document that are read at most; the rest of a longer one is cut off, at a place that is drawn.
        fewest: documents shorter than two chunks of so many tokens are joined with those behind them.
        full: how often the pool is full of other chunks before the document is written (published: the ratio of
            concatenation to the maximum memory).
        repeat: share of that lesson; revisit: of that.
        distance: mean number of writes between a document and what revisits it.
        contexts: (step, chunks): from each step on, at most so many lie between.
    """

    tokens: int
    fewest: int = 16
    full: float = 0.8
    repeat: float = 0.1
    revisit: float = 1 / 3
    distance: float = 60.0
    contexts: tuple[tuple[int, int], ...] = ((0, 50), (100_000, 100), (200_000, 200))


class DocumentTask:
    """Builds the batches of a training step.

    Args:
        documents: a batch begins at `rows` of them, by its number.
        slots_per_write: K; slots: N.
        chunk: most tokens of a chunk.
        rows: documents per batch; each reads a pool of its own.
        longterm: ask beyond the pool, of a model with a retriever.
    """

    def __init__(
        self,
        tokenizer: Any,
        documents: DocumentStream,
        lessons: Lessons,
        *,
        slots: int,
        slots_per_write: int,
        chunk: int = 512,
        rows: int = 1,
        longterm: bool = False,
        seed: int = 0,
    ) -> None:
        if not 1 < 2 * lessons.fewest <= lessons.tokens or lessons.fewest > chunk:
            raise InvalidInputError(
                f"a document of {lessons.tokens} tokens has no two chunks of {lessons.fewest} to {chunk}; "
                "let `tokens` be larger or `fewest` smaller"
            )
        self.tokenizer, self.documents, self.lessons = tokenizer, documents, lessons
        self.capacity, self.chunk, self.rows = slots // slots_per_write, chunk, rows
        self.k, self.longterm, self.seed = slots_per_write, longterm, seed
        self.pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        self.begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        self.repeat: list[int] = [*self.begin, *tokenizer(REPEAT, add_special_tokens=False)["input_ids"]]

    def batch(self, number: int, step: int) -> Batch:
        """Batch `number` of the run, at an optimizer step that says how far revisits go."""
        rng = random.Random(f"{self.seed}/{number}")
        texts = [self._chunks(number * self.rows + row, rng) for row in range(self.rows)]
        drawn = rng.random()
        kind = "repeat" if drawn < self.lessons.repeat else "document"
        if self.lessons.repeat <= drawn < self.lessons.repeat + self.lessons.revisit:
            kind = "revisit"
        most = max(chunks for start, chunks in self.lessons.contexts if start <= step)
        later = 0 if kind != "revisit" else min(most, 1 + int(rng.expovariate(1 / self.lessons.distance)))
        ids, lengths = left_pad([chunk for text in texts for chunk in text[:-1]], self.pad, self.k)
        own = [len(text) - 1 for text in texts]
        prompts = pack([[self._example(text, kind)] for text in texts], self.pad)
        full = self.longterm or later > 0 or rng.random() < self.lessons.full
        count = max(own) if not full else max(self.capacity + self.capacity // 2, max(own) + later)
        if self.longterm:
            count = self.capacity + self.capacity // 2
        total, near = sum(own), count if self.longterm else count - min(own)
        order, starts = [], [sum(own[:row]) for row in range(len(own))]
        for start, mine in zip(starts, own, strict=True):
            others = [total + place for place in rng.sample(range(near), near)]
            line = [*others[later:], *range(start, start + mine), *others[:later]]
            order.append(line[-count:])
        targets, earlier = torch.zeros(2, len(own), total, dtype=torch.bool)
        for row, (start, mine) in enumerate(zip(starts, own, strict=True)):
            targets[row, start + mine - 1] = True
            earlier[row, start : start + mine - 1] = True
        parts = ids, lengths, torch.tensor(order), targets, prompts, near
        if not self.longterm:
            return {"batch": PoolBatch(*parts), "task": kind}
        beyond = LongTermBatch(*parts, ignore_mask=earlier, query_mask=prompts.labels != -100)
        return {"batch": beyond, "task": f"{kind}_longterm"}

    def _example(self, text: Sequence[list[int]], kind: str) -> Example:
        if kind == "repeat":
            return Example(self.repeat, text[-2])
        last = [*self.begin, *text[-1]]
        return Example(last[:1], last[1:])

    def _chunks(self, number: int, rng: random.Random) -> list[list[int]]:
        """At least two, all about as long."""
        ids: list[int] = []
        wide = 8 * self.lessons.tokens  # characters; few tokens have more
        for joined, text in enumerate(self.documents.since(number)):
            if joined > MOST_JOINED:
                raise InvalidInputError(f"{MOST_JOINED} documents together have {len(ids)} tokens; are they empty?")
            start = rng.randrange(max(1, len(text) - wide))
            ids += self.tokenizer(text[start : start + wide], add_special_tokens=False)["input_ids"]
            if len(ids) >= 2 * self.lessons.fewest:
                break
        ids = ids[: self.lessons.tokens]
        count = max(2, -(-len(ids) // self.chunk))
        cuts = [len(ids) * place // count for place in range(count + 1)]
        return [ids[start:end] for start, end in itertools.pairwise(cuts)]
