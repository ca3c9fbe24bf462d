"""Master parts: a real host and controller; nothing is OK until every one is read right."""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from contract.event import Header, LineCode, Verdict, from_frames
from plugin.connectors import registers as r
from plugin.errors import LineError
from plugin.ledger import Ledger
from plugin.lines import Run, last_shift
from plugin.review.texts import Texts
from plugin.settings import LineSettings
from plugin.transit import Arrival
from tests.plugin import synthetic as s
from tests.plugin.controller import library
from tests.plugin.station import Line
from tests.plugin.synthetic import HostProcess

ALIVE = "silence_ms = 60000"
"""So that one heartbeat of the edge lasts for a test."""

LINES = 15
TELLING, UNHEARD, TWO_EDGES, SHORT = range(LINES - 3, LINES + 1)
SECOND, THIRD = "edge-second", "edge-third"


@pytest.fixture(scope="module")
def line_of(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Line]]:
    """Lines of one host by their number, each for one test: two edges, none by name, or a short deadline."""
    library()
    settings = []
    for number in range(1, LINES + 1):
        edges = [f"edge-{number}"] + [SECOND] * (number == TWO_EDGES) + [THIRD] * (number == TELLING)
        edges *= number != UNHEARD
        head = f'[[lines]]\nid = "line-{number}"\ndeadline_ms = {300 if number == SHORT else 5000}\n'
        settings.append(f"{head if number > 1 else ''}{ALIVE}\nedges = {edges}\n")
    served = [f'[[connectors]]\nurl = "modbus://127.0.0.1:0"\nlines = ["line-{n}"]\n' for n in range(1, LINES + 1)]
    folder = tmp_path_factory.mktemp("lines")
    host = HostProcess(folder, deadline_ms=5000, connectors=(), line="".join([*settings, *served]).replace("'", '"'))
    host.start()
    dealer = s.Dealer(host.endpoint)
    made: list[Line] = []

    def take(number: int, beat: bool = True) -> Line:
        made.append(Line(host, dealer, number))
        if beat:
            made[-1].beat()
        return made[-1]

    yield take
    for line in made:
        line.plc.master.close()
        for row in host.get(f"/api/lines/{line.id}/journal"):
            if why := row["detail"].get("text") or row["detail"].get("why"):
                told = zip(why.split("; "), Texts("zh").because(why).split("; "), strict=True)
                assert all(own != other for own, other in told), f"the catalogue has no text for: {why}"
    dealer.close()
    assert host.end() == 0


@pytest.fixture(scope="module")
def numbers() -> Iterator[int]:
    return iter(range(1, TELLING))


@pytest.fixture
def line(line_of: Callable[..., Line], numbers: Iterator[int]) -> Line:
    """One that no other test has used."""
    return line_of(next(numbers))


@pytest.fixture
def own_line(make_line: Callable[..., Line]) -> Line:
    """The one line of a host of its own."""
    made = make_line(ALIVE)
    made.beat()
    return made


@pytest.fixture
def own_pair(make_line: Callable[..., Line]) -> Line:
    """The same with two edges that were not heard of yet."""
    return make_line(f'{ALIVE}\nedges = ["edge-1", "edge-2"]')


def register(line: Line, *masters: str) -> None:
    """``name expected`` and what else is to be said of it, as name=value."""
    for master in masters:
        name, expected, *more = master.split()
        body = {"name": name, "expected": expected, **dict(each.split("=") for each in more)}
        answer = httpx.post(f"{line.host.url}api/lines/{line.id}/masters", json=body)
        assert answer.status_code == 200, answer.text


def run(line: Line, *verdicts: Verdict, edge: str | None = None) -> list[int]:
    """Masters through the camera; the codes that the controller was told."""
    names = [f"m{line.seq + number}" for number in range(len(verdicts))]
    return [line.part(name, verdict, edge=edge).code for name, verdict in zip(names, verdicts, strict=True)]


