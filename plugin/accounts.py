"""Local accounts, their sessions and the record of who did what, in a small SQLite file of its own (before hop 11).

The command line writes the same file while the host runs: what it changes holds from the next request on.
"""

from __future__ import annotations

import base64
import hashlib
import os
import re
import secrets
import sqlite3
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, Literal, NamedTuple

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError

from plugin.errors import AccountError, ConfigError

Role = Literal["inspector", "engineer", "administrator"]
ROLES: tuple[Role, ...] = ("inspector", "engineer", "administrator")
"""Each may do what those before it may."""

Scope = Literal["read", "review", "administer"]
SCOPES: tuple[Scope, ...] = ("read", "review", "administer")
"""Of a token: each does what those before it do, and none more than its account's role may."""

DATABASE = "accounts.sqlite"
SCHEMA_VERSION = 2
SHORTEST, LONGEST = 10, 256
MAX_SESSIONS = 20
"""Of one account; a further one ends its oldest."""

KNOWN_S = 30 * 86400.0
CLOCK_SLACK_S = 60.0
TOUCH_S = 60.0
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}")
_FIRST_TRIED = """
1234567890 12345678910 1234567891 0123456789 0987654321 123456789a 1q2w3e4r5t q1w2e3r4t5 1qaz2wsx3edc qwertyuiop
qwerty1234 qwerty12345 qwertz1234 qwertzuiop asdfghjkl1 abcdefghij abcd123456 a123456789 password12 password123
password1234 passw0rd123 p@ssw0rd123 p@ssword123 passwort123 passwort1234 letmein123 letmein1234 welcome123 welcome1234
changeme123 changeme1234 iloveyou123 admin12345 admin123456 administrator administrator1 root123456 inspector1
inspector123 engineer123 operator123 flawline123 flawline1234 default123 secret1234 test123456 correcthorsebatterystaple
"""
COMMON = frozenset(_FIRST_TRIED.split())

_TABLES = f"""
CREATE TABLE IF NOT EXISTS accounts (
    name TEXT PRIMARY KEY COLLATE NOCASE,
    role TEXT NOT NULL CHECK (role IN {ROLES}),
    enabled INTEGER NOT NULL,
    hash TEXT NOT NULL,
    epoch INTEGER NOT NULL,
    created_s REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS sessions (
    token_sha256 BLOB PRIMARY KEY,
    account TEXT NOT NULL COLLATE NOCASE,
    epoch INTEGER NOT NULL,
    opened_s REAL NOT NULL,
    seen_s REAL NOT NULL
);
CREATE TABLE IF NOT EXISTS tokens (
    token_sha256 BLOB PRIMARY KEY,
    account TEXT NOT NULL COLLATE NOCASE,
    epoch INTEGER NOT NULL,
    made_s REAL NOT NULL,
    ends_s REAL NOT NULL,
    scope TEXT NOT NULL DEFAULT 'read' CHECK (scope IN {SCOPES})
);
CREATE TABLE IF NOT EXISTS audit (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    t_s REAL NOT NULL,
    actor TEXT NOT NULL,
    address TEXT NOT NULL,
    action TEXT NOT NULL,
    account TEXT NOT NULL COLLATE NOCASE,
    detail TEXT NOT NULL
);
CREATE INDEX IF NOT EXISTS audit_of_account ON audit (account, action, address, t_s);
CREATE TRIGGER IF NOT EXISTS audit_no_update BEFORE UPDATE ON audit
    BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
CREATE TRIGGER IF NOT EXISTS audit_no_delete BEFORE DELETE ON audit
    BEGIN SELECT RAISE(ABORT, 'the audit is append-only'); END;
"""


class Actor(NamedTuple):
    """Who asks for a change, and from which address."""

    name: str
    address: str


class Account(NamedTuple):
    """One account as lists show it; times are UTC seconds."""

    name: str
    role: Role
    enabled: bool
    created_s: float
    signed_in_s: float | None


