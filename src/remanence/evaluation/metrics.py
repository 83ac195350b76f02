"""Figures of an evaluation: what is made of the records, with the interval that holds 95 %.

Intervals are Wilson's of rates, and bootstrap intervals of anything else that is computed from a sample.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]

_Z = 1.959963984540054  # of the normal distribution, 95 % lie within so many standard deviations
_RESAMPLES = 2000
Kind = Literal["rate", "mean", "median", "perplexity", "harmonic"]


@dataclass(frozen=True)
class Metric:
    """What a record says under one name, and what is made of it.

    Attributes:
        name: in the records; those that lack it do not count.
        kind: "rate" of true and false, or of shares; "mean"; "median"; "perplexity", of which a record has the mean
            loss; "harmonic", the harmonic mean of the means of what a record lists under the name, None where it lacks
            a part.
        digits: after the point, where it is shown.
        compared: shown beside its difference to the column that all are compared with.
        shown: in tables; the figures have it all the same.
    """

    name: str
    kind: Kind
    digits: int = 3
    compared: bool = False
    shown: bool = True

    def figure(self, values: Sequence[Any]) -> dict[str, float]:
        """`value`, `low`, `high` (95 %) and `n`, of what some records say."""
        held, of = np.asarray(values, dtype=np.float64), _STATISTICS[self.kind]
        if self.kind == "rate":
            low, high = wilson(float(held.sum()), len(held))
        else:
            low, high = bootstrap(held, of)
        return {"value": float(of(held[None])[0]), "low": low, "high": high, "n": len(held)}

    def difference(self, values: Sequence[Any], base: Sequence[Any]) -> dict[str, float]:
        """Of the same items under another column, drawn together: the difference, of perplexities the ratio.

        Of medians it is the median of the differences.
        """
        ours, theirs = np.asarray(values, dtype=np.float64), np.asarray(base, dtype=np.float64)
        of = _STATISTICS[self.kind]
        if self.kind == "harmonic":  # is no mean of what the items got, so both sides are drawn
            pairs = np.stack([ours, theirs], axis=1)  # [n, 2, parts]
            of = _apart
        else:
            pairs = ours - theirs
        low, high = bootstrap(pairs, of)
        return {"value": float(of(pairs[None])[0]), "low": low, "high": high, "n": len(pairs)}


def _harmonic(samples: Floats) -> Floats:  # [r, n, parts] -> [r]
    there = ~np.isnan(samples)
    with np.errstate(divide="ignore", invalid="ignore"):
        means = np.where(there, samples, 0).sum(axis=1) / there.sum(axis=1)  # a part that no item has: nan
        return np.asarray((~np.isnan(means)).sum(axis=1) / np.nansum(1 / means, axis=1))


def _apart(pairs: Floats) -> Floats:  # [r, n, 2, parts] -> [r]
    return np.asarray(_harmonic(pairs[:, :, 0]) - _harmonic(pairs[:, :, 1]))


_STATISTICS: dict[Kind, Callable[[Floats], Floats]] = {  # of samples [r, n], one of each row: [r]
    "rate": lambda samples: np.asarray(samples.mean(axis=1)),
    "mean": lambda samples: np.asarray(samples.mean(axis=1)),
    "median": lambda samples: np.asarray(np.median(samples, axis=1)),
    "perplexity": lambda samples: np.asarray(np.exp(samples.mean(axis=1))),
    "harmonic": _harmonic,
}


def wilson(hits: float, samples: int) -> Interval:
    """The interval of a rate; unlike that of a normal distribution it stays within [0, 1] and is not empty at its ends.

    Raises:
        ValueError: no samples.
    """
    if samples < 1:
        raise ValueError("a rate needs at least one sample")
    share, z2 = hits / samples, _Z * _Z
    centre = (share + z2 / (2 * samples)) / (1 + z2 / samples)
    half = _Z / (1 + z2 / samples) * sqrt(share * (1 - share) / samples + z2 / (4 * samples * samples))
    return max(0.0, centre - half), min(1.0, centre + half)


def bootstrap(values: Floats, statistic: Callable[[Floats], Floats]) -> Interval:
    """The percentile interval of a statistic, always of the same resamples.

    Args:
        values: `[n, ...]`; pairs are given as one value, which keeps them together.
        statistic: of samples `[r, n, ...]`, one of each row: `[r]`.
    """
    drawn = np.random.default_rng(0).integers(0, len(values), size=(_RESAMPLES, len(values)))
    low, high = np.percentile(statistic(values[drawn]), [2.5, 97.5])
    return float(low), float(high)
