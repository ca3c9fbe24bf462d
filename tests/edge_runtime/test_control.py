"""Host and edge over a real control socket: recipes, stop and start, between two parts and never unseen."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import stat
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import zmq

import edge_runtime.engines as engines
from contract.bundle import Bundle, open_bundle, write_manifest
from contract.control import Hello, Reply, Request, Status, encode, from_edge
from contract.errors import ConfigError
from contract.event import HEADER, Header, Result, Trigger, Verdict
from edge_runtime.control import Control
from edge_runtime.emitter import Emitter
from edge_runtime.recipes import NEVER_ASKED, Choice, Judge, load_judge, read_choice, write_choice
from edge_runtime.settings import CameraSettings, EdgeSettings, HostLink, PresenceSettings, RecipeSettings
from edge_runtime.spool import Spool
from edge_runtime.station import STOPPED, Station
from edge_runtime.synthetic import PART_LENGTH_PX
from flawline import main
from plugin.control import ControlServer
from tests.processes import until

LONG_S = 60.0


@pytest.fixture(scope="module")
def opened(bundle: Path) -> Bundle:
    return open_bundle(bundle)


@pytest.fixture(scope="module")
def recipes(bundle: Path, synthetic_data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[RecipeSettings]:
    """2 is calibrated otherwise, 3 is damaged, 4 is not there, 5 fails its golden images."""
    folder = tmp_path_factory.mktemp("recipes")
    other, damaged, liar = (shutil.copytree(bundle, folder / name) for name in ("other", "damaged", "liar"))
    again = ["calibrate", "thresholds", str(other), "--data", str(synthetic_data), "--false-reject-rate", "0.2"]
    assert main(again) == 0
    graph = next(damaged.glob("*.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1])
    manifest = open_bundle(liar).manifest
    golden = manifest.golden.model_copy(update={"scores": [score + 1 for score in manifest.golden.scores]})
    write_manifest(liar, manifest.model_copy(update={"golden": golden}))
    paths = {2: other, 3: damaged, 4: folder / "nowhere", 5: liar}
    return [RecipeSettings(number=number, bundle=path) for number, path in paths.items()]


class Host:
    """The host's end of the control socket, in this process."""

    def __init__(self, endpoint: str) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.server = ControlServer(self.context, endpoint, None, lambda edge_id: f"line-of-{edge_id}")
        self._thread = threading.Thread(target=self.server.run)
        self._thread.start()

    def close(self) -> None:
        if not self._thread.is_alive():
            return
        self.server.stop()
        self._thread.join(10)
        self.server.close()
        self.context.term()


@pytest.fixture
def host(tmp_path: Path) -> Iterator[Host]:
    made = Host(f"ipc://{tmp_path}/control")
    yield made
    made.close()


class Edge:
    """A station with real cameras and its end of the control socket; its events stay in the spool."""

    def __init__(self, folder: Path, bundle: Bundle, recipes: list[RecipeSettings], parts: int, **more: Any) -> None:
        camera = CameraSettings(
            id="top",
            url=f"synthetic://line?seed=2&parts={parts}&fps=50",
            presence=PresenceSettings(part_length_px=PART_LENGTH_PX),
        )
        self.settings = EdgeSettings(
            edge_id="edge",
            bundle=bundle.root,
            state_dir=folder,
            deadline_ms=20_000,
            heartbeat_ms=100,
            images="none",
            host=HostLink(endpoint=f"ipc://{folder}/nobody", control=f"ipc://{folder}/control"),
            cameras=[camera],
            recipes=recipes,
            **more,
        )
        self.closed = False
        self.results: list[Result] = []
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.spool = Spool(folder / "spool.sqlite")
        self.emitter = Emitter(self.spool, self.settings.host, self.context)
        load = partial(load_judge, self.settings)
        endpoint = self.settings.host.control or ""
        self.control = Control(self.context, endpoint, None, "edge", self.spool.run_id, load)
        judge = load(read_choice(self.settings).number)
        self.station = Station(
            self.settings, judge.bundle, judge.engine, self.spool, self.emitter, self.results.append, self.control,
            read_choice(self.settings),
        )  # fmt: skip
        self._thread = threading.Thread(target=self.station.run)
        self.emitter.start()
        self.control.start()
        self._thread.start()

    def wait_results(self, more: int) -> int:
        """Wait for so many further results; how many there were before."""
        before = len(self.results)
        until(lambda: len(self.results) >= before + more, f"{more} further results", LONG_S)
        return before

    def end(self) -> list[Header]:
        """Stop in order; everything that was spooled."""
        self.station.stop_event.set()
        self._thread.join(LONG_S)
        assert not self._thread.is_alive()
        return [HEADER.validate_json(row.header) for row in self.spool.pending(0, 0, 10_000)]

    def close(self) -> None:
        if self.closed:
            return
        self.closed = True
        self.station.stop_event.set()
        self._thread.join(LONG_S)
        self.control.stop()
        self.emitter.stop()
        self.spool.close()
        self.context.term()


