"""Folders of images in the MVTec AD layout, and which images show the same part (training and calibration)."""

from __future__ import annotations

import csv
import hashlib
import re
from collections import Counter, defaultdict
from pathlib import Path
from typing import NamedTuple

from contract.errors import DatasetError
from contract.images import SUFFIXES

EXPOSURE_GAP = 200
GROUPS_FILE = "groups.csv"


class Sample(NamedTuple):
    """One image: its file, class (``good`` or a defect's name), mask or None, and the part it shows.

    Where several cameras see a part, ``path`` is the part's folder (``pictures_of``).
    """

    path: Path
    label: str
    mask: Path | None
    group: str


class Dataset(NamedTuple):
    """``train/good``, ``test/*`` and ``ground_truth/*`` of one product; ``grouping`` says how parts were told apart."""

    root: Path
    train: list[Sample]
    test: list[Sample]
    grouping: str


def load_dataset(root: Path, group_pattern: str | None = None) -> Dataset:
    """List the images below ``root``. A folder that only holds images counts as ``train/good``.

    Where ``train/good`` and ``test/*`` hold folders and no images, each folder is a part with one image of each camera.

    Parts are told apart by ``groups.csv`` (columns file, group; paths relative to root), else by the first group of
    ``group_pattern`` in the file name, else by runs of numbers that several exposures share, else one image one part.
    Raises DatasetError where there is nothing to train on.
    """
    if not root.is_dir():
        raise DatasetError(f"{root}: no such folder; expected images in {root}/train/good (MVTec AD layout)")
    good = root / "train" / "good"
    train_files = parts_in(good) if good.is_dir() else images_in(root)
    if not train_files:
        raise DatasetError(
            f"{root}: no images found; expected {', '.join(sorted(SUFFIXES))} files in {root}/train/good "
            "(and test/good, test/<defect>, ground_truth/<defect> for an evaluation)"
        )
    test_files = [(path, folder.name) for folder in _folders(root / "test") for path in parts_in(folder)]
    _refuse_other_cameras([*train_files, *(path for path, _ in test_files)])
    groups, grouping = group_files(root, [*train_files, *(path for path, _ in test_files)], group_pattern)
    train = [Sample(path, "good", None, groups[path]) for path in train_files]
    test = [Sample(path, label, mask_of(root, path, label), groups[path]) for path, label in test_files]
    return Dataset(root, train, test, grouping)


def images_in(folder: Path) -> list[Path]:
    """Image files directly in ``folder``, sorted by name."""
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in SUFFIXES and path.is_file())


def parts_in(folder: Path) -> list[Path]:
    """What shows one part each: the images in ``folder``, or its folders of images where it holds no image itself."""
    return images_in(folder) or [inside for inside in _folders(folder) if images_in(inside)]


def pictures_of(part: Path) -> dict[str, Path]:
    """The images of a part by the cameras that they are named by. Raises DatasetError where two share a camera."""
    found: dict[str, Path] = {}
    for path in images_in(part):
        if path.stem in found:
            raise DatasetError(f"{part}: {found[path.stem].name} and {path.name} are both of camera {path.stem!r}")
        found[path.stem] = path
    return found


def per_picture(dataset: Dataset) -> Dataset:
    """The same with a sample for each camera's image of a part, for whoever looks at single images."""

    def apart(samples: list[Sample]) -> list[Sample]:
        return [
            sample._replace(path=path)
            for sample in samples
            for path in (images_in(sample.path) if sample.path.is_dir() else [sample.path])
        ]

    return dataset._replace(train=apart(dataset.train), test=apart(dataset.test))


def _refuse_other_cameras(parts: list[Path]) -> None:
    """Raise DatasetError where a part was not seen by the same cameras as the first one."""
    seen = {part: set(pictures_of(part)) for part in parts if part.is_dir()}
    if not seen:
        return
    for part in parts:
        if seen.get(part) != seen.get(parts[0]):
            found = ", ".join(sorted(seen.get(part, set()))) or "a single image"
            expected = ", ".join(sorted(seen.get(parts[0], set()))) or "single images"
            raise DatasetError(f"{part}: {found}; expected {expected}, as {parts[0].name} has: one of each camera")


