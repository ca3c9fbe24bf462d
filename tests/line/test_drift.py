"""Drift end to end: a lamp that went dim, an edge that is killed before the host hears of it, one alarm at the host."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from contract.baseline import WATCHED, Baseline, read_baseline
from contract.bundle import ROLE_BASELINE, open_bundle
from contract.dataset import load_dataset, sha256_of_image
from contract.images import read_image
from edge_runtime.drift_desk import STATE_FOLDER, held_against
from edge_runtime.settings import CameraSettings, EdgeSettings
from flawline import main
from tests.bundles import draw_data, draw_part
from tests.graphs import write_bundle
from tests.processes import Line, fetch, until

FITTED, PARTS = 20, 60
EVERY = 'trigger = "every-frame"\nfixture = "region"\nregion = [0, 0, 80, 80]'


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Calibrated on 60 drawn parts."""
    data = draw_data(tmp_path_factory.mktemp("drawn"), FITTED + 60, 0, 0)
    fitted = load_dataset(data).train[:FITTED]
    folder = tmp_path_factory.mktemp("made") / "bundle"
    hashes = [sha256_of_image(sample.path) for sample in fitted]
    write_bundle(folder, [read_image(s.path, 1) for s in fitted], fit=hashes[:-4], validation=hashes[-4:])
    assert main(["calibrate", "thresholds", str(folder), "--data", str(data)]) == 0
    return folder


@pytest.fixture
def line(tmp_path: Path, bundle: Path) -> Iterator[Line]:
    """Its camera gives each picture of a folder once: parts under a lamp that lost a tenth."""
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for n in range(PARTS):
        dim = (0.9 * draw_part(50_000 + n).astype(np.float32)).astype(np.uint8)
        cv2.imwrite(str(pictures / f"part_{n:03d}.png"), dim)
    settings = "deadline_ms = 60000\n[drift]\nparts_per_month = 1000000\nreport_parts = 20"
    made = Line(tmp_path, bundle, f"watch://{pictures}?channels=1", edge=settings, camera=EVERY)
    yield made
    made.close()


def drift_events(file: Path, table: str) -> list[dict[str, Any]]:
    """The headers of reports in a spool or a store, in order."""
    if not file.exists():
        return []
    with closing(sqlite3.connect(f"file:{file}?mode=ro", uri=True, timeout=30)) as connection:
        order = "n" if table == "rows" else "id"
        try:
            rows = connection.execute(f"SELECT header FROM {table} ORDER BY {order}").fetchall()
        except sqlite3.OperationalError:  # it is being made
            return []
    return [found for (header,) in rows if (found := json.loads(header))["kind"] == "drift"]


def alarmed(report: dict[str, Any]) -> bool:
    return any(test["alarm"] for test in report["tests"])


@pytest.mark.timeout(300)
def test_an_alarm_outlives_a_kill_and_is_one(line: Line) -> None:
    spool, store = line.folder / "edge" / "spool.sqlite", line.folder / "host" / "store.sqlite"
    edge = line.start_edge()
    until(lambda: any(map(alarmed, drift_events(spool, "rows"))), "the edge notes an alarm", 120)
    edge.kill()
    noted = drift_events(spool, "rows")
    line.start_host()
    again = line.start_edge()
    until(lambda: len(line.parts()) >= PARTS and not any(p["state"] == "triggered" for p in line.parts()), "parts", 120)
    until(lambda: any("drift at edge-1" in text for text in fetch(f"{line.address}/healthz")["alarms"]), "alarm", 120)
    assert again.stop() == 0, again.text()[-3000:]
    told = drift_events(store, "events")
    identities = [(each["spool_id"], each["seq"]) for each in told]
    assert len(set(identities)) == len(identities)
    assert {(each["spool_id"], each["seq"]) for each in noted} <= set(identities), "what was noted before the kill"
    first = next(each for each in told if alarmed(each))
    assert first["suspect"] == "lamp" and first["inspected"] <= PARTS
    brightness = next(each for each in first["measures"] if each["what"] == "brightness")
    assert brightness["shift"] < -2
    with closing(sqlite3.connect(store)) as connection:
        alarms = connection.execute("SELECT again, containment FROM drift_alarms").fetchall()
        lists = connection.execute("SELECT cause FROM containments").fetchall()
    assert alarms == [(sum(map(alarmed, told)) - 1, 1)] and lists == [("drift: edge-1, camera top",)]
    (kept,) = (line.folder / "edge" / STATE_FOLDER).glob("*.json")
    assert json.loads(kept.read_text())["inspected"] >= PARTS // 2


def edge_settings(bundle: Path, **more: Any) -> EdgeSettings:
    return EdgeSettings(
        edge_id="edge", bundle=bundle, cameras=[CameraSettings(id="top", url="synthetic://line")], **more
    )


def test_a_calibration_leaves_the_baseline_in_the_bundle(bundle: Path) -> None:
    opened = open_bundle(bundle)
    found = read_baseline(opened)
    assert found is not None and len(found.score) == 60 and set(found.measures["main"]) == set(WATCHED)
    assert {len(values) for values in found.measures["main"].values()} == {80}
    held = held_against(opened, edge_settings(bundle), ["top"])
    assert held.state == "watching" and held.references["top"].parts == 60
    other = held_against(opened, edge_settings(bundle, precision="int8"), ["top"])
    assert other.state == "no_baseline", "scores of another graph are other scores"


def test_an_older_bundle_judges_and_says_that_it_is_not_watched(bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    older = open_bundle(bundle)
    del older.manifest.files[ROLE_BASELINE]
    assert held_against(older, edge_settings(bundle), ["top"]).state == "no_baseline"
    assert "calibrate it again: flawline calibrate thresholds" in caplog.text
    assert held_against(older, edge_settings(bundle, drift={"on": False}), ["top"]).state == "off"


def test_a_baseline_that_is_none_does_not_keep_parts_from_being_judged(bundle: Path, tmp_path: Path) -> None:
    opened = open_bundle(bundle)
    entry = opened.manifest.files[ROLE_BASELINE]
    head = {"engine": "onnxruntime fp32", "score": [1.0, 2.0]}
    of = {"main": {"mean": [1.0]}}
    assert Baseline.model_validate({**head, "measures": of})
    strange = (
        {},
        {**head, "measures": of, "score": [2.0, 1.0]},
        {**head, "measures": of, "score": [float("nan")]},
        {**head, "measures": of, "review": [1.0]},
        {**head, "measures": {}},
        {**head, "measures": {"main": {}}},
    )
    for content in (*map(json.dumps, strange), ""):
        (tmp_path / "none.json").write_text(content)
        opened.manifest.files[ROLE_BASELINE] = entry.model_copy(update={"path": str(tmp_path / "none.json")})
        assert held_against(opened, edge_settings(bundle), ["top"]).state == "no_baseline", content
