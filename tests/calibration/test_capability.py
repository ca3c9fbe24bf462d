"""``flawline calibrate capability`` on real files: sizes that are known, bases that pass, repeats, refusals."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from calibration.calibrate import Rates, propose, write
from calibration.capability import ALL, Implants, Trial, agreement, bounded_by, detection, measure
from calibration.errors import CalibrationError
from calibration.evaluate import LOOKS, Seen
from calibration.implant import KINDS, implant
from calibration.pod import LEAST_DEFECTS
from contract.bundle import open_bundle, write_manifest
from contract.dataset import Sample
from contract.event import Verdict
from contract.images import extent_px
from contract.recipe import Recipe, View
from flawline import main
from tests.bundles import draw_part

WHOLE = (0.0, 0.0, 1.0, 1.0)


@pytest.fixture
def calibrated(fresh: Path, drawn: Path) -> Path:
    write(propose(fresh, drawn, Rates(0.05)))
    return fresh


@pytest.fixture(scope="module")
def more(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with 30 good test images more: enough pictures for a bound."""
    folder = Path(shutil.copytree(drawn, tmp_path_factory.mktemp("more") / "data"))
    for number in range(30):
        cv2.imwrite(str(folder / "test" / "good" / f"more_{number:03d}.png"), draw_part(50_000 + number))
    return folder


def run(bundle: Path, data: Path, tmp_path: Path, *more: str) -> tuple[dict[str, Any], str]:
    page, figures = tmp_path / "out" / "page.html", tmp_path / "out" / "figures.json"
    words = ["calibrate", "capability", str(bundle), "--data", str(data), "--html", str(page), "--json", str(figures)]
    assert main([*words, *more]) == 0
    return json.loads(figures.read_text()), page.read_text()