def stands(line: Line, challenge: str) -> bool:
    s.until(lambda: line.word("challenge") == r.CHALLENGES[challenge], what=challenge)  # type: ignore[index]
    return s.until(lambda: line.bit("ready") == (challenge == "passed") or None) is True


def passed(line: Line) -> None:
    line.begin()
    run(line, Verdict.PASS, Verdict.REJECT)
    assert stands(line, "passed")


def test_a_master_that_reads_wrong_keeps_the_line_out_of_running(line: Line) -> None:
    s.until(lambda: line.bit("ready"))
    assert line.part("before").code == LineCode.PASS, "a line without masters is as before"
    for master in (["good", "pass"], ["scratched", "reject", "--class", "scratch"]):
        done = line.flawline("masters add", line.id, *master)
        assert done.returncode == 0, done.stderr
    assert stands(line, "due")
    assert line.word("error") == r.ERRORS["challenge_due"]
    beat = line.word("heartbeat")
    s.until(lambda: line.word("heartbeat") != beat, what="the heartbeat: masters have to move")
    assert line.part("production").code == LineCode.NOT_INSPECTED
    told = {row["part_id"]: row["reason"] for row in line.host.get("/api/line")}
    assert told["production"] == "challenge due"

    line.begin()
    assert run(line, Verdict.PASS, Verdict.PASS) == [LineCode.NOT_INSPECTED] * 2, "no master is OK at the gate"
    assert stands(line, "failed")
    assert line.word("error") == r.ERRORS["challenge_failed"]
    assert line.part("after failure").code == LineCode.NOT_INSPECTED
    assert "scratched was read as PASS, expected REJECT" in line.row()["held"]
    assert any(f"Line {line.id} is not released" in text for text in line.host.get("/healthz")["alarms"])

    assert line.post(f"/lines/{line.id}/ask", what="begin_challenge") == 303
    s.until(lambda: line.word("challenge") == r.CHALLENGES["running"])
    run(line, Verdict.PASS, Verdict.REJECT)
    assert stands(line, "passed")
    assert line.part("released").code == LineCode.PASS
    assert line.plc.inspected

    journal = line.host.get(f"/api/lines/{line.id}/journal")
    good, bad = (next(row for row in journal if row["kind"] == f"challenge_{kind}") for kind in ("passed", "failed"))
    assert [(each["master"], each["verdict"], each["score"]) for each in bad["detail"]["readings"]] == [
        ("good", "PASS", 0.4),
        ("scratched", "PASS", 0.4),
    ]
    assert {each["model_sha256"] for each in good["detail"]["readings"]} == {"ab" * 32}
    assert (good["who"], bad["who"]) == ("inspector", "the line controller")


def test_master_parts_are_in_no_queue_and_no_figure(own_line: Line) -> None:
    line = own_line
    register(line, "good pass", "scratched reject")
    passed(line)
    line.part("product", Verdict.REJECT)

    def told_apart() -> bool:
        return [part["master"] for part in line.host.get("/api/parts")] == ["good", "scratched", None]

    s.until(told_apart, what="the masters' marks in the store")
    assert [part["part_id"] for part in line.host.get("/api/queue")] == ["product"]
    summary = line.host.get("/api/summary")
    assert (summary["parts"], summary["verdicts"], summary["masters"]) == (1, {"REJECT": 1}, 2)
    assert [part["part_id"] for part in line.host.get("/api/export/verdicts")["parts"]] == ["product"]


def test_a_restart_in_the_middle_of_a_challenge_begins_anew(own_line: Line) -> None:
    line = own_line
    register(line, "good pass", "scratched reject")
    line.begin()
    run(line, Verdict.PASS)
    line.restart()
    line.beat()
    assert stands(line, "due")
    assert line.part("second master", Verdict.REJECT).code == LineCode.NOT_INSPECTED
    assert stands(line, "due"), "what was read before counts no more"
    assert "challenge_abandoned" in line.kinds()
    passed(line)
    line.restart()
    line.beat()
    assert stands(line, "due"), "after each start of the host"


