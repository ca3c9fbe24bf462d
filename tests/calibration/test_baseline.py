"""The baseline that a calibration leaves: what good parts measured, as new good parts will."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from calibration.baseline import baseline_of
from calibration.calibrate import Measured
from calibration.holdout import HeldOut
from calibration.quality import Seen, bounds_from, likeness_to_others
from contract.baseline import WATCHED
from contract.dataset import Sample
from contract.preprocess import MEASURES, likeness
from edge_runtime.drift import TESTS, Reference, Watch

GOOD, NEW = 48, 2500
Thumbs = NDArray[np.float32]


def textured(count: int, seed: int) -> Thumbs:
    """Thumbnails of a surface without a drawing, [count, 256] of mean 0 and deviation 1: no two are alike."""
    thumbs = np.random.default_rng(seed).normal(0, 1, (count, 256))
    return np.asarray((thumbs - thumbs.mean(1, keepdims=True)) / thumbs.std(1, keepdims=True), np.float32)


def seen(thumbs: Thumbs) -> list[Seen]:
    return [Seen({"main": dict.fromkeys(MEASURES, 1.0)}, {"main": thumb}, (96, 96)) for thumb in thumbs]


def measured(pictures: list[Seen], groups: list[str]) -> Measured:
    """A calibration half of whose parts no training has seen."""
    samples = [Sample(Path(), "good", None, group) for group in groups]
    half = len(samples) // 2
    scores = np.random.default_rng(3).gamma(4.0, 1.0, half).tolist()
    return Measured(HeldOut(samples[:half], samples[half:]), scores, scores, pictures, "onnxruntime fp32")


def test_new_parts_of_a_surface_without_a_drawing_are_no_drift() -> None:
    """A part is in the mean that the gate compares with; held against that, every new part were less alike."""
    good = seen(textured(GOOD, 1))
    bounds = bounds_from(good)
    thumb = np.asarray(bounds.likeness_thumb["main"], np.float32)
    new = [likeness(each, thumb) for each in textured(NEW, 2)]
    held = [likeness(each.thumbs["main"], thumb) for each in good]
    others = likeness_to_others(good, "main")
    assert np.median(held) > 0.12 and abs(np.median(others) - np.median(new)) < 0.02
    assert bounds.views["main"]["likeness"].low is not None and bounds.views["main"]["likeness"].low < min(new)

    baseline = baseline_of(measured(good, [str(n) for n in range(GOOD)]))
    watch = Watch(Reference(baseline, {"main": "top"}, np.inf, 0.05, "key"), float(len(TESTS)))
    at = [column.name for column in watch.reference.columns].index("main.likeness")
    usual = [column.usual for column in watch.reference.columns]
    for number, value in enumerate(new):
        part = [*usual[:at], value, *usual[at + 1 :]]
        assert watch.see(str(number), part, False, 1e-5) == []


def test_pictures_of_one_part_are_not_compared_with_each_other() -> None:
    thumbs = textured(6, 4)
    pictures = seen(np.repeat(thumbs, 2, axis=0))
    groups = [str(n // 2) for n in range(12)]
    alone = likeness_to_others(seen(thumbs), "main")
    assert likeness_to_others(pictures, "main", groups) == [alone[n // 2] for n in range(12)]
    assert min(likeness_to_others(pictures, "main")) > max(alone), "each has its twin among the others"
    found = baseline_of(measured(pictures, groups)).measures["main"]
    assert set(found) == set(WATCHED) and np.allclose(found["likeness"], sorted(alone))


def test_what_a_fixture_said_is_kept_beside_what_the_gate_measures() -> None:
    pictures = seen(textured(6, 5))
    groups = [str(n) for n in range(6)]
    said = {"score": [0.9, 0.8, 0.95], "angle_deg": [3.0, -2.0]}
    cut_before = baseline_of(measured(pictures, groups)._replace(placed=said))
    assert cut_before.measures["fixture"] == {"score": [0.8, 0.9, 0.95], "angle_deg": [-2.0, 3.0]}
    cut_here = [each._replace(placed={"fixture.score": 0.9 - n / 100}) for n, each in enumerate(pictures)]
    found = baseline_of(measured(cut_here, groups)).measures["fixture"]
    assert set(found) == {"score"} and np.allclose(found["score"], [0.85, 0.86, 0.87, 0.88, 0.89, 0.9])
    assert "fixture" not in baseline_of(measured(pictures, groups)).measures
