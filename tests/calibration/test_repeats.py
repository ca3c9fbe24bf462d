"""``flawline calibrate repeats`` through the edge's own capture process: what is kept, resumed, judged and refused."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import time
from collections import Counter
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.errors import CalibrationError
from calibration.repeats import (
    LIST,
    NEAR,
    Asked,
    PartRepeats,
    _triggers,
    chi2,
    judge,
    picture_path,
    summed_up,
    take,
)
from contract.bundle import open_bundle
from contract.event import Verdict
from contract.images import read_image
from contract.recipe import Thresholds
from contract.stats import rate
from edge_runtime.cameras.base import MAX_LAG_S
from edge_runtime.capture import CameraProcess
from edge_runtime.settings import CameraSettings
from edge_runtime.synthetic import SyntheticLine
from flawline import main

URL = "synthetic://line?seed=32&parts=3&repeat=4&fps=60&speed=40&defects=0.4"
LIMITS = Thresholds(reject=5, review=3, map=1, method="test", false_reject_rate=0.1, groups=1, images=1, engine="any")
EDGE = """edge_id = "e1"
bundle = "{bundle}"
[[cameras]]
id = "side"
url = "usb://7"
[[cameras]]
id = "top"
url = "{url}"
"""
ABOUT = {"camera": {"id": "top"}, "lying": False}


def words(bundle: Path, out: Path, *more: str) -> list[str]:
    asked = ["--out", str(out), "--parts", "3", "--times", "4", "--engine", "onnxruntime"]
    return ["calibrate", "repeats", str(bundle), *asked, *more]


@pytest.fixture(scope="module")
def taken(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three parts of the drawn line that passed four times each."""
    out = tmp_path_factory.mktemp("repeats") / "taken"
    assert main(words(bundle, out, "--url", URL)) == 0
    return out


