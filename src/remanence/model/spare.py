"""The prefix of the last prompt, kept for the next one.

A prompt on a memory that was not written since reads the same prefix. On a CPU, where making it costs as much as some
layers, the buffers of the last generation that read one memory are kept: the next prompt on that memory finds its
prefix there, and one on another memory at least finds room. A write to that memory makes its next prefix, so that the
prompt after it does not wait for it.
"""

import threading
import weakref
from typing import Any

from torch import Tensor

from remanence.memory import Pool

Buffers = tuple[Tensor, Tensor]  # keys and values of one layer, [1, capacity, H, D]


class Spare:
    """Holds one prefix. Whoever takes it owns it, so that calls may run side by side."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._held: tuple[weakref.ref[Pool], tuple[Any, ...], list[Buffers]] | None = None

    def __reduce__(self) -> tuple[type["Spare"], tuple[()]]:
        return Spare, ()

    def holds(self, pool: Pool | None) -> bool:
        """Whether what is kept is, or was before a write, the prefix of this pool."""
        with self._lock:
            return pool is not None and self._held is not None and self._held[0]() is pool

    def take(self, pool: Pool, about: tuple[Any, ...]) -> tuple[list[Buffers], bool]:
        """Buffers, none if there are none, and whether the prefix of this pool is in them.

        `about` is all that the prefix hangs on, the pool's version among it.
        """
        with self._lock:
            held, self._held = self._held, None
        if held is None:
            return [], False
        owner, was, buffers = held
        return buffers, owner() is pool and was == about

    def give(self, pool: Pool, about: tuple[Any, ...], buffers: list[Buffers]) -> None:
        """`about` as it was when the prefix was made: the pool may have been written since."""
        with self._lock:
            self._held = (weakref.ref(pool), about, buffers)
