"""The host as one process: the only place that wires hops 7 to 12."""

from __future__ import annotations

import fcntl
import json
import logging
import os
import secrets
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal, TypeVar

import uvicorn
import zmq

from contract.control import Part, Reply
from contract.notify import Notifier
from contract.overseer import Overseer
from plugin import accounts
from plugin.accounts import Accounts
from plugin.alarms import Source
from plugin.backup import UNFINISHED
from plugin.blob_places import open_blobs
from plugin.bucket import Bucket
from plugin.connectors.base import LineCommand, LineOutput, LineState, Plant
from plugin.control import ControlServer
from plugin.database import place_of
from plugin.dispatch import Dispatcher, Sent, make_connector
from plugin.drift_watch import DriftWatch
from plugin.errors import ConfigError, FlawlineError
from plugin.feed import Feed
from plugin.finder import Finder
from plugin.gate import Gate
from plugin.ledger import Ledger, LedgerReader
from plugin.liveness import Liveness
from plugin.looks import Follow
from plugin.metrics import Metrics, Snapshot, free_bytes
from plugin.mirror import Mirror, rows_before
from plugin.partials import Partials
from plugin.receiver import Receiver
from plugin.retention import Retention
from plugin.review.app import Host, create_app
from plugin.review.door import KEEP_ALIVE_S, LEAVING, Door, at_door, raise_file_limit
from plugin.review.holds import Holds
from plugin.review.host import Asking, LineDesk
from plugin.review.signin import SignIn
from plugin.review.slips import Quality
from plugin.review.stream import Streams
from plugin.settings import HostSettings, HttpSettings
from plugin.store import Store
from plugin.tally import Tallier
from plugin.tls import check_pair
from plugin.transit import Arrival
from plugin.writer import Verdicted, Writer

CONTROLLER = "the line controller"
STOP_S = 2.0
STOPPED_S = 60.0
"""Longest time from a stop that was asked for to the end."""

RECIPE_S = 600.0
"""How long an edge may take to load a recipe; building an engine for a graphics card takes minutes."""

ASK_S = 3.0
"""How long an edge may take to begin, to stop or to take a picture."""

Value = TypeVar("Value")
log = logging.getLogger(__name__)


class HostFailedError(FlawlineError):
    """A part of the host ended by itself; whoever supervises the process starts it anew."""

    exit_code = 1


