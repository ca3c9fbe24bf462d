"""Two inspectors at one queue: whoever opens a part has it for a time, and no part is decided by both."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest

from contract.event import Verdict
from plugin.review.holds import Holds
from tests.plugin import synthetic as s
from tests.plugin.synthetic import Dealer, HostProcess


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_hold_runs_out_is_renewed_and_let_go() -> None:
    clock = Clock()
    holds = Holds(60, clock)
    ada = holds.take(1, "desk-a", "Ada")
    assert ada is not None and holds.take(1, "desk-b", "Ben") is None
    assert (holds.others("desk-b"), holds.others("desk-a")) == ({1: "Ada"}, {})
    clock.now = 59
    assert holds.renew(1, "desk-a", ada.token, lengthen=False)
    assert holds.renew(1, "desk-a", ada.token)
    clock.now = 118
    assert holds.others("desk-b") == {1: "Ada"}
    clock.now = 119
    assert holds.others("desk-b") == {} and not holds.renew(1, "desk-a", ada.token)
    assert holds.take(1, "desk-b", "Ben") is not None


def test_a_late_release_of_a_former_opening_changes_nothing() -> None:
    holds = Holds()
    first = holds.take(1, "desk-a", "Ada")
    second = holds.take(1, "desk-a", "Ada")
    assert first is not None and second is not None
    holds.release(1, "desk-a", first.token)
    holds.release(1, "desk-b", second.token)
    assert holds.others("desk-b") == {1: "Ada"}
    holds.release(1, "desk-a", second.token)
    assert holds.others("desk-b") == {}


def test_a_desk_has_one_part_open() -> None:
    holds = Holds()
    holds.take(1, "desk-a", "Ada")
    holds.take(2, "desk-a", "Ada")
    assert holds.others("desk-b") == {2: "Ada"}
    holds.leave("desk-a")
    assert holds.others("desk-b") == {}


@pytest.fixture(scope="module")
def host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    review = '[review]\nclasses = ["scratch", "凹痕"]'
    host = HostProcess(tmp_path_factory.mktemp("holds"), deadline_ms=60_000, head=review)
    host.start()
    yield host
    assert host.end() == 0


@pytest.fixture
def parts(host: HostProcess, make_dealer: Callable[[str], Dealer], request: pytest.FixtureRequest) -> list[int]:
    """Three flagged parts of the test's own, worst first, worse than all before."""
    name = request.node.name
    dealer = make_dealer(host.endpoint)
    known = len(host.get("/api/parts"))
    seqs = range(known + 1, known + 4)
    for n, seq in enumerate(seqs):
        dealer.send(s.frames(s.result(seq, f"{name}-{n}", Verdict.REJECT, score=1000.0 + 10 * known - n)))
    dealer.wait_acked(*seqs)
    return [part["id"] for part in host.get("/api/parts") if part["part_id"].startswith(name)]


@contextmanager
def inspector(host: HostProcess, name: str) -> Iterator[httpx.Client]:
    """A browser of somebody; it leaves what it had open."""
    with httpx.Client(base_url=host.url) as web:
        web.post("/name", data={"name": name})
        yield web
        web.get("/queue")


def test_who_comes_second_is_told_and_gets_the_next(host: HostProcess, parts: list[int]) -> None:
    with inspector(host, "Ada") as ada, inspector(host, "Ben") as ben:
        first, second, third = parts
        mine = ada.get(f"/parts/{first}").text
        assert 'id="verdict"' in mine and f'id="next" href="/parts/{second}"' in mine
        theirs = ben.get(f"/parts/{first}").text
        assert "Ada has this part open" in theirs and 'id="verdict"' not in theirs
        refused = ben.post(f"/parts/{first}/verdict", data={"decision": "good"})
        assert refused.status_code == 409 and "Ada has this part open" in refused.text
        by_program = httpx.post(f"{host.url}api/parts/{first}/verdict", json={"decision": "good"})
        assert by_program.status_code == 409
        assert "Ada has it open" in ben.get("/queue").text
        ben.get(f"/parts/{second}")
        moved = ada.post(f"/parts/{first}/verdict", data={"decision": "defect"})
        assert moved.headers["location"] == f"/parts/{third}?last={first}"  # the second is Ben's
        assert f'id="next" href="/parts/{third}"' not in ben.get(f"/parts/{second}").text  # and this is Ada's already


