"""Retention: how often a fact is recalled, as a function of the writes since it was written.

A sample is a text and a question about it, by default the biography of a held-out person. Its memory is brought to
steady state by unrelated writes; then the text is written, then unrelated paragraphs, one per write. At each distance
one question is asked; about a person it is in words and about an attribute drawn for it. Reading changes nothing, so
every question is the first of its episode.

| curve | what the model has when it is asked |
|---|---|
| pool | the pool of the memory |
| longterm | the pool, and what is retrieved from long-term memory, where the model has a retriever |
| none | nothing: the share that guessing gets |
| context | the text and what was written after it, as text: a window of the newest tokens that the context holds |
| fact | the text alone, in the context: what the backbone answers with the text before its eyes |
| bm25 | of all that was written, the paragraphs that BM25 ranks highest for the question, in the context |
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from math import sqrt
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

from remanence.data.biographies import ATTRIBUTES, values
from remanence.data.episodes import FACTS, Episode
from remanence.errors import InvalidInputError
from remanence.evaluation.answering import ANSWER_TOKENS, Context, continuations, row_continuations
from remanence.evaluation.bm25 import BestPassages, require_bm25
from remanence.evaluation.distances import DISTANCES, parse_distances, writes_per_pool
from remanence.evaluation.resuming import identity, keep, kept
from remanence.memory import Memory, Storage
from remanence.model.model import MemoryModel
from remanence.texts import Question, answer_of

Condition = Literal["pool", "longterm", "none", "context", "fact", "bm25"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)
_SHOWN: dict[Condition, type[Context]] = {"context": Context, "fact": Context, "bm25": BestPassages}


class Told(Protocol):
    """One sample: a text, what is written around it, and the question at each distance, a prompt."""

    fact: str
    unrelated: Iterator[str]

    def question(self, distance: int) -> Question: ...


class Samples(Protocol):
    """Where samples come from, and what counts as right.

    Attributes:
        conditions: measured unless others are named.
        answer_tokens: generated for an answer.
        score: what its figures are called.
        chance: the score of guessing, if it is known.
        about: what a report says of it.
    """

    conditions: tuple[Condition, ...]
    answer_tokens: int
    score: str
    chance: float | None

    @property
    def about(self) -> dict[str, Any]: ...

    def warm_up(self, model: MemoryModel) -> int: ...

    def episode(self, seed: int, index: int) -> Told: ...

    def right(self, said: str, question: Question) -> bool: ...


class Biographies:
    """Held-out people. An answer is right if it is the value asked for, to the letter.

    `unlisted`: their names and values are made of words that are on no list, and that nothing was trained on.
    """

    conditions: tuple[Condition, ...] = ("pool", "longterm", "none", "context")
    answer_tokens = ANSWER_TOKENS
    score = "exact_match"

    def __init__(self, facts: int = FACTS, *, unlisted: bool = False) -> None:
        self._facts, self._unlisted = facts, unlisted
        self.chance: float | None = None if unlisted else chance()

    @property
    def about(self) -> dict[str, Any]:
        return {"attributes_per_biography": self._facts, **({"people": "unlisted"} if self._unlisted else {})}

    def warm_up(self, model: MemoryModel) -> int:
        return 2 * writes_per_pool(model)

    def episode(self, seed: int, index: int) -> Told:
        return Episode(seed, index, self._facts, unlisted=self._unlisted)

    def right(self, said: str, question: Question) -> bool:
        return answer_of(said) == question.truth


def measure(
    model: MemoryModel,
    *,
    distances: str | Sequence[int] = DISTANCES,
    samples: int = 100,
    conditions: Sequence[Condition] | None = None,
    storage: Storage | None = None,
    seed: int = 0,
    attributes_per_biography: int = FACTS,
    data: Samples | None = None,
    batch: int = 25,
    state: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """The share of right answers at each distance under each condition, answered greedily.

    The same seed gives the same samples.

    Args:
        distances: in writes, or as `parse_distances` reads them.
        samples: people, or questions of `data`.
        conditions: None: those of the data that the model can be put under.
        data: None: biographies of held-out people.
        storage: where long-term slots lie; None: in host memory, as they are.
        batch: memories that are written at once.
        state: folder in which counts are kept batch by batch; a run that was cut goes on from there.
        progress: called with (steps done, steps in all).

    Returns:
        what `identity` gives; `curves`: per condition a list of `distance`, `exact_match`, `stderr`, `samples`;
        `survival`: a list of `distance` and `line` (see `survival`); `chance`; `seed`, `samples` and
        `attributes_per_biography`. Of other data: its own score in place of `exact_match`, `chance` if it is known,
        and what it says about itself.

    Raises:
        InvalidInputError: distances, conditions or sizes that make no sense; a state folder of another run.
    """
    data = Biographies(attributes_per_biography) if data is None else data
    asked = parse_distances(distances, writes_per_pool(model)) if isinstance(distances, str) else sorted(set(distances))
    if not asked or asked[0] < 0 or samples < 1 or batch < 1:
        raise InvalidInputError("retention needs at least one distance, none below 0, and at least one sample")
    if conditions is None:
        conditions = [c for c in data.conditions if c != "longterm" or model.retriever is not None]
    if "longterm" in conditions and model.retriever is None:
        raise InvalidInputError("this model has no retriever, so there is no long-term memory to measure")
    if not conditions or set(conditions) - set(CONDITIONS):
        raise InvalidInputError(f"conditions are among {', '.join(CONDITIONS)}; got {', '.join(conditions) or 'none'}")
    if "bm25" in conditions:
        require_bm25()
    episodes = [data.episode(seed, index) for index in range(samples)]
    starts, warm_up = range(0, samples, batch), data.warm_up(model)
    each = warm_up + 1 + asked[-1]  # steps of a batch
    by = identity(model)
    run: dict[str, Any] = {
        **by,
        "seed": seed,
        "samples": samples,
        "batch": batch,
        "distances": asked,
        "conditions": [condition for condition in CONDITIONS if condition in conditions],
        "int8": storage is not None and bool(storage.int8),
        "facts": hashlib.sha256("\0".join(episode.fact for episode in episodes).encode()).hexdigest()[:16],
    }
    record = None if state is None else kept(state / "right.json", run)
    done, right = 0, {condition: dict.fromkeys(asked, 0) for condition in run["conditions"]}
    if record is not None:
        done = record["done"]
        right = {condition: dict(zip(asked, counts, strict=True)) for condition, counts in record["right"].items()}
    step = _Steps(done * each, len(starts) * each, progress)
    for start in starts[done:]:
        indices = range(start, min(start + batch, samples))
        memories = [model.new_memory(seed + index, longterm="longterm" in right, storage=storage) for index in indices]
        _measure_batch(model, data, episodes[start : start + batch], memories, right, warm_up, step)
        done += 1
        if state is not None:
            keep(state / "right.json", run, done=done, right={c: [*counts.values()] for c, counts in right.items()})
    curves = {
        condition: [point(distance, count, samples, data.score) for distance, count in counts.items()]
        for condition, counts in right.items()
    }
    return {
        **by,
        "curves": curves,
        "survival": survival(curves.get("pool", []), model.slots, model.slots_per_write, data.score),
        **({} if data.chance is None else {"chance": data.chance}),
        "seed": seed,
        "samples": samples,
        **data.about,
    }


def point(distance: int, right: int, samples: int, score: str = "exact_match") -> dict[str, float]:
    """One point of a curve; `stderr` is one standard error of a share."""
    rate = right / samples
    return {
        "distance": distance,
        score: rate,
        "stderr": sqrt(rate * (1 - rate) / samples),
        "samples": samples,
    }


def survival(
    pool: Sequence[dict[str, float]], slots: int, k: int, score: str = "exact_match"
) -> list[dict[str, float]]:
    """a0·(1 - K/N)^t at the distances of a curve that starts at distance 0; empty if it starts elsewhere.

    (1 - K/N)^t is the share of a write's slots that outlive t more writes, a0 the score at distance 0.
    """
    if not pool or pool[0]["distance"] != 0:
        return []
    a0 = pool[0][score]
    return [{"distance": p["distance"], "line": a0 * (1 - k / slots) ** p["distance"]} for p in pool]


def chance() -> float:
    """The exact match of guessing: one value of the attribute's, averaged over attributes."""
    return sum(1 / len(values(attribute)) for attribute in ATTRIBUTES) / len(ATTRIBUTES)


