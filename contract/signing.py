"""Ed25519 key files of the people who sign bundles, and whom an edge trusts to do what (before hop 3).

A person's pair is two files: ``NAME.sign_secret`` (mode 0600, never leaves its owner) and ``NAME.sign`` (public). An
edge in production has a folder of trusted public files, one sub-folder for each role: ``validate/NAME.sign`` and
``release/NAME.sign``. The file rules are those of the wire's keys.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

from contract.errors import KeyFileError
from contract.keys import (
    check_folder,
    check_name,
    create_file,
    fingerprint,
    make_folder,
    parse_key_file,
    read_key_file,
    replace_file,
)

PUBLIC = ".sign"
SECRET = ".sign_secret"
MAX_SIGNERS = 256
KEY = re.compile(r"[0-9a-f]{64}")

Role = Literal["validate", "release"]
ROLES: tuple[Role, ...] = ("validate", "release")

_HEAD = """\
#   Flawline {kind} signing key of {name}
#   {advice}

metadata
    name = {name}
ed25519
    public-key = "{public}"
"""


@dataclass(frozen=True)
class SigningPair:
    """A person's name, public key (64 hex digits) and secret key, which no ``repr`` shows."""

    name: str
    public: str
    secret: bytes = field(repr=False)

    def sign(self, message: bytes) -> str:
        """Ed25519 signature of ``message``, 128 hex digits."""
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return Ed25519PrivateKey.from_private_bytes(self.secret).sign(message).hex()


class Trusted(NamedTuple):
    """Whom a folder trusts: for each role public key (64 hex digits) -> name."""

    folder: Path
    roles: dict[Role, dict[str, str]]


def signed_by(public: str, signature: str, message: bytes) -> bool:
    """Whether ``signature`` (128 hex digits) over ``message`` was made with the secret half of ``public``."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    try:
        Ed25519PublicKey.from_public_bytes(bytes.fromhex(public)).verify(bytes.fromhex(signature), message)
    except (InvalidSignature, ValueError):
        return False
    return True


def new_signing_pair(folder: Path, name: str) -> SigningPair:
    """Make ``name``'s signing pair in ``folder``; raises KeyFileError where there is one or the folder is not safe."""
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    check_name(name, f"{folder}", "a person")
    make_folder(folder)
    secret = Ed25519PrivateKey.generate().private_bytes_raw()
    pair = SigningPair(name, _public_of(secret), secret)
    advice = "Belongs to one person alone, mode 0600. Whoever has it signs in that person's name."
    head = _HEAD.format(kind="secret", name=name, public=pair.public, advice=advice)
    if (folder / f"{name}{PUBLIC}").exists():
        raise KeyFileError(f"{folder / name}{PUBLIC}: exists already; nothing was written. Give another name or folder")
    create_file(folder / f"{name}{SECRET}", f'{head}    secret-key = "{secret.hex()}"\n', 0o600)
    try:
        create_file(folder / f"{name}{PUBLIC}", _public_text(name, pair.public), 0o644)
    except KeyFileError:
        (folder / f"{name}{SECRET}").unlink()
        raise
    return pair


def load_signing_pair(path: Path) -> SigningPair:
    """Read a person's secret key. Raises KeyFileError, with the command that mends it, unless it is ours alone."""
    name = path.name.removesuffix(SECRET)
    make = f"flawline keys sign-new {name} --dir {path.parent}"
    if not path.name.endswith(SECRET):
        raise KeyFileError(
            f"{path}: expected a secret signing key, NAME{SECRET}; make one: flawline keys sign-new NAME"
        )
    check_name(name, str(path), "a person")
    if not path.is_symlink() and not path.exists():
        raise KeyFileError(f"{path}: no such signing key; make one of your own: {make}")
    check_folder(path.parent)
    values = parse_key_file(path, read_key_file(path, secret=True))
    public, secret = values.get("public-key", ""), values.get("secret-key", "")
    if not KEY.fullmatch(public) or not KEY.fullmatch(secret) or _public_of(bytes.fromhex(secret)) != public:
        raise KeyFileError(
            f"{path}: expected a public and a secret key of 64 hex digits that belong together; the file is damaged: "
            f"remove it and make a new pair: {make}"
        )
    return SigningPair(name, public, bytes.fromhex(secret))


