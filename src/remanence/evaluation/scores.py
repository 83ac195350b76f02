"""Exact match and F1 of an answer, as the SQuAD evaluation counts them."""

import re
import string
from collections import Counter
from collections.abc import Sequence

from remanence.texts import AllOf

_PUNCTUATION = str.maketrans("", "", string.punctuation)


def normalised(answer: str) -> str:
    """In lower case, without punctuation, articles and superfluous space."""
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", answer.lower().translate(_PUNCTUATION)).split())


def exact_match(answer: str, truths: Sequence[str]) -> float:
    """1 where the answer is one of the truths; of truths that are all asked for, the share that it holds (RULER)."""
    said = normalised(answer)
    if isinstance(truths, AllOf):
        return sum(normalised(truth) in said for truth in truths) / len(truths)
    return float(said in map(normalised, truths))


def f1(answer: str, truths: Sequence[str]) -> float:
    """Of the words shared with the truth that it shares most with: harmonic mean of precision and recall.

    Truths that are all asked for count as one.
    """
    if isinstance(truths, AllOf):
        truths = [" ".join(truths)]
    return max(_f1(normalised(answer).split(), normalised(truth).split()) for truth in truths)


def _f1(answer: list[str], truth: list[str]) -> float:
    shared = sum((Counter(answer) & Counter(truth)).values())
    return 2 * shared / (len(answer) + len(truth)) if shared else float(answer == truth)
