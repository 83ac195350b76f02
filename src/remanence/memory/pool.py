"""N slots in each of L layers, replaced in place: a write costs O(K), whatever N is."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from remanence.errors import InvalidInputError


class Pool:
    """Slots in K/V form, keys unrotated, in places that never move; order is a serial number, not a layout.

    Attributes:
        keys, values: `[L, N, H, D]` with H key/value heads of size D.
        serial: `[L, N]`, int64. Slots are numbered as they are made, so rank is the order of serials.
        hidden: `[L, N, d]` or None. Kept on demand, for inspection and export.
    """

    def __init__(self, keys: Tensor, values: Tensor, serial: Tensor, hidden: Tensor | None = None) -> None:
        self.keys, self.values, self.serial, self.hidden = keys, values, serial, hidden
        self._order: Tensor | None = None

    @property
    def tensors(self) -> dict[str, Tensor]:
        held = {"keys": self.keys, "values": self.values, "serial": self.serial, "hidden": self.hidden}
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

    def finite(self, ranks: Tensor) -> bool:
        """Whether the slots of these ranks [L, P] hold numbers."""
        places = self.places(ranks)
        return all(bool(torch.isfinite(_rows(tensor, places)).all()) for tensor in (self.keys, self.values))

    @contextmanager
    def replacing(self, ranks: Tensor, new: "Pool") -> Iterator[None]:
        """Put the Q slots per layer of `new`, in rank order, where `ranks` [L, P] were; undone if the body raises.

        P <= Q. P < Q makes the pool grow by Q - P, as the published code does where rounding drops one slot too few.
        """
        if ranks.shape[1] < new.size:
            with self._growing(ranks, new):
                yield
            return
        places = self.places(ranks)
        undo = {name: _rows(tensor, places).clone() for name, tensor in self.tensors.items()}
        order = self.order
        try:
            for name, tensor in self.tensors.items():
                _put(tensor, places, new.tensors[name])
            self._order = torch.cat([self._surviving(ranks), places], dim=1)
            yield
        except BaseException:
            for name, tensor in self.tensors.items():
                _put(tensor, places, undo[name])
            self._order = order
            raise

    @contextmanager
    def _growing(self, ranks: Tensor, new: "Pool") -> Iterator[None]:
        before, order, survivors = self.tensors, self.order, self._surviving(ranks)
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


def _index(tensor: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
    places = places.to(tensor.device)
    return torch.arange(len(tensor), device=tensor.device)[:, None], places


def _rows(tensor: Tensor, places: Tensor) -> Tensor:
    return tensor[_index(tensor, places)]


def _put(tensor: Tensor, places: Tensor, rows: Tensor) -> None:
    tensor[_index(tensor, places)] = rows.to(tensor.dtype)
