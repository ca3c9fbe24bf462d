"""``flawline acceptance`` for real, on this machine's engines: what it measures, what it refuses, what it writes."""

from __future__ import annotations

import json
import stat
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge_runtime.acceptance as acceptance
from calibration.places import place_files
from calibration.quality import bounds_from, see
from contract.bundle import open_bundle, put_files
from contract.places import Blank, Located
from contract.preprocess import prepare
from contract.recipe import Places, Recipe, Thresholds, Tiling, View
from edge_runtime.acceptance import SLOWER, Asked, examine, read_trtexec, soak_faults, trtexec
from edge_runtime.acceptance_page import page
from edge_runtime.engines import open_engine
from flawline import main
from tests.bundles import draw_part
from tests.graphs import write_bundle
from tests.signed import People

GOOD = [draw_part(number) for number in range(12)]
LIMITS = Thresholds(
    reject=2, map=1, method="test", false_reject_rate=0.1, groups=1, images=1, engine="onnxruntime-1.31 fp32 cpu"
)
RECIPE = Recipe(views=[View(tiling=Tiling(rows=1, columns=2, overlap_px=8))])


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(acceptance, "SPEED_S", 0.3)
    # Tenths of a second on a machine that does other things as well; the limit itself has a test of its own below.
    monkeypatch.setattr(acceptance, "SLOWER", 100.0)


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    quality = bounds_from([see(prepare(part, RECIPE), part.shape[:2]) for part in GOOD])
    write_bundle(tmp_path / "bundle", GOOD, RECIPE, thresholds=LIMITS, quality=quality)
    return tmp_path / "bundle"


