"""Edge and host as processes with keys: authorised late, the host killed, a recipe selected, the edge revoked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from contract.keys import authorise, new_pair, revoke
from edge_runtime.demo import fetch
from plugin.connectors.registers import RECIPE_STATES, WORDS, WRITTEN
from plugin.service import Service
from plugin.settings import load_settings
from tests.plugin.controller import Master
from tests.processes import TOUCHING, Line, free_port, until

LINK = 'key = "edge-keys/edge-1.key_secret"\nserver_key = "keys/host.key"'


def test_an_edge_authorised_while_the_line_runs_loses_nothing_though_the_host_is_killed(
    tmp_path: Path, bundle: Path
) -> None:
    new_pair(tmp_path / "keys", "host")
    new_pair(tmp_path / "edge-keys", "edge-1")
    url = "synthetic://line?seed=5&parts=24&fps=50"
    line = Line(tmp_path, bundle, url, camera=TOUCHING, host='keys = "keys"', link=LINK)
    try:
        host = line.start_host()
        edge = line.start_edge()
        until(lambda: "flawline keys authorise edge-1.key" in edge.text(), "the edge says what is missing")
        state = until(lambda: _state(tmp_path), "the edge's state on its own box")
        assert "flawline keys authorise edge-1.key" in state
        assert line.parts() == []
        authorise(tmp_path / "keys", tmp_path / "edge-keys" / "edge-1.key")
        until(lambda: line.results() > 0, "the edge is heard")
        host.kill()
        line.start_host()
        assert edge.wait(150) == 0, edge.text()[-3000:]
        parts = line.parts()
        assert len({row["part_id"] for row in parts}) == len(parts) == 24
        assert {row["state"] for row in parts} == {"result"}
        assert line.summary()["holes"] == 0
        numbers = [row["number"] for row in line.published()]
        assert len(set(numbers)) == len(numbers)
        revoke(tmp_path / "keys", "edge-1")
        again = line.start_edge()
        until(lambda: "has revoked it" in again.text(), "a revoked edge is refused")
        assert len(line.parts()) == 24
    finally:
        line.close()


def test_a_line_controller_selects_a_recipe_of_an_edge_over_keys(tmp_path: Path, bundle: Path) -> None:
    new_pair(tmp_path / "keys", "host")
    new_pair(tmp_path / "edge-keys", "edge-1")
    authorise(tmp_path / "keys", tmp_path / "edge-keys" / "edge-1.key")
    config = tmp_path / "service.toml"
    config.write_text(
        'state_dir = "service"\nkeys = "keys"\n[events]\nbind = "tcp://127.0.0.1:*"\n'
        '[control]\nbind = "tcp://127.0.0.1:*"\n[http]\nport = 0\n'
        f'[[connectors]]\nurl = "modbus://127.0.0.1:{(port := free_port())}?ack=0"\n'
    )
    service = Service(load_settings(config), tmp_path)
    service.start()
    control = service.control
    assert control is not None
    line = Line(
        tmp_path,
        bundle,
        "synthetic://line?seed=5&parts=400&fps=50",
        camera=f'{TOUCHING}\n[[recipes]]\nnumber = 2\nbundle = "{bundle}"',
        link=f'{LINK}\ncontrol = "{control.endpoint}"',
    )
    edge_config = tmp_path / "edge.toml"
    edge_config.write_text(edge_config.read_text().replace(line.endpoint, service.endpoint))
    line.address = service.url.rstrip("/")
    try:
        edge = line.start_edge()
        until(lambda: control.edges_of("line-1") == ["edge-1"], "the edge says hello")
        until(lambda: line.results() >= 2, "recipe 1 judges")
        plc = Master(("127.0.0.1", port))
        until(lambda: plc.read(WORDS["recipe"], 1) == [1], "the controller reads what judges")
        plc.write_one(WRITTEN["recipe_request"], 9)
        until(lambda: plc.read(WORDS["recipe_state"], 1) == [RECIPE_STATES["refused"]], "there is no recipe 9")
        plc.write_one(WRITTEN["recipe_request"], 2)
        until(lambda: plc.read(WORDS["recipe_state"], 1) == [RECIPE_STATES["active"]], "recipe 2 is active", 60)
        assert plc.read(WORDS["recipe"], 2)[0] == 2
        plc.close()
        reply = control.status("edge-1", 60).result(61)
        assert reply.status is not None
        assert reply.status.recipe_number == 2
        until(lambda: _read_back(line) == 2, "the heartbeat reads it back")
        before = line.results()
        until(lambda: line.results() >= before + 3, "recipe 2 judges")
        assert edge.stop() == 0
        rows = [row for row in line.parts() if row["state"] == "result"]
        numbers = [fetch(f"{line.address}/api/parts/{row['id']}")["header"]["recipe_number"] for row in rows]
        assert sorted(numbers) == numbers
        assert set(numbers) == {1, 2}
        assert fetch(f"{line.address}/healthz")["control"]["wrong_edge"] == 0
    finally:
        line.close()
        service.stop()


def _read_back(line: Line) -> int | None:
    return next((state.get("recipe_number") for state in line.summary()["states"]), None)


def _state(folder: Path) -> str:
    words = [sys.executable, "-m", "flawline", "edge", "state", str(folder / "edge.toml")]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 3 and "host:" in done.stdout else ""
