"""The folder of an OPC UA server: the nodeset, its own certificate, whom it trusts, its users (beside hop 10).

``Opc.Ua.MachineVision.NodeSet2.xml``, ``own/``, ``trusted/``, ``rejected/``, ``users``. Everything in it is read anew
when it changes; an integrator needs no restart to let a client in or out.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

from plugin.errors import ConfigError

if TYPE_CHECKING:
    from argon2 import PasswordHasher

NODESET = "Opc.Ua.MachineVision.NodeSet2.xml"
NODESET_SHA256 = "3e67454155a9618e0981aa8b3ee248f7a9ee216f9f915b53eb26a69533c0cc62"
NODESET_BYTES = 804_978
PACKAGE = "node-opcua-nodesets"
PACKAGE_VERSION = "2.182.0"
NOTICE = f"LICENSE.{PACKAGE}"
IN_PACKAGE = {f"package/nodesets/{NODESET}": NODESET, "package/LICENSE": NOTICE}
MAX_NOTICE_BYTES = 64 << 10
CERTIFICATE, KEY = "own/certificate.der", "own/key.pem"
TRUSTED, REJECTED, USERS = "trusted", "rejected", "users"
MAX_CERTIFICATE_BYTES = 16 << 10
MAX_TRUSTED = 256
MAX_REJECTED = 50
MAX_USERS_BYTES = 64 << 10
SHORTEST, LONGEST = 10, 256
Role = Literal["read", "control"]
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,59}")


class Machine(NamedTuple):
    """A user of the server: a program, not a person. ``control`` may call methods that change something."""

    name: str
    role: Role
    hash: str


def nodeset_of(folder: Path) -> Path:
    """The nodeset, checked. Raises ConfigError that says how to get it."""
    path = folder / NODESET
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path}: the OPC 40100-1 nodeset cannot be read ({error.strerror}). It is not part of Flawline; get it "
            f"once: flawline host opcua nodeset {folder}"
        ) from error
    if not _is_nodeset(data):
        raise ConfigError(f"{path}: not the nodeset that is expected (sha256 {NODESET_SHA256}); take it anew")
    return path


def take_nodeset(folder: Path, source: Path | None) -> Path:
    """Put the nodeset and its notice into ``folder``: from an XML file, a package's folder or tarball, or by npm."""
    if source is None:
        with tempfile.TemporaryDirectory() as scratch:
            files = _from_tarball(_npm_pack(Path(scratch)))
    elif source.is_dir():
        files = _from_folder(source)
    elif source.suffix.lower() == ".xml":
        files = {NODESET: _read(source, NODESET_BYTES)}
    else:
        files = _from_tarball(source)
    if not _is_nodeset(files.get(NODESET, b"")):
        raise ConfigError(
            f"{source or PACKAGE}: holds no {NODESET} of sha256 {NODESET_SHA256}, which {PACKAGE} {PACKAGE_VERSION} "
            "has; nothing was written"
        )
    for name, data in files.items():
        _write(folder / name, data, 0o644)
    return folder / NODESET


def _is_nodeset(data: bytes) -> bool:
    return len(data) == NODESET_BYTES and hashlib.sha256(data).hexdigest() == NODESET_SHA256


