"""What a learned writer is trained on: passages that are written into fewer slots than they have tokens.

Each row reads a pool of a few writes, and has several examples side by side: questions about one of the passages, and
that passage itself, word by word, which is the denser target.
"""

import random
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from remanence.errors import InvalidInputError
from remanence.model.chat import TODAY
from remanence.model.model import MemoryModel
from remanence.training.curriculum import Batch
from remanence.training.questions import Question, QuestionSet
from remanence.training.tasks.pool_task import PoolBatch
from remanence.training.tasks.prompts import Example, left_pad, pack

RECITE = "Repeat what you were told."
_HINT = 4  # tokens


@dataclass(frozen=True)
class CompressionSettings:
    """What a step is made of.

    Attributes:
        chunks: most tokens of a passage that are written, around the answers that are asked for; each step draws one.
        passages: written in a step; chunks_per_row: most that a row reads.
        questions: examples of a row that ask; the last example recites the passage.
        recited: most tokens of it.
    """

    chunks: Sequence[int]
    passages: int = 12
    chunks_per_row: int = 2
    questions: int = 3
    recited: int = 64


class CompressionTask:
    """Builds the batches of a training step, each from its number alone."""

    def __init__(self, model: MemoryModel, data: QuestionSet, settings: CompressionSettings, *, seed: int = 0) -> None:
        self._texts, self._settings, self._seed = model.texts, settings, seed
        self._pad, self._end = model.pad, [model.tokenizer.eos_token_id]
        self._k, self._device = model.slots_per_write, torch.device("cpu")
        self._passages, self._about = data.passages, dict[int, list[Question]]()
        for question in data.questions:
            if len(question.passages) == 1 and question.answers:
                self._about.setdefault(question.passages[0], []).append(question)
        self._numbers = sorted(self._about)
        if len(self._numbers) < settings.passages:
            raise InvalidInputError(f"{settings.passages} passages with questions are needed, got {len(self._numbers)}")

    def batch(self, number: int, *, recite: bool) -> Batch:
        """Batch `number` of the run. `recite`: passages are recited only, and nothing is asked."""
        rng, settings = random.Random(f"{self._seed}/{number}"), self._settings
        room = rng.choice(settings.chunks)
        drawn = [self._drawn(rng, passage, room) for passage in rng.sample(self._numbers, settings.passages)]
        ids, lengths = left_pad([chunk for chunk, _ in drawn], self._pad, self._k)
        order, rows = [], []
        view = rng.randint(1, settings.chunks_per_row)
        for own, (chunk, questions) in enumerate(drawn):
            others = rng.sample([place for place in range(len(drawn)) if place != own], view - 1)
            mixed = [own, *others]
            rng.shuffle(mixed)
            order.append(mixed)
            start = rng.randrange(max(1, len(chunk) - settings.recited + 1))
            part = chunk[start : start + settings.recited]
            hint = min(_HINT, len(part) - 1)  # which of the passages, and from where
            recited = Example([*self._cue(RECITE), *part[:hint]], part[hint:])
            rows.append([*([] if recite else self._asked(rng, questions)), recited])
        own_passage = torch.eye(len(drawn), dtype=torch.bool)
        return {
            "batch": PoolBatch(ids, lengths, torch.tensor(order), own_passage, pack(rows, self._pad)),
            "task": "recite" if recite else "memory",
        }

    def _drawn(self, rng: random.Random, passage: int, room: int) -> tuple[list[int], list[Question]]:
        """Tokens of a passage, cut around an answer, and the questions that they answer."""
        text, questions = self._passages[passage], self._about[passage]
        ids = self._ids(text)
        if len(ids) > room:
            around = rng.choice([q for q in questions if q.answers[0].lower() in text.lower()] or questions)
            answer = around.answers[0]
            before = len(self._ids(text[: max(1, text.lower().find(answer.lower()))]))
            last = max(1, room - len(self._ids(answer)) - 2)  # where the answer still fits
            start = min(max(0, before - rng.randrange(last)), len(ids) - room)
            ids = ids[start : start + room]
            said = self._texts.tokenizer.decode(ids).lower()
            questions = [q for q in questions if q.answers[0].lower() in said] or [around]
        return ids, questions

    def _asked(self, rng: random.Random, questions: Sequence[Question]) -> list[Example]:
        picked = [rng.choice(questions) for _ in range(self._settings.questions)]
        space = "" if self._texts.chats else " "
        return [Example(self._cue(one.text), [*self._ids(space + one.answers[0]), *self._end]) for one in picked]

    def _cue(self, text: str) -> list[int]:
        content = [{"role": "user", "content": text}] if self._texts.chats else f"Question: {text} Answer:"
        return self._texts.prompt(content, self._device, date=TODAY).bare.tolist()

    def _ids(self, text: str) -> list[int]:
        return self._texts.ids(text, self._device, date=TODAY).tolist()
