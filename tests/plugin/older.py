"""A store as an earlier version left it: its tables made by the migrations of then, with rows of a store of now."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from alembic import command

from plugin.database import migrations, open_engine


def older(newer: Path, path: Path, revision: str, tables: Sequence[str], said: dict[str, str] | None = None) -> None:
    """Write ``path`` at ``revision`` with the rows of ``newer``; ``said``: SQL in place of a column's own value."""
    engine, config = open_engine(path), migrations()
    with engine.connect() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)
        connection.commit()
        connection.exec_driver_sql("ATTACH ? AS newer", (str(newer),))
        for table in tables:
            names = connection.exec_driver_sql(f"SELECT name FROM pragma_table_info('{table}', 'main')").scalars().all()
            values = ", ".join((said or {}).get(name, name) for name in names)
            connection.exec_driver_sql(
                f"INSERT INTO main.{table} ({', '.join(names)}) SELECT {values} FROM newer.{table}"
            )
        connection.commit()
    engine.dispose()
