"""What measures on questions about SQuAD's passages share: each question is asked in several ways."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from remanence import MemoryModel
from remanence.evaluation.columns import Column
from remanence.evaluation.evidence import Asked
from remanence.evaluation.harness import Evaluation, Item, Record
from remanence.evaluation.metrics import Metric
from remanence.evaluation.squad import among_others, read_questions

Way = Callable[[Asked, list[str]], Any]  # of a question and the passages that are told: what the metric is made of


@dataclass(frozen=True)
class Settings:
    data: Path = field(metadata={"help": "questions, of SQuAD v1.1 or Natural Questions"})
    count: int = 100
    model: str = "smollm2"


def evaluation_of(
    name: str, on: Settings, model: MemoryModel, passages: int, ways: Mapping[str, Way], metric: Metric
) -> Evaluation:
    """The first questions of a file, each about one of so many passages that are told."""
    questions = read_questions(on.data, model.tokenizer)
    group = "1 passage" if passages == 1 else f"{passages} passages"
    items = [
        Item(str(number), (group,), content=(one, among_others(questions, one, passages)[0]))
        for number, one in enumerate(questions.asked[: on.count])
    ]

    def measure(way: Column, those: Sequence[Item]) -> list[Record]:
        return [{metric.name: ways[way.name](*item.content)} for item in those]

    columns = [Column(title, title) for title in ways]
    return Evaluation(name, {"data": on.data.name}, items, columns, measure, [metric], base=next(iter(ways)))
