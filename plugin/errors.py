"""The host's own errors (hops 7 to 12).

FlawlineError
├── AccountError    an account, role or password that will not do
├── AskError        an edge or the running host did not do what was asked
├── ConfigError     host.toml, or a port or folder that is taken
├── ConnectorError  a line controller did not take an output; recorded as refused
├── LineError       what was asked of a line cannot be done
├── ReviewError     an inspector's verdict that cannot stand
└── StoreLostError  the store's database cannot be written by this host now
"""

from __future__ import annotations

from contract.errors import ConfigError, FlawlineError

__all__ = [
    "AccountError",
    "AskError",
    "ConfigError",
    "ConnectorError",
    "FlawlineError",
    "LineError",
    "ReviewError",
    "StoreLostError",
]


class AccountError(FlawlineError):
    """No such account or role, a name that is taken, a password that is too easy, the last administrator."""


class AskError(FlawlineError):
    """What was asked was not done (exit code 2), or nobody knows whether it was (1)."""

    def __init__(self, message: str, exit_code: int = 2) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ConnectorError(FlawlineError):
    """A line controller could not be told; the part counts as not OK there."""


class LineError(FlawlineError):
    """No such line or master, a name that is taken, no masters to read."""


class ReviewError(FlawlineError):
    """There is nothing to undo, or no such part."""


class StoreLostError(FlawlineError):
    """Another host holds the store, or its server would lose what it acknowledges; tried again while the host runs."""
