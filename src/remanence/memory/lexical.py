"""How many of a question's words a chunk of text shares, and how rare they are: BM25, on a scale from 0 to 1."""

import functools
import json
import math
import re
import unicodedata
from array import array
from bisect import bisect_left
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Self

import numpy as np
from numpy.typing import NDArray

_K1, _B = 1.5, 0.75  # BM25's usual constants: what further occurrences add, and how much length counts

# Han, kana, Thai, Lao, Burmese and Khmer have no spaces between words; Korean glues particles to them.
_PAIRED = (
    "\u3005-\u3007\u3021-\u3029\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"  # Han
    "\u3041-\u309f\u30a0-\u30ff\u31f0-\u31ff\U0001aff0-\U0001b16f"  # Hiragana, Katakana
    "\u0e00-\u0eff"  # Thai, Lao
    "\u1000-\u109f\ua9e0-\ua9ff\uaa60-\uaa7f"  # Burmese
    "\u1780-\u17ff"  # Khmer
    "\uac00-\ud7a3"  # Korean
)
_RUNS = re.compile(f"([{_PAIRED}]+)|[^{_PAIRED}]+")
_RAISED = re.compile("[™℠²³¹⁰⁴-⁹]")  # they would become letters and digits of the word that they stand at
_POSSESSIVE = re.compile("['\u2018\u2019\u02bc](?<=\\w.)s\\b")  # straight, curly and as a letter
_IN_NUMBERS = re.compile(r",(?<=\d.)(?=\d{3}(?!\d))")  # 1,000 is the number 1000


def words(text: str) -> list[str]:
    """The words of any text in order, comparable across case, accents, width and digits of any script.

    Scripts without spaces, and Korean, give overlapping pairs of characters; a character alone gives itself. Numbers
    and single emoji are words. A possessive 's is left out; any other apostrophe or hyphen ends a word.
    """
    if not text.isascii():
        text = unicodedata.normalize("NFKD", _RAISED.sub(r" \g<0>", text))
    text = _POSSESSIVE.sub("", text.casefold())
    text = _IN_NUMBERS.sub("", text).translate(_CHARACTERS)
    if text.isascii():
        return text.split()
    found: list[str] = []
    for word in unicodedata.normalize("NFKC", text).split():
        for run in _RUNS.finditer(word):
            characters = run[0]
            if run[1] and len(characters) > 1:
                found.extend(characters[i : i + 2] for i in range(len(characters) - 1))
            else:
                found.append(characters)
    return found


class _Characters(dict[int, str]):
    """What each character becomes: part of a word, a space, an emoji between spaces, or nothing."""

    def __missing__(self, point: int) -> str:
        self[point] = became = self._became(chr(point))
        return became

    @staticmethod
    def _became(character: str) -> str:
        point, category = ord(character), unicodedata.category(character)
        if category == "Nd":
            return str(unicodedata.decimal(character))
        if category == "So" and (0x2600 <= point <= 0x2BFF or point >= 0x1F000):
            return f" {character} "
        # Marks that writers may leave out: accents, Hebrew and Arabic vowels; and signs that only choose a glyph.
        if 0x300 <= point <= 0x36F or 0x591 <= point <= 0x5C7 or 0x64B <= point <= 0x65F or 0xFE00 <= point <= 0xFE0F:
            return ""
        if category in ("Cf", "Me") and character != "\u200b":  # a zero-width space parts words
            return ""
        return character if category[0] in "LMN" and character != "\u02bc" else " "


_CHARACTERS = _Characters()


@dataclass(frozen=True)
class Background:
    """Passages that are counted beside a memory's own chunks, so that a word has a price in a memory of one chunk."""

    passages: float  # how many own chunks they weigh as much as
    silent: float  # the same for token ids and words that are not ASCII, of which English passages say nothing
    average_length: float  # words
    frequencies: Mapping[Hashable, float]  # the share of the passages that have a word; of others 0

    @classmethod
    def count(cls, passages: Iterable[Iterable[Hashable]]) -> Self:
        """Of passages given as their words, each of which weighs as much as a chunk."""
        number, length, having = 0, 0, Counter[Hashable]()
        for passage in passages:
            counts = Counter(passage)
            number, length = number + 1, length + counts.total()
            having.update(counts.keys())
        shares = {word: count / number for word, count in having.items()}
        return cls(number, number, length / number if number else 0.0, shares)

    def having(self, word: Hashable) -> tuple[float, float]:
        """How many passages have the word, and of how many."""
        weight = self.passages if isinstance(word, str) and word.isascii() else self.silent
        return weight * self.frequencies.get(word, 0.0), weight


@functools.cache
def _function_words() -> frozenset[str]:
    text = resources.files("remanence.data").joinpath("function_words.json").read_text(encoding="utf-8")
    return frozenset(json.loads(text))


def asked(question: str) -> list[str]:
    """The words that a question asks for: those with a meaning of their own count twice."""
    found = words(question)
    return found + [word for word in found if word not in _function_words()]


@functools.cache
def english() -> Background:
    """Of English Wikipedia; `data/SOURCES.md` says how it was counted.

    The weights are those that best told paragraphs which hold an answer from others, in memories of 1 to 1,500: with
    less, a small memory takes common words for rare ones; with more, a large one goes by Wikipedia instead of itself.
    """
    text = resources.files("remanence.data").joinpath("word_frequencies.json").read_text(encoding="utf-8")
    counted = json.loads(text)
    return Background(1000, 30, counted["average_length"], counted["frequencies"])


