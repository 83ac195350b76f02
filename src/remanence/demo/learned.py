"""One memory, one file of facts, and the same questions again and again while the memory goes on being written."""

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from remanence.data.episodes import unrelated
from remanence.evaluation.answering import Context, answer
from remanence.evaluation.columns import Column, about, column_of
from remanence.evaluation.harness import Evaluation, Item, Record, Report, Run
from remanence.evaluation.retention import METRICS
from remanence.memory import Memory
from remanence.model.model import MemoryModel
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
    """All questions, asked after `distance` unrelated writes, under each column."""

    distance: int
    curves: dict[str, tuple[Answered, ...]]

    @property
    def answered(self) -> tuple[Answered, ...]:
        """What the whole memory answered: long-term memory, where the model has it, else the pool."""
        return self.curves["longterm" if "longterm" in self.curves else "pool"]

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
    texts: Sequence[str],
    distances: Sequence[int],
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Iterator[Round]:
    """Ask all questions at each distance, and write unrelated paragraphs in between, none about a name in `texts`.

    Args:
        texts: the paragraphs that the memory has read; the column "fits" has them as text.
        progress: called with (paragraphs written, paragraphs in all).
    """
    stream = unrelated(random.Random(seed), "\n".join(texts))
    context = Context(model)
    for text in texts:
        context.append(text)
    written = 0
    for distance in sorted(distances):
        while written < distance:
            paragraph = next(stream)
            model.write(memory, paragraph)
            context.append(paragraph)
            written += 1
            if progress is not None:
                progress(written, max(distances))
        yield Round(distance, _asked(model, memory, context, questions))


def _asked(
    model: MemoryModel, memory: Memory, context: Context, questions: Sequence[Question]
) -> dict[str, tuple[Answered, ...]]:
    prompts = [prompt_of(question.text) for question in questions]
    blank = [Memory(model.spec) for _ in questions]
    bare = memory.pool_only()
    given: dict[str, list[str]] = {}
    if memory.longterm is not None:
        given["longterm"] = [answer(model, [memory], [prompt])[0] for prompt in prompts]
    given["pool"] = [answer(model, [bare], [prompt])[0] for prompt in prompts]
    given["nothing"] = answer(model, blank, prompts)
    given["fits"] = answer(model, blank, [context.before(prompt) for prompt in prompts])
    return {name: tuple(map(Answered, questions, answers)) for name, answers in given.items()}


def report(model: MemoryModel, asked: Sequence[Round]) -> Report:
    """A row for each distance and column."""

    def measure(column: Column, items: Sequence[Item]) -> list[Record]:
        given = [item.content.curves[column.name][int(item.key.partition("/")[2])] for item in items]
        return [{"right": one.right, "said": one.answer} for one in given]

    items = [
        Item(f"{one.distance}/{number}", (f"{one.distance:,} writes later",), content=one)
        for one in asked
        for number in range(len(one.answered))
    ]
    settings = {"slots": model.slots, "slots_per_write": model.slots_per_write}
    made = Evaluation("demo", settings, items, [column_of(name) for name in asked[0].curves], measure, METRICS)
    return Report.of(made, Run(made, about(model))(), about(model))