@pytest.fixture
def start(opened: Bundle, recipes: list[RecipeSettings], tmp_path: Path) -> Iterator[Callable[..., Edge]]:
    made: list[Edge] = []

    def make(parts: int = 400, with_recipes: bool = True) -> Edge:
        made.append(Edge(tmp_path, opened, recipes if with_recipes else [], parts))
        return made[-1]

    yield make
    for edge in made:
        edge.close()


def there(host: Host) -> Status:
    known = until(lambda: host.server.known("edge"), "the edge says hello", LONG_S)
    assert known.age_s < LONG_S
    status: Status = known.status
    return status


def test_a_recipe_is_loaded_beside_the_old_one_and_takes_over_between_two_parts(
    host: Host, start: Callable[..., Edge]
) -> None:
    edge = start()
    assert there(host).recipe_number == 1
    edge.wait_results(3)
    asked = host.server.select_recipe("edge", 2, LONG_S)
    reply = asked.result(LONG_S)
    assert (reply.outcome, reply.reason) == ("ok", None)
    assert reply.status is not None
    assert reply.status.recipe_number == 2
    assert there(host).recipe_number == 2
    edge.wait_results(5)
    headers = edge.end()
    results = [header for header in headers if isinstance(header, Result)]
    numbers = [result.recipe_number for result in results]
    assert set(numbers) == {1, 2}
    assert numbers == sorted(numbers, key=lambda number: number or 0), "one moment of change"
    by_number = {result.recipe_number: result.calibration_id for result in results}
    assert by_number[1] != by_number[2], "each part names what judged it"
    assert all(result.verdict is not Verdict.NOT_INSPECTED for result in results)
    triggers = {header.part_id for header in headers if isinstance(header, Trigger)}
    assert sorted(triggers) == sorted(result.part_id for result in results), "no part is lost or judged twice"
    assert read_choice(edge.settings) == Choice(number=2, inspecting=True)


def test_a_recipe_that_is_ready_after_the_deadline_is_not_used(host: Host, start: Callable[..., Edge]) -> None:
    edge = start()
    there(host)
    load, ready = edge.control._load, threading.Event()

    def slow(number: int) -> Judge:
        judge = load(number)
        assert ready.wait(LONG_S)
        return judge

    edge.control._load = slow
    reply = host.server.select_recipe("edge", 2, timeout_s=1.0).result(LONG_S)
    assert reply.outcome == "unknown"
    assert there(host).loading == 2
    busy = host.server.select_recipe("edge", 5, LONG_S).result(LONG_S)
    assert "recipe 2 is being loaded" in (busy.reason or "")
    ready.set()
    until(lambda: there(host).loading is None, "the recipe is given up", LONG_S)
    before = edge.wait_results(2)
    assert {result.recipe_number for result in edge.results[before:]} == {1}
    assert read_choice(edge.settings) == NEVER_ASKED