def test_another_recipe_makes_masters_due_by_its_first_part_and_by_a_heartbeat(line: Line) -> None:
    register(line, "good pass", "scratched reject")
    passed(line)
    assert line.part("new model", model_sha256="cd" * 32).code == LineCode.NOT_INSPECTED, "not even the first"
    assert stands(line, "due")
    passed(line)
    line.beat(model_sha256="ef" * 32)
    assert stands(line, "due")


def test_another_recipe_in_the_middle_of_a_challenge_ends_it(line: Line) -> None:
    register(line, "good pass", "scratched reject")
    line.begin()
    run(line, Verdict.PASS)
    line.beat(model_sha256="cd" * 32)
    assert stands(line, "due")
    assert line.kinds()[:2] == ["challenge_due", "challenge_abandoned"]
    line.begin()
    line.part("m1", model_sha256="cd" * 32)
    line.part("m2", Verdict.REJECT)  # a straggler of the model before
    assert stands(line, "failed")


def test_masters_of_a_recipe_count_for_it_and_a_recipe_without_masters_is_not_released(line: Line) -> None:
    register(line, "only1 pass recipe=1", "scratched1 reject recipe=1")
    line.beat(recipe_number=2)
    s.until(lambda: line.word("recipe") == 2)
    assert f"no good and no defective master for {line.edge} and the recipe that judges now (2)" in refused(line)
    line.beat(recipe_number=1)
    s.until(lambda: line.word("recipe") == 1)
    line.begin()
    line.part("m1", recipe_number=1)
    line.part("m2", Verdict.REJECT, recipe_number=1)
    assert stands(line, "passed")


def refused(line: Line) -> str:
    """Why no challenge can begin."""
    done = line.flawline("line", line.id, "begin")
    assert done.returncode == 2
    assert line.word("challenge") == r.CHALLENGES["due"]
    return done.stderr


def test_a_challenge_that_cannot_tell_a_reject_does_not_begin(line_of: Callable[..., Line]) -> None:
    line = line_of(TELLING)
    line.beat(THIRD)
    register(line, "good pass")
    s.until(lambda: any(line.plc.master.read(r.WORDS["model"], 2)))
    assert f"no defective master for {line.edge}" in refused(line)
    register(line, f"scratched reject edge={line.edge}")
    assert f"no defective master for {THIRD}" in refused(line), "it could be blind, and nobody would know"
    assert line.part("meanwhile").code == LineCode.NOT_INSPECTED
    line.command(4)
    assert "defective" in refused(line)
    assert "challenge_begun" not in line.kinds()
    register(line, f"dent reject edge={THIRD}")
    line.begin()


def test_no_challenge_begins_before_every_edge_has_said_by_what_it_judges(line_of: Callable[..., Line]) -> None:
    """The masters that are bound to a recipe were left out then, and the reject among them."""
    line = line_of(UNHEARD, beat=False)
    register(line, "good pass", "scratched reject recipe=1")
    assert "has no edge that was heard of yet: start one" in refused(line)


def test_no_challenge_begins_while_edges_judge_by_different_recipes(own_pair: Line) -> None:
    line = own_pair
    register(line, "good pass", "any reject", "scratched reject recipe=1")
    assert "have not said yet by which recipe they judge (edge-1, edge-2)" in refused(line)
    line.beat(recipe_number=1)
    s.until(lambda: line.row()["trouble"] == "edge-2: not heard of")
    assert "have not said yet by which recipe they judge (edge-2)" in refused(line)
    line.beat("edge-2", recipe_number=2)
    s.until(lambda: "different recipes" in str(line.row()["trouble"]))
    assert "judge by different recipes (edge-1: 1, edge-2: 2)" in refused(line)
    line.beat("edge-2", recipe_number=1)
    line.begin()
    assert line.word("challenge_steps") == 6, "the recipe's own master among them"


