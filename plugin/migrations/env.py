"""What Alembic runs to bring the store to the newest tables, over the connection that the store hands it (hop 8)."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import context

from plugin.database import FUNCTIONS, in_postgresql, is_sqlite
from plugin.tables import metadata


def _translate(
    _connection: object, _cursor: object, statement: str, parameters: Any, _context: object, _many: bool
) -> tuple[str, Any]:
    return in_postgresql(statement), parameters


connection: sa.Connection = context.config.attributes["connection"]
context.configure(connection=connection, target_metadata=metadata, transaction_per_migration=True)
if is_sqlite(connection):
    with context.begin_transaction():
        context.run_migrations()
else:
    for function in FUNCTIONS:
        connection.execute(sa.text(function))
    sa.event.listen(connection, "before_cursor_execute", _translate, retval=True)
    try:
        with context.begin_transaction():
            context.run_migrations()
    finally:
        sa.event.remove(connection, "before_cursor_execute", _translate)
