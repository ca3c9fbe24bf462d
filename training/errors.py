"""The errors of training, each a sentence that says what happened, what was kept and the way out (before hop 1).

FlawlineError
├── TrainingError                      training cannot go on, or what it made is not worth keeping
│   ├── StoppedError                   the user stopped it; a checkpoint waits for --resume
│   └── ExportError                    the graph does not compute what was trained
└── InterruptedBeforeTrainingError     Ctrl-C where no loop can keep anything
"""

from __future__ import annotations

from contract.errors import FlawlineError


class TrainingError(FlawlineError):
    """Training failed in a way that the user can act on; the last good checkpoint is kept."""


class StoppedError(TrainingError):
    """Ctrl-C or a termination signal; the exit code is the shell's for an interrupt."""

    exit_code = 130


class InterruptedBeforeTrainingError(FlawlineError):
    """Ctrl-C outside the loop: while images are read or the graph is exported."""

    exit_code = 130


class ExportError(TrainingError):
    """The exported graph disagrees with the trained network; no bundle is written."""
