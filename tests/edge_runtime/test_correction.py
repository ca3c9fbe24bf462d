"""Raw frames on the line: corrected by what the bundle holds as training and calibration do, or refused."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.archive import Place
from calibration.camera_file import put_into
from calibration.errors import CalibrationError
from calibration.exports import Source
from calibration.replay import replay, rows_of
from calibration.rescoring import Scoring
from contract.bundle import ROLE_PREPROCESS, open_bundle, put_files
from contract.correction import Correction, open_correction
from contract.dataset import load_dataset, sha256_of_image
from contract.errors import BundleError, ConfigError
from contract.event import Attachment, Header, Result, Verdict
from contract.fixture import make_fixture
from contract.images import encode_png, read_image
from contract.part_pictures import line_of, read_part
from contract.recipe import Recipe
from edge_runtime.engines import open_engine
from edge_runtime.inspector import Inspector
from edge_runtime.recipes import refuse_unfit
from edge_runtime.settings import CameraSettings, EdgeSettings
from edge_runtime.shadow_child import refuse_other_pictures
from flawline import main
from tests.bundles import draw_part
from tests.edge_runtime.test_station import Run
from tests.graphs import write_bundle
from tests.preprocessed import MM_PER_PX, content, raw, raw_data, write_file

FITTED = 15


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return raw_data(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def changed(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle into which a preprocess file was put after its making; read it, never change it."""
    folder = tmp_path_factory.mktemp("changed") / "bundle"
    good = load_dataset(data).train[:FITTED]
    correction = Correction(content(), "x")
    parts = [correction.correct(read_image(sample.path, 1)) for sample in good]
    write_bundle(folder, parts, Recipe(), fit=[sha256_of_image(sample.path) for sample in good])
    put_into(folder, content())
    return folder