def test_a_part_that_is_left_is_free(host: HostProcess, parts: list[int]) -> None:
    with inspector(host, "Ada") as ada, inspector(host, "Ben") as ben:
        page = ada.get(f"/parts/{parts[0]}").text
        token = re.search(r'data-hold="(\d+)"', page)
        assert token is not None
        held = {"hold": token[1]}
        assert ada.post(f"/parts/{parts[0]}/hold", data={**held, "kind": "renew"}).status_code == 204
        stolen = ben.post(f"/parts/{parts[0]}/hold", data={**held, "kind": "renew"})
        assert (stolen.status_code, stolen.json()) == (409, {"taken": True})
        ben.post(f"/parts/{parts[0]}/hold", data={**held, "kind": "release"})
        assert 'id="verdict"' not in ben.get(f"/parts/{parts[0]}").text
        ada.post(f"/parts/{parts[0]}/hold", data={**held, "kind": "release"})
        assert 'id="verdict"' in ben.get(f"/parts/{parts[0]}").text
        ben.get("/queue")  # leaves it too
        assert 'id="verdict"' in ada.get(f"/parts/{parts[0]}").text


def test_a_page_that_stood_open_too_long_overrules_nobody(host: HostProcess, parts: list[int]) -> None:
    with inspector(host, "Ada") as ada, inspector(host, "Ben") as ben:
        first = parts[0]
        seen = re.search(r'name="seen" value="(\d+)"', ada.get(f"/parts/{first}").text)
        assert seen is not None and seen[1] == "0"
        ada.get("/queue")  # as if her hold had run out
        ben.get(f"/parts/{first}")
        assert ben.post(f"/parts/{first}/verdict", data={"decision": "good", "seen": "0"}).status_code == 303
        late = ada.post(f"/parts/{first}/verdict", data={"decision": "defect", "seen": seen[1]})
        assert late.status_code == 409 and "Ben decided this part meanwhile" in late.text
        assert [row["decision"] for row in host.get(f"/api/parts/{first}")["reviews"]] == ["good"]


def test_class_comment_dwell_and_station_are_kept(host: HostProcess, parts: list[int]) -> None:
    with inspector(host, "Ada") as ada:
        at = f"/parts/{parts[0]}/verdict"
        ada.post("/desk", data={"station": " desk 4 "})
        page = ada.get(f"/parts/{parts[0]}").text
        assert 'data-digit="2"' in page and "凹痕" in page and 'data-digit="3"' not in page
        comment = "at the rim\x00 <b>"
        sent = {"defect_class": "凹痕", "comment": comment, "dwell_ms": "1234", "seen": "0"}
        assert ada.post(at, data=sent).status_code == 303
        (row,) = host.get(f"/api/parts/{parts[0]}")["reviews"]
        assert (row["decision"], row["defect_class"], row["dwell_ms"]) == ("defect", "凹痕", 1234)
        assert (row["comment"], row["station"], row["inspector"]) == ("at the rim <b>", "desk 4", "Ada")
        history = ada.get(f"/parts/{parts[0]}").text
        assert "at the rim &lt;b&gt;" in history and "1.2 s" in history and "desk 4" in history
        for wrong in (
            {"defect_class": "none such"},
            {"comment": "no verdict"},
            {"decision": "good", "dwell_ms": "-1"},
            {"decision": "good", "comment": "x" * 501},
            {"decision": "maybe"},
        ):
            assert ada.post(at, data=wrong).status_code == 422, wrong
        for body in ({"decision": "good", "defect_class": "scratch"}, {"decision": "defect", "defect_class": "none"}):
            assert ada.post(f"/api{at}", json=body).status_code == 422
        told = b'{"decision": "defect", "defect_class": "scratch", "station": "robot", "comment": "\\ud800ok"}'
        odd = ada.post(f"/api{at}", content=told, headers={"content-type": "application/json"})
        assert odd.status_code in (201, 422)  # half a character, which no database takes


