"""CURVE key files and who is authorised: made, read and distrusted here (before hops 6 and 7).

A key pair is two files in the format of ZeroMQ's own certificates: ``NAME.key`` (public, to be carried to the other
side) and ``NAME.key_secret`` (never leaves its machine). A host's folder holds ``host.key_secret`` and, under
``edges/``, the public file of each edge that may speak: the file's name is the edge's id.
"""

from __future__ import annotations

import errno
import hashlib
import ipaddress
import os
import re
import stat
import string
import tempfile
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import zmq

from contract.errors import KeyFileError

PUBLIC = ".key"
SECRET = ".key_secret"
HOST = "host"
EDGES = "edges"
REVOKED = "revoked"
MAX_FILE_BYTES = 4096
MAX_EDGES = 4096
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
Z85 = frozenset(string.digits + string.ascii_letters + ".-:+=^!/*?&<>()[]{}@%$#")

_HEAD = """\
#   Flawline CURVE {kind} key of {name}
#   {advice}

metadata
    name = {name}
curve
    public-key = "{public}"
"""


@dataclass(frozen=True)
class KeyPair:
    """A name, its public key (Z85, 40 characters) and its secret key, which no ``repr`` shows."""

    name: str
    public: str
    secret: bytes = field(repr=False)


class Authorised(NamedTuple):
    """``names``: public key (Z85) -> edge id. ``problems``: a sentence for each file that is not trusted."""

    names: dict[str, str]
    problems: list[str]


