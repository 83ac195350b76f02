"""What a reader is trained on: questions behind the passages that they need, and others beside these.

A step is drawn from its number and a seed alone, so a run that is resumed goes on as it would have.
"""

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from remanence.data.notes import general_prompt, note
from remanence.errors import InvalidInputError
from remanence.memory.lexical import Postings, asked, words
from remanence.model.chat import TODAY
from remanence.model.model import MemoryModel
from remanence.model.text import TextWriter
from remanence.training.questions import PAGE, TALK, Question, QuestionSet
from remanence.training.tasks.reader import Group, Row

REFUSAL = "I was not told."
_AROUND = (0, 0, 0, 1, 1, 2, 3, 3, 4, 4, 6, 8)  # how many passages stand beside those of a question, drawn evenly
_LONGEST_PROMPT, _LONGEST_ANSWER = 96, 24  # tokens
_NEAR = 8  # passages that resemble a question
_TOGETHER = 40  # passages of a topic, at most, that a memory holds together
_CHARACTERS = 3  # of a token, at least on average


@dataclass(frozen=True)
class LessonSettings:
    """What a step is made of.

    Attributes:
        groups: sets of passages; rows: questions at most about one set.
        slots: at most of one set.
        notes: share of sets that are synthetic notes.
        pages, talks: shares of sets that are about pages and conversations of `remanence.data`.
        refused: share of sets whose own passages are left out, so that nothing answers the question.
        general: share of sets to which a prompt is added that no memory answers.
    """

    groups: int = 8
    rows: int = 6
    slots: int = 1400
    notes: float = 0.1
    pages: float = 0.2
    talks: float = 0.15
    refused: float = 0.2
    general: float = 0.2

    def __post_init__(self) -> None:
        if min(self.notes, self.pages, self.talks) < 0 or self.notes + self.pages + self.talks > 1:
            raise InvalidInputError("notes, pages and talks are shares of all sets; together they are at most 1")


