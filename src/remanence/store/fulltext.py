"""Full-text search in the texts of writes: FTS5 in SQLite, tsvector in PostgreSQL."""

import re
from collections.abc import Iterator, Sequence

from sqlalchemy import Connection, text

_SQLITE = (  # memory ids stand in it too, so that a search looks at one memory's texts only
    "CREATE VIRTUAL TABLE writes_fts USING fts5(memory, text, content='writes', content_rowid='id')",
)
_VECTOR = "to_tsvector('simple', coalesce({}text, ''))"
_POSTGRESQL = (f"CREATE INDEX ix_writes_text ON writes USING gin (({_VECTOR.format('')}))",)


def create(connection: Connection) -> None:
    for statement in _SQLITE if connection.dialect.name == "sqlite" else _POSTGRESQL:
        connection.execute(text(statement))


def add(connection: Connection, row: int, memory: str, content: str) -> None:
    """Index the text of row `row` (its `id`). PostgreSQL does so by itself."""
    if connection.dialect.name == "sqlite":
        into = text("INSERT INTO writes_fts(rowid, memory, text) VALUES (:row, :memory, :text)")
        connection.execute(into, {"row": row, "memory": memory, "text": content})


def add_all(connection: Connection, memory: str) -> None:
    """Index all texts of a memory that was entered at once."""
    if connection.dialect.name == "sqlite":
        into = "INSERT INTO writes_fts(rowid, memory, text) SELECT id, memory, text FROM writes "
        connection.execute(text(f"{into} WHERE memory = :memory AND text IS NOT NULL"), {"memory": memory})


def rebuild(connection: Connection) -> None:
    """Make the index anew from the texts that are there, so that nothing of others is left in it."""
    if connection.dialect.name == "sqlite":
        connection.execute(text("INSERT INTO writes_fts(writes_fts) VALUES ('rebuild')"))


def problems(connection: Connection) -> list[str]:
    """What is wrong with the index: texts that it lacks, and words in it of texts that are gone."""
    if connection.dialect.name != "sqlite":
        return []
    # `sz` holds how many words of each column are in the index: of the memory's id, which is one, and of the text.
    asked = {
        "lacks the texts of {} writes": "SELECT count(*) FROM writes w LEFT JOIN writes_fts_docsize d ON d.id = w.id "
        "WHERE w.text IS NOT NULL AND d.id IS NULL",
        "holds words of {} writes whose texts are gone": "SELECT count(*) FROM writes_fts_docsize d "
        "LEFT JOIN writes w ON w.id = d.id WHERE w.id IS NULL OR (w.text IS NULL AND substr(d.sz, 2) != x'00')",
    }
    counts = {what: connection.execute(text(query)).scalar_one() for what, query in asked.items()}
    return [what.format(count) for what, count in counts.items() if count]


def search(connection: Connection, segments: Sequence[tuple[str, int]], query: str) -> Iterator[int]:
    """Numbers of the rows of a memory that have all words of a query, best first.

    Args:
        segments: ids of memories, and up to which of their rows.
    """
    words = re.findall(r"\w+", query)
    if not words:
        return
    bounds = " OR ".join(f"(w.memory = :m{n} AND w.seq <= :s{n})" for n in range(len(segments)))
    values = {key: value for n, (id, end) in enumerate(segments) for key, value in ((f"m{n}", id), (f"s{n}", end))}
    if connection.dialect.name == "sqlite":
        among = " OR ".join(f'memory : "{id}"' for id, _ in segments)
        values["query"] = f"({among}) AND text : (" + " AND ".join(f'"{word}"' for word in words) + ")"
        found = (
            "SELECT w.seq FROM writes_fts f JOIN writes w ON w.id = f.rowid "
            f"WHERE writes_fts MATCH :query AND ({bounds}) ORDER BY bm25(writes_fts, 0.0, 1.0), w.seq DESC"
        )
    else:
        values["query"] = " ".join(words)
        vector, asked = _VECTOR.format("w."), "plainto_tsquery('simple', :query)"
        found = (
            f"SELECT w.seq FROM writes w WHERE {vector} @@ {asked} AND ({bounds}) "
            f"ORDER BY ts_rank({vector}, {asked}) DESC, w.seq DESC"
        )
    yield from connection.execute(text(found), values).scalars()
