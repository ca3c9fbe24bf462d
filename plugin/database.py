"""The store's database, SQLite in a file or PostgreSQL by URL: all that differs between the two (hop 8).

Both keep the same promise: what ``begin`` returned for is on the server's or this machine's disk.
"""

from __future__ import annotations

import logging
import os
import re
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import sqlalchemy as sa

from plugin.errors import ConfigError, StoreLostError

if TYPE_CHECKING:
    from alembic.config import Config

Place = Path | sa.URL
"""SQLite's file, or PostgreSQL's URL with its password."""

CONNECT_S = 10
SILENT_S = 60.0
"""A server that does not answer for so long is taken for lost; less than what is taken for a hang of the writer."""

LOCK_S = 10.0
"""How long the server may need to notice that the last run of this host is gone."""

PASSWORD = "FLAWLINE_STORE_PASSWORD"
_KEEPALIVES = {"keepalives_idle": 10, "keepalives_interval": 5, "keepalives_count": 3, "tcp_user_timeout": 30_000}
_PREPARE_POSTGRESQL = (
    "SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off'",
    "SET jit = off",  # compiling takes longer than any of our questions
    "SET tcp_keepalives_idle = 10",
    "SET tcp_keepalives_interval = 5",
    "SET tcp_keepalives_count = 3",
)
_BLAMES_VALUES = ("22", "23", "54")
"""Classes of SQLSTATE: data, constraints, program limits (a key that is too long for its index)."""

log = logging.getLogger(__name__)


def open_engine(where: Place) -> sa.Engine:
    """An engine on the store; every connection waits for locks and checks references. Connects to nothing yet."""
    return _open_sqlite(where) if isinstance(where, Path) else _open_postgresql(where)


def _open_sqlite(path: Path) -> sa.Engine:
    engine = sa.create_engine(f"sqlite:///{path}", connect_args={"timeout": 10})

    @sa.event.listens_for(engine, "connect")
    def _prepare(connection: sqlite3.Connection, _record: object) -> None:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        connection.execute("PRAGMA foreign_keys=ON")
        connection.execute("PRAGMA cache_size=-16000")

    return engine


def _open_postgresql(url: sa.URL) -> sa.Engine:
    words = {"connect_timeout": CONNECT_S, "application_name": "flawline", **_KEEPALIVES}
    given = {name: value for name, value in words.items() if name not in url.query}
    try:
        engine = sa.create_engine(url, pool_pre_ping=True, connect_args=given)
    except ModuleNotFoundError as error:
        raise ConfigError(f"store.url: {error.name} is not installed: pip install 'flawline[postgresql]'") from error

    @sa.event.listens_for(engine, "connect")
    def _prepare(connection: Any, _record: object) -> None:
        for statement in _PREPARE_POSTGRESQL:
            connection.execute(statement)
        connection.commit()

    return engine


def place_of(state_dir: Path, url: str | None, password_file: Path | None) -> Place:
    """Where a host's store is; the password comes from the file, else from the environment or libpq's own files."""
    if url is None:
        return state_dir / "store.sqlite"
    made = sa.make_url(url).set(drivername="postgresql+psycopg")
    password = os.environ.get(PASSWORD)
    if password_file is not None:
        (password,) = read_lines(password_file, "store.password_file", 1)
    return made if password is None else made.set(password=password)


def read_lines(path: Path, setting: str, count: int) -> list[str]:
    """The first lines of a file of secrets that nobody else may read. Raises ConfigError."""
    try:
        if path.stat().st_mode & 0o077:
            raise ConfigError(f"{setting}: others may read {path}; chmod 600 {path}")
        lines = path.read_text(encoding="utf-8").splitlines()[:count]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{setting}: {path} cannot be read ({error})") from error
    if len(lines) < count or not all(lines):
        raise ConfigError(f"{setting}: {path} must have {count} line(s) with a secret each")
    return lines


def is_sqlite(bind: sa.Engine | sa.Connection) -> bool:
    """Whether the database is a file of this machine."""
    return bind.dialect.name == "sqlite"


def shown_as(where: Place) -> str:
    """The database for people: a file, or a URL without its password."""
    return where.render_as_string(hide_password=True) if isinstance(where, sa.URL) else str(where)


def name_of(engine: sa.Engine) -> str:
    """The same of an engine."""
    return str(engine.url.database) if is_sqlite(engine) else shown_as(engine.url)


