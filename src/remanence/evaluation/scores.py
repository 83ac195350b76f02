"""Exact match and F1 of an answer, as the SQuAD evaluation counts them."""

import re
import string
from collections import Counter
from collections.abc import Sequence

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """In lower case, without punctuation, articles and superfluous space."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, truths: Sequence[str]) -> float:
    return float(normalised(answer) in map(normalised, truths))


def f1(answer: str, truths: Sequence[str]) -> float:
    """Of the words shared with the truth that it shares most with: harmonic mean of precision and recall."""
    return max(_f1(normalised(answer).split(), normalised(truth).split()) for truth in truths)


def _f1(answer: list[str], truth: list[str]) -> float:
    shared = sum((Counter(answer) & Counter(truth)).values())
    return 2 * shared / (len(answer) + len(truth)) if shared else float(answer == truth)
