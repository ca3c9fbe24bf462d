"""What a stopped run needs to go on exactly where it was, in one file beside the bundle (before hop 1)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import torch

from training.errors import TrainingError

FOLDER = ".training"
FILE = "checkpoint.pt"
FORMAT = 3


def checkpoint_path(out: Path) -> Path:
    """Where the checkpoint of the bundle ``out`` lies."""
    return out / FOLDER / FILE


def save_checkpoint(path: Path, state: dict[str, Any]) -> None:
    """Write ``state`` (tensors, numbers, strings, dicts, lists) whole or not at all; raises TrainingError."""
    temporary = path.with_suffix(".new")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save({"format": FORMAT, **state}, temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise TrainingError(
            f"{path}: the checkpoint cannot be written ({error}); the one before it is kept where there was one. "
            "Make room, then go on with --resume"
        ) from error


def load_checkpoint(path: Path, learnt: dict[str, Any], data_sha256: str) -> dict[str, Any]:
    """Read a checkpoint of the same settings and images; raises TrainingError that names what differs."""
    if not path.is_file():
        raise TrainingError(f"{path}: no checkpoint to resume; start without --resume")
    try:
        # weights_only: a checkpoint is data, it runs no code.
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds for a torn file
        raise TrainingError(f"{path}: damaged ({type(error).__name__}); start again with --overwrite") from error
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise TrainingError(f"{path}: written by another version; start again with --overwrite")
    for key, value in learnt.items():
        before = state["learnt"].get(key)
        if before != value:
            raise TrainingError(
                f"{path}: the stopped run had {key} = {before!r}, this one asks for {value!r}; "
                f"give the same again, or start again with --overwrite"
            )
    if state["data_sha256"] != data_sha256:
        raise TrainingError(
            f"{path}: the images or their groups have changed since the run was stopped; start again with --overwrite"
        )
    return dict(state)
