"""Pages and HTTP API of a running host: what they show, escape and refuse."""

from __future__ import annotations

import html
import json
import re
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from contract.event import Verdict
from tests.plugin import synthetic as s
from tests.plugin.synthetic import Dealer, HostProcess

EVIL = "<script>alert('x')</script>\"&"


@pytest.fixture(scope="module")
def host(shared_host: HostProcess) -> Iterator[HostProcess]:
    dealer = Dealer(shared_host.endpoint)
    messages = [
        *s.flagged(1, "worst", Verdict.REJECT, 4.0, seed=1),
        *s.flagged(4, "second", Verdict.REJECT, 3.0, seed=2),
        *s.flagged(7, EVIL, Verdict.REVIEW, 1.1, seed=3, reason=EVIL),
        s.frames(s.trigger(10, "fine", serial=EVIL, frame_no=0)),
        s.frames(s.result(11, "fine", serial=EVIL, lot="L 7&8", encoder=-5, frame_no=31), age_ms=60.0),
        s.frames(s.missed(12, f"lost {EVIL}", EVIL, serial=EVIL)),
        s.frames(s.gap(13, EVIL)),
        s.frames(s.state(1, detail=EVIL)),
        s.frames(s.attachment(14, "second", 5, (), dropped=True)),
    ]
    for message in messages:
        dealer.send(message)
    dealer.wait_acked(*range(1, 15))
    dealer.close()
    yield shared_host


@pytest.fixture
def web(host: HostProcess) -> Iterator[httpx.Client]:
    desk = {"desk": "0" * 32}  # one browser for all tests: what one of them has open, no other is kept from
    with httpx.Client(base_url=host.url, follow_redirects=False, cookies=desk) as client:
        yield client


def part_named(web: httpx.Client, name: str) -> dict[str, Any]:
    return next(part for part in web.get("/api/parts").json() if part["part_id"] == name)


def test_the_api_tells_what_came(web: httpx.Client) -> None:
    parts = web.get("/api/parts", params={"limit": 3}).json()
    rest = web.get("/api/parts", params={"after": parts[-1]["id"]}).json()
    assert [part["state"] for part in parts + rest] == ["result"] * 4 + ["missed"]
    first = parts[0]
    assert {"id", "edge_id", "part_id", "camera_id", "frame_no", "trigger_id", "verdict", "score", "threshold"} <= set(
        first
    )
    assert first["timing"]["age_ms"] == 53.0
    assert first["timing"]["t_capture_ns"] == 10**12
    summary = web.get("/api/summary").json()
    assert summary["verdicts"] == {"REJECT": 2, "REVIEW": 1, "PASS": 1, "NOT_INSPECTED": 1}
    assert summary["kinds"] == {"trigger": 4, "result": 4, "missed": 1, "attachment": 4, "gap": 1}
    assert (summary["holes"], summary["gaps"], summary["waiting"]) == (0, 1, 3)
    assert [row["reason"] for row in web.get("/api/gaps").json()] == [EVIL]
    assert [part["part_id"] for part in web.get("/api/queue").json()] == ["worst", "second", EVIL]
    assert {row["code"] for row in web.get("/api/line").json()} == {1, 2, 3, 4}
    assert web.get("/healthz").json()["ok"] is True


def test_maps_and_pictures_come_as_they_were_sent(web: httpx.Client) -> None:
    details = web.get(f"/api/parts/{part_named(web, 'worst')['id']}").json()
    files = {each["role"]: each for each in details["attachments"]}
    image, _, deviation, _ = s.washer(1)
    answer = web.get(f"/api/attachments/{files['map']['id']}")
    assert answer.headers["content-type"] == "application/octet-stream"
    assert np.frombuffer(answer.content, "<f2").reshape(files["map"]["shape"]).max() > 1
    assert answer.content == deviation
    picture = web.get(f"/api/attachments/{files['image']['id']}")
    assert (picture.content, picture.headers["content-type"]) == (image, "image/png")
    assert "immutable" in picture.headers["cache-control"]
    assert details["header"]["map_threshold"] == 0.5
    assert details["line"]["code"] == 2


