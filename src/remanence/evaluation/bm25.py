"""The usual way to give a model more text than its context holds: find passages by their words, and show those."""

import importlib.util
import re

from remanence.errors import InvalidInputError
from remanence.evaluation.answering import ANSWER_TOKENS, Context
from remanence.model.model import MemoryModel

PASSAGES = 4  # in front of a question; as many chunks as the M+ paper gives its BM25 baseline


def require_bm25() -> None:
    """Raise `InvalidInputError` if the package that ranks passages is not installed."""
    if importlib.util.find_spec("bm25s") is None:
        raise InvalidInputError("the condition bm25 needs the package bm25s: pip install 'remanence[eval]'")


class BestPassages(Context):
    """Of a growing text the paragraphs that BM25 ranks highest for a prompt, the best next to the prompt.

    A paragraph that does not fit into the model's context beside better ones is left out.
    """

    def __init__(self, model: MemoryModel, tokens: int = ANSWER_TOKENS) -> None:
        super().__init__(model, tokens)
        self._paragraphs: list[str] = []

    def append(self, paragraph: str) -> None:
        self._paragraphs.append(paragraph)

    def before(self, prompt: str) -> list[int]:
        row = self._encode(prompt)[-self._room :]
        for paragraph in self._ranked(prompt)[:PASSAGES]:
            ids = self._encode(paragraph) + self._separator
            if len(ids) + len(row) <= self._room:
                row = ids + row
        return row

    def _ranked(self, prompt: str) -> list[str]:
        import bm25s

        if not self._paragraphs:
            return []
        ranking = bm25s.BM25()
        ranking.index([_words(paragraph) for paragraph in self._paragraphs], show_progress=False)
        scores = ranking.get_scores(_words(prompt))
        return [self._paragraphs[index] for index in scores.argsort(kind="stable")[::-1]]


def _words(text: str) -> list[str]:
    return re.findall(r"\w+", text.lower())
