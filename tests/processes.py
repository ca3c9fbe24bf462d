"""Real edge and host processes for tests: started, killed, waited for, asked."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge_runtime.demo import fetch, fetch_parts
from edge_runtime.synthetic import PART_LENGTH_PX

READY_S = 60.0
TOUCHING = f"[cameras.presence]\npart_length_px = {PART_LENGTH_PX}"


def until(condition: Callable[[], Any], what: str, timeout_s: float = READY_S) -> Any:
    """Ask again until the condition holds; fails by name after the time."""
    deadline = time.monotonic() + timeout_s
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout_s:.0f} s: {what}")


def freeze(pid: int) -> None:
    """Stop a process; returns once every thread of it stands, which on a busy machine takes its time."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: _states(pid) <= {"T", "Z"}, f"process {pid} stands")


def _states(pid: int) -> set[str]:
    """Of its threads; none where somebody has ended it meanwhile."""
    try:
        files = [task / "stat" for task in Path(f"/proc/{pid}/task").iterdir()]
        return {file.read_text().rpartition(")")[2].split()[0] for file in files}
    except OSError:
        return set()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Process:
    """One `flawline` command in a process group of its own, its output in a file."""

    def __init__(
        self, log: Path, *words: str, environment: dict[str, str] | None = None, prefix: Sequence[str] = ()
    ) -> None:
        self.log = log
        with log.open("ab") as file:
            self._popen = subprocess.Popen(
                [*prefix, sys.executable, "-m", "flawline", *words],
                stdout=file,
                stderr=file,
                start_new_session=True,
                env=environment,
            )

    @property
    def pid(self) -> int:
        return self._popen.pid

    def running(self) -> bool:
        return self._popen.poll() is None

    def code(self) -> int | None:
        """Its exit status; negative where a signal ended it, None while it runs."""
        return self._popen.poll()

    def kill(self) -> None:
        """SIGKILL to the process itself: its children have to notice by themselves."""
        os.kill(self.pid, signal.SIGKILL)
        self._popen.wait(20)

    def stop(self, timeout_s: float = 40) -> int:
        if self.running():
            self._popen.send_signal(signal.SIGTERM)
        return self.wait(timeout_s)

    def wait(self, timeout_s: float) -> int:
        try:
            return self._popen.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._popen.kill()
            self._popen.wait(20)
            raise AssertionError(f"did not end in {timeout_s} s:\n{self.text()[-3000:]}") from None

    def text(self) -> str:
        return self.log.read_text(errors="replace")


def children(pid: int) -> list[int]:
    """The camera processes of an edge."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            parent = int(path.joinpath("stat").read_text().rpartition(")")[2].split()[1])
            words = path.joinpath("cmdline").read_text()
        except (OSError, ValueError):
            continue
        if parent == pid and "resource_tracker" not in words:
            found.append(int(path.name))
    return found


class Line:
    """A host and an edge of one test, on loopback ports that stay the same over restarts."""

    def __init__(
        self, folder: Path, bundle: Path, url: str, edge: str = "", camera: str = "", host: str = "", link: str = ""
    ) -> None:
        self.folder = folder
        self.endpoint = f"tcp://127.0.0.1:{free_port()}"
        self.address = f"http://127.0.0.1:{free_port()}"
        self.outputs = folder / "outputs.jsonl"
        port = self.address.rpartition(":")[2]
        (folder / "host.toml").write_text(
            f'state_dir = "host"\n{host}\n[events]\nbind = "{self.endpoint}"\n[http]\nport = {port}\n'
            f'[[connectors]]\nurl = "loop://{self.outputs}"\n'
        )
        (folder / "edge.toml").write_text(
            f'edge_id = "edge-1"\nbundle = "{bundle}"\nstate_dir = "edge"\n{edge}\n[host]\n'
            f'endpoint = "{self.endpoint}"\nresend_ms = 500\n{link}\n'
            f'[[cameras]]\nid = "top"\nurl = "{url}"\n{camera}\n'
        )
        self.processes: list[Process] = []

    def start_host(self) -> Process:
        process = self._start("host", "run", str(self.folder / "host.toml"))
        until(lambda: self._healthy() or not process.running(), "the host is ready")
        assert process.running(), process.text()[-3000:]
        return process

    def start_edge(self) -> Process:
        return self._start("edge", "run", str(self.folder / "edge.toml"), "--quiet")

    def _start(self, side: str, *words: str) -> Process:
        process = Process(self.folder / f"{side}-{len(self.processes)}.log", side, *words)
        self.processes.append(process)
        return process

    def _healthy(self) -> bool:
        try:
            fetch(f"{self.address}/healthz")
        except OSError:
            return False
        return True

    def parts(self) -> list[dict[str, Any]]:
        return fetch_parts(self.address)

    def results(self) -> int:
        return sum(row["state"] == "result" for row in self.parts())

    def gaps(self) -> list[dict[str, Any]]:
        items: list[dict[str, Any]] = fetch(f"{self.address}/api/gaps")
        return items

    def summary(self) -> dict[str, Any]:
        found: dict[str, Any] = fetch(f"{self.address}/api/summary")
        return found

    def published(self) -> list[dict[str, Any]]:
        """What the line controller was told, in order."""
        return [json.loads(line) for line in self.outputs.read_text().splitlines()] if self.outputs.exists() else []

    def close(self) -> None:
        for process in self.processes:
            if process.running():
                process.kill()
