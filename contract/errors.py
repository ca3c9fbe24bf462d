"""The errors a user can meet, each a sentence that names the thing, what was found and the way out (every hop).

FlawlineError
├── ConfigError    a TOML file, an option or an environment variable
├── BundleError    a bundle folder: missing, changed, foreign or not calibrated
├── DatasetError   a folder of images
├── ImageError     one image or frame
│   └── FixtureError   one in which a part is not found where and as it should be
├── KeyFileError   a CURVE key file that is missing, readable by others or damaged
└── EventError     a message on the wire or a row in a spool
"""

from __future__ import annotations


class FlawlineError(Exception):
    """Base of every error that is the user's to mend; commands print it without a traceback and exit with 2."""

    exit_code = 2


class ConfigError(FlawlineError):
    """A setting is missing, unknown or out of range."""


class BundleError(FlawlineError):
    """A bundle cannot be trusted or used."""


class DatasetError(FlawlineError):
    """A folder of images cannot be used as asked."""


class ImageError(FlawlineError):
    """An image or a frame cannot be read or does not fit the recipe."""


class FixtureError(ImageError):
    """A part is not found in a picture, or not surely enough to be cut out.

    ``measures`` are those of the best place, keyed as in the event's ``quality``; empty where there is none.
    """

    def __init__(self, message: str, measures: dict[str, float] | None = None) -> None:
        super().__init__(message)
        self.measures = measures or {}


class KeyFileError(FlawlineError):
    """A key file cannot be trusted or made. Never carries a secret key."""


class EventError(FlawlineError):
    """A message does not follow the event contract.

    ``code`` is one of ``schema``, ``size``, ``parts``, ``version`` or ``identity`` and travels in the negative
    acknowledgement.
    """

    def __init__(self, message: str, code: str = "schema") -> None:
        super().__init__(message)
        self.code = code
