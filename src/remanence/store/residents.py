"""Memories that are open: the last used ones stay in RAM, and each catches up with its ledger before it is used."""

import threading
import warnings
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from remanence.errors import RemanenceError, StoreError
from remanence.store.ledger import Ledger
from remanence.store.rows import Found
from remanence.store.snapshots import Snapshots

if TYPE_CHECKING:
    from remanence.model.model import MemoryModel
    from remanence.store.replay import Held


class _Open:
    """One memory in RAM.

    Attributes:
        lock: held while it catches up and is used.
        found, held, model: as it was then, and what encoded it; None before the first time.
        saved: writes that its newest snapshot has.
        pins: how many use it or wait for it.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self.found: Found | None = None
        self.held: Held | None = None
        self.model: MemoryModel | None = None
        self.saved = list[int]()
        self.pins = 0


class Residents:
    """Attributes: budget: bytes of memories that stay in RAM while nobody uses them."""

    def __init__(self, ledger: Ledger, snapshots: Snapshots, budget: int, every: int) -> None:
        self._ledger, self._snapshots, self.budget, self._every = ledger, snapshots, budget, every
        self._open: OrderedDict[str, _Open] = OrderedDict()
        self._lock = threading.Lock()  # of `_open` and of pins; never held while a memory is loaded

    @contextmanager
    def at_head(self, found: Found, model: "MemoryModel", *, alone: bool = False) -> "Iterator[tuple[Found, Held]]":
        """A memory as its ledger says it is now; it stays in RAM as long as the body runs.

        Args:
            alone: no other thread of this process gets it meanwhile.
        """
        with self._lock:
            one = self._open.setdefault(found.id, _Open())
            self._open.move_to_end(found.id)
            one.pins += 1
        try:
            with ExitStack() as stack:
                with one.lock:
                    self._catch_up(one, found, model)
                    assert one.found is not None and one.held is not None
                    current, held = one.found, one.held
                    if alone:
                        stack.enter_context(one.lock)
                yield current, held
        finally:
            with self._lock:
                one.pins -= 1
            self._make_room()

    def _catch_up(self, one: _Open, found: Found, model: "MemoryModel") -> None:
        from remanence.store.replay import new, reach  # torch takes seconds to import

        current, target = self._ledger.holding(found)
        if one.held is None:
            begun = new(model, current)
            if current.fingerprint is None:
                with suppress(StoreError):  # where it can only be read
                    self._ledger.bind(current, model.fingerprint())
            one.held = self._snapshots.nearest(current, target, begun)
            one.saved = list(one.held.holds)
        if one.held.holds != target:

            def earlier() -> "Held":
                return self._snapshots.nearest(current, target, new(model, current))

            one.held = reach(model, one.held, target, partial(self._ledger.told, current), earlier)
        one.found, one.model = current, model
        if len(set(target) ^ set(one.saved)) >= self._every:
            self._save(one)

    @property
    def open_ids(self) -> list[str]:
        """Memories in RAM, the last used at the end."""
        with self._lock:
            return [id for id, one in self._open.items() if one.held is not None]

    def committed(self, found: Found, seq: int) -> None:
        """A write went into the memory that `at_head` gave alone, and into its ledger."""
        one = self._open[found.id]
        assert one.held is not None and one.found is not None
        one.held.holds.append(seq)
        one.found = replace(one.found, version=seq)

    def drop(self, ids: list[str]) -> None:
        """Let memories go from RAM without a snapshot."""
        for id in ids:
            with self._lock:
                one = self._open.get(id)
            if one is not None:
                with one.lock:
                    one.held, one.saved = None, []

    def close(self) -> None:
        """Keep what snapshots lack, and let all go."""
        with self._lock:
            everything, self._open = list(self._open.values()), OrderedDict()
        for one in everything:
            with one.lock:
                self._save(one)

    def _save(self, one: _Open) -> None:
        if one.held is None or one.found is None or one.model is None or one.held.holds == one.saved:
            return
        from remanence.store.replay import stamp

        try:
            self._snapshots.save(one.found, one.held, stamp(one.model))
        except (RemanenceError, OSError) as error:  # a snapshot spares time only
            warnings.warn(f"no snapshot of {one.found.name!r} was kept, so it will be replayed: {error}", stacklevel=2)
        one.saved = list(one.held.holds)

    def _make_room(self) -> None:
        while True:
            with self._lock:
                sizes = {id: _bytes(one) for id, one in self._open.items()}
                idle = (id for id, one in self._open.items() if not one.pins)
                oldest = next(idle, None) if sum(sizes.values()) > self.budget else None
                gone = None if oldest is None else self._open.pop(oldest)
            if gone is None:
                return
            with gone.lock:
                self._save(gone)


def _bytes(one: _Open) -> int:
    return 0 if one.held is None else sum(one.held.memory.nbytes.values())