def test_masters_that_another_recipe_read_release_nothing(line: Line) -> None:
    register(line, "good pass", "scratched reject", "small reject recipe=2")
    line.beat(recipe_number=1)
    s.until(lambda: line.word("recipe") == 1)
    line.begin()
    line.part("m1", recipe_number=2)  # its heartbeat has not said so yet
    line.part("m2", Verdict.REJECT, recipe_number=2)
    assert stands(line, "failed")
    assert "recipe 2 has other masters than were read" in line.row()["held"]
    line.begin()
    line.beat(recipe_number=2)
    assert stands(line, "due"), "a heartbeat ends a challenge that was begun for another recipe"
    assert line.kinds()[:2] == ["challenge_due", "challenge_abandoned"]


def test_a_part_captured_before_the_release_is_not_ok_after_it(line: Line) -> None:
    register(line, "good pass", "scratched reject")
    line.send(s.trigger, "early")
    passed(line)
    line.send(s.result, "early")
    s.until(lambda: line.plc.poll() and len(line.plc.taken) == 3)
    assert line.plc.taken[-1].code == LineCode.NOT_INSPECTED
    assert line.part("late").code == LineCode.PASS


def test_verdicts_out_of_order_do_not_swap_masters(line: Line) -> None:
    register(line, "good pass", "scratched reject")
    line.begin()
    line.send(s.trigger, "first")
    line.send(s.trigger, "second")
    line.send(s.result, "second", verdict=Verdict.REJECT)
    line.send(s.result, "first")
    assert stands(line, "passed")


def test_a_master_that_the_edge_missed_fails_the_challenge(line: Line) -> None:
    register(line, "good pass", "scratched reject")
    line.begin()
    line.send(s.trigger, "first")
    line.send(s.missed, "first")
    run(line, Verdict.REJECT)
    assert stands(line, "failed")
    assert "good was read as NOT_INSPECTED" in line.row()["held"]


def test_masters_with_serials_come_in_any_order_between_other_parts(line: Line) -> None:
    register(line, "good pass serial=G-1", "scratched reject serial=D-1")
    line.begin()
    line.part("a", Verdict.REJECT, serial="D-1")
    assert line.part("product", serial="SN-9").code == LineCode.NOT_INSPECTED
    line.part("b", serial="G-1")
    assert stands(line, "passed")
    assert line.part("product 2").code == LineCode.PASS
    assert line.part("left on the belt", serial="G-1").code == LineCode.NOT_INSPECTED, "a master is no product"
    marks = {"a": "scratched", "b": "good", "left on the belt": "master part good, outside a challenge"}

    def told_apart() -> bool:
        mine = [part for part in line.host.get("/api/parts") if part["edge_id"] == line.edge]
        return {part["part_id"]: part["master"] for part in mine if part["master"]} == marks

    s.until(told_apart)


def test_without_masters_again_the_line_is_as_before(line: Line) -> None:
    register(line, "good pass")
    assert stands(line, "due")
    assert "good: pass" in line.flawline("masters list", line.id).stdout
    assert line.flawline("masters remove", line.id, "good").returncode == 0
    s.until(lambda: line.bit("ready"))
    assert line.word("challenge") == r.CHALLENGES["none"]
    assert line.part("p").code == LineCode.PASS
    assert line.kinds()[0] == "master_removed"


def test_every_edge_of_a_line_reads_every_master(line_of: Callable[..., Line]) -> None:
    line = line_of(TWO_EDGES)
    edges = (line.edge, SECOND)
    line.beat(SECOND)
    register(line, "good pass", f"scratched reject edge={edges[0]}", f"dent reject edge={edges[1]}")
    line.begin()
    assert line.word("challenge_steps") == 6
    run(line, Verdict.PASS, Verdict.REJECT, Verdict.PASS, edge=edges[0])
    assert line.word("challenge") == r.CHALLENGES["running"], "the other has read none"
    run(line, Verdict.PASS, Verdict.PASS, Verdict.REJECT, edge=edges[1])  # the scratch is not to be seen from its side
    assert stands(line, "passed")
    assert [line.part(f"p {edge}", edge=edge).code for edge in edges] == [LineCode.PASS] * 2
    assert line.part("unread", edge=edges[1], camera_id="cam-9").code == LineCode.NOT_INSPECTED, "no master there"
    assert stands(line, "due")