@pytest.fixture(scope="module")
def taught(changed: Path, data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same calibrated with it; read it, never change it."""
    folder = Path(shutil.copytree(changed, tmp_path_factory.mktemp("taught") / "bundle"))
    words = ["--data", str(data), "--level", "never", "--engine", "onnxruntime"]
    assert main(["calibrate", "thresholds", str(folder), *words]) == 0
    return folder


def settings_of(folder: Path, **camera: object) -> EdgeSettings:
    chosen = CameraSettings(id="top", url="synthetic://line", **{"fixture": "template"} | camera)  # type: ignore[arg-type]
    return EdgeSettings(edge_id="edge", bundle=folder, cameras=[chosen])


def test_calibration_stamps_what_it_was_made_with_and_renews_the_golden_images(changed: Path, taught: Path) -> None:
    before, after = open_bundle(changed).manifest, open_bundle(taught).manifest
    sha256 = after.files[ROLE_PREPROCESS].sha256
    assert before.golden.preprocess is None and after.golden.preprocess == sha256
    assert after.thresholds is not None and after.thresholds.preprocess == sha256
    assert after.golden.scores != before.golden.scores and len(after.golden.scores) == 8
    assert after.recipe.views[0].mm_per_px == MM_PER_PX
    refuse_unfit(open_bundle(taught), settings_of(taught))


def test_a_bundle_whose_file_was_changed_is_refused_until_it_is_calibrated_again(
    changed: Path, taught: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Another file put into it: by the command, by hand, or taken out."""
    way_out = r"the preprocess file was changed: .* flawline calibrate thresholds"
    other = write_file(tmp_path / "other.json", content(created="2026-02-02"))
    by_command = Path(shutil.copytree(taught, tmp_path / "by_command"))
    assert main(["calibrate", "camera", "--from", str(other), "--into", str(by_command)]) == 0
    assert "an edge refuses it now" in capfd.readouterr().out
    by_hand = Path(shutil.copytree(taught, tmp_path / "by_hand"))
    put_files(open_bundle(by_hand), {ROLE_PREPROCESS: ("preprocess.json", other.read_bytes())})
    taken_out = Path(shutil.copytree(taught, tmp_path / "taken_out"))
    bundle = open_bundle(taken_out)
    del bundle.manifest.files[ROLE_PREPROCESS]
    put_files(bundle, {})
    for folder in (by_command, by_hand, taken_out):
        with pytest.raises(BundleError, match=way_out):
            refuse_unfit(open_bundle(folder), settings_of(folder))
        for words in (
            ["inspect", str(folder), str(data / "test/good"), "--no-pictures"],
            ["calibrate", "evaluate", str(folder), "--data", str(data), "--json", str(tmp_path / "x.json")],
        ):
            assert main(words) == 2
            assert "the preprocess file was changed" in capfd.readouterr().err
    words = ["--data", str(data), "--level", "never", "--engine", "onnxruntime"]
    assert main(["calibrate", "thresholds", str(by_hand), *words]) == 0
    refuse_unfit(open_bundle(by_hand), settings_of(by_hand))
    assert open_bundle(by_hand).manifest.calibration_id() != open_bundle(taught).manifest.calibration_id()


def test_a_file_that_only_its_hash_says_is_another_is_refused_when_the_bundle_is_opened(
    taught: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(taught, tmp_path / "bundle"))
    path = open_bundle(folder).path(ROLE_PREPROCESS)
    changed_file = json.loads(path.read_bytes()) | {"created": "2026-01-02"}
    path.write_text(json.dumps(changed_file))
    with pytest.raises(BundleError, match="preprocess"):
        open_bundle(folder)


def test_a_line_that_would_cut_for_itself_or_asks_for_another_size_is_refused(taught: Path, tmp_path: Path) -> None:
    for cut in ({"fixture": "region", "region": (0, 0, 50, 50)}, {"region": (0, 0, 50, 50)}, {"fixture": "foreground"}):
        with pytest.raises(ConfigError, match='set fixture = "template" and no region'):
            refuse_unfit(open_bundle(taught), settings_of(taught, **cut))
    folder = Path(shutil.copytree(taught, tmp_path / "bundle"))
    (tmp_path / "camera.toml").write_text("[cameras.any]\nwidth = 640\nheight = 480\n")
    assert main(["bundle", "camera", str(folder), "--file", str(tmp_path / "camera.toml")]) == 0
    with pytest.raises(BundleError, match="is of frames of 80 x 80 px, and camera top is asked for 640 x 480"):
        refuse_unfit(open_bundle(folder), settings_of(folder))


@pytest.fixture
def runs(tmp_path: Path) -> Iterator[list[Run]]:
    made: list[Run] = []
    yield made
    for run in made:
        run.close()


def results_of(headers: list[Header]) -> list[Result]:
    return [header for header in headers if isinstance(header, Result)]


def test_the_line_judges_the_very_pixels_that_calibration_reads(
    taught: Path, data: Path, tmp_path: Path, runs: list[Run]
) -> None:
    """Bit by bit, and a defect's size is told in millimetres of the plane."""
    frames = tmp_path / "in"
    frames.mkdir()
    chosen = [*sorted((data / "test/good").iterdir())[:3], *sorted((data / "test/spot").iterdir())[:3]]
    for number, path in enumerate(chosen):
        shutil.copy(path, frames / f"{number}.png")
    bundle = open_bundle(taught)
    camera = {"trigger": "every-frame", "fixture": "template", "slots": 10}  # none waits for a slot
    url = f"file://{frames}?fps=20&channels=1"
    runs.append(Run(tmp_path, bundle, open_engine("onnxruntime", bundle), url, camera=camera))
    headers = runs[0].run()
    results = results_of(headers)
    assert [result.verdict for result in results] == [Verdict.PASS] * 3 + [Verdict.REJECT] * 3
    sent = {
        header.result_seq: part.sha256
        for header in headers
        if isinstance(header, Attachment)
        for part in header.parts
        if part.role == "image"
    }
    for result, path in zip(results, chosen, strict=True):
        read = read_part(path, bundle.manifest.recipe, line_of(bundle))
        assert isinstance(read, np.ndarray) and read.shape == (60, 64)
        assert sent[result.seq] == hashlib.sha256(encode_png(read)).hexdigest()
        assert result.part_to_frame == (1.0, 0.0, 0.0, 0.0, 1.0, 0.0)
    region = results[3].regions[0]
    assert region.box_mm == pytest.approx(tuple(MM_PER_PX * value for value in region.box_px))
    assert region.area_mm2 == pytest.approx(MM_PER_PX**2 * region.area_px)


def test_a_frame_of_another_size_is_not_inspected(taught: Path, tmp_path: Path, runs: list[Run]) -> None:
    (tmp_path / "in").mkdir()
    assert cv2.imwrite(str(tmp_path / "in/0.png"), raw(draw_part(1))[:70])
    bundle = open_bundle(taught)
    url = f"file://{tmp_path}/in?channels=1"
    runs.append(
        Run(
            tmp_path,
            bundle,
            open_engine("onnxruntime", bundle),
            url,
            camera={"trigger": "every-frame", "fixture": "template"},
        )
    )
    (result,) = results_of(runs[0].run())
    assert result.verdict is Verdict.NOT_INSPECTED and "whole frames of 80 x 80 px" in (result.reason or "")


def test_a_shifted_part_is_brought_to_place_and_a_bare_frame_is_not_inspected(
    data: Path, tmp_path: Path, runs: list[Run]
) -> None:
    """The fixture in the preprocess file: what it finds is judged where it is, in the corrected picture."""
    good = load_dataset(data).train[:FITTED]
    frames = [read_image(sample.path, 1) for sample in good]
    placer = make_fixture(Correction(content(), "x").correct(frames[0]), (6, 6, 50, 48), max_angle_deg=5)
    mark = base64.b64encode(encode_png(placer.mark)).decode()
    made = content(template={"fixture": placer.fixture, "mark": mark})
    folder = tmp_path / "bundle"
    parts = [Correction(made, "x").part(frame).pixels for frame in frames]
    write_bundle(folder, parts, Recipe(), fit=[sha256_of_image(sample.path) for sample in good])
    put_into(folder, made)
    with pytest.raises(BundleError, match="cut out by a fixture, and this file has none: make one from pictures"):
        put_into(folder, content())
    assert open_bundle(folder).manifest.fixture == placer.fixture
    words = ["--data", str(data), "--level", "never", "--engine", "onnxruntime"]
    assert main(["calibrate", "thresholds", str(folder), *words]) == 0
    (tmp_path / "in").mkdir()
    shown = [draw_part(70), np.roll(draw_part(71), (2, -3), (0, 1)), np.full((80, 80), 50, np.uint8)]
    for number, part in enumerate(shown):
        assert cv2.imwrite(str(tmp_path / f"in/{number}.png"), raw(part))
    bundle = open_bundle(folder)
    assert bundle.manifest.fixture == placer.fixture
    camera = {"trigger": "every-frame", "fixture": "template", "slots": 6}
    url = f"file://{tmp_path}/in?fps=20&channels=1"
    runs.append(Run(tmp_path, bundle, open_engine("onnxruntime", bundle), url, camera=camera))
    headers = runs[0].run()
    placed, moved, bare = results_of(headers)
    assert placed.verdict is Verdict.PASS and moved.verdict is Verdict.PASS, (placed.reason, moved.reason)
    assert placed.part_to_frame is not None and moved.part_to_frame is not None
    assert placed.part_to_frame[2] == pytest.approx(6, abs=0.3) and placed.part_to_frame[5] == pytest.approx(6, abs=0.3)
    assert moved.part_to_frame[2] == pytest.approx(3, abs=0.5) and moved.part_to_frame[5] == pytest.approx(8, abs=0.5)
    assert bare.verdict is Verdict.NOT_INSPECTED and (bare.reason or "").startswith("fixture: ")
    sent = [(header.result_seq, part) for header in headers if isinstance(header, Attachment) for part in header.parts]
    images = {seq: part.shape for seq, part in sent if part.role == "image"}
    assert [images[result.seq] for result in (placed, moved, bare)] == [(48, 50), (48, 50), (60, 64)]


def test_files_are_inspected_and_evaluated_as_the_line_would(
    taught: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    masks = tmp_path / "data/ground_truth/spot"
    shutil.copytree(data, tmp_path / "data")
    masks.mkdir(parents=True)
    for number, path in enumerate(sorted((data / "test/spot").iterdir())):
        mask = np.zeros((80, 80), np.uint8)
        cv2.circle(mask, (24 + number, 26), 4, 255, -1)  # type: ignore[call-overload]
        assert cv2.imwrite(str(masks / f"{path.stem}_mask.png"), mask)
    words = [str(taught), str(data / "test"), "--engine", "onnxruntime", "--out", str(tmp_path / "seen")]
    assert main(["inspect", *words]) == 0
    shown = capfd.readouterr().out
    assert shown.count("PASS") == 6 and shown.count("REJECT") == 6
    found = tmp_path / "figures.json"
    words = ["--data", str(tmp_path / "data"), "--json", str(found), "--engine", "onnxruntime"]
    assert main(["calibrate", "evaluate", str(taught), *words]) == 0
    figures = json.loads(found.read_text())
    assert figures["image_auroc"] == 1.0 and figures["pixel_auroc"] > 0.8


def test_pictures_cut_by_a_fixture_are_no_raw_ones(
    taught: Path, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    cut = Path(shutil.copytree(data, tmp_path / "cut"))
    picture = tmp_path / "mark.png"
    drawn = draw_part(1).copy()
    cv2.rectangle(drawn, (20, 15), (34, 22), 20, -1)
    assert cv2.imwrite(str(picture), drawn)
    words = ["--region", "5,5,70,70", "--max-angle", "5", "--out", str(cut / "fixture")]
    assert main(["fixture", "make", str(picture), *words]) == 0
    assert main(["calibrate", "thresholds", str(taught), "--data", str(cut)]) == 2
    assert "give pictures as the camera takes them" in capfd.readouterr().err


def test_the_file_in_a_bundle_is_read_once_for_all_who_read_pictures(taught: Path) -> None:
    bundle = open_bundle(taught)
    assert line_of(bundle) is line_of(bundle)
    assert line_of(open_bundle(taught)).correction is line_of(bundle).correction
    assert open_correction(bundle.path(ROLE_PREPROCESS)).content == content().model_copy(
        update={"sha256": content().computed_sha256()}
    )


def test_an_archive_of_raw_frames_is_corrected_as_on_the_line(taught: Path, data: Path, tmp_path: Path) -> None:
    archive = Place(Source(str(data / "test")), of_cameras=False)
    found = replay(Scoring(taught, taught, archive, "onnxruntime"), tmp_path / "out", workers=1)
    rows = list(rows_of(tmp_path / "out" / "work"))
    bundle = open_bundle(taught)
    inspector = Inspector(bundle, open_engine("onnxruntime", bundle, 1))
    assert len(rows) == found.listed > 0
    for row in rows:
        outcome = inspector.inspect(read_part(data / "test" / row.item.key, bundle.manifest.recipe, line_of(bundle)))
        assert (row.candidate.verdict, row.candidate.score) == (outcome.verdict.value, outcome.score)
        assert row.current == row.candidate
    assert any(row.candidate.score is not None for row in rows)


def test_bundles_that_correct_otherwise_are_not_compared(taught: Path, data: Path, tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    write_bundle(plain, [draw_part(seed) for seed in range(FITTED)], Recipe())
    archive = Place(Source(str(data / "test")), of_cameras=False)
    with pytest.raises(CalibrationError, match="another preprocess file"):
        replay(Scoring(plain, taught, archive), tmp_path / "out", workers=1)
    with pytest.raises(BundleError, match="another preprocess file"):
        refuse_other_pictures(open_bundle(plain), open_bundle(taught))
