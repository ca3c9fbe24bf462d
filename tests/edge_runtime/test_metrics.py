"""Metrics over HTTP: what Prometheus reads, who may, and readers that would hold it up."""

from __future__ import annotations

import http.client
import re
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from contract.config import validate
from contract.errors import ConfigError, KeyFileError
from edge_runtime import metrics_http
from edge_runtime.metrics import HISTOGRAM, METRICS, PREFIX, Page
from edge_runtime.metrics_http import READERS, MetricsServer
from edge_runtime.observer import Observer
from edge_runtime.settings import EdgeSettings, MetricsSettings, load_settings
from tests.edge_runtime.test_observer import gap, heartbeat, result
from tests.processes import free_port, until

DOCS = Path(__file__).parents[2] / "docs" / "operations.md"
Start = Callable[..., MetricsServer]


@pytest.fixture
def observer() -> Observer:
    seen = Observer()
    seen.heartbeat(heartbeat(10))
    seen.recorded([result(), gap("top")], [1, 2])
    seen.sent(1)
    seen.acknowledged()
    return seen


@pytest.fixture
def start(observer: Observer) -> Iterator[Start]:
    made: list[MetricsServer] = []

    def begin(**settings: Any) -> MetricsServer:
        listening = MetricsSettings(**{"listen": "127.0.0.1:0"} | settings)
        made.append(MetricsServer(listening, Page(observer).render))
        made[-1].start()
        return made[-1]

    yield begin
    for server in made:
        server.stop()


def ask(server: MetricsServer, path: str = "/metrics", method: str = "GET", **headers: str) -> tuple[int, str]:
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=20)
    connection.request(method, path, headers={name.replace("_", "-"): value for name, value in headers.items()})
    answer = connection.getresponse()
    return answer.status, answer.read().decode()


def test_prometheus_reads_all_of_it(start: Start) -> None:
    status, text = ask(start())
    families = {family.name: family for family in text_string_to_metric_families(text)}
    assert status == 200
    assert {PREFIX + name.removesuffix("_total") for name in METRICS} <= set(families)
    stages = families[PREFIX + HISTOGRAM]
    assert stages.type == "histogram"
    counted = {sample.labels["stage"]: sample.value for sample in stages.samples if sample.name.endswith("_count")}
    assert set(counted) >= {"trigger", "queue", "preprocess", "inference", "decision", "record", "send", "total"}
    values = {(s.name, *s.labels.values()): s.value for family in families.values() for s in family.samples}
    assert values["flawline_edge_results_total", "top", "PASS"] == 1
    assert values["flawline_edge_results_total", "top", "REJECT"] == 0, "there from the beginning"
    assert values["flawline_edge_state", "running"] == 1 and values["flawline_edge_state", "failed"] == 0
    assert "flawline_edge_clock_synchronised" not in {name for name, *_ in values}, "not known here"
    assert "process_resident_memory_bytes" in families


def test_openmetrics_where_it_is_asked_for(start: Start) -> None:
    status, text = ask(start(), accept="application/openmetrics-text; version=1.0.0")
    assert status == 200 and text.endswith("# EOF\n")


def test_every_metric_stands_in_the_table_of_the_docs_and_no_other() -> None:
    described = set(re.findall(r"^\| `(flawline_edge_\w+)", DOCS.read_text(), re.M))
    assert described == {PREFIX + name for name in (*METRICS, HISTOGRAM)}


def test_labels_in_the_docs_are_those_of_the_metrics() -> None:
    rows = re.findall(r"^\| `flawline_edge_(\w+)` \| [a-z]+ \| ([^|]*) \|", DOCS.read_text(), re.M)
    found = {name: tuple(re.findall(r"`(\w+)`", labels)) for name, labels in rows}
    assert found == {name: entry.labels for name, entry in METRICS.items()} | {HISTOGRAM: ("camera", "stage")}


def test_before_the_first_heartbeat_there_is_nothing_wrong(observer: Observer) -> None:
    _, body = Page(Observer()).render("")
    assert b"flawline_edge_spool_rows gauge" in body and b"\nflawline_edge_spool_rows " not in body


@pytest.mark.parametrize(
    ("request_text", "status"),
    [
        (b"GET /metrics HTTP/1.1\r\n\r\n", 200),
        (b"GET /metrics?x=1 HTTP/1.0\r\n\r\n", 200),
        (b"GET / HTTP/1.1\r\n\r\n", 404),
        (b"POST /metrics HTTP/1.1\r\nContent-Length: 0\r\n\r\n", 405),
        (b"\r\n\r\n", 400),
        (b"\xff\xfe\x00 \r\n\r\n", 400),
        (b"GET /metrics HTTP/1.1\r\nX: " + b"a" * 9000, 431),
    ],
)
def test_requests_and_what_they_get(start: Start, request_text: bytes, status: int) -> None:
    with socket.create_connection(("127.0.0.1", start().port), timeout=20) as reader:
        reader.sendall(request_text)
        assert reader.recv(100).startswith(f"HTTP/1.1 {status} ".encode())


def test_head_has_the_length_and_no_body(start: Start) -> None:
    assert ask(start(), method="HEAD") == (200, "")


def token_file(folder: Path, text: str = "a-token-of-some-length") -> Path:
    path = folder / "metrics.token"
    path.write_text(text + "\n")
    path.chmod(0o600)
    return path


def test_only_who_has_the_token_reads(start: Start, tmp_path: Path) -> None:
    server = start(token=token_file(tmp_path))
    assert ask(server)[0] == 401
    assert ask(server, authorization="Bearer a-token-of-some-lengtH")[0] == 401
    assert ask(server, authorization="Basic a-token-of-some-length")[0] == 401
    assert ask(server, authorization="Bearer a-token-of-some-length")[0] == 200