class _Steps:
    def __init__(self, done: int, total: int, report: Callable[[int, int], None] | None) -> None:
        self._done, self._total, self._report = done, total, report

    def __call__(self) -> None:
        self._done += 1
        if self._report is not None:
            self._report(self._done, self._total)


def _measure_batch(
    model: MemoryModel,
    data: Samples,
    episodes: Sequence[Told],
    memories: Sequence[Memory],
    right: dict[Condition, dict[int, int]],
    warm_up: int,
    step: Callable[[], None],
) -> None:
    remembers = bool({"pool", "longterm"} & set(right))
    blank = [Memory(model.spec) for _ in episodes]
    tokens = data.answer_tokens
    shown = {
        condition: [kind(model, tokens) for _ in episodes] for condition, kind in _SHOWN.items() if condition in right
    }

    def write(texts: list[str], *readers: Condition) -> None:
        """Into the memories, and into the text that the model has under these conditions."""
        if remembers:
            model.write(memories, texts)
        for condition in readers:
            for context, text in zip(shown.get(condition, ()), texts, strict=False):
                context.append(text)
        step()

    def answers(condition: Condition, prompts: list[str]) -> list[str]:
        if condition == "longterm":
            return continuations(model, memories, prompts, tokens)
        if condition == "pool":
            return continuations(model, [memory.pool_only() for memory in memories], prompts, tokens)
        if condition == "none":
            return continuations(model, blank, prompts, tokens)
        rows = [context.before(prompt) for context, prompt in zip(shown[condition], prompts, strict=True)]
        return row_continuations(model, blank, rows, tokens)

    for _ in range(warm_up):
        write([next(episode.unrelated) for episode in episodes], "bm25")
    write([episode.fact for episode in episodes], "context", "fact", "bm25")
    distances = next(iter(right.values()))
    for distance in range(max(distances) + 1):
        if distance:
            write([next(episode.unrelated) for episode in episodes], "context", "bm25")
        if distance in distances:
            questions = [episode.question(distance) for episode in episodes]
            for condition, counts in right.items():
                said = answers(condition, [question.text for question in questions])
                counts[distance] += sum(data.right(s, q) for s, q in zip(said, questions, strict=True))
