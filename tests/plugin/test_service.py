"""The host's parts wired together, in this process: what a clean stop leaves behind."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from contract.overseer import Overseer
from plugin import dispatch
from plugin.alive import answers
from plugin.connectors.base import Connector, LineOutput
from plugin.ledger import LedgerReader
from plugin.service import Service
from plugin.settings import ConnectorSettings, ControlSettings, EventSettings, HostSettings, HttpSettings, LineSettings
from tests.plugin import synthetic as s
from tests.plugin.synthetic import Dealer
from tests.processes import until


class Slow(Connector):
    """Takes its time over each output."""

    busy = threading.Event()

    def __init__(self, url: str, base_dir: Path) -> None:
        """Nothing to read."""

    def publish(self, output: LineOutput) -> None:
        self.busy.set()
        time.sleep(0.3)


def test_every_loop_that_a_line_rests_on_is_watched_and_turns(tmp_path: Path) -> None:
    settings = HostSettings(
        state_dir=tmp_path / "state",
        events=EventSettings(bind="tcp://127.0.0.1:*"),
        control=ControlSettings(bind="tcp://127.0.0.1:*"),
        http=HttpSettings(port=0),
        connectors=[ConnectorSettings(url=f"loop://{tmp_path}/outputs.jsonl") for _ in range(2)],
    )
    service = Service(settings, tmp_path)
    overseer = Overseer(30.0, 60.0)
    service.watch(overseer)
    service.start()
    try:
        pulses = {pulse.name: pulse for pulse in overseer._pulses[1:]}
        assert set(pulses) == {"receiver", "ledger", "writer", "control", "connector 1 (loop)", "connector 2 (loop)"}
        for pulse in pulses.values():
            turns = pulse.mark[0]
            until(lambda pulse=pulse, turns=turns: pulse.mark[0] > turns + 1, f"{pulse.name} turns")
        assert overseer.status() == "line-1: no edge has been heard of"
        assert until(lambda: answers(settings.state_dir), "the host answers")
    finally:
        service.stop()
    assert not answers(settings.state_dir)


def test_a_clean_stop_knows_what_became_of_the_last_outputs(
    tmp_path: Path, make_dealer: Callable[[str], Dealer], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(dispatch.CONNECTORS, "slow", f"{__name__}:Slow")
    settings = HostSettings(
        state_dir=tmp_path / "state",
        events=EventSettings(bind="tcp://127.0.0.1:*"),
        http=HttpSettings(port=0),
        lines=[LineSettings(id="line-1", deadline_ms=60_000)],
        connectors=[ConnectorSettings(url="slow://")],
    )
    service = Service(settings, tmp_path)
    service.start()
    dealer = make_dealer(service.endpoint)
    dealer.send(s.frames(s.trigger(1, "open")))
    dealer.send(s.frames(s.result(2, "last")))
    dealer.wait_acked(1, 2)
    assert Slow.busy.wait(30)
    start = time.monotonic()
    service.stop()
    assert time.monotonic() - start < 20, "it waits for no deadline"
    ledger = LedgerReader(tmp_path / "state" / "ledger.sqlite")
    assert [(row["part_id"], row["outcome"]) for row in ledger.outputs(0, 10)] == [("last", "published")]
    assert ledger.counts()["open"] == 1