@pytest.mark.parametrize(
    ("number", "words"), [(3, "sha256|hash|bytes"), (4, "nowhere"), (5, "disagrees with training"), (9, "no recipe 9")]
)
def test_a_recipe_that_cannot_be_used_is_refused_with_the_reason_and_the_old_one_goes_on(
    host: Host, start: Callable[..., Edge], number: int, words: str
) -> None:
    edge = start()
    there(host)
    reply = host.server.select_recipe("edge", number, LONG_S).result(LONG_S)
    assert reply.outcome == "refused"
    assert re.search(words, reply.reason or ""), reply.reason
    assert reply.status is not None
    assert reply.status.recipe_number == 1
    before = edge.wait_results(2)
    assert {result.recipe_number for result in edge.results[before:]} == {1}
    assert read_choice(edge.settings) == NEVER_ASKED


def test_while_stopped_every_part_is_not_inspected_and_none_is_unseen(host: Host, start: Callable[..., Edge]) -> None:
    edge = start()
    there(host)
    edge.wait_results(2)
    stopped = host.server.stop_inspecting("edge", LONG_S).result(LONG_S)
    assert stopped.outcome == "ok"
    assert stopped.status is not None
    assert stopped.status.inspecting is False
    before = edge.wait_results(3)
    assert {(each.verdict, each.reason) for each in edge.results[before:]} == {(Verdict.NOT_INSPECTED, STOPPED)}
    assert read_choice(edge.settings).inspecting is False
    state = json.loads((edge.settings.state_dir / "state.json").read_text())
    assert state["inspecting"] is False
    assert host.server.start_inspecting("edge", LONG_S).result(LONG_S).outcome == "ok"
    before = edge.wait_results(3)
    assert Verdict.NOT_INSPECTED not in {each.verdict for each in edge.results[before:]}
    headers = edge.end()
    triggers = {header.part_id for header in headers if isinstance(header, Trigger)}
    assert triggers == {header.part_id for header in headers if isinstance(header, Result)}


def test_the_choice_outlives_a_restart(host: Host, start: Callable[..., Edge], tmp_path: Path) -> None:
    edge = start()
    there(host)
    assert host.server.select_recipe("edge", 2, LONG_S).result(LONG_S).outcome == "ok"
    assert host.server.stop_inspecting("edge", LONG_S).result(LONG_S).outcome == "ok"
    edge.close()
    again = start()
    again.wait_results(2)
    assert {(each.recipe_number, each.reason) for each in again.results} == {(2, STOPPED)}