def test_unsure_leaves_the_queue_and_waits_apart(host: HostProcess, parts: list[int]) -> None:
    with inspector(host, "Ada") as ada, inspector(host, "Ben") as ben:
        first, waiting = parts[0], host.get("/api/waiting")["waiting"]
        ada.post(f"/parts/{first}/verdict", data={"decision": "unsure", "seen": "0"})
        assert host.get("/api/waiting")["waiting"] == waiting - 1
        listed = ben.get("/queue?show=unsure").text
        assert f'href="/parts/{first}"' in listed and "Ada was unsure" in listed
        assert host.get("/api/summary")["false_rejects"]["REJECT"]["total"] == len(
            [part for part in host.get("/api/parts") if part["review"] in ("good", "defect")]
        )
        ben.post(f"/parts/{first}/verdict", data={"decision": "good"})
        assert f'href="/parts/{first}"' not in ben.get("/queue?show=unsure").text
        assert [row["decision"] for row in host.get(f"/api/parts/{first}")["reviews"]] == ["unsure", "good"]


@pytest.mark.parametrize(
    ("asked", "cookie", "language"),
    [
        ("zh-CN,zh;q=0.9,en;q=0.8", None, "zh-Hans"),
        ("de,en;q=0.5,zh;q=0.4", None, "en"),
        ("zh;q=0,en;q=0.1", None, "en"),
        ("zh;q=x,,;q=", None, "en"),
        ("en", "zh", "zh-Hans"),
        ("zh", "xx", "zh-Hans"),
    ],
)
def test_the_language_is_the_browser_s_or_the_one_chosen(
    host: HostProcess, asked: str, cookie: str | None, language: str
) -> None:
    cookies = {} if cookie is None else {"language": cookie}
    page = httpx.get(f"{host.url}queue", headers={"accept-language": asked}, cookies=cookies).text
    assert f'<html lang="{language}"' in page


def test_the_switch_keeps_language_and_colours_and_leads_back(host: HostProcess) -> None:
    with httpx.Client(base_url=host.url) as web:
        answer = web.post("/look", data={"language": "zh", "here": "/find?serial=a"})
        assert answer.headers["location"] == "/find?serial=a" and "SameSite=strict" in answer.headers["set-cookie"]
        web.post("/look", data={"theme": "dark"})
        page = web.get("/queue").text
        assert 'lang="zh-Hans" data-theme="dark"' in page and "待复检" in page
        for wrong in ({"language": "xx"}, {"theme": "'><script>"}):
            assert "set-cookie" not in web.post("/look", data=wrong).headers
        for elsewhere in ("//evil.example", "https://evil.example", "/\\evil.example", "/sign-in//\\evil"):
            assert web.post("/look", data={"here": elsewhere}).headers["location"] == "/queue"


