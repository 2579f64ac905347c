"""Alembic's entry: runs the migrations on the connection that `server.catalog.database` hands over."""

from __future__ import annotations

from alembic import context

from server.catalog.tables import metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    # SQLite cannot alter a column in place: alembic then copies the table.
    render_as_batch=True,
)
with context.begin_transaction():
    context.run_migrations()
