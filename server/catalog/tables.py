"""The catalog's tables, in types that SQLite and PostgreSQL both have. Times are Unix seconds."""

from __future__ import annotations

import sqlalchemy as sa

metadata = sa.MetaData()

stores = sa.Table(
    "stores",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("tenant", sa.String(255), nullable=False),
    sa.Column("name", sa.Text, nullable=False),
    sa.Column("metadata", sa.JSON, nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
    sa.Column("last_active_at", sa.BigInteger, nullable=False),
    sa.Column("version", sa.BigInteger, nullable=False),
    sa.Column("embedder", sa.Text),
    sa.Column("dimension", sa.Integer),
    sa.Column("generation", sa.Integer, nullable=False, server_default="0"),
    sa.Column("adopted", sa.JSON(none_as_null=True)),
    sa.Index("stores_by_name", "tenant", "name"),
)

files = sa.Table(
    "files",
    metadata,
    sa.Column("id", sa.String(64), primary_key=True),
    sa.Column("tenant", sa.String(255), nullable=False, index=True),
    sa.Column("filename", sa.Text, nullable=False),
    sa.Column("bytes", sa.BigInteger, nullable=False),
    sa.Column("content_hash", sa.String(64), nullable=False, index=True),
    sa.Column("purpose", sa.String(64), nullable=False),
    sa.Column("created_at", sa.BigInteger, nullable=False),
)

memberships = sa.Table(
    "memberships",
    metadata,
    sa.Column(
        "store_id", sa.String(64), sa.ForeignKey("stores.id", ondelete="CASCADE"), primary_key=True
    ),
    sa.Column(
        "file_id",
        sa.String(64),
        sa.ForeignKey("files.id", ondelete="CASCADE"),
        primary_key=True,
        index=True,
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

passages = sa.Table(
    "passages",
    metadata,
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
    sa.Index("passages_by_file", "file_id", "chunk"),
)

#: A reindex's passages until its index is complete: what `passages` holds is what searches still see.
staged_passages = sa.Table(
    "staged_passages",
    metadata,
    sa.Column("store_id", sa.String(64), primary_key=True),
    sa.Column("file_id", sa.String(64), primary_key=True),
    sa.Column("content_hash", sa.String(64), primary_key=True),
    sa.Column("chunk", sa.Integer, primary_key=True, autoincrement=False),
    sa.Column("text", sa.Text, nullable=False),
    sa.Column("title", sa.Text, nullable=False),
    sa.Column("headings", sa.JSON, nullable=False),
    sa.Column("page", sa.Integer),
)
