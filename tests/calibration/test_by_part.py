"""Rates over test images: as wide as their parts allow, and set against what calibration had said."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.by_part import OUTSIDE, UNSURE, WITHIN, kept, rate_of_any, rate_of_images, rate_of_parts
from contract.recipe import Thresholds
from contract.stats import rate, wilson


def names(parts: int, images: int) -> list[str]:
    return [f"part{part}" for part in range(parts) for _ in range(images)]


def limits(low: float, high: float, confidence: float | None = None) -> Thresholds:
    return Thresholds(
        reject=1.0,
        map=1.0,
        method="any",
        false_reject_rate=0.05,
        groups=20,
        images=20,
        engine="any",
        expected_low=low,
        expected_high=high,
        confidence=confidence,
    )


def test_one_image_a_part_is_the_plain_interval() -> None:
    hits = [True] * 3 + [False] * 37
    assert rate_of_images(hits, names(40, 1)) == rate(3, 40)
    assert rate_of_parts(hits, names(40, 1)) == rate(3, 40)


def test_images_that_only_repeat_their_part_count_as_parts() -> None:
    """Six pictures that always agree: the interval is that of about as many looks as there are parts."""
    hits = [part < 4 for part in range(40) for _ in range(6)]
    found = rate_of_images(hits, names(40, 6))
    assert (found.hits, found.total, found.rate) == (24, 240, 0.1)
    assert (found.low, found.high) == pytest.approx(wilson(0.1, 39))  # parts / (parts - 1) of the sample's variance
    plain = rate(24, 240)
    assert found.low < plain.low and found.high > plain.high


def test_images_that_spread_over_all_parts_are_no_more_than_there_are() -> None:
    hits = [at % 6 == 0 for at in range(240)]  # one of each part: less spread than chance would give
    found = rate_of_images(hits, names(40, 6))
    assert (found.low, found.high) == (rate(40, 240).low, rate(40, 240).high)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_where_all_are_alike_the_parts_alone_count(share: float) -> None:
    found = rate_of_images([share == 1.0] * 60, names(10, 6))
    assert (found.rate, found.low, found.high) == (share, *wilson(share, 10))


def test_parts_count_the_same_however_often_they_were_taken() -> None:
    hits, groups = [True] * 9 + [False], ["often"] * 9 + ["once"]
    assert rate_of_images(hits, groups).rate == 0.9
    assert rate_of_parts(hits, groups).rate == pytest.approx(0.5)
    assert rate_of_any([True, False, False], ["a", "a", "b"]) == rate(1, 2)
    assert rate_of_images([], []).rate is None


def test_interval_covers_where_pictures_of_a_part_resemble_each_other() -> None:
    """Beta-binomial parts: the plain interval leaves out the truth far too often, that of the parts does not."""
    random = np.random.default_rng(5)
    covered = plain = 0
    for _ in range(400):
        shares = random.beta(0.3, 2.7, 50)  # 0.1 on average, much alike within a part
        hits = (random.random((50, 6)) < shares[:, None]).ravel().tolist()
        found, narrow = rate_of_images(hits, names(50, 6)), rate(sum(hits), 300)
        assert found.low is not None and found.high is not None and narrow.low is not None and narrow.high is not None
        covered += found.low <= 0.1 <= found.high
        plain += narrow.low <= 0.1 <= narrow.high
    assert covered / 400 > 0.91
    assert plain / 400 < 0.85


def test_kept_says_whether_the_rate_lies_where_calibration_said() -> None:
    hits = [True] * 3 + [False] * 57
    groups = names(60, 1)
    assert kept(None, hits, groups) is None and kept(limits(0.01, 0.1), [], []) is None
    found = kept(limits(0.01, 0.1), hits, groups)
    assert found is not None and found["says"] == WITHIN
    assert (found["rate"], found["parts"], found["expected"], found["asked"]) == (0.05, 60, [0.01, 0.1], 0.05)
    for low, high, says in ((0.06, 0.2, UNSURE), (0.2, 0.4, OUTSIDE), (0.001, 0.01, OUTSIDE)):
        other = kept(limits(low, high), hits, groups)
        assert other is not None and other["says"] == says


def test_kept_counts_as_it_was_promised() -> None:
    """PAC promises a share of parts of which any image is rejected, the others a share of images."""
    hits, groups = [True, False, False, False], ["a", "a", "b", "b"]
    of_images, of_parts = kept(limits(0.0, 1.0), hits, groups), kept(limits(0.0, 1.0, 0.95), hits, groups)
    assert of_images is not None and of_parts is not None
    assert (of_images["rate"], of_parts["rate"]) == (0.25, 0.5)
