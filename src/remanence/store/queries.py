"""What the ledger's transactions are made of: each takes a connection on which one is open."""

import secrets
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Connection, RowMapping, and_, func, insert, or_, select, update

from remanence.errors import ConflictError, NotFoundError, QuotaError
from remanence.store import fulltext
from remanence.store.history import holding, state_of
from remanence.store.inputs import name_in
from remanence.store.rows import Found, Row
from remanence.store.schema import audit, memories, owners, writes

NEVER = datetime(1, 1, 1, tzinfo=UTC)  # before which nothing is past its time
DUPLICATE = timedelta(minutes=10)  # within which the same text told again is the same write, where a key is given
SHOWN = [
    writes.c[name]
    for name in (
        *("seq", "kind", "created", "target", "text", "tokens", "source"),
        *("metadata", "actor", "expires_at", "redacted_at"),
    )
]


def now() -> datetime:
    return datetime.now(UTC)


def aware(time: datetime | None) -> datetime | None:
    """SQLite gives times back without their zone, which is UTC."""
    return None if time is None else time.replace(tzinfo=UTC) if time.tzinfo is None else time.astimezone(UTC)


def enter_owner(connection: Connection, owner: str) -> None:
    if connection.execute(select(owners.c.id).where(owners.c.id == owner)).first() is None:
        connection.execute(insert(owners).values(id=owner, created=now()))


def enter_memory(
    connection: Connection,
    owner: str,
    name: str,
    settings: Mapping[str, Any],
    action: str,
    actor: str | None,
    detail: Mapping[str, Any] | None = None,
    **more: Any,
) -> Found:
    """A new memory; `detail` is for the audit.

    Raises:
        InvalidInputError: a name is none. ConflictError: the owner has a memory of this name.
    """
    for what, text in (("owner", owner), ("name", name)):
        name_in(what, text)
    enter_owner(connection, owner)
    require_free(connection, owner, name)
    values: dict[str, Any] = {"id": secrets.token_hex(16), "owner": owner, "name": name, "settings": dict(settings)}
    values |= {"head": 0, "metadata": {}, "created": now()} | more
    connection.execute(insert(memories).values(values))
    note(connection, owner, values["id"], action, actor, **(detail or {}))
    return require(connection, owner, name)


def found_of(row: RowMapping) -> Found:
    values = {name: row[name] for name in ("id", "owner", "name", "settings", "fingerprint", "parent", "parent_seq")}
    created = aware(row["created"])
    assert created is not None
    return Found(
        **values, version=row["head"], metadata=row["metadata"], created=created, expires_at=aware(row["expires_at"])
    )


def look_up(connection: Connection, owner: str, name: str) -> Found | None:
    row = connection.execute(select(memories).where(memories.c.owner == owner, memories.c.name == name)).mappings()
    found = row.first()
    return None if found is None else found_of(found)


def require_free(connection: Connection, owner: str, name: str) -> None:
    if look_up(connection, owner, name) is not None:
        raise ConflictError(f"{owner} has a memory {name!r} already")


def require(connection: Connection, owner: str, name: str) -> Found:
    found = look_up(connection, owner, name)
    if found is None:
        raise NotFoundError(f"{owner} has no memory {name!r}; create it first, or list those there are")
    return found


def current(connection: Connection, memory: Found, *, lock: bool = False) -> Found:
    """The memory as it is now.

    Args:
        lock: no other transaction writes to it until this one ends.

    Raises:
        NotFoundError: it is gone, or another owner's.
    """
    asked = select(memories).where(memories.c.id == memory.id, memories.c.owner == memory.owner)
    row = connection.execute(asked.with_for_update() if lock else asked).mappings().first()
    if row is None:
        raise NotFoundError(f"{memory.owner} has no memory {memory.name!r} any more")
    return found_of(row)


def locked(connection: Connection, memory: Found) -> Found:
    return current(connection, memory, lock=True)


def change(connection: Connection, memory: Found, **values: Any) -> None:
    at = and_(memories.c.id == memory.id, memories.c.owner == memory.owner)
    if connection.execute(update(memories).where(at).values(**values)).rowcount != 1:
        raise NotFoundError(f"{memory.owner} has no memory {memory.name!r} any more")


def expect(current: Found, version: int | None) -> None:
    if version is not None and version != current.version:
        raise ConflictError(f"{current.name} is at version {current.version}, not {version}; look at it again")


def forks_of(connection: Connection, memory: str) -> list[Found]:
    found = list[Found]()
    for row in connection.execute(select(memories).where(memories.c.parent == memory)).mappings():
        found += [found_of(row), *forks_of(connection, row["id"])]
    return found


def segments_of(connection: Connection, memory: Found) -> list[tuple[str, int]]:
    """Where a memory's rows stand: its own, and its ancestors' up to the rows where the forks were made."""
    found, up_to, at = list[tuple[str, int]](), memory.version, memory
    while True:
        found.append((at.id, up_to))
        if at.parent is None:
            return found
        up_to = min(up_to, at.parent_seq or 0)
        at = found_of(connection.execute(select(memories).where(memories.c.id == at.parent)).mappings().one())