class Proven(NamedTuple):
    """An account whose password was right, as it stood then."""

    name: str
    role: Role
    epoch: int


class Session(NamedTuple):
    """Who a request comes from."""

    name: str
    role: Role


class Bearer(NamedTuple):
    """Whose token a request carries, and what it is for."""

    name: str
    role: Role
    scope: Scope


class Lifetimes(NamedTuple):
    """How long a session lasts without a request, by role, and how long at all, in seconds."""

    idle_s: dict[Role, float]
    longest_s: float


def default_hasher() -> PasswordHasher:
    """Argon2id, 64 MiB and three passes in one lane: about a quarter of a second of one core, never of two."""
    return PasswordHasher(time_cost=3, memory_cost=64 << 10, parallelism=1)


class Accounts:
    """Accounts, sessions and audit. Any thread may ask; one at a time gets at the file, hashing is done beside that.

    ``clock`` gives UTC seconds: sessions outlive the host's process, so no monotonic clock can measure them.
    """

    def __init__(
        self, path: Path, hasher: PasswordHasher | None = None, clock: Callable[[], float] = time.time
    ) -> None:
        self.path = path
        self._hasher = hasher or default_hasher()
        self._clock = clock
        self._lock = threading.Lock()
        self._connection = _open_file(path)
        self._nobody = _hash_of_nobody(self._hasher)

    def close(self) -> None:
        """Let go of the file."""
        self._connection.close()

    def add(self, name: str, password: str, role: Role, by: Actor) -> None:
        """Add an account; raises AccountError where name or password will not do or the name is taken."""
        if not plain_name(name):
            raise AccountError(
                f"{name[:80]!r} is no name for an account: letters, digits, `_`, `.` and `-`, at most 60, and a letter "
                "or digit first"
            )
        hashed = self._hash(name, password)
        with self._write() as db:
            if db.execute("SELECT 1 FROM accounts WHERE name = ?", (name,)).fetchone():
                raise AccountError(f"there is an account {name} already; names are never given away again")
            db.execute(
                "INSERT INTO accounts (name, role, enabled, hash, epoch, created_s) VALUES (?, ?, 1, ?, 0, ?)",
                (name, _role(role), hashed, self._clock()),
            )
            self._note(db, by, "added", name, role)

    def set_password(self, name: str, password: str, by: Actor) -> None:
        """Set a password; every session of the account ends."""
        stands = self._account(name)
        hashed = self._hash(stands.name, password)
        with self._write() as db:
            db.execute("UPDATE accounts SET hash = ? WHERE name = ?", (hashed, name))
            self._end_sessions(db, name)
            self._note(db, by, "password set", stands.name)

    def set_role(self, name: str, role: Role, by: Actor) -> None:
        """Give another role; every session of the account ends. The last administrator stays one."""
        with self._write() as db:
            stands = _find(db, name)
            if stands.role == role:
                return
            if _role(role) != "administrator":
                _keep_an_administrator(db, stands)
            db.execute("UPDATE accounts SET role = ? WHERE name = ?", (role, name))
            self._end_sessions(db, name)
            self._note(db, by, "role changed", stands.name, f"{stands.role} to {role}")

    def set_enabled(self, name: str, enabled: bool, by: Actor) -> None:
        """Let an account sign in or not; every session of it ends. The last administrator stays enabled."""
        with self._write() as db:
            stands = _find(db, name)
            if stands.enabled == enabled:
                return
            if not enabled:
                _keep_an_administrator(db, stands)
            db.execute("UPDATE accounts SET enabled = ? WHERE name = ?", (enabled, name))
            self._end_sessions(db, name)
            self._note(db, by, "enabled" if enabled else "disabled", stands.name)

    def all(self) -> list[Account]:
        """Every account by name."""
        return [
            Account(row["name"], row["role"], bool(row["enabled"]), row["created_s"], row["signed_in_s"])
            for row in self._ask(f"{_SELECT} ORDER BY a.name")
        ]

    def has_administrator(self) -> bool:
        """Whether somebody could sign in and manage accounts."""
        return any(account.enabled and account.role == "administrator" for account in self.all())

    def epoch(self, name: str) -> int:
        """Counts the changes of password, role and state; -1 where there is no such account."""
        rows = self._ask("SELECT epoch FROM accounts WHERE name = ?", (plain_name(name),))
        return int(rows[0]["epoch"]) if rows else -1

    def known_at(self, name: str, address: str) -> bool:
        """Whether the account signed in from this address within the last thirty days."""
        since = self._clock() - KNOWN_S
        found = "SELECT 1 FROM audit WHERE account = ? AND action = 'signed in' AND address = ? AND t_s > ? LIMIT 1"
        return bool(self._ask(found, (plain_name(name), address, since)))

    def check(self, name: str, password: str) -> Proven | None:
        """The enabled account of this name and password, or None; as much work for a name that does not exist."""
        rows = self._ask("SELECT name, role, enabled, hash, epoch FROM accounts WHERE name = ?", (plain_name(name),))
        stored = rows[0]["hash"] if rows else self._nobody
        text = _normal(password)
        if text is None or len(text) > LONGEST:
            stored, text = self._nobody, ""
        right = self._verify(stored, text)
        if not rows or not rows[0]["enabled"] or not right:
            return None
        if self._hasher.check_needs_rehash(stored):
            with self._write() as db:
                db.execute("UPDATE accounts SET hash = ? WHERE hash = ?", (self._hasher.hash(text), stored))
        return Proven(rows[0]["name"], rows[0]["role"], rows[0]["epoch"])

    def open_session(self, account: Proven, address: str) -> str:
        """A new session's token, for the browser alone: the file keeps its hash."""
        token, now = secrets.token_urlsafe(32), self._clock()
        with self._write() as db:
            db.execute("DELETE FROM sessions WHERE opened_s < ?", (now - 7 * 86400,))
            newest_first = "SELECT rowid FROM sessions WHERE account = ? ORDER BY opened_s DESC, rowid DESC"
            rows = db.execute(newest_first, (account.name,)).fetchall()
            db.executemany("DELETE FROM sessions WHERE rowid = ?", rows[MAX_SESSIONS - 1 :])
            db.execute(
                "INSERT INTO sessions (token_sha256, account, epoch, opened_s, seen_s) VALUES (?, ?, ?, ?, ?)",
                (_digest(token), account.name, account.epoch, now, now),
            )
            self._note(db, Actor(account.name, address), "signed in", account.name, account.role)
        return token

    def session(self, token: str, lifetimes: Lifetimes, touch: bool = True) -> Session | None:
        """Whose session this is, None where it ended; ``touch`` counts the request as a sign of life."""
        found = (
            "SELECT a.name, a.role, s.opened_s, s.seen_s FROM sessions s JOIN accounts a "
            "ON a.name = s.account AND a.epoch = s.epoch AND a.enabled WHERE s.token_sha256 = ?"
        )
        rows = self._ask(found, (_digest(token),))
        if not rows:
            return None
        now, row = self._clock(), rows[0]
        idle_s = lifetimes.idle_s[row["role"]]
        # A clock that was set back must not lengthen a session by as much.
        young = -CLOCK_SLACK_S <= now - row["opened_s"] < lifetimes.longest_s
        if not young or not -CLOCK_SLACK_S <= now - row["seen_s"] < idle_s:
            return None
        if touch and now - row["seen_s"] >= min(TOUCH_S, idle_s / 10):
            # A full disk must not keep anybody from looking; the session then ends earlier.
            with suppress(sqlite3.OperationalError), self._write() as db:
                db.execute("UPDATE sessions SET seen_s = ? WHERE token_sha256 = ?", (now, _digest(token)))
        return Session(row["name"], row["role"])

    def close_session(self, token: str, address: str) -> None:
        """End a session, where it stands, and note that its owner signed out."""
        with self._write() as db:
            ended = db.execute("DELETE FROM sessions WHERE token_sha256 = ? RETURNING account", (_digest(token),))
            for (name,) in ended.fetchall():
                self._note(db, Actor(name, address), "signed out", name)

    def make_token(self, name: str, days: float, by: Actor, scope: Scope = "read") -> str:
        """A token for a program, which may what its account and ``scope`` both may, until it or the account changes."""
        if scope not in SCOPES:
            raise AccountError(f"there is no scope {scope[:40]!r}; there are: {', '.join(SCOPES)}")
        token, now = secrets.token_urlsafe(32), self._clock()
        with self._write() as db:
            stands = _find(db, name)
            if not stands.enabled:
                raise AccountError(f"{stands.name} is disabled; enable it first")
            db.execute("DELETE FROM tokens WHERE ends_s < ?", (now,))
            db.execute(
                "INSERT INTO tokens (token_sha256, account, epoch, made_s, ends_s, scope) "
                "SELECT ?, name, epoch, ?, ?, ? FROM accounts WHERE name = ?",
                (_digest(token), now, now + 86400 * days, scope, stands.name),
            )
            self._note(db, by, "token made", stands.name, f"to {scope}, for {days:g} days")
        return token

    def end_tokens(self, name: str, by: Actor) -> int:
        """End every token of an account; returns how many there were."""
        with self._write() as db:
            stands = _find(db, name)
            ended = db.execute("DELETE FROM tokens WHERE account = ?", (stands.name,)).rowcount
            self._note(db, by, "tokens ended", stands.name, str(ended))
        return ended

    def of_token(self, token: str) -> Bearer | None:
        """Whose token this is and what it is for, None where it ended."""
        found = (
            "SELECT a.name, a.role, t.made_s, t.ends_s, t.scope FROM tokens t JOIN accounts a "
            "ON a.name = t.account AND a.epoch = t.epoch AND a.enabled WHERE t.token_sha256 = ?"
        )
        rows, now = self._ask(found, (_digest(token),)), self._clock()
        if not rows or not rows[0]["made_s"] - CLOCK_SLACK_S <= now < rows[0]["ends_s"]:
            return None
        return Bearer(rows[0]["name"], rows[0]["role"], rows[0]["scope"])

    def note(self, by: Actor, action: str, account: str, detail: str = "") -> None:
        """Append to the audit."""
        with self._write() as db:
            self._note(db, by, action, account, detail)

    def audit(self, limit: int) -> list[dict[str, Any]]:
        """The newest rows of the audit, newest first."""
        return [dict(row) for row in self._ask("SELECT * FROM audit ORDER BY id DESC LIMIT ?", (limit,))]

    def _account(self, name: str) -> Account:
        with self._lock:
            return _find(self._connection, name)

    def _hash(self, name: str, password: str) -> str:
        text = _normal(password)
        if text is None or not SHORTEST <= len(text) <= LONGEST:
            raise AccountError(f"a password has {SHORTEST} to {LONGEST} characters; nothing was changed")
        folded = text.casefold()
        if folded == name.casefold() or folded in COMMON or len(set(folded)) < 4:
            raise AccountError("this password is among the first that anybody tries; choose another one")
        return self._hasher.hash(text)

    def _verify(self, stored: str, text: str) -> bool:
        try:
            return self._hasher.verify(stored, text)
        except (VerificationError, InvalidHashError):
            return False

    def _end_sessions(self, db: sqlite3.Connection, name: str) -> None:
        # The epoch also ends a session that is being opened at this moment for what stood before.
        db.execute("UPDATE accounts SET epoch = epoch + 1 WHERE name = ?", (name,))
        db.execute("DELETE FROM sessions WHERE account = ?", (name,))

    def _note(self, db: sqlite3.Connection, by: Actor, action: str, account: str, detail: str = "") -> None:
        db.execute(
            "INSERT INTO audit (t_s, actor, address, action, account, detail) VALUES (?, ?, ?, ?, ?, ?)",
            (self._clock(), by.name, by.address, action, account, detail),
        )

    def _ask(self, sql: str, values: tuple[Any, ...] = ()) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(sql, values).fetchall()

    @contextmanager
    def _write(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")


def plain_name(text: str) -> str:
    """``text`` where an account can have it as its name, else the empty name that none has."""
    return text if NAME.fullmatch(text) else ""


_SELECT = """SELECT a.name, a.role, a.enabled, a.created_s,
    (SELECT max(t_s) FROM audit WHERE account = a.name AND action = 'signed in') AS signed_in_s FROM accounts a"""


def _find(db: sqlite3.Connection, name: str) -> Account:
    row = db.execute(f"{_SELECT} WHERE a.name = ?", (plain_name(name),)).fetchone()
    if row is None:
        raise AccountError(f"there is no account {name[:80]!r}")
    return Account(row["name"], row["role"], bool(row["enabled"]), row["created_s"], row["signed_in_s"])


def _keep_an_administrator(db: sqlite3.Connection, leaving: Account) -> None:
    others = "SELECT 1 FROM accounts WHERE role = 'administrator' AND enabled AND name <> ?"
    if leaving.role == "administrator" and leaving.enabled and not db.execute(others, (leaving.name,)).fetchone():
        raise AccountError(f"{leaving.name} is the last administrator; make another one first")


def _role(text: str) -> str:
    if text not in ROLES:
        raise AccountError(f"there is no role {text[:40]!r}; there are: {', '.join(ROLES)}")
    return text


def _normal(password: str) -> str | None:
    """One spelling for what looks the same on every keyboard; None where it is no text."""
    if len(password) > 4 * LONGEST:
        return None
    text = unicodedata.normalize("NFKC", password)
    try:
        text.encode()
    except UnicodeEncodeError:
        return None
    return text


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "replace")).digest()


