"""What a model has when it is asked: the same columns in every evaluation, by their names.

| column | what stands in front of the question |
|---|---|
| nothing | nothing |
| oracle | the passages that hold the answer, as text |
| bm25_1, bm25_4, … | the passages that BM25 ranks highest, as text: what a user would build instead |
| fits | as much of what was told as fits, as text: the newest |
| slots | text slots, retrieved by the memory itself, untrained |
| slots+reader, … | the same with trained parts of the model switched on |

As text, passages are parted from each other and from the question by blank lines, the best next to the question.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Self

from torch import Tensor
from transformers.generation.streamers import BaseStreamer

from remanence.errors import InvalidInputError
from remanence.evaluation.bm25 import require_bm25
from remanence.evaluation.harness import Record, about
from remanence.evaluation.metrics import Metric
from remanence.evaluation.scores import exact_match, f1, normalised
from remanence.evaluation.told import Told
from remanence.memory import Memory
from remanence.model.chat import TODAY
from remanence.model.formats.adapters import without
from remanence.model.model import MemoryModel
from remanence.model.read import Answer
from remanence.texts import first_line, prompt_of

COLUMNS = ("nothing", "oracle", "bm25_1", "bm25_4", "fits", "slots")
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
class Column:
    """
    Attributes:
        shows: "nothing", "oracle", "bm25", "fits" or "slots".
        passages: that BM25 gives.
        parts: trained parts of the model that are on.
    """

    name: str
    shows: str
    passages: int = 0
    parts: tuple[str, ...] = ()

    @classmethod
    def of(cls, name: str) -> Self:
        """
        Raises:
            InvalidInputError: there is no such column, or the package for it is missing.
        """
        if match := re.fullmatch(r"bm25_([1-9]\d*)", name):
            require_bm25()
            return cls(name, "bm25", passages=int(match[1]))
        shows, *parts = name.split("+")
        if shows not in ("nothing", "oracle", "fits", "slots") or (parts and shows != "slots"):
            raise InvalidInputError(
                f"there is no column {name!r}; there are {', '.join(COLUMNS)}, and bm25_ any number"
            )
        return cls(name, shows, parts=tuple(parts))


def columns_of(model: MemoryModel, names: str | Sequence[str]) -> list[Column]:
    """Columns by their names, of which a text is a list with commas.

    Raises:
        InvalidInputError: there is no such column, the model writes no text slots or lacks a part that is named.
    """
    listed = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    columns = [Column.of(name) for name in dict.fromkeys(filter(None, listed))]
    if not columns:
        raise InvalidInputError(f"name a column at least: {', '.join(COLUMNS)}")
    for column in columns:
        if column.shows == "slots" and model.config.writer != "text":
            raise InvalidInputError(
                f"{model.name} has a learned writer, and this measures text slots; name a model that writes these"
            )
        if missing := [part for part in column.parts if part not in model.parts]:
            raise InvalidInputError(f"{model.name} has no trained {' and no '.join(missing)}; name another column")
    return columns


def slots_of(model: MemoryModel) -> list[str]:
    """The names of the columns that ask a memory: untrained, and with one trained part more each."""
    if model.config.writer != "text":
        return []
    return ["+".join(["slots", *model.parts[:count]]) for count in range(len(model.parts) + 1)]


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


class _FirstToken(BaseStreamer):
    """Notes when the first token comes."""

    def __init__(self) -> None:
        self.times: list[float] = []  # of the prompt, then of each token

    def put(self, value: Tensor) -> None:
        self.times.append(perf_counter())

    def end(self) -> None:
        pass


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
        if column.shows == "slots":
            _ = told.memory  # written with all parts, so that none makes its keys later
            with only(self._model, column.parts):
                return self._from_memory(told, question)
        if column.shows == "bm25":
            told.index()
        begun, ranking = perf_counter(), None
        if column.shows == "bm25":
            ranking = told.ranked(question)
            shown = ranking[: column.passages][::-1]
        elif column.shows == "fits":
            shown = told.newest(_room(self._model, question, self._tokens))
        else:
            shown = list(oracle) if column.shows == "oracle" else []
        chosen = 1e3 * (perf_counter() - begun)
        prompt = "\n\n".join([*(told.passages[place] for place in shown), question])
        if prompt not in self._known:
            answer, first = _timed(self._model, self._model.new_memory(), prompt, self._tokens)
            self._known[prompt] = answer.text, first
        text, first = self._known[prompt]
        return Said(text, None, None if ranking is None else ranking[:RANKED], chosen + first)

    def _from_memory(self, told: Told, question: str) -> Said:
        model, memory = self._model, told.memory
        answer, first = _timed(model, memory, question, self._tokens)
        _, again = _timed(model, memory, question, 1)
        places = {write: place for place, write in enumerate(told.writes)}
        best = model.search(memory, question, k=RANKED)
        ranked, score = [places[write] for write, _ in best], best[0][1] if best else 0.0
        return Said(answer.text, answer.found, ranked, first, again, score)


def _timed(model: MemoryModel, memory: Memory, question: str, tokens: int) -> tuple[Answer, float]:
    """The answer, and the milliseconds to its first token."""
    streamer, begun = _FirstToken(), perf_counter()
    answer = model.ask(memory, question, max_new_tokens=tokens, streamer=streamer)
    return answer, 1e3 * (streamer.times[1] - begun)


def _room(model: MemoryModel, question: str, tokens: int) -> int:
    """Tokens that fit in front of a question and its answer."""
    if model.positions is None:
        raise InvalidInputError(f"{model.name} does not say how much it reads; leave the column fits out")
    asked: Any = [{"role": "user", "content": question}] if model.texts.chats else prompt_of(question)
    prompt = model.texts.prompt(asked, model.device, date=TODAY)
    return model.positions - tokens - len(prompt.ids) - 2


def _bytes_per_token(column: Column, told: Told) -> float:
    """What is kept between questions, of each token that was told: a memory, or the text.

    The LRU cache of encoded chunks, whose size is a setting of the model, comes on top.
    """
    if column.shows == "nothing":
        return 0.0
    if column.shows == "slots":
        return sum(told.memory.nbytes.values()) / sum(told.lengths)
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
        "bytes_per_token": round(_bytes_per_token(column, told), 2),
    }
    if said.again_ms is not None:
        record["again_ms"] = round(said.again_ms, 2)
    if said.score is not None:
        record["score"] = round(said.score, 4)
    if not answerable:
        return record if said.found is None else {**record, "not_told": not said.found}
    answer = first_line(said.text)
    record |= {
        "hit": hit(said.text, truths),
        "exact_match": bool(exact_match(answer, truths)),
        "f1": f1(answer, truths),
    }
    if said.found is not None:
        record["found"] = said.found
    if said.ranked and right:
        record |= {"first": said.ranked[0] in right, "among_4": bool(set(said.ranked[:4]) & set(right))}
    return record


def hit(said: str, truths: Sequence[str]) -> bool:
    """Whether a right answer stands in what was said, word by word, both as the SQuAD evaluation normalises them."""
    held = f" {normalised(said)} "
    return any(f" {normalised(truth)} " in held for truth in truths if normalised(truth))


@contextmanager
def only(model: MemoryModel, parts: Collection[str]) -> Iterator[None]:
    """Inside, a model of text slots has no other trained parts than these."""
    kept = model.config, model.adapters, model.token_retriever
    model.config = without(model.config, set(model.parts) - set(parts))
    if "reader" not in parts:
        model.adapters = None
    if "retriever" not in parts:
        model.token_retriever = None
    try:
        yield
    finally:
        model.config, model.adapters, model.token_retriever = kept


def used_by(model: MemoryModel, column: Column) -> dict[str, Any]:
    """What of a model the figures of a column hang on."""
    with only(model, column.parts):
        every = about(model)
    return every if column.shows == "slots" else {name: every[name] for name in ("fingerprint", "dtype")}


@contextmanager
def reading_all(model: MemoryModel) -> Iterator[None]:
    """Inside, a memory is read whole as far as positions reach, whatever its chunks score, and never refused."""
    kept = model.config
    retrieval = kept.retrieval.replace(min_score=None, refusal=None, slots=model.positions or 2**20)
    model.config = kept.replace(retrieval=retrieval)
    try:
        yield
    finally:
        model.config = kept
