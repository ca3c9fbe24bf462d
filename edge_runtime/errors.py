"""What stops an edge or one of its cameras, each a sentence with the way out (hops 1 to 6).

contract.errors.FlawlineError
├── CameraError    a camera that cannot be opened or read
├── EngineError    an engine that is missing or fails
│   └── ParityError    an engine that disagrees with the bundle's golden images
└── SpoolError     the edge's own record cannot be opened or written
"""

from __future__ import annotations

from contract.errors import FlawlineError


class CameraError(FlawlineError):
    """A camera's URL is wrong, it is not there, or it stopped delivering."""


class EngineError(FlawlineError):
    """An inference engine is not installed, refuses the graph or fails."""


class ParityError(EngineError):
    """The engine that would serve deviates from the scores that the bundle was exported with."""


class SpoolError(FlawlineError):
    """An event cannot be recorded: the station stops, since what is not recorded must not pass."""
