"""Edits of facts from CounterFact or zsRE, told one after another, and what the model then says of them and of others.

| metric | what is asked |
|---|---|
| efficacy | the prompt of the edit |
| paraphrase | the same in other words |
| specificity | about a neighbour, who must not change |

`score` is their harmonic mean. Of CounterFact an answer counts if it is more probable than the other one, old against
new, by the mean log-probability of its tokens; of zsRE the share of its tokens that are the most probable. Columns:

| column | an edit is |
|---|---|
| nothing | not made |
| fits | its statement as text in front of the prompt, with as many of the others as fit |
| bm25_1, bm25_4, … | the statements that BM25 ranks highest, as text |
| slots | its statement, written into the memory |
| ft, ft_all, ft_l | its prompt and answer, trained into weights (see `finetuning`) |
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from statistics import fmean

from remanence.data.edits import Edit, Kind, read_edits
from remanence.errors import InvalidInputError
from remanence.evaluation.columns import Column, columns_of
from remanence.evaluation.finetuning import BOUND, RATE, TUNED, restored, tune, weights_of
from remanence.evaluation.harness import Evaluation, Item, Measure, Record
from remanence.evaluation.metrics import Metric
from remanence.evaluation.scoring import Scored, score_tokens
from remanence.evaluation.told import Told
from remanence.memory import Memory
from remanence.model.model import MemoryModel

METRICS = (
    Metric("score", "harmonic", compared=True),
    Metric("efficacy", "mean"),
    Metric("paraphrase", "mean"),
    Metric("specificity", "mean"),
)
_BATCH = 25  # prompts that are read at once


@dataclass(frozen=True)
class Group:
    """Edits that are made one after another, and then asked about."""

    edits: tuple[Edit, ...]


@dataclass(frozen=True)
class _Asked:
    """A prompt, the answer that counts, and the one that it must beat."""

    prompt: str
    right: str
    wrong: str


def methods_of(model: MemoryModel, names: str | Sequence[str]) -> list[Column]:
    """Columns by their names, those of fine-tuning too.

    Raises:
        InvalidInputError: as `columns_of`.
    """
    listed = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    return [Column(name, name) if name in TUNED else columns_of(model, [name])[0] for name in dict.fromkeys(listed)]


def evaluation(
    model: MemoryModel,
    path: Path,
    columns: Sequence[Column],
    *,
    counts: Sequence[int] = (1, 10, 100),
    asked: int = 100,
    rate: float = RATE,
    bound: float = BOUND,
) -> Evaluation:
    """What is measured of a file of edits.

    Args:
        counts: edits that are made one after another before they are asked about.
        asked: edits that are asked about for each count, in groups of the count; at least one group.
        rate: of fine-tuning; bound: how far `ft_l` may move a weight in an edit.

    Raises:
        FileNotFoundError, InvalidInputError: as `read_edits`; counts that make no sense, or too few edits; the column
            oracle, which is `fits` here.
    """
    if any(column.shows == "oracle" for column in columns):
        raise InvalidInputError("which statement is right is what is asked, so there is no column oracle; name fits")
    if not counts or min(counts) < 1:
        raise InvalidInputError("counts of edits are numbers from 1")
    kind, edits = read_edits(path)
    if len(edits) < max(asked, *counts):
        raise InvalidInputError(f"{path} has {len(edits)} edits, and {max(asked, *counts)} are asked for")
    items = []
    for count in sorted(set(counts)):
        for start in range(0, max(count, asked - asked % count), count):
            group = Group(tuple(edits[start : start + count]))
            title = f"{count:,} edit{'s' * (count > 1)}"
            items += [
                Item(f"{count}/{start + number}", (title,), content=(group, number), together=f"{count}/{start}")
                for number in range(count)
            ]
    measuring = _Measuring(model, kind, rate, bound)
    return Evaluation(
        "edits",
        {
            "data": path.name,
            "digest": hashlib.sha256(path.read_bytes()).hexdigest()[:16],
            "set": kind,
            "rate": rate,
            "bound": bound,
        },
        items,
        {column.name: measuring.column(column) for column in columns},
        METRICS,
        base="fits" if any(column.shows == "fits" for column in columns) else None,
    )


class _Measuring:
    def __init__(self, model: MemoryModel, kind: Kind, rate: float, bound: float) -> None:
        self._model, self._kind, self._rate, self._bound = model, kind, rate, bound
        self._told = lru_cache(1)(lambda group: Told(model, [edit.statement for edit in group.edits]))

    def column(self, column: Column) -> Measure:
        def measure(items: Sequence[Item]) -> list[Record]:
            group: Group = items[0].content[0]
            edits = [group.edits[item.content[1]] for item in items]
            if column.shows not in TUNED:
                memory = self._told(group).memory if column.shows == "slots" else self._model.new_memory()
                return [self._record(column, memory, group, edit) for edit in edits]
            blank, weights = self._model.new_memory(), weights_of(self._model, column.shows)
            with restored(self._model, weights):
                for edit in group.edits:
                    row, answer = self._row("", edit.prompt, edit.new)
                    bound = self._bound if column.shows == "ft_l" else None
                    tune(self._model, blank, weights, [*row, *answer], len(answer), rate=self._rate, bound=bound)
                blank.spec = self._model.spec  # the tuned weights have another fingerprint
                return [self._record(column, blank, group, edit) for edit in edits]

        return measure

    def _record(self, column: Column, memory: Memory, group: Group, edit: Edit) -> Record:
        asked = {
            "efficacy": [_Asked(edit.prompt, edit.new, edit.old)],
            "paraphrase": [_Asked(prompt, edit.new, edit.old) for prompt in edit.paraphrases],
            "specificity": [_Asked(prompt, answer, edit.new) for prompt, answer in edit.neighbours],
        }
        found = iter(self._judged(column, memory, group, [one for those in asked.values() for one in those]))
        record: Record = {name: round(fmean(next(found) for _ in those), 4) for name, those in asked.items() if those}
        return {**record, "score": [record.get(name) for name in asked]}

    def _shown(self, column: Column, group: Group, prompt: str) -> str:
        """What stands in front of a prompt, as text."""
        told = self._told(group)
        if column.shows == "bm25":
            told.index()
            places = told.ranked(prompt)[: column.passages][::-1]
        elif column.shows == "fits":
            if self._model.positions is None:
                raise InvalidInputError(f"{self._model.name} does not say how much it reads; leave the column fits out")
            places = told.newest(self._model.positions - 64 - len(self._ids(prompt)))
        else:
            places = []
        return "".join(f"{told.passages[place]}\n" for place in places)

    def _judged(self, column: Column, memory: Memory, group: Group, asked: Sequence[_Asked]) -> list[float]:
        """How far the right answer to each prompt counts."""
        shown = [self._shown(column, group, one.prompt) for one in asked]
        rows = list(zip(shown, asked, strict=True))
        right = self._scored(memory, [self._row(text, one.prompt, one.right) for text, one in rows])
        if self._kind == "zsre":
            return [fmean(one.greedy) for one in right]
        wrong = self._scored(memory, [self._row(text, one.prompt, one.wrong) for text, one in rows])
        return [float(fmean(a.likelihoods) > fmean(b.likelihoods)) for a, b in zip(right, wrong, strict=True)]

    def _scored(self, memory: Memory, rows: Sequence[tuple[list[int], list[int]]]) -> list[Scored]:
        found: list[Scored] = []
        for start in range(0, len(rows), _BATCH):
            found += score_tokens(self._model, memory, rows[start : start + _BATCH])[0]
        return found

    def _row(self, shown: str, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """Ids of what is shown and the prompt, and of the answer: those that the prompt alone has not.

        Prompt and answer are encoded together: what a tokenizer makes of a word hangs on whether it starts the text.
        """
        alone, both = self._ids(prompt), self._ids(f"{prompt} {answer}")
        shared = next((place for place, (a, b) in enumerate(zip(alone, both, strict=False)) if a != b), len(alone))
        return [*self._model.texts.front, *self._ids(shown), *both[:shared]], both[shared:]

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self._model.tokenizer(text, add_special_tokens=False)["input_ids"]
        return ids
