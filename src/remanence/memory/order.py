"""Which slot is how old: ranks to places, at a cost that hardly depends on how many slots there are."""

from math import isqrt

import torch
from torch import Tensor


class Order:
    """Places of slots in each of L layers, oldest first; those that are moved to the end leave a gap behind.

    Gaps are closed when there are about as many as the root of N times K: few enough to be searched, and enough to make
    closing them rare.
    """

    def __init__(self, places: Tensor) -> None:  # [L, N]
        self._size = places.shape[1]
        self._entries = places  # [L, room], of which the first `end` count
        self._end = self._size
        self._gaps = places.new_empty(len(places), 0)  # [L, G], ascending

    @property
    def places(self) -> Tensor:  # [L, N], oldest first
        self._close()
        return self._entries[:, : self._end]

    def find(self, ranks: Tensor) -> Tensor:  # [L, K] -> [L, K] places
        return self._entries.gather(1, self._behind_gaps(ranks.to(self._entries.device)))

    def to_the_end(self, ranks: Tensor) -> None:  # [L, K], ascending
        """Make the slots of these ranks the newest, in the order given."""
        count = ranks.shape[1]
        if (self._gaps.shape[1] + count) ** 2 > max(count, 64) * self._size:
            self._close()
        at = self._behind_gaps(ranks.to(self._entries.device))
        end = self._end + count
        if end > self._entries.shape[1]:
            grown = self._entries.new_empty(len(at), end + isqrt(max(count, 64) * self._size))
            grown[:, : self._end] = self._entries[:, : self._end]
            self._entries = grown
        self._entries[:, self._end : end] = self._entries.gather(1, at)
        self._gaps = torch.cat([self._gaps, at], dim=1).sort(dim=1).values
        self._end = end

    def _behind_gaps(self, ranks: Tensor) -> Tensor:  # [L, K] -> indices of entries
        before = self._gaps - torch.arange(self._gaps.shape[1], device=self._gaps.device)  # slots in front of each gap
        return ranks + torch.searchsorted(before, ranks.contiguous(), right=True)

    def _close(self) -> None:
        if not self._gaps.shape[1]:
            return
        entries = self._entries[:, : self._end]
        kept = torch.ones_like(entries, dtype=torch.bool).scatter_(1, self._gaps, False)
        self._entries, self._end = entries.masked_select(kept).view(len(entries), -1), self._size
        self._gaps = self._gaps[:, :0]
