"""What needs no model: how far brightness, size, a corner or a nearest neighbour tell defects from good (before hop 1).

A model has to beat these figures; where a corner's brightness alone is near 1, the pictures differ in light and no
image-level figure means anything. They are computed with the test labels, which is what they are for: nothing may be
chosen by them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from contract.errors import ImageError
from contract.images import read_image
from training.data_files import CORNERS, GOOD, Record

Doubles = NDArray[np.float64]
Bools = NDArray[np.bool_]

COMPONENTS = 32  # of the thumbnails, for ECOD
CONFOUND = 0.9
CLEARLY = 3.5  # standard deviations that a coin's AUROC would have to be off
BLOCK = 512
LIGHT = (*(f"{name} corner" for name in CORNERS), "border")
SHAPE = ("width", "height", "aspect")


class Baseline(NamedTuple):
    """AUROC of one measure against test/good, overall and by class; ``free``: the better of both directions."""

    name: str
    free: bool
    overall: float
    classes: dict[str, float]


class Confound(NamedTuple):
    """A measure that tells defective pictures from good ones and cannot be the defect.

    ``counted``: defective images that it rests on; ``masked``: they have masks, and none of these touches the place.
    """

    name: str
    auroc: float
    counted: int
    masked: bool


def auroc(negatives: NDArray[np.floating], positives: NDArray[np.floating]) -> float:
    """Area under the ROC curve of scores where higher means defective; ties count half."""
    low = np.sort(negatives)
    below, below_or_equal = (np.searchsorted(low, positives, side) for side in ("left", "right"))
    return float((below + below_or_equal).sum(dtype=np.float64) / (2.0 * len(low) * len(positives)))


def measures(records: Sequence[Record]) -> dict[str, Doubles]:
    """What is measured on one image alone, by name, float64 [N] each."""
    looks = [record.look for record in records if record.look is not None]
    columns: dict[str, list[float]] = {
        "mean brightness": [look.brightness for look in looks],
        "contrast": [look.contrast for look in looks],
        **{f"{name} corner": [look.corners[at] for look in looks] for at, name in enumerate(CORNERS)},
        "border": [look.border for look in looks],
        "width": [look.size_hw[1] for look in looks],
        "height": [look.size_hw[0] for look in looks],
        "aspect": [look.size_hw[1] / look.size_hw[0] for look in looks],
        "file size": [record.file_bytes for record in records if record.look is not None],
    }
    return {name: np.array(values, np.float64) for name, values in columns.items()}


def thumbnails(records: Sequence[Record]) -> NDArray[np.float32]:
    """RGB thumbnails as rows, each less its mean and by its spread, exposure left out: float32 [N, 3072]."""
    rows = np.stack([record.look.thumb.ravel() for record in records if record.look is not None]).astype(np.float32)
    rows -= rows.mean(axis=1, keepdims=True)
    # One level more than the spread: an even picture has none, and its noise is not to be blown up.
    return np.asarray(rows / (rows.std(axis=1, keepdims=True) + 1.0), np.float32)


def neighbour_distance(train: NDArray[np.float32], test: NDArray[np.float32]) -> Doubles:
    """Euclidean distance of each row of ``test`` [M, D] to the nearest of ``train`` [N, D], float64 [M]."""
    squares = (train * train).sum(axis=1)
    nearest = [
        (block * block).sum(axis=1) + (squares[None, :] - 2.0 * (block @ train.T)).min(axis=1)
        for block in (test[at : at + BLOCK] for at in range(0, len(test), BLOCK))
    ]
    return np.asarray(np.sqrt(np.maximum(np.concatenate(nearest), 0.0)), np.float64)


def principal(train: NDArray[np.float32], test: NDArray[np.float32]) -> tuple[Doubles, Doubles]:
    """Both on the strongest principal components of ``train``, at most 32 and fewer than its images."""
    mean = train.mean(axis=0)
    centred = train[:: max(1, len(train) // 4000)] - mean
    _, _, rows = np.linalg.svd(centred, full_matrices=False)
    basis = rows[: max(1, min(COMPONENTS, len(train) - 1))].T
    return ((train - mean) @ basis).astype(np.float64), ((test - mean) @ basis).astype(np.float64)


def ecod(train: Doubles, test: Doubles) -> Doubles:
    """ECOD (Li et al., arXiv 2201.00382) as PyOD computes it, of each row of ``test`` [M, D] beside ``train`` [N, D].

    One row at a time, because rows scored together would be each other's normality: a test set of mostly defects
    would call the good ones outliers. Returns float64 [M], higher = more deviant.
    """
    count = len(train) + 1.0
    order = np.sort(train, axis=0)
    left, right, skewed = np.empty_like(test), np.empty_like(test), np.empty_like(test)
    for column in range(train.shape[1]):
        values, known = test[:, column], order[:, column]
        left[:, column] = -np.log((np.searchsorted(known, values, "right") + 1.0) / count)
        right[:, column] = -np.log((len(known) - np.searchsorted(known, values, "left") + 1.0) / count)
        skewed[:, column] = _skew_with(train[:, column], values)
    # A tail counts once if the skew points to it, and both do where there is none.
    by_skew = left * (skewed < 1) + right * (skewed > -1)
    return np.asarray(np.maximum(np.maximum(left, right), by_skew).sum(axis=1))


def _skew_with(known: Doubles, values: Doubles) -> Doubles:
    """Sign of the skewness of ``known`` [N] with one of ``values`` [M] added, for each, float64 [M]."""
    centre = known.mean()
    base, extra, count = known - centre, values - centre, len(known) + 1.0
    mean = (base.sum() + extra) / count
    second = ((base**2).sum() + extra**2) / count
    third = ((base**3).sum() + extra**3) / count
    return np.asarray(np.sign(third - 3 * mean * second + 2 * mean**3))


def baselines(train: Sequence[Record], test: Sequence[Record]) -> list[Baseline]:
    """AUROC of every measure; empty where test/good or the defects are missing."""
    test = [record for record in test if record.look is not None]
    train = [record for record in train if record.look is not None]
    labels = np.array([record.sample.label for record in test])
    if not train or not (labels == GOOD).any() or (labels == GOOD).all():
        return []
    rows = [_row(name, True, values, labels) for name, values in measures(test).items()]
    known, seen = thumbnails(train), thumbnails(test)
    rows.append(_row("nearest neighbour", False, neighbour_distance(known, seen), labels))
    if len(train) > 2:
        rows.append(_row("ECOD", False, ecod(*principal(known, seen)), labels))
    return rows


def _row(name: str, free: bool, values: Doubles, labels: NDArray[np.str_]) -> Baseline:
    good = values[labels == GOOD]

    def area(positives: Doubles) -> float:
        found = auroc(good, positives)
        return max(found, 1.0 - found) if free else found

    classes = {str(label): area(values[labels == label]) for label in np.unique(labels) if label != GOOD}
    return Baseline(name, free, area(values[labels != GOOD]), classes)


def confounds(test: Sequence[Record]) -> list[Confound]:
    """Corners, border and format that tell defects from good images though no defect is there.

    Of a corner or the border only those defective images count whose mask leaves it free; where no image has a mask,
    all of them, and the finding says so.
    """
    test = [record for record in test if record.look is not None]
    good = [record for record in test if record.sample.label == GOOD]
    bad = [record for record in test if record.sample.label != GOOD]
    if not good or not bad:
        return []
    touched = [_touched(record) for record in bad]
    masked = any(places is not None for places in touched)
    of_good, of_bad = measures(good), measures(bad)
    found = []
    for name in (*LIGHT, *SHAPE):
        free = np.array(
            [name in SHAPE or not masked or (places is not None and name not in places) for places in touched]
        )
        confound = _confound(name, of_good[name], of_bad[name][free], masked or name in SHAPE)
        found += [confound] if confound is not None else []
    return sorted(found, key=lambda confound: -confound.auroc)


def _confound(name: str, good: Doubles, bad: Doubles, masked: bool) -> Confound | None:
    if not len(bad):
        return None
    area = auroc(good, bad)
    by_chance = np.sqrt((len(good) + len(bad) + 1) / (12.0 * len(good) * len(bad)))
    sure = abs(area - 0.5) > CLEARLY * by_chance
    area = max(area, 1.0 - area)
    return Confound(name, area, len(bad), masked) if sure and area > CONFOUND else None


def _touched(record: Record) -> set[str] | None:
    """Names of LIGHT that the defect's mask reaches; None without a usable mask."""
    if record.sample.mask is None:
        return None
    try:
        mask = read_image(record.sample.mask, 1) >= 128
    except ImageError:
        return None
    small = cv2.resize(mask.astype(np.float32), (64, 64), interpolation=cv2.INTER_AREA) > 0
    if not small.any():
        return None
    return {name for name, place in _places().items() if small[place].any()}


def _places() -> dict[str, Bools]:
    """Where on a 64 x 64 mask each of LIGHT lies."""
    found = {}
    edge: Callable[[int], slice] = lambda at: slice(0, 8) if at == 0 else slice(56, 64)  # noqa: E731
    for at, name in enumerate(LIGHT[:4]):
        found[name] = np.zeros((64, 64), np.bool_)
        found[name][edge(at // 2), edge(at % 2)] = True
    found["border"] = np.ones((64, 64), np.bool_)
    found["border"][4:60, 4:60] = False
    return found