def test_two_parts_of_one_serial_are_both_found_and_stay_two(web: httpx.Client) -> None:
    found = web.get("/api/parts", params={"serial": EVIL}).json()
    assert [part["part_id"] for part in found] == ["fine", f"lost {EVIL}"]
    fine = found[0]
    assert (fine["lot"], fine["encoder"], fine["frame_no"]) == ("L 7&8", -5, 31), "as the result knows it"
    assert [part["part_id"] for part in web.get("/api/parts", params={"lot": "L 7&8"}).json()] == ["fine"]
    assert web.get("/api/parts", params={"serial": "none such"}).json() == []
    page = web.get(f"/parts/{fine['id']}").text
    shown = html.escape(EVIL, quote=False).replace("'", "&#39;").replace('"', "&#34;")
    assert f">{shown}</a>" in page and "/find?lot=L%207%268" in page and "<dd>-5</dd>" in page
    listed = web.get("/find", params={"serial": EVIL}).text
    assert listed.count('<tr><td><a href="/parts/') == 2 and EVIL not in listed
    assert "No part bears this." in web.get("/find", params={"lot": "none"}).text
    assert web.get("/find", params={"serial": "x" * 101}).status_code == 422


@pytest.mark.parametrize(
    "path", ["/find?serial=none&lot=none", "/queue", "/lost", "/counts", "/name", "/parts/3", "/parts/5"]
)
def test_every_page_escapes_what_edges_say_and_runs_no_inline_code(web: httpx.Client, path: str) -> None:
    answer = web.get(path)
    assert answer.status_code == 200
    assert "<script>" not in answer.text
    assert not re.search(r"\son\w+=|\sstyle=|javascript:", re.sub(r'data-\w+="[^"]*"', "", answer.text))
    assert answer.headers["content-security-policy"].startswith("default-src 'self'")
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_hostile_text_is_shown_as_text(web: httpx.Client) -> None:
    page = web.get(f"/parts/{part_named(web, EVIL)['id']}").text
    assert html.escape(EVIL, quote=False).replace("'", "&#39;").replace('"', "&#34;") in page
    assert "spool was full" not in page


@pytest.mark.parametrize(
    "path",
    [
        "/nowhere",
        "/parts/999",
        "/parts/abc",
        "/parts/99999999999999999999",
        "/static/none.js",
        "/static/../app.py",
        "/api/parts/999",
        "/api/parts/x",
        "/api/attachments/999",
        "/api/nothing",
        "/parts/-1",
    ],
)
def test_what_is_not_there_is_404(web: httpx.Client, path: str) -> None:
    answer = web.get(path)
    assert answer.status_code == 404
    if path.startswith("/api"):
        assert answer.json()["error"]


@pytest.mark.parametrize("query", ["after=-1", "limit=0", "limit=100000", "after=x", "after=99999999999999999999"])
def test_bad_questions_are_422(web: httpx.Client, query: str) -> None:
    assert web.get(f"/api/parts?{query}").status_code == 422


@pytest.mark.parametrize(
    "name", ["evil.example", "127.0.0.1.evil.example", "10.0.0.1", "", "[", "localhost.evil.example:80"]
)
def test_a_foreign_host_name_is_refused(web: httpx.Client, name: str) -> None:
    answer = web.get("/queue", headers={"host": name})
    assert answer.status_code == 403 or (name in ("", "[") and answer.status_code == 400)


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1:1", "[::1]:80", "127.8.8.8"])
def test_loopback_names_are_answered(web: httpx.Client, name: str) -> None:
    assert web.get("/healthz", headers={"host": name}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"origin": "https://evil.example"},
        {"origin": "null"},
        {"origin": "http://127.0.0.1:1"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ],
)
def test_a_verdict_from_another_site_is_refused(web: httpx.Client, headers: dict[str, str]) -> None:
    for answer in (
        web.post("/parts/1/verdict", data={"decision": "good"}, headers=headers),
        web.post("/api/parts/1/verdict", json={"decision": "good"}, headers=headers),
    ):
        assert answer.status_code == 403
    assert web.get("/api/parts/1").json()["reviews"] == []


def test_a_huge_or_unmeasured_body_is_refused(web: httpx.Client) -> None:
    assert web.post("/parts/1/verdict", content=b"x" * 70_000).status_code == 413
    assert web.post("/parts/1/verdict", content=iter([b"decision=good"])).status_code == 413


