"""Harm: whether a memory that holds something else changes what a model says of text that has nothing to do with it.

- Perplexity of windows of a text. The first 128 tokens of a window are what the memory is asked with, and are not
  scored; the others are, behind whatever was read for them. `read`: the share of windows for which anything was.
- Prompts of everyday use, answered greedily: `same`, the share whose answers are those of the stock model.
"""

import hashlib
from collections.abc import Sequence
from functools import cache
from importlib import resources
from pathlib import Path
from statistics import fmean

from remanence.data.prose import paragraphs
from remanence.errors import InvalidInputError
from remanence.evaluation.columns import Column, only
from remanence.evaluation.harness import Evaluation, Item, Measure, Record
from remanence.evaluation.metrics import Metric
from remanence.evaluation.scoring import score_tokens
from remanence.evaluation.told import Told
from remanence.memory import Memory
from remanence.model.model import MemoryModel
from remanence.model.read import Answer

ASKED_WITH = 128  # tokens of a window
WINDOW = 512  # tokens
ANSWER_TOKENS = 32
METRICS = (Metric("perplexity", "perplexity", 2, compared=True), Metric("same", "rate"), Metric("read", "rate"))


def prompts() -> list[str]:
    """50 that people give an assistant, about nothing that was told."""
    text = resources.files("remanence.data").joinpath("prompts.txt").read_text(encoding="utf-8")
    return text.splitlines()


def evaluation(
    model: MemoryModel,
    text: str,
    columns: Sequence[Column],
    *,
    told: Sequence[str] | None = None,
    unrelated: int = 200,
    count: int = 100,
    window: int = WINDOW,
    folder: Path | None = None,
) -> Evaluation:
    """What is measured with a text.

    Args:
        columns: text slots of which parts; `nothing`, the stock model, is what they are compared with.
        told: passages to tell; None: paragraphs of the bundled novels. The first `unrelated` are taken.
        count: windows, spread evenly over the text, and prompts, at most.
        window: tokens of each.
        folder: in which what is told once is kept, so that the next run need not write it again.

    Raises:
        InvalidInputError: a column shows text; too few passages; the text is shorter than a window.
    """
    if shown := [column.name for column in columns if column.shows not in ("nothing", "slots")]:
        raise InvalidInputError(f"harm is that of a memory, so there is no column {shown[0]}; name nothing and slots")
    passages = list(paragraphs() if told is None else told)[:unrelated]
    if len(passages) < unrelated:
        raise InvalidInputError(f"there are {len(passages)} passages to tell, not {unrelated}")
    if window <= ASKED_WITH or (model.positions is not None and window > model.positions):
        raise InvalidInputError(f"a window has more than {ASKED_WITH} tokens, and as many as the model reads at most")
    ids: list[int] = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    windows = [ids[start : start + window] for start in range(0, len(ids) - window + 1, window)]
    if not windows:
        raise InvalidInputError(f"the text has {len(ids)} tokens, and a window {window}; name a longer one")
    share = min(count, len(windows))
    places = [number * len(windows) // share for number in range(share)]
    items = [Item(f"window/{place}", ("windows",), content=windows[place]) for place in places]
    items += [Item(f"prompt/{number}", ("prompts",), content=one) for number, one in enumerate(prompts()[:count])]
    measuring = _Measuring(model, Told(model, passages, folder=folder))

    return Evaluation(
        "harm",
        {
            "text": hashlib.sha256(text.encode()).hexdigest()[:16],
            "told": hashlib.sha256("\n".join(passages).encode()).hexdigest()[:16],
            "unrelated": unrelated,
            "asked_with": ASKED_WITH,
            "window": window,
            "answer_tokens": ANSWER_TOKENS,
        },
        items,
        {column.name: measuring.column(column) for column in columns},
        METRICS,
        base="nothing",
    )


class _Measuring:
    def __init__(self, model: MemoryModel, told: Told) -> None:
        self._model, self._told, self._blank = model, told, model.new_memory()
        self._stock = cache(lambda prompt: self._answer(self._blank, prompt).text)

    def column(self, column: Column) -> Measure:
        def measure(items: Sequence[Item]) -> list[Record]:
            memory = self._told.memory if column.shows == "slots" else self._blank
            with only(self._model, column.parts):
                return [self._asked(memory, one.content) for one in items]

        return measure

    def _asked(self, memory: Memory, content: str | list[int]) -> Record:
        return self._prompt(memory, content) if isinstance(content, str) else self._window(memory, content)

    def _window(self, memory: Memory, ids: list[int]) -> Record:
        asked, rest = ids[:ASKED_WITH], ids[ASKED_WITH:]
        [scored], read = score_tokens(self._model, memory, [(asked, rest)])
        return {"perplexity": -fmean(scored.likelihoods), "read": read}

    def _prompt(self, memory: Memory, prompt: str) -> Record:
        answer = self._answer(memory, prompt)
        return {"same": answer.text == self._stock(prompt), "read": answer.found}

    def _answer(self, memory: Memory, prompt: str) -> Answer:
        return self._model.ask(memory, prompt, max_new_tokens=ANSWER_TOKENS)
