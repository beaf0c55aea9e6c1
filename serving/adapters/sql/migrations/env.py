"""Run by Alembic, on the connection that `serving.adapters.sql.schema` hands it."""

from __future__ import annotations

from alembic import context

context.configure(connection=context.config.attributes["connection"])
with context.begin_transaction():
    context.run_migrations()
