"""One memory, one file of facts, and the same questions again and again while the memory goes on being written."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from remanence.data.episodes import unrelated
from remanence.evaluation.retention import answer, point, survival
from remanence.memory import Memory
from remanence.model.memory_model import MemoryModel
from remanence.texts import Question, prompt_of


@dataclass(frozen=True)
class Answered:
    question: Question
    answer: str

    @property
    def right(self) -> bool:
        return self.answer == self.question.truth


@dataclass(frozen=True)
class Round:
    """All questions, asked after `distance` unrelated writes."""

    distance: int
    answered: tuple[Answered, ...]

    @property
    def right(self) -> int:
        return sum(one.right for one in self.answered)


def distances_up_to(most: int, writes_per_pool: int) -> list[int]:
    """0, a quarter and a half of N/K, N/K, and its doubles, up to `most`."""
    marks = {0, writes_per_pool // 4, writes_per_pool // 2, most}
    doubled = writes_per_pool
    while doubled < most:
        marks.add(doubled)
        doubled *= 2
    return sorted(mark for mark in marks if mark <= most)


def rounds(
    model: MemoryModel,
    memory: Memory,
    questions: Sequence[Question],
    *,
    taken: str,
    distances: Sequence[int],
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Round]:
    """Ask all questions at each distance, and write unrelated paragraphs in between, none about a name in `taken`.

    Args:
        progress: called with (paragraphs written, paragraphs in all).
    """
    stream = unrelated(random.Random(seed), taken)
    written = 0
    for distance in sorted(distances):
        while written < distance:
            model.write(memory, next(stream))
            written += 1
            if progress is not None:
                progress(written, max(distances))
        answers = [answer(model, [memory], [prompt_of(question.text)])[0] for question in questions]
        yield Round(distance, tuple(map(Answered, questions, answers)))


def report(model: MemoryModel, asked: Sequence[Round]) -> dict[str, Any]:
    """What `retention_plot` draws: the pool's curve, and the survival line."""
    points = [point(one.distance, one.right, len(one.answered)) for one in asked]
    n, k = model.slots, model.slots_per_write
    return {"n": n, "k": k, "curves": {"pool": points}, "survival": survival(points, n, k)}