class Service:
    """Everything of one host; ``start``, ``wait``, ``stop``. One at a time for a state folder."""

    def __init__(
        self, settings: HostSettings, base_dir: Path, sign_in: SignIn | None = None, pages: bool = True
    ) -> None:
        """``pages``: False leaves pages and HTTP API out, for a program that embeds the rest."""
        self.settings = settings
        self.dropped: Callable[[], dict[str, int]] = dict
        self._sign_in = sign_in
        self._base_dir = base_dir
        self._ended = threading.Event()
        self._stopping = False
        self._failure: BaseException | None = None
        self._threads: dict[str, threading.Thread] = {}
        self._lock = _lock_folder(settings.state_dir)
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        try:
            self._build(pages)
        except BaseException:
            if self._sign_in is not None:
                self._sign_in.accounts.close()
            self._context.destroy(linger=0)
            os.close(self._lock)
            raise

    def _build(self, pages: bool) -> None:
        settings = self.settings
        state_dir = settings.state_dir
        if pages:
            self._let_in(settings.http)
        self._door = _listen(settings.http) if pages else None
        connectors = [(each, make_connector(each.url, self._base_dir)) for each in settings.connectors]
        where = place_of(state_dir, settings.store.url, settings.store.password_file)
        self._blobs = open_blobs(settings)
        store = Store(state_dir, settings.review.blind_share, where, self._blobs)
        try:
            self.ledger = Ledger(state_dir / "ledger.sqlite", settings.line_of, settings.lines, rows_before(store))
        except BaseException:
            store.close()
            raise
        self._outcomes: Counter[tuple[str, str]] = Counter()
        self.dispatcher = Dispatcher(connectors, self._record)
        self.liveness = Liveness(settings.lines, settings.line_of)
        self.ledger.connect(self.dispatcher.publish, self.dispatcher.serves, self.liveness.edges_of)
        self._writer = Writer(store, self.ledger.has, settings.events.backlog_mb << 20)
        self._mirror = Mirror(LedgerReader(self.ledger.path), self._writer.call, self.ledger.journaled)
        self._gate = None if settings.keys is None else Gate(self._context, settings.keys)
        if self._gate is not None:
            self._gate.when_revoked(self.liveness.forget)
        self._receiver = Receiver(
            self._context, settings.events.bind, self._tell, self._writer.offer, self._gate, Partials(state_dir)
        )
        self.control: ControlServer | None = None
        if settings.control is not None:
            line_of = partial(_line_id, settings)
            self.control = ControlServer(self._context, settings.control.bind, self._gate, line_of)
        self._terminal_token = secrets.token_hex(32)
        line_id = partial(_line_id, settings)
        self.reader = Finder(where)
        quality = Quality(settings.quality, settings.lines, self.reader.engine, self._sign_in is not None)
        store.decoy_share = quality.decoy_share
        store.follow = Follow(quality.second_share, quality.known_share)
        self._tallier = Tallier(self._writer.call)
        self._drift = DriftWatch(self.reader.engine, LedgerReader(self.ledger.path), line_id, self._writer.call)
        self._retention = Retention(settings.retention, state_dir, self.reader, store.blobs, self._writer.call)
        self.feed = Feed(self.reader, line_id, self._troubles)
        self._streams = Streams(self.feed)
        self._numbered = LedgerReader(self.ledger.path)
        self._parts: Counter[tuple[str, str]] = Counter()
        self._counted = self._numbered.newest()
        self.app = create_app(
            Host(
                reader=self.reader,
                ledger=self._numbered,
                blobs=self._blobs,
                write=self._write_job,
                health=self.health,
                line_of=line_id,
                feed=self.feed,
                streams=self._streams,
                metrics=Metrics(self.figures).text,
                sign_in=self._sign_in,
                names=settings.http.reached_as,
                asking=self._asking(),
                blind_share=settings.review.blind_share,
                classes=tuple(settings.review.classes),
                holds=Holds(settings.review.hold_s),
                quality=quality,
                line_desk=LineDesk(
                    tuple(line.id for line in settings.lines), self._trouble_of, self._state_of, self.ledger.ask
                ),
                drift=self._drift,
            )
        )
        self._http = None if self._door is None else self._make_server(self._door)

    def _make_server(self, door: Door) -> uvicorn.Server:
        settings = self.settings
        config = uvicorn.Config(
            self.app,
            http=at_door(door),
            loop="asyncio",  # another loop would not ask the door
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=1,
            ws="none",
            lifespan="off",
            server_header=False,
            # Connections are the door's business; requests whose browser has gone can be more.
            limit_concurrency=2 * (door.most + LEAVING),
            backlog=512,
            timeout_keep_alive=KEEP_ALIVE_S,
            ssl_certfile=settings.http.certificate,
            ssl_keyfile=settings.http.key,
            # Without a proxy that is told of, an address that a browser claims to have is not believed.
            proxy_headers=settings.http.tls == "proxy",
            forwarded_allow_ips=settings.http.proxies,
        )
        return uvicorn.Server(config)

    def _asking(self) -> Asking | None:
        if self.control is None:
            return None
        return Asking(self.control, self._known_edges, partial(_line_id, self.settings), self._terminal_token)

    def _known_edges(self) -> list[str]:
        """The edges that a line names, that have a key, or that have connected."""
        named = {edge_id for line in self.settings.lines for edge_id in line.edges}
        authorised = set() if self._gate is None else set(self._gate.edges())
        seen = set() if self.control is None else set(self.control.seen())
        return sorted(named | authorised | seen)

    def _let_in(self, http: HttpSettings) -> None:
        """Certificate and accounts, checked before anything can be reached."""
        if http.certificate is not None and http.key is not None:
            check_pair(http.certificate, http.key)
        if not http.needs_sign_in:
            return
        self._sign_in = self._sign_in or SignIn(Accounts(self.settings.state_dir / accounts.DATABASE), http)
        if not self._sign_in.accounts.has_administrator():
            raise ConfigError(
                f"the review pages on {http.host} need sign-in, and there is no administrator yet; add the first one: "
                "flawline host user add CONFIG NAME --role administrator"
            )

    @property
    def endpoint(self) -> str:
        """Where edges connect, the wildcard port filled in."""
        return self._receiver.endpoint

    @property
    def url(self) -> str:
        """Where the pages are; empty where there are none."""
        if self._door is None:
            return ""
        host, port = self._door.getsockname()[:2]
        if host in ("0.0.0.0", "::"):  # noqa: S104 - an address to bind, none to go to
            host = next(iter(self.settings.http.names), "127.0.0.1" if host == "0.0.0.0" else "::1")  # noqa: S104
        scheme = "http" if self.settings.http.certificate is None else "https"
        return f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}/"

    def health(self) -> dict[str, Any]:
        """What works, and the receiver's counts since the start."""
        gate_trouble = None if self._gate is None else self._gate.trouble
        bucket = self._blobs.trouble if isinstance(self._blobs, Bucket) else None
        hosts = (self._writer.trouble, self.ledger.trouble, self._mirror.trouble, self._retention.trouble)
        trouble = [text for text in (*hosts, gate_trouble, bucket) if text]
        counts = {**vars(self._receiver.counts), "conflicts": self._writer.conflicts, "ledger_lost": self.ledger.lost}
        counts["ledger_skipped"] = self.ledger.skipped
        lines = {line.id: self._trouble_of(line.id) for line in self.settings.lines}
        connectors = self.dispatcher.status()
        counts["unknown_key"] = 0 if self._gate is None else self._gate.counts.unknown_key
        health = {"ok": not trouble, "trouble": trouble, "receiver": counts, "lines": lines, "connectors": connectors}
        health["alarms"] = [text for line in lines for text in self._alarms_of(line)]
        health["pages"] = {} if self._door is None else self._door.status()
        health["retention"] = {"removed": self._retention.removed}
        if self.control is not None:
            health["control"] = self.control.health()
        return health if self._sign_in is None else {**health, "sign_in": self._sign_in.counts()}

    def figures(self) -> Snapshot:
        """What is measured for Prometheus, at this moment."""
        health, now_ns = self.health(), time.time_ns()
        self._counted, more = self._numbered.numbered(self._counted)
        self._parts.update(more)
        waiting_events, waiting_bytes = self._writer.waiting()
        oldest_ns = self.reader.oldest_waiting_ns()
        return {
            "ok": health["ok"],
            "lines": {line: trouble is None for line, trouble in health["lines"].items()},
            "alarms": len(self.feed.alarms.standing()),
            "receiver": health["receiver"],
            "waiting_events": waiting_events,
            "waiting_bytes": waiting_bytes,
            "parts": self._parts,
            "open": self._numbered.open_parts(),
            "connector_waiting": {each["url"]: each["waiting"] for each in health["connectors"]},
            "outputs": self._outcomes,
            "review_waiting": self.reader.waiting(),
            "review_oldest_s": None if oldest_ns is None else max(0.0, (now_ns - oldest_ns) / 1e9),
            "reviews": self.reader.decisions(),
            "edges": {name: (now_ns - heard_ns) / 1e9 for name, heard_ns in self.reader.last_heard().items()},
            "pages": health["pages"],
            "streams": self._streams.status(),
            "sign_in": health.get("sign_in", {}),
            "dropped": self.dropped(),
            "free_bytes": free_bytes(str(self.settings.state_dir)),
        }

    def _troubles(self) -> dict[Source, str | None]:
        """What is an alarm where it lasts."""
        found: dict[Source, str | None] = {
            ("store", ""): self._writer.trouble,
            ("ledger", ""): self.ledger.trouble,
            ("journal", ""): self._mirror.trouble,
            ("keys", ""): None if self._gate is None else self._gate.trouble,
        }
        for line in self.settings.lines:
            found["line", line.id] = self._trouble_of(line.id)
            found["stop", line.id] = self.ledger.state_of(line.id).stop_text
        for status in self.dispatcher.status():
            trouble = status.get("trouble")
            found["connector", str(status["url"])] = None if trouble is None else str(trouble)
        for (edge, camera), text in self._drift.texts().items():
            found["drift", f"{edge}/{camera}"] = text
        return found

    def _record(self, sent: Sent) -> None:
        self._outcomes[sent.connector, sent.outcome] += 1
        self.ledger.record(sent)

    def _write_job(self, job: Callable[[Store], Value], timeout_s: float = 5.0) -> Value:
        try:
            return self._writer.call(job, timeout_s)
        finally:
            self.feed.wake()

    def _answer(self, answers: list[Verdicted]) -> None:
        self._receiver.answer(answers)
        self.feed.wake()

    def _tell(self, arrivals: Sequence[Arrival]) -> list[int | None]:
        self.liveness.note(arrivals)
        return self.ledger.tell(arrivals)

    def _trouble_of(self, line: str) -> str | None:
        """Why the line is not inspected, or its results not numbered, at this moment."""
        if self.ledger.flooded(line):
            return "the line controller counts more parts than can pass"
        return self.ledger.trouble or self.liveness.trouble_of(line) or self.ledger.state_of(line).held

    def _alarms_of(self, line: str) -> list[str]:
        """What somebody has to see to on a line that is inspected."""
        state = self._state_of(line)
        stop = None if state.stop is None else f"is to stop: {state.stop_text}"
        held = state.held and f"is not released: {state.held}"
        drift = state.drift and f"is to be looked at: {state.drift}"
        return [f"Line {line} {text}" for text in (stop, held, drift) if text]

    def _state_of(self, line: str) -> LineState:
        return self.ledger.state_of(line)._replace(drift=self._drift.of_line(line))

    def _plant(self, url: str, named: tuple[str, ...]) -> Plant:
        """What the connector of ``url`` that serves these lines (none named: all) may ask and tell."""
        lines = {line.id: line for line in self.settings.lines if not named or line.id in named}
        return Plant(
            lines=tuple(lines),
            trouble=self._trouble_of,
            last_number=self.ledger.last_number,
            deadline_ms=lambda line: lines[line].deadline_ms,
            counted=lambda line, counters, t_ns: self.ledger.counted(lines[line], counters, t_ns),
            recipe=self.liveness.recipe_of,
            select_recipe=self._select_recipe,
            fail=partial(self._fail, url),
            ask=self._ask_line,
            state=self._state_of,
            gate=lambda line, number, outcome: self.ledger.gate(line, number, outcome, CONTROLLER),
            command=self._command,
        )

    def _command(self, line: str, what: LineCommand) -> None:
        """A line controller asks for it."""

        def hear(done: Future[dict[str, Any]]) -> None:
            if (error := done.exception()) is not None:
                log.warning("line %s: its controller asks to %s: %s", line, what.replace("_", " "), error)

        self.ledger.ask(line, what, CONTROLLER).add_done_callback(hear)

    def _select_recipe(self, line: str, number: int, done: Callable[[str | None], None]) -> None:
        """Ask every edge of the line; ``done`` hears None once all of them judge by it, or the first refusal."""
        edges = self.liveness.edges_of(line)
        if self.control is None or not edges:
            done("the host has no [control]" if self.control is None else "no edge has been heard of")
            return
        heard: list[str | None] = []
        lock = threading.Lock()

        def hear(edge: str, future: Future[Reply]) -> None:
            reply = future.result()
            with lock:  # one that was answered at once is heard on this thread, others on the control socket's
                heard.append(None if reply.outcome == "ok" else f"{edge}: {reply.reason or reply.outcome}")
                last = len(heard) == len(edges)
            if last:
                done(next((refusal for refusal in heard if refusal is not None), None))

        for edge in edges:
            self.control.select_recipe(edge, number, RECIPE_S).add_done_callback(partial(hear, edge))

    def _ask_line(
        self,
        line: str,
        what: Literal["start", "stop", "trigger"],
        serial: str | None,
        done: Callable[[str | None, tuple[str, ...]], None],
    ) -> None:
        """Ask every edge of the line; ``done`` hears once all have answered: the first refusal, what was triggered."""
        edges = self.liveness.edges_of(line)
        if self.control is None or not edges:
            done("the host has no [control]" if self.control is None else "no edge has been heard of", ())
            return
        heard: list[Reply] = []
        lock = threading.Lock()

        def hear(future: Future[Reply]) -> None:
            with lock:
                heard.append(future.result())
                if len(heard) < len(edges):
                    return
            refusals = [f"{each.edge_id}: {each.reason or each.outcome}" for each in heard if each.outcome != "ok"]
            parts = tuple(f"{each.edge_id}/{part}" for each in heard for part in each.part_ids)
            done(next(iter(refusals), None), parts)

        part = Part(serial=serial) if what == "trigger" else None
        for edge in edges:
            self.control.ask(edge, what, None, ASK_S, None, part).add_done_callback(hear)

    def _fail(self, connector: str, output: LineOutput, detail: str) -> None:
        self.ledger.record(Sent(output.line, output.number, connector, "refused", detail, time.time_ns()))

    def watch(self, overseer: Overseer) -> None:
        """Have every loop that a line rests on watched, before ``start``; the pages are none of them."""
        self._receiver.pulse = overseer.watch("receiver")
        self.ledger.pulse = overseer.watch("ledger")
        self._writer.pulse = overseer.watch("writer")
        self.dispatcher.watch(overseer)
        if self._gate is not None:
            self._gate.pulse = overseer.watch("gate")
        if self.control is not None:
            self.control.pulse = overseer.watch("control")
        overseer.status = self._status

    def _status(self) -> str:
        """A line for whoever asks the service manager."""
        troubles = {line.id: self._trouble_of(line.id) for line in self.settings.lines}
        return "; ".join(f"{line}: {trouble or 'inspected'}" for line, trouble in troubles.items())[:500]

    def start(self) -> None:
        """Start every thread, and write where the host can be reached into the state folder."""
        try:
            self.dispatcher.start(self._plant)
        except BaseException:
            self._let_go()
            raise
        if self._gate is not None:
            self._spawn("gate", self._gate.run)
        self._spawn("ledger", self.ledger.run)
        self._spawn("writer", lambda: self._writer.run(self._answer))
        self._spawn("tally", self._tallier.run)
        self._spawn("drift", self._drift.run)
        self._spawn("mirror", self._mirror.run)
        self._spawn("alarms", self.feed.alarms.run)
        if self._http is not None and self._door is not None:
            self._spawn("http", partial(self._http.run, [self._door]))
        self._receiver.begin()
        self._spawn("receiver", self._receiver.run)
        self._spawn("retention", self._retention.run)
        if isinstance(self._blobs, Bucket):
            self._spawn("pictures", self._blobs.run)
        if self.control is not None:
            self._spawn("control", self.control.run)
            _write(self.settings.state_dir / "control", self.control.endpoint + "\n")
            _write(self.settings.state_dir / "terminal.token", self._terminal_token + "\n", 0o600)
        _write(self.settings.state_dir / "endpoint", self.endpoint + "\n")
        if self._door is not None:
            address = {"url": self.url, "host": self.settings.http.host, "port": int(self._door.getsockname()[1])}
            _write(self.settings.state_dir / "http.json", json.dumps({**address, "pid": os.getpid()}) + "\n")

    def _let_go(self) -> None:
        """Of folder and sockets, where nothing has begun."""
        self._context.destroy(linger=0)
        self.reader.close()
        if self._sign_in is not None:
            self._sign_in.accounts.close()
        if self._door is not None:
            self._door.close()
        os.close(self._lock)

    def wait(self) -> None:
        """Until a signal or ``finish`` asks to stop, or a thread ends by itself."""
        while not self._ended.wait(1.0):
            pass

    @property
    def failure(self) -> BaseException | None:
        """Why a thread ended by itself; None while all run."""
        return self._failure

    def finish(self, *_signal: int | FrameType | None) -> None:
        """Ask ``wait`` to return; safe in a signal handler."""
        self._ended.set()

    def stop(self) -> None:
        """Take no more, commit and answer what was taken, close; raises HostFailedError where a thread had died."""
        self._stopping = True
        self._streams.close()
        if self._http is not None:
            self._http.should_exit = True
        self.feed.alarms.stop()
        self._drift.stop()
        self._receiver.stop()
        self._join("receiver")
        if not self.ledger.drain(STOP_S / 2):
            log.error("the ledger did not finish; what it had not committed will be sent again")
        self.dispatcher.stop(STOP_S / 4)
        self.ledger.stop()  # after the connectors: it notes what became of their last outputs
        self._join("ledger")
        self._tallier.stop()
        self._join("tally")
        self._retention.stop()
        if isinstance(self._blobs, Bucket):
            self._blobs.stop()
            self._join("pictures")
        self._mirror.stop()
        self._join("mirror")
        self._writer.stop()
        self._join("writer")
        self._join("retention")
        if self._http is not None:
            self._join("http")
        self._join("alarms")
        self._join("drift")
        self._stop_control()
        self._stop_gate()
        if not any(self._threads[name].is_alive() for name in ("writer", "receiver")):
            self._receiver.flush()
            self._context.term()
        self.reader.close()
        if self._sign_in is not None:
            self._sign_in.accounts.close()
        if self._door is not None:
            self._door.close()
        os.close(self._lock)
        if self._failure is not None:
            raise HostFailedError(f"the host stopped: {self._failure!r}") from self._failure

    def _stop_control(self) -> None:
        if self.control is not None:
            self.control.stop()
            self._join("control")
            if not self._threads["control"].is_alive():
                self.control.close()

    def _stop_gate(self) -> None:
        if self._gate is not None:
            self._gate.stop()
            self._join("gate")
            self._gate.close()

    def _spawn(self, name: str, work: Callable[[], None]) -> None:
        def run() -> None:
            try:
                work()
            except BaseException as error:
                self._failure = error
                log.exception("%s failed", name)
            if not self._stopping:
                self._failure = self._failure or RuntimeError(f"{name} ended by itself")
                self._ended.set()  # half a host would look alive

        thread = threading.Thread(target=run, name=name, daemon=True)
        self._threads[name] = thread
        thread.start()

    def _join(self, name: str) -> None:
        self._threads[name].join(STOP_S)
        if self._threads[name].is_alive():
            log.error("%s did not stop within %g s; what it had not committed will be sent again", name, STOP_S)


