"""Editing: facts that change, written one after another, and what the model says of them and of others afterwards.

| | asked | counts |
|---|---|---|
| efficacy | the prompt of the edit | the new answer |
| generalisation | the same in other words | the new answer |
| specificity | about neighbours, who must not change | the answer that they had |
| score | | harmonic mean of the three |

What it is to give an answer hangs on the set, as in the papers that the sets are from:

- counterfact (ROME, Meng et al. 2022: ES, PS, NS): it is more probable than the other one, old against new; both by the
  mean log-probability of their tokens.
- zsre (MEND, Mitchell et al. 2022; ROME): the share of its tokens that are the most probable, each behind those before.
  The answer about the neighbour is the one in the file, known before or not.
- biographies (ours, see `biography_edits`): greedy generation gives it, whole and nothing else.

Every method starts from the same model and the same memory, which holds what the set says is known:

| method | an edit is |
|---|---|
| none | not made: what the model says anyway |
| memory | its statement, written into the memory |
| context | its statement, in front of the prompt; of many, as many of the last as the context holds |
| ft, ft_all, ft_l | its prompt and answer, trained into weights (see `finetuning`) |
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from statistics import mean, pstdev
from typing import Any, Literal, get_args

import torch

from remanence.data.edits import Edit, Kind
from remanence.errors import InvalidInputError
from remanence.evaluation.answering import Context, answer_rows
from remanence.evaluation.finetuning import BOUND, RATE, STEPS, TUNED, restored, tune, weights_of
from remanence.evaluation.resuming import identity, keep, kept
from remanence.evaluation.scoring import score_tokens
from remanence.memory import Memory
from remanence.model.model import MemoryModel

Method = Literal["none", "memory", "context", "ft", "ft_all", "ft_l"]
METHODS: tuple[Method, ...] = get_args(Method)
METRICS = ("efficacy", "generalisation", "specificity")
Figures = dict[str, Any]


@dataclass(frozen=True)
class _Asked:
    """A prompt, the answer that counts, and the one that it must beat."""

    prompt: str
    right: str
    wrong: str


def measure(
    model: MemoryModel,
    edits: Sequence[Edit],
    kind: Kind,
    *,
    counts: Sequence[int] = (1, 10, 100),
    samples: int = 100,
    methods: Sequence[Method] = METHODS,
    rate: float = RATE,
    bound: float = BOUND,
    seed: int = 0,
    batch: int = 25,
    state: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Figures:
    """Efficacy, generalisation, specificity and score of each method, by the number of edits made before asking.

    Args:
        edits: as many as `edits_needed` says, or more.
        counts: edits that are made one after another, then all asked; each time from the start.
        samples: edits asked in all for each count, in groups of the count; a count above it has one group.
        rate: learning rate of the fine-tuning; bound: how far FT-L may move a weight in an edit. Published for models
            of billions of weights; one of another size may take others.
        batch: prompts that are read at once.
        state: folder in which what is finished for a method and a count is kept; a run that was cut goes on from there.
        progress: called with (edits made, edits in all).

    Returns:
        what `identity` gives, `set`, `edits` (a digest), `seed`, `samples`, `rate`, `steps`, `bound`; `results`: a list
        of `method`, `edits`, `samples`, and for each metric `rate` and `stderr`, and `score`.

    Raises:
        InvalidInputError: no such method, counts that make no sense, too few edits; a state folder of another run.
    """
    if not methods or set(methods) - set(METHODS):
        raise InvalidInputError(f"methods are among {', '.join(METHODS)}; got {', '.join(methods) or 'none'}")
    if len(edits) < (needed := edits_needed(counts, samples)):
        raise InvalidInputError(f"{needed} edits are needed, but there are {len(edits)}; ask for fewer samples")
    run = {
        **identity(model),
        "set": kind,
        "edits": _digest(edits[:needed]),
        "seed": seed,
        "samples": samples,
        "rate": rate,
        "steps": STEPS,
        "bound": bound,
    }
    record = None if state is None else kept(state / "editing.json", run)
    finished: Figures = {} if record is None else record["results"]
    pairs = [(method, count) for count in dict.fromkeys(counts) for method in METHODS if method in methods]
    step = _Steps(sum(_asked_in_all(count, samples) for _, count in pairs), progress)
    for method, count in pairs:
        groups = [edits[start : start + count] for start in range(0, _asked_in_all(count, samples), count)]
        name = f"{method}/{count}"
        if name in finished:
            step(count * len(groups))
            continue
        scored: list[list[float]] = [[], [], []]
        for number, group in enumerate(groups):
            memory = Memory(model.spec) if method == "context" else model.new_memory(seed + number)
            editor = _Editor(model, memory, method, rate, bound)
            for metric, found in zip(scored, editor.scores(group, kind, batch, step), strict=True):
                metric += found
        finished[name] = {"method": method, "edits": count, **summary(scored)}
        if state is not None:
            keep(state / "editing.json", run, results=finished)
    return {**run, "results": [finished[f"{method}/{count}"] for method, count in pairs]}


def edits_needed(counts: Sequence[int], samples: int) -> int:
    """How many edits there must be, for the count that takes most.

    Raises:
        InvalidInputError: no counts, or numbers below 1.
    """
    if not counts or min(counts) < 1 or samples < 1:
        raise InvalidInputError("editing needs counts of edits from 1, and at least one sample")
    return max(_asked_in_all(count, samples) for count in counts)


def _asked_in_all(count: int, samples: int) -> int:
    return max(count, samples - samples % count)


def summary(scored: Sequence[Sequence[float]]) -> Figures:
    """Of what each edit got in each metric; `stderr` is one standard error of the mean.

    Where a set has no paraphrases or no neighbours, that metric is None, and the score is the mean of the others.
    """
    figures: Figures = {"samples": len(scored[0])}
    for name, found in zip(METRICS, scored, strict=True):
        figures[name] = {"rate": mean(found), "stderr": pstdev(found) / sqrt(len(found))} if found else None
    return {**figures, "score": harmonic([figures[name]["rate"] for name in METRICS if figures[name]])}


def harmonic(shares: Sequence[float]) -> float:
    return len(shares) / sum(1 / share for share in shares) if all(shares) else 0.0


class _Editor:
    """One memory, one method, and the edits made by it so far."""

    def __init__(self, model: MemoryModel, memory: Memory, method: Method, rate: float, bound: float) -> None:
        self._model, self._memory, self._method = model, memory, method
        self._rate, self._bound = rate, bound if method == "ft_l" else None
        self._context = Context(model)

    def scores(self, edits: Sequence[Edit], kind: Kind, batch: int, step: Callable[[int], None]) -> list[list[float]]:
        """Make all edits, then ask: for each metric what every edit got. The weights are afterwards as before."""
        for text in (text for edit in edits for text in edit.known):
            if self._method == "context":
                self._context.append(text)
            else:
                self._model.write(self._memory, text)
        weights = weights_of(self._model, self._method) if self._method in TUNED else []
        with restored(self._model, weights):
            for edit in edits:
                self._make(edit, weights)
                step(1)
            # Tuned weights have another fingerprint; the memory is read by them all the same.
            self._memory.spec = self._model.spec
            return [
                self._shares([asked(edit) for edit in edits], kind, batch)
                for asked in (_efficacy, _generalisation, _specificity)
            ]

    def _shares(self, asked: Sequence[Sequence[_Asked]], kind: Kind, batch: int) -> list[float]:
        """Of the prompts about each edit, the share that got the right answer."""
        found = iter(self._judge([one for of_edit in asked for one in of_edit], kind, batch))
        return [mean(next(found) for _ in of_edit) for of_edit in asked if of_edit]

    def _make(self, edit: Edit, weights: Sequence[torch.nn.Parameter]) -> None:
        if self._method == "memory":
            self._model.write(self._memory, edit.statement)
        elif self._method == "context":
            self._context.append(edit.statement)
        elif weights:
            row, answer = self._row(edit.prompt, edit.new)
            tune(self._model, self._memory, weights, row, answer, rate=self._rate, bound=self._bound)

    def _judge(self, asked: Sequence[_Asked], kind: Kind, batch: int) -> Iterator[float]:
        for start in range(0, len(asked), batch):
            part = asked[start : start + batch]
            if kind == "biographies":
                rows = [self._context.before(one.prompt) for one in part]
                given = answer_rows(self._model, [self._memory] * len(part), rows)
                yield from (float(answer == one.right) for answer, one in zip(given, part, strict=True))
                continue
            right = self._likelihoods([(one.prompt, one.right) for one in part])
            if kind == "zsre":
                yield from (share for _, share in right)
            else:
                wrong = self._likelihoods([(one.prompt, one.wrong) for one in part])
                yield from (float(r > w) for (r, _), (w, _) in zip(right, wrong, strict=True))

    def _likelihoods(self, pairs: Sequence[tuple[str, str]]) -> list[tuple[float, float]]:
        """Per prompt and answer: mean log-probability of the answer's tokens, and share that are the most probable."""
        made = [self._row(prompt, answer) for prompt, answer in pairs]
        found, _ = score_tokens(self._model, self._memory, [(row[:-answer], row[-answer:]) for row, answer in made])
        return [(mean(one.likelihoods), mean(one.greedy)) for one in found]

    def _row(self, prompt: str, answer: str) -> tuple[list[int], int]:
        """Ids of context, prompt and answer, and how many are the answer's: those that the prompt alone has not.

        They are encoded together: what a tokenizer makes of a word hangs on whether it starts the text.
        """
        encode = self._model.tokenizer
        alone = encode(prompt, add_special_tokens=False)["input_ids"]
        both = encode(f"{prompt} {answer}", add_special_tokens=False)["input_ids"]
        shared = next((i for i, (a, b) in enumerate(zip(alone, both, strict=False)) if a != b), len(alone))
        return self._context.before(f"{prompt} {answer}"), len(both) - shared


def _efficacy(edit: Edit) -> list[_Asked]:
    return [_Asked(edit.prompt, edit.new, edit.old)]


def _generalisation(edit: Edit) -> list[_Asked]:
    return [_Asked(prompt, edit.new, edit.old) for prompt in edit.paraphrases]


def _specificity(edit: Edit) -> list[_Asked]:
    return [_Asked(prompt, answer, edit.new) for prompt, answer in edit.neighbours]


class _Steps:
    def __init__(self, total: int, report: Callable[[int, int], None] | None) -> None:
        self._done, self._total, self._report = 0, total, report

    def __call__(self, count: int) -> None:
        self._done += count
        if self._report is not None:
            self._report(self._done, self._total)


def _digest(edits: Sequence[Edit]) -> str:
    return hashlib.blake2b(repr(list(edits)).encode(), digest_size=8).hexdigest()
