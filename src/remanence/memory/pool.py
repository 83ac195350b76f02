"""N slots in each of L layers, replaced in place: a write costs O(K), whatever N is."""

from dataclasses import dataclass, replace
from typing import Self

import torch
from torch import Tensor

from remanence.errors import CorruptMemoryError, InvalidInputError
from remanence.memory.finite import all_finite
from remanence.memory.order import Order
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

    def check(self) -> None:
        """Raise CorruptMemoryError where a number is not finite."""
        parts = (self.hidden, self.keys, self.values, self.retrieval)
        if not all_finite(*(part for part in parts if part is not None)):
            raise CorruptMemoryError(
                "the write made slots that are not finite; the memory is unchanged. Either the weights or the memory "
                "hold NaN or infinity: check the model in float32, or go back to a saved memory"
            )

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

    def newest(self, before: Tensor | None, evicted: Tensor, k: int, size: int) -> Tensor:  # [L, K, d]
        """The K newest slots in hidden form, once these stand in the pool.

        Args:
            before: `[L, K, d]`, the newest until now; needed if fewer than K are new.
            evicted: `[L, P]`, ranks that leave a pool of `size`.
        """
        made, missing = self.hidden, k - self.count
        if missing > 0:
            assert before is not None
            ranks = torch.arange(size - k, size)
            kept = [~torch.isin(ranks, row) for row in evicted.cpu()]
            older = [slots[mask.to(slots.device)][-missing:] for slots, mask in zip(before, kept, strict=True)]
            made = torch.cat([torch.stack(older), made], dim=1)
        return made[:, -k:].detach().clone()


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
        self._order: Order | None = None

    @classmethod
    def of(cls, new: NewSlots, first_serial: int, *, keep_hidden: bool, longterm: bool) -> Self:
        """New slots, numbered from `first_serial` on; `longterm`: with what they take along to long-term memory."""
        layers, made = new.hidden.shape[:2]
        count = torch.arange(made, device=new.keys.device).repeat(layers, 1)
        retrieval = ages = None
        if longterm:
            assert new.retrieval is not None
            retrieval, ages = new.retrieval.detach(), count.flip(1)
        hidden = new.hidden.detach() if keep_hidden else None
        return cls(new.keys.detach(), new.values.detach(), first_serial + count, hidden, retrieval, ages)

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
        return self._ranked().places

    def _ranked(self) -> Order:
        """Sorted once; a write then moves the places that it fills to the end."""
        if self._order is None:
            self._order = Order(self.serial.argsort(dim=1))
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
        return self._ranked().find(ranks)

    def replace(self, ranks: Tensor, new: "Pool", undo: Undo) -> dict[str, Tensor]:
        """Put the slots of `new`, in rank order, where `ranks` `[L, K]` were. Returns what was there, by name.

        Raises:
            CorruptMemoryError: a slot that leaves is not finite.
        """
        order, places = self._ranked(), self.places(ranks)
        evicted = self.rows(places)
        at, flat = self._flat(places), {name: rows.flatten(0, 1) for name, rows in evicted.items()}
        older = flat["serial"] < undo.first_serial  # others are of this write, and it goes too
        back = (at, flat) if bool(older.all()) else (at[older], {name: rows[older] for name, rows in flat.items()})
        undo.add(lambda: self._put_back(*back))
        self.version += 1
        self._put(at, {name: new.tensors[name].flatten(0, 1) for name in evicted})
        order.to_the_end(ranks)
        return evicted

    def _put_back(self, at: Tensor, rows: dict[str, Tensor]) -> None:
        self.version += 1
        self._put(at, rows)
        self._order = None

    def rows(self, places: Tensor) -> dict[str, Tensor]:  # [L, K] -> [L, K, ...] each, copies
        """The slots in some places, checked as they leave.

        Raises:
            CorruptMemoryError: one is not finite.
        """
        at = self._flat(places)
        rows = {
            name: tensor.flatten(0, 1).index_select(0, at).view(*places.shape, *tensor.shape[2:])
            for name, tensor in self.tensors.items()
        }
        if not all_finite(*rows.values()):
            raise CorruptMemoryError("the pool holds slots that are not finite; go back to a saved memory")
        return rows

    def _flat(self, places: Tensor) -> Tensor:  # [L, K] -> [L * K]
        """Where places are in the list of all layers' slots: whole rows copy fastest."""
        layers, slots = self.serial.shape
        first = torch.arange(0, layers * slots, slots, device=self.serial.device)[:, None]
        return (first + places.to(self.serial.device)).flatten()

    def _put(self, at: Tensor, rows: dict[str, Tensor]) -> None:
        for name, tensor in self.tensors.items():
            tensor.view(-1, *tensor.shape[2:]).index_copy_(0, at, rows[name].to(tensor.dtype))

    def clone(self) -> "Pool":
        return Pool(**{name: tensor.clone() for name, tensor in self.tensors.items()})

    def to(self, device: torch.device | str) -> "Pool":
        return Pool(**{name: tensor.to(device) for name, tensor in self.tensors.items()})