class Postings:
    """Which chunks have which words, and how often. Words are strings or token ids; a chunk is named by a number.

    Adding and removing cost as much as the chunk has words, and either happens whole or not at all. What is left after
    a chunk is removed scores to the last bit as if it had never been there.
    """

    def __init__(self, background: Background | None = None) -> None:
        self._background = english() if background is None else background
        self._chunks: dict[int, tuple[int, tuple[Hashable, ...]]] = {}  # by key: row and distinct words
        self._places: dict[Hashable, array[int]] = {}  # by word: row << 32 | occurrences, ascending
        self._shared: set[Hashable] = set()  # words whose places a copy has too: copied before they change
        self._keys = array("q")  # by row
        self._lengths = array("q")  # by row, in words; 0 where no chunk is
        self._free: set[int] = set()  # rows

    def __len__(self) -> int:
        return len(self._chunks)

    def __contains__(self, key: object) -> bool:
        return key in self._chunks

    def add(self, key: int, words: Iterable[Hashable]) -> None:
        """Raises: ValueError: the key is taken."""
        if key in self._chunks:
            raise ValueError(f"chunk {key} is already there; remove it first")
        counts = Counter(words)
        row = self._new_row()
        try:
            for word, count in counts.items():
                places, place = self._own(word), row << 32 | count
                places.insert(bisect_left(places, place), place)
            self._keys[row], self._lengths[row] = key, counts.total()
            self._chunks[key] = row, tuple(counts)
        except BaseException:
            self._chunks.pop(key, None)
            self._clear(row, counts)
            raise

    def remove(self, key: int) -> None:
        """Raises: KeyError: no such chunk."""
        if key not in self._chunks:
            raise KeyError(f"chunk {key} is not there")
        row, held = self._chunks[key]
        try:
            del self._chunks[key]
            self._clear(row, held)
        except BaseException:  # an interrupt, say: remove the rest, or half a chunk would stay in the counts
            self._chunks.pop(key, None)
            self._clear(row, held)
            raise

    def copy(self) -> Self:
        """One that changes by itself from here on. What neither changes is held once."""
        other = type(self)(self._background)
        self._shared, other._shared = set(self._places), set(self._places)
        other._chunks, other._places = self._chunks.copy(), self._places.copy()
        other._keys, other._lengths, other._free = self._keys[:], self._lengths[:], self._free.copy()
        return other

    def scores(self, query: Iterable[Hashable]) -> dict[int, float]:
        """Every chunk that shares a word with the query: its BM25 over the most that any chunk could have, in [0, 1].

        Keys ascend. Words of the query that no chunk has count in that most, and a word that is asked twice counts
        twice in both.
        """
        asked = Counter(query)
        most = 0.0
        for word, times in asked.items():
            most += times * self._rarity(word)
        return self._keyed(self._sums(asked) / most) if asked else {}

    def raw_scores(self, query: Iterable[Hashable]) -> dict[int, float]:
        """Every chunk that shares a word with the query: its BM25 as Lucene has it, unbounded. Keys ascend."""
        return self._keyed(self._sums(Counter(query)))

    def _rarity(self, word: Hashable) -> float:
        having, passages = self._background.having(word)
        having, passages = having + len(self._places.get(word, ())), passages + len(self._chunks)
        return math.log(1 + (passages - having + 0.5) / (having + 0.5))

    def _sums(self, asked: Counter[Hashable]) -> NDArray[np.float64]:  # [rows]
        lengths = np.array(self._lengths, dtype=np.float64)
        sums = np.zeros(len(lengths))
        background = self._background
        words_in_all = background.passages * background.average_length + float(lengths.sum())
        if not words_in_all:
            return sums
        average = words_in_all / (background.passages + len(self._chunks))
        damping = _K1 * (1 - _B + _B * lengths / average)
        for word, times in asked.items():
            if word not in self._places:
                continue
            places = np.array(self._places[word])  # a copy: an array that is looked into cannot grow
            rows, counts = places >> 32, (places & 0xFFFFFFFF).astype(np.float64)
            sums[rows] += times * self._rarity(word) * (counts / (counts + damping[rows]))
        return sums

    def _keyed(self, sums: NDArray[np.float64]) -> dict[int, float]:
        rows = np.flatnonzero(sums)
        keys = np.array(self._keys)[rows]
        order = np.argsort(keys)
        return dict(zip(keys[order].tolist(), sums[rows[order]].tolist(), strict=True))

    def _new_row(self) -> int:
        if self._free:
            return self._free.pop()
        self._lengths.append(0)
        self._keys.append(0)
        return len(self._keys) - 1

    def _own(self, word: Hashable) -> "array[int]":
        """The places of a word, to be changed."""
        if word in self._shared:
            self._places[word] = self._places[word][:]
            self._shared.remove(word)
        return self._places.setdefault(word, array("Q"))

    def _clear(self, row: int, held: Iterable[Hashable]) -> None:
        """Take a row out of the postings of its words; of those that it is not in, nothing."""
        for word in held:
            places = self._own(word)
            at = bisect_left(places, row << 32)
            if at < len(places) and places[at] >> 32 == row:
                places.pop(at)
            if not places:
                del self._places[word]
        self._lengths[row] = 0
        self._free.add(row)
