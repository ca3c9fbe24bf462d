"""``--zones`` and ``--mask`` on real files: what is masked moves nothing, zones are calibrated, what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.calibrate import Rates, propose
from calibration.errors import CalibrationError
from calibration.evaluate import evaluate
from calibration.places import Where, pooled_of
from contract.baseline import baseline_file, read_baseline
from contract.bundle import ROLE_BASELINE, open_bundle, put_files
from contract.dataset import load_dataset
from contract.errors import ConfigError, ImageError
from contract.event import Verdict
from contract.images import Pixels, read_image
from edge_runtime.drift_desk import held_against
from edge_runtime.engines import open_engine
from edge_runtime.inspector import Inspector
from edge_runtime.settings import CameraSettings, EdgeSettings
from flawline import main
from tests.bundles import SIDE, calibrated, draw_part

MASK = "[[masks]]\nbox = [0.1, 0.1, 0.3, 0.3]\n"
HIDDEN = (slice(8, 32), slice(8, 32))  # the same in pixels of the drawn part


def zones_file(folder: Path, text: str) -> Where:
    path = folder / "zones.toml"
    path.write_text(text)
    return Where(path)


def inspector_of(folder: Path) -> Inspector:
    bundle = open_bundle(folder)
    return Inspector(bundle, open_engine("onnxruntime", bundle))


def garbled(part: Pixels, seed: int) -> Pixels:
    changed = part.copy()
    changed[HIDDEN] = np.random.default_rng(seed).integers(0, 256, (24, 24))
    return changed


def all_of(inspector: Inspector, part: Pixels) -> list[object]:
    """Everything that is said of a part, but when; its map to the last bit."""
    outcome = inspector.inspect(part)
    scored = inspector.score(part)[0]
    return [*outcome[:3], *outcome[4:6], scored.score, [view.values.tobytes() for view in scored.maps]]


@pytest.mark.parametrize("side", [40, SIDE, 300])  # the canvas has 64 pixels a side: enlarged, shrunk, shrunk a lot
def test_what_lies_under_a_mask_changes_nothing_to_the_last_bit(
    side: int, fresh: Path, drawn: Path, tmp_path: Path
) -> None:
    calibrated(fresh, drawn, Rates(0.05), "onnxruntime", where=zones_file(tmp_path, MASK))
    inspector = inspector_of(fresh)
    hidden = slice(side // 10, 4 * side // 10)
    for defect in (False, True):
        drawing = draw_part(700)
        if defect:
            drawing[52:60, 52:60] = 20
        part = np.asarray(cv2.resize(drawing, (side, side), interpolation=cv2.INTER_LINEAR), np.uint8)
        seen = all_of(inspector, part)
        if side == SIDE:
            assert seen[0] is (Verdict.REJECT if defect else Verdict.PASS)
        for seed in range(3):
            other = part.copy()
            other[hidden, hidden] = np.random.default_rng(seed).integers(0, 256, other[hidden, hidden].shape)
            assert (other != part).any() and all_of(inspector, other) == seen


def test_without_the_mask_the_same_part_is_rejected(fresh: Path, drawn: Path) -> None:
    calibrated(fresh, drawn, Rates(0.05), "onnxruntime")
    assert inspector_of(fresh).inspect(garbled(draw_part(700), 1)).verdict is not Verdict.PASS


def test_masked_parts_are_calibrated_as_they_are_judged(fresh: Path, drawn: Path, tmp_path: Path) -> None:
    result = calibrated(fresh, drawn, Rates(0.1), "onnxruntime", where=zones_file(tmp_path, MASK))
    inspector = inspector_of(fresh)
    held = [read_image(sample.path, 1) for sample in load_dataset(drawn).train[30:]]
    scores = np.sort([inspector.score(part)[0].score for part in held])
    assert result.thresholds.reject == scores[int(np.ceil(31 * 0.9)) - 1]
    good = [inspector.inspect(draw_part(20_000 + number)).verdict for number in range(200)]
    assert good.count(Verdict.REJECT) <= 45 and good.count(Verdict.NOT_INSPECTED) == 0


def test_masks_and_zones_are_in_bundle_report_and_terminal(
    fresh: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    where = zones_file(
        tmp_path,
        MASK + '[[zones]]\nname = "hole <rim>"\npolygon = [[0.3, 0.3], [0.7, 0.3], [0.5, 0.8]]\nsmallest_px = 40\n'
        'verdict = "REJECT"\ntolerance = 2\n',
    )
    picture = np.full((120, 120), 255, np.uint8)
    picture[90:] = 0
    cv2.imwrite(str(tmp_path / "low.png"), picture)
    command = ["calibrate", "thresholds", str(fresh), "--data", str(drawn), "--zones", str(where.zones)]
    command += ["--level", "always"]
    assert main([*command, "--mask", f"main={tmp_path / 'low.png'}"]) == 0
    shown = capsys.readouterr().out
    assert "not inspected of view main" in shown and "zone hole <rim>" in shown and "REJECT" in shown
    bundle = open_bundle(fresh)
    places = bundle.manifest.places
    assert places is not None and places.top_k == 1
    assert [mask.picture for mask in places.masks] == [None, "low.png"]  # a name, no folder of this machine
    assert set(bundle.manifest.place_files()) == {"level.0", "mask.0", "fill.0"}
    keep = np.load(bundle.path("mask.0"))
    assert keep.shape == (64, 64) and not keep[7:25, 7:25].any() and not keep[48:].any() and keep[30:46].all()
    page = bundle.path("report").read_text()
    assert "is not inspected (red)" in page and "hole &lt;rim&gt;" in page and "data:image/png;base64," in page
    for loaded in ("http://", "https://", "<script", "<link", "src="):
        assert loaded not in page
    before = bundle.manifest.calibration_id()
    assert main(["calibrate", "thresholds", str(fresh), "--data", str(drawn)]) == 0
    assert "the bundle had 2 mask(s) and 1 zone(s), and this calibration has none" in capsys.readouterr().out
    bundle = open_bundle(fresh)
    assert bundle.manifest.places is None and not bundle.manifest.place_files()
    assert not list(fresh.glob("mask-*")) and not list(fresh.glob("fill-*"))
    assert bundle.manifest.calibration_id() != before


def test_another_mask_is_another_calibration(fresh: Path, drawn: Path, tmp_path: Path) -> None:
    ids = set()
    for x in (0.1, 0.11):
        where = zones_file(tmp_path, f"[[masks]]\nbox = [{x}, 0.1, 0.3, 0.3]\n")._replace(levels="never")
        calibrated(fresh, drawn, Rates(0.05), "onnxruntime", where=where)
        ids.add(open_bundle(fresh).manifest.calibration_id())
    assert len(ids) == 2


def test_a_zone_s_verdict_is_in_the_rate(fresh: Path, drawn: Path, tmp_path: Path) -> None:
    """However eager a zone is, the part's limit rises with it and the asked rate holds for both together."""
    eager = '[[zones]]\nname = "all"\nbox = [0, 0, 1, 1]\nsmallest_px = 1\ntolerance = 0.2\nverdict = "REJECT"\n'
    plain = calibrated(fresh, drawn, Rates(0.05), "onnxruntime").thresholds
    result = calibrated(fresh, drawn, Rates(0.05), "onnxruntime", where=zones_file(tmp_path, eager))
    assert result.thresholds.reject > 3 * plain.reject
    above = sum(score > result.thresholds.reject for score in result.measured.scores)
    assert above <= 0.05 * 30
    inspector = inspector_of(fresh)
    verdicts = [inspector.inspect(draw_part(21_000 + number)).verdict for number in range(200)]
    assert verdicts.count(Verdict.REJECT) <= 0.15 * 200


