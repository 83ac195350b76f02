"""Two LRU caches: of built prefixes, on a CPU, where building one costs as much as some layers; and of encoded chunks.

A prefix that is found is not built again; one that is not takes the buffers of that read least recently, once the limit
is reached.
"""

import threading
import weakref
from collections import OrderedDict
from typing import Any

from torch import Tensor

Buffers = tuple[Tensor, Tensor]  # keys and values of one layer, [1, capacity, H, D]

_LIMIT = 256 * 2**20  # bytes


class PrefixStore:
    """The prefixes of the memories that were read last, one each. Whoever acquires buffers owns them until they are
    released, so calls may run side by side.

    Attributes:
        limit: bytes that all prefixes may take; one is kept whatever it takes.
    """

    def __init__(self, limit: int = _LIMIT) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._held: list[tuple[weakref.ref[Any], Any, list[Buffers]]] = []  # least recently read first

    def __reduce__(self) -> tuple[type["PrefixStore"], tuple[int]]:
        return PrefixStore, (self.limit,)

    def clear(self) -> None:
        """Let go of everything, as after an erasure."""
        with self._lock:
            self._held.clear()

    def acquire(self, owner: Any, key: Any) -> tuple[list[Buffers], bool]:
        """Buffers, or [] if there are none to spare, and whether the prefix of `owner` under this key is in them."""
        with self._lock:
            places = {id(held()): at for at, (held, *_) in enumerate(self._held) if held() is not None}
            if id(owner) in places:
                _, known, buffers = self._held.pop(places[id(owner)])
                return buffers, known == key
            orphans = [at for at, (held, *_) in enumerate(self._held) if held() is None]
            if orphans:
                return self._held.pop(orphans[0])[2], False
            if self._held and self._bytes() + _bytes(self._held[0][2]) > self.limit:
                return self._held.pop(0)[2], False
        return [], False

    def release(self, owner: Any, key: Any, buffers: list[Buffers]) -> None:
        """Keep the prefix of `owner`; `key` is everything it depends on, as it was when the prefix was built."""
        with self._lock:
            others = [held for held in self._held if held[0]() is not owner]
            self._held = [*others, (weakref.ref(owner), key, buffers)]
            while len(self._held) > 1 and self._bytes() > self.limit:
                self._held.pop(0)

    def _bytes(self) -> int:
        return sum(_bytes(buffers) for *_, buffers in self._held)


def _bytes(buffers: list[Buffers]) -> int:
    return sum(keys.nbytes + values.nbytes for keys, values in buffers)


class SlotCache:
    """LRU cache of encoded chunks, for memories that keep token ids only. Slots never change, so calls share them.

    Attributes:
        limit: bytes that all may take; the newest is kept whatever it takes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._held: OrderedDict[Any, Tensor] = OrderedDict()
        self._bytes = 0

    def __reduce__(self) -> tuple[type["SlotCache"], tuple[int]]:
        return SlotCache, (self.limit,)

    def clear(self) -> None:
        """Let go of everything, as after an erasure."""
        with self._lock:
            self._held.clear()
            self._bytes = 0

    def get(self, key: Any) -> Tensor | None:
        with self._lock:
            if (slots := self._held.get(key)) is not None:
                self._held.move_to_end(key)
            return slots

    def put(self, key: Any, slots: Tensor) -> None:
        with self._lock:
            if (before := self._held.pop(key, None)) is not None:
                self._bytes -= before.nbytes
            self._held[key] = slots
            self._bytes += slots.nbytes
            while len(self._held) > 1 and self._bytes > self.limit:
                self._bytes -= self._held.popitem(last=False)[1].nbytes
