"""The tables of a store. Alembic brings older ones here; see `migrations`."""

from sqlalchemy import (
    JSON,
    BigInteger,
    Column,
    DateTime,
    ForeignKey,
    Index,
    Integer,
    LargeBinary,
    MetaData,
    String,
    Table,
    Text,
    UniqueConstraint,
)

metadata = MetaData(
    naming_convention={
        "ix": "ix_%(column_0_label)s",
        "uq": "uq_%(table_name)s_%(column_0_name)s",
        "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
        "pk": "pk_%(table_name)s",
    }
)
_Id = BigInteger().with_variant(Integer, "sqlite")  # SQLite numbers rows by itself in INTEGER columns only
_Time = DateTime(timezone=True)

owners = Table(
    "owners",
    metadata,
    Column("id", String(200), primary_key=True),
    Column("created", _Time, nullable=False),
    Column("max_bytes", BigInteger),  # quotas; NULL: none
    Column("max_writes", BigInteger),
)

memories = Table(
    "memories",
    metadata,
    Column("id", String(32), primary_key=True),
    Column("owner", ForeignKey("owners.id"), nullable=False),
    Column("name", String(200), nullable=False),
    Column("settings", JSON, nullable=False),  # model, writer, seed, head, date: what a replay begins with
    Column("fingerprint", String(200)),  # of the model's weights, once they were loaded
    Column("head", BigInteger, nullable=False),  # number of the newest row
    Column("parent", ForeignKey("memories.id")),
    Column("parent_seq", BigInteger),  # rows of the parent up to here are this memory's too
    Column("metadata", JSON, nullable=False),
    Column("created", _Time, nullable=False),
    Column("expires_at", _Time),
    UniqueConstraint("owner", "name"),
    Index("ix_memories_parent", "parent"),
)

writes = Table(
    "writes",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("memory", ForeignKey("memories.id"), nullable=False),
    Column("seq", BigInteger, nullable=False),  # counts up within a memory, its parent's rows included
    Column("kind", String(16), nullable=False),  # write, forget, undo, expire, redact
    Column("target", BigInteger),  # the row it is about; of a write: the write that it takes the place of
    Column("text", Text),
    Column("ids", LargeBinary),  # token ids, int32, little-endian
    Column("cuts", JSON),  # of each chunk: tokens, and characters of `text` (-1: it has no text)
    Column("tokens", Integer, nullable=False),
    Column("bytes", Integer, nullable=False),  # of text and ids, for quotas
    Column("source", Text),
    Column("metadata", JSON, nullable=False),
    Column("actor", String(200)),
    Column("idempotency_key", String(200)),
    Column("sha256", String(64)),
    Column("stamp", JSON),  # of a learned write: what it was encoded on
    Column("expires_at", _Time),
    Column("redacted_at", _Time),
    Column("created", _Time, nullable=False),
    UniqueConstraint("memory", "seq"),
    Index("ix_writes_key", "memory", "idempotency_key", unique=True),
    Index("ix_writes_sha256", "memory", "sha256"),
    Index("ix_writes_expires", "expires_at"),
    sqlite_autoincrement=True,
)

snapshots = Table(
    "snapshots",
    metadata,
    Column("memory", ForeignKey("memories.id"), primary_key=True),
    Column("seq", BigInteger, primary_key=True),
    Column("uri", Text, nullable=False),
    Column("holds", Text, nullable=False),  # the writes in it: "1-3,5"
    Column("bytes", BigInteger, nullable=False),
    Column("stamp", JSON),  # what it was encoded on
    Column("created", _Time, nullable=False),
)

audit = Table(
    "audit",
    metadata,
    Column("id", _Id, primary_key=True, autoincrement=True),
    Column("created", _Time, nullable=False),
    Column("owner", String(200), nullable=False),
    Column("memory", String(32)),
    Column("action", String(32), nullable=False),
    Column("actor", String(200)),
    Column("detail", JSON, nullable=False),  # numbers and names of rows; never text
    Index("ix_audit_owner", "owner", "id"),
    sqlite_autoincrement=True,
)
