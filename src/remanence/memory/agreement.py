"""Layers agree on which writes a prompt asks about. Not in M+, where each layer retrieves for itself.

What one write made stands in every layer, so what a layer found is evidence for those above it: the softmax of its
scores over all its slots, summed by write, says how likely each write is. The product of such shares is the prior of
the next layer, and its own scores are the likelihood. A slot whose namesakes score like it in one layer only is found.
"""

from math import log

import torch
from torch import Tensor, nn

_FLOOR = 1e-4  # a write that one layer thinks nothing of can still be found by the others


class Agreement:
    """What the layers passed so far hold of each write, for one prompt or several (`...`) that see the same writes.

    Slots are numbered as they are made, K to a write.

    Args:
        temperature: T of softmax(score / T): that at which the retriever was trained to tell slots apart.
        slots_per_write: K.
    """

    def __init__(self, temperature: float, slots_per_write: int) -> None:
        self._temperature, self._k = temperature, slots_per_write
        self._first = 0
        self._prior: Tensor | None = None  # [..., W], of writes first, first + 1, ...: sum of log(share / floor)

    def weighed(self, scores: Tensor, serial: Tensor) -> Tensor:  # [..., M], [M] -> [..., M]
        """A layer's scores, weighed by what is held so far; then holds what they say by themselves.

        A score of -1 is that of a slot that is gone. Gradients go to the scores given only.
        """
        writes = serial // self._k
        first, last = (int(edge) for edge in writes.aminmax())
        likely = (scores.detach() / self._temperature).softmax(-1)
        shares = likely.new_zeros(*likely.shape[:-1], last - first + 1).index_add_(-1, writes - first, likely)
        said = shares.clamp(min=_FLOOR).log() - log(_FLOOR)
        if self._prior is None:
            self._first, self._prior = first, torch.zeros_like(said)
        self._cover(first, last)
        own = slice(first - self._first, last + 1 - self._first)
        weighed = scores + self._temperature * self._prior[..., own].index_select(-1, writes - first)
        self._prior[..., own] += said
        return weighed.masked_fill(scores < 0, -torch.inf)

    def _cover(self, first: int, last: int) -> None:
        """Make room for writes of which no layer had a slot."""
        assert self._prior is not None
        before = max(0, self._first - first)
        behind = max(0, last + 1 - self._first - self._prior.shape[-1])
        self._first -= before
        self._prior = nn.functional.pad(self._prior, (before, behind))