def load_signer(path: Path, *, carried: bool = False) -> str:
    """The public key in a person's ``NAME.sign``. Raises KeyFileError; ``carried``: from a memory stick."""
    values = parse_key_file(path, read_key_file(path, secret=False, carried=carried))
    if "secret-key" in values:
        raise KeyFileError(f"{path}: holds a secret key, which must not travel; carry the {PUBLIC} file")
    if not KEY.fullmatch(values.get("public-key", "")):
        raise KeyFileError(f"{path}: expected a public signing key of 64 hex digits; carry the {PUBLIC} file again")
    return values["public-key"]


def read_trusted(folder: Path) -> Trusted:
    """Whom ``folder`` trusts. Raises KeyFileError where the folder or one file in it cannot be trusted itself."""
    way_out = f"flawline keys sign-trust NAME{PUBLIC} --may validate --dir {folder}"
    if not folder.is_dir():
        raise KeyFileError(f"{folder}: no folder of trusted signing keys; make it with: {way_out}")
    check_folder(folder)
    trusted = Trusted(folder, {role: _read_role(folder / role) for role in ROLES})
    names: dict[str, str] = {}
    for keys in trusted.roles.values():
        for public, name in keys.items():
            if names.setdefault(public, name) != name:
                raise KeyFileError(f"{folder}: {names[public]!r} and {name!r} have the same key; remove one of the two")
    return trusted


def _read_role(folder: Path) -> dict[str, str]:
    """Public key -> name of one role; nobody where there is no folder."""
    if not folder.is_dir():
        return {}
    check_folder(folder)
    paths = sorted(folder.glob(f"*{PUBLIC}"))
    if len(paths) > MAX_SIGNERS:
        raise KeyFileError(f"{folder}: {len(paths)} keys, at most {MAX_SIGNERS}; remove those of people who left")
    found: dict[str, str] = {}
    for path in paths:
        check_name(path.stem, str(path), "a person")
        public = load_signer(path)
        if public in found:
            raise KeyFileError(f"{path}: the same key as {found[public]}{PUBLIC}; every person has a pair of their own")
        found[public] = path.stem
    return found


def trust(folder: Path, file: Path, role: Role) -> str:
    """Let the person whose public ``file`` this is validate or release for the edge of ``folder``; returns the name."""
    name = file.name.removesuffix(PUBLIC)
    check_name(name, str(file), "a person")
    public = load_signer(file, carried=True)
    for each in (folder, folder / role):
        if not each.exists():
            make_folder(each)
            each.chmod(0o755)  # public, and an edge that runs as another user than the one who trusts must read it
    for keys in read_trusted(folder).roles.values():
        for known, whose in keys.items():
            if whose == name and known != public:
                raise KeyFileError(
                    f"{folder}: another key of {name!r} is trusted; take it back first: "
                    f"flawline keys sign-revoke {name} --dir {folder}"
                )
            if known == public and whose != name:
                raise KeyFileError(f"{file}: the key of {whose!r} under another name; every person has their own")
    target = folder / role / f"{name}{PUBLIC}"
    replace_file(target, _public_text(name, public))
    target.chmod(0o644)
    return name


def distrust(folder: Path, name: str) -> list[Role]:
    """Take a person's key out of every role; the roles it had. Raises KeyFileError where it had none."""
    check_name(name, str(folder), "a person")
    had: list[Role] = []
    for role in ROLES:
        with suppress(FileNotFoundError):
            (folder / role / f"{name}{PUBLIC}").unlink()
            had.append(role)
    if not had:
        known = sorted({path.stem for role in ROLES for path in (folder / role).glob(f"*{PUBLIC}")})
        raise KeyFileError(f"{folder}: no key of {name!r} is trusted; trusted are: {', '.join(known) or 'nobody'}")
    return had


def _public_of(secret: bytes) -> str:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    return Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw().hex()


def _public_text(name: str, public: str) -> str:
    advice = f"May be seen by anyone; compare the fingerprint with its owner: {fingerprint(public)}"
    return _HEAD.format(kind="public", name=name, public=public, advice=advice)
