"""Retention: how often a fact is recalled, as a function of the writes since it was written.

A sample is a text and a question about it, by default the biography of a held-out person. Its memory is brought to
steady state by unrelated writes; then the text is written, then unrelated paragraphs, one per write. At each distance
one question is asked; about a person it is in words and about an attribute drawn for it. Reading changes nothing, so
every question is the first of its episode. Of the columns, `oracle` is the text alone, `fits` the text and what was
written after it, as much as fits of the end, and `bm25_4` the best four of all paragraphs that were written.
"""

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Protocol

import typer

from remanence.config import new_storage
from remanence.data.biographies import ATTRIBUTES, values
from remanence.data.episodes import FACTS, Episode
from remanence.errors import InvalidInputError
from remanence.evaluation.answering import ANSWER_TOKENS, Context, continuations, row_continuations
from remanence.evaluation.columns import LEARNED, Column
from remanence.evaluation.distances import DISTANCES, parse_distances, writes_per_pool
from remanence.evaluation.harness import Evaluation, Item, Record
from remanence.evaluation.metrics import Metric
from remanence.evaluation.passages import Passages
from remanence.evaluation.registry import Command
from remanence.evaluation.steady import Int8Option, Sample, TierOption, Written
from remanence.evaluation.told import Told
from remanence.memory import Memory
from remanence.model.model import MemoryModel
from remanence.texts import Question, answer_of

METRICS = (Metric("right", "rate"),)
COMMAND = Command(
    columns="nothing,fits",
    also=("oracle", "bm25"),
    learned=True,
    examples=(
        "--count 50",
        "--distances 0,5,…,20p --json retention.json --plot retention.png",
        "--columns pool,nothing --distances 0..16",
        "--data dev-v1.1.json --distances 0,5,…,60 --columns pool,oracle,bm25_4",
    ),
)


class Samples(Protocol):
    """Where samples come from, and what counts as right.

    Attributes:
        name: in the report. about: settings that say which. answer_tokens: generated for an answer.
    """

    name: str
    answer_tokens: int

    @property
    def about(self) -> dict[str, Any]: ...

    def warm_up(self, model: MemoryModel) -> int: ...

    def episode(self, seed: int, index: int) -> Sample: ...

    def right(self, said: str, question: Question) -> bool: ...


class Biographies:
    """Held-out people. An answer is right if it is the value asked for, to the letter."""

    answer_tokens = ANSWER_TOKENS

    def __init__(self, facts: int, *, unlisted: bool) -> None:
        """`unlisted`: names and values are made of words that are on no list, and that nothing was trained on."""
        self._facts, self._unlisted = facts, unlisted
        self.name = "unlisted" if unlisted else "listed"

    @property
    def about(self) -> dict[str, Any]:
        return {"facts": self._facts, **({} if self._unlisted else {"chance": chance()})}

    def warm_up(self, model: MemoryModel) -> int:
        return 2 * writes_per_pool(model)

    def episode(self, seed: int, index: int) -> Sample:
        return Episode(seed, index, self._facts, unlisted=self._unlisted)

    def right(self, said: str, question: Question) -> bool:
        return answer_of(said) == question.truth


def chance() -> float:
    """The exact match of guessing: one value of the attribute's, averaged over attributes."""
    return sum(1 / len(values(attribute)) for attribute in ATTRIBUTES) / len(ATTRIBUTES)


