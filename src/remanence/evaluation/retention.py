"""Retention: how often a fact is recalled, as a function of the writes since it was written.

A sample is one held-out person. Its memory is brought to steady state by 2·N/K unrelated writes; then the person's
biography is written, then unrelated paragraphs, one per write. At each distance one question is asked, in words and
about an attribute drawn for it. Reading changes nothing, so every question is the first of its episode.

| curve | what the model has when it is asked |
|---|---|
| pool | the pool of the memory |
| longterm | the pool, and what is retrieved from long-term memory, where the model has a retriever |
| context | the biography and what was written after it, as text; as much of its end as the context holds |
| none | nothing: the share that guessing gets |
"""

from collections.abc import Callable, Sequence
from math import sqrt
from typing import Any, Literal, get_args

from remanence.data.biographies import ATTRIBUTES, values
from remanence.data.episodes import FACTS, Episode
from remanence.errors import InvalidInputError
from remanence.evaluation.answering import Context, answer, answer_rows
from remanence.evaluation.distances import DISTANCES, parse_distances
from remanence.memory import Memory, Storage
from remanence.model.memory_model import MemoryModel

Condition = Literal["pool", "longterm", "none", "context"]
CONDITIONS: tuple[Condition, ...] = get_args(Condition)


def measure(
    model: MemoryModel,
    *,
    distances: str | Sequence[int] = DISTANCES,
    samples: int = 100,
    conditions: Sequence[Condition] | None = None,
    storage: Storage | None = None,
    seed: int = 0,
    attributes_per_biography: int = FACTS,
    batch: int = 25,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Exact match at each distance under each condition, answered greedily; the same seed gives the same samples.

    Args:
        distances: in writes, or as `parse_distances` reads them.
        samples: people.
        conditions: None: all that the model can be put under.
        storage: where long-term slots lie; None: in host memory, as they are.
        batch: memories that are written at once.
        progress: called with (steps done, steps in all).

    Returns:
        `n`, `k`; `curves`: per condition a list of `distance`, `exact_match`, `stderr`, `samples`; `survival`: a list
        of `distance` and `line` (see `survival`); `chance`; `model`: its fingerprint; `seed`, `samples` and
        `attributes_per_biography`.

    Raises:
        InvalidInputError: distances, conditions or sizes that make no sense.
    """
    writes_per_pool = model.slots // model.slots_per_write
    asked = parse_distances(distances, writes_per_pool) if isinstance(distances, str) else sorted(set(distances))
    if not asked or asked[0] < 0 or samples < 1 or batch < 1:
        raise InvalidInputError("retention needs at least one distance, none below 0, and at least one sample")
    if conditions is None:
        conditions = [c for c in CONDITIONS if c != "longterm" or model.retriever is not None]
    if "longterm" in conditions and model.retriever is None:
        raise InvalidInputError("this model has no retriever, so there is no long-term memory to measure")
    if not conditions or set(conditions) - set(CONDITIONS):
        raise InvalidInputError(f"conditions are among {', '.join(CONDITIONS)}; got {', '.join(conditions) or 'none'}")
    starts = range(0, samples, batch)
    step = _Steps(len(starts) * (2 * writes_per_pool + 1 + asked[-1]), progress)
    right = {condition: dict.fromkeys(asked, 0) for condition in CONDITIONS if condition in conditions}
    for start in starts:
        indices = range(start, min(start + batch, samples))
        episodes = [Episode(seed, index, attributes_per_biography) for index in indices]
        memories = [model.new_memory(seed + index, longterm="longterm" in right, storage=storage) for index in indices]
        _measure_batch(model, episodes, memories, right, 2 * writes_per_pool, step)
    curves = {
        condition: [point(distance, count, samples) for distance, count in counts.items()]
        for condition, counts in right.items()
    }
    return {
        "n": model.slots,
        "k": model.slots_per_write,
        "curves": curves,
        "survival": survival(curves.get("pool", []), model.slots, model.slots_per_write),
        "chance": chance(),
        "model": model.fingerprint(),
        "seed": seed,
        "samples": samples,
        "attributes_per_biography": attributes_per_biography,
    }


def point(distance: int, right: int, samples: int) -> dict[str, float]:
    """One point of a curve; `stderr` is one standard error of a share."""
    rate = right / samples
    return {
        "distance": distance,
        "exact_match": rate,
        "stderr": sqrt(rate * (1 - rate) / samples),
        "samples": samples,
    }


def survival(pool: Sequence[dict[str, float]], slots: int, k: int) -> list[dict[str, float]]:
    """a0·(1 - K/N)^t at the distances of a curve that starts at distance 0; empty if it starts elsewhere.

    (1 - K/N)^t is the share of a write's slots that outlive t more writes, a0 the exact match at distance 0.
    """
    if not pool or pool[0]["distance"] != 0:
        return []
    a0 = pool[0]["exact_match"]
    return [{"distance": p["distance"], "line": a0 * (1 - k / slots) ** p["distance"]} for p in pool]


def chance() -> float:
    """The exact match of guessing: one value of the attribute's, averaged over attributes."""
    return sum(1 / len(values(attribute)) for attribute in ATTRIBUTES) / len(ATTRIBUTES)


class _Steps:
    def __init__(self, total: int, report: Callable[[int, int], None] | None) -> None:
        self._done, self._total, self._report = 0, total, report

    def __call__(self) -> None:
        self._done += 1
        if self._report is not None:
            self._report(self._done, self._total)


def _measure_batch(
    model: MemoryModel,
    episodes: Sequence[Episode],
    memories: Sequence[Memory],
    right: dict[Condition, dict[int, int]],
    warm_up: int,
    step: Callable[[], None],
) -> None:
    remembers = bool({"pool", "longterm"} & set(right))
    blank = [Memory(model.spec) for _ in episodes]
    contexts = [Context(model) for _ in episodes]

    def write(texts: list[str], *, before_the_fact: bool = False) -> None:
        if remembers:
            model.write(memories, texts)
        if "context" in right and not before_the_fact:
            for context, text in zip(contexts, texts, strict=True):
                context.append(text)
        step()

    def answers(condition: Condition, prompts: list[str]) -> list[str]:
        if condition == "longterm":
            return answer(model, memories, prompts)
        if condition == "pool":
            return answer(model, [memory.pool_only() for memory in memories], prompts)
        if condition == "none":
            return answer(model, blank, prompts)
        rows = [context.before(prompt) for context, prompt in zip(contexts, prompts, strict=True)]
        return answer_rows(model, blank, rows)

    for _ in range(warm_up):
        write([next(episode.unrelated) for episode in episodes], before_the_fact=True)
    write([episode.fact for episode in episodes])
    distances = next(iter(right.values()))
    for distance in range(max(distances) + 1):
        if distance:
            write([next(episode.unrelated) for episode in episodes])
        if distance in distances:
            questions = [episode.question(distance) for episode in episodes]
            for condition, counts in right.items():
                given = answers(condition, [question.text for question in questions])
                counts[distance] += sum(a == q.truth for a, q in zip(given, questions, strict=True))