def run(settings: HostSettings, base_dir: Path, ready: Callable[[Service], None]) -> None:
    """Run a host in this process until SIGTERM or SIGINT; ``ready`` is called once it can be reached."""
    raise_file_limit()
    with Overseer(settings.hang_s, settings.start_s, Notifier.from_environment()) as overseer:
        service = Service(settings, base_dir)
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, service.finish)
        service.watch(overseer)
        service.start()
        overseer.complete()
        try:
            ready(service)
            service.wait()
        finally:
            overseer.stopping(STOPPED_S)
            service.stop()


def _lock_folder(state_dir: Path) -> int:
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        handle = os.open(state_dir / "host.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise ConfigError(f"{state_dir}: cannot be written ({error.strerror}); change `state_dir`") from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        raise ConfigError(f"{state_dir}: another host is using this folder; stop it or change `state_dir`") from error
    if (state_dir / UNFINISHED).exists():
        os.close(handle)
        raise ConfigError(f"{state_dir}: a restore was broken off here; empty the folder and restore again")
    for name in ("endpoint", "control", "terminal.token", "http.json"):
        with suppress(FileNotFoundError):
            (state_dir / name).unlink()  # of an earlier run: nobody may take it for this one's
    return handle


def _listen(http: HttpSettings) -> Door:
    try:
        family = socket.getaddrinfo(http.host, http.port, type=socket.SOCK_STREAM)[0][0]
        door = Door(family, http)
        door.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        door.bind((http.host, http.port))
        door.listen(128)
    except OSError as error:
        raise ConfigError(
            f"the review pages cannot be served on {http.host} port {http.port}: {error.strerror or error}; "
            "change `http.port`, or set it to 0 for any free one"
        ) from error
    return door


def _line_id(settings: HostSettings, edge_id: str) -> str:
    return settings.line_of(edge_id).id


def _write(path: Path, text: str, mode: int = 0o644) -> None:
    draft = path.with_name(path.name + ".draft")
    draft.unlink(missing_ok=True)
    draft.touch(mode=mode, exist_ok=False)
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)
