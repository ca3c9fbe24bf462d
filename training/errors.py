"""The errors of training, each a sentence that says what happened, what was kept and the way out (before hop 1).

FlawlineError
├── TrainingError                      training cannot go on, or what it made is not worth keeping
│   ├── StoppedError                   the user stopped it; a checkpoint waits for --resume
│   └── ExportError                    the graph does not compute what was trained
└── InterruptedBeforeTrainingError     Ctrl-C where no loop can keep anything
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from contract.errors import FlawlineError

if TYPE_CHECKING:
    from training.settings import TrainSettings

# torch has an exception of its own for a graphics card's memory alone.
NO_MEMORY = ("out of memory", "can't allocate memory", "not enough memory", "cannot allocate memory")


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


@contextmanager
def memory_named(what: str, settings: TrainSettings, kept: str = "nothing was learnt yet") -> Iterator[None]:
    """Turn a lack of memory, of the machine or of its graphics card, into a TrainingError with the way out."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not isinstance(error, MemoryError) and not any(sign in str(error).lower() for sign in NO_MEMORY):
            raise
        where = "the GPU's memory does" if "cuda" in str(error).lower() else "the memory does"
        raise TrainingError(
            f"{what}: {where} not suffice (--batch {settings.batch}, --size {settings.size}, --width "
            f"{settings.width}); {kept}. Train with a smaller --batch, then a smaller --size or --width"
        ) from error
