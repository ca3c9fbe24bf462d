"""The record of looks at test images: who chooses by them must know how often (at the engineer's desk)."""

from __future__ import annotations

import csv
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from calibration.errors import CalibrationError
from contract.bundle import Bundle
from contract.dataset import Dataset

LOOKS = (
    "when",
    "dataset",
    "model",
    "seed",
    "bundle",
    "calibration",
    "images",
    "image_auroc",
    "aupro",
    "false_rejects",
    "escapes",
)


def record(path: Path, bundle: Bundle, dataset: Dataset, decided: str, images: int, auroc: float | None = None) -> None:
    """Put on record that test images decided something: ``decided`` says what, in the column of the calibration.

    It names the data set, never a folder of this machine. Raises CalibrationError as ``append_look`` does.
    """
    manifest = bundle.manifest
    append_look(
        path,
        {
            "when": datetime.now(UTC).isoformat(timespec="seconds"),
            "dataset": dataset.root.resolve().name,
            "model": manifest.model.name,
            "seed": manifest.training.get("settings", {}).get("seed"),
            "bundle": manifest.id,
            "calibration": decided,
            "images": images,
            "image_auroc": auroc,
        },
    )


def append_look(path: Path, row: dict[str, Any]) -> None:
    """Append a line with the columns LOOKS. Raises CalibrationError where ``path`` has others or cannot be written."""
    try:
        _append(path, row)
    except OSError as error:
        raise CalibrationError(
            f"{path}: the look at test images cannot be put on record ({error.strerror or error})"
        ) from error


def _append(path: Path, row: dict[str, Any]) -> None:
    with path.open("a+", newline="", encoding="utf-8") as file:
        file.seek(0)
        header = next(csv.reader(file), None)
        if header not in (None, list(LOOKS)):
            raise CalibrationError(
                f"{path}: has the columns {', '.join(header or [])}; expected {', '.join(LOOKS)}. "
                "Give another file, or a new one"
            )
        writer = csv.DictWriter(file, LOOKS)
        if header is None:
            writer.writeheader()
        writer.writerow(row)