class Text(HTMLParser):
    """The words of a page, and whatever it would load from elsewhere."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.words, self.loads = "", []
        self.feed(page)
        self.close()

    def handle_data(self, data: str) -> None:
        self.words += f" {data}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.loads += [value for name, value in attrs if name in ("src", "href")]


def test_a_whole_acceptance(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "station.html"
    words = ["acceptance", str(bundle), "--engine", "onnxruntime", "--minutes", "0.05", "--out", str(out)]
    assert main(words) == 0, capsys.readouterr().out
    result = json.loads(out.with_suffix(".json").read_text())
    assert result["accepted"] and result["faults"] == []
    assert result["engine"]["ran"].startswith("onnxruntime-") and result["engine"]["ran"].endswith(" fp32 cpu")
    assert result["parity"]["to_training"] < 1e-5 and result["parity"]["score_to_reference"] == 0.0
    speed, soak = result["speed"], result["soak"]
    assert 0 < speed["latency_ms"]["median"] <= speed["latency_ms"]["p99"] <= speed["latency_ms"]["max"]
    assert speed["tiles_per_s"] == pytest.approx(2 * speed["parts_per_s"])
    assert 0.05 <= soak["minutes"] < 0.2 and len(soak["windows"]) == 10
    assert soak["parts"] == sum(window["parts"] for window in soak["windows"]) >= 10
    assert soak["verdicts_changed"] == 0 and soak["score_drift"] == 0.0
    assert result["trtexec"] == {"ran": False, "why": "trtexec measures TensorRT, this is onnxruntime"}
    assert result["machine"]["processor"] and result["machine"]["packages"]["onnxruntime"]
    page = Text(out.read_text())
    assert page.loads == []
    for said in (result["engine"]["ran"], result["machine"]["processor"], "Signature", "Every limit is kept",
                 "not compared: trtexec measures TensorRT", result["bundle"]["id"]):  # fmt: skip
        assert said in page.words
    assert f"accepted: {out}" in capsys.readouterr().out


def test_an_engine_that_disagrees_is_not_accepted_and_the_page_says_so(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from contract.bundle import open_bundle, write_manifest

    manifest = open_bundle(bundle).manifest
    golden = manifest.golden.model_copy(update={"scores": [score * 1.01 for score in manifest.golden.scores]})
    write_manifest(bundle, manifest.model_copy(update={"golden": golden, "thresholds": None, "quality": None}))
    out = tmp_path / "a.html"
    assert main(["acceptance", str(bundle), "--engine", "onnxruntime", "--minutes", "0.05", "--out", str(out)]) == 1
    result = json.loads(out.with_suffix(".json").read_text())
    assert not result["accepted"] and result["soak"] is None and result["speed"] is None
    assert result["faults"][0].startswith("the bundle is not calibrated")
    assert "disagrees with training on golden image 0" in result["faults"][1]
    assert "Not accepted" in Text(out.read_text()).words and "disagrees with training" in out.read_text()
    assert "NOT ACCEPTED" in capsys.readouterr().out


def test_the_page_shows_what_is_not_inspected(bundle: Path) -> None:
    opened = open_bundle(bundle)
    keep = np.ones(RECIPE.canvas_hw(RECIPE.views[0]), bool)
    keep[:, :30] = False
    located = Located(
        RECIPE, opened.manifest.model.map_hw, Places(top_k=1), {"main": Blank(keep, keep * np.uint8(99))}, {}
    )
    put_files(opened, place_files(opened, located, {}), places=located.places)
    result = examine(open_bundle(bundle), Asked("nothing such", "fp32", 1, 0.01), lambda line: None)
    shown = page(result)
    assert "25.0 % of view main: red in the picture below" in Text(shown).words
    assert Text(shown).loads and all(str(link).startswith("data:image/png;base64,") for link in Text(shown).loads)
    assert "nothing is masked" not in shown


def test_an_engine_that_is_not_there_is_a_fault_not_a_traceback(bundle: Path, tmp_path: Path) -> None:
    from edge_runtime.engines import installed, obstacle

    if installed("tensorrt") and obstacle("tensorrt") is None:
        pytest.skip("TensorRT serves here")
    out = tmp_path / "a.html"
    assert main(["acceptance", str(bundle), "--engine", "tensorrt", "--minutes", "0.05", "--out", str(out)]) == 1
    assert "none: tensorrt could not be opened" in Text(out.read_text()).words


def test_the_page_says_in_what_state_the_bundle_is_and_who_signed_it(bundle: Path, tmp_path: Path) -> None:
    from contract.bundle import open_bundle
    from contract.keys import fingerprint
    from edge_runtime.acceptance_page import page

    asked = Asked("onnxruntime", "fp32", 1, 0.001)
    assert "State draft, signed by nobody" in Text(page(examine(open_bundle(bundle), asked, print))).words
    people = People(tmp_path / "people")
    opened = open_bundle(people.sign(bundle))
    result = examine(opened, asked, print)
    words = " ".join(Text(page(result)).words.split())
    validated, released = opened.manifest.history[-2:]
    for step in (validated, released):
        assert f"{step.state.capitalize()} by {step.who} on {step.when}, key {fingerprint(step.key or '')}" in words
    assert f"State released Validated by {validated.who}" in words and f"Content {opened.content}" in words
    opened.manifest.history[-1] = released.model_copy(update={"who": "mallory"})
    assert "mallory" in examine(opened, asked, print)["faults"][0]


def test_mistaken_places_are_refused_before_an_hour_is_spent(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["acceptance", str(bundle), "--out", str(tmp_path / "none" / "a.html")]) == 2
    assert "there is no folder" in capsys.readouterr().err
    assert main(["acceptance", str(bundle), "--out", str(tmp_path / "a.json")]) == 2
    assert "is the page's name" in capsys.readouterr().err


def test_names_cannot_write_into_the_page(bundle: Path) -> None:
    from contract.bundle import open_bundle
    from edge_runtime.acceptance_page import page

    opened = open_bundle(bundle)
    opened.manifest.name = "<script>alert(1)</script>"
    result = examine(opened, Asked("onnxruntime", "fp32", 1, 0.01), lambda line: None)
    result["machine"]["host"] = "<img src=x>"
    assert "<script>" not in page(result) and "<img" not in page(result)


SOAK: dict[str, Any] = {
    "minutes": 60.0, "asked_minutes": 60.0, "interrupted": False, "parts": 2000, "verdicts_changed": 0,
    "score_drift": 0.0,
}  # fmt: skip


def window(latency: float = 2.0, memory: float | None = 300.0, card: float | None = None) -> dict[str, Any]:
    return {"parts": 1, "latency_median_ms": latency, "latency_p99_ms": latency, "memory_mb": memory,
            "card_memory_mb": card}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "last", "said"),
    [
        ({}, window(), None),
        ({}, window(latency=2.9, memory=350.0), None),
        ({"verdicts_changed": 3}, window(), r"3 part\(s\) got another verdict"),
        ({"score_drift": 2e-4}, window(), "scores moved by 0.0002 relative; at most 0.0001"),
        ({}, window(memory=400.0), "process's memory grew by 100 MB; at most 64 MB"),
        ({}, window(card=900.0), "card's memory grew by 100 MB"),
        ({}, window(latency=3.1), "from 2.00 to 3.10 ms; at most 1.5 times"),
        ({"interrupted": True, "minutes": 7.0}, window(), "interrupted after 7 of 60 minutes"),
    ],
)
def test_every_limit_of_the_soak(
    changes: dict[str, Any], last: dict[str, Any], said: str | None, bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import re

    from contract.bundle import open_bundle

    opened = open_bundle(bundle)
    engine = open_engine("onnxruntime", opened)
    monkeypatch.setattr(acceptance, "SLOWER", SLOWER)
    faults = soak_faults({**SOAK, **changes, "windows": [window(card=800.0), last]}, engine, opened)
    if said is None:
        assert faults == []
    else:
        assert len(faults) == 1 and re.search(said, faults[0]), faults


# As trtexec 10.3 prints it.
PRINTED = """\
[11/22/2026-10:00:00] [I] Throughput: 1234.5 qps
[11/22/2026-10:00:00] [I] Latency: min = 0.7 ms, max = 2.2 ms, mean = 0.8 ms, median = 0.81 ms, percentile(90%) = 0.9 ms, percentile(95%) = 0.95 ms, percentile(99%) = 1.4 ms
[11/22/2026-10:00:00] [I] Enqueue Time: min = 0.1 ms, max = 0.2 ms, mean = 0.1 ms, median = 0.1 ms, percentile(99%) = 0.2 ms
"""  # noqa: E501


def test_trtexec_s_figures_are_read() -> None:
    assert read_trtexec(PRINTED) == {"parts_per_s": 1234.5, "latency_median_ms": 0.81, "latency_p99_ms": 1.4}
    assert read_trtexec("&&&& FAILED TensorRT.trtexec") is None


def test_trtexec_is_run_where_it_is_installed(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program of our own that prints as trtexec does stands in its place: what is asked of it, and what is read."""
    from contract.bundle import open_bundle

    opened = open_bundle(bundle)
    engine = open_engine("onnxruntime", opened)
    monkeypatch.setattr(type(engine), "name", "tensorrt")
    asked, figures = Asked("tensorrt", "fp32", 1, 1.0), {"parts_per_s": 617.25}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert trtexec(engine, opened, asked, figures) == {"ran": False, "why": "trtexec is not installed"}
    program = tmp_path / "trtexec"
    program.write_text(f"#!/bin/sh\necho \"$@\" > {tmp_path}/asked\necho '{PRINTED}'\n")
    program.chmod(stat.S_IRWXU)
    found = trtexec(engine, opened, asked, figures)
    assert found["ran"] and found["ours_over_theirs"] == 0.5 and found["latency_p99_ms"] == 1.4
    said = (tmp_path / "asked").read_text()
    assert "--shapes=image:2x64x64x1" in said and "--noTF32" in said and "--useCudaGraph" in said
    program.write_text("#!/bin/sh\necho 'no such option'; exit 1\n")
    assert trtexec(engine, opened, asked, figures) == {"ran": False, "why": "trtexec ended with 1: no such option"}
