"""What a connector reads from files beside host.toml: secrets, and whom it trusts over TLS (hop 10)."""

from __future__ import annotations

import os
import ssl
import stat
from pathlib import Path

from plugin.errors import ConfigError

MAX_BYTES = 4096


def read_private(path: Path, what: str) -> list[str]:
    """The lines of a small file that its owner alone may read; raises ConfigError."""
    try:
        with path.open("rb") as file:
            state = os.fstat(file.fileno())
            if not stat.S_ISREG(state.st_mode):
                raise ConfigError(f"{path}: {what} is expected in a plain file")
            if state.st_mode & 0o077:
                mode = f"{state.st_mode & 0o777:o}"
                raise ConfigError(f"{path}: others may read {what} (mode {mode}, expected 600); chmod 600 {path}")
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {what} cannot be read ({error.strerror or error})") from error
    if len(data) > MAX_BYTES:
        raise ConfigError(f"{path}: {what} has at most {MAX_BYTES} bytes; this is another file")
    try:
        return data.decode().splitlines()
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: {what} must be UTF-8") from error


def trusting(ca: Path | None) -> ssl.SSLContext:
    """TLS that believes the authorities in ``ca``, or the machine's where there is none; raises ConfigError."""
    try:
        return ssl.create_default_context(cafile=None if ca is None else str(ca))
    except (OSError, ssl.SSLError) as error:
        raise ConfigError(f"{ca}: cannot be used ({error}); expected certificates of authorities, PEM") from error
