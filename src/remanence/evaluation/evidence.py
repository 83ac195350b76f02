"""Questions whose evidence is known: which of the parts of what was told hold the answer.

Each part is a write, in the order in which the parts stand. Where the answer was never told, it is right to say so.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from remanence.evaluation.asking import ANSWERED, RANKED, Asking, Said, record_of
from remanence.evaluation.columns import Column
from remanence.evaluation.harness import Evaluation, Item, Record
from remanence.evaluation.metrics import Metric
from remanence.evaluation.scores import f1
from remanence.evaluation.told import Told
from remanence.model.model import MemoryModel

RECALLS = (1, 5, 10)  # of the best parts
METRICS = (
    *(Metric(f"recall_{count}", "mean") for count in RECALLS),
    Metric("sections_10", "mean"),
    Metric("f1", "mean", compared=True),
    *(metric for metric in ANSWERED if metric.name not in ("f1", "first", "among_4")),
)
_REFUSALS = ("not told", "no information available", "not mentioned")  # the last two as LoCoMo has them


@dataclass(frozen=True)
class Part:
    """What is told at once, such as a turn of a conversation; `section`: what it stands in, such as a session."""

    text: str
    section: str = ""


@dataclass(frozen=True)
class Asked:
    """
    Attributes:
        key: of the question, in its corpus.
        kind: of question, as the report groups them.
        truths: right answers; of a question that is not answerable what would be wrong.
        evidence: numbers of the parts that hold the answer, as far as they are known.
        sections: that hold it.
    """

    key: str
    text: str
    kind: str
    truths: tuple[str, ...]
    evidence: tuple[int, ...] = ()
    sections: tuple[str, ...] = ()
    answerable: bool = True


@dataclass(frozen=True)
class Corpus:
    """Parts that are told one after another into one memory, and what is asked about them.

    `whole`: the text that they are cut from, where it is told in one write.
    """

    name: str
    parts: tuple[Part, ...]
    asked: tuple[Asked, ...]
    whole: str | None = None


Score = Callable[[str, Asked], float]  # of an answer: its F1, as the set counts it


def plain_score(said: str, asked: Asked) -> float:
    """F1 as the SQuAD evaluation counts it."""
    return f1(said, asked.truths)


def told_as(date: str, speaker: str, text: str) -> str:
    """A turn with what a question may ask of it: when it was said, and by whom."""
    return f'({date}) {speaker} said, "{text.strip()}"'


def of_corpora(
    model: MemoryModel,
    name: str,
    settings: Mapping[str, Any],
    corpora: Sequence[Corpus],
    columns: Sequence[Column],
    *,
    tokens: int,
    score: Score = plain_score,
    count: int | None = None,
    folder: Path | None = None,
) -> Evaluation:
    """What is measured of some corpora.

    Args:
        name, settings: of the evaluation; settings say which data.
        tokens: most of an answer.
        score: F1 of an answer.
        count: questions at most, as many of each corpus; None: all.
        folder: in which what is told once is kept, so that the next run need not write it again.
    """
    asking = Asking(model, tokens)

    @lru_cache(4)
    def told(place: int) -> Told:
        corpus = corpora[place]
        return Told(model, [part.text for part in corpus.parts], whole=corpus.whole, folder=folder)

    items = [
        Item(
            f"{corpora[place].name}/{asked.key}",
            ("answerable", asked.kind) if asked.answerable else ("never told",),
            content=(place, asked),
        )
        for place, asked in _chosen(corpora, count)
    ]

    def measure(column: Column, those: Sequence[Item]) -> list[Record]:
        pairs: list[tuple[int, Asked]] = [item.content for item in those]
        return [_measured(asking, column, corpora[place], told(place), asked, score) for place, asked in pairs]

    return Evaluation(
        name,
        {**settings, "answer_tokens": tokens},
        items,
        columns,
        measure,
        METRICS,
        base="bm25_4",
    )


def _chosen(corpora: Sequence[Corpus], count: int | None) -> list[tuple[int, Asked]]:
    """Corpus by corpus; with a count, the first questions of each, as many of one as of another."""
    rounds = zip_longest(*([(place, asked) for asked in one.asked] for place, one in enumerate(corpora)))
    dealt = [pair for one in rounds for pair in one if pair is not None]
    return sorted(dealt[:count], key=lambda pair: pair[0])


def _measured(asking: Asking, column: Column, corpus: Corpus, told: Told, asked: Asked, score: Score) -> Record:
    said = asking(column, told, asked.text, asked.evidence)
    record = record_of(said, column, told, asked.truths, asked.evidence, answerable=asked.answerable)
    if not asked.answerable:
        return {**record, "not_told": said.found is False or _refuses(said.text)}
    return {**record, "f1": round(score(said.text, asked), 4), **_recall(said, corpus, asked)}


def _refuses(answer: str) -> bool:
    return any(refusal in answer.lower() for refusal in _REFUSALS)


def _recall(said: Said, corpus: Corpus, asked: Asked) -> Record:
    """Shares of the evidence among the best parts, and of its sections among those of the ten best parts."""
    if said.ranked is None:
        return {}
    found: Record = {}
    if asked.evidence:
        for count in RECALLS:
            found[f"recall_{count}"] = _share(asked.evidence, said.ranked[:count])
    if asked.sections:
        ranked = [corpus.parts[place].section for place in said.ranked[:RANKED]]
        found["sections_10"] = _share(asked.sections, ranked)
    return found


def _share(wanted: Sequence[Any], there: Sequence[Any]) -> float:
    return round(len(set(wanted) & set(there)) / len(set(wanted)), 4)