def _npm_pack(scratch: Path) -> Path:
    npm = shutil.which("npm")
    if npm is None:
        raise ConfigError(
            f"npm is not installed here: get {PACKAGE} {PACKAGE_VERSION} on another machine (npm pack "
            f"{PACKAGE}@{PACKAGE_VERSION}), bring the .tgz here and give it with --from"
        )
    words = [npm, "pack", "--silent", "--ignore-scripts", f"{PACKAGE}@{PACKAGE_VERSION}"]
    try:
        done = subprocess.run(words, cwd=scratch, capture_output=True, text=True, check=False, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise ConfigError(f"npm pack {PACKAGE}: {error}") from error
    found = next(scratch.glob("*.tgz"), None)
    if found is None:
        said = (done.stderr.strip().splitlines() or ["npm says nothing"])[-1]
        raise ConfigError(f"npm pack {PACKAGE}@{PACKAGE_VERSION} brought nothing: {said[:200]}")
    return found


def _from_tarball(path: Path) -> dict[str, bytes]:
    files: dict[str, bytes] = {}
    try:
        with tarfile.open(path, "r:*") as tar:
            for member in tar:
                name = IN_PACKAGE.get(member.name)
                opened = tar.extractfile(member) if name and member.isfile() else None
                if name and opened is not None:
                    files[name] = opened.read(_limit(name))
    except (OSError, tarfile.TarError, EOFError, zlib.error) as error:
        raise ConfigError(f"{path}: no npm package could be read from it ({error})") from error
    return files


def _from_folder(folder: Path) -> dict[str, bytes]:
    places = {NODESET: ("nodesets", "package/nodesets", "."), NOTICE: (".", "package", ".")}
    names = {NODESET: NODESET, NOTICE: "LICENSE"}
    found = {
        wanted: next(
            (folder / place / names[wanted] for place in each if (folder / place / names[wanted]).is_file()), None
        )
        for wanted, each in places.items()
    }
    return {wanted: _read(path, _limit(wanted)) for wanted, path in found.items() if path is not None}


def _limit(name: str) -> int:
    return NODESET_BYTES + 1 if name == NODESET else MAX_NOTICE_BYTES


def _read(path: Path, limit: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(limit + 1)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error


def _write(path: Path, data: bytes, mode: int) -> None:
    """Whole or not at all; never readable by others for a moment where ``mode`` says so."""
    draft = path.with_name(path.name + ".draft")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        draft.unlink(missing_ok=True)
        with os.fdopen(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
        draft.replace(path)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror})") from error


class Users:
    """The users of a folder, read anew when the file changes. Used from the server's own thread and one for hashing."""

    def __init__(self, folder: Path, hasher: PasswordHasher | None = None) -> None:
        from plugin.accounts import default_hasher

        self.path = folder / USERS
        self._hasher = hasher or default_hasher()
        self._nobody = self._hasher.hash(os.urandom(16).hex())
        self._stamp: tuple[int, int, int] | None = None
        self._found: dict[str, Machine] = {}

    def all(self) -> dict[str, Machine]:
        """Every user by name; none where the file cannot be read."""
        stamp = _stamp(self.path)
        if stamp != self._stamp:
            self._found = read_users(self.path) if stamp else {}
            self._stamp = stamp
        return self._found

    def check(self, name: str, password: str) -> Machine | None:
        """The user of this name and password; as much work for a name that does not exist."""
        from argon2.exceptions import InvalidHashError, VerificationError

        user = self.all().get(name)
        too_long = len(password) > LONGEST
        try:
            right: bool = self._hasher.verify(
                self._nobody if user is None or too_long else user.hash, password[:LONGEST]
            )
        except (VerificationError, InvalidHashError):
            right = False
        return user if right and not too_long else None

    def put(self, name: str, role: Role, password: str) -> None:
        """Add a user, or give another password and role. Raises ConfigError."""
        if not NAME.fullmatch(name):
            raise ConfigError(f"{name[:80]!r} is no name for a user: letters, digits, `_`, `.`, `-`, at most 60")
        if not SHORTEST <= len(password) <= LONGEST or len(set(password)) < 4 or password.casefold() == name.casefold():
            raise ConfigError(f"a password has {SHORTEST} to {LONGEST} characters, not all alike; nothing was changed")
        self._save({**self.all(), name: Machine(name, role, self._hasher.hash(password))})

    def remove(self, name: str) -> None:
        """Take a user away; its connections end within seconds. Raises ConfigError."""
        users = dict(self.all())
        if users.pop(name, None) is None:
            raise ConfigError(f"{self.path}: there is no user {name[:80]!r}")
        self._save(users)

    def _save(self, users: dict[str, Machine]) -> None:
        text = "".join(f"{user.name} {user.role} {user.hash}\n" for user in users.values())
        _write(self.path, text.encode(), 0o600)


def read_users(path: Path) -> dict[str, Machine]:
    """Lines of name, role and Argon2 hash. Raises ConfigError: a file that is half right lets nobody in."""
    data = _read(path, MAX_USERS_BYTES)
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"{path}: others may read the users; chmod 600 {path}")
    users: dict[str, Machine] = {}
    for number, line in enumerate(data.decode("utf-8", "replace").splitlines(), start=1):
        words = line.split()
        if not words or words[0].startswith("#"):
            continue
        if len(words) != 3 or words[1] not in ("read", "control") or not words[2].startswith("$argon2id$"):
            raise ConfigError(f"{path}, line {number}: expected a name, read or control, and an argon2id hash")
        users[words[0]] = Machine(words[0], words[1], words[2])  # type: ignore[arg-type]
    return users


def _stamp(path: Path) -> tuple[int, int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size, state.st_ino
