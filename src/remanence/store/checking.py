"""Whether all of a store fits together: the ledger in itself, and its snapshots and its index with the ledger."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from sqlalchemy import select

from remanence.errors import RemanenceError
from remanence.memory import Memory, MemoryState
from remanence.store import fulltext, queries
from remanence.store.archive import misplaced, unfitting
from remanence.store.database import reading, writing
from remanence.store.history import holding, numbers
from remanence.store.replay import new, replay, stamp
from remanence.store.rows import Content, Found
from remanence.store.schema import memories, snapshots, writes

if TYPE_CHECKING:
    from remanence.store.store import Store

TOLERANCE = 1e-4  # between what other versions of torch encoded, and this one
SETTLED = 3600.0  # seconds after which a file that no row names is left over, not on its way
# Of numbers that are rounded: how far apart two neighbours are, relative to their size; int8 ones are steps of a scale.
_ROUNDED = {dtype: torch.finfo(dtype).eps for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)}
_ROUNDED[torch.int8] = 1.0
_COUNTERS = ("write_count", "next_serial", "most_writes", "model_name", "writes", "chunks")


@dataclass(frozen=True)
class Finding:
    """Something that does not fit.

    Attributes:
        what: "database", "ledger", "content", "snapshot", "file" or "index".
        owner, memory: whose, by name; None where it is the store's.
        row: its number, or the row that a snapshot was taken at.
        says: what is wrong, and what that means.
        repaired: it was, by this call.
    """

    what: str
    says: str
    owner: str | None = None
    memory: str | None = None
    row: int | None = None
    repaired: bool = False


def check(store: "Store", *, repair: bool = False) -> list[Finding]:
    """Look through a store; what is used meanwhile may be found in the middle of a change.

    Snapshots are replayed, which takes the model; where there are none, it is not loaded.

    Args:
        repair: drop snapshots that are not what the ledger says, and make the index anew. What people said cannot be
            made again, and is only reported.
    """
    found, damaged = _of_database(store), set[str]()
    for memory in _all(store):
        there = _of_ledger(store, memory)
        found, damaged = [*found, *there], damaged | ({memory.id} if there else set())
    for memory in _all(store):
        if not damaged & {id for id, _ in store.ledger.segments(memory)}:  # else there is nothing to compare with
            found += _of_snapshots(store, memory, repair)
    return [*found, *_of_files(store, repair), *_of_index(store, repair)]


def _all(store: "Store") -> Iterator[Found]:
    after = ""
    while True:
        with reading(store.ledger.engine) as connection:
            asked = select(memories).where(memories.c.id > after).order_by(memories.c.id).limit(100)
            page = [queries.found_of(row) for row in connection.execute(asked).mappings()]
        yield from page
        if not page:
            return
        after = page[-1].id


def _of_database(store: "Store") -> list[Finding]:
    if store.ledger.engine.dialect.name != "sqlite":
        return []
    with reading(store.ledger.engine) as connection:
        said = [str(row[0]) for row in connection.exec_driver_sql("PRAGMA integrity_check(10)")]
        loose = len(connection.exec_driver_sql("PRAGMA foreign_key_check").all())
    found = [Finding("database", f"SQLite says: {one}; go back to a backup") for one in said if one != "ok"]
    return found + ([Finding("database", f"{loose} rows belong to nothing")] if loose else [])


def _of_ledger(store: "Store", memory: Found) -> list[Finding]:
    """A memory's own rows; those of its parent are checked there."""

    def finding(what: str, row: int | None, says: str) -> Finding:
        return Finding(what, says, memory.owner, memory.name, row)

    found, first = list[Finding](), (memory.parent_seq or 0) + 1
    columns = [writes.c[name] for name in ("seq", "kind", "target", "text", "ids", "cuts", "tokens", "bytes")]
    columns += [writes.c.sha256, writes.c.redacted_at]
    with reading(store.ledger.engine) as connection:
        memory = queries.current(connection, memory)
        own = queries.rows_of(connection, memory)
        kinds = {row.seq: row.kind for row in connection.execute(select(writes.c.seq, writes.c.kind).where(own))}
        lacking = [seq for seq in range(1, memory.version + 1) if seq not in kinds]
        if lacking:
            found.append(finding("ledger", lacking[0], f"{len(lacking)} of {memory.version} rows are missing"))
        asked = select(*columns).where(writes.c.memory == memory.id).order_by(writes.c.seq)
        known = ["", *(kinds.get(seq, "") for seq in range(1, memory.version + 1))]
        for row in connection.execute(asked.execution_options(yield_per=500)):
            if not first <= row.seq <= memory.version:
                found.append(finding("ledger", row.seq, f"it is not among rows {first} to {memory.version}"))
            elif problem := misplaced(row.kind, row.seq, row.target, known):
                found.append(finding("ledger", row.seq, problem))
            if problem := _unfitting(row):
                found.append(finding("content", row.seq, problem))
    return found