def test_a_token_that_others_can_read_or_that_is_short_is_refused(start: Start, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no token for the metrics; make one: .*openssl rand"):
        start(token=tmp_path / "none")
    with pytest.raises(ConfigError, match="a token of 5 characters, expected at least 16"):
        start(token=token_file(tmp_path, "short"))
    readable = token_file(tmp_path)
    readable.chmod(0o644)
    with pytest.raises(KeyFileError, match="expected 0600"):
        start(token=readable)


@pytest.mark.parametrize("listen", ["0.0.0.0:9108", "10.0.0.5:9108", "[::]:9108", "box.plant:9108"])
def test_other_machines_need_a_token(listen: str) -> None:
    with pytest.raises(ConfigError, match="readers must show a token"):
        validate(MetricsSettings, {"listen": listen}, "edge.toml")
    assert validate(MetricsSettings, {"listen": listen, "token": "t"}, "edge.toml").address()[1] == 9108


@pytest.mark.parametrize("listen", ["9108", ":9108", "127.0.0.1", "127.0.0.1:99999", "http://127.0.0.1:1"])
def test_what_is_no_address_is_refused(listen: str) -> None:
    with pytest.raises(ConfigError, match="listen"):
        validate(MetricsSettings, {"listen": listen}, "edge.toml")


def test_loopback_of_version_6(start: Start) -> None:
    try:
        server = start(listen="[::1]:0")
    except ConfigError as error:
        pytest.skip(f"no IPv6 on this machine: {error}")
    with socket.create_connection(("::1", server.port), timeout=20) as reader:
        reader.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        assert reader.recv(20).startswith(b"HTTP/1.1 200")


def test_a_taken_port_is_said_with_the_way_out(start: Start) -> None:
    with pytest.raises(ConfigError, match=r"\[metrics\] listen = '127.0.0.1:\d+': cannot listen there .*another one"):
        start(listen=f"127.0.0.1:{start().port}")


def test_who_drips_a_request_is_answered_in_time(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A byte now and then gains no time: the limit is for the whole request."""
    monkeypatch.setattr(metrics_http, "REQUEST_S", 0.5)
    with socket.create_connection(("127.0.0.1", start().port), timeout=20) as reader:
        stop = threading.Event()
        drip = threading.Thread(target=_drip, args=(reader, stop))
        drip.start()
        answer = reader.recv(100)
        stop.set()
        drip.join()
    assert answer.startswith(b"HTTP/1.1 408")


def _drip(reader: socket.socket, stop: threading.Event) -> None:
    while not stop.wait(0.05):
        try:
            reader.sendall(b"G")
        except OSError:
            return


def test_silent_readers_take_a_bounded_number_of_seats_and_give_them_back(
    start: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_http, "REQUEST_S", 1.0)
    server = start()
    before = threading.active_count()
    silent = [socket.create_connection(("127.0.0.1", server.port), timeout=20) for _ in range(READERS)]
    until(lambda: server._seats._value == 0, "every seat is taken", 20)  # type: ignore[attr-defined]
    assert threading.active_count() <= before + READERS + 2
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as late:
        assert late.recv(100).startswith(b"HTTP/1.1 503")
    until(lambda: ask(server)[0] == 200, "the silent ones were sent away", 20)
    for each in silent:
        each.close()


def test_a_reader_that_does_not_read_is_let_go(
    start: Start, observer: Observer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_http, "ANSWER_S", 0.5)
    server = start()
    server._render = lambda accept: ("text/plain", b"x" * 64_000_000)
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as reader:
        reader.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")
        until(lambda: server._seats._value == READERS - 1, "it is being answered", 20)  # type: ignore[attr-defined]
        until(lambda: server._seats._value == READERS, "its seat is free again", 20)  # type: ignore[attr-defined]


def test_what_cannot_be_made_is_an_answer_too(start: Start) -> None:
    server = start()
    server._render = lambda accept: 1 / 0  # type: ignore[assignment, return-value]
    assert ask(server)[0] == 500


def test_a_page_serves_for_a_moment_however_often_it_is_asked_for(observer: Observer) -> None:
    page = Page(observer)
    first = page.render("")[1]
    observer.recorded([result()], [3])
    assert page.render("")[1] is first


def test_a_start_without_its_port_leaves_no_spool(tmp_path: Path) -> None:
    """The next start must not find an unclean stop, and declare a gap for it."""
    from edge_runtime.run import run_edge

    with socket.create_server(("127.0.0.1", free_port())) as taken:
        config = tmp_path / "edge.toml"
        config.write_text(
            f'edge_id = "e"\nbundle = "none"\n[metrics]\nlisten = "127.0.0.1:{taken.getsockname()[1]}"\n'
            '[[cameras]]\nid = "top"\nurl = "synthetic://line?seed=1&parts=1"\n'
        )
        with pytest.raises(ConfigError, match="cannot listen there"):
            run_edge(config, quiet=True)
    assert not list((tmp_path / "state").glob("spool*"))


def test_files_are_beside_the_configuration(tmp_path: Path) -> None:
    config = tmp_path / "edge.toml"
    config.write_text(
        'edge_id = "e"\nbundle = "b"\n[metrics]\nlisten = "127.0.0.1:1"\ntoken = "t"\n[log]\nfile = "log/edge.log"\n'
        '[[cameras]]\nid = "top"\nurl = "synthetic://line"\n'
    )
    settings: EdgeSettings = load_settings(config)
    assert settings.metrics.token == tmp_path / "t" and settings.log.file == tmp_path / "log" / "edge.log"
