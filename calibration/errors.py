"""What stops a calibration or an evaluation, each a sentence with the way out (no hop: at the engineer's desk).

contract.errors.FlawlineError
└── CalibrationError    too few good parts were held out, or none; nothing to evaluate
"""

from __future__ import annotations

from contract.errors import FlawlineError


class CalibrationError(FlawlineError):
    """What was asked for cannot be had from these images."""
