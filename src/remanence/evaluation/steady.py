"""Texts written into memories in steady state, and what is written after them: for whatever asks at distances."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Annotated, Any, Protocol

import typer

from remanence.config import Tier
from remanence.evaluation.answering import ANSWER_TOKENS
from remanence.evaluation.harness import Item
from remanence.model.model import MemoryModel
from remanence.texts import Question

TierOption = Annotated[Tier | None, typer.Option(help="Where long-term slots lie. Default: host.")]
Int8Option = Annotated[bool, typer.Option("--int8", help="Keep these slots as int8.")]
BatchOption = Annotated[int, typer.Option(min=1, help="Memories written at once.")]


class Sample(Protocol):
    """A text, what is written around it, without end, and the question at each distance, a prompt."""

    fact: str
    unrelated: Iterator[str]

    def question(self, distance: int) -> Question: ...


@dataclass(frozen=True, eq=False)
class Samples:
    """Where samples come from, and what counts as right.

    Attributes:
        name: in the report.
        about: settings that say which.
        episode: the sample of a seed and a number.
        right: whether what was said answers a question.
        warm_up: unrelated texts that are written before a sample's own.
        answer_tokens: generated for an answer.
    """

    name: str
    about: dict[str, Any]
    episode: Callable[[int, int], Sample]
    right: Callable[[str, Question], bool]
    warm_up: int
    answer_tokens: int = ANSWER_TOKENS


class Written:
    """Samples whose texts are written into a memory each, all at once.

    Attributes:
        memories: by sample.
        facts: the id of each fact's write, once it is made.
        before, after: by sample, the texts around the fact, in their order.
    """

    def __init__(
        self, model: MemoryModel, source: Samples, indices: Sequence[int], seed: int, asked: Sequence[int], **more: Any
    ) -> None:
        """`asked`: distances at which they are; `more`: settings of new memories."""
        self.source, self._model, self._asked = source, model, asked
        self.samples = [source.episode(seed, index) for index in indices]
        self.memories = [model.new_memory(seed + index, **more) for index in indices]
        self.before = [[next(sample.unrelated) for _ in range(source.warm_up)] for sample in self.samples]
        self.after = [[next(sample.unrelated) for _ in range(asked[-1])] for sample in self.samples]
        self.facts: list[int] = []
        self._found: dict[int, Any] = {}

    def at_each(self, find: Callable[[int], Any]) -> dict[int, Any]:
        """By distance, what is found there; everything is written once."""
        if not self._found:
            self._found = {distance: find(distance) for distance in self._writing() if distance in self._asked}
        return self._found

    def _writing(self) -> Iterator[int]:
        """Write everything into the memories; stops at each distance, from 0."""
        for texts in zip(*self.before, strict=True):
            self._model.write(self.memories, list(texts))
        receipts = self._model.write(self.memories, [sample.fact for sample in self.samples])
        self.facts = [receipt.id for receipt in receipts]
        yield 0
        for distance, texts in enumerate(zip(*self.after, strict=True), 1):
            self._model.write(self.memories, list(texts))
            yield distance

    def questions(self, distance: int) -> list[Question]:
        return [sample.question(distance) for sample in self.samples]

    def told(self, sample: int, distance: int) -> list[str]:
        """Its fact and the texts after it, up to a distance."""
        return [self.samples[sample].fact, *self.after[sample][:distance]]


def in_batches(
    model: MemoryModel,
    sources: Sequence[Samples],
    distances: Sequence[int],
    count: int,
    batch: int,
    seed: int,
    **settings: Any,
) -> tuple[list[Item], Callable[[Sequence[Item]], Written]]:
    """Items, and what writes those that are measured at once: `count` samples of each source, so many in a batch.

    The content of an item is a source's number, the batch's first sample, the item's place behind it, and a distance.
    """
    for source in sources:
        source.episode(seed, count - 1)  # which refuses a count or facts that are not there, before the work

    @lru_cache(1)
    def written(number: int, start: int) -> Written:
        indices = range(start, min(start + batch, count))
        return Written(model, sources[number], indices, seed, distances, **settings)

    items = [
        Item(
            "/".join(filter(None, [source.name, str(distance), str(start + row)])),
            (", ".join(filter(None, [source.name, f"{distance:,} writes later"])),),
            content=(number, start, row, distance),
            together=f"{number}/{start}",
        )
        for number, source in enumerate(sources)
        for start in range(0, count, batch)
        for distance in distances
        for row in range(min(batch, count - start))
    ]
    return items, lambda those: written(*those[0].content[:2])
