"""A copy of all that a host keeps, made while it runs, and put back into an empty place (beside hop 8).

A backup is a folder: ``backup.json`` with the sha256 of every other file, written last, so that one that was broken off
is none. Store, ledger and accounts are each of one moment, the store's the earliest; pictures are all that it names.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import quote

import sqlalchemy as sa
from pydantic import Field, ValidationError

from contract.config import Strict
from plugin import accounts
from plugin import tables as t
from plugin.blobs import Blobs
from plugin.database import Place, migrations, open_engine, short, shown_as, upgraded
from plugin.errors import ConfigError
from plugin.renumber import renumber
from plugin.reviews import JOURNAL
from plugin.store import DATABASE, LOST

MANIFEST = "backup.json"
PICTURES = "pictures.txt"
LEDGER = "ledger.sqlite"
LOCK = "backup.lock"
UNFINISHED = "restore.unfinished"
COPY_BYTES = 1 << 20
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[a-z_]+\.(sqlite|copy|txt|chain)$")]
Identifier = Annotated[str, Field(pattern=r"^[a-z_][a-z0-9_]{0,62}$")]


class Table(Strict):
    """One of PostgreSQL's, in the order in which they are filled."""

    name: Identifier
    columns: tuple[Identifier, ...]


class Manifest(Strict):
    """``backup.json``."""

    format: Literal[1] = 1
    made_ns: int = Field(ge=0, description="UTC, when the copying began")
    database: Literal["sqlite", "postgresql"]
    revision: str = Field(pattern=r"^[0-9a-z_]{1,40}$")
    files: dict[FileName, Sha256]
    pictures: int = Field(ge=0)
    tables: tuple[Table, ...] = ()