def _hash_of_nobody(hasher: PasswordHasher) -> str:
    """A hash that no password has and that takes as long to compare."""

    def plain(size: int) -> str:
        return base64.b64encode(secrets.token_bytes(size)).decode().rstrip("=")

    cost = f"m={hasher.memory_cost},t={hasher.time_cost},p={hasher.parallelism}"
    return f"$argon2id$v=19${cost}${plain(hasher.salt_len)}${plain(hasher.hash_len)}"


def _open_file(path: Path) -> sqlite3.Connection:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
        state, folder = path.stat(), path.parent.stat()
        if state.st_mode & 0o077:
            raise ConfigError(f"{path}: others may read it (mode {state.st_mode & 0o777:o}); chmod 600 {path}")
        if os.geteuid() == 0 and state.st_uid != folder.st_uid:
            os.chown(
                path, folder.st_uid, folder.st_gid
            )  # the host runs as the folder's owner, this is its administrator
    except OSError as error:
        raise ConfigError(f"{path}: the accounts cannot be written ({error.strerror})") from error
    try:
        connection = sqlite3.connect(path, check_same_thread=False, isolation_level=None, timeout=10)
        connection.row_factory = sqlite3.Row
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA synchronous=FULL")
        version = connection.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, 1, SCHEMA_VERSION):
            raise ConfigError(f"{path}: accounts of version {version}, this program reads {SCHEMA_VERSION}")
        if version == 1:  # its tokens could read only
            connection.execute("ALTER TABLE tokens ADD COLUMN scope TEXT NOT NULL DEFAULT 'read'")
        connection.executescript(_TABLES)
        connection.execute(f"PRAGMA user_version={SCHEMA_VERSION}")
    except sqlite3.Error as error:
        raise ConfigError(f"{path}: the accounts cannot be opened ({error}); restore a backup of it") from error
    return connection
