"""The host inside another program: called in order and once, harmed by no callback, gone when it is stopped."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from contract.event import Verdict
from plugin import Alarm, FlawlinePlugin, Part, Review
from plugin.errors import ConfigError, FlawlineError
from plugin.finder import Filter
from plugin.settings import ConnectorSettings, EventSettings, HostSettings, HttpSettings, LineSettings
from tests.plugin import synthetic as s
from tests.plugin.synthetic import Dealer, until

MakeDealer = Callable[[str], Dealer]


def settings(folder: Path, *connectors: str) -> HostSettings:
    return HostSettings(
        state_dir=folder / "state",
        events=EventSettings(bind="tcp://127.0.0.1:*"),
        http=HttpSettings(port=0),
        lines=[LineSettings(id="line-1", deadline_ms=60_000)],
        connectors=[ConnectorSettings(url=url) for url in connectors],
    )


def test_every_callback_hears_what_is_its_own(tmp_path: Path, make_dealer: MakeDealer) -> None:
    results: list[Part] = []
    flagged: list[Part] = []
    alarms: list[Alarm] = []
    reviews: list[Review] = []
    plugin = FlawlinePlugin(
        settings(tmp_path),
        on_result=results.append,
        on_flagged=flagged.append,
        on_alarm=alarms.append,
        on_review=reviews.append,
    )
    with plugin:
        dealer = make_dealer(plugin.endpoint)
        again = s.frames(s.result(1), attempt=2)
        for message in (s.frames(s.result(1)), again, *s.flagged(2, "bad", Verdict.REJECT, 4.0, seed=1)):
            dealer.send(message)
        dealer.send(s.frames(s.missed(5, "gone")))
        dealer.wait_acked(1, 2, 3, 4, 5)
        until(lambda: len(results) == 3, what="results")
        assert [(part.part_id, part.verdict, part.line) for part in results] == [
            ("part-00001", "PASS", "line-1"),
            ("bad", "REJECT", "line-1"),
            ("gone", "NOT_INSPECTED", "line-1"),
        ]
        until(lambda: flagged, what="what is flagged")
        assert flagged == [results[1]]
        assert httpx.post(f"{plugin.url}api/v1/parts/2/verdicts", json={"decision": "defect"}).status_code == 201
        until(lambda: reviews, what="the decision")
        assert (reviews[0].part, reviews[0].decision) == (2, "defect")
        until(lambda: alarms, what="an alarm")
        assert (alarms[0].source, alarms[0].text) == ("line", "no edge has been heard of")
        assert plugin.health()["ok"] and plugin.dropped == dict.fromkeys(plugin.dropped, 0)
        assert [part.part_id for part in plugin.parts(Filter(verdicts=["REJECT"]))] == ["bad"]
    assert len(results) == 3


def test_it_stops_without_a_trace_and_may_be_started_again(tmp_path: Path, make_dealer: MakeDealer) -> None:
    before = set(threading.enumerate())
    results: list[Part] = []
    plugin = FlawlinePlugin(settings(tmp_path), on_result=results.append, pages=False)
    for seq in (1, 2):
        plugin.start()
        assert plugin.url == ""
        with pytest.raises(FlawlineError, match="runs already"):
            plugin.start()
        with pytest.raises(ConfigError, match="another host is using this folder"):
            FlawlinePlugin(settings(tmp_path)).start()
        dealer = make_dealer(plugin.endpoint)
        dealer.send(s.frames(s.result(seq)))
        dealer.wait_acked(seq)
        plugin.stop()  # at once: what is committed is told nevertheless
        assert [part.seq for part in results] == list(range(1, seq + 1))
        plugin.stop()
        assert set(threading.enumerate()) == before
    with pytest.raises(FlawlineError, match="not running"):
        plugin.health()


def test_a_callback_that_hangs_harms_nobody(
    tmp_path: Path, make_dealer: MakeDealer, caplog: pytest.LogCaptureFixture
) -> None:
    entered, release = threading.Event(), threading.Event()
    flagged: list[str] = []

    def hang(_part: Part) -> None:
        entered.set()
        release.wait(60)

    plugin = FlawlinePlugin(
        settings(tmp_path), on_result=hang, on_flagged=lambda part: flagged.append(part.part_id), queue=2, pages=False
    )
    plugin.start()
    try:
        dealer = make_dealer(plugin.endpoint)
        dealer.send(s.frames(s.result(1)))
        assert entered.wait(30)
        for seq in range(2, 11):
            dealer.send(s.frames(s.result(seq, verdict=Verdict.REVIEW if seq == 9 else Verdict.PASS)))
        dealer.wait_acked(*range(1, 11))
        until(lambda: plugin.dropped["on_result"] == 7, what="two wait, seven are left out")
        until(lambda: flagged == ["part-00009"], what="the other callback")
        assert len(plugin.parts()) == 10, "the store has everything"
        assert "on_result lags" in caplog.text
        began = time.monotonic()
        with caplog.at_level(logging.WARNING):
            plugin.stop()
        assert time.monotonic() - began < 8
        assert "on_result has not returned; it is left behind" in caplog.text
    finally:
        release.set()


def test_a_callback_that_raises_is_called_again(
    tmp_path: Path, make_dealer: MakeDealer, caplog: pytest.LogCaptureFixture
) -> None:
    heard: list[int | None] = []

    def picky(part: Part) -> None:
        heard.append(part.seq)
        if part.seq != 3:
            raise RuntimeError("I do not like this part")

    with FlawlinePlugin(settings(tmp_path), on_result=picky, pages=False) as plugin:
        dealer = make_dealer(plugin.endpoint)
        for seq in (1, 2, 3):
            dealer.send(s.frames(s.result(seq)))
        dealer.wait_acked(1, 2, 3)
        until(lambda: len(heard) == 3, what="every call")
    assert heard == [1, 2, 3] and plugin.failed["on_result"] == 2
    assert "on_result raised RuntimeError('I do not like this part')" in caplog.text


def test_the_host_s_own_trouble_is_an_alarm(tmp_path: Path) -> None:
    alarms: list[Alarm] = []
    plugin = FlawlinePlugin(settings(tmp_path), on_alarm=alarms.append, pages=False)
    plugin.start()
    service: Any = plugin._service
    service._failure = RuntimeError("invented")
    until(lambda: any(alarm.source == "host" for alarm in alarms), what="the alarm")
    with pytest.raises(FlawlineError, match="invented"):
        plugin.stop()


def test_what_cannot_start_lets_go_of_everything(tmp_path: Path) -> None:
    with FlawlinePlugin(settings(tmp_path / "other")) as other:
        port = other.url.split(":")[2].rstrip("/")
        with pytest.raises(ConfigError, match=port):
            FlawlinePlugin(settings(tmp_path, f"modbus://127.0.0.1:{port}")).start()
    with FlawlinePlugin(settings(tmp_path)) as again:
        assert again.health()["ok"]


def test_importing_it_is_light() -> None:
    script = (
        "import sys, plugin; heavy = {'fastapi', 'sqlalchemy', 'uvicorn', 'pydantic', 'zmq', 'numpy'};"
        "assert not heavy & set(sys.modules), heavy & set(sys.modules);"
        "assert set(plugin.__all__) == set(plugin._WHERE);"
        "[getattr(plugin, name) for name in plugin.__all__]"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
    with pytest.raises(ImportError):
        exec("from plugin import FlawlinePlugins")
