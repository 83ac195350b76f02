"""Questions about corpora: parts are told into a memory, in their order, and each question is asked of it.

Known is which parts hold the answer. Where it was never told, it is right to say so.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache
from itertools import zip_longest
from pathlib import Path
from typing import Any

from remanence.evaluation.asking import ANSWER_TOKENS, ANSWERED, RANKED, Asking, Said, record_of
from remanence.evaluation.columns import Column, reading_all
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
        oracle: numbers of the parts that are shown with the question as an oracle would; None: the evidence.
    """

    key: str
    text: str
    kind: str
    truths: tuple[str, ...]
    evidence: tuple[int, ...] = ()
    sections: tuple[str, ...] = ()
    answerable: bool = True
    oracle: tuple[int, ...] | None = None


@dataclass(frozen=True, eq=False)
class Corpus:
    """What one memory is told, a part after another, and what is asked about it.

    Attributes:
        whole: the text that the parts are cut from, where it is told in one write.
        after: how many of the passages that corpora have in common are told before the parts; they count as parts.
        forgotten: the number of a part that is forgotten again.
        title: all questions count in this row of the report; "": each in that of its kind.
        columns: under which they are asked; None: all.
        read_whole: the memory is read whatever its parts score.
    """

    name: str
    parts: tuple[Part, ...]
    asked: tuple[Asked, ...]
    whole: str | None = None
    after: int = 0
    forgotten: int | None = None
    title: str = ""
    columns: tuple[str, ...] | None = None
    read_whole: bool = False


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
    tokens: int = ANSWER_TOKENS,
    score: Score | None = None,
    count: int | None = None,
    common: Sequence[str] = (),
    folder: Path | None = None,
) -> Evaluation:
    """What is measured of some corpora.

    Args:
        name, settings: of the evaluation; settings say which data.
        tokens: most of an answer.
        score: F1 of an answer, where evidence is measured too; None: what counts is `ANSWERED`, against the oracle.
        count: questions at most, as many of each corpus; None: all.
        common: passages that corpora have in common.
        folder: in which what several questions are about is kept, so that the next run need not write it again.
    """
    asking, told = Asking(model, tokens), teller(model, common, folder)

    def measured(column: Column, corpus: Corpus, asked: Asked) -> Record:
        held = told(corpus)
        with reading_all(model) if corpus.read_whole else nullcontext():
            said = asking(column, held, asked.text, asked.evidence if asked.oracle is None else asked.oracle)
        record = record_of(said, column, held, asked.truths, asked.evidence, answerable=asked.answerable)
        if corpus.read_whole:
            record.pop("found", None)  # it was read whatever it scored
        return record if score is None else {**record, **_evidence(said, corpus, asked, score)}

    items = [
        Item(f"{corpus.name}/{asked.key}", _groups(corpus, asked), corpus.columns, (corpus, asked))
        for corpus, asked in _chosen(corpora, count)
    ]
    return Evaluation(
        name,
        {**settings, "answer_tokens": tokens},
        items,
        columns,
        lambda column, those: [measured(column, *item.content) for item in those],
        ANSWERED if score is None else METRICS,
        base="oracle" if score is None else "bm25_4",
    )


def teller(model: MemoryModel, common: Sequence[str] = (), folder: Path | None = None) -> Callable[[Corpus], Told]:
    """What tells corpora. Of the common passages, a longer memory is a fork of a shorter one, and each is made once."""
    first = {0: Told(model, [])}

    @lru_cache(4)
    def told(corpus: Corpus) -> Told:
        texts = [part.text for part in corpus.parts]
        if not corpus.after:
            return Told(model, texts, whole=corpus.whole, folder=None if common else folder)
        if corpus.after not in first:
            shorter = max(known for known in first if known < corpus.after)
            first[corpus.after] = first[shorter].then(common[shorter : corpus.after], folder)
        made = first[corpus.after].then(texts) if texts else first[corpus.after]
        return made if corpus.forgotten is None else made.without(corpus.forgotten)

    return told


def _groups(corpus: Corpus, asked: Asked) -> tuple[str, ...]:
    if corpus.title:
        return (corpus.title,)
    return ("answerable", asked.kind) if asked.answerable else ("never told",)


def _chosen(corpora: Sequence[Corpus], count: int | None) -> list[tuple[Corpus, Asked]]:
    """Corpus by corpus; with a count, the first questions of each, as many of one as of another."""
    rounds = zip_longest(*([(place, asked) for asked in one.asked] for place, one in enumerate(corpora)))
    dealt = [pair for one in rounds for pair in one if pair is not None]
    return [(corpora[place], asked) for place, asked in sorted(dealt[:count], key=lambda pair: pair[0])]


def _evidence(said: Said, corpus: Corpus, asked: Asked, score: Score) -> Record:
    """F1; shares of the evidence among the best parts, and of its sections among those of the ten best parts."""
    if not asked.answerable:
        return {"not_told": said.found is False or any(refusal in said.text.lower() for refusal in _REFUSALS)}
    found: Record = {"f1": round(score(said.text, asked), 4)}
    if said.ranked is not None and asked.evidence:
        found |= {f"recall_{count}": _share(asked.evidence, said.ranked[:count]) for count in RECALLS}
    if said.ranked is not None and asked.sections:
        found["sections_10"] = _share(asked.sections, [corpus.parts[place].section for place in said.ranked[:RANKED]])
    return found


def _share(wanted: Sequence[Any], there: Sequence[Any]) -> float:
    return round(len(set(wanted) & set(there)) / len(set(wanted)), 4)
