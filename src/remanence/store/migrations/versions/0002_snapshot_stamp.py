"""Snapshots say what they were encoded on."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    op.add_column("snapshots", sa.Column("stamp", sa.JSON(), nullable=True))
