"""Asks a model under the columns of an evaluation, and says what of an answer counts."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from time import perf_counter
from types import SimpleNamespace
from typing import Any

from remanence.evaluation.columns import Column, only
from remanence.evaluation.harness import Record
from remanence.evaluation.metrics import Metric
from remanence.evaluation.scores import exact_match, f1, normalised
from remanence.evaluation.told import Told
from remanence.memory import Memory
from remanence.model.chat import TODAY
from remanence.model.model import MemoryModel
from remanence.model.read import Answer
from remanence.texts import AllOf, first_line, prompt_of

ANSWER_TOKENS = 12
RANKED = 10  # passages of a ranking that are kept
ANSWERED = (
    Metric("hit", "rate", compared=True),
    Metric("exact_match", "rate"),
    Metric("f1", "mean"),
    Metric("first", "rate"),
    Metric("among_4", "rate"),
    Metric("found", "rate"),
    Metric("not_told", "rate"),
    Metric("first_token_ms", "median", digits=0),
    Metric("again_ms", "median", digits=0),
    Metric("bytes_per_token", "mean", digits=0),
)


@dataclass(frozen=True)
class Said:
    """
    Attributes:
        text: the answer; found: whether anything was read for it; None where a column cannot say.
        ranked: passages, best first, as far as they are known; None where nothing ranks them.
        score: of the best, where the memory scores them.
        first_token_ms: from the question to the first token, retrieval counted; again_ms: asked once more, when the
            chunks that it reads are encoded. None where that makes no difference.
    """

    text: str
    found: bool | None
    ranked: list[int] | None
    first_token_ms: float
    again_ms: float | None = None
    score: float | None = None


class Asking:
    """Asks a model under columns. A prompt that was asked before is not asked again.

    Args:
        tokens: most of an answer.
    """

    def __init__(self, model: MemoryModel, tokens: int = ANSWER_TOKENS) -> None:
        self._model, self._tokens = model, tokens
        self._known: dict[str, tuple[str, float]] = {}

    def __call__(self, column: Column, told: Told, question: str, oracle: Sequence[int] = ()) -> Said:
        """`oracle`: the passages that hold the answer."""
        if column.remembers:
            _ = told.memory  # written with all parts, so that none makes its keys later
            with only(self._model, column.parts):
                return self._from_memory(column, told, question)
        if column.shows == "bm25":
            told.index()
        _ = told.lengths
        begun = perf_counter()
        shown, ranking = shown_of(column, told, question, _room(self._model, question, self._tokens), oracle)
        chosen = 1e3 * (perf_counter() - begun)
        prompt = "\n\n".join([*shown, question])
        if prompt not in self._known:
            answer, first = _timed(self._model, self._model.new_memory(), prompt, self._tokens)
            self._known[prompt] = answer.text, first
        text, first = self._known[prompt]
        return Said(text, None, None if ranking is None else ranking[:RANKED], chosen + first)

    def _from_memory(self, column: Column, told: Told, question: str) -> Said:
        model, memory = self._model, memory_of(column, told)
        answer, first = _timed(model, memory, question, self._tokens)
        _, again = _timed(model, memory, question, 1)
        if column.shows != "slots":
            return Said(answer.text, None, None, first, again)
        places = {write: place for place, write in enumerate(told.writes)}
        best = model.search(memory, question, k=RANKED)
        ranked, score = [places[write] for write, _ in best if write in places], best[0][1] if best else 0.0
        return Said(answer.text, answer.found, ranked, first, again, score)


def shown_of(
    column: Column, told: Told, question: str, room: float, oracle: Sequence[int] = ()
) -> tuple[list[str], list[int] | None]:
    """The passages that a column shows as text, of at most so many tokens; and their ranking, where that chose them."""
    places, ranking = list[int](), None
    if column.shows == "bm25":
        ranking = told.ranked(question)
        places = told.fitting(ranking[: column.passages], room)[::-1]
    elif column.shows == "fits":
        places = told.newest(room)
    elif column.shows == "oracle":
        places = told.fitting(oracle, room)
    return [told.passages[place] for place in places], ranking


def memory_of(column: Column, told: Told) -> Memory:
    """What is asked under a column that remembers."""
    return told.memory.pool_only() if column.shows == "pool" else told.memory


def _timed(model: MemoryModel, memory: Memory, question: str, tokens: int) -> tuple[Answer, float]:
    """The answer, and the milliseconds to its first token."""
    times: list[float] = []  # of the prompt, then of each token
    streamer = SimpleNamespace(times=times, put=lambda _: times.append(perf_counter()), end=bool)
    begun = perf_counter()
    answer = model.ask(memory, question, max_new_tokens=tokens, streamer=streamer)
    return answer, 1e3 * (times[1] - begun)


def _room(model: MemoryModel, question: str, tokens: int) -> float:
    """Tokens that fit in front of a question and its answer; infinite, where the model does not say."""
    if model.positions is None:
        return inf
    asked: Any = [{"role": "user", "content": question}] if model.texts.chats else prompt_of(question)
    prompt = model.texts.prompt(asked, model.device, date=TODAY)
    return model.positions - tokens - len(prompt.ids) - 2


def _bytes_per_token(column: Column, told: Told) -> float:
    """What is kept between questions, of each token that was told: a memory, or the text.

    The LRU cache of encoded chunks, whose size is a setting of the model, comes on top.
    """
    if column.shows == "nothing":
        return 0.0
    if column.remembers:
        return sum(memory_of(column, told).nbytes.values()) / sum(told.lengths)
    return sum(len(passage.encode()) for passage in told.passages) / sum(told.lengths)


def record_of(
    said: Said, column: Column, told: Told, truths: Sequence[str], right: Sequence[int], *, answerable: bool = True
) -> Record:
    """What `ANSWERED` makes figures of, and the answer itself.

    Args:
        truths: answers that are right.
        right: passages that hold them; () for a question that nothing told answers.
        answerable: whether it was told; if not, not to be found is right.
    """
    record: Record = {
        "said": said.text,
        "first_token_ms": round(said.first_token_ms, 2),
        "again_ms": None if said.again_ms is None else round(said.again_ms, 2),
        "bytes_per_token": round(_bytes_per_token(column, told), 2),
        "score": None if said.score is None else round(said.score, 4),
    }
    if answerable:
        answer = first_line(said.text)
        record |= {"hit": hit(said.text, truths), "exact_match": exact_match(answer, truths), "f1": f1(answer, truths)}
        record["found"] = said.found
        if said.ranked and right:
            record |= {"first": said.ranked[0] in right, "among_4": bool(set(said.ranked[:4]) & set(right))}
    elif said.found is not None:
        record["not_told"] = not said.found
    return {name: value for name, value in record.items() if value is not None}


def hit(said: str, truths: Sequence[str]) -> bool:
    """Whether a right answer stands in what was said, word by word, both as the SQuAD evaluation normalises them.

    Of truths that are all asked for, whether all stand there.
    """
    held = f" {normalised(said)} "
    found = [f" {normalised(truth)} " in held for truth in truths if normalised(truth)]
    return bool(found) and (all if isinstance(truths, AllOf) else any)(found)
