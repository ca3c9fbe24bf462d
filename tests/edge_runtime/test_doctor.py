"""``flawline doctor``: every check runs, each fault has a way out, the exit code follows."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge_runtime.doctor as doctor
from calibration.quality import bounds_from, see
from contract.preprocess import prepare
from contract.recipe import Recipe, Thresholds
from edge_runtime.doctor import CHECKS, EXTRAS, Finding, Status, Subject, examine
from edge_runtime.engines import ENGINES
from edge_runtime.engines.tiny import GRAPH, SIDE
from flawline import main
from tests.bundles import draw_part
from tests.graphs import write_bundle

LIMITS = Thresholds(reject=2, map=1, method="test", false_reject_rate=0.1, groups=1, images=1, engine="x")
NOTHING = Subject(None, None)
CONFIG = 'edge_id = "e1"\nbundle = "bundle"\n[[cameras]]\nid = "top"\nurl = "{url}"\n'


def named(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.name: finding for finding in findings}


@pytest.fixture
def station(tmp_path: Path) -> Path:
    """A folder with a calibrated bundle and an edge.toml."""
    good = [draw_part(number) for number in range(12)]
    recipe = Recipe()
    quality = bounds_from([see(prepare(part, recipe), part.shape[:2]) for part in good])
    write_bundle(tmp_path / "bundle", good, recipe, thresholds=LIMITS, quality=quality)
    (tmp_path / "edge.toml").write_text(CONFIG.format(url="synthetic://line?seed=1"))
    return tmp_path


def test_this_machine_can_run_an_edge(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor"]) == 0
    shown = capsys.readouterr().out
    for name in ENGINES:
        assert f"engine {name}" in shown
    assert "NTP" in shown or "synchronised" in shown


@pytest.mark.parametrize("name", CHECKS)
def test_every_check_says_something(name: str, station: Path) -> None:
    findings = list(CHECKS[name](Subject(station / "bundle", station / "edge.toml")))
    assert findings
    for finding in findings:
        assert finding.name and finding.found and finding.status in Status


def test_a_key_that_cannot_be_used_is_said(station: Path) -> None:
    config = station / "edge.toml"
    assert named(examine(Subject(None, config)))["keys"].status is Status.OK
    config.write_text(config.read_text() + '[host]\nkey = "keys/e1.key_secret"\nserver_key = "keys/host.key"\n')
    finding = named(examine(Subject(None, config)))["keys"]
    assert finding.status is Status.FAIL
    assert "flawline keys new" in finding.found


def test_every_extra_of_the_project_file_that_a_machine_may_lack() -> None:
    import tomllib

    listed = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    extras = listed["project"]["optional-dependencies"]
    assert set(EXTRAS) <= set(extras)
    for extra, packages in EXTRAS.items():
        wanted = " ".join(extras[extra] + extras["edge"] + extras["vision"])
        assert all(package in wanted for package in packages.values()), extra


def test_whole_station_is_well(station: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--config", str(station / "edge.toml"), "--json"]) == 0
    found = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert found["bundle"]["status"] == found["calibration"]["status"] == found["golden images"]["status"] == "ok"
    assert "agrees with training" in found["golden images"]["found"]
    assert found["camera top"]["status"] == "ok"


def test_damaged_bundle_fails(station: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (station / "bundle" / "golden.npy").write_bytes(b"x")
    assert main(["doctor", "--bundle", str(station / "bundle")]) == 1
    shown = capsys.readouterr().out
    assert "fail  bundle" in shown and "golden.npy" in shown and "-> copy the bundle again" in shown


def test_uncalibrated_bundle_fails_with_the_command(tmp_path: Path) -> None:
    write_bundle(tmp_path / "bundle", [draw_part(1)])
    found = named(examine(Subject(tmp_path / "bundle", None)))
    assert found["bundle"].status is Status.OK and found["calibration"].status is Status.FAIL
    assert "flawline calibrate thresholds" in found["calibration"].way_out


def test_engine_that_disagrees_fails(station: Path) -> None:
    from contract.bundle import open_bundle, write_manifest

    manifest = open_bundle(station / "bundle").manifest
    golden = manifest.golden.model_copy(update={"scores": [score * 1.01 for score in manifest.golden.scores]})
    write_manifest(station / "bundle", manifest.model_copy(update={"golden": golden}))
    found = named(examine(Subject(station / "bundle", None)))["golden images"]
    assert found.status is Status.FAIL and "disagrees with training" in found.found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (CONFIG.format(url="floppy://a"), "camera top"),
        ("edge_id = 3", "config"),
        ("not toml [", "config"),
        (CONFIG.format(url="usb://0") + "colour = 1\n", "config"),
    ],
)
def test_faults_of_the_configuration(station: Path, text: str, expected: str) -> None:
    (station / "edge.toml").write_text(text)
    found = named(examine(Subject(None, station / "edge.toml")))
    assert found[expected].status is Status.FAIL and found[expected].way_out
    assert not any("the check itself failed" in finding.found for finding in found.values())


def test_port_in_use_is_a_warning() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(doctor, "PORTS", {port: "a test"})
            (finding,) = doctor.check_ports(NOTHING)
    assert finding.status is Status.WARN and "in use" in finding.found


def test_missing_packages_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("edge_runtime.engines.installed", lambda name: False)
    found = named(examine(NOTHING))
    assert found["extra host"].way_out == "pip install 'flawline[host]'"
    assert found["extra host"].status is Status.WARN
    assert found["engine auto"].status is Status.FAIL


def test_little_disk_and_shared_memory(station: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda path: _usage(100 << 20))
    found = named(examine(Subject(None, station / "edge.toml")))
    assert found["disk"].status is Status.FAIL
    assert found["shared memory"].status is Status.FAIL and "--shm-size" in found["shared memory"].way_out


def test_clock_that_was_never_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.time, "time", lambda: 0.0)
    assert named(list(doctor.check_clock(NOTHING)))["wall clock"].status is Status.FAIL


def test_broken_check_is_a_finding(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(_: Subject) -> Any:
        raise RuntimeError("unheard of")

    monkeypatch.setitem(doctor.CHECKS, "gpu", broken)
    assert "unheard of" in named(examine(NOTHING))["gpu"].found


def test_tiny_graph_is_what_its_comment_says() -> None:
    import onnx

    model = onnx.load_from_string(GRAPH)
    onnx.checker.check_model(model)
    assert [node.op_type for node in model.graph.node] == ["Cast", "Squeeze", "ReduceMax", "Identity"]
    assert np.prod([SIDE, SIDE]) == 64 and len(GRAPH) < 500


def _usage(free: int) -> Any:
    from collections import namedtuple

    return namedtuple("usage", "total used free")(free, 0, free)
