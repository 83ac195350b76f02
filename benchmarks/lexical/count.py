"""In how many passages of English Wikipedia a word stands: makes `src/remanence/data/word_frequencies.json`."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from remanence.memory.lexical import Background, words
from tables import Figures

OUTPUT = Path(__file__).parents[2] / "src/remanence/data/word_frequencies.json"
LENGTH, LEAST, KEPT = 150, 75, 3000  # words of a passage: at most and, for the last of an article, at least


@dataclass(frozen=True)
class Settings:
    wikipedia: Path = field(metadata={"help": "a folder of WikiExtractor files"})
    without: list[Path] = field(default_factory=list, metadata={"help": "question files, to leave their articles out"})
    output: Path = OUTPUT


def measure(on: Settings) -> Figures:
    files = [json.loads(file.read_text("utf-8")) for file in on.without]
    titles = {article["title"].replace("_", " ").lower() for file in files for article in file["data"]}
    counted = Background.count(p for text in articles(on.wikipedia, titles) for p in passages(text))
    commonest = sorted(counted.frequencies.items(), key=lambda entry: (-entry[1], str(entry[0])))[:KEPT]
    content = {
        "passages": counted.passages,
        "average_length": round(counted.average_length, 2),
        "frequencies": {str(word): float(f"{share:.3g}") for word, share in commonest},
    }
    on.output.write_text(json.dumps(content, separators=(",", ":"), ensure_ascii=False) + "\n", encoding="utf-8")
    cells = {
        "passages": counted.passages,
        "words of a passage": f"{counted.average_length:.2f}",
        "kept": len(commonest),
    }
    return {"rows": [{"name": "words", "cells": cells}]}


def articles(folder: Path, without: set[str]) -> Iterator[str]:
    """The texts of WikiExtractor's `<doc>` files, but of those with these titles, in lower case."""
    for file in sorted(folder.rglob("wiki_*")):
        for found in re.finditer(r'<doc [^>]*title="(.*?)">\n(.*?)\n?</doc>', file.read_text("utf-8"), flags=re.DOTALL):
            if found[1].lower() not in without:
                yield found[2]


def passages(text: str) -> Iterator[list[str]]:
    """Whole sentences, as many as have at most 150 words together; what is left at the end only if it is half of it."""
    passage: list[str] = []
    for sentence in re.split(r"(?<=[.!?])\s+", text):
        more = words(sentence)
        if passage and len(passage) + len(more) > LENGTH:
            yield passage
            passage = []
        passage = passage + more
    if len(passage) >= LEAST:
        yield passage
