"""The metrics against scikit-learn and a slow, direct AU-PRO."""

from __future__ import annotations

from itertools import pairwise

import cv2
import numpy as np
import pytest
from sklearn.metrics import average_precision_score, precision_recall_curve, roc_auc_score

from calibration.metrics import escapes_at, localization, ranking, resize_mask, scale_down


def labelled(seed: int, levels: int | None) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    negatives, positives = rng.normal(0, 1, 300), rng.normal(0.7, 1.3, 170)
    if levels is not None:  # ties, within and across the sides
        negatives, positives = np.round(negatives * levels), np.round(positives * levels)
    return negatives.astype(np.float32), positives.astype(np.float32)


@pytest.mark.parametrize("levels", [None, 8, 1])
@pytest.mark.parametrize("seed", range(4))
def test_ranking_is_scikit_learns(seed: int, levels: int | None) -> None:
    negatives, positives = labelled(seed, levels)
    scores = np.concatenate([negatives, positives])
    truth = np.repeat([0, 1], [len(negatives), len(positives)])
    found = ranking(negatives, positives)
    assert found.auroc == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    assert found.ap == pytest.approx(average_precision_score(truth, scores), abs=1e-12)
    precision, recall, cuts = precision_recall_curve(truth, scores)
    f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-12)
    assert found.f1_max == pytest.approx(f1.max(), abs=1e-12)
    assert found.f1_threshold is not None
    flagged = scores >= found.f1_threshold
    assert 2 * (flagged & (truth == 1)).sum() / (flagged.sum() + truth.sum()) == pytest.approx(f1.max())
    assert np.isclose(cuts, found.f1_threshold).any()


def test_ranking_at_the_ends() -> None:
    low, high = np.array([0.0, 1.0]), np.array([2.0, 3.0, 4.0])
    assert ranking(low, high)[:3] == (1.0, 1.0, 1.0)
    assert ranking(high, low).auroc == 0.0
    assert ranking(low, low).auroc == 0.5
    assert ranking(low, high[:0]) == (None, None, None, None)
    assert ranking(low[:0], high) == (None, None, None, None)


@pytest.mark.parametrize("levels", [None, 8, 1])
@pytest.mark.parametrize("rejected", [0.05, 0.2, 0.999])
def test_escapes_are_those_of_the_best_threshold_tried(rejected: float, levels: int | None) -> None:
    good, bad = labelled(5, levels)
    cuts = [cut for cut in np.concatenate([good, bad]) if (good > cut).mean() <= rejected]
    assert escapes_at(good, bad, rejected) == min(float((bad <= cut).mean()) for cut in cuts if cut in good)


def test_escapes_at_five_percent_by_hand() -> None:
    good = np.arange(40.0)  # two of forty may be rejected: 38 and 39
    assert escapes_at(good, np.array([36.0, 37.0, 37.5, 40.0]), 0.05) == 0.5
    assert escapes_at(good[:19], np.array([18.0, 18.5]), 0.05) == 0.5  # none of nineteen may be
    assert escapes_at(good, good[:0], 0.05) is None
    assert escapes_at(good[:0], good, 0.05) is None


def scene(seed: int, levels: int | None) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """Six maps with up to three regions each, one good part among them."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for image in range(6):
        mask = np.zeros((24, 20), np.uint8)
        for _ in range(int(rng.integers(1, 4)) if image else 0):
            x, y = rng.integers(2, 16, 2)
            cv2.rectangle(mask, (int(x), int(y)), (int(x) + 2, int(y) + int(rng.integers(0, 5))), 1, -1)
        values = rng.normal(0, 1, mask.shape) + mask * rng.uniform(0, 2)
        maps.append((np.round(values * levels) if levels else values).astype(np.float32))
        masks.append(mask.astype(bool))
    return maps, masks


def slow_aupro(maps: list[np.ndarray], masks: list[np.ndarray], limit: float) -> float:
    """Straight from the definition: every threshold, every region, trapezoids, interpolated at the limit."""
    regions = []
    for values, mask in zip(maps, masks, strict=True):
        count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
        regions += [values[labels == label] for label in range(1, count)]
    negatives = np.concatenate([values[~mask] for values, mask in zip(maps, masks, strict=True)])
    curve = [(0.0, 0.0)]
    for cut in np.unique(np.concatenate([values.ravel() for values in maps]))[::-1]:
        overlap = np.mean([(region >= cut).mean() for region in regions])
        curve.append((float((negatives >= cut).mean()), float(overlap)))
    area = 0.0
    for (x0, y0), (x1, y1) in pairwise(curve):
        if x0 >= limit or x1 == x0:
            continue
        if x1 > limit:
            x1, y1 = limit, y0 + (y1 - y0) * (limit - x0) / (x1 - x0)
        area += (x1 - x0) * (y0 + y1) / 2
    return area / limit


@pytest.mark.parametrize("levels", [None, 3, 1])
@pytest.mark.parametrize("limit", [0.3, 0.05, 1.0])
@pytest.mark.parametrize("seed", range(3))
def test_localization_is_the_slow_one(seed: int, limit: float, levels: int | None) -> None:
    maps, masks = scene(seed, levels)
    found = localization(maps, masks, limit)
    truth, scores = np.concatenate([m.ravel() for m in masks]), np.concatenate([m.ravel() for m in maps])
    assert found.aupro == pytest.approx(slow_aupro(maps, masks, limit), abs=1e-9)
    assert found.aupro_005 == pytest.approx(slow_aupro(maps, masks, 0.05), abs=1e-9)
    assert found.pixel_auroc == pytest.approx(roc_auc_score(truth, scores), abs=1e-9)
    assert found.pixel_ap == pytest.approx(average_precision_score(truth, scores), abs=1e-9)


def test_perfect_map_and_no_mask() -> None:
    maps, masks = scene(0, None)
    assert localization([mask.astype(np.float32) for mask in masks], masks) == pytest.approx((1.0,) * 4)
    assert localization(maps[:1], masks[:1]) == (None,) * 4
    assert localization([], []) == (None,) * 4


def test_map_meets_mask() -> None:
    assert scale_down((2048, 2448)) == (214, 256)
    assert scale_down((300, 200)) == (256, 171)
    assert scale_down((64, 64)) == (64, 64)
    mask = np.zeros((1000, 1000), np.uint8)
    mask[503, 777] = 255  # one pixel of a million must not vanish
    small = resize_mask(mask, (100, 100))
    assert small.sum() == 1 and small[50, 77]
    assert resize_mask(mask, (1000, 1000)).sum() == 1
