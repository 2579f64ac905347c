"""Stores, files, memberships, passages."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision: str | None = None


def upgrade() -> None:
    _stores_and_files()
    _memberships_and_passages()


def downgrade() -> None:
    for table in ("passages", "memberships", "files", "stores"):
        op.drop_table(table)


def _stores_and_files() -> None:
    op.create_table(
        "stores",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(255), nullable=False),
        sa.Column("name", sa.Text, nullable=False),
        sa.Column("metadata", sa.JSON, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.Column("last_active_at", sa.BigInteger, nullable=False),
        sa.Column("version", sa.BigInteger, nullable=False),
        sa.Column("embedder", sa.Text),
        sa.Column("dimension", sa.Integer),
    )
    op.create_index("stores_by_name", "stores", ["tenant", "name"])
    op.create_table(
        "files",
        sa.Column("id", sa.String(64), primary_key=True),
        sa.Column("tenant", sa.String(255), nullable=False),
        sa.Column("filename", sa.Text, nullable=False),
        sa.Column("bytes", sa.BigInteger, nullable=False),
        sa.Column("content_hash", sa.String(64), nullable=False),
        sa.Column("purpose", sa.String(64), nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
    )
    op.create_index("ix_files_tenant", "files", ["tenant"])
    op.create_index("ix_files_content_hash", "files", ["content_hash"])


def _memberships_and_passages() -> None:
    op.create_table(
        "memberships",
        sa.Column(
            "store_id",
            sa.String(64),
            sa.ForeignKey("stores.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column(
            "file_id",
            sa.String(64),
            sa.ForeignKey("files.id", ondelete="CASCADE"),
            primary_key=True,
        ),
        sa.Column("source", sa.Text),
        sa.Column("status", sa.String(16), nullable=False),
        sa.Column("error_code", sa.String(64)),
        sa.Column("error_message", sa.Text),
        sa.Column("indexed_hash", sa.String(64)),
        sa.Column("chunks", sa.Integer, nullable=False),
        sa.Column("usage_bytes", sa.BigInteger, nullable=False),
        sa.Column("attributes", sa.JSON, nullable=False),
        sa.Column("chunking", sa.JSON, nullable=False),
        sa.Column("created_at", sa.BigInteger, nullable=False),
        sa.UniqueConstraint("store_id", "source", name="one_file_per_source"),
    )
    op.create_index("ix_memberships_file_id", "memberships", ["file_id"])
    op.create_table(
        "passages",
        sa.Column("store_id", sa.String(64), primary_key=True),
        sa.Column("file_id", sa.String(64), primary_key=True),
        sa.Column("content_hash", sa.String(64), primary_key=True),
        sa.Column("chunk", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("text", sa.Text, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("headings", sa.JSON, nullable=False),
        sa.Column("page", sa.Integer),
        sa.ForeignKeyConstraint(
            ["store_id", "file_id"],
            ["memberships.store_id", "memberships.file_id"],
            ondelete="CASCADE",
        ),
    )
    op.create_index("passages_by_file", "passages", ["file_id", "chunk"])
