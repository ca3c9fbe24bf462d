"""What happened at the gate, told by a real Modbus controller to a real host: recorded, and reasons to stop."""

from __future__ import annotations

import signal
from collections.abc import Callable

import httpx
import pytest

from contract.event import Verdict
from plugin.connectors import registers as r
from tests.plugin import synthetic as s
from tests.plugin.controller import Controller
from tests.plugin.station import Line


def test_what_the_gate_saw_stands_with_the_part_and_its_lot(make_line: Callable[..., Line]) -> None:
    line = make_line("gate_ms = 60000")
    good = line.part("good").seq
    bad = line.part("bad", Verdict.REJECT, serial="SN-1", lot="L7").seq
    line.saw(bad, "confirmed")
    line.saw(good, "not_confirmed")  # it stayed on the line, as it was to
    s.until(lambda: len(line.outcomes()) == 2)
    assert line.outcomes() == [
        ("bad", "confirmed", "the line controller"),
        ("good", "not_confirmed", "the line controller"),
    ]
    part = next(each for each in line.host.get("/api/parts") if each["part_id"] == "bad")
    told = line.host.get(f"/api/parts/{part['id']}")
    assert (told["serial"], told["lot"], told["line"]["gate"]) == ("SN-1", "L7", "confirmed")
    assert [each["outcome"] for each in told["gate"]] == ["confirmed"]
    rows = [(row["part_id"], row["serial"], row["lot"], row["outcome"]) for row in line.host.get("/api/gate")]
    assert rows == [("bad", "SN-1", "L7", "confirmed"), ("good", None, None, "not_confirmed")]
    assert not line.bit("stop")
    assert line.host.get("/healthz")["alarms"] == []
    line.plc.master.write(r.WRITTEN["gate_outcome"], 1, bad + 7)  # a number that was never given out
    s.until(lambda: "which is none" in line.host.log.read_text() or line.word("warning") == 4)
    assert len(line.outcomes()) == 2


def test_a_reject_that_nobody_confirms_stops_the_line_until_the_controller_clears_it(
    make_line: Callable[..., Line],
) -> None:
    line = make_line("gate_ms = 700", deadline_ms=600)
    line.part("bad", Verdict.REJECT)
    s.until(lambda: line.bit("stop"))
    assert line.word("stop") == r.STOPS["not_confirmed"]
    (alarm,) = line.host.get("/healthz")["alarms"]
    assert "no. 1 (bad) was not seen behind the gate in time" in alarm
    line.restart()
    s.until(lambda: line.bit("stop"), what="the stop, over a restart")
    line.command(2)
    s.until(lambda: not line.bit("stop"))
    kinds = [(row["kind"], row["who"]) for row in line.host.get("/api/lines/line-1/journal")]
    assert kinds == [("stop_cleared", "the line controller"), ("stop", "the host")]
    assert line.outcomes() == [("bad", "not_confirmed", "the host")]


def test_what_was_on_its_way_to_the_gate_at_a_kill_stops_the_line_and_no_old_command_clears_it(
    make_line: Callable[..., Line],
) -> None:
    line = make_line("gate_ms = 60000")
    line.plc.master.write(r.WRITTEN["command"], 2)  # and never taken back
    line.part("good")
    bad = line.part("bad", Verdict.REJECT).seq
    line.plc.master.close()
    line.host.end(signal.SIGKILL)
    line.host.start()
    line.plc = Controller(line.host.get("/healthz")["connectors"][0]["address"])
    for _ in range(2):
        line.plc.master.write(r.WRITTEN["acknowledge"], 0, 0, 2, 0, 0, 0, 0)  # its whole block, every cycle
    line.saw(bad, "confirmed")  # behind that command in the ledger's line
    s.until(lambda: len(line.outcomes()) == 2)
    assert line.outcomes() == [("bad", "unknown", "the host"), ("bad", "confirmed", "the line controller")]
    assert line.kinds() == ["stop"]
    assert "no. 2 (bad) was on its way to the gate when the host ended" in line.row()["stop_text"]
    assert line.word("stop") == r.STOPS["not_confirmed"]
    line.command(0)
    line.command(2)
    s.until(lambda: not line.bit("stop"))


@pytest.mark.parametrize(
    ("verdict", "kind"), [(Verdict.REJECT, "rejects_in_a_row"), (Verdict.NOT_INSPECTED, "not_inspected_in_a_row")]
)
def test_too_many_in_a_row_ask_for_a_stop(make_line: Callable[..., Line], verdict: Verdict, kind: str) -> None:
    line = make_line(f"{kind} = 3")
    for name in ("a", "b"):
        line.part(name, verdict)
    line.part("c")
    for name in ("d", "e"):
        line.part(name, verdict)
    assert not line.bit("stop"), "never three in a row"
    line.part("f", verdict)
    s.until(lambda: line.word("stop") == r.STOPS[kind])  # type: ignore[index]
    done = line.flawline("line", "line-1", "clear-stop")
    assert done.returncode == 0, done.stderr
    assert "is to stop" not in done.stdout
    s.until(lambda: not line.bit("stop"))
    line.part("g", verdict)
    assert not line.bit("stop"), "counting begins anew"
    assert "(terminal)" in line.host.get("/api/lines/line-1/journal")[0]["who"]


def test_zero_never_asks_for_a_stop_and_a_full_bin_always(make_line: Callable[..., Line]) -> None:
    line = make_line("rejects_in_a_row = 0")
    seqs = [line.part(f"p{number}", Verdict.REJECT).seq for number in range(7)]
    assert not line.bit("stop")
    line.saw(seqs[-1], "bin_full")
    s.until(lambda: line.word("stop") == r.STOPS["bin_full"])
    assert httpx.post(f"{line.host.url}api/lines/line-1/alarm", json={"text": "scores drift"}).status_code == 200
    assert line.host.get("/api/lines")[0]["stop"] == "bin_full", "the first reason stands"
    texts = [row["detail"]["text"] for row in line.host.get("/api/lines/line-1/journal")]
    assert texts == ["scores drift", "the bin for rejected parts is full"], "and each is on record"
