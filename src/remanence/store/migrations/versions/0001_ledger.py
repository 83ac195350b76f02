"""Owners, memories, writes, snapshots, audit."""

import sqlalchemy as sa
from alembic import op

from remanence.store import fulltext

revision = "0001"
down_revision = None


def upgrade() -> None:
    op.create_table(
        "audit",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("owner", sa.String(length=200), nullable=False),
        sa.Column("memory", sa.String(length=32), nullable=True),
        sa.Column("action", sa.String(length=32), nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=True),
        sa.Column("detail", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_audit"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_audit_owner", "audit", ["owner", "id"], unique=False)
    op.create_table(
        "owners",
        sa.Column("id", sa.String(length=200), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("max_bytes", sa.BigInteger(), nullable=True),
        sa.Column("max_writes", sa.BigInteger(), nullable=True),
        sa.PrimaryKeyConstraint("id", name="pk_owners"),
    )
    op.create_table(
        "memories",
        sa.Column("id", sa.String(length=32), nullable=False),
        sa.Column("owner", sa.String(length=200), nullable=False),
        sa.Column("name", sa.String(length=200), nullable=False),
        sa.Column("settings", sa.JSON(), nullable=False),
        sa.Column("fingerprint", sa.String(length=200), nullable=True),
        sa.Column("head", sa.BigInteger(), nullable=False),
        sa.Column("parent", sa.String(length=32), nullable=True),
        sa.Column("parent_seq", sa.BigInteger(), nullable=True),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(["owner"], ["owners.id"], name="fk_memories_owner_owners"),
        sa.ForeignKeyConstraint(["parent"], ["memories.id"], name="fk_memories_parent_memories"),
        sa.PrimaryKeyConstraint("id", name="pk_memories"),
        sa.UniqueConstraint("owner", "name", name="uq_memories_owner"),
    )
    op.create_index("ix_memories_parent", "memories", ["parent"], unique=False)
    op.create_table(
        "snapshots",
        sa.Column("memory", sa.String(length=32), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("uri", sa.Text(), nullable=False),
        sa.Column("holds", sa.Text(), nullable=False),
        sa.Column("bytes", sa.BigInteger(), nullable=False),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["memory"], ["memories.id"], name="fk_snapshots_memory_memories"),
        sa.PrimaryKeyConstraint("memory", "seq", name="pk_snapshots"),
    )
    op.create_table(
        "writes",
        sa.Column("id", sa.BigInteger().with_variant(sa.Integer(), "sqlite"), autoincrement=True, nullable=False),
        sa.Column("memory", sa.String(length=32), nullable=False),
        sa.Column("seq", sa.BigInteger(), nullable=False),
        sa.Column("kind", sa.String(length=16), nullable=False),
        sa.Column("target", sa.BigInteger(), nullable=True),
        sa.Column("text", sa.Text(), nullable=True),
        sa.Column("ids", sa.LargeBinary(), nullable=True),
        sa.Column("cuts", sa.JSON(), nullable=True),
        sa.Column("tokens", sa.Integer(), nullable=False),
        sa.Column("bytes", sa.Integer(), nullable=False),
        sa.Column("source", sa.Text(), nullable=True),
        sa.Column("metadata", sa.JSON(), nullable=False),
        sa.Column("actor", sa.String(length=200), nullable=True),
        sa.Column("idempotency_key", sa.String(length=200), nullable=True),
        sa.Column("sha256", sa.String(length=64), nullable=True),
        sa.Column("stamp", sa.JSON(), nullable=True),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("redacted_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("created", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["memory"], ["memories.id"], name="fk_writes_memory_memories"),
        sa.PrimaryKeyConstraint("id", name="pk_writes"),
        sa.UniqueConstraint("memory", "seq", name="uq_writes_memory"),
        sqlite_autoincrement=True,
    )
    op.create_index("ix_writes_expires", "writes", ["expires_at"], unique=False)
    op.create_index("ix_writes_key", "writes", ["memory", "idempotency_key"], unique=True)
    op.create_index("ix_writes_sha256", "writes", ["memory", "sha256"], unique=False)
    fulltext.create(op.get_bind())
