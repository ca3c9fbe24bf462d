"""The gate on a remote I/O module (libmodbus' server): open for good parts alone, shut by absence."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from contract.event import LineCode
from plugin.connectors.base import Connector, LineOutput, Plant, RecipeState
from plugin.connectors.modbus_io import ModbusIo
from plugin.dispatch import make_connector
from plugin.errors import ConfigError, ConnectorError
from tests.plugin.controller import Module
from tests.plugin.synthetic import until

HOLD_MS = 400


class Gate:
    """A connector, the module it drives, and what it said afterwards."""

    def __init__(self, folder: Path, options: str) -> None:
        self.module = Module()
        self.module.start()
        self.failed: list[tuple[int, str]] = []
        self.trouble: str | None = None
        made = make_connector(f"modbus-io://127.0.0.1:{self.module.port}?{options}", folder)
        assert isinstance(made, ModbusIo)
        self.connector: Connector = made
        made.start(
            Plant(
                lines=("line-1",),
                trouble=lambda line: self.trouble,
                last_number=lambda line: 0,
                deadline_ms=lambda line: 0,
                counted=lambda line, counters, t_ns: None,
                recipe=lambda line: RecipeState(0, 0),
                select_recipe=lambda line, number, done: None,
                fail=lambda output, detail: self.failed.append((output.number, detail)),
            )
        )
        until(lambda: made.status()["trouble"] is None, what="the module answers")

    def say(self, number: int, code: LineCode, captured_ns: int | None = None) -> float:
        """Publish; returns when (CLOCK_MONOTONIC seconds)."""
        now_ns = time.monotonic_ns()
        self.connector.publish(
            LineOutput("line-1", number, "e", f"p{number}", "c", number, code, None, now_ns + 10**10)._replace(
                captured_ns=captured_ns or now_ns
            )
        )
        return now_ns / 1e9

    def changes(self, coil: int) -> list[tuple[bool, float]]:
        return [(on, at) for number, on, at in self.module.history if number == coil]

    def close(self) -> None:
        self.connector.close()
        self.module.stop()


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Callable[[str], Gate]]:
    made: list[Gate] = []

    def start(options: str) -> Gate:
        made.append(Gate(tmp_path, options))
        return made[-1]

    yield start
    for gate in made:
        gate.close()


@pytest.mark.parametrize("code", [LineCode.REJECT, LineCode.REVIEW, LineCode.NOT_INSPECTED])
def test_only_a_pass_opens_the_gate(make: Callable[[str], Gate], code: LineCode) -> None:
    gate = make(f"coil=3&delay_ms=0&hold_ms={HOLD_MS}")
    gate.say(1, code)
    gate.say(2, code)
    writes = gate.module.writes
    until(lambda: gate.module.writes > writes + 2)
    assert gate.module.history == []


def test_the_gate_is_open_while_the_part_is_there_and_shut_afterwards(make: Callable[[str], Gate]) -> None:
    gate = make(f"coil=2&delay_ms=300&hold_ms={HOLD_MS}")
    said = gate.say(1, LineCode.PASS)
    until(lambda: len(gate.changes(2)) == 2)
    (opened, at), (open_still, end) = gate.changes(2)
    assert (opened, open_still) == (True, False)
    assert at - said >= 0.3
    assert end - said >= 0.3 + HOLD_MS / 1000
    assert gate.failed == []


def test_a_part_that_did_not_pass_shuts_out_its_neighbour(make: Callable[[str], Gate]) -> None:
    gate = make("coil=0&delay_ms=200&hold_ms=2000")
    now_ns = time.monotonic_ns()
    gate.say(1, LineCode.PASS, now_ns)
    until(lambda: gate.module.coils[0])
    said = gate.say(2, LineCode.REJECT, time.monotonic_ns() - 200_000_000)
    until(lambda: not gate.module.coils[0])
    assert gate.changes(0)[-1][1] - said < 1.0, "shut long before the good part's own time was over"


def test_a_part_that_had_passed_the_gate_is_refused(make: Callable[[str], Gate]) -> None:
    gate = make("delay_ms=10&hold_ms=10")
    with pytest.raises(ConnectorError, match="had passed the gate"):
        gate.say(1, LineCode.PASS, time.monotonic_ns() - 10**9)


def test_without_the_module_every_part_is_refused_and_it_is_found_again(make: Callable[[str], Gate]) -> None:
    gate = make(f"coil=1&hold_ms={HOLD_MS}&delay_ms=500")
    gate.say(1, LineCode.PASS)
    gate.module.stop()
    until(lambda: gate.failed, what="the part that met a dead gate is told")
    assert gate.failed[0][0] == 1
    with pytest.raises(ConnectorError, match="the module does not take it"):
        gate.say(2, LineCode.PASS)
    gate.module.start(gate.module.port)
    until(lambda: gate.connector.status()["trouble"] is None)
    gate.say(3, LineCode.PASS)
    until(lambda: gate.module.coils[1])


def test_ready_says_whether_the_line_is_inspected(make: Callable[[str], Gate]) -> None:
    gate = make("coil=0&delay_ms=0&ready=5")
    until(lambda: gate.module.coils[5])
    gate.trouble = "edge-1: silent"
    until(lambda: not gate.module.coils[5])


def test_closing_shuts_the_gate(make: Callable[[str], Gate]) -> None:
    gate = make("coil=0&ready=1&delay_ms=0&hold_ms=60000")
    gate.say(1, LineCode.PASS)
    until(lambda: gate.module.coils[0] and gate.module.coils[1])
    gate.connector.close()
    until(lambda: not gate.module.coils[0] and not gate.module.coils[1])


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("modbus-io://", "expected the module's address"),
        ("modbus-io://h:x", "port must be a number"),
        ("modbus-io://h?coil=-1", "coil is '-1'; expected a number from 0"),
        ("modbus-io://h?coil=1&ready=1&delay_ms=9", "the same coil"),
        ("modbus-io://h?delay_ms=5&hold_ms=0", "opens for no time"),
        ("modbus-io://h?coil=2", "delay_ms is missing"),
        ("modbus-io://h?delay=5", "unknown option 'delay'; there are: coil, delay_ms"),
    ],
)
def test_mistakes_in_the_address_are_named(url: str, words: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=words):
        make_connector(url, tmp_path)


def test_a_gate_before_the_deadline_is_refused(tmp_path: Path) -> None:
    connector = make_connector("modbus-io://127.0.0.1:502?delay_ms=400", tmp_path)
    plant = Plant(
        lines=("line-1",),
        trouble=lambda line: None,
        last_number=lambda line: 0,
        deadline_ms=lambda line: 500,
        counted=lambda line, counters, t_ns: None,
        recipe=lambda line: RecipeState(0, 0),
        select_recipe=lambda line, number, done: None,
        fail=lambda output, detail: None,
    )
    with pytest.raises(ConfigError, match=r"deadline_ms = 500: a neighbour's could open the gate"):
        connector.start(plant)


def test_a_slow_module_is_shut_as_soon_as_it_answers(make: Callable[[str], Gate]) -> None:
    gate = make("coil=0&delay_ms=0&hold_ms=100")
    gate.module.slow_s = 0.15  # every answer comes so late
    gate.say(1, LineCode.PASS)
    until(lambda: len(gate.changes(0)) == 2)
    (_, opened), (_, shut) = gate.changes(0)
    assert shut - opened < 0.4, "the closing waited for its own time and not for the next refresh"


def test_closing_tells_of_parts_that_had_not_come_to_the_gate(make: Callable[[str], Gate]) -> None:
    gate = make("coil=0&delay_ms=60000")
    gate.say(1, LineCode.PASS)
    gate.connector.close()
    assert [number for number, _ in gate.failed] == [1]