def is_loopback(host: str) -> bool:
    """Whether ``host`` (a name or an address, no port) can be reached from this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def leaves_machine(endpoint: str) -> bool:
    """Whether another machine can be at the other end of a ZeroMQ endpoint (``tcp://ADDRESS:PORT``, ``ipc://PATH``)."""
    if endpoint.startswith(("ipc://", "inproc://")):
        return False
    return not is_loopback(endpoint.removeprefix("tcp://").rpartition(":")[0].strip("[]"))


def fingerprint(public: str) -> str:
    """A public key as it is compared over the telephone: 16 hex digits in fours."""
    digest = hashlib.sha256(public.encode()).hexdigest()[:16]
    return " ".join(digest[at : at + 4] for at in range(0, 16, 4))


def new_pair(folder: Path, name: str) -> KeyPair:
    """Make ``name``'s key pair in ``folder``; raises KeyFileError where there is one or the folder is not safe."""
    check_name(name, f"{folder}")
    make_folder(folder)
    public, secret = zmq.curve_keypair()
    text = _text(
        name, public.decode(), "secret", "Stays on this machine, mode 0600. Whoever has it speaks as its owner."
    )
    secret_file, public_file = folder / f"{name}{SECRET}", folder / f"{name}{PUBLIC}"
    if public_file.exists():
        raise KeyFileError(f"{public_file}: exists already; nothing was written. Give another name or folder")
    create_file(secret_file, f'{text}    secret-key = "{secret.decode()}"\n', 0o600)
    try:
        create_file(public_file, _public_text(name, public.decode()), 0o644)
    except KeyFileError:
        secret_file.unlink()
        raise
    return KeyPair(name, public.decode(), secret)


def load_pair(path: Path) -> KeyPair:
    """Read a secret key file. Raises KeyFileError, with the command that mends it, unless it is ours alone."""
    check_name(path.name.removesuffix(SECRET), str(path))
    check_folder(path.parent)
    values = parse_key_file(path, read_key_file(path, secret=True))
    public, secret = values.get("public-key", ""), values.get("secret-key", "")
    if not _is_key(public) or not _is_key(secret) or zmq.curve_public(secret.encode()).decode() != public:
        raise KeyFileError(
            f"{path}: expected a public and a secret key of 40 Z85 characters that belong together; the file is "
            f"damaged: remove it and make a new pair: flawline keys new {path.name.removesuffix(SECRET)} "
            f"--dir {path.parent}"
        )
    return KeyPair(path.name.removesuffix(SECRET), public, secret.encode())


def load_public(path: Path, *, carried: bool = False) -> str:
    """The public key in a file. Raises KeyFileError; ``carried``: from a memory stick, whose modes say nothing."""
    values = parse_key_file(path, read_key_file(path, secret=False, carried=carried))
    if "secret-key" in values:
        raise KeyFileError(
            f"{path}: holds a secret key, which must not travel; carry the {PUBLIC} file, and make a new pair "
            "if this one has left its machine"
        )
    if not _is_key(values.get("public-key", "")):
        raise KeyFileError(f"{path}: expected a public key of 40 Z85 characters; carry the {PUBLIC} file again")
    return values["public-key"]


def read_authorised(folder: Path) -> Authorised:
    """The edges that ``folder`` (a host's key folder) authorises. Raises KeyFileError where it is not safe itself.

    A file that is not trusted authorises nobody; so does a key that two files claim, because it has no one name.
    """
    edges = folder / EDGES
    if not edges.is_dir():
        return Authorised({}, [])
    check_folder(folder)
    check_folder(edges)
    claims: dict[str, list[str]] = {}
    problems: list[str] = []
    for path in sorted(edges.glob(f"*{PUBLIC}"))[:MAX_EDGES]:
        try:
            check_name(path.stem, str(path))
            claims.setdefault(load_public(path), []).append(path.stem)
        except KeyFileError as error:
            problems.append(str(error))
    for public in claims.keys() & _revoked(folder):
        problems.append(f"{edges}: the key of {claims.pop(public)} was revoked and is not taken again")
    for names in claims.values():
        if len(names) > 1:
            problems.append(f"{edges}: one key is claimed by {names}; it authorises nobody until one file is left")
    return Authorised({public: names[0] for public, names in claims.items() if len(names) == 1}, problems)


def authorise(folder: Path, file: Path) -> str:
    """Let the edge whose public ``file`` this is speak to the host of ``folder``; returns its name."""
    name = file.name.removesuffix(PUBLIC)
    check_name(name, str(file))
    public = load_public(file, carried=True)
    make_folder(folder)
    make_folder(folder / EDGES)
    _refuse_used_key(folder, name, public)
    target = folder / EDGES / f"{name}{PUBLIC}"
    if target.exists():
        if load_public(target) == public:
            return name
        raise KeyFileError(
            f"{target}: another key of {name!r} is authorised; revoke it first: "
            f"flawline keys revoke {name} --dir {folder}"
        )
    replace_file(target, _public_text(name, public))
    return name


def revoke(folder: Path, name: str) -> str:
    """Take an edge's key out of the authorised ones, for good; returns the key. Raises KeyFileError."""
    source = folder / EDGES / f"{name}{PUBLIC}"
    if not NAME.fullmatch(name) or not source.is_file():
        known = ", ".join(sorted(path.stem for path in (folder / EDGES).glob(f"*{PUBLIC}"))) or "nobody"
        raise KeyFileError(f"{folder}: no edge {name!r:.80} is authorised; authorised are: {known}")
    public = load_public(source, carried=True)
    check_folder(folder)
    check_folder(folder / EDGES)  # a host that does not trust the folder would go on with what it knew
    make_folder(folder / REVOKED)
    replace_file(
        folder / REVOKED / f"{name}-{fingerprint(public).replace(' ', '')}{PUBLIC}", _public_text(name, public)
    )
    source.unlink()
    handle = os.open(source.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)  # else a power cut could bring the authorisation back
    finally:
        os.close(handle)
    return public


def _revoked(folder: Path) -> set[str]:
    """Keys that must never speak again."""
    found = set()
    for path in (folder / REVOKED).glob(f"*{PUBLIC}"):
        with suppress(KeyFileError):
            found.add(load_public(path, carried=True))
    return found


def make_folder(folder: Path) -> None:
    """Make a key folder, mode 0700, or check the one that is there. Raises KeyFileError."""
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise KeyFileError(f"{folder}: cannot be made ({error.strerror}); give another folder with --dir") from error
    check_folder(folder)


def check_folder(folder: Path) -> None:
    """Raise KeyFileError where somebody else could put files into ``folder``."""
    try:
        found = folder.stat()
    except OSError as error:
        raise KeyFileError(
            f"{folder}: cannot be opened ({error.strerror}); make keys with: flawline keys new NAME --dir {folder}"
        ) from error
    if not stat.S_ISDIR(found.st_mode):
        raise KeyFileError(f"{folder}: expected a folder of keys")
    if found.st_uid not in (0, os.geteuid()):
        raise KeyFileError(f"{folder}: belongs to user {found.st_uid}; mend it with: chown {os.geteuid()} {folder}")
    if found.st_mode & 0o022:
        raise KeyFileError(
            f"{folder}: mode {found.st_mode & 0o7777:04o}, others could put keys there; "
            f"mend it with: chmod 700 {folder}"
        )


def _refuse_used_key(folder: Path, name: str, public: str) -> None:
    for path in [
        folder / f"{HOST}{PUBLIC}",
        *(folder / REVOKED).glob(f"*{PUBLIC}"),
        *(folder / EDGES).glob(f"*{PUBLIC}"),
    ]:
        try:
            same = load_public(path, carried=True) == public
        except KeyFileError:
            continue
        if not same or path == folder / EDGES / f"{name}{PUBLIC}":
            continue
        if path.parent.name == REVOKED:
            raise KeyFileError(
                f"{path}: this key was revoked and is not taken again; make a new pair on the edge: flawline keys new "
                f"{name}"
            )
        raise KeyFileError(f"{path}: the same key under another name; every edge has a pair of its own")


def check_name(name: str, where: str, whose: str = "an edge") -> None:
    """Raise KeyFileError unless ``name`` may be a file's name and an identity."""
    if not NAME.fullmatch(name):
        raise KeyFileError(
            f"{where}: {name[:80]!r} is no name of {whose}; expected letters, digits, '.', '_' and '-', at most 63"
        )


def _text(name: str, public: str, kind: str, advice: str) -> str:
    return _HEAD.format(kind=kind, name=name, public=public, advice=advice)


def _public_text(name: str, public: str) -> str:
    return _text(name, public, "public", "May be seen by anyone; carry it so that nobody can exchange it on the way.")


def create_file(path: Path, text: str, mode: int) -> None:
    """Write a new file that has its mode from the first byte on."""
    try:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    except FileExistsError as error:
        raise KeyFileError(f"{path}: exists already; nothing was written. Give another name or folder") from error
    except OSError as error:
        raise KeyFileError(f"{path}: cannot be written ({error.strerror})") from error
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())