def test_a_verdict_moves_on_and_can_be_taken_back(web: httpx.Client) -> None:
    worst, second = part_named(web, "worst"), part_named(web, "second")
    named = web.post("/name", data={"name": "Zoë ; Q=1"})
    assert "HttpOnly" in named.headers["set-cookie"]
    assert "SameSite=strict" in named.headers["set-cookie"]
    origin = {"origin": str(web.base_url).rstrip("/")}
    moved = web.post(f"/parts/{worst['id']}/verdict", data={"decision": "good"}, headers=origin)
    assert (moved.status_code, moved.headers["location"]) == (303, f"/parts/{second['id']}?last={worst['id']}")
    assert "Undo" in web.get(moved.headers["location"]).text
    assert web.get(f"/api/parts/{worst['id']}").json()["review_by"] == "Zoë ; Q=1"
    rates = web.get("/api/summary").json()["false_rejects"]["REJECT"]
    assert (rates["hits"], rates["total"]) == (1, 1)
    back = web.post(f"/parts/{worst['id']}/verdict", data={"decision": "undo"})
    assert back.headers["location"] == f"/parts/{worst['id']}"
    again = web.post(f"/parts/{worst['id']}/verdict", data={"decision": "undo"})
    assert again.status_code == 409
    assert "no verdict to undo" in again.text
    history = web.get(f"/api/parts/{worst['id']}").json()["reviews"]
    assert [(row["decision"], row["inspector"]) for row in history] == [("good", "Zoë ; Q=1"), ("undo", "Zoë ; Q=1")]


def test_verdicts_as_json(web: httpx.Client) -> None:
    number = part_named(web, f"lost {EVIL}")["id"]
    assert web.post(f"/api/parts/{number}/verdict", json={"decision": "defect", "inspector": "Ada"}).status_code == 201
    assert web.get(f"/api/parts/{number}").json()["review"] == "defect"
    assert web.post(f"/api/parts/{number}/verdict", json={"decision": "maybe"}).status_code == 422
    assert web.post("/api/parts/999/verdict", json={"decision": "good"}).status_code == 404
    assert web.post("/parts/999/verdict", data={"decision": "good"}).status_code == 404


def test_pages_need_nothing_from_elsewhere() -> None:
    folder = Path(__file__).resolve().parents[2] / "plugin" / "review"
    for file in [*folder.glob("templates/*"), *folder.glob("static/*")]:
        text = file.read_text().replace("http://www.w3.org/2000/svg", "")
        assert not re.search(r"https?://|//cdn|@import|url\(", text), file


def test_the_database_file_tells_the_same(host: HostProcess, web: httpx.Client) -> None:
    connection = sqlite3.connect(host.folder / "state" / "store.sqlite")
    stored = connection.execute("SELECT header FROM events WHERE kind = 'result' ORDER BY id LIMIT 1").fetchone()[0]
    connection.close()
    assert json.loads(stored) == web.get("/api/parts/1").json()["header"]


def test_what_edges_write_beside_the_known_fields_breaks_no_page(
    make_host: Callable[..., HostProcess], make_dealer: Callable[[str], Dealer]
) -> None:
    host = make_host()
    dealer = make_dealer(host.endpoint)
    odd = [
        s.frames(s.flagged_header(1, "odd")),
        s.frames(s.state(1)),
    ]
    for message in odd:
        message[2] = message[2].replace(b'"kind":', b'"extra":NaN,"more":1e999,"received_ns":"x","kind":')
        message[2] = message[2].replace(b'"peak":1.35', b'"peak":"1.35"')
        dealer.send(message)
    dealer.wait_acked(1)
    dealer.wait_acked(1, spool="state-run-1")
    for path in ("queue", "parts/1", "counts", "api/summary", "api/parts/1", "api/parts", "api/queue"):
        assert httpx.get(host.url + path).status_code == 200, path


def test_a_full_queue_page_is_bounded(
    make_host: Callable[..., HostProcess], make_dealer: Callable[[str], Dealer]
) -> None:
    host = make_host()
    dealer = make_dealer(host.endpoint)
    for seq in range(1, 201):
        dealer.send(s.frames(s.result(seq, verdict=Verdict.REJECT, score=1.0 + seq)))
    dealer.wait_acked(*range(1, 201))
    page = httpx.get(host.url + "queue").text
    assert page.count('class="card"') == 60
    assert "of 200 are shown" in page