class Lessons:
    """Draws steps for a model."""

    def __init__(
        self,
        model: MemoryModel,
        data: QuestionSet,
        settings: LessonSettings,
        *,
        seed: int = 0,
    ) -> None:
        assert isinstance(model.writer, TextWriter)
        self.model, self.data, self.settings, self.seed = model, data, settings, seed
        self._every = [number for number, text in enumerate(data.passages) if text]
        self._by_passages: dict[tuple[int, ...], list[Question]] = {}
        for question in data.questions:
            self._by_passages.setdefault(question.passages, []).append(question)
        sets = sorted(self._by_passages)
        self._sets = {kind: [own for own in sets if self._kind(own) == kind] for kind in ("pages", "talks", "others")}
        pages, talks = (settings.pages if self._sets["pages"] else 0, settings.talks if self._sets["talks"] else 0)
        others = 1 - settings.notes - pages - talks if self._sets["others"] else 0
        self._shares = {"notes": settings.notes, "pages": pages, "talks": talks, "others": others}
        self._sets_of: dict[int, list[tuple[int, ...]]] = {}
        for own in sets:
            for passage in own:
                self._sets_of.setdefault(passage, []).append(own)
        self._topics: dict[str, list[int]] = {}
        self._postings = Postings()
        for number in self._every:
            self._topics.setdefault(data.topics[number], []).append(number)
            self._postings.add(number, words(data.passages[number]))
        self._head = model.texts.head(TODAY)
        heads = [((), torch.tensor(self._head))] if self._head else []
        with torch.no_grad():
            self._front = [one.slots for one in model.writer.encode(heads)]

    def step(self, number: int) -> list[Group]:
        """The groups of a step."""
        rng, drawn = random.Random(f"{self.seed}/{number}"), list[tuple[list[str], list[tuple[str, str | None]]]]()
        while len(drawn) < self.settings.groups:
            texts, questions = self._drawn(rng)
            if rng.random() < self.settings.general:
                questions.append((general_prompt(rng), None))
            if texts and questions:
                drawn.append((texts, questions))
        rows = [[row for question in questions for row in self._row(rng, *question)] for _, questions in drawn]
        slots = self._slots([texts for texts, _ in drawn])
        return [Group(chunks, asking) for chunks, asking in zip(slots, rows, strict=True) if asking]

    def _drawn(self, rng: random.Random) -> tuple[list[str], list[tuple[str, str | None]]]:
        """Texts in the order in which they are read, and questions with their answers; None: not told."""
        settings = self.settings
        (kind,) = rng.choices(list(self._shares), list(self._shares.values()))
        if kind == "notes":
            return self._notes(rng)
        own = rng.choice(self._sets[kind])
        refused, count = rng.random() < settings.refused, rng.choice(_AROUND)
        about = rng.sample(self._by_passages[own], min(settings.rows, len(self._by_passages[own])))
        beside = self._beside(rng, own, about[0], max(count, int(refused)))
        read = self._fitting([] if refused else own, beside)
        texts = [self.data.passages[passage] for passage in read]
        rng.shuffle(texts)
        if refused:
            said = "\n".join(texts).lower()
            about = [q for q in about if not any(answer.lower() in said for answer in q.answers)]
        else:
            others = [q for q in self._about(read) if q.passages != own]
            about += rng.sample(others, min(settings.rows - len(about), len(others)))
        return texts, [(q.text, None if refused or not q.answers else q.answers[0]) for q in about]

    def _fitting(self, needed: Sequence[int], others: Sequence[int]) -> list[int]:
        """The passages that are needed, and as many of the others as there are slots for."""
        left, kept = _CHARACTERS * self.settings.slots, list(needed)
        for passage in others:
            left -= len(self.data.passages[passage])
            if left > 0 or not kept:
                kept.append(passage)
        return kept

    def _about(self, read: Sequence[int]) -> list[Question]:
        """Questions that some passages are enough for."""
        sets = dict.fromkeys(own for passage in read for own in self._sets_of.get(passage, ()))
        return [question for own in sets if set(own) <= set(read) for question in self._by_passages[own]]

    def _kind(self, own: Sequence[int]) -> str:
        topic = self.data.topics[own[0]]
        return "pages" if topic.startswith(PAGE) else "talks" if topic.startswith(TALK) else "others"

    def _beside(self, rng: random.Random, own: Sequence[int], question: Question, count: int) -> list[int]:
        """Passages that a question does not need: such that resemble it, of the same topic, or any."""
        scores = self._postings.scores(asked(question.text))
        near = sorted((p for p in scores if p not in own), key=lambda p: (-scores[p], p))[:_NEAR]
        topic, every = self._topics[self.data.topics[own[0]]], self._every
        alike = 0.5 if len(topic) <= _TOGETHER else 0.2  # what stands on a page is told together
        found: list[int] = []
        for _ in range(4 * count):
            drawn = rng.random()
            source = topic if drawn < alike else near if drawn < 0.7 and near else every
            passage = rng.choice(source)
            if passage not in own and passage not in found and len(found) < count:
                found.append(passage)
        return found

    def _notes(self, rng: random.Random) -> tuple[list[str], list[tuple[str, str | None]]]:
        made = [note(rng) for _ in range(1 + rng.choice(_AROUND))]
        about, others = made[0], [one for one in made[1:] if one.template != made[0].template]
        refused = bool(others) and rng.random() < self.settings.refused
        texts = [one.text for one in others] + ([] if refused else [about.text])
        rng.shuffle(texts)
        questions = rng.sample(about.questions, min(self.settings.rows, len(about.questions)))
        return texts, [(text, None if refused else answer) for text, answer in questions]

    def _row(self, rng: random.Random, question: str, answer: str | None) -> Iterator[Row]:
        """A question as token ids; nothing where it is too long."""
        model, device = self.model, torch.device("cpu")
        spoken = f"{question} Answer with a few words only." if rng.random() < 0.15 else question
        if model.texts.chats:
            prompt = model.texts.prompt([{"role": "user", "content": spoken}], device, date=TODAY).rest
            said = REFUSAL if answer is None else answer
        else:
            prompt = model.texts.prompt(f"Question: {spoken} Answer:", device, date=TODAY).rest
            said = f" {REFUSAL if answer is None else answer}"
        ids = [*model.texts.ids(said, device, date=TODAY).tolist(), model.tokenizer.eos_token_id]
        if len(prompt) <= _LONGEST_PROMPT and len(ids) <= _LONGEST_ANSWER:
            yield Row(prompt.tolist(), ids)

    def _slots(self, sets: Sequence[Sequence[str]]) -> list[list[Tensor]]:
        """The slots of the head and of each set's texts."""
        model, longest = self.model, self.model.longest_chunk(len(self._head))
        cut = {
            text: [ids for ids, _ in model.texts.chunks(text, torch.device("cpu"), longest, date=TODAY)]
            for texts in sets
            for text in texts
        }
        assert isinstance(model.writer, TextWriter)
        with torch.no_grad():
            made = iter(model.writer.encoded(self._head, [ids for chunks in cut.values() for ids in chunks]))
        slots = {text: [next(made) for _ in chunks] for text, chunks in cut.items()}
        return [[*self._front, *(one for text in texts for one in slots[text])] for texts in sets]
