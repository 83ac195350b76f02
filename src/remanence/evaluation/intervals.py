"""Intervals of 95 %: Wilson's of rates, and bootstrap intervals of anything else that is computed from a sample."""

from collections.abc import Callable
from math import sqrt

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Interval = tuple[float, float]

_Z = 1.959963984540054  # of the normal distribution, 95 % lie within so many standard deviations
_RESAMPLES = 2000


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


def share_text(share: float, samples: int) -> str:
    """A share of samples and its interval, such as `0.795 (0.734 to 0.845)`."""
    low, high = wilson(share * samples, samples)
    return f"{share:.3f} ({low:.3f} to {high:.3f})"


def bootstrap(values: Floats, statistic: Callable[[Floats], Floats]) -> Interval:
    """The percentile interval of a statistic, always of the same resamples.

    Args:
        values: `[n, ...]`; pairs are given as one value, which keeps them together.
        statistic: of samples `[r, n, ...]`, one of each row: `[r]`.
    """
    drawn = np.random.default_rng(0).integers(0, len(values), size=(_RESAMPLES, len(values)))
    low, high = np.percentile(statistic(values[drawn]), [2.5, 97.5])
    return float(low), float(high)
