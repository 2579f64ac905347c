"""Stores whose index is rebuilt beside the old one, and stores that something else fills."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision: str | None = "0001"


def upgrade() -> None:
    op.add_column("stores", sa.Column("generation", sa.Integer, nullable=False, server_default="0"))
    op.add_column("stores", sa.Column("adopted", sa.JSON(none_as_null=True)))
    op.create_table(
        "staged_passages",
        sa.Column("store_id", sa.String(64), primary_key=True),
        sa.Column("file_id", sa.String(64), primary_key=True),
        sa.Column("content_hash", sa.String(64), primary_key=True),
        sa.Column("chunk", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("headings", sa.JSON, nullable=False),
        sa.Column("page", sa.Integer),
    )


def downgrade() -> None:
    op.drop_table("staged_passages")
    op.drop_column("stores", "adopted")
    op.drop_column("stores", "generation")