def test_parts_that_pass_again_are_taken_judged_and_put_on_the_page(
    bundle: Path, taken: Path, synthetic_data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    figures = tmp_path / "repeats.json"
    edge = tmp_path / "edge.toml"
    edge.write_text(EDGE.format(bundle=bundle, url=URL))
    assert main(words(bundle, taken, "--config", str(edge), "--camera", "top", "--json", str(figures))) == 0
    shown = capsys.readouterr().out
    assert "picture 1 of 4" not in shown, "all is there: nothing is taken"
    found = json.loads(figures.read_text())
    assert len(list(taken.glob("part-*/*.png"))) == 12
    assert [part["part"] for part in found["parts"]] == [1, 2, 3]
    line = SyntheticLine(seed=32, parts=3, repeat=4, defects=0.4, speed=40)
    for part in found["parts"]:
        assert sum(part["verdicts"].values()) == part["commonest_verdict_of"] == 4
        assert part["score_mean"] == pytest.approx(np.mean(part["scores"]))
        assert part["score_sigma"] == pytest.approx(np.std(part["scores"], ddof=1))
        assert len(set(part["scores"])) == 4, "laid down anew: no picture is another's copy"
    plates = [line.sprite(4 * plate).grey[30:-30, 30:-30].astype(np.uint8) for plate in range(3)]
    for path in taken.glob("part-*/*.png"):
        likeness = [cv2.matchTemplate(read_image(path, 1), plate, cv2.TM_CCOEFF_NORMED).max() for plate in plates]
        assert path.parent.name == f"part-{1 + int(np.argmax(likeness)):03d}", "each stands under its own part"
    low, high = found["score_sigma_interval"]
    assert low < found["score_sigma"] < high
    assert "parts within 3 sigma of a limit" in shown and "trigger presence" in shown
    page, document = tmp_path / "c.html", tmp_path / "c.json"
    asked = ["--html", str(page), "--json", str(document), "--repeats", str(taken), "--engine", "onnxruntime"]
    assert main(["calibrate", "capability", str(bundle), "--data", str(synthetic_data), *asked]) == 0
    assert json.loads(document.read_text())["repeats"] == found
    text = page.read_text()
    assert "scores of the repeats of each part" in text and "standard deviation of a repeat" in text
    assert text.count("<circle") >= 12 and "Ten repeats are usual; some parts have 4" in text and "http" not in text


def test_what_was_interrupted_goes_on_and_comes_to_the_same(bundle: Path, taken: Path, tmp_path: Path) -> None:
    out = Path(shutil.copytree(taken, tmp_path / "cut"))
    rows = (out / LIST).read_text().splitlines()
    (out / LIST).write_text("\n".join(rows[:8]) + "\n")  # three pictures of part 2 are on the list
    shutil.rmtree(out / "part-003")
    picture_path(out, 2, 4).unlink()
    asked = Asked(CameraSettings(id="top", url=URL), 3, 4)
    said: list[str] = []
    take(open_bundle(bundle), asked, out, said.append)
    assert said == [
        f"part {part} of 3, picture {repeat} of 4" for part, repeat in ((2, 4), *((3, n + 1) for n in range(4)))
    ]
    assert (out / LIST).read_text() == (taken / LIST).read_text()
    first, second = (judge(open_bundle(bundle), each, "onnxruntime") for each in (taken, out))
    for one, other in zip(first.parts, second.parts, strict=True):
        assert other.scores == pytest.approx(one.scores, rel=0.2), "of the same passes, cut from a frame or two apart"


def test_a_recording_that_ends_too_early_keeps_what_was_taken(bundle: Path, tmp_path: Path) -> None:
    asked = Asked(CameraSettings(id="top", url=URL), 4, 4)
    out = tmp_path / "out"
    with pytest.raises(CalibrationError, match=r"ended: all 12 parts .*pictures are missing in"):
        take(open_bundle(bundle), asked, out, lambda line: None)
    assert len(list(out.glob("part-*/*.png"))) == 12
    assert len(judge(open_bundle(bundle), out, "onnxruntime").parts) == 3


def test_a_recording_that_runs_away_is_refused(tmp_path: Path) -> None:
    """The capture process stands still for as long as a recording waits, and goes on further along."""
    url = URL.replace("repeat=4", "repeat=40")
    process = CameraProcess(CameraSettings(id="top", url=url, stall_s=60), tmp_path, resumed=False)
    try:
        process.start()
        triggers = _triggers(process, False, tmp_path)
        process.release(next(triggers))
        assert process.pid is not None
        os.kill(process.pid, signal.SIGSTOP)
        time.sleep(MAX_LAG_S + 0.5)  # the time itself is what happens here
        os.kill(process.pid, signal.SIGCONT)
        with pytest.raises(CalibrationError, match=r"\d+ frame\(s\) passed that this machine was too slow to look at"):
            for trigger in triggers:
                process.release(trigger)
    finally:
        process.stop()


def test_a_lying_part_and_one_that_is_waited_for(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A folder of pictures for a camera: what came before Enter does not count, and each frame is a picture."""
    frames = tmp_path / "frames"
    frames.mkdir()
    line = SyntheticLine(seed=7, parts=1, defects=0)
    at = line.first_frame(line.parts[0]) + 4
    for number in range(60):
        picture = line.render(at).astype(np.int16) + np.random.default_rng(number).integers(-2, 3, (480, 640))
        cv2.imwrite(str(frames / f"{number:03d}.png"), np.clip(picture, 0, 255).astype(np.uint8))
    monkeypatch.setattr("sys.stdin", io.StringIO("\n\n"))
    out = tmp_path / "out"
    asked = ["--lying", "--ask", "--parts", "2", "--times", "3", "--engine", "onnxruntime", "--out", str(out)]
    assert main(["calibrate", "repeats", str(bundle), "--url", f"file://{frames}?fps=20&channels=1", *asked]) == 0
    shown = capsys.readouterr().out
    assert shown.count("lay it before the camera. Enter begins") == 2 and "the part lay still" in shown
    assert len((out / LIST).read_text().splitlines()) == 7
    shapes = {read_image(path, 1).shape for path in out.glob("part-*/*.png")}
    assert len(shapes) == 1 and max(shapes.pop()) < 200, "the part alone, cut as on the line"


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "give --config edge.toml, or --url URL"),
        (("--url", "sinthetic://line"), "did you mean synthetic://?"),
        (("--url", URL.replace("seed=32", "seed=33")), "begun with another camera"),
        (("--url", URL, "--lying"), "begun with another camera, lying"),
    ],
)
def test_what_cannot_be_taken_is_refused(
    more: tuple[str, ...], said: str, bundle: Path, taken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.read_bytes() for path in taken.rglob("*") if path.is_file()}
    assert main(words(bundle, taken, *more)) == 2
    assert said in capsys.readouterr().err
    assert {path: path.read_bytes() for path in taken.rglob("*") if path.is_file()} == before


def test_which_of_several_cameras_has_to_be_said(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    edge = tmp_path / "edge.toml"
    edge.write_text(EDGE.format(bundle=bundle, url=URL))
    for more, said in (((), "several cameras"), (("--camera", "tip"), "no camera 'tip'")):
        assert main(words(bundle, tmp_path / "out", "--config", str(edge), *more)) == 2
        assert f"{said}: --camera ID, of side, top" in capsys.readouterr().err


def test_a_folder_of_something_else_is_refused(bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(bundle)
    (tmp_path / "note.txt").write_text("mine")
    with pytest.raises(CalibrationError, match="holds something else"):
        take(opened, Asked(CameraSettings(id="top", url=URL), 1), tmp_path, lambda line: None)
    for text, match in (("{", "cannot be read"), ("[]", "not the record of repeats")):
        (tmp_path / "repeats.json").write_text(text)
        with pytest.raises(CalibrationError, match=match):
            judge(opened, tmp_path)


def of(part: int, *scores: float, lost: int = 0) -> PartRepeats:
    verdicts = Counter({verdict: count for verdict, count in (
        (Verdict.PASS, sum(score <= 3 for score in scores)), (Verdict.REVIEW, sum(3 < score <= 5 for score in scores)),
        (Verdict.REJECT, sum(score > 5 for score in scores)), (Verdict.NOT_INSPECTED, lost)) if count})  # fmt: skip
    return PartRepeats(part, verdicts, list(scores), rate(max(verdicts.values()), verdicts.total()))


def test_repeatability_is_pooled_and_a_noisier_part_is_held_against_its_own() -> None:
    parts = [of(1, 1.0, 1.2), of(2, 2.9, 3.1), of(3, 9.0, 10.0, 11.0), of(4, 1.0, lost=1), of(5, lost=2)]
    found = summed_up(ABOUT, "e", parts, LIMITS)
    assert found.sigma == pytest.approx(np.sqrt((0.02 + 0.02 + 2.0) / 4))
    assert (found.agree.hits, found.agree.total) == (3, 5), "a part that was not inspected once does not agree"
    assert found.distance(parts[1]) == pytest.approx(0)
    assert found.distance(parts[2]) == pytest.approx((10 - 5) / 1.0), "its own deviation is the larger"
    assert found.distance(parts[0]) == pytest.approx((3 - 1.1) / found.sigma)
    assert found.distance(parts[3]) == pytest.approx((3 - 1.0) / found.sigma) and found.distance(parts[4]) is None
    assert (found.near.hits, found.near.total) == (sum(d <= NEAR for d in (2.66, 0, 5, 2.8)), 4)
    json.dumps(found.fields(), allow_nan=False)


def test_scores_that_never_move_and_scores_that_are_not_there() -> None:
    still = summed_up(ABOUT, "e", [of(1, 2.0, 2.0), of(2, 5.0, 5.0)], LIMITS)
    assert still.sigma == 0 and (still.near.hits, still.near.total) == (1, 2), "on the limit is near it"
    json.dumps(still.fields(), allow_nan=False)
    none = summed_up(ABOUT, "e", [of(1, 2.0), of(2, lost=3)], LIMITS)
    assert none.sigma is None and none.sigma_interval is None and none.near.total == 0


@pytest.mark.parametrize(("freedom", "low", "high"), [(5, 0.8312, 12.833), (20, 9.591, 34.170), (90, 65.647, 118.136)])
def test_chi_square_is_that_of_the_tables(freedom: int, low: float, high: float) -> None:
    z = 1.959963984540054
    assert chi2(-z, freedom) == pytest.approx(low, rel=0.05) and chi2(z, freedom) == pytest.approx(high, rel=0.01)
