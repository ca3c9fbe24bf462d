"""A station with real cameras and a host's end of its control socket in this process; its events stay in the spool."""

from __future__ import annotations

import threading
from functools import partial
from pathlib import Path
from typing import Any

import zmq

from contract.bundle import Bundle
from contract.control import Part, Reply, Status
from contract.event import HEADER, Header, Missed, Result, Trigger
from edge_runtime.control import Control
from edge_runtime.emitter import Emitter
from edge_runtime.recipes import load_judge, read_choice
from edge_runtime.settings import CameraSettings, EdgeSettings, HostLink
from edge_runtime.spool import Spool
from edge_runtime.spool_tables import PRIORITIES
from edge_runtime.station import Station
from plugin.control import ControlServer
from tests.processes import until

LONG_S = 60.0


class Asked:
    """An edge that is asked by ``host``; both end with ``close``."""

    def __init__(self, folder: Path, bundle: Bundle, cameras: list[dict[str, Any]], **more: Any) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.settings = EdgeSettings(
            edge_id="edge",
            bundle=bundle.root,
            state_dir=folder,
            host=HostLink(endpoint=f"ipc://{folder}/nobody", control=f"ipc://{folder}/control"),
            cameras=[CameraSettings.model_validate(camera) for camera in cameras],
            **{"deadline_ms": 20_000, "heartbeat_ms": 100, "images": "none", **more},
        )
        self.host = ControlServer(self.context, f"ipc://{folder}/control", None, lambda edge_id: "line")
        self.results: list[Result] = []
        self.spool = Spool(folder / "spool.sqlite")
        self.emitter = Emitter(self.spool, self.settings.host, self.context)
        load = partial(load_judge, self.settings)
        self.control = Control(self.context, self.settings.host.control or "", None, "edge", self.spool.run_id, load)
        judge = load(read_choice(self.settings).number)
        self.station = Station(
            self.settings, judge.bundle, judge.engine, self.spool, self.emitter, self.results.append, self.control,
            read_choice(self.settings),
        )  # fmt: skip
        self._threads = [threading.Thread(target=run) for run in (self.station.run, self.host.run)]
        self._closed = False
        self.emitter.start()
        self.control.start()
        for thread in self._threads:
            thread.start()

    def sees(self) -> None:
        """Wait until every camera has given a frame."""
        until(lambda: self.station._state == "running" and self.status(), "every camera delivers", LONG_S)

    def status(self) -> Status | None:
        known = self.host.known("edge")
        return None if known is None else known.status

    def ask(self, part: Part | None = None, key: str | None = None, timeout_s: float = LONG_S) -> Reply:
        """Trigger a part and wait for the answer."""
        return self.host.trigger("edge", part or Part(), timeout_s, key).result(LONG_S)

    def wait_results(self, count: int) -> list[Result]:
        until(lambda: len(self.results) >= count, f"{count} results", LONG_S)
        return self.results

    def end(self) -> list[Header]:
        """Stop in order; everything that was spooled, verdicts before pictures."""
        self.station.stop_event.set()
        self._threads[0].join(LONG_S)
        assert not self._threads[0].is_alive()
        rows = [row for priority in PRIORITIES for row in self.spool.pending(priority, 0, 10_000)]
        return [HEADER.validate_json(row.header) for row in rows]

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self.station.stop_event.set()
        self._threads[0].join(LONG_S)
        self.control.stop()
        self.emitter.stop()
        self.host.stop()
        self._threads[1].join(LONG_S)
        self.host.close()
        self.spool.close()
        self.context.term()


def ends(headers: list[Header]) -> tuple[list[str], list[str]]:
    """(ids of parts that were triggered, ids of parts that have an end), each as often as it stands there."""
    triggered = sorted(header.part_id for header in headers if isinstance(header, Trigger))
    return triggered, sorted(header.part_id for header in headers if isinstance(header, Result | Missed))
