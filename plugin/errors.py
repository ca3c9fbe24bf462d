"""The host's own errors (hops 7 to 12).

FlawlineError
├── AccountError    an account, role or password that will not do
├── ConfigError     host.toml, or a port or folder that is taken
├── ConnectorError  a line controller did not take an output; recorded as refused
└── ReviewError     an inspector's verdict that cannot stand
"""

from __future__ import annotations

from contract.errors import ConfigError, FlawlineError

__all__ = ["AccountError", "ConfigError", "ConnectorError", "FlawlineError", "ReviewError"]


class AccountError(FlawlineError):
    """No such account or role, a name that is taken, a password that is too easy, the last administrator."""


class ConnectorError(FlawlineError):
    """A line controller could not be told; the part counts as not OK there."""


class ReviewError(FlawlineError):
    """There is nothing to undo, or no such part."""
