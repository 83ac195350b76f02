"""N slots in each of L layers, replaced in place: a write costs O(K), whatever N is."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from remanence.errors import CorruptMemoryError, InvalidInputError
from remanence.memory.undo import Undo


@dataclass(frozen=True)
class NewSlots:
    """Q slots per layer made from one chunk, in every form the memory keeps.

    Attributes:
        hidden: `[L, Q, d]`.
        keys, values: `[L, Q, H, D]`, keys unrotated.
        tokens: how many tokens were read to make them.
        retrieval: `[L, Q, R]`, their retrieval keys, where the model has a retriever.
    """

    hidden: Tensor
    keys: Tensor
    values: Tensor
    tokens: int
    retrieval: Tensor | None = None

    @property
    def count(self) -> int:
        return self.hidden.shape[1]

    @property
    def tensors(self) -> list[Tensor]:
        """All that must be finite."""
        return [self.hidden, self.keys, self.values, *([] if self.retrieval is None else [self.retrieval])]

    def tiled(self, size: int) -> "NewSlots":
        """What the first write puts into a pool of `size`: its slots over and over, cut at the end.

        The remainder repeats the last slots; of more slots than fit the last stay (published code, `initialized` = 0).
        """
        index = torch.arange(self.count).repeat(size // self.count)
        if size % self.count:
            index = torch.cat([index, torch.arange(self.count)[-(size % self.count) :]])
        index = index.to(self.hidden.device)
        retrieval = None if self.retrieval is None else self.retrieval[:, index]
        hidden, keys, values = self.hidden[:, index], self.keys[:, index], self.values[:, index]
        return replace(self, hidden=hidden, keys=keys, values=values, retrieval=retrieval)


class Pool:
    """Slots in K/V form, keys unrotated, in places that never move; order is a serial number, not a layout.

    Attributes:
        keys, values: `[L, N, H, D]` with H key/value heads of size D.
        serial: `[L, N]`, int64. Slots are numbered as they are made, so rank is the order of serials.
        hidden: `[L, N, d]` or None. Kept on demand, for inspection and export.
        version: differs after every change, also after one that was taken back.
        retrieval, ages: `[L, N, R]` and `[L, N]`, or None: the keys and ages that slots take along to long-term memory.
    """

    def __init__(
        self,
        keys: Tensor,
        values: Tensor,
        serial: Tensor,
        hidden: Tensor | None = None,
        retrieval: Tensor | None = None,
        ages: Tensor | None = None,
    ) -> None:
        self.keys, self.values, self.serial, self.hidden = keys, values, serial, hidden
        self.retrieval, self.ages = retrieval, ages
        self.version = 0
        self._order: Tensor | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        names = ("keys", "values", "serial", "hidden", "retrieval", "ages")
        held = {name: getattr(self, name) for name in names}
        return {name: tensor for name, tensor in held.items() if tensor is not None}

    @property
    def size(self) -> int:
        return self.keys.shape[1]

    @property
    def nbytes(self) -> int:
        return sum(tensor.numel() * tensor.element_size() for tensor in self.tensors.values())

    @property
    def order(self) -> Tensor:  # [L, N], the place of each rank, oldest first
        """Sorted once; a write then moves the places that it fills to the end."""
        if self._order is None:
            self._order = self.serial.argsort(dim=1)
        return self._order

    def slots(self) -> Tensor:  # [L, N, d], oldest first
        """Hidden states of all slots.

        Raises:
            InvalidInputError: the pool keeps only keys and values.
        """
        if self.hidden is None:
            raise InvalidInputError(
                "this pool keeps keys and values only; load the model with keep_hidden=True to see hidden states"
            )
        return self.hidden.gather(1, self.order[..., None].expand_as(self.hidden))

    def places(self, ranks: Tensor) -> Tensor:  # [L, K] ranks -> [L, K] places
        return self.order.gather(1, ranks.to(self.order.device))

    def replace(self, ranks: Tensor, new: "Pool", undo: Undo) -> dict[str, Tensor]:
        """Put the slots of `new`, in rank order, where `ranks` `[L, K]` were. Returns what was there, by name.

        Raises:
            CorruptMemoryError: a slot that leaves is not finite.
        """
        places, order = self.places(ranks), self.order
        evicted = self.rows(places)
        undo.add(lambda: self._fill(places, evicted, order))
        self._fill(places, new.tensors, torch.cat([self.surviving(ranks), places], dim=1))
        return evicted

    def _fill(self, places: Tensor, rows: dict[str, Tensor], order: Tensor) -> None:
        self.version += 1
        for name, tensor in self.tensors.items():
            _put(tensor, places, rows[name])
        self._order = order

    def rows(self, places: Tensor) -> dict[str, Tensor]:  # [L, K] -> [L, K, ...] each, copies
        """The slots in some places, checked as they leave.

        Raises:
            CorruptMemoryError: one is not finite.
        """
        rows = {name: _rows(tensor, places) for name, tensor in self.tensors.items()}
        if not all(bool(torch.isfinite(part).all()) for part in rows.values()):
            raise CorruptMemoryError("the pool holds slots that are not finite; go back to a saved memory")
        return rows

    def surviving(self, evicted: Tensor) -> Tensor:  # ranks [L, K] -> places [L, N - K], oldest first
        kept = torch.ones_like(self.order, dtype=torch.bool).scatter_(1, evicted.to(self.order.device), False)
        return self.order.masked_select(kept).view(len(kept), -1)

    def clone(self) -> "Pool":
        return Pool(**{name: tensor.clone() for name, tensor in self.tensors.items()})

    def to(self, device: torch.device | str) -> "Pool":
        return Pool(**{name: tensor.to(device) for name, tensor in self.tensors.items()})


def _flat(tensor: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    """The rows of all layers in one list, as a view, and where the places are in it: whole rows copy fastest."""
    layers, slots = tensor.shape[:2]
    first = torch.arange(0, layers * slots, slots, device=tensor.device)[:, None]
    return tensor.view(layers * slots, *tensor.shape[2:]), (first + places.to(tensor.device)).flatten()


def _rows(tensor: Tensor, places: Tensor) -> Tensor:  # a copy
    rows, at = _flat(tensor, places)
    return rows.index_select(0, at).view(*places.shape, *tensor.shape[2:])


def _put(tensor: Tensor, places: Tensor, new: Tensor) -> None:
    rows, at = _flat(tensor, places)
    rows.index_copy_(0, at, new.to(tensor.dtype).flatten(0, 1))
