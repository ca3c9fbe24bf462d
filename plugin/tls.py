"""Checks the certificate and key of the review pages before anything is served with them (before hop 11)."""

from __future__ import annotations

import ssl
from pathlib import Path

from plugin.errors import ConfigError


def check_pair(certificate: Path, key: Path) -> None:
    """Raise ConfigError unless both files can be read, belong together and the key is its owner's alone."""
    try:
        mode = key.stat().st_mode & 0o777
        if mode & 0o077:
            raise ConfigError(f"{key}: others may read the key (mode {mode:o}, expected 600); chmod 600 {key}")
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        # An encrypted key must be refused, not asked about on a terminal that nobody watches.
        context.load_cert_chain(certificate, key, password=lambda: "")
    except ssl.SSLError as error:
        raise ConfigError(
            f"{certificate} and {key}: cannot be used ({error.reason or error}); expected a certificate with its chain "
            "and the key that belongs to it, both PEM, the key without a passphrase"
        ) from error
    except OSError as error:
        raise ConfigError(f"{error.filename or certificate}: cannot be read ({error.strerror or error})") from error
