"""Snapshots: memories as files, so that not every write has to be replayed. They are a cache, and may be deleted."""

import secrets
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, delete, func, insert, select

from remanence.errors import RemanenceError
from remanence.store import queries
from remanence.store.database import reading, writing
from remanence.store.history import numbers, ranges
from remanence.store.ledger import Ledger
from remanence.store.queries import now
from remanence.store.rows import Found
from remanence.store.schema import snapshots

if TYPE_CHECKING:
    from remanence.store.replay import Held


class Snapshots:
    """Attributes: folder: one folder for each memory."""

    def __init__(self, ledger: Ledger, folder: Path) -> None:
        self._ledger, self.folder = ledger, folder

    def save(self, found: Found, held: "Held", stamp: Mapping[str, str]) -> None:
        """Keep a memory as it is at `found.version`, encoded on what `stamp` says; older ones are thinned out.

        Raises:
            NotFoundError: it was erased meanwhile.
        """
        with reading(self._ledger.engine) as connection:
            there = select(snapshots.c.seq).where(snapshots.c.memory == found.id, snapshots.c.seq == found.version)
            if connection.execute(there).first() is not None:
                return
        folder = self.folder / found.id
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{found.version}-{secrets.token_hex(4)}.safetensors"
        held.memory.save(path, overwrite=True)
        row = {"memory": found.id, "seq": found.version, "uri": path.name, "holds": ranges(held.holds)}
        row |= {"bytes": path.stat().st_size, "stamp": dict(stamp), "created": now()}
        gone = [path.name]
        try:
            with writing(self._ledger.engine) as connection:
                current = queries.locked(connection, found)  # nobody erases until this is on record
                erased = {one.seq for one in queries.entries(connection, current) if one.kind == "redacted"}
                if connection.execute(there).first() is None and not erased & set(held.holds):
                    connection.execute(insert(snapshots).values(row))
                    gone = _thin(connection, found.id)
        finally:
            self._unlink(found.id, gone)

    def of(self, found: Found) -> list[Any]:
        """The rows of the snapshots that a memory may begin with: its own, and its ancestors' of before the forks."""
        with reading(self._ledger.engine) as connection:
            return [
                row
                for id, end in queries.segments_of(connection, found)
                for row in connection.execute(select(snapshots).where(snapshots.c.memory == id, snapshots.c.seq <= end))
            ]

    def nearest(self, found: Found, target: Sequence[int], fresh: "Held") -> "Held":
        """The memory of the snapshot whose writes begin `target`, and are the most of it; else `fresh`."""
        from remanence.memory import Memory

        rows = self.of(found)
        fitting = [(numbers(row.holds), row) for row in rows]
        fitting = [(holds, row) for holds, row in fitting if holds == list(target[: len(holds)])]
        for holds, row in sorted(fitting, key=lambda each: len(each[0]), reverse=True):
            try:
                memory = Memory.load(self.folder / row.memory / row.uri, next(iter(fresh.memory.devices), "cpu"))
                fresh.memory.spec.require(memory.spec)
            except (RemanenceError, OSError):
                continue  # damaged, gone, or of another model: an earlier one, or none, will do
            return replace(fresh, memory=memory, holds=holds)
        return fresh

    def drop(self, ids: Sequence[str], seq: int | None = None) -> int:
        """Delete the snapshots of memories, those that hold write `seq`, or all; returns how many."""
        count = 0
        for id in ids:
            with writing(self._ledger.engine) as connection:
                rows = connection.execute(select(snapshots).where(snapshots.c.memory == id)).all()
                rows = [row for row in rows if seq is None or seq in numbers(row.holds)]
                at = snapshots.c.seq.in_([row.seq for row in rows])
                connection.execute(delete(snapshots).where(snapshots.c.memory == id, at))
            self._unlink(id, [row.uri for row in rows])
            count += len(rows)
        return count

    def discard(self, id: str, seq: int) -> None:
        """Delete the snapshot of a memory that was taken at row `seq`."""
        at = (snapshots.c.memory == id, snapshots.c.seq == seq)
        with writing(self._ledger.engine) as connection:
            names = list(connection.execute(select(snapshots.c.uri).where(*at)).scalars())
            connection.execute(delete(snapshots).where(*at))
        self._unlink(id, names)

    def thin_all(self) -> int:
        """Keep only the newest of each memory; returns how many went."""
        newest = select(snapshots.c.memory, func.max(snapshots.c.seq)).group_by(snapshots.c.memory)
        with reading(self._ledger.engine) as connection:
            kept = {(memory, seq) for memory, seq in connection.execute(newest)}
            every = connection.execute(select(snapshots.c.memory, snapshots.c.seq)).all()
        older = [(memory, seq) for memory, seq in every if (memory, seq) not in kept]
        for memory, seq in older:
            self.discard(memory, seq)
        return len(older)

    def remove(self, paths: Sequence[Path]) -> None:
        """Delete files that no row names."""
        for path in paths:
            self._unlink(path.parent.name, [path.name.removesuffix(".longterm")])

    def _unlink(self, id: str, names: Sequence[str]) -> None:
        for name in names:
            path = self.folder / id / name
            path.unlink(missing_ok=True)
            shutil.rmtree(path.with_name(f"{path.name}.longterm"), ignore_errors=True)
        with suppress(OSError):
            (self.folder / id).rmdir()


def _thin(connection: Connection, id: str) -> list[str]:
    """Keep snapshots at distances from the newest that double; returns the files of the others."""
    asked = select(snapshots).where(snapshots.c.memory == id).order_by(snapshots.c.seq.desc())
    rows = connection.execute(asked).all()
    kept, gone = set[int](), list[str]()
    for row in rows:
        age = (rows[0].seq - row.seq).bit_length()
        if age in kept:
            gone.append(row.uri)
            connection.execute(delete(snapshots).where(snapshots.c.memory == id, snapshots.c.seq == row.seq))
        kept.add(age)
    return gone
