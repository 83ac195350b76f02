"""Editing: facts that change, told one after another, and what the model then says of them and of others.

| metric | what is asked |
|---|---|
| efficacy | the prompt of the edit |
| paraphrase | the same in other words |
| specificity | about a neighbour, who must not change |

`score` is their harmonic mean. What counts hangs on the set, as in the papers that the sets are from:

- CounterFact (ROME, Meng et al. 2022): an answer that is more probable than the other one, old against new, by the mean
  log-probability of its tokens.
- zsRE (MEND, Mitchell et al. 2022): the share of an answer's tokens that are the most probable.
- biographies (ours): an answer that greedy generation gives, whole and nothing else.

| column | an edit is |
|---|---|
| nothing | not made |
| fits | its statement as text in front of the prompt, with as many of the others as fit |
| bm25_1, bm25_4, … | the statements that BM25 ranks highest, as text |
| slots, pool, longterm | its statement, written into the memory |
| ft, ft_all, ft_l | its prompt and answer, trained into weights (see `finetuning`) |

A memory is told first what a set says is known; that stands in front of the statements wherever they are text, too.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import lru_cache, partial
from math import inf
from pathlib import Path
from statistics import fmean
from typing import Annotated

import typer

from remanence.data.edits import Edit, Kind, biography_edits, read_edits
from remanence.errors import InvalidInputError
from remanence.evaluation.answering import answer
from remanence.evaluation.asking import memory_of, shown_of
from remanence.evaluation.columns import Column, only
from remanence.evaluation.finetuning import BOUND, RATE, STEPS, TUNED, restored, tune, weights_of
from remanence.evaluation.harness import Evaluation, Item, Record, digest_of
from remanence.evaluation.metrics import Metric
from remanence.evaluation.registry import Command
from remanence.evaluation.scoring import score_tokens
from remanence.evaluation.told import Told
from remanence.memory import Memory
from remanence.model.model import MemoryModel
from remanence.texts import token_ids

METRICS = (
    Metric("score", "harmonic", compared=True),
    Metric("efficacy", "mean"),
    Metric("paraphrase", "mean"),
    Metric("specificity", "mean"),
)
COMMAND = Command(
    columns="nothing,fits,bm25_4",
    also=TUNED,
    examples=(
        "--model tiny_longterm --count 20",
        "--data counterfact.json --edits 1,10,100",
        "--data zsre.json --columns nothing,fits,slots,ft --resume runs/zsre --json zsre.json",
    ),
)
_BATCH = 25  # prompts that are read at once
_ANSWER = 64  # tokens that are left for an answer


@dataclass(frozen=True)
class Group:
    """Edits that are made one after another, and then asked about; `seed`: of the memory."""

    edits: tuple[Edit, ...]
    seed: int

    @property
    def texts(self) -> list[str]:
        """What is known, and then what changes."""
        known = [text for edit in self.edits for text in edit.known]
        return [*known, *(edit.statement for edit in self.edits)]


@dataclass(frozen=True)
class _Asked:
    """A prompt, the answer that counts, and the one that it must beat."""

    prompt: str
    right: str
    wrong: str


def evaluation(
    model: MemoryModel,
    columns: Sequence[Column],
    *,
    data: Annotated[
        Path | None, typer.Option(help="CounterFact or zsRE edits, JSON. Default: edits of invented people.")
    ] = None,
    edits: Annotated[str, typer.Option(help="Edits to make one after another before asking.")] = "1,10,100",
    count: Annotated[int, typer.Option(min=1, help="Edits asked about, for each such number.")] = 100,
    rate: Annotated[float, typer.Option(min=0, help="Learning rate of the fine-tuning.")] = RATE,
    bound: Annotated[float, typer.Option(min=0, help="How far ft_l may move a weight in an edit.")] = BOUND,
    seed: Annotated[int, typer.Option(help="Another seed, other invented people, and other slots forgotten.")] = 0,
    folder: Path | None = None,
) -> Evaluation:
    """Facts that change, told one after another: efficacy, paraphrase, specificity, and the harmonic mean of these.

    Columns of its own: ft, ft_all, ft_l (fine-tuning).
    """
    numbers = [number.strip() for number in edits.split(",")]
    if not all(number.isdecimal() and int(number) > 0 for number in numbers):
        raise InvalidInputError(f"--edits takes numbers from 1 with commas between, such as 1,10,100; got {edits}")
    counts = sorted({int(number) for number in numbers})
    needed = max(count, *counts)
    kind: Kind = "biographies"
    if data is None:
        given = biography_edits(needed, seed)
    else:
        kind, given = read_edits(data)
    if len(given) < needed:
        raise InvalidInputError(f"{data} has {len(given)} edits, and {needed} are asked for")
    items = []
    for made in counts:
        for start in range(0, max(made, count - count % made), made):
            group = Group(tuple(given[start : start + made]), seed + start)
            title = f"{made:,} edit{'s' * (made > 1)}"
            items += [
                Item(f"{made}/{start + number}", (title,), content=(group, number), together=f"{made}/{start}")
                for number in range(made)
            ]
    settings = {
        "data": "biographies" if data is None else data.name,
        "digest": digest_of(repr(given[:1]) if data is None else data),
        "set": kind,
        "seed": seed,
        "rate": rate,
        "steps": STEPS,
        "bound": bound,
    }
    return Evaluation("editing", settings, items, columns, _Measuring(model, kind, rate, bound), METRICS, base="fits")


class _Measuring:
    def __init__(self, model: MemoryModel, kind: Kind, rate: float, bound: float) -> None:
        self._model, self._kind, self._rate, self._bound = model, kind, rate, bound
        self._ids = partial(token_ids, model.tokenizer)
        self._told = lru_cache(1)(lambda group: Told(model, group.texts, seed=group.seed))

    def __call__(self, column: Column, items: Sequence[Item]) -> list[Record]:
        group: Group = items[0].content[0]
        edits = [group.edits[item.content[1]] for item in items]
        memory = self._memory(column, group)
        weights = weights_of(self._model, column.shows) if column.shows in TUNED else []
        with restored(self._model, weights) if weights else nullcontext(), only(self._model, column.parts):
            for edit in group.edits if weights else ():
                row, answer = self._row("", edit.prompt, edit.new)
                bound = self._bound if column.shows == "ft_l" else None
                tune(self._model, memory, weights, [*row, *answer], len(answer), rate=self._rate, bound=bound)
            if weights:  # they have another fingerprint; the memory is read by them all the same
                memory.spec = self._model.spec
            return self._records(column, memory, group, edits)

    def _memory(self, column: Column, group: Group) -> Memory:
        """What the prompts are read behind; weights are tuned behind what was known, where the writer is learned."""
        if column.remembers:
            return memory_of(column, self._told(group))
        if column.shows in ("fits", "bm25"):
            return Memory(self._model.spec)
        memory = self._model.new_memory(group.seed)
        for text in (text for edit in group.edits for text in edit.known):
            if self._model.config.writer == "learned":
                self._model.write(memory, text)
        return memory

    def _records(self, column: Column, memory: Memory, group: Group, edits: Sequence[Edit]) -> list[Record]:
        asked = [
            {
                "efficacy": [_Asked(edit.prompt, edit.new, edit.old)],
                "paraphrase": [_Asked(prompt, edit.new, edit.old) for prompt in edit.paraphrases],
                "specificity": [_Asked(prompt, answer, edit.new) for prompt, answer in edit.neighbours],
            }
            for edit in edits
        ]
        every = [one for kinds in asked for those in kinds.values() for one in those]
        found: list[float] = []
        for start in range(0, len(every), _BATCH):
            found += self._judged(column, memory, group, every[start : start + _BATCH])
        judged, records = iter(found), list[Record]()
        for kinds in asked:
            record: Record = {
                name: round(fmean(next(judged) for _ in those), 4) for name, those in kinds.items() if those
            }
            records.append({**record, "score": [record.get(name) for name in kinds]})
        return records

    def _shown(self, column: Column, group: Group, prompt: str) -> str:
        """What stands in front of a prompt, as text."""
        room = (self._model.positions or inf) - _ANSWER - len(self._ids(prompt))
        shown, _ = shown_of(column, self._told(group), prompt, room)
        return "".join(f"{text}\n" for text in shown)

    def _judged(self, column: Column, memory: Memory, group: Group, asked: Sequence[_Asked]) -> list[float]:
        """How far the right answer to each prompt counts."""
        shown = [self._shown(column, group, one.prompt) for one in asked]
        rows = list(zip(shown, asked, strict=True))
        if self._kind == "biographies":
            prompts = [self._prompt(text, one.prompt) for text, one in rows]
            said = answer(self._model, [memory] * len(prompts), prompts)
            return [float(text == one.right) for text, one in zip(said, asked, strict=True)]
        right, _ = score_tokens(self._model, memory, [self._row(text, one.prompt, one.right) for text, one in rows])
        if self._kind == "zsre":
            return [fmean(one.greedy) for one in right]
        wrong, _ = score_tokens(self._model, memory, [self._row(text, one.prompt, one.wrong) for text, one in rows])
        return [float(fmean(a.likelihoods) > fmean(b.likelihoods)) for a, b in zip(right, wrong, strict=True)]

    def _row(self, shown: str, prompt: str, answer: str) -> tuple[list[int], list[int]]:
        """Ids of what is shown and the prompt, and of the answer: those that the prompt alone has not.

        Prompt and answer are encoded together: what a tokenizer makes of a word hangs on whether it starts the text.
        """
        alone, both = self._ids(prompt), self._ids(f"{prompt} {answer}")
        shared = next((place for place, (a, b) in enumerate(zip(alone, both, strict=False)) if a != b), len(alone))
        return [*self._prompt(shown, ""), *both[:shared]], both[shared:]

    def _prompt(self, shown: str, prompt: str) -> list[int]:
        return [*self._model.texts.front, *self._ids(shown), *self._ids(prompt)]