def test_a_master_that_only_the_controller_saw_fails_the_challenge(line_of: Callable[..., Line]) -> None:
    line = line_of(SHORT)
    register(line, "good pass", "scratched reject")
    line.begin()
    for count in (1, 2):  # the first says where counting begins
        line.plc.master.write(r.WRITTEN["part_counter"], count)
    s.until(lambda: line.plc.poll() and line.plc.taken)
    run(line, Verdict.PASS, Verdict.REJECT)
    assert stands(line, "failed")
    assert "counted that no edge announced" in line.row()["held"]


def test_nothing_can_be_asked_of_what_is_not_there(make_host: Callable[..., HostProcess]) -> None:
    host = make_host()
    with httpx.Client(base_url=host.url) as web:
        assert web.post("/api/lines/line-9", json={"what": "clear_stop"}).status_code == 404
        assert web.post("/api/lines/line-1", json={"what": "begin_challenge"}).status_code == 409
        assert web.post("/api/lines/line-1", json={"what": "stop the moon"}).status_code == 422
        body = {"name": "m", "expected": "pass"}
        assert web.post("/api/lines/line-1/masters", json=body).status_code == 200
        assert web.post("/api/lines/line-1/masters", json=body).status_code == 409
        assert web.post("/api/lines/line-1/masters", json={**body, "expected": "maybe"}).status_code == 422
        assert web.post("/api/lines/line-1/masters/remove", json={"name": "none"}).status_code == 409
        evil = "<script>alert(1)</script>"
        assert web.post("/lines/line-1/masters", data={"name": evil, "expected": "pass"}).status_code == 303
        assert evil not in web.get("/lines").text


def test_a_shift_makes_masters_due_once(tmp_path: Path) -> None:
    path = tmp_path / "ledger.sqlite"
    settings = LineSettings(id="line-1", shifts=["06:00"])
    ledger = Ledger(path, lambda _edge: settings, [settings])
    ledger.ask("line-1", "add_master", "eve", name="good", expected="pass")
    ledger._decide(ledger._gather())
    yesterday = time.time() - 86_400
    for looked, due in ((yesterday, 1), (time.time(), 1), (yesterday, 2)):
        ledger._lines._looked_s = looked
        ledger._decide([])
        whys = [why for (why,) in ledger._connection.execute("SELECT detail FROM journal WHERE kind = 'challenge_due'")]
        assert sum("a shift began at 06:00" in why for why in whys) == due
    ledger._connection.close()


def test_the_last_shift_is_today_s_or_yesterday_s() -> None:
    now = datetime.now(UTC).astimezone().replace(hour=10, minute=30, second=5)
    assert last_shift(["06:00", "22:00"], now.timestamp()).strftime("%H:%M") == "06:00"
    night = last_shift(["11:00", "22:00"], now.timestamp())
    assert (night.strftime("%H:%M"), night.date()) == ("22:00", (now - timedelta(days=1)).date())


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    """One whose turns a test takes itself."""
    settings = LineSettings(id="line-1", deadline_ms=60_000)
    made = Ledger(tmp_path / "ledger.sqlite", lambda _edge: settings, [settings])
    yield made
    made._connection.close()


BEYOND = [2**63, 0, -1, float("nan"), 1.5, "1", None, True]


