"""The prefixes of the last prompts, kept for the next ones.

A prompt on a memory that was not written since reads the same prefix. On a CPU, where making it costs as much as some
layers, the buffers of generations that read one memory each are kept: the next prompt on a memory among them finds its
prefix there, and one on another takes over the buffers of the memory that was read longest ago. A write to a memory
whose prefix is kept makes its next prefix, so that the prompt after it does not wait for it.
"""

import threading
import weakref
from typing import Any

from torch import Tensor

from remanence.memory import Pool

Buffers = tuple[Tensor, Tensor]  # keys and values of one layer, [1, capacity, H, D]


_LIMIT = 256 * 2**20  # bytes


class Spare:
    """Holds one prefix for each of the memories that were read last. Whoever takes one owns it, so that calls may run
    side by side.

    Attributes:
        limit: bytes that all prefixes may take; one is kept whatever it takes.
    """

    def __init__(self, limit: int = _LIMIT) -> None:
        self.limit = limit
        self._lock = threading.Lock()
        self._held: list[tuple[weakref.ref[Pool], tuple[Any, ...], list[Buffers]]] = []  # longest ago first

    def __reduce__(self) -> tuple[type["Spare"], tuple[int]]:
        return Spare, (self.limit,)

    def holds(self, pool: Pool | None) -> bool:
        """Whether something that is kept is, or was before a write, the prefix of this pool."""
        with self._lock:
            return pool is not None and any(owner() is pool for owner, *_ in self._held)

    def take(self, pool: Pool, about: tuple[Any, ...]) -> tuple[list[Buffers], bool]:
        """Buffers, none if there are none to spare, and whether the prefix of this pool is in them.

        `about` is all that the prefix hangs on, the pool's version among it.
        """
        with self._lock:
            own = [at for at, (owner, *_) in enumerate(self._held) if owner() is pool]
            nobodys = [at for at, (owner, *_) in enumerate(self._held) if owner() is None]
            if own:
                _, was, buffers = self._held.pop(own[0])
                return buffers, was == about
            if nobodys:
                return self._held.pop(nobodys[0])[2], False
            if self._held and self._bytes() + _bytes(self._held[0][2]) > self.limit:
                return self._held.pop(0)[2], False
        return [], False

    def give(self, pool: Pool, about: tuple[Any, ...], buffers: list[Buffers]) -> None:
        """`about` as it was when the prefix was made: the pool may have been written since."""
        with self._lock:
            others = [held for held in self._held if held[0]() is not pool]
            self._held = [*others, (weakref.ref(pool), about, buffers)]
            while len(self._held) > 1 and self._bytes() > self.limit:
                self._held.pop(0)

    def _bytes(self) -> int:
        return sum(_bytes(buffers) for *_, buffers in self._held)


def _bytes(buffers: list[Buffers]) -> int:
    return sum(keys.nbytes + values.nbytes for keys, values in buffers)
