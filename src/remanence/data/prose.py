"""Ordinary prose: paragraphs of English novels, to be written between a fact and the question about it."""

import functools
from importlib import resources


@functools.cache
def paragraphs() -> list[str]:
    """Paragraphs of 30 to 90 words without dialogue, none of which names a generated person; novels in `SOURCES.md`."""
    text = resources.files("remanence.data").joinpath("prose.txt").read_text(encoding="utf-8")
    return text.splitlines()
