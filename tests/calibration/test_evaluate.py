"""``flawline calibrate evaluate`` on real files: figures, classes, records, and what is missing."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from calibration.calibrate import Rates, propose, write
from calibration.errors import CalibrationError
from calibration.evaluate import evaluate
from calibration.looks import LOOKS
from contract.bundle import open_bundle
from contract.dataset import load_dataset
from contract.images import read_image
from edge_runtime.engines import open_engine
from edge_runtime.inspector import Inspector
from flawline import main


def run(bundle: Path, data: Path, tmp_path: Path, *more: str) -> dict[str, Any]:
    target = tmp_path / "out" / "figures.json"
    assert main(["calibrate", "evaluate", str(bundle), "--data", str(data), "--json", str(target), *more]) == 0
    return json.loads(target.read_text())


def test_command_writes_figures_page_and_record(fresh: Path, drawn: Path, tmp_path: Path) -> None:
    write(propose(fresh, drawn, Rates(0.05)))
    page, looks = tmp_path / "figures.html", tmp_path / "looks.csv"
    for _ in range(2):
        found = run(fresh, drawn, tmp_path, "--html", str(page), "--looks", str(looks))
    assert found["counts"] == {
        "images": 50,
        "good": 30,
        "defective": 20,
        "with_mask": 15,
        "parts": 50,
        "without_score": 0,
    }
    assert found["image_auroc"] > 0.95 and found["image_ap"] > 0.9 and found["f1_max"] > 0.9
    assert found["pixel_auroc"] > 0.5 and 0 < found["aupro"] <= 1
    assert found["false_reject_of"] + found["not_inspected_good"] == 30
    assert found["escape_of"] + found["not_inspected_defective"] == 20
    low, high = found["false_reject_interval"]
    assert low <= found["false_reject_rate"] == found["false_reject_hits"] / found["false_reject_of"] <= high
    assert found["classes"]["spot"]["escape_rate"] == found["escape_rate"]
    assert found["classes"]["spot"]["image_auroc"] == found["image_auroc"]
    assert sum(found["verdicts"]["good"].values()) == 30
    assert "<svg" in page.read_text() and "spot" in page.read_text() and "http" not in page.read_text()
    rows = list(csv.reader(looks.read_text().splitlines()))
    assert rows[0] == list(LOOKS) and len(rows) == 3
    first = dict(zip(LOOKS, rows[1], strict=True))
    assert (first["dataset"], first["model"], first["bundle"]) == (drawn.name, found["model"], found["bundle"])
    assert float(first["image_auroc"]) == found["image_auroc"]
    assert str(drawn) not in looks.read_text()
    assert 0 < found["aupro_005"] <= 1 and 0 <= found["escape_rate_at_frr05"] < 0.5
    looks.write_text("when,bundle\n")
    target = str(tmp_path / "again.json")
    assert main(["calibrate", "evaluate", str(fresh), "--data", str(drawn), "--json", target, "--looks", str(looks)])
    assert looks.read_text() == "when,bundle\n"


def test_auroc_is_that_of_the_raw_scores(fresh: Path, drawn: Path) -> None:
    write(propose(fresh, drawn, Rates(0.05)))
    bundle = open_bundle(fresh)
    inspector = Inspector(bundle, open_engine("auto", bundle))
    test = load_dataset(drawn).test
    scores = [inspector.score(read_image(sample.path, 1))[0].score for sample in test]
    truth = [sample.label != "good" for sample in test]
    assert evaluate(fresh, drawn).figures["image_auroc"] == pytest.approx(roc_auc_score(truth, scores))


def test_uncalibrated_bundle_has_figures_but_no_verdicts(fresh: Path, drawn: Path) -> None:
    found = evaluate(fresh, drawn).figures
    assert found["calibration"] is None and found["image_auroc"] > 0.9
    assert (found["not_inspected_good"], found["not_inspected_defective"]) == (30, 20)
    assert (found["false_reject_rate"], found["false_reject_interval"], found["escape_rate"]) == (None, None, None)
    assert (found["false_reject_hits"], found["false_reject_of"], found["escape_of"]) == (0, 0, 0)


def test_without_defects_the_rankings_are_null(fresh: Path, drawn: Path, tmp_path: Path) -> None:
    write(propose(fresh, drawn, Rates(0.05)))
    data = Path(shutil.copytree(drawn, tmp_path / "data", ignore=shutil.ignore_patterns("spot")))
    found = run(fresh, data, tmp_path, "--html", str(tmp_path / "page.html"))
    for name in (
        "image_auroc",
        "image_ap",
        "f1_max",
        "pixel_auroc",
        "pixel_ap",
        "aupro",
        "aupro_005",
        "escape_rate_at_frr05",
    ):
        assert found[name] is None
    assert (found["escape_rate"], found["escape_interval"]) == (None, None)
    assert (found["escape_hits"], found["escape_of"]) == (0, 0)
    assert found["classes"] == {}


def test_masks_that_no_pixel_would_be_read_from(fresh: Path, drawn: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(drawn, tmp_path / "data"))
    first, second, *_ = sorted((data / "ground_truth" / "spot").iterdir())
    mask = cv2.imread(str(first), cv2.IMREAD_GRAYSCALE)
    assert mask is not None
    cv2.imwrite(str(second), np.zeros_like(mask))
    assert evaluate(fresh, data, "onnxruntime").figures["counts"]["with_mask"] == 14, "an empty mask marks nothing"
    cv2.imwrite(str(first), mask // 255)
    with pytest.raises(CalibrationError, match=rf"{first.name}: its highest value is 1, .* expected 0 and 255"):
        evaluate(fresh, data, "onnxruntime")


def test_without_masks_only_image_figures(fresh: Path, drawn: Path, tmp_path: Path) -> None:
    data = Path(shutil.copytree(drawn, tmp_path / "data", ignore=shutil.ignore_patterns("ground_truth")))
    found = evaluate(fresh, data).figures
    assert found["image_auroc"] is not None and found["aupro"] is None and found["counts"]["with_mask"] == 0


def test_unreadable_test_image_counts_as_not_inspected(fresh: Path, drawn: Path, tmp_path: Path) -> None:
    write(propose(fresh, drawn, Rates(0.05)))
    data = Path(shutil.copytree(drawn, tmp_path / "data"))
    next((data / "test" / "spot").iterdir()).write_bytes(b"")
    found = evaluate(fresh, data).figures
    assert found["counts"]["without_score"] == 1
    assert found["not_inspected_defective"] >= 1
    assert found["escape_of"] == 20 - found["not_inspected_defective"]


def test_empty_test_is_refused(fresh: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = Path(shutil.copytree(drawn, tmp_path / "data", ignore=shutil.ignore_patterns("test")))
    target = tmp_path / "figures.json"
    assert main(["calibrate", "evaluate", str(fresh), "--data", str(data), "--json", str(target)]) == 2
    assert "no test images" in capsys.readouterr().err
    assert not target.exists()


def test_target_that_cannot_be_written(
    fresh: Path, drawn: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").write_text("")
    target = tmp_path / "file" / "figures.json"
    assert main(["calibrate", "evaluate", str(fresh), "--data", str(drawn), "--json", str(target)]) == 2
    assert "cannot be written" in capsys.readouterr().err