@contextmanager
def pictures_stay(state_dir: Path, wait: bool) -> Iterator[bool]:
    """While this is held no picture is removed. False where another holds it and ``wait`` is not meant."""
    handle = os.open(state_dir / LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            yield False
            return
        yield True
    finally:
        os.close(handle)


def back_up(state_dir: Path, where: Place, blobs: Blobs, folder: Path) -> Manifest:
    """Copy everything into ``folder``, which must be empty or not be there. Raises ConfigError."""
    _must_be_empty(folder, "a backup")
    made_ns = time.time_ns()
    if isinstance(where, Path) and not where.is_file():
        raise ConfigError(f"{where}: there is no store to back up")
    if not upgraded(where):
        raise ConfigError(f"{shown_as(where)}: written by an older Flawline; start the host once, then back it up")
    try:
        (folder / "blobs").mkdir(parents=True, exist_ok=True)
        with pictures_stay(state_dir, wait=True):
            if (state_dir / JOURNAL).is_file():  # before the store: it must not note what that copy lacks
                shutil.copyfile(state_dir / JOURNAL, folder / JOURNAL)
            revision, tables, names = _copy_store(where, folder)
            for name in (LEDGER, accounts.DATABASE):
                if (state_dir / name).is_file():
                    copy_sqlite(state_dir / name, folder / name)
            _copy_pictures(blobs, names, folder)
        files = {path.name: sha256_of(path) for path in sorted(folder.iterdir()) if path.is_file()}
        kind: Literal["sqlite", "postgresql"] = "sqlite" if isinstance(where, Path) else "postgresql"
        manifest = Manifest(
            made_ns=made_ns, database=kind, revision=revision, files=files, pictures=len(names), tables=tables
        )
        _write_durably(folder / MANIFEST, manifest.model_dump_json(indent=1).encode() + b"\n")
    except OSError as error:
        raise ConfigError(f"{error.filename or folder}: cannot be copied ({error.strerror}); no backup") from error
    except sqlite3.Error as error:
        raise ConfigError(f"a database cannot be copied ({error}); no backup") from error
    except sa.exc.DBAPIError as error:
        raise ConfigError(f"{shown_as(where)}: cannot be copied ({short(error)}); no backup") from error
    return manifest


def verify(folder: Path) -> Manifest:
    """Every file and every picture against its sha256. Raises ConfigError with the first that differs."""
    manifest = _read_manifest(folder)
    for name, expected in manifest.files.items():
        _must_be(folder / name, expected)
    names = _picture_names(folder)
    if len(names) != manifest.pictures:
        raise ConfigError(f"{folder}: {len(names)} pictures are named, {manifest.pictures} were copied")
    for name in names:
        _must_be(folder / "blobs" / name[:2] / name, name)
    return manifest


def restore(
    folder: Path, state_dir: Path, where: Place, blobs: Callable[[], Blobs], last: Mapping[str, int]
) -> Manifest:
    """Verify a backup and put it into an empty state folder (and an empty database). Raises ConfigError.

    No number that the line's controller may have seen is given out again: ``plugin.renumber`` says how.
    """
    manifest = verify(folder)
    kind = "sqlite" if isinstance(where, Path) else "postgresql"
    if kind != manifest.database:
        raise ConfigError(
            f"{folder}: its store is of {manifest.database}, the configuration names {shown_as(where)}; nothing changed"
        )
    now_ns = time.time_ns()
    if now_ns < manifest.made_ns:
        raise ConfigError(f"{folder}: made later than this machine's clock says it is now; set the clock right first")
    _must_be_empty(state_dir, "a host's state")
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        marker = state_dir / UNFINISHED
        marker.touch()  # a host that began on half of it would number from 1
        _sync(state_dir)
        _put_back_pictures(folder, blobs())
        _put_back_store(folder, manifest, where)
        _say_what_is_lacking(where, manifest.made_ns, now_ns)
        if accounts.DATABASE in manifest.files:
            _put_back_accounts(folder, state_dir)
        if JOURNAL in manifest.files:
            shutil.copyfile(folder / JOURNAL, state_dir / JOURNAL)
            _sync(state_dir / JOURNAL)
        if LEDGER in manifest.files:
            shutil.copyfile(folder / LEDGER, state_dir / LEDGER)
            renumber(state_dir / LEDGER, manifest.made_ns, now_ns, last)
        for path in state_dir.glob("*.sqlite"):
            _sync(path)
        _sync(state_dir)
        marker.unlink()
        _sync(state_dir)
    except OSError as error:
        raise ConfigError(
            f"{error.filename or state_dir}: cannot be written ({error.strerror}); empty it and restore again"
        ) from error
    except (sqlite3.Error, sa.exc.DBAPIError) as error:
        raise ConfigError(f"a database cannot be written ({short(error)}); empty it and restore again") from error
    return manifest


def copy_sqlite(source: Path, target: Path) -> None:
    """SQLite's online backup: one moment of a database that another process writes."""
    read_only = f"file:{quote(str(source))}?mode=ro"
    with closing(sqlite3.connect(read_only, uri=True, timeout=30)) as from_, closing(sqlite3.connect(target)) as to:
        from_.backup(to)
        to.execute("PRAGMA journal_mode=DELETE")
    _sync(target)


def sha256_of(path: Path) -> str:
    """Of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


_NAMED = "SELECT DISTINCT sha256 FROM attachments WHERE sha256 IS NOT NULL AND removed_ns IS NULL ORDER BY sha256"


def _copy_store(where: Place, folder: Path) -> tuple[str, tuple[Table, ...], list[str]]:
    """Copies the rows; returns their revision, PostgreSQL's tables and the pictures that they name."""
    if isinstance(where, Path):
        copy_sqlite(where, folder / DATABASE)
        with closing(sqlite3.connect(folder / DATABASE)) as connection:
            (revision,) = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            return revision, (), [name for (name,) in connection.execute(_NAMED)]
    return _copy_postgresql(where, folder)


def _copy_postgresql(url: sa.URL, folder: Path) -> tuple[str, tuple[Table, ...], list[str]]:
    engine = open_engine(url)
    try:
        with engine.connect().execution_options(isolation_level="REPEATABLE READ") as connection:
            revision = connection.exec_driver_sql("SELECT version_num FROM alembic_version").scalar_one()
            raw: Any = connection.connection.dbapi_connection
            tables = []
            for table in t.metadata.sorted_tables:
                made = Table(name=table.name, columns=tuple(column.name for column in table.columns))
                with (folder / f"{made.name}.copy").open("wb") as file:
                    with raw.cursor().copy(_copy(made, "TO STDOUT")) as rows:
                        file.writelines(rows)
                    file.flush()
                    os.fsync(file.fileno())
                tables.append(made)
            names = [row[0] for row in connection.exec_driver_sql(_NAMED)]
    finally:
        engine.dispose()
    return revision, tuple(tables), names


def _copy(table: Table, direction: str = "FROM STDIN") -> str:
    columns = ", ".join(f'"{column}"' for column in table.columns)
    return f'COPY "{table.name}" ({columns}) {direction}'


def _copy_pictures(blobs: Blobs, names: Iterable[str], folder: Path) -> None:
    listed = []
    for name in names:
        data = blobs.read(name)
        if data is None or hashlib.sha256(data).hexdigest() != name:
            raise ConfigError(f"picture {name} is {'missing' if data is None else 'damaged'} in the store; no backup")
        target = folder / "blobs" / name[:2] / name
        target.parent.mkdir(exist_ok=True)
        _write_durably(target, data)
        listed.append(name + "\n")
    _write_durably(folder / PICTURES, "".join(listed).encode())


def _picture_names(folder: Path) -> list[str]:
    names = (folder / PICTURES).read_text(encoding="ascii").split()
    if any(len(name) != 64 or not set(name) <= set("0123456789abcdef") for name in names):
        raise ConfigError(f"{folder / PICTURES}: not a list of pictures")
    return names


def _read_manifest(folder: Path) -> Manifest:
    try:
        return Manifest.model_validate_json((folder / MANIFEST).read_bytes())
    except FileNotFoundError as error:
        raise ConfigError(f"{folder}: not a backup, or one that was broken off: it has no {MANIFEST}") from error
    except (OSError, ValidationError) as error:
        raise ConfigError(f"{folder / MANIFEST}: cannot be read ({str(error).splitlines()[0]})") from error


def _must_be(path: Path, expected: str) -> None:
    try:
        found = sha256_of(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); this backup is not whole") from error
    if found != expected:
        raise ConfigError(f"{path}: its bytes are not those that were backed up (sha256 {found[:12]}...)")


def _must_be_empty(folder: Path, what: str) -> None:
    try:
        if any(folder.iterdir()):
            raise ConfigError(f"{folder}: not empty; {what} goes into an empty folder only; nothing was changed")
    except FileNotFoundError:
        return
    except OSError as error:
        raise ConfigError(f"{folder}: {error.strerror}") from error


def _put_back_pictures(folder: Path, blobs: Blobs) -> None:
    for name in _picture_names(folder):
        blobs.put(name, (folder / "blobs" / name[:2] / name).read_bytes())


def _put_back_store(folder: Path, manifest: Manifest, where: Place) -> None:
    if isinstance(where, Path):
        shutil.copyfile(folder / DATABASE, where)
        return
    from alembic import command

    engine = open_engine(where)
    try:
        with engine.connect() as connection:
            found = connection.exec_driver_sql(
                "SELECT count(*) FROM information_schema.tables WHERE table_schema = current_schema()"
            ).scalar_one()
            if found:
                raise ConfigError(f"{shown_as(where)}: not empty; restore into an empty database; nothing was changed")
            config = migrations()
            config.attributes["connection"] = connection
            command.upgrade(config, manifest.revision)
            raw: Any = connection.connection.dbapi_connection
            for table in manifest.tables:
                with (folder / f"{table.name}.copy").open("rb") as file, raw.cursor().copy(_copy(table)) as rows:
                    while piece := file.read(COPY_BYTES):
                        rows.write(piece)
                if "id" in table.columns:
                    most = sa.select(sa.func.max(sa.column("id"))).select_from(sa.table(table.name)).scalar_subquery()
                    connection.execute(
                        sa.select(sa.func.setval(sa.func.pg_get_serial_sequence(table.name, "id"), most))
                    )
            connection.commit()
    finally:
        engine.dispose()


def _say_what_is_lacking(where: Place, made_ns: int, now_ns: int) -> None:
    """A gap for each edge: what it sent since was acknowledged and is nowhere now. Open parts have no end to come."""
    engine = open_engine(where)
    try:
        with engine.begin() as connection:
            connection.execute(
                sa.text(
                    "INSERT INTO gaps (edge_id, camera_id, reason, from_wall_ns, to_wall_ns, duration_ns) "
                    "SELECT edge_id, NULL, :reason, :made, :now, :lasted FROM spools GROUP BY edge_id"
                ),
                {
                    "reason": "the host was restored from a backup; what it took in between is lost",
                    "made": made_ns,
                    "now": now_ns,
                    "lasted": now_ns - made_ns,
                },
            )
            ended = {"state": "missed", "verdict": "NOT_INSPECTED", "reason": LOST}
            connection.execute(sa.update(t.parts).where(t.parts.c.state == "triggered").values(ended))
    finally:
        engine.dispose()


def _put_back_accounts(folder: Path, state_dir: Path) -> None:
    """Sessions and tokens of then may have been ended since: everybody signs in anew."""
    path = state_dir / accounts.DATABASE
    path.touch(mode=0o600)
    shutil.copyfile(folder / accounts.DATABASE, path)
    with closing(sqlite3.connect(path)) as connection, connection:
        connection.execute("DELETE FROM sessions")
        connection.execute("DELETE FROM tokens")
        connection.execute(
            "INSERT INTO audit (t_s, actor, address, action, account, detail) VALUES (?, ?, ?, ?, ?, ?)",
            (time.time(), "terminal", "", "restored", "", "from a backup; sessions and tokens ended"),
        )


def _write_durably(path: Path, data: bytes) -> None:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