CORNER = "[[masks]]\nbox = [0, 0, 0.05, 0.05]\n"  # so that scores are made anew


@pytest.fixture
def pooled(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scores made anew are the mean of 40 map values, as of models that pool; the graph at hand takes the highest."""
    monkeypatch.setattr("calibration.places.pooled_of", lambda bundle, engine: 40)


@pytest.mark.usefixtures("pooled")
def test_a_zone_finds_what_the_score_alone_passes(fresh: Path, drawn: Path, tmp_path: Path) -> None:
    zone = '[[zones]]\nname = "left"\nbox = [0.15, 0.6, 0.25, 0.25]\nsmallest_px = 30\n'
    parts = [draw_part(800 + number) for number in range(40)]
    for part in parts:
        part[54:62, 14:24] -= 12
    rejected, named = [], []
    for text in (CORNER + zone, f'{CORNER}{zone}verdict = "REJECT"\n'):
        calibrated(fresh, drawn, Rates(0.05), "onnxruntime", where=zones_file(tmp_path, text))
        inspector = inspector_of(fresh)
        outcomes = [outcome for part in parts if (outcome := inspector.inspect(part)).verdict is Verdict.REJECT]
        rejected.append(len(outcomes))
        named.append([outcome for outcome in outcomes if "a region in zone 'left'" in str(outcome.reason)])
    assert rejected[1] >= rejected[0] + 10, rejected
    assert not named[0] and len(named[1]) >= 10
    assert all(any(region.zone == "left" for region in outcome.regions) for outcome in named[1])


@pytest.mark.usefixtures("pooled")
def test_a_zone_that_sends_to_review(fresh: Path, drawn: Path, tmp_path: Path) -> None:
    zone = '[[zones]]\nname = "all"\nbox = [0, 0, 1, 1]\nsmallest_px = 20\nverdict = "REVIEW"\n'
    plain = propose(fresh, drawn, Rates(0.05, 0.9), "onnxruntime", where=zones_file(tmp_path, CORNER)).thresholds
    where = zones_file(tmp_path, CORNER + zone)
    with pytest.raises(ConfigError, match="give --review-rate"):
        calibrated(fresh, drawn, Rates(0.05), "onnxruntime", where=where)
    with pytest.raises(ConfigError, match="ask for a higher --review-rate"):
        calibrated(fresh, drawn, Rates(0.4, 0.41), "onnxruntime", where=where)
    result = calibrated(fresh, drawn, Rates(0.05, 0.9), "onnxruntime", where=where)
    assert result.thresholds.reject == plain.reject
    assert result.thresholds.review is not None and plain.review is not None
    assert plain.review < result.thresholds.review <= result.thresholds.reject
    assert sum(high > result.thresholds.review for high in result.measured.reviews) <= 0.9 * 30
    baseline = read_baseline(open_bundle(fresh))
    assert baseline is not None and baseline.review is not None
    assert baseline.review == sorted(result.measured.reviews) and baseline.score == sorted(result.measured.scores)
    settings = EdgeSettings(edge_id="e", bundle=fresh, cameras=[CameraSettings(id="top", url="synthetic://line")])
    known = held_against(open_bundle(fresh), settings, ["top"]).references["top"]
    without = baseline.model_copy(update={"review": None})
    put_files(open_bundle(fresh), {ROLE_BASELINE: baseline_file(without)})
    older = held_against(open_bundle(fresh), settings, ["top"]).references["top"]
    assert (known.counts_rejects, older.counts_rejects) == (True, False)
    inspector = inspector_of(fresh)
    outcomes = [inspector.inspect(draw_part(22_000 + number)) for number in range(60)]
    sent = [
        outcome for outcome in outcomes if outcome.verdict is Verdict.REVIEW and "zone 'all'" in str(outcome.reason)
    ]
    assert sent and all(outcome.score <= result.thresholds.reject for outcome in sent)


def test_preview_with_places_writes_nothing(fresh: Path, drawn: Path, tmp_path: Path) -> None:
    before = {path.name: path.read_bytes() for path in fresh.iterdir()}
    where = zones_file(tmp_path, MASK)
    command = ["calibrate", "thresholds", str(fresh), "--data", str(drawn), "--zones", str(where.zones), "--preview"]
    assert main(command) == 0
    assert {path.name: path.read_bytes() for path in fresh.iterdir()} == before


def test_the_pooling_is_found_on_the_golden_images(fresh: Path) -> None:
    bundle = open_bundle(fresh)
    engine = open_engine("onnxruntime", bundle)
    assert pooled_of(bundle, engine) == 1


def test_evaluation_judges_with_masks(fresh: Path, drawn: Path, tmp_path: Path) -> None:
    """Every defect of the test images lies under the mask, so that none is found and no pixel of it deviates."""
    where = zones_file(tmp_path, "[[masks]]\nbox = [0.1, 0.12, 0.8, 0.36]\n")
    calibrated(fresh, drawn, Rates(0.05), "onnxruntime", where=where)
    figures = evaluate(fresh, drawn, "onnxruntime").figures
    assert figures["escape_hits"] >= 17 and figures["not_inspected_defective"] == 0


REFUSED: list[tuple[str, type[Exception], str]] = [
    ("[[masks]]\nbox = [0, 0, 1, 1]\n", CalibrationError, "covers all of it"),
    ("[[masks]]\nview = 'top'\nbox = [0, 0, 0.1, 0.1]\n", ConfigError, "expected one of the recipe's views, 'main'"),
    ("[[masks]]\nbx = [0, 0, 0.1, 0.1]\n", ConfigError, "masks.0.bx.*did you mean `box`"),
    ("[[zones]]\nname = 'a'\nbox = [0, 0, 1, 1]\nsmalest_px = 3\n", ConfigError, "did you mean `smallest_px`"),
    ("[[zones]]\nname = 'a'\nbox = [0, 0, 1, 1]\nverdict = 'PASS'\nsmallest_px = 3\n", ConfigError, "REVIEW"),
    ("[[zones]]\nname = 'a'\nbox = [0, 0, 1, 1]\nsmallest_mm2 = 3\n", ConfigError, "scale of view 'main' is not known"),
    ("[[zones]]\nname = 'a'\nbox = [0, 0, 1, 1]\ntolerance = 0\n", ConfigError, "zones.0.tolerance"),
    ("[[zones]]\nbox = [0, 0, 1, 1]\n", ConfigError, "zones.0.name"),
    ("zones = 3\n", ConfigError, "zones"),
    ("[[zones]\n", ConfigError, "not valid TOML"),
    (
        "[[zones]]\nname = 'a'\nbox = [0, 0, 1, 1]\n[[zones]]\nname = 'b'\nbox = [0, 0, 0.5, 0.5]\n",
        ConfigError,
        "'b' lies wholly in zones before it",
    ),
]


@pytest.mark.parametrize(("text", "error", "said"), REFUSED)
def test_refused(text: str, error: type[Exception], said: str, fresh: Path, drawn: Path, tmp_path: Path) -> None:
    before = (fresh / "bundle.json").read_bytes()
    with pytest.raises(error, match=f"(?s){said}"):
        calibrated(fresh, drawn, Rates(0.05), "onnxruntime", where=zones_file(tmp_path, text))
    assert (fresh / "bundle.json").read_bytes() == before


def test_mask_pictures_that_do_not_fit(fresh: Path, drawn: Path, tmp_path: Path) -> None:
    pictures = {
        "wide": (np.full((64, 128), 255, np.uint8), CalibrationError, "128 x 64 pixels, of another shape than view"),
        "grey": (np.full((80, 80), 128, np.uint8), CalibrationError, "100.0 % of its pixels are neither"),
        "black": (np.zeros((80, 80), np.uint8), CalibrationError, "all black"),
    }
    for name, (pixels, error, said) in pictures.items():
        path = tmp_path / f"{name}.png"
        cv2.imwrite(str(path), pixels)
        with pytest.raises(error, match=said):
            calibrated(fresh, drawn, Rates(0.05), "onnxruntime", where=Where(masks=(f"main={path}",)))
    for given, error in (("main", ConfigError), ("=x.png", ConfigError), ("main=none.png", ImageError)):
        with pytest.raises(error):
            calibrated(fresh, drawn, Rates(0.05), "onnxruntime", where=Where(masks=(given,)))


def test_a_mask_needs_pictures_that_training_saw(fresh: Path, drawn: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "train" / "good").mkdir(parents=True)
    for path in sorted((drawn / "train" / "good").iterdir())[30:]:
        shutil.copy(path, data / "train" / "good")
    with pytest.raises(CalibrationError, match="their mean stands in"):
        calibrated(fresh, data, Rates(0.05), "onnxruntime", where=zones_file(tmp_path, MASK))
