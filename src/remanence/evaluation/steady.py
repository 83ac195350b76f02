"""Texts written into memories in steady state, and what is written after them: for whatever asks at distances."""

from collections.abc import Iterator, Sequence
from typing import Annotated, Protocol

import typer

from remanence.config import Tier
from remanence.memory import Memory
from remanence.model.model import MemoryModel
from remanence.texts import Question

TierOption = Annotated[Tier | None, typer.Option(help="Where long-term slots lie. Default: host.")]
Int8Option = Annotated[bool, typer.Option("--int8", help="Keep these slots as int8.")]


class Sample(Protocol):
    """A text, what is written around it, without end, and the question at each distance, a prompt."""

    fact: str
    unrelated: Iterator[str]

    def question(self, distance: int) -> Question: ...


class Written:
    """Samples whose texts are written into a memory each, all at once.

    Attributes:
        facts: the id of each fact's write, once it is made.
        before, after: by sample, the texts around the fact, in their order.
    """

    def __init__(self, model: MemoryModel, samples: Sequence[Sample], warm_up: int, last: int) -> None:
        """`warm_up`: unrelated texts before the fact; `last`: the largest distance."""
        self._model, self._samples = model, samples
        self.before = [[next(sample.unrelated) for _ in range(warm_up)] for sample in samples]
        self.after = [[next(sample.unrelated) for _ in range(last)] for sample in samples]
        self.facts: list[int] = []

    def distances(self, memories: Sequence[Memory]) -> Iterator[int]:
        """Write everything into the memories; stops at each distance, from 0."""
        for texts in zip(*self.before, strict=True):
            self._model.write(list(memories), list(texts))
        receipts = self._model.write(list(memories), [sample.fact for sample in self._samples])
        self.facts = [receipt.id for receipt in receipts]
        yield 0
        for distance, texts in enumerate(zip(*self.after, strict=True), 1):
            self._model.write(list(memories), list(texts))
            yield distance

    def told(self, sample: int, distance: int) -> list[str]:
        """Its fact and the texts after it, up to a distance."""
        return [self._samples[sample].fact, *self.after[sample][:distance]]
