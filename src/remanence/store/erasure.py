"""Erasure: nothing of what was said is left in the store's files."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import and_, delete, select, update

from remanence.errors import ConflictError, NotFoundError
from remanence.store import fulltext
from remanence.store.database import reading, vacuum, writing
from remanence.store.ledger import Ledger
from remanence.store.queries import locked, note, now
from remanence.store.rows import Found
from remanence.store.schema import memories, writes
from remanence.store.snapshots import Snapshots

_CONTENT = ("text", "ids", "cuts", "sha256", "idempotency_key", "source", "stamp")
_OUT_OF_REACH = {
    "sqlite": ["exported files", "backups"],
    "postgresql": ["exported files", "backups", "the write-ahead log and its archive"],
}


def erase(
    ledger: Ledger,
    snapshots: Snapshots,
    memory: Found,
    seqs: Sequence[int] | None,
    cascade: bool,
    dry_run: bool,
    actor: str | None,
) -> dict[str, Any]:
    """See `Store.erase`."""
    engine = ledger.engine
    forks = [one for one in ledger.forks(memory) if seqs is None or any(seq <= (one.parent_seq or 0) for seq in seqs)]
    if forks and not cascade:
        names = ", ".join(repr(one.name) for one in forks)
        raise ConflictError(f"{memory.name!r} has forks that begin with this: {names}; erase there too: cascade")
    ids = [memory.id, *(one.id for one in forks)]
    with reading(engine) as connection:
        own = writes.c.memory.in_(ids) if seqs is None else and_(writes.c.memory == memory.id, writes.c.seq.in_(seqs))
        asked = select(writes.c.seq).where(own, writes.c.kind == "write").order_by(writes.c.memory, writes.c.seq)
        there = list(connection.execute(asked).scalars())
    if seqs is not None and set(there) != set(seqs):
        raise NotFoundError(f"{memory.name!r} has no write of its own {sorted(set(seqs) - set(there))}")
    receipt: dict[str, Any] = {"memories": ids, "names": [memory.name, *(one.name for one in forks)], "writes": there}
    receipt |= {"whole": seqs is None, "out_of_reach": _OUT_OF_REACH[engine.dialect.name]}
    if dry_run:
        return {**receipt, "snapshots": 0, "dry_run": True}
    with writing(engine) as connection:
        for one in (memory, *forks):
            locked(connection, one)  # no snapshot of before is entered from now on
        blank = dict.fromkeys(_CONTENT) | {"metadata": {}, "tokens": 0, "bytes": 0, "redacted_at": now()}
        connection.execute(update(writes).where(own, writes.c.kind == "write").values(blank))
        fulltext.rebuild(connection)
        note(connection, memory.owner, memory.id, "erase", actor, writes=there, whole=seqs is None)
    dropped = snapshots.drop(ids) if seqs is None else sum(snapshots.drop(ids, seq) for seq in seqs)
    if seqs is None:
        with writing(engine) as connection:
            for id in reversed(ids):
                connection.execute(delete(writes).where(writes.c.memory == id))
                connection.execute(delete(memories).where(memories.c.id == id))
            fulltext.rebuild(connection)
    vacuum(engine)
    return {**receipt, "snapshots": dropped, "dry_run": False}