@contextmanager
def _as_sentences(engine: sa.Engine) -> Iterator[None]:
    """What is there is not a store of this product: ConfigError. A server that does not answer may do so later."""
    from alembic.util import CommandError

    try:
        yield
    except (sa.exc.DatabaseError, CommandError) as error:
        if isinstance(error, sa.exc.DBAPIError) and not is_sqlite(engine) and is_passing(error):
            raise
        raise ConfigError(
            f"{name_of(engine)}: the store cannot be opened ({short(error)}); a newer Flawline may have written "
            "it, or it is damaged: restore a backup or move it away"
        ) from error


def upgrade(connection: sa.Connection) -> None:
    """Bring the tables to the newest form."""
    from alembic import command

    config = migrations()
    config.attributes["connection"] = connection
    command.upgrade(config, "head")


def migrations() -> Config:
    """Alembic's configuration for our scripts."""
    from alembic.config import Config

    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent / "migrations").replace("%", "%%"))
    config.set_main_option("path_separator", "os")
    return config


def upgraded(where: Place) -> bool:
    """Whether a store that lies there has the newest tables."""
    from alembic.script import ScriptDirectory

    engine = open_engine(where)
    try:
        with engine.connect() as connection:
            found = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar()
    except sa.exc.DatabaseError as error:
        raise ConfigError(f"{name_of(engine)}: the store cannot be read ({short(error)})") from error
    finally:
        engine.dispose()
    return bool(found == ScriptDirectory.from_config(migrations()).get_current_head())


FUNCTIONS = (
    """CREATE OR REPLACE FUNCTION flawline_refuse() RETURNS trigger LANGUAGE plpgsql AS
$$ BEGIN RAISE EXCEPTION '%', TG_ARGV[0] USING ERRCODE = 'integrity_constraint_violation'; END $$""",
    # An edge's header is kept as it wrote it: what PostgreSQL takes for no JSON has no recipe, and spoils no question.
    """CREATE OR REPLACE FUNCTION flawline_recipe(header text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS
$$ BEGIN RETURN CAST(header AS json) ->> 'recipe'; EXCEPTION WHEN data_exception THEN RETURN NULL; END $$""",
)
"""What SQLite has of its own: triggers that refuse, and a look into JSON that does not fail."""

_WORDS = (
    (r"\bINTEGER (?:NOT NULL )?PRIMARY KEY(?: AUTOINCREMENT)?", "BIGINT GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY"),
    (r"\bINTEGER\b", "BIGINT"),
    (r"\bBLOB\b", "BYTEA"),
    (r"\b(BOOLEAN(?: NOT NULL)?) DEFAULT 0", r"\1 DEFAULT false"),
    (r"\b(BOOLEAN(?: NOT NULL)?) DEFAULT 1", r"\1 DEFAULT true"),
    (
        r"(?s)CREATE TRIGGER (.*?)BEGIN\s+SELECT RAISE\s*\(ABORT, ('[^']*')\);?\s*END;?",
        r"CREATE TRIGGER \1FOR EACH ROW EXECUTE FUNCTION flawline_refuse(\2)",
    ),
)


def in_postgresql(statement: str) -> str:
    """A statement of the migrations, which are written in SQLite's words, in PostgreSQL's."""
    for pattern, words in _WORDS:
        statement = re.sub(pattern, words, statement)
    return statement


def short(error: BaseException) -> str:
    """What the database said, in one line; what says nothing, as a wait that was too long, is named."""
    return (str(getattr(error, "orig", None) or error) or type(error).__name__).splitlines()[0][:200]


def is_passing(error: sa.exc.DBAPIError) -> bool:
    """Whether the connection or the server is what failed, and another try may find it well."""
    return error.connection_invalidated or isinstance(error, sa.exc.OperationalError | sa.exc.InternalError)


def blames_the_event(error: Exception) -> bool:
    """Whether a value is what the database refuses: for any other reason the same event may be stored later."""
    if not isinstance(error, sa.exc.DBAPIError):
        return isinstance(error, ValueError | OverflowError | sa.exc.StatementError)
    state = getattr(error.orig, "sqlstate", None)
    if state is not None:
        return state[:2] in _BLAMES_VALUES
    kinds: tuple[type[Exception], ...] = (sa.exc.DataError, sa.exc.IntegrityError)
    if isinstance(error.orig, sqlite3.Error):  # what cannot be bound to a statement is one of these
        kinds = (*kinds, sa.exc.InterfaceError, sa.exc.ProgrammingError)
    return isinstance(error, kinds)


