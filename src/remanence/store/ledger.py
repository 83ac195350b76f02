"""The ledger: who owns which memory, and every write that was acknowledged. It knows no tensors and no model.

A call is one transaction. Whatever names a memory names its owner too, and finds nothing of another's.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from datetime import datetime
from typing import Any

from sqlalchemy import Engine, and_, or_, select, update

from remanence.errors import ConflictError, NotFoundError, StoreError
from remanence.store import fulltext, queries
from remanence.store.database import reading, writing
from remanence.store.history import holding, undoable
from remanence.store.inputs import about_of, name_in, page_of
from remanence.store.rows import Content, Found, Row, Told
from remanence.store.schema import audit, memories, owners, writes

PAGE = 100  # rows of a list


class Ledger:
    def __init__(self, engine: Engine) -> None:
        self._engine, self._closed = engine, False

    @property
    def engine(self) -> Engine:
        """Raises StoreError: the store was closed."""
        if self._closed:
            raise StoreError("this store was closed; open it again: Store.open")
        return self._engine

    def close(self) -> None:
        self._closed = True
        self._engine.dispose()

    # Owners and memories

    def set_quota(self, owner: str, *, max_bytes: int | None = None, max_writes: int | None = None) -> None:
        """None: no limit."""
        with writing(self.engine) as connection:
            queries.enter_owner(connection, owner)
            quota = {"max_bytes": max_bytes, "max_writes": max_writes}
            connection.execute(update(owners).where(owners.c.id == owner).values(**quota))

    def quota(self, owner: str) -> dict[str, int | None]:
        """What `set_quota` set."""
        with reading(self.engine) as connection:
            row = connection.execute(select(owners).where(owners.c.id == owner)).mappings().first()
            return {name: None if row is None else row[name] for name in ("max_bytes", "max_writes")}

    def create(
        self,
        owner: str,
        name: str,
        settings: Mapping[str, Any],
        *,
        metadata: Mapping[str, Any] | None = None,
        expires_at: datetime | None = None,
        actor: str | None = None,
    ) -> Found:
        """Raises ConflictError: the owner has one of this name."""
        more: dict[str, Any] = {"metadata": dict(metadata or {}), "expires_at": expires_at}
        with writing(self.engine) as connection:
            return queries.enter_memory(connection, owner, name, settings, "create", actor, **more)

    def find(self, owner: str, name: str) -> Found:
        """Raises NotFoundError: the owner has none of this name."""
        with reading(self.engine) as connection:
            return queries.require(connection, owner, name)

    def list_memories(self, owner: str, *, limit: int = PAGE, after: str = "") -> list[Found]:
        """Memories of an owner in the order of their names, those behind `after`."""
        with reading(self.engine) as connection:
            asked = select(memories).where(memories.c.owner == owner, memories.c.name > after)
            return [
                queries.found_of(row)
                for row in connection.execute(asked.order_by(memories.c.name).limit(page_of(limit))).mappings()
            ]

    def list_owners(self, *, limit: int = PAGE, after: str = "") -> list[str]:
        with reading(self.engine) as connection:
            asked = select(owners.c.id).where(owners.c.id > after).order_by(owners.c.id).limit(page_of(limit))
            return list(connection.execute(asked).scalars())

    def rename(self, memory: Found, name: str, *, actor: str | None = None) -> Found:
        name_in("name", name)
        with writing(self.engine) as connection:
            queries.require_free(connection, memory.owner, name)
            queries.change(connection, memory, name=name)
            queries.note(connection, memory.owner, memory.id, "rename", actor)
            return queries.require(connection, memory.owner, name)

    def bind(self, memory: Found, fingerprint: str) -> None:
        """Remember the weights that a memory is encoded with, the first time that they are there."""
        with writing(self.engine) as connection:
            at = and_(memories.c.id == memory.id, memories.c.fingerprint.is_(None))
            connection.execute(update(memories).where(at).values(fingerprint=fingerprint))

    def fork(self, memory: Found, name: str, *, actor: str | None = None) -> Found:
        """Another memory that begins with the rows of this one, as they are now."""
        name_in("name", name)
        with writing(self.engine) as connection:
            current = queries.locked(connection, memory)
            about = {"fingerprint": current.fingerprint, "head": current.version, "metadata": dict(current.metadata)}
            about |= {"parent": current.id, "parent_seq": current.version}
            detail = {"parent": current.id, "at": current.version}
            return queries.enter_memory(
                connection, memory.owner, name, current.settings, "fork", actor, detail, **about
            )

    def forks(self, memory: Found) -> list[Found]:
        """All that begin with rows of this memory, forks of forks too."""
        with reading(self.engine) as connection:
            return queries.forks_of(connection, memory.id)

    # Writes

    def tell(
        self,
        memory: Found,
        content: Content,
        *,
        source: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        actor: str | None = None,
        expires_at: datetime | None = None,
        idempotency_key: str | None = None,
        supersedes: int | None = None,
        version: int | None = None,
        created: datetime | None = None,
        stamp: Mapping[str, Any] | None = None,
    ) -> Row:
        """Enter a write; it is acknowledged when this returns.

        Args:
            idempotency_key: the same key gives the row that is there, or, with "auto", the same text within ten minutes
                does.
            supersedes: a write that is forgotten in the same transaction.
            version: what the caller thinks is the newest row.
            created: the time on the row; None: now.
            stamp: the versions that encoded it.

        Raises:
            ConflictError: the memory has another version; or the key stands for another text.
            NotFoundError: there is no write to supersede.
            QuotaError: the owner has no room left.
        """
        digest = content.digest
        key = None if idempotency_key == "auto" else idempotency_key
        about = about_of(source, metadata, actor, key, expires_at)
        with writing(self.engine) as connection:
            current = queries.locked(connection, memory)
            if (there := queries.told_before(connection, current, digest, key, idempotency_key == "auto")) is not None:
                return replace(there, deduplicated=True)
            queries.expect(current, version)
            if supersedes is not None:
                queries.require_held(connection, current, supersedes)
            queries.check_quota(connection, memory.owner, content.nbytes)
            values: dict[str, Any] = {
                "text": content.text,
                "ids": content.ids,
                "cuts": [list(cut) for cut in content.cuts],
            }
            values |= {"tokens": content.tokens, "bytes": content.nbytes, "sha256": digest, "stamp": stamp}
            values |= {**about, "idempotency_key": key, "created": created or queries.now()}
            return queries.append(connection, current, "write", supersedes, **values)

    def forget(
        self, memory: Found, seq: int, *, actor: str | None = None, version: int | None = None, kind: str = "forget"
    ) -> Row:
        """Take a write out. Raises NotFoundError: the memory does not hold it."""
        with writing(self.engine) as connection:
            current = queries.locked(connection, memory)
            queries.expect(current, version)
            queries.require_held(connection, current, seq, queries.NEVER if kind == "expire" else None)
            return queries.append(connection, current, kind, seq, actor=actor)

    def forget_many(self, memory: Found, seqs: Iterable[int], *, actor: str | None = None) -> list[Row]:
        """Take writes out, all in one transaction; those that the memory does not hold any more are passed over."""
        with writing(self.engine) as connection:
            current, made = queries.locked(connection, memory), list[Row]()
            held = set(holding(queries.entries(connection, current)))
            for seq in (seq for seq in dict.fromkeys(seqs) if seq in held):
                made.append(queries.append(connection, current, "forget", seq, actor=actor))
                current = replace(current, version=made[-1].seq)
            return made

    def undo(
        self, memory: Found, seq: int | None = None, *, actor: str | None = None, version: int | None = None
    ) -> Row:
        """Take back what a row did; None: the newest write or forget that still acts.

        Raises:
            NotFoundError: there is nothing to take back, or no such row.
        """
        with writing(self.engine) as connection:
            current = queries.locked(connection, memory)
            queries.expect(current, version)
            rows = queries.entries(connection, current, queries.NEVER)
            target = undoable(rows) if seq is None else seq
            row = next((one for one in rows if one.seq == target), None)
            if row is None or row.kind in ("redact", "expire"):
                what = "nothing to undo" if seq is None else f"no row {seq} that could be undone"
                raise NotFoundError(f"{memory.name} has {what}")
            return queries.append(connection, current, "undo", row.seq, actor=actor)

    def expired(self, *, at: datetime | None = None) -> list[tuple[Found, int]]:
        """Writes that are held and past their time, with their memories."""
        with reading(self.engine) as connection:
            past = select(writes.c.memory, writes.c.seq).where(writes.c.expires_at <= (at or queries.now()))
            made = list[tuple[Found, int]]()
            for memory, seq in connection.execute(past.where(writes.c.redacted_at.is_(None))):
                own = connection.execute(select(memories).where(memories.c.id == memory)).mappings().one()
                for one in [queries.found_of(own), *queries.forks_of(connection, memory)]:
                    if seq <= one.version and seq in holding(queries.entries(connection, one, queries.NEVER)):
                        made.append((one, seq))
            return made

    # Reading

    def segments(self, memory: Found) -> list[tuple[str, int]]:
        """Where a memory's rows stand: ids of it and its ancestors, and up to which of their rows."""
        with reading(self.engine) as connection:
            return queries.segments_of(connection, memory)

    def version(self, memory: Found) -> int:
        """The number of the newest row, now. Raises NotFoundError: the memory is gone."""
        with reading(self.engine) as connection:
            return queries.current(connection, memory).version

    def holding(self, memory: Found) -> tuple[Found, list[int]]:
        """The memory as it is now, and the numbers of the writes that it holds."""
        with reading(self.engine) as connection:
            current = queries.current(connection, memory)
            return current, holding(queries.entries(connection, current))

    def told(self, memory: Found, seqs: Sequence[int]) -> list[Told]:
        """These writes, for a replay. Raises ConflictError: one was erased meanwhile."""
        columns = [writes.c[name] for name in ("seq", "text", "ids", "cuts", "source", "metadata", "created")]
        found = dict[int, Told]()
        with reading(self.engine) as connection:
            own = queries.rows_of(connection, queries.current(connection, memory))
            for part in (seqs[at : at + 500] for at in range(0, len(seqs), 500)):
                asked = select(*columns).where(own, writes.c.seq.in_(part), writes.c.redacted_at.is_(None))
                for row in connection.execute(asked):
                    cuts = tuple((tokens, characters) for tokens, characters in row.cuts)
                    content, time = Content(row.text, row.ids, cuts), queries.aware(row.created)
                    assert time is not None
                    found[row.seq] = Told(row.seq, content, row.source, row.metadata, time)
        if missing := set(seqs) - found.keys():
            raise ConflictError(f"writes {sorted(missing)} of {memory.name!r} were erased meanwhile; do it again")
        return [found[seq] for seq in seqs]

    def rows(
        self,
        memory: Found,
        *,
        limit: int = PAGE,
        after: int = 0,
        kinds: Iterable[str] = ("write",),
        target: int | None = None,
        newest_first: bool = False,
    ) -> list[Row]:
        """Rows of a memory by their numbers; `target`: those about one row, and it."""
        with reading(self.engine) as connection:
            current = queries.current(connection, memory)
            asked = select(*queries.SHOWN).where(queries.rows_of(connection, current))
            if target is not None:
                asked = asked.where(or_(writes.c.seq == target, writes.c.target == target))
            else:
                asked = asked.where(writes.c.kind.in_(list(kinds)))
            if newest_first:
                before = writes.c.seq < after if after else writes.c.seq > 0
                asked = asked.where(before).order_by(writes.c.seq.desc())
            else:
                asked = asked.where(writes.c.seq > after).order_by(writes.c.seq)
            return queries.with_states(
                connection, current, [queries.row_of(one) for one in connection.execute(asked.limit(page_of(limit)))]
            )

    def row(self, memory: Found, seq: int) -> Row:
        """Raises NotFoundError: the memory has no write of this number."""
        with reading(self.engine) as connection:
            current = queries.current(connection, memory)
            asked = select(*queries.SHOWN).where(
                queries.rows_of(connection, current), writes.c.seq == seq, writes.c.kind == "write"
            )
            row = connection.execute(asked).first()
            if row is None:
                raise NotFoundError(f"{memory.name} has no write {seq}; list its writes to see those it has")
            return queries.with_states(connection, current, [queries.row_of(row)])[0]

    def search(self, memory: Found, query: str, *, limit: int = 20) -> list[Row]:
        """Writes that are held and have all words of the query, best first."""
        with reading(self.engine) as connection:
            current = queries.current(connection, memory)
            held = set(holding(queries.entries(connection, current)))
            hits = fulltext.search(connection, queries.segments_of(connection, current), query)
            best = [seq for seq in hits if seq in held][: page_of(limit)]
            asked = select(*queries.SHOWN).where(queries.rows_of(connection, current), writes.c.seq.in_(best))
            rows = {row.seq: replace(queries.row_of(row), state="held") for row in connection.execute(asked)}
            return [rows[seq] for seq in best]

    def audited(self, owner: str, *, limit: int = PAGE, after: int = 0) -> list[dict[str, Any]]:
        """What was done to memories of an owner, oldest first; never what was said."""
        with reading(self.engine) as connection:
            asked = (
                select(audit)
                .where(audit.c.owner == owner, audit.c.id > after)
                .order_by(audit.c.id)
                .limit(page_of(limit))
            )
            return [{**row, "created": queries.aware(row["created"])} for row in connection.execute(asked).mappings()]

    def used(self, owner: str) -> dict[str, int]:
        """Writes that an owner has on record, and bytes of their texts and ids."""
        with reading(self.engine) as connection:
            return queries.used_by(connection, owner)
