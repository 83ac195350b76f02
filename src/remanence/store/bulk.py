"""All rows of a memory at once: read page by page, and entered in one transaction."""

import base64
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

from sqlalchemy import insert, select

from remanence.store import fulltext, queries
from remanence.store.database import reading, writing
from remanence.store.ledger import Ledger
from remanence.store.rows import Content, Found
from remanence.store.schema import snapshots, writes

_BATCH = 500
Lines = Iterable[tuple[dict[str, Any], Content | None]]  # rows, and what they say
COPIED = ("seq", "kind", "target", "text", "cuts", "source", "metadata", "actor", "idempotency_key", "sha256", "stamp")
TIMES = ("expires_at", "redacted_at", "created")


def rows_of(ledger: Ledger, found: Found) -> Iterator[dict[str, Any]]:
    """Every row of a memory as JSON has it. Pages are read one by one, so that nobody waits for it."""
    columns = [writes.c[name] for name in (*COPIED, "ids", *TIMES)]
    after = 0
    while True:
        with reading(ledger.engine) as connection:
            own = queries.rows_of(connection, queries.current(connection, found))
            asked = select(*columns).where(own, writes.c.seq > after, writes.c.seq <= found.version)
            page = connection.execute(asked.order_by(writes.c.seq).limit(_BATCH)).mappings().all()
        for row in page:
            ids = None if row["ids"] is None else base64.b64encode(row["ids"]).decode()
            yield {name: row[name] for name in COPIED} | {"ids": ids} | {name: text_of(row[name]) for name in TIMES}
        if len(page) < _BATCH:
            return
        after = page[-1]["seq"]


def text_of(time: Any) -> str | None:
    aware = queries.aware(time)
    return None if aware is None else aware.isoformat()


def size_of(lines: Lines) -> tuple[int, int]:
    contents = [content for row, content in lines if row["kind"] == "write"]
    return sum(0 if content is None else content.nbytes for content in contents), len(contents)


def enter(
    ledger: Ledger,
    owner: str,
    name: str,
    settings: Mapping[str, Any],
    lines: Lines,
    size: tuple[int, int],
    actor: str | None,
    *,
    snapshot: Mapping[str, Any] | None = None,
    **more: Any,
) -> Found:
    """A memory and all its rows, in one transaction; `size`: their bytes, and how many are writes."""
    with writing(ledger.engine) as connection:
        found = queries.enter_memory(connection, owner, name, settings, "import", actor, **more)
        queries.check_quota(connection, owner, *size)
        batch, last = list[dict[str, Any]](), 0
        for row, content in lines:
            about: dict[str, Any] = {"ids": None, "tokens": 0, "bytes": 0, "memory": found.id}
            if content is not None:
                about |= {"ids": content.ids, "tokens": content.tokens, "bytes": content.nbytes}
            batch.append(row | about)
            last = row["seq"]
            if len(batch) == _BATCH:
                connection.execute(insert(writes), batch)
                batch = []
        if batch:
            connection.execute(insert(writes), batch)
        queries.change(connection, found, head=last)
        fulltext.add_all(connection, found.id)
        if snapshot:
            connection.execute(insert(snapshots).values(**snapshot))
    return replace(found, version=last)
