"""Recall tasks: chunks that hold facts, and questions about them, through memory and in plain context.

A decoder that cannot look a value up by its name has no use for a memory, and that circuit is what takes long to form.
So there are two kinds of chunk: name-value pairs, in which it forms, and biographies.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from remanence.data.biographies import ATTRIBUTES, Person, biography, question, sample_person
from remanence.training.tasks.longterm_task import LongTermBatch, question_mask
from remanence.training.tasks.pool_task import PoolBatch
from remanence.training.tasks.prompts import Example, Prompts, continued, left_pad, pack

PAIR_FORMATS = ("{} {}.", "{}: {}.", "{} is {}.", "{} has {}.")
LANGUAGE_ROWS, LANGUAGE_TOKENS = 16, 192  # of a batch of texts behind a memory
Kind = Literal["pairs", "biographies"]
Ask = Callable[[random.Random], tuple[str, str]]


@dataclass(frozen=True)
class Chunk:
    """A text, and the questions that it answers.

    Attributes:
        asks: by what they ask for; each gives a wording and the answer.
        about: the person whom the whole text is about; empty: several.
    """

    text: str
    asks: Mapping[str, Ask]
    about: str = ""

    def ask(self, rng: random.Random) -> tuple[str, str]:
        return rng.choice(list(self.asks.values()))(rng)


@dataclass(frozen=True)
class Difficulty:
    """What a batch asks for.

    Attributes:
        chunks_per_row: chunks that a row has written; 0: as many as the batch has, into a full pool.
        facts: fewest and most facts of a biography, or pairs of a list.
        attributes: which may be in a biography.
        names: draw people from so many first and last names only; None: all. values: likewise, of each attribute.
        open_share: how often a name or a value is one that stands on no list.
        pronouns: how often a sentence of a biography has a pronoun for the name.
        kind: what the chunks hold.
        prose: share of chunks that are ordinary prose, and hold nothing to ask.
    """

    chunks_per_row: int
    facts: tuple[int, int]
    attributes: tuple[str, ...] = ATTRIBUTES
    names: int | None = None
    values: int | None = None
    open_share: float = 0.0
    pronouns: float = 0.0
    kind: Kind = "biographies"
    prose: float = 0.25


def biography_chunk(rng: random.Random, difficulty: Difficulty, namesakes: Sequence[Person] = ()) -> Chunk:
    person = sample_person(
        rng,
        "train",
        names=difficulty.names,
        values=difficulty.values,
        namesakes=namesakes,
        open_share=difficulty.open_share,
    )
    attributes = rng.sample(difficulty.attributes, rng.randint(*difficulty.facts))

    def ask(attribute: str) -> Ask:
        return lambda rng: (question(person, attribute, rng), person.facts[attribute])

    text = biography(person, rng, attributes, pronouns=difficulty.pronouns)
    return Chunk(text, {attribute: ask(attribute) for attribute in attributes}, person.name)


def pairs_chunk(rng: random.Random, difficulty: Difficulty) -> Chunk:
    """`NAME VALUE.` a few times: what must be learned, without the English around it."""
    form = rng.choice(PAIR_FORMATS)
    drawn = [
        sample_person(rng, "train", names=difficulty.names, values=difficulty.values, open_share=difficulty.open_share)
        for _ in range(rng.randint(*difficulty.facts))
    ]
    people = {person.name: person for person in drawn}
    values = {name: p.facts[rng.choice(difficulty.attributes)] for name, p in people.items()}

    def ask(name: str, value: str) -> Ask:
        return lambda rng: (f"Question: {name}? Answer:", value)

    text = " ".join(form.format(name, value) for name, value in values.items())
    return Chunk(text, {name: ask(name, value) for name, value in values.items()})


MAKERS: dict[Kind, Callable[[random.Random, Difficulty], Chunk]] = {
    "pairs": pairs_chunk,
    "biographies": biography_chunk,
}


class RecallTask:
    """Builds the batches of a training step.

    Args:
        tokenizer: a fast tokenizer with an end-of-text token.
        prose: tokenized paragraphs of ordinary text.
        slots_per_write: K; slots: N.
        chunks: M, written per step; rows: R at most, reading per step; questions: asked per step.
    """

    def __init__(
        self,
        tokenizer: Any,
        prose: Sequence[Sequence[int]],
        *,
        slots: int,
        slots_per_write: int,
        chunks: int = 64,
        rows: int = 64,
        questions: int = 256,
    ) -> None:
        self.tokenizer, self.prose = tokenizer, prose
        self.capacity, self.k = slots // slots_per_write, slots_per_write
        self.chunks, self.rows, self.questions = chunks, rows, questions
        self.pad, self.end = tokenizer.pad_token_id, tokenizer.eos_token_id

    def through_memory(self, rng: random.Random, difficulty: Difficulty, scale: float = 1.0) -> PoolBatch:
        """M chunks to write; each row reads a pool of `chunks_per_row` of them and answers questions about some."""
        count = int(self.chunks * scale)
        ids, lengths, made = self._writes(rng, difficulty, count, lambda: self._chunk(rng, difficulty))
        telling = len(made)
        steady = difficulty.chunks_per_row == 0
        rows = min(self.rows, 16 if steady else max(16, telling // difficulty.chunks_per_row))
        written = count if steady else min(count, difficulty.chunks_per_row)
        each = max(4, int(self.questions * scale) // rows)
        order = np.stack([self._order(rng, count, telling, written) for _ in range(rows)])
        targets = torch.zeros(rows, count, dtype=torch.bool)
        pairs: list[tuple[str, str]] = []
        for row in range(rows):
            first = max(0, written - self.capacity - 1)
            candidates = [place for place in range(first, written) if order[row, place] < telling]
            for _ in range(each):
                chunk = order[row, rng.choice(candidates)]
                targets[row, chunk] = True
                pairs.append(made[chunk].ask(rng))
        return PoolBatch(ids, lengths, torch.from_numpy(order), targets, pack(self._rows(pairs, each), self.pad))

    def beyond_pool(
        self,
        rng: random.Random,
        difficulty: Difficulty,
        *,
        num_bank_chunks: int,
        shared: int = 0,
        allow_same_name: bool = False,
        in_pool: float = 0.35,
    ) -> LongTermBatch:
        """M biographies to write; each row asks about one of them, which its pool holds with chance `in_pool` only.

        A memory of many writes is full of people who share a name, and holds of some what was true once. Of two chunks
        that answer a question the later one is right, and the earlier one never stands in the pool, where it would be
        the newer.

        Args:
            num_bank_chunks: chunks of earlier steps to fill pools with too.
            shared: first names, and as many last ones, that the people of the batch share; 0: all that there are.
            allow_same_name: people may have both names in common, and are the same person then.
        """
        namesakes = [sample_person(rng, "train") for _ in range(shared)]
        names: set[str] = set()

        def another() -> Chunk:
            while (chunk := biography_chunk(rng, difficulty, namesakes)).about in names and not allow_same_name:
                pass
            names.add(chunk.about)
            return chunk

        ids, lengths, made = self._writes(rng, difficulty, self.chunks, another)
        written = self.past_full
        asked, order, pairs = [], [], []
        for _ in range(self.rows):
            drawn = rng.choice(made)
            key = rng.choice(list(drawn.asks))
            rivals = [c for c, chunk in enumerate(made) if chunk.about == drawn.about and key in chunk.asks]
            target = rivals[-1]
            others = rng.sample([c for c in range(self.chunks + num_bank_chunks) if c not in rivals], written)
            if rng.random() < in_pool:
                others[rng.randrange(written)] = target
            asked.append(target)
            order.append(others)
            pairs.append(made[target].asks[key](rng))
        about = [chunk.about for chunk in made] + [""] * (self.chunks - len(made))
        same = torch.tensor([[name == about[target] for name in about] for target in asked])
        targets = torch.tensor(asked)[:, None] == torch.arange(self.chunks)
        examples = self._rows(pairs, 1)
        prompts = pack(examples, self.pad)
        return LongTermBatch(
            ids,
            lengths,
            torch.tensor(order),
            targets,
            prompts,
            num_bank_chunks,
            ignore_mask=same & ~targets,
            query_mask=question_mask(prompts, [[len(example.cue) for example in row] for row in examples]),
        )

    def in_context(self, rng: random.Random, difficulty: Difficulty, scale: float = 1.0) -> Prompts:
        """The same questions with the text in front of them, and no memory."""
        most = 4 if difficulty.chunks_per_row == 0 else min(4, difficulty.chunks_per_row)
        per_row = rng.randint(min(2, most), most)
        rows = max(min(8, self.rows), int(self.chunks * scale * 0.5) // per_row)
        each = max(4, int(self.questions * scale * 0.5) // rows)
        contexts, pairs = [], []
        for _ in range(rows):
            made = [self._chunk(rng, difficulty) for _ in range(per_row)]
            texts = self._ids([chunk.text for chunk in made])
            if rng.random() < difficulty.prose:
                texts.insert(rng.randint(0, per_row), self._prose(rng, 24))
            contexts.append([token for text in texts for token in [*text, self.end]])
            pairs += [rng.choice(made).ask(rng) for _ in range(each)]
        return pack(self._rows(pairs, each), self.pad, contexts)

    def language(self, rng: random.Random, scale: float = 1.0) -> Prompts:
        """Plain language modelling: on prose, long and short, and on biographies with a question behind them."""
        count = int(8 * scale)
        long = [self._joined(rng, LANGUAGE_TOKENS) for _ in range(count)]
        short = [self._prose(rng, 96) for _ in range(count)]
        return continued(long + short + self._told(rng, count), self.pad)

    def language_behind_memory(self, rng: random.Random, difficulty: Difficulty) -> PoolBatch:
        """Texts that have nothing to do with what a full pool holds: what is of no use must do no harm."""
        return PoolBatch(*self._unrelated(rng, difficulty, min(self.chunks, self.past_full), 0))

    def language_beyond_pool(
        self, rng: random.Random, difficulty: Difficulty, *, num_bank_chunks: int
    ) -> LongTermBatch:
        """The same where slots are retrieved too. The retriever learns nothing of it: none of them is the right one."""
        parts = self._unrelated(rng, difficulty, self.past_full, num_bank_chunks)
        *_, targets, prompts, _ = parts
        return LongTermBatch(*parts, ignore_mask=torch.zeros_like(targets), query_mask=prompts.labels != -100)

    def _unrelated(self, rng: random.Random, difficulty: Difficulty, written: int, banked: int) -> Any:
        """What makes a `PoolBatch` of biographies and other texts."""
        ids, lengths, _ = self._writes(rng, difficulty, self.chunks, lambda: biography_chunk(rng, difficulty))
        order = [rng.sample(range(self.chunks + banked), written) for _ in range(LANGUAGE_ROWS)]
        targets = torch.zeros(LANGUAGE_ROWS, self.chunks, dtype=torch.bool)
        return ids, lengths, torch.tensor(order), targets, self._long_texts(rng), banked

    def _long_texts(self, rng: random.Random) -> Prompts:
        told = self._told(rng, LANGUAGE_ROWS // 4)
        prose = [self._joined(rng, LANGUAGE_TOKENS) for _ in range(LANGUAGE_ROWS - len(told))]
        return continued(prose + told, self.pad)

    def _told(self, rng: random.Random, count: int) -> list[list[int]]:
        """Biographies with a question and its answer behind them."""
        told = []
        for _ in range(count):
            person = sample_person(rng, "train")
            attributes = rng.sample(ATTRIBUTES, rng.randint(3, 6))
            asked = rng.choice(attributes)
            text = biography(person, rng, attributes, pronouns=0.2)
            told.append(f"{text} {question(person, asked, rng)} {person.facts[asked]}")
        return [[*ids, self.end] for ids in self._ids(told)]

    def _joined(self, rng: random.Random, length: int) -> list[int]:
        """Paragraphs one behind the other."""
        tokens: list[int] = []
        while len(tokens) < length:
            tokens += rng.choice(self.prose)
        return tokens[:length]

    @property
    def past_full(self) -> int:
        """Writes after which a pool has evicted for some time."""
        return self.capacity + self.capacity // 2

    def _writes(
        self, rng: random.Random, difficulty: Difficulty, count: int, make: Callable[[], Chunk]
    ) -> tuple[Tensor, list[int], list[Chunk]]:  # ids [count, n], their lengths
        """Chunks to write: those that tell something, and behind them ordinary prose; what they tell."""
        telling = max(1, round(count * (1 - difficulty.prose)))
        made = [make() for _ in range(telling)]
        texts = self._ids([chunk.text for chunk in made])
        width = max(len(ids) for ids in texts)
        texts += [self._prose(rng, max(width, self.k)) for _ in range(count - telling)]
        return *left_pad(texts, self.pad, self.k), made

    def _chunk(self, rng: random.Random, difficulty: Difficulty) -> Chunk:
        return MAKERS[difficulty.kind](rng, difficulty)

    def _order(self, rng: random.Random, count: int, telling: int, written: int) -> np.ndarray:  # [C], oldest first
        """A random order of chunks in which at least one of the newest has something to ask."""
        if written <= 2:
            return np.array(rng.sample(range(telling), written))
        while True:
            order = np.array(rng.sample(range(count), written))
            if (order[-self.capacity - 1 :] < telling).any():
                return order

    def _prose(self, rng: random.Random, length: int) -> list[int]:
        text = rng.choice(self.prose)
        start = rng.randrange(max(1, len(text) - length + 1))
        return list(text[start : start + length])

    def _ids(self, texts: Sequence[str]) -> list[list[int]]:
        ids: list[list[int]] = self.tokenizer(list(texts), add_special_tokens=False)["input_ids"]
        return ids

    def _rows(self, pairs: Sequence[tuple[str, str]], each: int) -> list[list[Example]]:
        cues = self._ids([cue for cue, _ in pairs])
        answers = self._ids([" " + answer for _, answer in pairs])
        examples = [Example(cue, [*answer, self.end]) for cue, answer in zip(cues, answers, strict=True)]
        return [examples[start : start + each] for start in range(0, len(examples), each)]
