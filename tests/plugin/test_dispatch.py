"""Connectors: the table, the stand-in controller, and that none delays another."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import pytest

from contract.errors import ConfigError
from contract.event import LineCode
from plugin.connectors.base import Connector, LineOutput, Plant, RecipeState
from plugin.connectors.loop import Loop
from plugin.dispatch import CONNECTORS, Dispatcher, Sent, make_connector
from plugin.errors import ConnectorError
from plugin.settings import ConnectorSettings
from tests.plugin.opcua_client import make_folder
from tests.plugin.synthetic import until


def output(number: int, due_ns: int = 1 << 62, line: str = "line-1") -> LineOutput:
    return LineOutput(line, number, "edge-1", f"p{number}", "cam-1", number, LineCode.PASS, None, due_ns)


class Stuck(Connector):
    def __init__(self, url: str, base_dir: Path) -> None:
        self.released = threading.Event()

    def publish(self, output: LineOutput) -> None:
        self.released.wait(10)


class Dead(Connector):
    def __init__(self, url: str, base_dir: Path) -> None:
        """Nothing to read."""

    def publish(self, output: LineOutput) -> None:
        raise ConnectorError("nobody answers")


URLS = {
    "loop": "loop://",
    "modbus": "modbus://127.0.0.1:0",
    "modbus-io": "modbus-io://127.0.0.1:502?delay_ms=1000",
    "mqtt": "mqtt://127.0.0.1:1/plant-7/press-3",
    "mqtts": "mqtts://127.0.0.1:1/plant-7/press-3",
    "opcua": "opcua://127.0.0.1:0?folder=opcua",
    "webhook+http": "webhook+http://127.0.0.1:1/flawline?secret=webhook.secret",
    "webhook+https": "webhook+https://127.0.0.1:1/flawline?secret=webhook.secret",
}


def plant(url: str, lines: tuple[str, ...]) -> Plant:
    return Plant(
        lines=lines or ("line-1",),
        trouble=lambda line: None,
        last_number=lambda line: 0,
        deadline_ms=lambda line: 1000,
        counted=lambda line, counters, t_ns: None,
        recipe=lambda line: RecipeState(0, 0),
        select_recipe=lambda line, number, done: None,
        fail=lambda output, detail: None,
    )


@pytest.mark.parametrize("scheme", sorted(CONNECTORS))
def test_every_connector_of_the_table_is_one(scheme: str, tmp_path: Path) -> None:
    (tmp_path / "webhook.secret").touch(mode=0o600)
    (tmp_path / "webhook.secret").write_text("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw\n")
    if scheme == "opcua":
        make_folder(tmp_path / "opcua")
    connector = make_connector(URLS[scheme], tmp_path)
    connector.start(plant(URLS[scheme], ()))
    assert json.dumps(connector.status())
    connector.close()
    assert isinstance(connector, Connector)
    assert type(connector).publish.__qualname__ != "Connector.publish"


def test_an_unknown_scheme_names_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no connector 'modbsu'; there are: .*loop"):
        make_connector("modbsu://plc", tmp_path)


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("loop://name/file", "three slashes"),
        ("loop://?pth=a", "unknown option 'pth'"),
        ("loop://?keep=many", "keep must be a number"),
        ("loop:///no/such/folder/x.jsonl", "cannot be written"),
    ],
)
def test_loop_explains_mistakes(url: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        make_connector(url, tmp_path)


def test_loop_keeps_the_last_and_writes_all(tmp_path: Path) -> None:
    loop = make_connector("loop://?path=out.jsonl&keep=2", tmp_path)
    assert isinstance(loop, Loop)
    for number in (1, 2, 3):
        loop.publish(output(number))
        written = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
        assert written[-1]["number"] == number  # flushed with each line
    loop.close()
    assert [kept.number for kept in loop.outputs] == [2, 3]
    assert {"number", "part_id", "code", "t"} <= set(written[0])


def test_a_stuck_or_dead_connector_delays_no_other(tmp_path: Path) -> None:
    sent: list[Sent] = []
    stuck, loop = Stuck("", tmp_path), make_connector("loop://", tmp_path)
    assert isinstance(loop, Loop)
    dispatcher = Dispatcher(
        [
            (ConnectorSettings(url="stuck://", queue=2), stuck),
            (ConnectorSettings(url="dead://"), Dead("", tmp_path)),
            (ConnectorSettings(url="loop://"), loop),
        ],
        sent.append,
    )
    dispatcher.start(plant)
    dispatcher.publish([output(1)])
    until(lambda: dispatcher.workers[0]._waiting.empty())  # the stuck one holds the first
    start = time.monotonic()
    dispatcher.publish([output(number) for number in range(2, 11)])
    assert time.monotonic() - start < 5.0  # the stuck one holds an output for 10 s
    until(lambda: len(loop.outputs) == 10)
    outcomes = [(each.connector, each.outcome) for each in sent]
    until(lambda: sum(each.connector == "dead://" for each in sent) == 10)
    assert outcomes.count(("stuck://", "refused")) == 7  # its queue of two is full
    assert {each.detail for each in sent if each.connector == "dead://"} == {"nobody answers"}
    stuck.released.set()
    dispatcher.stop(5.0)
    assert sum(each.outcome == "published" and each.connector == "stuck://" for each in sent) == 3


def test_what_waited_past_its_deadline_is_not_sent(tmp_path: Path) -> None:
    sent: list[Sent] = []
    loop = make_connector("loop://", tmp_path)
    assert isinstance(loop, Loop)
    dispatcher = Dispatcher([(ConnectorSettings(url="loop://"), loop)], sent.append)
    dispatcher.publish([output(1, due_ns=time.monotonic_ns() - 1), output(2, time.monotonic_ns() + 10**12)])
    dispatcher.start(plant)
    until(lambda: len(sent) == 2)
    dispatcher.stop(5.0)
    assert [each.outcome for each in sent] == ["late", "published"]
    assert [kept.number for kept in loop.outputs] == [2]


def test_a_connector_hears_its_lines_only(tmp_path: Path) -> None:
    sent: list[Sent] = []
    loop = make_connector("loop://", tmp_path)
    assert isinstance(loop, Loop)
    dispatcher = Dispatcher([(ConnectorSettings(url="loop://", lines=["line-2"]), loop)], sent.append)
    dispatcher.start(plant)
    dispatcher.publish([output(1), output(1, line="line-2")])
    dispatcher.stop(5.0)
    assert [kept.line for kept in loop.outputs] == ["line-2"]
    assert (dispatcher.serves("line-1"), dispatcher.serves("line-2")) == (False, True)