def _unfitting(row: Any) -> str | None:
    """What is wrong with what a row says."""
    if row.kind != "write" or row.redacted_at is not None:
        left = [name for name in ("text", "ids", "cuts", "sha256") if getattr(row, name) is not None]
        return f"it should say nothing, and has {', '.join(left)}" if left else None
    if row.ids is None or row.cuts is None:
        return "it is a write without token ids"
    content = Content(row.text, row.ids, tuple((tokens, characters) for tokens, characters in row.cuts))
    if problem := unfitting(content, row.sha256):
        return problem
    return None if (row.tokens, row.bytes) == (content.tokens, content.nbytes) else "its sizes are not those it has"


def _of_snapshots(store: "Store", memory: Found, repair: bool) -> list[Finding]:
    with reading(store.ledger.engine) as connection:
        rows = connection.execute(select(snapshots).where(snapshots.c.memory == memory.id)).all()
    found = list[Finding]()
    for row in rows:
        path = store.snapshots.folder / memory.id / row.uri
        if problem := _wrong(store, memory, row.seq, numbers(row.holds), path, queries.aware(row.created), row.stamp):
            found.append(Finding("snapshot", problem, memory.owner, memory.name, row.seq, repaired=repair))
            if repair:
                store.snapshots.discard(memory.id, row.seq)
    return found


def _wrong(store: "Store", memory: Found, seq: int, holds: list[int], path: Path, at: Any, stamped: Any) -> str | None:
    """What is wrong with the snapshot that was made of a memory at row `seq`, at a time, on a machine."""
    with reading(store.ledger.engine) as connection:
        now = queries.current(connection, memory)
        then = holding(queries.entries(connection, replace(now, version=min(seq, now.version)), at))
    if seq > now.version or holds != then:
        return "it holds other writes than the ledger at its row"
    try:
        kept = Memory.load(path)
        fresh = new(store.model_of(memory), memory)
        fresh.memory.spec.require(kept.spec)
        replay(store.model_of(memory), fresh, store.ledger.told(memory, holds))
    except FileNotFoundError:
        return "its file is gone"
    except (RemanenceError, OSError) as error:
        return str(error).partition("\n")[0]
    same = stamped == stamp(store.model_of(memory))
    return difference(kept.state(), fresh.memory.to("cpu").state(), 0.0 if same else TOLERANCE)


def difference(kept: MemoryState, fresh: MemoryState, tolerance: float) -> str | None:
    """In what two memories differ that an answer could depend on, but for numbers that only count; None: in nothing."""
    one, other = _plain(kept), _plain(fresh)
    if named := [name for name in sorted(one.keys() | other.keys()) if one.get(name) != other.get(name)]:
        return f"replayed, it has another {named[0]}"
    if kept.blocks.keys() != fresh.blocks.keys():
        return "replayed, it has other slots"
    pairs = [(kept.tensors, fresh.tensors), *((kept.blocks[name], fresh.blocks[name]) for name in kept.blocks)]
    return next(filter(None, (_apart(left, right, tolerance) for left, right in pairs)), None)


def _plain(state: MemoryState) -> dict[str, Any]:
    header = state.header.to_json()
    made = {name: value for name, value in header.items() if name not in _COUNTERS}
    made["writes"] = [{**record, "time": str(record["time"])} for record in header["writes"]]
    if header["chunks"] is not None:
        chunks = {name: value for name, value in header["chunks"].items() if name not in ("next_key", "dropped")}
        chunks["items"] = [{**item, "key": 0} for item in chunks["items"]]
        made["chunks"] = chunks
    return made


def _apart(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor], tolerance: float) -> str | None:
    if one.keys() != other.keys():
        return "replayed, it has other tensors"
    for name in one:
        left, right = one[name].cpu(), other[name].cpu()
        if left.shape != right.shape or left.dtype != right.dtype:
            return f"replayed, its {name} have another shape"
        if torch.equal(left, right):
            continue
        if not tolerance or left.dtype not in _ROUNDED:
            return f"replayed, its {name} are others"
        left, right = left.double(), right.double()
        allowed = 1.0 if one[name].dtype == torch.int8 else tolerance + _ROUNDED[one[name].dtype] * right.abs()
        if bool(((left - right).abs() > allowed).any()):
            return f"replayed, its {name} are {float((left - right).abs().max()):.1e} apart"
    return None


def _of_files(store: "Store", repair: bool) -> list[Finding]:
    """Files of snapshots that nothing names: a process was killed between the file and its row, or the other way."""
    folder = store.snapshots.folder
    with reading(store.ledger.engine) as connection:
        named = {(row.memory, row.uri) for row in connection.execute(select(snapshots.c.memory, snapshots.c.uri))}
    left = [
        path
        for path in sorted(folder.glob("*/*"))
        if (path.parent.name, path.name.removesuffix(".longterm")) not in named
        and time.time() - path.stat().st_mtime > SETTLED
    ]
    if left and repair:
        store.snapshots.remove(left)
    says = f"{len(left)} files of snapshots that nothing names are left in {folder}"
    return [Finding("file", says, repaired=repair)] if left else []


def _of_index(store: "Store", repair: bool) -> list[Finding]:
    with reading(store.ledger.engine) as connection:
        problems = fulltext.problems(connection)
    if problems and repair:
        with writing(store.ledger.engine) as connection:
            fulltext.rebuild(connection)
    return [Finding("index", f"the index for searches {one}", repaired=repair) for one in problems]
