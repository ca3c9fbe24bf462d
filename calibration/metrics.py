"""How well scores and maps tell defects from good parts: AUROC, AP, F1 and AU-PRO, exact and fast (evaluation only).

Everything follows from where the positives stand among the sorted negatives, so the many negatives are sorted once
and nothing is binned. Scores are raw: higher = more deviant.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]
PRO_LIMIT = 0.3
STRICT_PRO_LIMIT = 0.05
MAX_SIDE = 256
DEFECTIVE_FROM = 128  # grey level of a mask, as the field writes them: 0 and 255


class Ranking(NamedTuple):
    """AUROC, average precision, best F1 and the score at which F1 is best; None where a side is empty."""

    auroc: float | None
    ap: float | None
    f1_max: float | None
    f1_threshold: float | None


class Localization(NamedTuple):
    """Pixel AUROC and AP, and the area under the per-region overlap up to two false-positive rates, each over its
    limit; None without masks. ``aupro_005`` stops at 0.05: what counts where a map is to be believed.
    """

    pixel_auroc: float | None
    pixel_ap: float | None
    aupro: float | None
    aupro_005: float | None


def ranking(negatives: NDArray[np.floating], positives: NDArray[np.floating]) -> Ranking:
    """Image- or pixel-level figures from the scores of both sides, any length, in any order."""
    if not len(negatives) or not len(positives):
        return Ranking(None, None, None, None)
    low, high = np.sort(negatives), np.sort(positives)[::-1]
    below, below_or_equal = np.searchsorted(low, high, "left"), np.searchsorted(low, high, "right")
    auroc = float((below + below_or_equal).sum(dtype=np.float64)) / (2 * len(low) * len(high))
    ends = np.append(np.flatnonzero(np.diff(high)), len(high) - 1)  # last of each run of equal scores
    true = ends + 1.0
    false = (len(low) - below[ends]).astype(np.float64)
    gained = np.diff(true, prepend=0.0)
    ap = float((gained * true / (true + false)).sum()) / len(high)
    f1 = 2 * true / (true + false + len(high))
    best = int(np.argmax(f1))
    return Ranking(auroc, ap, float(f1[best]), float(high[ends[best]]))


def escapes_at(good: NDArray[np.floating], bad: NDArray[np.floating], rejected: float) -> float | None:
    """Share of ``bad`` that passes at the lowest threshold which rejects at most a share ``rejected`` of ``good``.

    Both are scores of the *same test set*, so this is a property of the ranking and no promise: a calibrated
    threshold has never seen these images. A part is rejected above the threshold, as on the line, so parts that score
    like the last good one to pass escape. None where a side is empty.
    """
    if not len(good) or not len(bad):
        return None
    threshold = np.sort(good)[::-1][min(len(good) - 1, int(rejected * len(good) + 1e-9))]
    return float((bad <= threshold).mean())


def localization(maps: Sequence[Floats], masks: Sequence[NDArray[np.bool_]], limit: float = PRO_LIMIT) -> Localization:
    """Pixel figures of pairs of map and mask of the same shape [H, W]; a good part's mask is empty.

    ``limit`` is the false-positive rate at which ``aupro`` stops; ``aupro_005`` stops at 0.05 whatever it is.
    """
    pieces, weights = [], []
    negatives = [values[~mask] for values, mask in zip(maps, masks, strict=True)]
    for values, mask in zip(maps, masks, strict=True):
        if mask.any():
            pieces.append(values[mask])
            weights.append(_region_weights(mask))
    if not pieces or not sum(map(len, negatives)):
        return Localization(None, None, None, None)
    defect, background = np.concatenate(pieces), np.concatenate(negatives)
    background.sort()
    ranked = ranking(background, defect)
    each = np.concatenate(weights)
    aupro, strict = (_aupro(background, defect, each, up_to) for up_to in (limit, STRICT_PRO_LIMIT))
    return Localization(ranked.auroc, ranked.ap, aupro, strict)


def _region_weights(mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """One over its region's area for each pixel of the mask, so that every region counts the same."""
    _, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    inside = np.asarray(labels)[mask]
    return np.asarray(1.0 / np.bincount(inside)[inside])


def _aupro(background: Floats, defect: Floats, weights: NDArray[np.float64], limit: float) -> float:
    """Area under mean region overlap against the false-positive rate up to ``limit``, over ``limit``.

    Each defect pixel adds its weight to the curve from the false-positive rate at which it is found; among
    background pixels of the very same score linearly, as the trapezoid rule has it.
    """
    count = len(background)
    found_from = (count - np.searchsorted(background, defect, "right")) / count
    found_to = (count - np.searchsorted(background, defect, "left")) / count
    whole = limit - (found_from + found_to) / 2
    width = np.maximum(found_to - found_from, 1e-300)
    part = np.clip(limit - found_from, 0, None) ** 2 / (2 * width)
    area = np.where(found_to <= limit, whole, np.where(found_from < limit, part, 0.0))
    return float((weights * area).sum() / weights.sum() / limit)


def scale_down(size_hw: tuple[int, int]) -> tuple[int, int]:
    """Size at which map and mask meet: the picture's own, its longer side at most MAX_SIDE."""
    factor = min(1.0, MAX_SIDE / max(size_hw))
    return max(1, round(size_hw[0] * factor)), max(1, round(size_hw[1] * factor))


def resize_mask(mask: NDArray[np.uint8], size_hw: tuple[int, int]) -> NDArray[np.bool_]:
    """A pixel is defective where any of the mask's pixels that it covers is: small defects must not vanish."""
    if mask.shape == size_hw:
        return mask >= DEFECTIVE_FROM
    share = cv2.resize((mask >= DEFECTIVE_FROM).astype(np.float32), size_hw[::-1], interpolation=cv2.INTER_AREA)
    return np.asarray(share) > 1e-6