class Hand:
    """The one connection that writes, of one thread. Opened when it is needed, again after each loss.

    ``opened`` is called in each new connection before anything else. On PostgreSQL the connection holds a lock, so
    that no two hosts write one store, and is cut where the server keeps silent: a commit must not last for ever.
    """

    def __init__(self, engine: sa.Engine, opened: Callable[[sa.Connection], None]) -> None:
        self.engine = engine
        self._opened = opened
        self._connection: sa.Connection | None = None

    @contextmanager
    def begin(self) -> Iterator[sa.Connection]:
        """A transaction. Raises sqlalchemy's errors, and StoreLostError where the store cannot be this host's now."""
        connection, file = self._opened_file()
        with self._cut_when_silent(file):
            try:
                with connection.begin():
                    yield connection
            except sa.exc.DBAPIError as error:
                if is_passing(error) and not is_sqlite(self.engine):
                    self._drop()
                raise

    def execute(self, statement: sa.Executable, values: Any = None) -> Any:
        """Within ``begin``."""
        return self._open().execute(statement, values)

    def exec_driver_sql(self, statement: str, values: Any = None) -> Any:
        """Within ``begin``."""
        return self._open().exec_driver_sql(statement, values)

    def close(self) -> None:
        """Fold SQLite's write-ahead log into the file and let go."""
        if self._connection is not None:
            with suppress(sa.exc.DBAPIError):
                if is_sqlite(self.engine):
                    self._connection.exec_driver_sql("PRAGMA wal_checkpoint(TRUNCATE)")
                self._connection.close()
        self.engine.dispose()

    def _open(self) -> sa.Connection:
        if self._connection is None:
            with _as_sentences(self.engine):
                self._connection = self._connected()
        return self._connection

    def _connected(self) -> sa.Connection:
        connection = self.engine.connect()
        try:
            if not is_sqlite(self.engine):
                _check_server(connection)
                _lock(connection, self.engine)
                connection.commit()
            upgrade(connection)
            connection.commit()
            self._opened(connection)
            connection.commit()
        except BaseException:
            connection.invalidate()
            connection.close()
            raise
        return connection

    def _drop(self) -> None:
        if self._connection is not None:
            with suppress(sa.exc.DBAPIError):
                self._connection.invalidate()
                self._connection.close()
        self._connection = None

    def _opened_file(self) -> tuple[sa.Connection, int | None]:
        """The connection and its socket, where it has one; another where it was lost while nobody asked anything."""
        connection = self._open()
        if is_sqlite(self.engine):
            return connection, None
        try:
            return connection, _file_of(connection)
        except (sa.exc.DBAPIError, self.engine.dialect.loaded_dbapi.Error):
            self._drop()
            connection = self._open()
            return connection, _file_of(connection)

    @contextmanager
    def _cut_when_silent(self, file: int | None) -> Iterator[None]:
        if file is None:
            yield
            return
        timer = threading.Timer(SILENT_S, _cut, (file, self.engine))
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()


def _file_of(connection: sa.Connection) -> int:
    raw: Any = connection.connection.dbapi_connection
    return int(raw.fileno())


def _cut(file: int, engine: sa.Engine) -> None:
    log.warning("%s has not answered for %g s: its connection is cut", name_of(engine), SILENT_S)
    with suppress(OSError), socket.socket(fileno=os.dup(file)) as line:
        line.shutdown(socket.SHUT_RDWR)


def _check_server(connection: sa.Connection) -> None:
    for setting in ("fsync", "full_page_writes"):
        if connection.exec_driver_sql(f"SHOW {setting}").scalar() != "on":
            raise StoreLostError(
                f"the PostgreSQL server has {setting} = off: what it acknowledges may be gone after a power cut; "
                f"set {setting} = on in its configuration"
            )


def _lock(connection: sa.Connection, engine: sa.Engine) -> None:
    connection.exec_driver_sql(f"SET lock_timeout = '{LOCK_S:.0f}s'")
    try:
        connection.exec_driver_sql("SELECT pg_advisory_lock(hashtext('flawline'), hashtext(current_schema()))")
    except sa.exc.OperationalError as error:
        if getattr(error.orig, "sqlstate", None) != "55P03":
            raise
        raise StoreLostError(
            f"{name_of(engine)}: another host writes this store; give each host a database of its own"
        ) from error
    connection.exec_driver_sql("SET lock_timeout = 0")