def test_recipes_of_one_graph_share_what_is_compiled_and_each_is_held_to_its_own_golden_images(
    host: Host, start: Callable[..., Edge], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads, load = [], engines.open_engine
    monkeypatch.setattr(engines, "open_engine", lambda *given: loads.append(given) or load(*given))
    edge = start()
    there(host)
    for number, outcome in ((2, "ok"), (5, "refused"), (1, "ok"), (2, "ok")):
        reply = host.server.select_recipe("edge", number, LONG_S).result(LONG_S)
        assert reply.outcome == outcome, reply.reason
        assert outcome == "ok" or "disagrees with training" in (reply.reason or "")
        before = edge.wait_results(3)
        last = edge.results[-1]
        assert last.verdict is not Verdict.NOT_INSPECTED, last.reason
        assert last.recipe_number == (number if outcome == "ok" else 2)
        assert len(edge.results) > before
    assert len(loads) == 1, "the engines that were closed have left what they shared to the others"


def test_a_choice_that_cannot_be_served_stops_the_start_with_the_way_out(opened: Bundle, tmp_path: Path) -> None:
    settings = EdgeSettings(
        edge_id="e", bundle=opened.root, state_dir=tmp_path, cameras=[CameraSettings(id="top", url="synthetic://line")]
    )
    assert read_choice(settings) == NEVER_ASKED
    write_choice(settings, Choice(number=7, inspecting=False))
    with pytest.raises(ConfigError, match=r"recipe 7 was selected last .* \[\[recipes\]\]"):
        read_choice(settings)
    (tmp_path / "recipe.json").write_text("{")
    with pytest.raises(ConfigError, match="remove the file"):
        read_choice(settings)


class Disk:
    """The real fsync, refused for folders; ``dead``: from the first refusal on for files as well."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, dead: bool = False) -> None:
        self._fsync, self._dead, self.refused = os.fsync, dead, 0
        monkeypatch.setattr(os, "fsync", self.fsync)

    def fsync(self, handle: int) -> None:
        if stat.S_ISDIR(os.fstat(handle).st_mode) or (self._dead and self.refused):
            self.refused += 1
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self._fsync(handle)


def test_a_choice_that_is_not_surely_on_the_disk_is_not_left_there(
    opened: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = EdgeSettings(
        edge_id="e", bundle=opened.root, state_dir=tmp_path, cameras=[CameraSettings(id="top", url="synthetic://line")]
    )
    stopped = Choice(number=1, inspecting=False)
    with monkeypatch.context() as patch:
        disk = Disk(patch)
        with pytest.raises(OSError, match=r"Input/output error$"):
            write_choice(settings, stopped)
        assert disk.refused == 2, "to write, and to put back"
    assert list(tmp_path.iterdir()) == [], "there was none before"
    write_choice(settings, stopped)
    with monkeypatch.context() as patch:
        Disk(patch)
        with pytest.raises(OSError, match=r"Input/output error$"):
            write_choice(settings, NEVER_ASKED)
    assert read_choice(settings) == stopped
    with monkeypatch.context() as patch:
        Disk(patch, dead=True)
        with pytest.raises(OSError, match=r"nor can .*json be put back: a restart begins with"):
            write_choice(settings, NEVER_ASKED)
    assert [path.name for path in tmp_path.iterdir()] == ["recipe.json"]


def test_a_recipe_whose_choice_the_disk_refuses_is_refused_and_does_not_come_back(
    host: Host, start: Callable[..., Edge], monkeypatch: pytest.MonkeyPatch
) -> None:
    edge = start()
    there(host)
    with monkeypatch.context() as patch:
        Disk(patch)
        reply = host.server.select_recipe("edge", 2, LONG_S).result(LONG_S)
    assert reply.outcome == "refused" and "Input/output error" in (reply.reason or "")
    before = edge.wait_results(2)
    assert {result.recipe_number for result in edge.results[before:]} == {1}
    assert read_choice(edge.settings) == NEVER_ASKED


def test_a_host_that_comes_back_is_told_at_once_and_asks_on(
    host: Host, start: Callable[..., Edge], tmp_path: Path
) -> None:
    start(with_recipes=False)
    there(host)
    host.close()
    again = Host(f"ipc://{tmp_path}/control")
    try:
        there(again)
        assert again.server.stop_inspecting("edge", LONG_S).result(LONG_S).outcome == "ok"
    finally:
        again.close()


class Raw:
    """A hand-made host: sends what the test says and hears every reply."""

    def __init__(self, folder: Path) -> None:
        self.context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.socket = self.context.socket(zmq.ROUTER)
        self.socket.set(zmq.LINGER, 0)
        self.socket.bind(f"ipc://{folder}/control")
        self.replies: list[Reply] = []
        self.route = b""
        self.hello: Hello | None = None

    def listen(self) -> bool:
        while self.socket.poll(20):
            self.route, *frames = self.socket.recv_multipart()
            message = from_edge(frames)
            if isinstance(message, Hello):
                self.hello = message
            else:
                self.replies.append(message)
        return True

    def request(self, key: str, what: str, **more: Any) -> Request:
        until(lambda: self.listen() and self.hello, "hello", LONG_S)
        assert self.hello is not None
        values = {
            "id": f"id-{time.monotonic_ns()}",
            "idempotency_key": key,
            "run_id": self.hello.run_id,
            "hello_ns": self.hello.t_sent_ns,
            "deadline_after_hello_ms": 60_000.0,
            "what": what,
        }
        return Request.model_validate(values | more)

    def send(self, request: Request | bytes) -> None:
        frames = encode(request) if isinstance(request, Request) else [request]
        self.socket.send_multipart([self.route, *frames])

    def answer(self, request: Request) -> Reply:
        self.send(request)
        until(lambda: self.listen() and any(each.id == request.id for each in self.replies), "a reply", LONG_S)
        return next(each for each in self.replies if each.id == request.id)

    def close(self) -> None:
        self.socket.close()
        self.context.term()


def test_the_same_request_is_done_once_and_answered_alike(start: Callable[..., Edge], tmp_path: Path) -> None:
    raw = Raw(tmp_path)
    try:
        start(with_recipes=False)
        assert raw.answer(raw.request("a", "stop")).outcome == "ok"
        assert raw.answer(raw.request("b", "start")).outcome == "ok"
        again = raw.answer(raw.request("a", "stop"))  # arrives late, after it was taken back
        assert again.outcome == "ok"
        assert raw.answer(raw.request("c", "status")).status.inspecting is True  # type: ignore[union-attr]
        refused = raw.answer(raw.request("d", "recipe", number=9))
        assert raw.answer(raw.request("d", "recipe", number=9)).reason == refused.reason
    finally:
        raw.close()


def test_what_is_late_foreign_or_garbage_is_not_done(start: Callable[..., Edge], tmp_path: Path) -> None:
    raw = Raw(tmp_path)
    try:
        start(with_recipes=False)
        late = raw.answer(raw.request("a", "stop", deadline_after_hello_ms=0.0))
        assert (late.outcome, late.reason) == ("refused", "it arrived after its deadline")
        foreign = raw.answer(raw.request("b", "stop", run_id="an earlier run"))
        assert "started anew" in (foreign.reason or "")
        raw.request("c", "status")
        for garbage in (b"", b"{}", b"\xff" * 100):
            raw.send(garbage)
        status = raw.answer(raw.request("d", "status")).status
        assert status is not None
        assert status.inspecting is True
    finally:
        raw.close()


def test_what_is_asked_of_an_edge_that_is_not_there_is_done_once_when_it_comes(
    host: Host, start: Callable[..., Edge], caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    older = host.server.start_inspecting("edge", LONG_S)
    asked = [host.server.stop_inspecting("edge", LONG_S, "stop once") for _ in range(2)]
    selected = host.server.select_recipe("edge", 2, LONG_S)
    assert "in its place" in (older.result(30).reason or "")
    assert older.result().outcome == "refused"
    assert not any(each.done() for each in (*asked, selected))
    edge = start()
    assert [each.result(LONG_S).outcome for each in (*asked, selected)] == ["ok"] * 3
    assert host.server.stop_inspecting("edge", LONG_S, "stop once").result(LONG_S).outcome == "ok"
    assert [record.getMessage() for record in caplog.records].count("the host asks: stop ") == 1
    edge.wait_results(2)
    assert read_choice(edge.settings) == Choice(number=2, inspecting=False)


def test_an_edge_that_never_comes_and_one_that_is_silent_are_said_in_time(host: Host, tmp_path: Path) -> None:
    nobody = host.server.select_recipe("nobody", 2, 0.2).result(30)
    assert nobody.outcome == "refused"
    assert "not connected" in (nobody.reason or "")
    with zmq.Context() as context, context.socket(zmq.DEALER) as mute:
        mute.set(zmq.LINGER, 0)
        mute.connect(f"ipc://{tmp_path}/control")
        status = Status(recipe="r", bundle_id="b", model_sha256="ab" * 32, engine="e")
        mute.send_multipart(encode(Hello(edge_id="mute", run_id="r", t_sent_ns=1, status=status)))
        until(lambda: host.server.known("mute"), "hello")
        assert host.server.edges_of("line-of-mute") == ["mute"]
        asked = host.server.ask_line("line-of-mute", "stop", timeout_s=0.3)
        reply = asked["mute"].result(30)
        assert reply.outcome == "unknown"
        assert "may or may not" in (reply.reason or "")
        assert mute.poll(1000)
