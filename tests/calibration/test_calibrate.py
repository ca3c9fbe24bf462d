"""``flawline calibrate thresholds`` on real files: what may calibrate, what is written, what is refused."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from calibration.calibrate import ROLE_REPORT, Rates, propose, write
from calibration.conformal import expected_rate
from calibration.errors import CalibrationError
from calibration.holdout import hold_out
from calibration.methods import METHOD
from contract.bundle import PictureSizes, open_bundle, write_manifest
from contract.dataset import load_dataset, sha256_of_image
from contract.errors import BundleError, ImageError
from contract.event import Verdict
from contract.images import read_image
from edge_runtime.engines import open_engine
from edge_runtime.inspector import Inspector
from flawline import main
from tests.bundles import draw_part
from tests.graphs import write_bundle


def test_command_completes_the_bundle(fresh: Path, drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "thresholds", str(fresh), "--data", str(drawn), "--review-rate", "0.2"]) == 0
    shown = capsys.readouterr().out
    assert "30 (30 images)" in shown and "exchangeable" in shown
    bundle = open_bundle(fresh)
    found = bundle.manifest.thresholds
    assert found is not None and bundle.manifest.quality is not None
    assert (found.groups, found.images, found.method) == (30, 30, METHOD)
    assert (found.expected_low, found.expected_high) == expected_rate(30, 0.05)
    assert found.review is not None and found.review < found.reject
    assert bundle.manifest.quality.samples == 60
    assert bundle.manifest.pictures == PictureSizes(width=(80, 80), height=(80, 80))
    assert bundle.manifest.calibration_id()
    assert bundle.manifest.metrics["calibration"]["holdout_groups"] == 30
    assert found.engine in ("openvino-2026.4 fp32 cpu", open_engine("auto", bundle).describe())


def test_threshold_is_the_rule_on_the_held_out_scores(fresh: Path, drawn: Path) -> None:
    write(propose(fresh, drawn, Rates(0.1)))
    bundle = open_bundle(fresh)
    inspector = Inspector(bundle, open_engine("auto", bundle))
    held = load_dataset(drawn).train[30:]
    scores = np.sort([inspector.score(read_image(sample.path, 1))[0].score for sample in held])
    assert bundle.manifest.thresholds is not None
    assert bundle.manifest.thresholds.reject == scores[int(np.ceil(31 * 0.9)) - 1]


def test_report_stands_alone(fresh: Path, drawn: Path) -> None:
    report = write(propose(fresh, drawn, Rates(0.05, 0.2)))
    page = report.read_text()
    assert open_bundle(fresh).path(ROLE_REPORT) == report
    assert "<svg" in page and "exchangeable" in page and "review above" in page and "likeness" in page
    for loaded in ("http://", "https://", "<script", "<link", "src="):
        assert loaded not in page


def test_calibrating_again_replaces_the_report(fresh: Path, drawn: Path) -> None:
    first = write(propose(fresh, drawn, Rates(0.05)))
    before = open_bundle(fresh).manifest.calibration_id()
    second = write(propose(fresh, drawn, Rates(0.1)))
    assert open_bundle(fresh).manifest.calibration_id() != before
    assert first != second and not first.exists()
    assert len(list(fresh.glob("report-*.html"))) == 1


def test_too_small_a_rate_is_refused_before_work(fresh: Path, drawn: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = (fresh / "bundle.json").read_bytes()
    code = main(["calibrate", "thresholds", str(fresh), "--data", str(drawn), "--false-reject-rate", "0.01"])
    assert code == 2
    assert "needs at least 99 held-out good parts; there are 30" in capsys.readouterr().err
    assert (fresh / "bundle.json").read_bytes() == before


@pytest.mark.parametrize("review", [0.05, 0.01, 1.0])
def test_review_rate_must_lie_above(fresh: Path, drawn: Path, review: float) -> None:
    with pytest.raises(CalibrationError, match="--review-rate"):
        write(propose(fresh, drawn, Rates(0.05, review)))


def test_parts_that_training_saw_are_not_used(fresh: Path, drawn: Path) -> None:
    dataset = load_dataset(drawn)
    held = hold_out(open_bundle(fresh), dataset)
    assert [sample.path for sample in held.unseen] == [sample.path for sample in dataset.train[30:]]
    assert len(held.seen) == 30


def test_one_image_rules_out_its_whole_part(drawn: Path, tmp_path: Path) -> None:
    dataset = load_dataset(drawn, r"_0(\d\d)")  # part_000 ... part_059
    assert len({sample.group for sample in dataset.train}) == 60
    by_ten = load_dataset(drawn, r"_0(\d)\d")
    bundle = write_bundle(tmp_path, [draw_part(1)], fit=[sha256_of_image(by_ten.train[25].path)])
    held = hold_out(bundle, by_ten)
    assert held.groups == 5 and {sample.group for sample in held.seen} == {"2"} and len(held.seen) == 10


def test_parts_are_told_apart_as_training_did(fresh: Path, drawn: Path) -> None:
    manifest = open_bundle(fresh).manifest
    pattern = r"_0(\d)\d"  # ten pictures a part
    write_manifest(fresh, manifest.model_copy(update={"training": {"settings": {"group_pattern": pattern}}}))
    with pytest.raises(CalibrationError, match="there are 3"):
        write(propose(fresh, drawn, Rates(0.05), "onnxruntime"))
    assert propose(fresh, drawn, Rates(0.3), "onnxruntime").measured.held.groups == 3


def test_nothing_left_to_calibrate_with(drawn: Path, tmp_path: Path) -> None:
    hashes = [sha256_of_image(sample.path) for sample in load_dataset(drawn).train]
    bundle = write_bundle(tmp_path, [draw_part(1)], fit=hashes)
    with pytest.raises(CalibrationError, match="all 60 good image"):
        hold_out(bundle, load_dataset(drawn))


@pytest.mark.parametrize("text", ["[]", "{}", '{"fit": 3, "validation": []}', '{"fit": [{}], "validation": []}', "no"])
def test_unreadable_list_of_training_images(text: str, fresh: Path, drawn: Path) -> None:
    bundle = open_bundle(fresh)
    bundle.path("data").write_text(text)
    with pytest.raises(BundleError, match="does not list the training images"):
        hold_out(bundle, load_dataset(drawn))


def test_training_image_saved_anew_is_refused(fresh: Path, drawn: Path, tmp_path: Path) -> None:
    import cv2

    data = Path(shutil.copytree(drawn, tmp_path / "data"))
    copy = data / "train" / "good" / "part_900.bmp"
    cv2.imwrite(str(copy), cv2.imread(str(data / "train" / "good" / "part_003.png"), cv2.IMREAD_GRAYSCALE))
    before = (fresh / "bundle.json").read_bytes()
    with pytest.raises(CalibrationError, match=r"part_900\.bmp is pixel for pixel .*part_003\.png"):
        write(propose(fresh, data, Rates(0.05), "onnxruntime"))
    assert (fresh / "bundle.json").read_bytes() == before
    groups = data / "groups.csv"
    files = sorted(path.relative_to(data).as_posix() for path in data.glob("t*/*/*"))
    rows = [f"{name},{'3' if '900' in name or name.endswith('good/part_003.png') else name}" for name in files]
    groups.write_text("file,group\n" + "\n".join(rows) + "\n")
    assert propose(fresh, data, Rates(0.05), "onnxruntime").measured.held.groups == 30


def test_unreadable_image_is_named(fresh: Path, drawn: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(drawn, tmp_path / "data"))
    (data / "train" / "good" / "part_040.png").write_bytes(b"torn")
    with pytest.raises(ImageError, match="part_040"):
        write(propose(fresh, data, Rates(0.05)))


def test_good_parts_pass_and_defects_do_not(fresh: Path, drawn: Path) -> None:
    write(propose(fresh, drawn, Rates(0.05)))
    bundle = open_bundle(fresh)
    inspector = Inspector(bundle, open_engine("auto", bundle))
    good = [inspector.inspect(draw_part(20_000 + number)).verdict for number in range(200)]
    bad = [inspector.inspect(draw_part(30_000 + number, defect=True)).verdict for number in range(100)]
    assert good.count(Verdict.PASS) >= 170 and good.count(Verdict.NOT_INSPECTED) == 0
    assert bad.count(Verdict.PASS) <= 5
