"""Which images of defective parts may choose a limit: those of their own, test images only on record (before hop 5)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from calibration.errors import CalibrationError
from contract.dataset import Dataset, Sample, images_in, sha256_of_image

GOOD = "good"


def find_defects(folders: Sequence[Path], dataset: Dataset, looks: Path | None) -> tuple[list[Sample], bool]:
    """Images in ``folders`` and the folders directly in them, and whether any of them is a test image.

    Raises CalibrationError where a folder holds none or good parts, and for test images without ``looks``: a limit
    chosen by them makes every figure on them look better than the line will.
    """
    found = [sample for folder in folders for sample in _in_folder(folder)]
    tests = {sha256_of_image(sample.path) for sample in dataset.test}
    looked = [s for s in found if _below_test(s.path) or sha256_of_image(s.path) in tests]
    if looked and looks is None:
        raise CalibrationError(
            f"{looked[0].path} is a test image ({len(looked)} of {len(found)} are): a limit chosen by test images "
            "makes the figures on them worthless. Give defective parts of their own, or --looks FILE to put this look "
            "on record"
        )
    return found, bool(looked)


def _in_folder(folder: Path) -> list[Sample]:
    if not folder.is_dir():
        raise CalibrationError(f"--defects {folder}: no such folder; expected images of defective parts in it")
    if (folder / "train").is_dir() or folder.name == GOOD or (folder / GOOD).is_dir():
        raise CalibrationError(
            f"--defects {folder}: holds good parts as well; name the folders of defective parts, one --defects each"
        )
    inside = [path for path in sorted(folder.iterdir()) if path.is_dir()]
    found = [
        Sample(path, place.name, None, path.as_posix()) for place in (folder, *inside) for path in images_in(place)
    ]
    if not found:
        raise CalibrationError(f"--defects {folder}: no images in it, nor in a folder directly in it")
    return found


def _below_test(path: Path) -> bool:
    """Whether the image lies in the test folder of a data set in the MVTec AD layout."""
    return any(place.name == "test" and (place.parent / "train" / GOOD).is_dir() for place in path.resolve().parents)
