"""The inspector: every way that a part can end, and what it costs."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from calibration.quality import bounds_from, see
from contract.bundle import Bundle
from contract.errors import ImageError
from contract.event import Verdict
from contract.preprocess import MEASURES, prepare
from contract.recipe import Recipe, Thresholds, Tiling, View
from edge_runtime.engines import open_engine
from edge_runtime.errors import EngineError
from edge_runtime.inspector import FROZEN, UNGATED, Inspector
from tests.bundles import draw_part
from tests.graphs import write_bundle

GOOD = [draw_part(number) for number in range(30)]


def limits(reject: float = 2.0, review: float | None = None) -> Thresholds:
    return Thresholds(
        reject=reject, review=review, map=reject, method="test", false_reject_rate=0.1, groups=1, images=1, engine="x"
    )


def make(folder: Path, recipe: Recipe | None = None, frozen: bool = False, **fields: object) -> Inspector:
    recipe = recipe or Recipe()
    good = [draw_part(number, colour=recipe.channels == 3) for number in range(30)]
    quality = bounds_from([see(prepare(part, recipe), part.shape[:2]) for part in good])
    bundle: Bundle = write_bundle(folder, good, recipe, **{"thresholds": limits(), "quality": quality, **fields})
    return Inspector(bundle, open_engine("onnxruntime", bundle), frozen_check=frozen)


@pytest.fixture(scope="module")
def inspector(tmp_path_factory: pytest.TempPathFactory) -> Inspector:
    return make(tmp_path_factory.mktemp("bundle"))


def test_good_part_passes(inspector: Inspector) -> None:
    outcome = inspector.inspect(draw_part(500))
    assert (outcome.verdict, outcome.reason, outcome.regions) == (Verdict.PASS, None, [])
    assert outcome.score is not None and outcome.part is not None
    assert outcome.score == outcome.part.score < 2.0
    assert set(outcome.quality) == {f"main.{name}" for name in MEASURES}
    assert 0 < outcome.t_prepared_ns <= outcome.t_inferred_ns <= outcome.t_decided_ns <= time.monotonic_ns()


def test_defective_part_is_rejected_where_it_deviates(inspector: Inspector) -> None:
    part = draw_part(501)
    part[16:24, 56:64] = 20
    outcome = inspector.inspect(part)
    assert outcome.verdict is Verdict.REJECT
    x, y, width, height = outcome.regions[0].box_px
    assert x < 60 < x + width and y < 20 < y + height
    assert outcome.reason is not None and "above 2" in outcome.reason


def test_review_lies_between(tmp_path: Path) -> None:
    inspector = make(tmp_path, thresholds=limits(1e6, review=1e-6))
    assert inspector.inspect(GOOD[0]).verdict is Verdict.REVIEW


def test_gate_runs_before_inference(inspector: Inspector, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise AssertionError("a refused picture must not be scored")

    monkeypatch.setattr(inspector.engine, "start", refuse)
    outcome = inspector.inspect(np.zeros((80, 80), np.uint8))
    assert outcome.verdict is Verdict.NOT_INSPECTED
    assert outcome.score is None and outcome.part is None
    assert outcome.t_prepared_ns > 0 == outcome.t_inferred_ns
    assert outcome.reason is not None and outcome.reason.startswith("image quality: mean of view 'main'")
    assert outcome.quality["main.mean"] == 0.0


@pytest.mark.parametrize(
    "part",
    [
        np.zeros((80, 80, 3), np.uint8),
        np.zeros((80, 80, 4), np.uint8),
        np.zeros((80, 80), np.uint16),
        np.zeros((80, 80), np.float32),
        np.zeros((1, 80), np.uint8),
        np.zeros((0, 0), np.uint8),
        np.zeros(80, np.uint8),
        np.zeros((2, 2, 2, 2), np.uint8),
    ],
    ids=lambda part: f"{part.shape}-{part.dtype}",
)
def test_bad_picture_is_not_inspected(inspector: Inspector, part: np.ndarray) -> None:
    outcome = inspector.inspect(part)
    assert outcome.verdict is Verdict.NOT_INSPECTED
    assert outcome.reason and outcome.score is None
    assert outcome.t_decided_ns > 0 == outcome.t_prepared_ns


@pytest.mark.parametrize("error", [EngineError("gone"), RuntimeError("CUDA error"), MemoryError(), ValueError("")])
def test_engine_failure_is_not_inspected(
    inspector: Inspector, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(inspector.engine, "_run", fail)
    outcome = inspector.inspect(GOOD[0])
    assert outcome.verdict is Verdict.NOT_INSPECTED and outcome.reason and outcome.score is None
    with pytest.raises(EngineError):
        inspector.reconstruction()


def test_engine_recovers_after_a_failure(inspector: Inspector) -> None:
    assert inspector.inspect(GOOD[0]).verdict is Verdict.PASS


def test_uncalibrated_bundle_says_the_way_out(tmp_path: Path) -> None:
    inspector = make(tmp_path, thresholds=None, quality=None)
    outcome = inspector.inspect(GOOD[0])
    assert outcome.verdict is Verdict.NOT_INSPECTED
    assert outcome.reason is not None and "flawline calibrate thresholds" in outcome.reason
    assert outcome.score is not None


def test_thresholds_without_bounds_never_pass(tmp_path: Path) -> None:
    outcome = make(tmp_path, quality=None).inspect(GOOD[0])
    assert (outcome.verdict, outcome.reason) == (Verdict.NOT_INSPECTED, UNGATED)


def test_frozen_camera_is_not_inspected(tmp_path: Path) -> None:
    inspector = make(tmp_path, frozen=True)
    frame = GOOD[0].copy()
    assert inspector.inspect(frame).verdict is Verdict.PASS
    outcome = inspector.inspect(frame)
    assert (outcome.verdict, outcome.reason, outcome.score) == (Verdict.NOT_INSPECTED, FROZEN, None)
    frame[0, 0] ^= 1  # the same memory, one pixel other: a live camera
    assert inspector.inspect(frame).verdict is Verdict.PASS
    assert inspector.inspect(GOOD[1]).verdict is Verdict.PASS


def test_same_file_twice_is_no_fault(inspector: Inspector) -> None:
    assert [inspector.inspect(GOOD[2]).verdict for _ in range(3)] == [Verdict.PASS] * 3


def test_score_has_neither_gate_nor_thresholds(inspector: Inspector) -> None:
    scored, prepared = inspector.score(np.zeros((80, 80), np.uint8))
    assert scored.score > 2 and prepared.tiles.shape == (1, 64, 64, 1)
    with pytest.raises(ImageError):
        inspector.score(np.zeros((80, 80, 3), np.uint8))


@pytest.mark.parametrize("channels", [1, 3])
def test_reconstruction_joins_tiles_and_views(channels: int, tmp_path: Path) -> None:
    views = [
        View(name="left", region=(0, 0, 0.5, 1), tiling=Tiling(rows=2, columns=1, overlap_px=8)),
        View(name="right", region=(0.5, 0, 0.5, 1)),
    ]
    recipe = Recipe(channels=channels, tile_hw=(32, 32), views=views)
    inspector = make(tmp_path, recipe, thresholds=limits(1e6))
    outcome = inspector.inspect(draw_part(7, colour=channels == 3))
    assert outcome.verdict is Verdict.PASS
    shown = inspector.reconstruction()
    tail = (3,) if channels == 3 else ()
    assert {name: picture.shape for name, picture in shown.items()} == {
        "left": (56, 32, *tail),
        "right": (32, 32, *tail),
    }


def test_overhead_is_under_a_millisecond(tmp_path: Path) -> None:
    """Prepare, gate and decide of a 300 x 300 part at 64 px; the median of many, since the machine is shared."""
    inspector = make(tmp_path)
    parts = [draw_part(number, side=300) for number in range(10)]
    taken = []
    for number in range(200):
        start = time.monotonic_ns()
        outcome = inspector.inspect(parts[number % 10])
        taken.append(
            outcome.t_prepared_ns - start + outcome.t_decided_ns - max(outcome.t_inferred_ns, outcome.t_prepared_ns)
        )
    assert np.median(taken) < 1e6