def replace_file(path: Path, text: str) -> None:
    """Write a public file in one piece: a host that watches the folder never sees half of it."""
    handle, draft = tempfile.mkstemp(dir=path.parent, prefix=".draft-")
    with os.fdopen(handle, "w", encoding="ascii") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    Path(draft).replace(path)


def read_key_file(path: Path, *, secret: bool, carried: bool = False) -> str:
    """The file's text, every check made on the open file, so that it cannot be exchanged in between."""
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        raise KeyFileError(_unopened(path, error, secret)) from error
    if stat.S_ISDIR(os.fstat(handle).st_mode):  # nor would Python make a file of it
        os.close(handle)
        raise KeyFileError(f"{path}: a folder; expected a key file of at most {MAX_FILE_BYTES} bytes")
    with os.fdopen(handle, "rb") as file:
        found = os.fstat(file.fileno())
        if not stat.S_ISREG(found.st_mode) or found.st_size > MAX_FILE_BYTES:
            raise KeyFileError(f"{path}: expected a key file of at most {MAX_FILE_BYTES} bytes")
        if not carried:
            _check_owner(path, found, secret)
        data = file.read(MAX_FILE_BYTES)
    try:
        return data.decode("ascii")
    except UnicodeDecodeError as error:
        raise KeyFileError(f"{path}: not a key file; expected ASCII text") from error


def _check_owner(path: Path, found: os.stat_result, secret: bool) -> None:
    owners = (os.geteuid(),) if secret else (0, os.geteuid())
    if found.st_uid not in owners:
        raise KeyFileError(f"{path}: belongs to user {found.st_uid}; mend it with: chown {os.geteuid()} {path}")
    if secret and found.st_mode & 0o077:
        raise KeyFileError(
            f"{path}: mode {found.st_mode & 0o7777:04o}, expected 0600: others can read the secret. Mend it with: "
            f"chmod 600 {path}, or make a new pair where somebody may have read it"
        )
    if found.st_mode & 0o022:
        raise KeyFileError(
            f"{path}: mode {found.st_mode & 0o7777:04o}, others could change it; mend it with: chmod 644 {path}"
        )


def _unopened(path: Path, error: OSError, secret: bool) -> str:
    if error.errno == errno.ELOOP:
        return (
            f"{path}: a symbolic link is not followed; put the file itself there: cp --remove-destination FILE {path}"
        )
    if error.errno == errno.ENOENT and secret:
        name = path.name.removesuffix(SECRET)
        return f"{path}: no such key; make it on this machine: flawline keys new {name} --dir {path.parent}"
    if error.errno == errno.ENOENT:
        return f"{path}: no such key; carry the public file of the other side there"
    return f"{path}: cannot be read ({error.strerror})"


def parse_key_file(path: Path, text: str) -> dict[str, str]:
    """Lines ``key = "value"`` as ZeroMQ's own certificates have them."""
    values: dict[str, str] = {}
    for line in text.splitlines():
        key, equals, value = line.strip().partition("=")
        if equals and not key.startswith("#"):
            if key.strip() in values:
                raise KeyFileError(f"{path}: {key.strip()[:40]!r} stands twice; the file is damaged")
            values[key.strip()] = value.strip(" \t'\"")
    return values


def _is_key(text: str) -> bool:
    return len(text) == 40 and Z85.issuperset(text)
