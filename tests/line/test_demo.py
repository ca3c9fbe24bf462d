"""The demo as a newcomer runs it, and what it refuses: exit code, summary, and every part accounted for."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from contract.errors import FlawlineError
from edge_runtime.demo import Demo
from tests.shared_data import shared_data
from training.settings import DEFAULT_MODEL

KEYS = {
    "parts",
    "results",
    "missed",
    "gap_parts",
    "duplicates",
    "lost",
    "pass",
    "review",
    "reject",
    "not_inspected",
    "false_reject_rate",
    "escape_rate",
    "seconds",
    "latency_ms",
}
PARTS = 20


def demo(*words: object, timeout_s: float = 240) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "flawline", "demo", *map(str, words)],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip


def summary_of(done: subprocess.CompletedProcess[str], out: Path) -> dict[str, Any]:
    """What the demo wrote, after it ended well and with nothing lost."""
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    found: dict[str, Any] = json.loads((out / "summary.json").read_text())
    assert set(found) >= KEYS
    assert (found["lost"], found["duplicates"], found["unmatched_results"]) == (0, 0, 0)
    assert found["results"] + found["missed"] + found["gap_parts"] == found["parts"]
    assert found["pass"] + found["review"] + found["reject"] + found["not_inspected"] == found["results"]
    assert set(found["latency_ms"]["total"]) == {"p50", "p95", "p99"}
    return found


def test_the_drawn_line(tmp_path: Path) -> None:
    out = tmp_path / 'a "demo"'
    done = demo("--minutes", 0.2, "--parts", PARTS, "--out", out)
    found = summary_of(done, out)
    assert (found["parts"], found["missed"], found["gap_parts"]) == (PARTS, 0, 0)
    assert found["model"] == DEFAULT_MODEL and f"Every part accounted for ({DEFAULT_MODEL})" in done.stdout
    for name in ("false_reject", "escape"):
        low, high = found[f"{name}_interval"]
        assert low <= found[f"{name}_rate"] <= high
    assert "parts on the line" in done.stdout and "flawline host run" in done.stdout
    assert "http://" not in done.stdout, "an address that is closed already helps nobody"
    assert len((out / "line.jsonl").read_text().splitlines()) == PARTS
    pages = {path.name for path in (out / "bundle").glob("*.html")}
    assert "training.html" in pages and len(pages) == 2, "the calibration's report stands beside the training's page"
    evaluated = json.loads((out / "evaluation.json").read_text())
    for name in ("image_auroc", "image_ap", "pixel_auroc", "pixel_ap", "aupro", "f1_max"):
        assert 0 <= evaluated[name] <= 1


@pytest.mark.long
def test_real_images_and_a_video_of_a_line(tmp_path: Path) -> None:
    data, video = shared_data("magnetic_tile"), shared_data("line", "line.avi")
    done = demo("--data", data, "--video", video, "--minutes", 0.2, "--out", tmp_path / "demo", timeout_s=600)
    found = summary_of(done, tmp_path / "demo")
    assert (found["parts"], found["results"], found["missed"], found["gap_parts"]) == (50, 50, 0, 0)


@pytest.mark.parametrize(("option", "name"), [("--data", "."), ("--video", "line.avi")])
def test_images_and_video_belong_together(tmp_path: Path, option: str, name: str) -> None:
    done = demo(option, tmp_path / name, "--out", tmp_path / "demo")
    assert done.returncode == 2
    assert "--data and --video belong together" in done.stderr
    assert not (tmp_path / "demo").exists()


def test_a_folder_that_no_demo_made_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    done = demo("--out", tmp_path)
    assert done.returncode == 2
    assert "not empty and not made by a demo" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_the_demo_before_is_replaced_and_that_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "demo"
    made = Demo(out, DEFAULT_MODEL, 0.1, 64, 0.05)
    made._empty_folder()
    assert capsys.readouterr().out == ""
    (out / "summary.json").write_text("{}")
    made._empty_folder()
    assert f"{out}: the demo before is replaced" in capsys.readouterr().out
    assert [path.name for path in out.iterdir()] == [".flawline-demo"]


def test_a_folder_that_cannot_be_replaced_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(FlawlineError, match=r"file.* cannot be replaced \(.*; give another folder with --out"):
        Demo(tmp_path / "file" / "demo", DEFAULT_MODEL, 0.1, 64, 0.05)._empty_folder()


def test_a_video_that_is_not_there_is_named(tmp_path: Path) -> None:
    done = demo("--data", tmp_path, "--video", tmp_path / "none.avi", "--out", tmp_path / "demo")
    assert done.returncode == 2
    assert "none.avi: no such file or folder" in done.stderr
