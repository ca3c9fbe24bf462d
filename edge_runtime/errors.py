"""What stops an edge or one of its cameras, each a sentence with the way out (hops 1 to 6).

contract.errors.FlawlineError
└── EdgeError
    ├── CameraError    a camera, or the file that stands in for one, that cannot be opened or read
    ├── RingError      the frames in shared memory
    ├── CodeError      a code on a part that is not read, or not surely enough
    ├── EngineError    an engine that is missing or fails
    │   ├── ParityError    an engine that disagrees with the bundle's golden images
    │   └── CardLostError  a graphics card that does not compute for this process any more
    └── SpoolError     the edge's own record cannot be opened or written
        └── SpoolBlockedError  for now: the disk is full, read-only or fails, or the spool's own limit is reached
"""

from __future__ import annotations

from contract.errors import FlawlineError


class EdgeError(FlawlineError):
    """Base of what goes wrong beside the line."""


class CameraError(EdgeError):
    """A camera is absent, silent, or gives what cannot be used."""


class CodeError(EdgeError):
    """A code on a part is absent, ambiguous, too long or read too late."""


class RingError(EdgeError):
    """A frame does not fit its slot, or the shared memory is not what it should be."""


class EngineError(EdgeError):
    """An inference engine is not installed, refuses the graph or fails."""


class ParityError(EngineError):
    """The engine that would serve deviates from the scores that the bundle was exported with."""


class CardLostError(EngineError):
    """Nothing can be computed on the graphics card until the process ends; whoever supervises it starts it again."""

    exit_code = 75  # EX_TEMPFAIL of sysexits.h: the same command, tried again, may well work


class SpoolError(EdgeError):
    """An event cannot be recorded: the station stops, since what is not recorded must not pass."""


class SpoolBlockedError(SpoolError):
    """For now nothing can be recorded, so that no part is taken; a running station tries again until it can."""

    exit_code = 75  # EX_TEMPFAIL: at the start, or when stopped meanwhile, whoever supervises it starts it again
