"""Harm: whether a memory that holds something else changes what a model says of text that has nothing to do with it.

- Perplexity of windows of a text. The first 128 tokens of a window are what the memory is asked with, and are not
  scored; the others are, behind whatever was read for them. `read`: the share of windows for which anything was.
- Prompts of everyday use, answered greedily: `same`, the share whose answers are those of the stock model.

Columns of its own: `shipped`, the pool that a checkpoint ships, where it ships one; `related`, a memory into which the
window of text in front of the one that is read was written last, which is to help.
"""

import random
from collections.abc import Iterator, Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from statistics import fmean
from typing import Annotated

import typer

from remanence.data.episodes import unrelated
from remanence.data.prose import paragraphs
from remanence.errors import InvalidInputError
from remanence.evaluation.asking import memory_of
from remanence.evaluation.columns import Column, only
from remanence.evaluation.distances import writes_per_pool
from remanence.evaluation.harness import Evaluation, Item, Record, digest_of
from remanence.evaluation.metrics import Metric
from remanence.evaluation.passages import read_passages
from remanence.evaluation.registry import Command
from remanence.evaluation.scoring import room, score_tokens
from remanence.evaluation.told import Told
from remanence.memory import Memory
from remanence.model.model import MemoryModel
from remanence.model.read import Answer
from remanence.texts import read_text, token_ids

ASKED_WITH = 128  # tokens of a window
ANSWER_TOKENS = 32
METRICS = (Metric("perplexity", "perplexity", 2, compared=True), Metric("same", "rate"), Metric("read", "rate"))
COMMAND = Command(
    columns="nothing",
    also=("shipped", "related"),
    examples=(
        "",
        "--data wikitext2/test.txt --count 100 --resume runs/harm --json harm.json",
        "--data wikitext2/test.txt --told dev-v1.1.json",
        "--model tiny --columns nothing,pool,related --window 256",
    ),
)


def bundled_text() -> str:
    """Every other paragraph of the bundled novels, one per line; the rest is there to be told."""
    return "\n".join(paragraphs()[::2])


def prompts() -> list[str]:
    """50 that people give an assistant, about nothing that was told."""
    text = resources.files("remanence.data").joinpath("prompts.txt").read_text(encoding="utf-8")
    return text.splitlines()


def evaluation(
    model: MemoryModel,
    columns: Sequence[Column],
    *,
    data: Annotated[
        Path | None, typer.Option(help="UTF-8 text that has nothing to do with what is told. Default: bundled novels.")
    ] = None,
    told: Annotated[
        Path | None,
        typer.Option(
            help="Passages to tell: a SQuAD v1.1 or Natural Questions file. Default: paragraphs of novels, and of "
            "invented people where the writer is learned."
        ),
    ] = None,
    unrelated: Annotated[
        int | None, typer.Option(min=1, help="Passages that are told. Default: 200, or as fill a pool twice.")
    ] = None,
    count: Annotated[int, typer.Option(min=1, help="Windows of the text, and prompts, of which there are 50.")] = 100,
    window: Annotated[
        int | None, typer.Option(min=ASKED_WITH + 1, help="Tokens of each window. Default: 512, or as many as fit.")
    ] = None,
    folder: Path | None = None,
) -> Evaluation:
    """Whether a memory of something else changes what the model says: perplexity of a text, answers to 50 prompts.

    The first 128 tokens of a window are what the memory is asked with, and are not scored.
    """
    if "shipped" in (column.shows for column in columns) and model.shipped_pool is None:
        raise InvalidInputError(f"{model.name} ships no pool; leave the column shipped out")
    learned = model.config.writer == "learned"
    number = unrelated or (2 * writes_per_pool(model) if learned else 200)
    text = bundled_text() if data is None else read_text(data)
    passages = _passages(told, number, text, learned=learned)
    most = room(model, written=learned)
    if (window := window or min(512, most)) > most:
        raise InvalidInputError(f"a window of {window} tokens does not fit; at most {most} do: name --window")
    ids = token_ids(model.tokenizer, text)
    windows = [ids[start : start + window] for start in range(0, len(ids) - window + 1, window)]
    if len(windows) < 2:
        raise InvalidInputError(f"the text has {len(ids)} tokens, and two windows {2 * window}; name a longer one")
    share = min(count, len(windows) - 1)
    places = [1 + each * (len(windows) - 1) // share for each in range(share)]
    items = [Item(f"window/{place}", ("windows",), content=(windows[place - 1], windows[place])) for place in places]
    plain = tuple(column.name for column in columns if column.shows != "related")
    items += [Item(f"prompt/{each}", ("prompts",), plain, one) for each, one in enumerate(prompts()[:count])]
    return Evaluation(
        "harm",
        {
            "text": digest_of(text),
            "told": digest_of(*passages),
            "asked_with": ASKED_WITH,
            "window": window,
            "answer_tokens": ANSWER_TOKENS,
        },
        items,
        columns,
        _Measuring(model, Told(model, passages, folder=folder)),
        METRICS,
        base="nothing",
    )


def _passages(told: Path | None, number: int, text: str, *, learned: bool) -> list[str]:
    """What the memory is told: nothing that stands in the text, however its lines are broken."""
    flat = " ".join(text.split())
    held: Iterator[str] = iter(paragraphs())
    if told is not None:
        held = (passage.text for passage in read_passages(told))
    elif learned:
        held = unrelated(random.Random(0), flat)
    chosen = [passage for passage, _ in zip((one for one in held if one not in flat), range(number), strict=False)]
    if len(chosen) < number:
        raise InvalidInputError(f"there are {len(chosen)} passages to tell, not {number}")
    return chosen


class _Measuring:
    def __init__(self, model: MemoryModel, told: Told) -> None:
        self._model, self._told, self._blank = model, told, Memory(model.spec)
        self._stock = cache(lambda prompt: self._answer(self._blank, prompt).text)

    def __call__(self, column: Column, items: Sequence[Item]) -> list[Record]:
        with only(self._model, column.parts):
            return [self._asked(column, one.content) for one in items]

    def _asked(self, column: Column, content: str | tuple[list[int], list[int]]) -> Record:
        if isinstance(content, str):
            answer = self._answer(self._memory(column), content)
            return {"same": answer.text == self._stock(content), "read": answer.found}
        before, ids = content
        memory = self._memory(column)
        if column.shows == "related":
            memory = memory.fork()
            self._model.write(memory, before)
        [scored], read = score_tokens(self._model, memory, [(ids[:ASKED_WITH], ids[ASKED_WITH:])])
        return {"perplexity": -fmean(scored.likelihoods), "read": read}

    def _memory(self, column: Column) -> Memory:
        if column.shows == "nothing":
            return self._blank
        if column.shows == "shipped":
            return self._model.new_memory()
        return memory_of(column, self._told)

    def _answer(self, memory: Memory, prompt: str) -> Answer:
        return self._model.ask(memory, prompt, max_new_tokens=ANSWER_TOKENS)
