"""Certificates of an OPC UA server: its own, and whose it trusts (beside hop 10).

A client is trusted by its own certificate, whole, in ``trusted/``; no authority is. One that is not is set down in
``rejected/``, from where a person moves it over.
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress
import os
import re
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from plugin.errors import ConfigError
from plugin.opcua_folder import (
    CERTIFICATE,
    KEY,
    MAX_CERTIFICATE_BYTES,
    MAX_REJECTED,
    MAX_TRUSTED,
    REJECTED,
    TRUSTED,
    _write,
)

YEARS = 5
KEY_BITS = 2048
"""What every client can use; Basic256Sha256 allows 2048 to 4096."""


class Own(NamedTuple):
    """The server's own certificate, checked; ``uri`` is the application's, as the certificate names it."""

    uri: str
    thumbprint: str
    days_left: int


def own_certificate(folder: Path) -> Own:
    """Read and check the server's certificate and key. Raises ConfigError."""
    certificate_path, key_path = folder / CERTIFICATE, folder / KEY
    try:
        mode = key_path.stat().st_mode & 0o777
        if mode & 0o077:
            raise ConfigError(
                f"{key_path}: others may read the key (mode {mode:o}, expected 600); chmod 600 {key_path}"
            )
        data = certificate_path.read_bytes()
        certificate = x509.load_der_x509_certificate(data)
        key = serialization.load_pem_private_key(key_path.read_bytes(), None)
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be read ({error.strerror})") from error
    except (ValueError, TypeError) as error:
        raise ConfigError(f"{folder / 'own'}: expected a certificate as DER and its key as PEM ({error})") from error
    spki = (serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    if key.public_key().public_bytes(*spki) != certificate.public_key().public_bytes(*spki):
        raise ConfigError(f"{certificate_path} and {key_path} do not belong together")
    days_left = (certificate.not_valid_after_utc - datetime.datetime.now(datetime.UTC)).days
    if days_left < 0:
        raise ConfigError(
            f"{certificate_path}: has expired; make another: flawline host opcua certificate {folder} --renew, "
            "and let every client trust it"
        )
    return Own(_uri(certificate, certificate_path), hashlib.sha256(data).hexdigest(), days_left)


def make_certificate(folder: Path, names: Sequence[str], renew: bool = False) -> Own:
    """A key and a self-signed certificate for ``names`` and this machine's own name; kept where there is one."""
    if (folder / CERTIFICATE).exists() and not renew:
        return own_certificate(folder)
    host = socket.gethostname()
    key = rsa.generate_private_key(public_exponent=65537, key_size=KEY_BITS)
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"Flawline on {host}"[:64])])
    now = datetime.datetime.now(datetime.UTC)
    alternatives: list[x509.GeneralName] = [x509.UniformResourceIdentifier(f"urn:{host}:flawline:opcua")]
    alternatives += [_general(name) for name in dict.fromkeys([*names, host])]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))  # clients' clocks
        .not_valid_after(now + datetime.timedelta(days=365 * YEARS))
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(), critical=True)
        .add_extension(
            x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]), critical=False
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    _write(folder / KEY, pem, 0o600)
    _write(folder / CERTIFICATE, certificate.public_bytes(serialization.Encoding.DER), 0o644)
    return own_certificate(folder)


def _key_usage() -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=True,
        key_encipherment=True,
        data_encipherment=True,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )


def _general(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        return x509.DNSName(name)


def _uri(certificate: x509.Certificate, path: Path) -> str:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        return names.get_values_for_type(x509.UniformResourceIdentifier)[0]
    except (x509.ExtensionNotFound, IndexError) as error:
        raise ConfigError(f"{path}: names no application URI among its alternative names") from error


class TrustList:
    """Whose certificates are trusted; the folder is looked at anew each time that somebody asks to be let in."""

    def __init__(self, folder: Path) -> None:
        self._trusted = folder / TRUSTED
        self._rejected = folder / REJECTED
        self._stamp: object = None
        self._prints: frozenset[bytes] = frozenset()
        self.trouble: str | None = None

    def trusts(self, der: bytes | None) -> bool:
        """Whether exactly this certificate lies in ``trusted/``."""
        return der is not None and hashlib.sha256(der).digest() in self._all()

    def reject(self, der: bytes) -> None:
        """Set a certificate down for a person to look at; the oldest make room."""
        with suppress(OSError, ValueError):
            if len(der) > MAX_CERTIFICATE_BYTES:
                return
            path = self._rejected / f"{plain_name(der)}-{hashlib.sha256(der).hexdigest()[:16]}.der"
            if path.exists():
                return
            self._rejected.mkdir(parents=True, exist_ok=True)
            kept = sorted(self._rejected.glob("*.der"), key=lambda each: each.stat().st_mtime)
            for old in kept[: max(0, len(kept) + 1 - MAX_REJECTED)]:
                old.unlink(missing_ok=True)
            path.write_bytes(der)

    def _all(self) -> frozenset[bytes]:
        try:
            entries = _entries(self._trusted)
        except OSError as error:
            self.trouble = f"{self._trusted}: cannot be read ({error.strerror}); nobody is trusted"
            return frozenset()
        if entries != self._stamp:
            self._stamp, self._prints = entries, self._load()
        return self._prints

    def _load(self) -> frozenset[bytes]:
        prints, self.trouble = set(), None
        for path in _files(self._trusted):
            try:
                prints.add(hashlib.sha256(read_certificate(path)).digest())
            except ConfigError as error:
                self.trouble = str(error)
        return frozenset(prints)


def _entries(folder: Path) -> list[tuple[str, int, int]]:
    """Name, time and size of each file; one that is being taken away at this moment is none."""
    entries = []
    for path in _files(folder):
        with suppress(FileNotFoundError):
            state = path.stat()
            entries.append((path.name, state.st_mtime_ns, state.st_size))
    return entries


def read_certificate(path: Path) -> bytes:
    """A certificate's DER from a DER or PEM file. Raises ConfigError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_CERTIFICATE_BYTES + 1)
        if b"-----BEGIN" in data:
            return x509.load_pem_x509_certificate(data).public_bytes(serialization.Encoding.DER)
        return x509.load_der_x509_certificate(data).public_bytes(serialization.Encoding.DER)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"{path}: no certificate as DER or PEM") from error


def plain_name(der: bytes) -> str:
    """Letters and digits of a certificate's common name: what a file may be called. Raises ValueError."""
    names = x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
    text = str(names[0].value) if names else ""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:40] or "unnamed"


def rejected(folder: Path) -> list[Path]:
    """What was turned away, the newest first."""
    newest_first = sorted(_entries(folder / REJECTED), key=lambda entry: -entry[1])
    return [folder / REJECTED / name for name, _, _ in newest_first]


def trust(folder: Path, name: str) -> Path:
    """Move a rejected certificate, or copy any certificate file, into ``trusted/``. Raises ConfigError."""
    source = folder / REJECTED / name
    if os.sep in name or not source.is_file():
        source = Path(name)
    der = read_certificate(source)
    target = folder / TRUSTED / f"{plain_name(der)}-{hashlib.sha256(der).hexdigest()[:16]}.der"
    _write(target, der, 0o644)
    if source.parent == folder / REJECTED:
        source.unlink(missing_ok=True)
    return target


def _files(folder: Path) -> list[Path]:
    if not folder.is_dir():
        return []
    found = [path for path in folder.iterdir() if path.suffix.lower() in (".der", ".pem", ".crt", ".cer")]
    return sorted(path for path in found if path.is_file())[:MAX_TRUSTED]
