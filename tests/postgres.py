"""A real PostgreSQL server from Debian's package, in a folder of its own, for the tests of one session."""

from __future__ import annotations

import itertools
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg

from tests.needs import lacking

PASSWORD = "of the tests"


class PostgreSQL:
    """``start``, ``stop``, ``kill``, ``database`` for an empty one. Unix socket, nothing else listens.

    The superuser ``postgres`` needs no password, the user ``flawline`` has PASSWORD.
    """

    def __init__(self) -> None:
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"), key=lambda path: float(path.parts[4]))
        if not programs:
            lacking("PostgreSQL is not installed: apt-get install postgresql")
        self._programs = programs[-1].parent
        self._as = _as_somebody()
        # A short path: a socket's may have 107 characters.
        self.folder = Path(tempfile.mkdtemp(prefix="flawline-pg-", dir="/tmp"))
        if os.getuid() == 0:
            somebody = pwd.getpwnam(_somebody())
            os.chown(self.folder, somebody.pw_uid, somebody.pw_gid)
        self.folder.chmod(0o755)
        made = self._run("initdb", "-D", "data", "-U", "postgres", "-A", "trust", "-E", "UTF8", "--no-sync")
        if made.returncode:
            raise AssertionError(made.stderr)
        rules = "local all flawline scram-sha-256\nlocal all all trust\n"
        (self.folder / "data" / "pg_hba.conf").write_text(rules)
        self._process: subprocess.Popen[bytes] | None = None
        self._names = (f"db{number}" for number in itertools.count())
        self.start()
        with self.connect() as connection:
            connection.execute(f"CREATE ROLE flawline LOGIN PASSWORD '{PASSWORD}'")

    def _run(self, program: str, *words: str) -> subprocess.CompletedProcess[str]:
        command = [*self._as, str(self._programs / program), *words]
        return subprocess.run(command, cwd=self.folder, capture_output=True, text=True, check=False)

    def start(self, *settings: str) -> None:
        words = ["-D", "data", "-k", str(self.folder), "-h", "", "-c", "shared_buffers=32MB", *settings]
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [*self._as, str(self._programs / "postgres"), *words], cwd=self.folder, stdout=log, stderr=log
            )
        deadline = time.monotonic() + 150  # a recovery first brings every file to the disk
        while True:
            try:
                self.connect().close()
                return
            except psycopg.OperationalError:
                if time.monotonic() > deadline or self._process.poll() is not None:
                    raise AssertionError((self.folder / "log").read_text()[-2000:]) from None
                time.sleep(0.02)

    @property
    def runs(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def kill(self, number: int = signal.SIGQUIT) -> None:
        """As a crash: SIGQUIT ends every backend at once, without a checkpoint."""
        assert self._process is not None
        self._process.send_signal(number)
        self._process.wait(30)

    def connect(self, database: str = "postgres") -> psycopg.Connection:
        return psycopg.connect(host=str(self.folder), user="postgres", dbname=database, autocommit=True)

    def database(self) -> str:
        """The URL of a new, empty database."""
        name = next(self._names)
        with self.connect() as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 OWNER flawline")
        return f"postgresql://postgres@/{name}?host={self.folder}"

    def close(self) -> None:
        if self.runs:
            self.kill()
        shutil.rmtree(self.folder)


def _somebody() -> str:
    """A user who may run the server: root may not."""
    try:
        return pwd.getpwnam("postgres").pw_name
    except KeyError:
        return "nobody"


def _as_somebody() -> list[str]:
    if os.getuid() != 0:
        return []
    name = _somebody()
    return ["setpriv", f"--reuid={name}", f"--regid={pwd.getpwnam(name).pw_gid}", "--clear-groups", "--"]
