"""``flawline doctor``: every check runs, each fault has a way out, the exit code follows."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import edge_runtime.doctor as doctor
from calibration.quality import bounds_from, see
from contract.preprocess import prepare
from contract.recipe import Recipe, Thresholds
from edge_runtime.checks import machine, network
from edge_runtime.checks.cameras import check_cameras
from edge_runtime.doctor import CHECKS, EXTRAS, Finding, Status, Subject, examine
from edge_runtime.engines import ENGINES
from edge_runtime.engines.tiny import GRAPH, SIDE
from flawline import main
from tests.bundles import draw_part
from tests.graphs import write_bundle
from tests.signed import People, write_calibrated

LIMITS = Thresholds(reject=2, map=1, method="test", false_reject_rate=0.1, groups=1, images=1, engine="x")
NOTHING = Subject(None, None)
CONFIG = 'edge_id = "e1"\nbundle = "bundle"\n[[cameras]]\nid = "top"\nurl = "{url}"\n'


@contextmanager
def listener() -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        yield taken.getsockname()[1]


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
    assert named(list(network.check_keys(Subject(None, config))))["keys"].status is Status.OK
    config.write_text(config.read_text() + '[host]\nkey = "keys/e1.key_secret"\nserver_key = "keys/host.key"\n')
    finding = named(list(network.check_keys(Subject(None, config))))["keys"]
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


def test_a_slot_that_was_never_filled_names_the_command_that_fills_it(station: Path) -> None:
    config = station / "edge.toml"
    slots = (
        config.read_text().replace('"bundle"', '"slots/active"')
        + '[[recipes]]\nnumber = 2\nbundle = "slots-2/active"\n'
    )
    config.write_text(slots)
    found = named(examine(Subject(None, config)))["bundle"]
    assert found.status is Status.FAIL and str(station / "slots" / "active") in found.found
    assert found.way_out.startswith(f"flawline edge update DIR --config {config}, ")
    assert main(["edge", "update", str(write_calibrated(station / "fit", "part", 5)), "--config", str(config)]) == 0
    assert named(examine(Subject(None, config)))["bundle"].status is Status.OK
    config.write_text('mode = "production"\n' + slots + '[bundles]\ntrusted = "signers"\n')
    People(station)
    found = named(examine(Subject(None, config)))["recipe 2"]
    assert found.status is Status.FAIL and found.way_out.startswith(
        f"flawline edge update DIR --config {config} --recipe 2"
    )


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
    with listener() as port, pytest.MonkeyPatch.context() as patch:
        patch.setattr(network, "PORTS", {port: "a test"})
        (finding,) = network.check_ports(NOTHING)
    assert finding.status is Status.WARN and "in use" in finding.found


def test_missing_packages_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor.importlib.util, "find_spec", lambda name: None)
    monkeypatch.setattr("edge_runtime.engines.installed", lambda name: False)
    found = named(examine(NOTHING))
    assert found["extra host"].way_out == "pip install 'flawline[host]'"
    assert found["extra host"].status is Status.WARN
    assert found["engine auto"].status is Status.FAIL


def test_little_disk_and_shared_memory(station: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: _usage(100 << 20))
    monkeypatch.setattr(machine, "free_memory", lambda: 0.06)
    found = named(examine(Subject(None, station / "edge.toml", open_cameras=False)))
    assert found["disk"].status is Status.FAIL
    assert found["shared memory"].status is Status.FAIL and "max_frame_mb" in found["shared memory"].way_out


def test_a_disk_with_less_room_than_the_spool_may_take(station: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = station / "edge.toml"
    config.write_text(config.read_text() + "[spool]\nmax_mb = 100_000\n")
    monkeypatch.setattr(machine.shutil, "disk_usage", lambda path: _usage(20 << 30))
    found = named(list(machine.check_disk(Subject(None, config))))["disk"]
    assert found.status is Status.WARN and "the spool may take 93.1" in found.found
    assert "max_mb = 17180 under [spool]" in found.way_out


def test_a_disk_that_cannot_be_written(station: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: Any, **__: Any) -> Any:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(machine.tempfile, "TemporaryFile", read_only)
    found = named(list(machine.check_disk(Subject(None, station / "edge.toml"))))["disk write"]
    assert found.status is Status.FAIL and "Read-only" in found.found and "state_dir" in found.way_out


@pytest.mark.parametrize(("took_ms", "status"), [(1, Status.OK), (80, Status.WARN), (2000, Status.FAIL)])
def test_a_disk_that_syncs_slowly(
    took_ms: float, status: Status, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ticks = iter(float(n // 2 * 10 + n % 2 * took_ms / 1e3) for n in range(1000))
    monkeypatch.setattr(machine.time, "perf_counter", lambda: next(ticks))
    assert machine._try_sync(tmp_path).status is status


def test_memory_is_what_the_container_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, text in (("memory.max", "2147483648"), ("memory.current", "1073741824"), ("unbounded", "max")):
        (tmp_path / name).write_text(text)
    used = tmp_path / "memory.current"
    monkeypatch.setattr(machine, "CGROUPS", ((tmp_path / "unbounded", used), (tmp_path / "memory.max", used)))
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "none")
    assert machine.free_memory() == 1.0
    (tmp_path / "meminfo").write_text("MemTotal: 9 kB\nMemAvailable:  524288 kB\n")
    monkeypatch.setattr(machine, "MEMINFO", tmp_path / "meminfo")
    assert machine.free_memory() == 0.5


def test_clock_that_was_never_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine.time, "time", lambda: 0.0)
    assert named(list(machine.check_clock(NOTHING)))["wall clock"].status is Status.FAIL


@pytest.mark.parametrize(("kept", "status"), [(True, Status.OK), (False, Status.WARN), (None, Status.OK)])
def test_clock_that_nobody_keeps(kept: bool | None, status: Status, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_runtime.clock.synchronised", lambda: kept)
    assert named(list(machine.check_clock(NOTHING)))["wall clock"].status is status


@pytest.mark.parametrize("steps", [0, 3])
def test_clock_steps_that_the_edge_saw(steps: int, station: Path) -> None:
    from contract.event import State
    from edge_runtime.clock import boot_id

    said = State(edge_id="e1", spool_id="s", seq=1, run_id="r", t_wall_ns=1, state="stopped")
    (station / "state").mkdir()
    file = station / "state" / "state.json"
    subject = Subject(None, station / "edge.toml")
    for boot, expected in (("another", False), (boot_id(), True)):
        seen = said.model_copy(update={"boot_id": boot, "clock_steps": steps, "clock_step_ms": -60_000.0})
        file.write_text(seen.model_dump_json(by_alias=True))
        assert ("clock steps" in named(list(machine.check_clock(subject)))) is expected
    found = named(list(machine.check_clock(subject)))["clock steps"]
    assert found.status is (Status.WARN if steps else Status.OK)
    assert not steps or "set 3 time(s) while the edge ran, last by -60.0 s" in found.found


def test_a_camera_is_opened_and_its_first_frame_shown(station: Path) -> None:
    (found,) = check_cameras(Subject(None, station / "edge.toml"))
    assert found.status is Status.OK
    assert "640 x 480 mono8" in found.found and "frames a second" in found.found
    assert not list(station.glob("state/*")), "it left nothing of a recording's place"


def test_cameras_that_are_absent_or_give_too_much(station: Path) -> None:
    config = station / "edge.toml"
    config.write_text(
        CONFIG.format(url="file:///none/video.avi")
        + '[[cameras]]\nid = "big"\nurl = "synthetic://line?seed=1"\nmax_frame_mb = 0.1\n'
        + '[[cameras]]\nid = "slow"\nurl = "synthetic://line?seed=1&fps=10"\nfps = 50\n'
        + f'[[cameras]]\nid = "folder"\nurl = "watch://{station}"\ntrigger = "every-frame"\n'
    )
    found = named(list(check_cameras(Subject(None, config))))
    assert found["camera top"].status is Status.FAIL and "none/video.avi" in found["camera top"].found
    assert found["camera big"].status is Status.FAIL and "max_frame_mb = " in found["camera big"].way_out
    assert found["camera slow"].status is Status.WARN and "`fps` asks for 50" in found["camera slow"].found
    assert found["camera folder"].status is Status.OK and "counts as taken" in found["camera folder"].found


def test_a_camera_that_hangs_is_killed_in_time_and_its_password_unsaid(station: Path) -> None:
    """A server that takes the connection and never answers."""
    from edge_runtime.checks.cameras import ask_child
    from edge_runtime.settings import CameraSettings

    with listener() as port:
        camera = CameraSettings(id="net", url=f"http://user:secret@127.0.0.1:{port}/video", stall_s=60)
        found = ask_child(camera, limit_s=2.0)
    assert "within 2 s; its process was killed" in found["error"] and "secret" not in found["error"]


def test_cameras_of_a_running_edge_are_left_alone(station: Path) -> None:
    from edge_runtime.run import only_one

    (station / "state").mkdir()
    subject = Subject(None, station / "edge.toml")
    with only_one(station / "state"):
        (found,) = check_cameras(subject)
        assert found.status is Status.OK and "the edge runs and holds it" in found.found
    (found,) = check_cameras(subject._replace(open_cameras=False))
    assert "it was not opened, as asked" in found.found


def test_host_and_metrics_of_an_edge(station: Path) -> None:
    config = station / "edge.toml"
    with listener() as port, listener() as metrics:
        config.write_text(
            f'{CONFIG.format(url="synthetic://line")}[host]\nendpoint = "tcp://127.0.0.1:{port}"\n'
            f'control = "ipc://{station}/nobody"\n[metrics]\nlisten = "127.0.0.1:{metrics}"\ntoken = "none"\n'
        )
        found = named(list(network.check_ports(Subject(None, config))))
    assert found["host"].status is Status.OK
    assert found["control"].status is Status.WARN and "nobody answers" in found["control"].found
    assert found["metrics"].status is Status.FAIL and "another `listen`" in found["metrics"].way_out
    assert found["metrics token"].status is Status.FAIL and "openssl rand" in found["metrics token"].found


def test_other_machines_secret_keys_are_noticed(station: Path) -> None:
    from contract.keys import new_pair

    config, keys = station / "edge.toml", station / "keys"
    new_pair(keys, "e1")
    new_pair(keys, "host")
    config.write_text(config.read_text() + '[host]\nkey = "keys/e1.key_secret"\nserver_key = "keys/host.key"\n')
    found = named(list(network.check_keys(Subject(None, config))))
    assert found["keys"].status is Status.OK
    assert found["other keys"].status is Status.WARN and "host.key_secret" in found["other keys"].found


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