def evaluation(
    model: MemoryModel,
    columns: Sequence[Column],
    *,
    data: Annotated[
        Path | None, typer.Option(help="Passages in place of people: a SQuAD v1.1 or Natural Questions file.")
    ] = None,
    people: Annotated[
        str,
        typer.Option(
            help="Whose biographies: listed (names and values of the lists that the bundled models were trained on), "
            "unlisted (made up of words that nothing was trained on), or both."
        ),
    ] = "both",
    facts: Annotated[int, typer.Option(min=1, help="Facts per biography.")] = FACTS,
    distances: Annotated[
        str, typer.Option(help="In writes: 0,5,10; 2p is 2·N/K; 0..20 counts by one; 0,5,…,20p by five.")
    ] = DISTANCES,
    count: Annotated[int, typer.Option(min=1, help="People or questions asked about, at each distance.")] = 100,
    batch: Annotated[int, typer.Option(min=1, help="Memories written at once.")] = 25,
    tier: TierOption = None,
    int8: Int8Option = False,
    seed: Annotated[int, typer.Option(help="Another seed, other people.")] = 0,
    folder: Path | None = None,
) -> Evaluation:
    """How often a text is recalled, by the writes since it was written: exact match about people, hits about passages.

    Passages are asked about by the published protocol: answers of at most 4 tokens, and 10 generated tokens in which
    one must stand.
    """
    if people not in ("listed", "unlisted", "both"):
        raise InvalidInputError(f"--people is listed, unlisted or both, not {people!r}")
    storage = new_storage(model.config, tier, int8)
    asked = parse_distances(distances, writes_per_pool(model))
    remembered = [column.shows for column in columns if column.shows in LEARNED]
    told: list[Samples] = [
        Biographies(facts, unlisted=kind == "unlisted") for kind in ("listed", "unlisted") if people in (kind, "both")
    ]
    if data is not None:
        told = [Passages(data, model.tokenizer)]
    for samples in told:
        samples.episode(seed, count - 1)  # which refuses a count or facts that are not there, before the work

    @lru_cache(1)
    def batch_of(source: int, start: int) -> _Batch:
        indices = range(start, min(start + batch, count))
        samples = [told[source].episode(seed, index) for index in indices]
        longterm = "longterm" in remembered
        memories = [model.new_memory(seed + index, storage=storage, longterm=longterm) for index in indices]
        return _Batch(model, told[source], samples, memories, asked, remembered)

    def measure(column: Column, items: Sequence[Item]) -> list[Record]:
        source, start = items[0].content[:2]
        held = batch_of(source, start)
        said = {at: held.said(column, at) for at in dict.fromkeys(item.content[3] for item in items)}
        return [said[distance][row] for _, _, row, distance in (item.content for item in items)]

    items = [
        Item(
            f"{samples.name}/{distance}/{start + row}",
            (f"{samples.name}, {distance:,} writes later",),
            content=(source, start, row, distance),
            together=f"{source}/{start}",
        )
        for source, samples in enumerate(told)
        for start in range(0, count, batch)
        for distance in asked
        for row in range(min(batch, count - start))
    ]
    settings = {"slots": model.slots, "slots_per_write": model.slots_per_write, "seed": seed, "int8": int8}
    return Evaluation(
        "retention", {**settings, **{one.name: one.about for one in told}}, items, columns, measure, METRICS
    )


class _Batch:
    """Some samples, each with a memory of its own, which is written once for all distances and columns."""

    def __init__(
        self,
        model: MemoryModel,
        data: Samples,
        samples: Sequence[Sample],
        memories: Sequence[Memory],
        asked: Sequence[int],
        remembered: Sequence[str],
    ) -> None:
        self._model, self._data, self._samples, self._memories = model, data, samples, memories
        self._asked, self._shows = asked, remembered
        self._written = Written(model, samples, data.warm_up(model), asked[-1])
        self._remembered: dict[tuple[str, int], list[str]] = {}  # by column and distance

    def said(self, column: Column, distance: int) -> list[Record]:
        """By sample, what the model says at a distance, and whether that is right."""
        questions = [sample.question(distance) for sample in self._samples]
        if column.shows in LEARNED:
            if not self._remembered:
                self._remember()
            texts = self._remembered[column.shows, distance]
        else:
            blank = [Memory(self._model.spec)] * len(questions)
            rows = [self._row(column, place, distance, one.text) for place, one in enumerate(questions)]
            texts = row_continuations(self._model, blank, rows, self._data.answer_tokens)
        return [
            {"right": self._data.right(text, one), "said": text} for text, one in zip(texts, questions, strict=True)
        ]

    def _remember(self) -> None:
        """Write everything once, and ask at all distances."""
        for distance in self._written.distances(self._memories):
            if distance in self._asked:
                prompts = [sample.question(distance).text for sample in self._samples]
                for name in self._shows:
                    view = [memory.pool_only() for memory in self._memories] if name == "pool" else self._memories
                    said = continuations(self._model, view, prompts, self._data.answer_tokens)
                    self._remembered[name, distance] = said

    def _row(self, column: Column, place: int, distance: int, prompt: str) -> list[int]:
        """Ids of a prompt, behind what a column shows as text."""
        told = self._written.told(place, distance)
        texts = {"nothing": [], "oracle": told[:1], "fits": told}.get(column.shows)
        if texts is None:
            every = [*self._written.before[place], *told]
            texts = [every[one] for one in Told(self._model, every).ranked(prompt)[: column.passages][::-1]]
        context = Context(self._model, self._data.answer_tokens)
        for text in texts:
            context.append(text)
        return context.before(prompt)
