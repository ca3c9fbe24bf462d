"""What Alembic runs to bring the store to the newest tables, over the connection that the store hands it (hop 8)."""

from __future__ import annotations

from alembic import context

from plugin.tables import metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, transaction_per_migration=True
)
with context.begin_transaction():
    context.run_migrations()
