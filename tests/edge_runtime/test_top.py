"""`flawline edge top`: a real edge seen from outside, and an edge that does not run never looks as if it did."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import zmq

from contract.event import State
from edge_runtime import clock, top
from edge_runtime.figures import FIGURES_FILE, Figures
from edge_runtime.settings import load_settings
from edge_runtime.station import STATE_FILE
from flawline import main
from tests.processes import Process, until

CONFIG = """edge_id = "line-1"
bundle = "{bundle}"
deadline_ms = 20000
[host]
endpoint = "ipc://{folder}/host"
[[cameras]]
id = "left"
url = "synthetic://line?seed=1&parts=500&fps=30"
"""


@pytest.fixture(scope="module")
def edge(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Process]]:
    folder = tmp_path_factory.mktemp("top")
    config = folder / "edge.toml"
    config.write_text(CONFIG.format(bundle=bundle, folder=folder))
    with zmq.Context() as context, context.socket(zmq.ROUTER) as host:  # takes events and acknowledges none
        host.linger = 0
        host.bind(f"ipc://{folder}/host")
        process = Process(folder / "edge.log", "edge", "run", str(config), "--quiet")
        yield config, process
        if process.running():
            process.kill()


def figures(config: Path) -> Figures:
    path = config.parent / "state" / FIGURES_FILE
    return Figures.model_validate_json(path.read_bytes()) if path.exists() else Figures()


def test_a_running_edge_then_stopped_then_of_another_boot(
    edge: tuple[Path, Process], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, process = edge
    until(lambda: figures(config).latency_ms.get("total") or not process.running(), "parts were inspected and sent")
    assert process.running(), process.text()
    with monkeypatch.context() as stepped:
        stepped.setattr(time, "time", lambda: 4e9)  # the wall clock is of no concern
        assert main(["edge", "top", str(config), "--once"]) == 0
        shown = capsys.readouterr().out
        assert main(["edge", "state", str(config)]) == 0
        capsys.readouterr()
    assert "line-1: running for " in shown and "inference ok" in shown
    left = next(line.split() for line in shown.splitlines() if line.startswith("left "))
    assert left[1] == "running" and float(left[2]) > 0
    assert "REJECT" in shown and "p99" in shown and "inference" in shown
    assert "host: has acknowledged nothing yet" in shown and "clock: " in shown

    assert process.stop() == 3
    assert main(["edge", "top", str(config), "--once"]) == 3
    assert "THE EDGE DOES NOT RUN: stopped" in capsys.readouterr().out
    found = figures(config)
    counted = sum(sum(counts.values()) for counts in found.results.values())
    assert counted == state(config).cameras[0].triggers, "the last word is complete"

    monkeypatch.setattr(top, "boot_id", lambda: "another")
    assert main(["edge", "top", str(config), "--once"]) == 3
    assert "is of before this machine was started" in capsys.readouterr().out


def state(config: Path) -> State:
    return State.model_validate_json((config.parent / "state" / STATE_FILE).read_bytes())


def test_a_silent_edge_does_not_run_whatever_it_said_last(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = tmp_path / "edge.toml"
    config.write_text(CONFIG.format(bundle="b", folder=tmp_path))
    said = State(
        edge_id="line-1",
        spool_id="s",
        seq=1,
        run_id="r",
        t_wall_ns=time.time_ns(),
        state="running",
        boot_id=clock.boot_id(),
        t_boot_ns=clock.boot_ns(),
        clock_synchronised=True,
        clock_steps=2,
        clock_step_ms=-3_600_000,
    )
    (tmp_path / "state").mkdir()
    (tmp_path / "state" / STATE_FILE).write_text(said.model_dump_json(by_alias=True))
    assert main(["edge", "top", str(config)]) == 0  # no terminal: once
    assert "clock: synchronised, set 2 time(s), last by -3600.0 s" in capsys.readouterr().out
    later = clock.boot_ns() + 60_000_000_000
    monkeypatch.setattr(top, "boot_ns", lambda: later)
    assert main(["edge", "top", str(config)]) == 3
    shown = capsys.readouterr().out
    assert "THE EDGE DOES NOT RUN, or hangs: silent for 60 s, it was 'running' then" in shown
    assert main(["edge", "state", str(config)]) == 3
    assert "running, but silent for 60 s" in capsys.readouterr().out


def test_where_no_edge_ever_ran(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = tmp_path / "edge.toml"
    config.write_text(CONFIG.format(bundle="b", folder=tmp_path))
    assert main(["edge", "top", str(config), "--once"]) == 2
    assert "no edge has run with this state_dir" in capsys.readouterr().err


def test_torn_figures_leave_the_heartbeat(tmp_path: Path) -> None:
    config = tmp_path / "edge.toml"
    config.write_text(CONFIG.format(bundle="b", folder=tmp_path))
    (tmp_path / "state").mkdir()
    said = State(edge_id="e", spool_id="s", seq=1, run_id="r", t_wall_ns=1, state="running")
    (tmp_path / "state" / STATE_FILE).write_text(said.model_dump_json(by_alias=True))
    (tmp_path / "state" / FIGURES_FILE).write_text('{"results": ')
    seen = top.look(load_settings(config))
    assert not seen.alive and seen.figures == Figures()
