"""What a model has when it is asked: the same columns in every evaluation, by their names.

| column | what stands in front of the question |
|---|---|
| nothing | nothing |
| oracle | the passages that hold the answer, as text |
| bm25_1, bm25_4, … | the passages that BM25 ranks highest, as text: what a user would build instead |
| fits | as much of what was told as fits, as text: the newest |
| slots | text slots, retrieved by the memory itself, untrained |
| slots+reader, … | the same with trained parts of the model switched on |
| pool | the pool of a learned memory |
| longterm | its pool, and what is retrieved from long-term memory |

Some evaluations have columns of their own, which they explain. As text, passages are parted from each other and from
the question by blank lines, the best next to the question.
"""

import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from remanence.errors import InvalidInputError
from remanence.evaluation.told import require_bm25
from remanence.model.formats.adapters import without
from remanence.model.lora import adapter_parameters
from remanence.model.model import MemoryModel
from remanence.model.validation import Fingerprint

TEXTS = ("nothing", "oracle", "bm25", "fits")  # what a column shows without a memory
LEARNED = ("pool", "longterm")
MEMORIES = ("slots", *LEARNED)


@dataclass(frozen=True)
class Column:
    """
    Attributes:
        shows: one of `TEXTS` or `MEMORIES`, or what an evaluation has of its own.
        passages: that BM25 gives.
        parts: trained parts of the model that are on.
    """

    name: str
    shows: str
    passages: int = 0
    parts: tuple[str, ...] = ()

    @property
    def remembers(self) -> bool:
        return self.shows in MEMORIES


def column_of(name: str) -> Column:
    """What a name means, wherever there is such a column."""
    if match := re.fullmatch(r"bm25_([1-9]\d*)", name):
        return Column(name, "bm25", passages=int(match[1]))
    shows, *parts = name.split("+")
    return Column(name, shows, parts=tuple(parts))


def columns_of(model: MemoryModel, names: str | Sequence[str], shows: Sequence[str]) -> list[Column]:
    """Columns by their names, of which a text is a list with commas.

    Args:
        shows: what an evaluation's columns may show besides memories.

    Raises:
        InvalidInputError: there is no such column, the model has no such memory or lacks a part that is named, or a
            package is missing.
    """
    listed = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
    columns = [column_of(name) for name in dict.fromkeys(filter(None, listed))]
    held = dict.fromkeys(column_of(name).shows for name in memory_columns(model))
    there = ", ".join("bm25_1 (or any number)" if kind == "bm25" else kind for kind in (*shows, *held))
    if not columns:
        raise InvalidInputError(f"name a column at least: {there}")
    for one in columns:
        wrong = (one.parts and one.shows != "slots") or (one.shows == "bm25" and not one.passages)
        if wrong or one.shows not in (*shows, *MEMORIES):
            raise InvalidInputError(f"there is no column {one.name!r} here; there are {there}")
        if one.shows == "bm25":
            require_bm25()
        if one.shows == "slots" and model.config.writer != "text":
            raise InvalidInputError(f"{model.name} has a learned writer, and slots are text slots; name pool instead")
        if one.shows in LEARNED and model.config.writer != "learned":
            raise InvalidInputError(
                f"{model.name} writes text slots, which are in no pool; name slots, or a model with a learned writer, "
                "such as --model tiny"
            )
        if one.shows == "longterm" and model.retriever is None:
            raise InvalidInputError(f"{model.name} has no retriever, so there is no long-term memory to measure")
        if missing := [part for part in one.parts if part not in model.parts]:
            raise InvalidInputError(f"{model.name} has no trained {' and no '.join(missing)}; name another column")
    return columns


def memory_columns(model: MemoryModel) -> list[str]:
    """The names of the columns that ask a memory; of text slots, with one trained part more each."""
    if model.config.writer == "learned":
        return ["pool"] if model.retriever is None else ["pool", "longterm"]
    return ["+".join(["slots", *model.parts[:count]]) for count in range(len(model.parts) + 1)]


@contextmanager
def only(model: MemoryModel, parts: Collection[str]) -> Iterator[None]:
    """Inside, a model of text slots has no other trained parts than these."""
    kept = model.config, model.adapters, model.token_retriever
    if model.config.writer == "text":
        model.config = without(model.config, set(model.parts) - set(parts))
        if "reader" not in parts:
            model.adapters = None
        if "retriever" not in parts:
            model.token_retriever = None
    try:
        yield
    finally:
        model.config, model.adapters, model.token_retriever = kept


@contextmanager
def reading_all(model: MemoryModel) -> Iterator[None]:
    """Inside, a memory is read whole as far as positions reach, whatever its chunks score, and never refused."""
    kept = model.config
    if kept.writer == "text":
        retrieval = kept.retrieval.replace(min_score=None, refusal=None, slots=model.positions or 2**20)
        model.config = kept.replace(retrieval=retrieval)
    try:
        yield
    finally:
        model.config = kept


def about(model: MemoryModel) -> dict[str, Any]:
    """What of a model its figures hang on: weights, also of trained parts, their type, how it reads and writes."""
    parts = {}
    if "reader" in model.parts:
        parts["reader"] = Fingerprint().of(model.hf, "reader", adapter_parameters)
    if model.token_retriever is not None:
        parts["retriever"] = model.token_retriever.name
    return {
        "fingerprint": model.fingerprint(),
        "dtype": str(model.backbone.dtype).removeprefix("torch."),
        "config": model.config.to_json(),
        "parts": parts,
    }


def used_by(model: MemoryModel, column: Column) -> dict[str, Any]:
    """What of a model the figures of a column hang on: where it is shown text, its weights."""
    with only(model, column.parts):
        every = about(model)
    plain = column.shows in TEXTS and model.config.writer == "text"
    return {name: every[name] for name in ("fingerprint", "dtype")} if plain else every