def _folders(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.is_dir()) if folder.is_dir() else []


def mask_of(root: Path, image: Path, label: str) -> Path | None:
    """The mask of an image of a class, where there is one."""
    folder = root / "ground_truth" / label
    candidates = (folder / f"{image.stem}_mask.png", folder / f"{image.stem}.png")
    return next((path for path in candidates if path.is_file()), None)


def group_files(root: Path, files: list[Path], pattern: str | None = None) -> tuple[dict[Path, str], str]:
    """The part that each file shows, and a sentence that says how it was found."""
    listed = root / GROUPS_FILE
    if listed.is_file():
        return _from_csv(root, listed, files), f"by {GROUPS_FILE}"
    if pattern is not None:
        return _from_pattern(files, pattern), f"by the pattern {pattern!r}"
    runs = None if any(path.is_dir() for path in files) else _exposure_runs(files)
    if runs is not None:
        return runs, f"detected: exposures of one part carry numbers at most {EXPOSURE_GAP} apart"
    return {path: path.relative_to(root).as_posix() for path in files}, "one image, one part"


def _from_csv(root: Path, listed: Path, files: list[Path]) -> dict[Path, str]:
    with listed.open(newline="") as file:
        rows = {row.get("file", ""): row.get("group", "") for row in csv.DictReader(file)}
    missing = [path for path in files if not rows.get(path.relative_to(root).as_posix())]
    if missing:
        raise DatasetError(
            f"{listed}: no group for {missing[0].relative_to(root).as_posix()} ({len(missing)} file(s) in all); "
            "expected the columns file,group with a line for each image"
        )
    return {path: rows[path.relative_to(root).as_posix()] for path in files}


def _from_pattern(files: list[Path], pattern: str) -> dict[Path, str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise DatasetError(f"--group-pattern {pattern!r} is not a regular expression: {error}") from error
    matches = {path: compiled.search(path.name) for path in files}
    failed = [path for path, match in matches.items() if match is None or not match.groups()]
    if failed:
        raise DatasetError(
            f"--group-pattern {pattern!r} finds no group in {failed[0].name} ({len(failed)} file(s) in all); "
            r"expected one pair of brackets around what names the part, as in 'part(\d+)_'"
        )
    return {path: match.group(1) for path, match in matches.items() if match is not None}


def _exposure_runs(files: list[Path]) -> dict[Path, str] | None:
    """Groups for names such as ``exp3_num_10181``: a small exposure number, then a counter that jumps between parts.

    None unless every name has both, 2 to 20 exposure numbers occur and runs really hold different exposures.
    """
    parsed = {path: re.fullmatch(r"\D*(\d{1,2})\D+(\d+)", path.stem) for path in files}
    if any(match is None for match in parsed.values()):
        return None
    keys = sorted((int(m.group(2)), int(m.group(1)), path) for path, m in parsed.items() if m is not None)
    if not 2 <= len({exposure for _, exposure, _ in keys}) <= 20:
        return None
    groups: dict[Path, str] = {}
    runs: dict[str, list[int]] = defaultdict(list)
    previous, name = -EXPOSURE_GAP - 1, ""
    for number, exposure, path in keys:
        name = name if number - previous <= EXPOSURE_GAP else f"n{number}"
        groups[path], previous = name, number
        runs[name].append(exposure)
    distinct = sum(max(Counter(run).values()) == 1 for run in runs.values())
    return groups if len(runs) > 1 and distinct >= 0.5 * len(runs) else None


def sha256_of_image(path: Path) -> str:
    """sha256 of an image file, or over those of a part's folder: how training images are known again at calibration."""
    if path.is_dir():
        held = [f"{camera} {sha256_of_image(file)}" for camera, file in sorted(pictures_of(path).items())]
        return hashlib.sha256("\n".join(held).encode()).hexdigest()
    return hashlib.sha256(path.read_bytes()).hexdigest()
