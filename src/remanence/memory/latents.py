"""Latent vectors of chunks, compared with that of a question."""

import torch
from torch import Tensor

_FEWEST_ROWS = 64
_AT_ONCE = 2**22  # numbers that are compared at once


class LatentTable:
    """Latent vectors by key, in one tensor. Adding and removing one costs nothing of the others.

    Either may be cut short by an interrupt and done again.
    """

    def __init__(self) -> None:
        self._rows: Tensor | None = None  # [room, S]
        self._row: dict[int, int] = {}  # by key
        self._used = 0  # rows that were ever used
        self._free: list[int] = []

    def add(self, key: int, latent: Tensor) -> None:
        if key in self._row:
            return
        if self._rows is None:
            self._rows = latent.new_zeros(_FEWEST_ROWS, len(latent))
        if not self._free and self._used == len(self._rows):
            self._rows = torch.cat([self._rows, torch.zeros_like(self._rows)])
        if self._free:
            row = self._free.pop()
        else:
            row, self._used = self._used, self._used + 1
        self._rows[row] = latent
        self._row[key] = row  # last: a row that an interrupt cuts off stays empty, and is nobody's

    def remove(self, key: int) -> None:
        row = self._row.pop(key, None)
        if row is not None:
            self._free.append(row)

    def cosines(self, query: Tensor) -> dict[int, float]:  # [S], unit length -> by key
        """Each row's product by itself, so that a score does not depend on the rows beside it."""
        if self._rows is None:
            return {}
        size = max(1, _AT_ONCE // self._rows.shape[1])
        products = [(rows.float() * query).sum(dim=1) for rows in self._rows[: self._used].split(size)]
        found: list[float] = torch.cat(products).tolist()
        return {key: found[row] for key, row in self._row.items()}

    def copy(self) -> "LatentTable":
        copy = LatentTable()
        copy._rows = None if self._rows is None else self._rows.clone()
        copy._row, copy._used, copy._free = dict(self._row), self._used, list(self._free)
        return copy
