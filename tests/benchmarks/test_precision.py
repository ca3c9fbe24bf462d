"""The table of precisions on a small bundle: every engine and precision, agreement with its own FP32, and the page."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import precision
from contract.bundle import open_bundle

ROOT = Path(__file__).resolve().parents[2]
PRECISIONS = {
    "openvino": ["fp32", "bf16", "fp16", "int8", precision.WHOLE],
    "onnxruntime": ["fp32", "fp16", "int8", precision.WHOLE],
}


def test_every_engine_and_precision_has_a_row(
    bundle: Path, synthetic_data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(precision, "ROUNDS", 3)
    out, page = tmp_path / "precision.json", tmp_path / "precision.md"
    words = ["--pair", str(bundle), str(synthetic_data), "--json", str(out), "--table", str(page)]
    assert precision.main(words) == 0
    document = json.loads(out.read_text())
    rows = document["rows"]
    assert document["date"] and document["machine"]["processor"] and document["threads"] == 1
    for engine, expected in PRECISIONS.items():
        found = {row["precision"]: row for row in rows if row["engine"] == engine}
        assert list(found) == expected
        assert (found["fp32"]["times_fp32"], found["fp32"]["flips"], found["fp32"]["rank_correlation"]) == (1, 0, 1)
        assert found["int8"]["size_bytes"] < found["fp32"]["size_bytes"]
        assert found[precision.WHOLE]["layers_left_fp32"] == 0 <= found["int8"]["layers_left_fp32"]
        assert all(row["latency_ms"] > 0 and row["images"] > 50 for row in found.values())
        assert all(
            row["worth_it"] <= (row["admitted"] and min(row["times_fp32"], row["times_fp32_processor"]) >= 1.49)
            for row in found.values()
        )
    assert open_bundle(bundle).manifest.golden.int8 is None  # measured, never written
    assert page.read_text().count("\n") == 2 + len(rows)


def test_the_published_figures_name_machine_and_date_and_stand_on_the_page() -> None:
    document = json.loads((ROOT / "benchmarks" / "results" / "precision.json").read_text())
    assert document["machine"]["processor"] and document["date"]
    assert {row["model"] for row in document["rows"]} >= set(precision.MODELS)
    page = (ROOT / "docs" / "precision.md").read_text()
    assert precision.table(document["rows"]) in page
