"""The table of models on drawn parts: fields, means, what is never done twice, and the page."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.cells import data_sets, make_cell
from benchmarks.common import half_interval
from benchmarks.model_page import BEGIN, END, replaced, section
from benchmarks.models import RESULTS, document, main, mean
from contract.errors import ConfigError
from tests.bundles import draw_data

ROOT = Path(__file__).resolve().parents[2]
FIELDS = [
    "dataset",
    "model",
    "seeds",
    "image_auroc",
    "image_auroc_std",
    "image_ap",
    "aupro",
    "aupro_005",
    "pixel_auroc",
    "pixel_ap",
    "f1_max",
    "escape_rate_at_frr05",
    "false_reject_rate",
    "per_class",
    "train_minutes",
    "latency_ms",
    "parameters",
    "machine",
]
SMALL = ["width=4", "latent=8", "batch=8", "device=cpu", "threads=1"]


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """70 good parts, so that 21 are held out and carry 5 %, and a class of defects with masks."""
    import cv2
    import numpy as np

    folder = draw_data(tmp_path_factory.mktemp("data") / "plates", 70, 10, 8)
    masks = folder / "ground_truth" / "spot"
    masks.mkdir(parents=True)
    for image in (folder / "test" / "spot").iterdir():
        mask = np.zeros((80, 80), np.uint8)
        mask[16:32, 16:64] = 255
        cv2.imwrite(str(masks / f"{image.stem}_mask.png"), mask)
    return folder


def words(folder: Path, *more: str, seeds: int = 2, steps: int = 6) -> list[str]:
    """A command whose every file lies in ``folder``."""
    return [
        *("--models", "ganomaly", "--seeds", str(seeds), "--json", str(folder / "models.json")),
        *("--work", str(folder / "work"), "--looks", str(folder / "looks.csv")),
        *("--settings", f"steps={steps}", *SMALL, *more),
    ]


@pytest.fixture(scope="module")
def measured(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("measured")
    assert main(["--data", str(parts), "--data", str(folder / "missing"), *words(folder)]) == 0
    return folder


def load(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "models.json").read_text()))


def test_a_row_has_every_field_and_means_over_seeds(measured: Path, parts: Path) -> None:
    found = load(measured)
    (row,) = found["rows"]
    assert set(FIELDS) <= set(row)
    assert (row["dataset"], row["model"], row["seeds"], row["failed"]) == ("plates", "ganomaly", 2, [])
    cells = [json.loads(path.read_text()) for path in sorted(measured.glob("work/plates/*/seed*/cell.json"))]
    each = [cell["figures"]["image_auroc"] for cell in cells]
    assert len(each) == 2
    assert row["image_auroc"] == pytest.approx(statistics.fmean(each))
    assert row["image_auroc_std"] == pytest.approx(statistics.stdev(each))
    assert [seed["image_auroc"] for seed in row["per_seed"]] == each
    for name in FIELDS[5:13]:
        assert row[name] == pytest.approx(statistics.fmean(cell["figures"][name] for cell in cells)), name
    assert row["per_class"] == {"spot": pytest.approx(row["image_auroc"])}  # the only class
    assert row["latency_ms"] > 0 and row["parameters"] > 1000 and row["machine"]
    assert row["settings"]["width"] == 4 and row["settings"]["seed"] == [0, 1]
    assert found["skipped"] == [{"what": "missing", "reason": "absent: no train/good in it, nor in a folder below it"}]


def test_every_look_is_recorded_and_nothing_names_a_folder_of_this_machine(measured: Path, parts: Path) -> None:
    looks = list(csv.DictReader((measured / "looks.csv").read_text().splitlines()))
    assert [(look["dataset"], look["model"], look["seed"]) for look in looks] == [
        ("plates", "ganomaly", "0"),
        ("plates", "ganomaly", "1"),
    ]
    for name in ("looks.csv", "models.json"):
        assert not {str(measured), str(parts)} & set((measured / name).read_text().split('"'))
        assert str(measured) not in (measured / name).read_text()
        assert str(parts) not in (measured / name).read_text()


def test_a_finished_cell_is_never_trained_or_looked_at_again(measured: Path, parts: Path) -> None:
    bundles = {path: path.read_bytes() for path in measured.glob("work/plates/*/seed*/bundle/bundle.json")}
    looks = (measured / "looks.csv").read_text()
    before = load(measured)["rows"][0]
    assert len(bundles) == 2
    assert main(["--data", str(parts), *words(measured)]) == 0
    assert {path: path.read_bytes() for path in bundles} == bundles
    assert (measured / "looks.csv").read_text() == looks
    after = load(measured)["rows"][0]
    assert {name: after[name] for name in FIELDS if name != "latency_ms"} == {
        name: before[name] for name in FIELDS if name != "latency_ms"
    }


def test_a_cell_that_another_engine_measured_is_measured_again(measured: Path, parts: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(measured, tmp_path / "copy"))
    bundles = {path: path.stat().st_mtime_ns for path in copy.glob("work/plates/*/seed*/bundle/*.onnx")}
    assert main(["--data", str(parts), *words(copy), "--engine", "openvino"]) == 0
    assert load(copy)["rows"][0]["engine"].startswith("openvino-")
    assert {path: path.stat().st_mtime_ns for path in bundles} == bundles, "measured again, not trained again"


def test_what_decides_the_figures_decides_the_folder(parts: Path, tmp_path: Path) -> None:
    def folder(data: Path, seed: int = 0, **asked: Any) -> Path:
        return make_cell("plates", data, "ganomaly", seed, {"steps": 6, **asked}, tmp_path).folder

    own = folder(parts)
    assert folder(parts) == own and own.name == "seed0"
    changed = draw_data(tmp_path / "changed", 71, 1, 1)
    others = {folder(parts, 1), folder(parts, steps=7), folder(parts, width=8), folder(changed)}
    assert own not in others and len(others) == 4


def test_a_killed_cell_goes_on_from_its_checkpoint(
    parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--data", str(parts), *words(tmp_path, seeds=1, steps=200)]
    with subprocess.Popen(
        [sys.executable, "-m", "benchmarks.models", *command], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.lstrip().startswith("10%"):
                break
        os.kill(process.pid, signal.SIGKILL)
    assert process.returncode == -signal.SIGKILL
    assert not (tmp_path / "models.json").exists()
    assert main(command) == 0
    told = capsys.readouterr().err
    assert "goes on from its checkpoint" in told and "resumed at step" in told
    assert load(tmp_path)["rows"][0]["per_seed"][0]["steps"] == 200


def test_a_cell_that_fails_is_named_in_the_file(parts: Path, tmp_path: Path) -> None:
    few = draw_data(tmp_path / "few", 3, 2, 2)
    assert main(["--data", str(few), *words(tmp_path, seeds=1)]) == 0
    found = load(tmp_path)
    assert found["rows"] == []
    (failed,) = found["skipped"]
    assert failed["what"] == "few, ganomaly, seed 0"
    assert "3 good image(s)" in failed["reason"] and str(tmp_path) not in failed["reason"]


def test_too_few_parts_to_calibrate_still_rank(tmp_path: Path) -> None:
    data = draw_data(tmp_path / "forty", 40, 6, 6)
    assert main(["--data", str(data), *words(tmp_path, seeds=1)]) == 0
    (row,) = load(tmp_path)["rows"]
    assert row["false_reject_rate"] is None and row["image_auroc"] is not None and row["aupro"] is None
    assert "at least 19 held-out good parts" in row["not_calibrated"][0]


def test_a_model_without_a_graph_is_evaluated_all_the_same(
    parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.models.anogan.SEARCH_STEPS", 4)
    monkeypatch.setattr("training.fit.refuse_collapse", lambda *given: None)  # six steps draw nothing but grey
    asked = ["--data", str(parts), *words(tmp_path, seeds=1), "--models", "anogan"]
    assert main(asked) == 0
    (row,) = load(tmp_path)["rows"]
    assert row["model"] == "anogan" and row["engine"].startswith("pytorch-") and row["failed"] == []
    assert all(
        row[name] is not None for name in ("image_auroc", "image_ap", "aupro", "pixel_ap", "escape_rate_at_frr05")
    )
    assert row["classes"]["spot"]["images"] == 8 and row["classes"]["spot"]["image_auroc"] == row["image_auroc"]
    assert all(row[name] is None for name in ("latency_ms", "false_reject_rate", "escape_rate"))
    looks = (tmp_path / "looks.csv").read_text()
    assert len(looks.splitlines()) == 2 and ",anogan,0," in looks
    page = tmp_path / "page.md"
    page.write_text(f"{BEGIN}\n{END}\n")
    assert main([*asked, "--page", str(page)]) == 0  # read, neither trained nor looked at again
    assert (tmp_path / "looks.csv").read_text() == looks
    assert "latency on" not in page.read_text()


def test_drawn_line_is_drawn_once(tmp_path: Path) -> None:
    (first,) = data_sets(["synthetic://line?seed=3"], tmp_path)[0].values()
    times = {path: path.stat().st_mtime_ns for path in first.rglob("*.png")}
    assert len(times) > 200
    found, skipped = data_sets(["synthetic://line?seed=3", str(tmp_path / "data")], tmp_path)
    assert (list(found), skipped) == (["synthetic_seed_3"], [])
    assert {path: path.stat().st_mtime_ns for path in first.rglob("*.png")} == times


@pytest.mark.parametrize("word", ["seed=1", "size", "sise=128"])
def test_mistaken_settings_are_explained(
    word: str, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--data", str(parts), *words(tmp_path, word)]) == 2
    assert word.partition("=")[0] in capsys.readouterr().err


def test_a_mean_over_some_of_the_seeds_is_none() -> None:
    assert mean([0.5, None]) is None
    assert mean([0.5, 0.7]) == pytest.approx(0.6)


def test_rows_of_other_models_stay_and_the_same_are_replaced(measured: Path) -> None:
    old = load(measured)["rows"][0]
    new = [old | {"seeds": 9}, old | {"model": "another"}]
    rows = document(measured / "models.json", new[1:], [])["rows"]
    assert [(row["model"], row["seeds"]) for row in rows] == [("another", 2), ("ganomaly", 2)]
    assert [row["seeds"] for row in document(measured / "models.json", new[:1], [])["rows"]] == [9]


def test_the_page_says_what_the_file_says(measured: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nyesterday\n{END}\nafter\n")
    assert main(["--json", str(measured / "models.json"), "--page", str(page)]) == 0
    text, row = page.read_text(), load(measured)["rows"][0]
    assert text.startswith("before\n") and text.endswith("after\n") and "yesterday" not in text
    half = 12.706 * row["image_auroc_std"] / 2**0.5  # Student's, of two seeds
    assert f"| 64 | 1x1 | 2 | {row['image_auroc']:.3f} ± {half:.3f} |" in text
    assert f"| spot | 8 | {row['per_class']['spot']:.3f} ± {half:.3f} |" in text
    assert f"| {row['aupro']:.3f} ± {half_interval([seed['aupro'] for seed in row['per_seed']]):.3f} |" in text
    escapes = half_interval([100 * seed["escape_rate"] for seed in row["per_seed"]])
    assert f"| {100 * row['escape_rate']:.1f} ± {escapes:.1f} % |" in text
    page.write_text("no marks")
    assert main(["--json", str(measured / "models.json"), "--page", str(page)]) == 2


def test_a_part_takes_as_long_as_its_tiles(measured: Path) -> None:
    row = load(measured)["rows"][0]
    settings = row["settings"] | {"tiles": "auto"}
    cut = section({"rows": [row | {"tiles": [5, 5], "settings": settings}], "skipped": []})
    assert "| 5x5 |" in cut and f"| {row['latency_ms']:.1f} (x 25) |" in cut
    assert "| auto |" in section({"rows": [row | {"tiles": None, "settings": settings}], "skipped": []})


def test_the_published_page_and_file_agree() -> None:
    page = (ROOT / "docs" / "models" / "README.md").read_text()
    published = RESULTS / "models.json"
    found = json.loads(published.read_text()) if published.is_file() else {"rows": []}
    assert replaced(page, section(found), "README.md") == page


def test_a_page_without_marks_is_refused() -> None:
    with pytest.raises(ConfigError, match="has no place for figures"):
        replaced("text", "figures", "page.md")
