"""Full-text search in the texts of writes: FTS5 in SQLite, tsvector in PostgreSQL."""

import re
from collections.abc import Sequence

from sqlalchemy import Connection, text

_MOST = 1000  # texts that a search looks at
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


def search(connection: Connection, segments: Sequence[tuple[str, int]], query: str) -> list[int]:
    """Numbers of the rows of a memory that have all words of a query, best first; of very many, the newest ones.

    The databases do not rank: SQLite would look at all texts that have the words, whoever's they are.

    Args:
        segments: ids of memories, and up to which of their rows.
    """
    words = re.findall(r"\w+", query.casefold())
    if not words:
        return []
    bounds = " OR ".join(f"(w.memory = :m{n} AND w.seq <= :s{n})" for n in range(len(segments)))
    values = {key: value for n, (id, end) in enumerate(segments) for key, value in ((f"m{n}", id), (f"s{n}", end))}
    if connection.dialect.name == "sqlite":
        among = " OR ".join(f'memory : "{id}"' for id, _ in segments)
        values["query"] = f"({among}) AND text : (" + " AND ".join(f'"{word}"' for word in words) + ")"
        found = (
            "SELECT w.seq, w.text FROM writes_fts f JOIN writes w ON w.id = f.rowid "
            f"WHERE writes_fts MATCH :query AND ({bounds}) ORDER BY f.rowid DESC LIMIT {_MOST}"
        )
    else:
        values["query"] = " ".join(words)
        found = (
            f"SELECT w.seq, w.text FROM writes w WHERE {_VECTOR.format('w.')} @@ plainto_tsquery('simple', :query) "
            f"AND ({bounds}) ORDER BY w.id DESC LIMIT {_MOST}"
        )
    rows = connection.execute(text(found), values).all()
    usual = sum(len(row.text) for row in rows) / max(1, len(rows))
    return [row.seq for row in sorted(rows, key=lambda row: -_score(row.text.casefold(), words, usual))]


def _score(content: str, words: Sequence[str], usual: float) -> float:
    """BM25 of a text of which others have all these words too, so that no word is rarer than another."""
    slack = 1.2 * (0.25 + 0.75 * len(content) / usual)
    return sum(count / (count + slack) for count in map(content.count, words))