def test_a_station_is_shown_as_its_edge_last_said(host: HostProcess, make_dealer: Callable[[str], Dealer]) -> None:
    dealer = make_dealer(host.endpoint)
    known = len(host.get("/api/parts"))
    for message in s.flagged(1000 + known, "seen live", Verdict.REJECT, 3.0, seed=1, audit_share=0.0):
        dealer.send(message)
    dealer.send(s.frames(s.state(1, recipe="washer <b>", waiting=3, inspecting=False)))
    dealer.wait_acked(1000 + known, 1001 + known, 1002 + known)
    dealer.wait_acked(1, spool="state-run-1")
    with httpx.Client(base_url=host.url) as web:
        assert f'href="/station?edge={s.EDGE}"' in web.get("/stations").text
        page, piece = web.get(f"/station?edge={s.EDGE}").text, web.get(f"/station/latest?edge={s.EDGE}").text
        assert piece.strip() in page and "<html" not in piece
        assert "washer &lt;b&gt;" in piece and "stopped by request" in piece and "seen live" in piece
        assert piece.count("<img") >= 1 and "badge reject" in piece
        assert web.get("/station?edge=none").status_code == 404
        assert web.get("/station").headers["location"] == "/stations"


def test_a_good_part_of_the_same_recipe_is_offered(host: HostProcess, make_dealer: Callable[[str], Dealer]) -> None:
    dealer = make_dealer(host.endpoint)
    start = 2000 + len(host.get("/api/parts"))
    for n, (name, recipe) in enumerate([("called good", "cog"), ("other recipe", "nut"), ("asked", "cog")]):
        for message in s.flagged(start + 3 * n, name, Verdict.REJECT, 3.0, seed=n, recipe=recipe):
            dealer.send(message)
    dealer.wait_acked(*range(start, start + 9))
    number = {part["part_id"]: part["id"] for part in host.get("/api/parts")}
    with inspector(host, "Ada") as ada:
        assert "&#34;golden&#34;: null" in ada.get(f"/parts/{number['asked']}").text
        for name in ("called good", "other recipe"):
            ada.post(f"/parts/{number[name]}/verdict", data={"decision": "good"})
        image = next(
            each["id"]
            for each in host.get(f"/api/parts/{number['called good']}")["attachments"]
            if each["role"] == "image"
        )
        golden = "&#34;golden&#34;: {&#34;shape&#34;: [256, 256, 3], &#34;toPart&#34;: null, &#34;url&#34;: "
        page = ada.get(f"/parts/{number['asked']}").text
        assert f"{golden}&#34;/api/attachments/{image}&#34;" in page
        ada.post(f"/parts/{number['called good']}/verdict", data={"decision": "undo"})
        assert "&#34;golden&#34;: null" in ada.get(f"/parts/{number['asked']}").text


def test_a_passed_part_is_offered_and_one_that_is_still_to_be_judged_is_not(
    host: HostProcess, make_dealer: Callable[[str], Dealer]
) -> None:
    dealer = make_dealer(host.endpoint)
    start = 3000 + len(host.get("/api/parts"))
    audited = {"audit_share": 0.1, "audited": True}
    for n, (name, verdict, more) in enumerate(
        [("passed", Verdict.PASS, {}), ("drawn", Verdict.PASS, audited), ("flagged", Verdict.REJECT, {})]
    ):
        for message in s.flagged(start + 3 * n, f"gear {name}", verdict, 0.5, seed=n, recipe="gear", **more):
            dealer.send(message)
    dealer.wait_acked(*range(start, start + 9))
    number = {part["part_id"]: part["id"] for part in host.get("/api/parts")}
    passed = {each["id"] for each in host.get(f"/api/parts/{number['gear passed']}")["attachments"]}
    with inspector(host, "Ada") as ada:
        page = ada.get(f"/parts/{number['gear flagged']}").text
        golden = re.search(r"&#34;golden&#34;: \{[^}]*attachments/(\d+)", page)
        assert golden is not None and int(golden[1]) in passed


def test_a_class_is_named_once_and_there_are_nine_digits(tmp_path: Path) -> None:
    from pydantic import ValidationError

    from plugin.settings import ReviewSettings

    assert ReviewSettings(classes=["scratch", "dent"]).classes == ["scratch", "dent"]
    for wrong in (["a", "a"], [f"c{n}" for n in range(10)], [" a"], [""]):
        with pytest.raises(ValidationError):
            ReviewSettings(classes=wrong)