def test_command_writes_page_figures_and_record(
    calibrated: Path, more: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    looks = tmp_path / "looks.csv"
    words = ("--implant", "spot", "--implant", "scratch", "--implants", "160", "--sizes", "0.5:24", "--contrast", "80")
    found, page = run(calibrated, more, tmp_path, *words, "--looks", str(looks))
    assert found["unit"] == "px"
    assert found["evaluation"]["counts"]["defective"] == 20
    assert set(found["defects"]) == {ALL, "spot"}
    spots = found["defects"]["spot"]
    assert spots["detected_of"] + spots["not_inspected"] == 15, "those with a mask"
    assert spots["a90_95"] is None and f"at least {LEAST_DEFECTS}" in spots["why_not"]
    assert set(found["implanted"]) == {"spot", "scratch"}
    for kind in found["implanted"].values():
        assert kind["detected_of"] + kind["not_inspected"] == 160
        assert 0.5 <= kind["a90"] < kind["a90_95"] <= 24.0
        assert kind["bins"][0]["detected_rate"] < kind["bins"][-1]["detected_rate"]
    assert found["implants"]["good_pictures"] + found["evaluation"]["false_reject_hits"] == 60
    assert page.count("<svg") == 2 and "a90/95" in page and "http" not in page and "approved by" in page
    assert looks.read_text().splitlines()[0] == ",".join(LOOKS) and len(looks.read_text().splitlines()) == 2
    assert "a90/95" in capsys.readouterr().out
    again, _ = run(calibrated, more, tmp_path, *words)
    assert again["implanted"] == found["implanted"], "the same seed, the same defects"


def test_sizes_are_millimetres_where_the_bundle_knows_them(calibrated: Path, drawn: Path) -> None:
    implants = Implants(("spot",), 60, 80.0, (1.0, 24.0))
    in_px = measure(calibrated, drawn, implants=implants)
    manifest = open_bundle(calibrated).manifest
    known = Recipe(**{**manifest.recipe.model_dump(), "views": [View(mm_per_px=0.1)]})
    write_manifest(calibrated, manifest.model_copy(update={"recipe": known}))
    in_mm = measure(calibrated, drawn, implants=implants)
    assert (in_px.unit, in_mm.unit) == ("px", "mm")
    pods = in_px.implanted[0].pod, in_mm.implanted[0].pod
    assert pods[0] is not None and pods[1] is not None and pods[0].a90 is not None
    assert pods[1].a90 == pytest.approx(0.1 * pods[0].a90, rel=1e-3)


def test_without_test_images_defects_go_into_held_out_good_ones(calibrated: Path, drawn: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    shutil.copytree(drawn / "train", data / "train")
    found = measure(calibrated, data, implants=Implants(("spot",), 60, 80.0, (1.0, 24.0)))
    assert found.evaluation is None
    assert 20 <= found.bases <= 30
    assert found.document()["evaluation"] is None
    with pytest.raises(CalibrationError, match=r"no test images.*--implant spot"):
        measure(calibrated, data)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [3.0, 9.0, 30.0])
@pytest.mark.parametrize("shape", [(90, 120), (90, 120, 3)])
def test_an_implant_has_the_extent_and_contrast_asked_for(kind: str, size: float, shape: tuple[int, ...]) -> None:
    picture = np.full(shape, 100, np.uint8)
    for seed in range(8):
        made = implant(picture, kind, size, 40.0, np.random.default_rng(seed), WHOLE)
        assert extent_px(made.mask) == pytest.approx(size, abs=1.3)
        changed = made.picture.astype(int) - 100
        assert set(np.abs(changed[~made.mask]).ravel()) <= set(range(21)), "only the rim, in part"
        assert np.abs(changed).max() in range(34, 41)
        assert (changed >= 0).all() or (changed <= 0).all()
    assert (picture == 100).all()


def test_implants_that_cannot_be_drawn_are_refused() -> None:
    picture, random = np.zeros((40, 60), np.uint8), np.random.default_rng(0)
    with pytest.raises(CalibrationError, match=r"no defect 'hole'.*spot, scratch"):
        implant(picture, "hole", 5.0, 40.0, random, WHOLE)
    for size in (0.0, 20.5, float("nan")):
        with pytest.raises(CalibrationError, match="at most half of its shorter side"):
            implant(picture, "spot", size, 40.0, random, WHOLE)


def test_what_was_not_inspected_is_neither_hit_nor_miss() -> None:
    sizes = [float(size) for size in range(1, 61)]
    trials = [Trial(size, Verdict.REVIEW if size > 20 else Verdict.PASS) for size in sizes]
    plain = detection("kind", trials)
    more = detection("kind", [*trials, *(Trial(3.0, Verdict.NOT_INSPECTED) for _ in range(40))])
    assert (plain.detected.hits, plain.detected.total, plain.not_inspected) == (40, 60, 0)
    assert more == plain._replace(not_inspected=40)


def test_defects_of_few_pictures_have_no_bound() -> None:
    sizes = [float(size) for size in range(1, 101)]
    found = detection("kind", [Trial(size, Verdict.REJECT if size > 40 else Verdict.PASS) for size in sizes])
    assert bounded_by(found, LEAST_DEFECTS) == found
    fewer = bounded_by(found, 5)
    assert found.pod is not None and found.pod.a90_95 is not None and fewer.pod is not None
    assert fewer.pod == found.pod._replace(a90_95=None)
    assert fewer.why == "drawn into 5 good picture(s); a bound needs 29 and more"


@pytest.mark.parametrize("grey", [0, 10, 245, 255])
def test_an_implant_shows_on_black_and_on_white(grey: int) -> None:
    picture = np.full((60, 60), grey, np.uint8)
    for seed in range(6):
        made = implant(picture, "spot", 9.0, 40.0, np.random.default_rng(seed), WHOLE)
        assert np.abs(made.picture.astype(int) - grey).max() == 40


def seen(part: str, *verdicts: Verdict) -> list[Seen]:
    return [Seen(Sample(Path(f"{part}_{n}.png"), "good", None, part), verdict) for n, verdict in enumerate(verdicts)]


def test_pictures_of_a_part_should_get_one_verdict() -> None:
    assert agreement([*seen("a", Verdict.PASS), *seen("b", Verdict.REJECT)]) is None
    found = agreement(
        [
            *seen("a", *[Verdict.PASS] * 10),
            *seen("b", *[Verdict.REJECT] * 9, Verdict.PASS),
            *seen("c", Verdict.PASS, Verdict.NOT_INSPECTED),
            *seen("d", Verdict.PASS),
        ]
    )
    assert found is not None
    assert (found.parts.hits, found.parts.total) == (1, 3)
    assert (found.pairs.hits, found.pairs.total) == (45 + 36, 45 + 45 + 1)
    assert (found.pictures, found.least) == (22, 2)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--sizes", "2-40", "--implant", "spot"], "--sizes '2-40': expected 2 numbers with ':' between them"),
        (["--region", "0,0,1", "--implant", "spot"], "--region '0,0,1': expected 4 numbers"),
        (["--sizes", "9:3", "--implant", "spot"], "sizes of implants"),
        (["--region", "0.5,0.5,0.6,0.1", "--implant", "spot"], "leaves the picture"),
        (["--implants", "10", "--implant", "spot"], "--implants 10: at least 29"),
        (["--implant", "hole"], "no defect 'hole'"),
    ],
)
def test_what_cannot_be_asked_for_is_a_sentence(
    words: list[str], said: str, calibrated: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fixed = ["calibrate", "capability", str(calibrated), "--data", str(drawn), "--html", str(tmp_path / "c.html")]
    assert main([*fixed, *words]) == 2
    assert said in capsys.readouterr().err
    assert not (tmp_path / "c.html").exists()


def test_a_bundle_without_thresholds_is_refused(fresh: Path, drawn: Path) -> None:
    with pytest.raises(CalibrationError, match="has no thresholds; run `flawline calibrate thresholds"):
        measure(fresh, drawn)
