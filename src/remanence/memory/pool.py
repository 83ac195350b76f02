"""N slots in each of L layers, replaced in place: a write costs O(K), whatever N is."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from remanence.errors import CorruptMemoryError, InvalidInputError


class Pool:
    """Slots in K/V form, keys unrotated, in places that never move; order is a serial number, not a layout.

    Attributes:
        keys, values: `[L, N, H, D]` with H key/value heads of size D.
        serial: `[L, N]`, int64. Slots are numbered as they are made, so rank is the order of serials.
        hidden: `[L, N, d]` or None. Kept on demand, for inspection and export.
        version: counts changes.
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

    @contextmanager
    def replacing(self, ranks: Tensor, new: "Pool") -> Iterator[dict[str, Tensor]]:
        """Put the Q slots per layer of `new`, in rank order, where `ranks` [L, P] were; undone if the body raises.

        Yields what was there, by the names of `tensors`, in the order of `ranks`.

        P <= Q. P < Q makes the pool grow by Q - P, as the published code does where rounding drops one slot too few.

        Raises:
            CorruptMemoryError: a slot that leaves is not finite.
        """
        places = self.places(ranks)
        undo = {name: _rows(tensor, places) for name, tensor in self.tensors.items()}
        if not all(bool(torch.isfinite(rows).all()) for rows in undo.values()):
            raise CorruptMemoryError("the pool holds slots that are not finite; go back to a saved memory")
        if ranks.shape[1] < new.size:
            with self._growing(ranks, new):
                yield undo
            return
        order = self.order
        self.version += 1
        try:
            for name, tensor in self.tensors.items():
                _put(tensor, places, new.tensors[name])
            self._order = torch.cat([self._surviving(ranks), places], dim=1)
            yield undo
        except BaseException:
            for name, tensor in self.tensors.items():
                _put(tensor, places, undo[name])
            self._order = order
            raise

    @contextmanager
    def _growing(self, ranks: Tensor, new: "Pool") -> Iterator[None]:
        before, order, survivors = self.tensors, self.order, self._surviving(ranks)
        self.version += 1
        try:
            for name, tensor in before.items():
                setattr(self, name, torch.cat([_rows(tensor, survivors), new.tensors[name]], dim=1))
            self._order = None
            yield
        except BaseException:
            for name, tensor in before.items():
                setattr(self, name, tensor)
            self._order = order
            raise

    def _surviving(self, evicted: Tensor) -> Tensor:  # ranks [L, P] -> places [L, N - P], oldest first
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