def rows_of(connection: Connection, memory: Found) -> Any:
    return or_(*(and_(writes.c.memory == id, writes.c.seq <= end) for id, end in segments_of(connection, memory)))


def entries(connection: Connection, memory: Found, at: datetime | None = None) -> list[Row]:
    """All rows, oldest first, without what they say; writes past their time `at` (None: now) are "expired" ones."""
    columns = [writes.c[name] for name in ("seq", "kind", "target", "created", "redacted_at", "expires_at")]
    asked = select(*columns).where(rows_of(connection, memory)).order_by(writes.c.seq)
    made, at = list[Row](), at or now()
    for row in connection.execute(asked):
        ends = aware(row.expires_at)
        past = "expired" if ends is not None and ends <= at else row.kind
        made.append(Row(row.seq, past if row.redacted_at is None else "redacted", row.created, row.target))
    return made


def row_of(row: Any) -> Row:
    values: dict[str, Any] = {column.name: row._mapping[column.name] for column in SHOWN}
    times = {name: aware(values[name]) for name in ("created", "expires_at", "redacted_at")}
    return Row(**{**values, **times})


def with_states(connection: Connection, memory: Found, rows: list[Row]) -> list[Row]:
    if not rows:
        return []
    known = entries(connection, memory)
    held = set(holding(known))
    return [replace(one, state=state_of(one.seq, known, held)) if one.kind == "write" else one for one in rows]


def require_held(connection: Connection, memory: Found, seq: int, at: datetime | None = None) -> None:
    if seq not in holding(entries(connection, memory, at)):
        raise NotFoundError(f"{memory.name} holds no write {seq}; list its writes to see those it holds")


def told_before(connection: Connection, memory: Found, digest: str, key: str | None, auto: bool) -> Row | None:
    """The row of a write that was told before, by its key or, asked for, by its text, if that is held."""
    asked = select(*SHOWN, writes.c.sha256).where(rows_of(connection, memory), writes.c.kind == "write")
    if key is not None:
        row = connection.execute(asked.where(writes.c.idempotency_key == key)).first()
        if row is not None and row.sha256 not in (digest, None):
            raise ConflictError(f"idempotency key {key!r} was given with another text before")
    elif auto:
        recent = asked.where(writes.c.sha256 == digest, writes.c.created > now() - DUPLICATE)
        row = connection.execute(recent.order_by(writes.c.seq.desc())).first()
    else:
        return None
    if row is None:
        return None
    [found] = with_states(connection, memory, [row_of(row)])
    return found if key is not None or found.state == "held" else None


def used_by(connection: Connection, owner: str) -> dict[str, int]:
    asked = select(func.count(), func.coalesce(func.sum(writes.c.bytes), 0)).select_from(writes.join(memories))
    count, size = connection.execute(asked.where(memories.c.owner == owner, writes.c.kind == "write")).one()
    return {"writes": int(count), "bytes": int(size)}


def check_quota(connection: Connection, owner: str, coming: int, count: int = 1) -> None:
    """Raise QuotaError where so many bytes in so many writes are more than an owner has room for."""
    quota = connection.execute(select(owners).where(owners.c.id == owner)).mappings().one()
    if quota["max_bytes"] is None and quota["max_writes"] is None:
        return
    used = used_by(connection, owner)
    for name, more in (("bytes", coming), ("writes", count)):
        most = quota[f"max_{name}"]
        if most is not None and used[name] + more > most:
            raise QuotaError(
                f"{owner} may keep {most:,} {name}, and has {used[name]:,}; erase some, or raise the quota"
            )


def append(connection: Connection, memory: Found, kind: str, target: int | None, **values: Any) -> Row:
    row: dict[str, Any] = {
        "memory": memory.id,
        "seq": memory.version + 1,
        "kind": kind,
        "target": target,
        "created": now(),
    }
    row |= {"tokens": 0, "bytes": 0, "metadata": {}} | values
    made = connection.execute(insert(writes).values(row).returning(writes.c.id)).scalar_one()
    if row.get("text"):
        fulltext.add(connection, made, memory.id, row["text"])
    change(connection, memory, head=row["seq"])
    note(connection, memory.owner, memory.id, kind, row.get("actor"), seq=row["seq"], target=target)
    shown: dict[str, Any] = {column.name: row.get(column.name) for column in SHOWN}
    return Row(**shown, state="held" if kind == "write" else "")


def note(connection: Connection, owner: str, memory: str | None, action: str, actor: str | None, **detail: Any) -> None:
    values = {"created": now(), "owner": owner, "memory": memory, "action": action, "actor": actor, "detail": detail}
    connection.execute(insert(audit).values(values))
