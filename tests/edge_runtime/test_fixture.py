"""Parts that lie at any turn, from raw pictures to the line: cut upright by the bundle's own mark, or NOT_INSPECTED."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from contract.baseline import read_baseline
from contract.bundle import open_bundle
from contract.dataset import load_dataset
from contract.errors import BundleError, ConfigError
from contract.event import Attachment, Header, Result, Verdict
from contract.fixture import open_fixture, placer_of
from contract.images import Pixels
from edge_runtime.engines import open_engine
from edge_runtime.recipes import refuse_unfit
from edge_runtime.settings import CameraSettings, EdgeSettings
from flawline import main
from tests.bundles import train_small_bundle
from tests.edge_runtime.test_station import Run
from tests.turned import FRAME_HW, Lie, Turned, anywhere, belt

GOOD, HELD = 70, 8
REGION = "70,80,180,140"


def write(folder: Path, name: str, frame: Pixels) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(folder / f"{name}.png"), frame)


def hole(frame: Pixels, lie: Lie, at: tuple[float, float]) -> tuple[float, float]:
    """Drill a bright blemish at ``at`` (pixels right of and below the plate's centre, as it lies upright)."""
    turn = np.radians(lie.angle_deg)
    x = lie.x + lie.scale * (np.cos(turn) * at[0] - np.sin(turn) * at[1])
    y = lie.y + lie.scale * (np.sin(turn) * at[0] + np.cos(turn) * at[1])
    cv2.circle(frame, (round(x), round(y)), 8, 245, -1, cv2.LINE_AA)
    return float(x), float(y)


@pytest.fixture(scope="module")
def raw(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Pictures of good plates at any turn, some with a dent and its mask, and one of a bare belt among the good."""
    folder = tmp_path_factory.mktemp("raw")
    random, good, dented = np.random.default_rng(11), Turned(), Turned(kind="dent")
    write(folder / "train/good", "000", good.frame(0, Lie(160, 150, 0.0), random))
    for number in range(1, GOOD):
        write(folder / "train/good", f"{number:03d}", good.frame(number, anywhere(random), random))
    bare = np.clip(belt(FRAME_HW, random), 0, 255).astype(np.uint8)
    write(folder / "train/good", "bare", bare)
    for number in range(4):
        lie = anywhere(random)
        write(folder / "test/dent", f"{number:03d}", dented.frame(number, lie, random))
        write(folder / "ground_truth/dent", f"{number:03d}_mask", dented.mask(number, lie))
    return folder


@pytest.fixture(scope="module")
def cut(raw: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same cut out upright, by the commands."""
    folder = tmp_path_factory.mktemp("cut")
    picture, fixture, out = str(raw / "train/good/000.png"), str(folder / "fixture"), str(folder / "parts")
    assert main(["fixture", "make", picture, "--region", REGION, "--out", fixture]) == 0
    assert main(["fixture", "cut", fixture, "--data", str(raw), "--out", out]) == 2  # the bare belt
    return folder / "parts"


@pytest.fixture(scope="module")
def taught(cut: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle trained and calibrated on the cut-out parts."""
    out = train_small_bundle(tmp_path_factory.mktemp("taught") / "bundle", cut, steps=100)
    assert main(["calibrate", "thresholds", str(out), "--data", str(cut), "--level", "never"]) == 0
    return out


def test_a_data_set_is_cut_upright_with_its_masks_and_limits(cut: Path) -> None:
    dataset = load_dataset(cut)
    assert len(dataset.train) == GOOD and len(dataset.test) == 4
    sizes = {cv2.imread(str(sample.path), cv2.IMREAD_UNCHANGED).shape for sample in dataset.train}
    assert sizes == {(140, 180)}
    for sample in dataset.test:
        assert sample.mask is not None
        mask = cv2.imread(str(sample.mask), cv2.IMREAD_UNCHANGED)
        assert mask.shape == (140, 180) and set(np.unique(mask)) == {0, 255}
    limits = open_fixture(cut).fixture
    assert limits.samples == GOOD and limits.least_score > 0.7 and limits.least_lead > 0.05


def test_what_is_left_out_is_named(raw: Path, cut: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["fixture", "try", str(cut), str(raw / "train/good")]) == 2
    shown = capfd.readouterr().out.splitlines()
    assert len(shown) == GOOD + 1
    assert next(line for line in shown if "fixture: " in line).partition("  ")[0].endswith("bare.png")
    assert "score 1.000" in shown[0] and "angle_deg" in shown[0]
    few = tmp_path / "few"
    for name in ("bare", "001"):
        write(few / "train/good", name, cv2.imread(str(raw / f"train/good/{name}.png"), cv2.IMREAD_GRAYSCALE))
    (few / "groups.csv").write_text("file,group\ntrain/good/bare.png,a\ntrain/good/001.png,b\n")
    assert main(["fixture", "cut", str(cut), "--data", str(few), "--out", str(tmp_path / "out")]) == 2
    assert "bare.png: fixture: " in capfd.readouterr().err
    with (tmp_path / "out/groups.csv").open() as file:
        assert list(csv.reader(file)) == [["file", "group"], ["train/good/001.png", "b"]]
    assert main(["fixture", "cut", str(cut), "--data", str(few), "--out", str(tmp_path / "out")]) == 2
    assert "the folder is not empty" in capfd.readouterr().err


def test_the_bundle_holds_the_fixture_and_its_limits_count_as_calibration(taught: Path, cut: Path) -> None:
    bundle = open_bundle(taught)
    held, own = placer_of(bundle), open_fixture(cut)
    assert held is not None and held.fixture == own.fixture and np.array_equal(held.mark, own.mark)
    assert open_fixture(taught).fixture == own.fixture
    baseline = read_baseline(bundle)
    assert baseline is not None
    scores = baseline.measures["fixture"]["score"]
    assert len(scores) == GOOD + 1 and scores[0] < own.fixture.least_score < scores[1], "one was not found, and counts"
    limits = own.fixture.model_copy(update={"least_score": 0.9999})
    changed = bundle.manifest.model_copy(update={"fixture": limits})
    assert changed.calibration_id() != bundle.manifest.calibration_id()


def test_pictures_cut_otherwise_neither_calibrate_nor_run(
    taught: Path, bundle: Path, cut: Path, raw: Path, synthetic_data: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for words, reason in (
        ((str(taught), str(raw)), "cut by no fixture, and the bundle has one: cut them by the bundle's own"),
        ((str(bundle), str(cut)), "cut by a fixture, and the bundle has none: train it on pictures"),
    ):
        assert main(["calibrate", "thresholds", words[0], "--data", words[1]]) == 2
        assert reason in capfd.readouterr().err
        assert main(["calibrate", "evaluate", words[0], "--data", words[1], "--json", str(raw / "x.json")]) == 2
        assert reason in capfd.readouterr().err
    for folder, fixture, error, reason in (
        (taught, "foreground", ConfigError, 'set fixture = "template"'),
        (bundle, "template", BundleError, "the bundle has none"),
    ):
        camera = CameraSettings(id="top", url="synthetic://line", fixture=fixture)  # type: ignore[arg-type]
        settings = EdgeSettings(edge_id="edge", bundle=folder, cameras=[camera])
        with pytest.raises(error, match=reason):
            refuse_unfit(open_bundle(folder), settings)
    camera = CameraSettings(id="top", url="synthetic://line", fixture="template")
    refuse_unfit(open_bundle(taught), EdgeSettings(edge_id="edge", bundle=taught, cameras=[camera]))


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[list[Run]]:
    made: list[Run] = []
    yield made
    for run in made:
        run.close()


def results_of(headers: list[Header]) -> list[Result]:
    return [header for header in headers if isinstance(header, Result)]


def test_turned_parts_pass_a_blemish_is_rejected_where_it_is_and_a_bare_belt_is_not_inspected(
    taught: Path, tmp_path: Path, runs: list[Run]
) -> None:
    random, good = np.random.default_rng(21), Turned(seed=4)
    place = (38.0, 22.0)
    blemishes = {}
    for number in range(HELD):
        lie = anywhere(random)
        frame = good.frame(number, lie, random)
        if number % 2:
            blemishes[number] = hole(frame, lie, place)
        write(tmp_path / "in", f"{number:03d}", frame)
    write(tmp_path / "in", "999", np.clip(belt(FRAME_HW, random), 0, 255).astype(np.uint8))
    bundle = open_bundle(taught)
    camera = {"trigger": "every-frame", "fixture": "template", "slots": HELD + 4}  # none waits for a slot
    url = f"file://{tmp_path}/in?fps=20&channels=1"
    runs.append(Run(tmp_path, bundle, open_engine("onnxruntime", bundle), url, camera=camera))
    headers = runs[0].run()
    results = results_of(headers)
    assert len(results) == HELD + 1
    for number, result in enumerate(results[:HELD]):
        assert result.verdict is (Verdict.REJECT if number in blemishes else Verdict.PASS), (number, result.reason)
        assert result.quality["fixture.score"] > 0.8 and abs(result.quality["fixture.scale"] - 1) < 0.02
        assert "fixture.angle_deg" in result.quality and result.quality["fixture.lead"] > 0.2
        if number not in blemishes:
            continue
        assert result.part_to_frame is not None
        a, b, c, d, e, f = result.part_to_frame
        x, y, width, height = result.regions[0].box_px
        u, v = x + width / 2, y + height / 2
        # On the part the region lies where the blemish was put, whatever the turn: 160, 150 was 90, 70 of the cut.
        assert np.hypot(u - (90 + place[0]), v - (70 + place[1])) < 10
        # And in the frame where it was drawn.
        assert np.hypot(a * u + b * v + c - blemishes[number][0], d * u + e * v + f - blemishes[number][1]) < 10
    bare = results[-1]
    assert bare.verdict is Verdict.NOT_INSPECTED and bare.reason is not None and bare.reason.startswith("fixture: ")
    sent = [(header.result_seq, part) for header in headers if isinstance(header, Attachment) for part in header.parts]
    images = {seq: part.shape for seq, part in sent if part.role == "image"}
    shapes = [images[result.seq] for result in results]
    assert shapes == [(140, 180)] * HELD + [FRAME_HW]  # what was judged; of the last what was searched


def test_parts_that_presence_finds_on_the_belt_are_cut_upright_as_well(
    taught: Path, tmp_path: Path, runs: list[Run]
) -> None:
    """The line's own plates, turned by up to 1.8 degrees, some of them touching."""
    bundle = open_bundle(taught)
    url = "synthetic://line?seed=3&parts=5&fps=25&defects=0"
    runs.append(
        Run(tmp_path, bundle, open_engine("onnxruntime", bundle), url, camera={"fixture": "template", "slots": 40})
    )
    results = results_of(runs[0].run())
    assert len(results) == 5
    for result in results:
        if result.verdict is Verdict.NOT_INSPECTED and "image quality" not in (result.reason or ""):
            raise AssertionError(result.reason)
        assert result.quality["fixture.score"] > 0.8 and abs(result.quality["fixture.angle_deg"]) < 4
        assert result.box_px is not None and result.part_to_frame is not None
        # The middle of the part, followed into the frame, lies in the middle of the box that presence saw.
        a, b, c, d, e, f = result.part_to_frame
        x, y, width, height = result.box_px
        assert abs(a * 90 + b * 70 + c - (x + width / 2)) < 6 and abs(d * 90 + e * 70 + f - (y + height / 2)) < 6


def test_inspect_cuts_upright_as_the_line_does(taught: Path, raw: Path, tmp_path: Path) -> None:
    images = [str(raw / "train/good" / name) for name in ("000.png", "007.png", "bare.png")]
    assert main(["inspect", str(taught), *images, "--out", str(tmp_path)]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {"000.flawline.png", "007.flawline.png"}