@pytest.mark.parametrize("number", BEYOND)
def test_what_no_gate_can_say_is_refused_before_the_ledger_hears_it(ledger: Ledger, number: Any) -> None:
    with pytest.raises(LineError, match="expected a whole number from 1"):
        ledger.gate("line-1", number, "confirmed", "a connector of the site")
    for line, outcome, who in (
        ("line-1", "gone", "x"),
        ("line-1", "confirmed", "\ud800"),
        (["x"], "confirmed", "x"),
    ):
        with pytest.raises(LineError):
            ledger.gate(line, 1, outcome, who)  # type: ignore[arg-type]
    assert ledger._inbox.empty()


GOOD = {"name": "m", "expected": "pass"}


@pytest.mark.parametrize(
    ("what", "who", "values"),
    [
        *(("add_master", "eve", {**GOOD, "recipe": each}) for each in (2**63, -1, 1.5, float("nan"), "1")),
        ("add_master", "eve", {**GOOD, "expected": "maybe"}),
        ("add_master", "eve", {**GOOD, "name": "\ud800"}),
        ("add_master", "eve", {**GOOD, "serial": "a\x00b"}),
        ("add_master", "eve", {**GOOD, "edge": {}}),
        ("add_master", "eve", {**GOOD, "else": 1}),
        ("add_master", "eve", {"name": "m"}),
        ("remove_master", "eve", {"name": 5}),
        ("alarm", "eve", {"text": "\x00"}),
        ("alarm", "eve", {}),
        ("clear_stop", None, {}),
        ("clear_stop", "eve", {"name": "m"}),
        ("stop the moon", "eve", {}),
    ],
)
def test_an_order_that_makes_no_sense_is_refused_before_the_ledger_hears_it(
    ledger: Ledger, what: Any, who: Any, values: dict[str, Any]
) -> None:
    with pytest.raises(LineError):
        ledger.ask("line-1", what, who, **values)
    assert ledger._inbox.empty()


def test_numbers_that_no_file_holds_are_refused_by_the_api(own_line: Line) -> None:
    line = own_line
    with httpx.Client(base_url=line.host.url) as web:
        for recipe in (2**63, -1, 1.5, 10**400):
            answer = web.post(f"/api/lines/{line.id}/masters", content=json.dumps({**GOOD, "recipe": recipe}))
            assert 400 <= answer.status_code < 500, answer.text
        answer = web.post(f"/api/lines/{line.id}/masters", content='{"name": "m", "expected": "pass", "recipe": NaN}')
        assert 400 <= answer.status_code < 500, answer.text
        for event in (2**63, -1):
            assert web.post(f"/api/lines/{line.id}/containments", json={"event": event}).status_code == 422
    assert line.part("after all").code == LineCode.PASS


def test_a_master_is_known_by_its_serial_after_a_commit_that_failed(
    ledger: Ledger, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = ledger._lines
    lines.edges_of = lambda _line: ["edge-1"]
    ledger.tell([arrival(s.state(1, model_sha256="ab" * 32))])
    for name, expected in (("G", "pass"), ("D", "reject")):
        ledger.ask("line-1", "add_master", "eve", name=name, expected=expected, serial=name)
    ledger.ask("line-1", "begin_challenge", "eve")
    assert ledger._settle(ledger._gather())
    ledger.tell([arrival(s.trigger(1, "one", serial="G"))])
    assert ledger._settle(ledger._gather())
    failing = iter([sqlite3.OperationalError("disk I/O error")])
    save = lines.save

    def once() -> None:
        if (error := next(failing, None)) is not None:
            raise error
        save()

    monkeypatch.setattr(lines, "save", once)
    ledger.tell([arrival(s.missed(2, "one"))])  # what says nothing of its serial
    assert ledger._settle(ledger._gather())
    assert [(each.master, each.verdict) for each in (lines._lines["line-1"].run or Run(**NONE)).readings] == [
        ("G", "NOT_INSPECTED")
    ]
    assert lines._serials == {}, "and is forgotten once it stands"


NONE: dict[str, Any] = {"id": "", "by": "", "began_ns": 0, "masters": []}


def arrival(header: Header) -> Arrival:
    return Arrival(from_frames(s.frames(header, age_ms=0)), time.monotonic_ns())
