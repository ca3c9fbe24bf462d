"""Frames that show no part as it should be seen: a thousand of each kind, and not one may be PASS."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.calibrate import Rates, propose, write
from contract.bundle import open_bundle
from contract.dataset import load_dataset, sha256_of_image
from contract.event import Verdict
from contract.images import read_image
from contract.recipe import Recipe
from edge_runtime.engines import open_engine
from edge_runtime.inspector import Inspector
from edge_runtime.synthetic import SyntheticLine
from tests.graphs import write_bundle

EACH = 1000
FITTED = 60

Part = np.ndarray
Spoil = Callable[[Part, np.random.Generator], Part]


def grain(picture: Part, rng: np.random.Generator, sigma: float) -> Part:
    """Camera noise over a picture of any float type."""
    return np.clip(picture + rng.normal(0, sigma, picture.shape), 0, 255).astype(np.uint8)


def black(part: Part, rng: np.random.Generator) -> Part:
    """Lamp out or lens covered: from pitch black to what stray light leaves."""
    return grain(np.full(part.shape, rng.uniform(0, 12)), rng, rng.uniform(0, 4))


def white(part: Part, rng: np.random.Generator) -> Part:
    """A lamp into the lens."""
    return grain(np.full(part.shape, rng.uniform(235, 255)), rng, rng.uniform(0, 4))


def blurred(part: Part, rng: np.random.Generator) -> Part:
    """Out of focus by 2 to 8 % of the part's length, or smeared along the belt by 8 to 25 %; the noise stays sharp."""
    length = max(part.shape)
    if rng.uniform() < 0.5:
        soft = cv2.GaussianBlur(part, (0, 0), rng.uniform(0.02, 0.08) * length)
    else:
        soft = cv2.blur(part, (int(rng.uniform(0.08, 0.25) * length), 1))
    return grain(soft.astype(np.float32), rng, rng.uniform(0, 2))


def over_exposed(part: Part, rng: np.random.Generator) -> Part:
    """Exposure 1.7 to 6 times too long."""
    return grain(part * rng.uniform(1.7, 6.0), rng, rng.uniform(0, 2))


_BELT = SyntheticLine(seed=5, parts=1).render(0)


def empty(part: Part, rng: np.random.Generator) -> Part:
    """Bare belt where a part should be, in the light of the line or up to a third brighter or darker."""
    height, width = part.shape
    y = int(rng.integers(0, _BELT.shape[0] - height))
    x = int(rng.integers(0, _BELT.shape[1] - width))
    return grain(_BELT[y : y + height, x : x + width] * rng.uniform(0.67, 1.33), rng, rng.uniform(0, 2))


KINDS: dict[str, Spoil] = {f.__name__: f for f in (black, white, blurred, over_exposed, empty)}


@pytest.fixture(scope="module")
def good(synthetic_data: Path) -> list[Part]:
    """Good parts that neither training nor calibration saw."""
    return [read_image(s.path, 1) for s in load_dataset(synthetic_data).test if s.label == "good"]


@pytest.fixture(scope="module", params=["mean image", "trained"])
def inspector(
    request: pytest.FixtureRequest, synthetic_data: Path, tmp_path_factory: pytest.TempPathFactory
) -> Inspector:
    """A model without training, and a trained one: the gate must not depend on how good the model is."""
    if request.param == "trained":
        bundle = open_bundle(request.getfixturevalue("bundle"))
    else:
        folder = tmp_path_factory.mktemp("frames") / "bundle"
        fitted = load_dataset(synthetic_data).train[:FITTED]
        hashes = [sha256_of_image(sample.path) for sample in fitted]
        write_bundle(folder, [read_image(sample.path, 1) for sample in fitted], Recipe(), fit=hashes)
        write(propose(folder, synthetic_data, Rates(0.05)))
        bundle = open_bundle(folder)
    return Inspector(bundle, open_engine("auto", bundle))


def test_good_parts_are_inspected(inspector: Inspector, good: list[Part]) -> None:
    verdicts = Counter(inspector.inspect(part).verdict for part in good)
    assert verdicts[Verdict.NOT_INSPECTED] == 0
    assert verdicts[Verdict.PASS] >= 0.7 * len(good)


@pytest.mark.parametrize("kind", KINDS)
def test_no_spoilt_frame_passes(kind: str, inspector: Inspector, good: list[Part]) -> None:
    rng = np.random.default_rng(list(KINDS).index(kind))
    verdicts: Counter[Verdict] = Counter()
    for number in range(EACH):
        verdicts[inspector.inspect(KINDS[kind](good[number % len(good)], rng)).verdict] += 1
    assert verdicts[Verdict.PASS] == 0
    assert verdicts[Verdict.REVIEW] == 0
    assert verdicts[Verdict.NOT_INSPECTED] >= 0.99 * EACH, verdicts
