"""Rates of test images with the interval that their parts allow, and beside it what calibration had said.

Several images of one part are no independent witnesses. The interval is Wilson's for as many images as would, taken
one a part, spread as much as these do (the design effect of cluster sampling; J. N. K. Rao and A. J. Scott, "A simple
method for the analysis of clustered binary data", Biometrics 48, 1992).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from contract.recipe import Thresholds
from contract.stats import Rate, wilson

WITHIN, UNSURE, OUTSIDE = "within", "outside, but not by more than the test parts leave open", "outside"


def rate_of_images(hits: Sequence[bool], groups: Sequence[str]) -> Rate:
    """Share of images that hit, each counted once; ``groups`` names the part of each."""
    return _rate(hits, groups, np.ones(len(hits)))


def rate_of_parts(hits: Sequence[bool], groups: Sequence[str]) -> Rate:
    """Mean over the parts of the share of their images that hit; ``hits`` and ``total`` of it still count images."""
    _, part, sizes = np.unique(np.asarray(groups, np.str_), return_inverse=True, return_counts=True)
    return _rate(hits, groups, 1.0 / sizes[part])


def rate_of_any(hits: Sequence[bool], groups: Sequence[str]) -> Rate:
    """Share of parts of which any image hits, each part counted once."""
    parts: dict[str, bool] = {}
    for hit, group in zip(hits, groups, strict=True):
        parts[group] = parts.get(group, False) or hit
    return _rate(list(parts.values()), list(parts), np.ones(len(parts)))


def _rate(hits: Sequence[bool], groups: Sequence[str], weights: np.ndarray[tuple[int, ...], np.dtype[Any]]) -> Rate:
    total = len(hits)
    if total == 0:
        return Rate(0, 0, None, None, None)
    hit = np.asarray(hits, np.float64)
    share = float(weights @ hit / weights.sum())
    low, high = wilson(share, _effective(hit, share, groups, weights))
    return Rate(int(hit.sum()), total, share, low, high)


def _effective(
    hit: np.ndarray[tuple[int, ...], np.dtype[Any]],
    share: float,
    groups: Sequence[str],
    weights: np.ndarray[tuple[int, ...], np.dtype[Any]],
) -> float:
    """How many independent images say as much; never more than there are, and the parts alone where all are alike."""
    _, part = np.unique(np.asarray(groups, np.str_), return_inverse=True)
    parts = int(part.max()) + 1
    if parts == len(hit) and np.ptp(weights) == 0:
        return float(parts)
    residuals = np.bincount(part, weights * (hit - share))
    variance = parts / max(1, parts - 1) * float(residuals @ residuals) / float(weights.sum()) ** 2
    if not 0 < share < 1 or parts == 1 or variance == 0:
        return float(parts)
    return min(share * (1 - share) / variance, float(len(hit)))


def kept(thresholds: Thresholds | None, rejected: Sequence[bool], groups: Sequence[str]) -> dict[str, Any] | None:
    """The rate of false rejects on good test images beside the interval that calibration wrote down; None without one.

    Counted as it was promised: by part where the promise is about parts of which any image is rejected, else as the
    mean over parts of the share of their images.
    """
    if thresholds is None or thresholds.expected_low is None or thresholds.expected_high is None or not rejected:
        return None
    found = (rate_of_parts if thresholds.confidence is None else rate_of_any)(rejected, groups)
    low, high = thresholds.expected_low, thresholds.expected_high
    if found.rate is None or found.low is None or found.high is None:
        return None
    says = WITHIN if low <= found.rate <= high else UNSURE if found.low <= high and low <= found.high else OUTSIDE
    return {
        "asked": thresholds.false_reject_rate,
        "expected": [low, high],
        "rate": found.rate,
        "interval": [found.low, found.high],
        "parts": len(set(groups)),
        "says": says,
    }
