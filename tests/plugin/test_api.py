"""The HTTP API for programs: typed pages, filters, scopes of tokens, one shape of mistakes, metrics."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from contract.event import Verdict
from plugin import accounts
from plugin.metrics import ENTRIES, PREFIX
from plugin.models import PartDetail, Review
from plugin.review import openapi
from plugin.review.signin import needs
from tests.plugin import synthetic as s
from tests.plugin.people import TEST, Browser, Site, accounts_in
from tests.plugin.synthetic import ROOT, Dealer

PARTS = [
    ("a-1", Verdict.PASS, {"serial": "S1", "lot": "L1"}),
    ("a-2", Verdict.PASS, {"serial": "S2", "lot": "L1", "recipe": "nut"}),
    ("a-3", Verdict.REVIEW, {"serial": "S1", "lot": "L2"}),
    ("a-4", Verdict.NOT_INSPECTED, {"reason": "the station was busy"}),
]


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """Seven parts of two edges; the last is flagged, with pictures, and its verdict is a REJECT."""
    site = Site(tmp_path_factory.mktemp("site"))
    dealer = Dealer(site.service.endpoint)
    for seq, (name, verdict, more) in enumerate(PARTS, start=1):
        dealer.send(s.frames(s.result(seq, name, verdict, **more)))
    dealer.send(s.frames(s.missed(5, "a-5")))
    dealer.wait_acked(*range(1, 6))  # within one commit announced parts come before those that nobody announced
    for message in s.flagged(6, "a-6", Verdict.REJECT, 4.0, seed=1):
        dealer.send(message)
    dealer.wait_acked(*range(1, 9))
    dealer.send(s.frames(s.result(1, "b-1", edge_id="edge-2", spool_id="spool-b")))
    dealer.wait_acked(1, spool="spool-b")
    dealer.close()
    yield site
    site.stop()


def program(site: Site, name: str = "eve", scope: accounts.Scope = "read") -> Browser:
    token = site.accounts.make_token(name, 1, TEST, scope)
    return site.browser(headers={"authorization": f"Bearer {token}"})


def names(answer: httpx.Response) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [part["part_id"] for part in answer.json()["items"]]


@pytest.mark.parametrize(
    ("query", "expected"),
    [
        ("", ["a-1", "a-2", "a-3", "a-4", "a-5", "a-6", "b-1"]),
        ("order=newest&limit=2", ["b-1", "a-6"]),
        ("verdict=REVIEW&verdict=REJECT", ["a-3", "a-6"]),
        ("verdict=NOT_INSPECTED", ["a-4", "a-5"]),
        ("serial=S1", ["a-1", "a-3"]),
        ("lot=L1", ["a-1", "a-2"]),
        ("lot=L1&serial=S2", ["a-2"]),
        ("recipe=nut", ["a-2"]),
        ("recipe=washer&edge=edge-2", ["b-1"]),
        ("edge=edge-2", ["b-1"]),
        ("line=line-1&edge=edge-2", ["b-1"]),
        ("line=another", []),
        ("review=none&verdict=REJECT", ["a-6"]),
        ("review=good", []),
        # part n was captured n seconds behind 14:13:20
        ("since=2026-09-21T14:13:23Z&until=2026-09-21T14:13:25%2B00:00", ["a-3", "a-4"]),
        ("since=2026-09-21T14:13:26", ["a-6"]),
        ("until=9999-12-31T23:59:59Z&since=0001-01-01T00:00:00Z&edge=edge-2", ["b-1"]),
    ],
)
def test_parts_are_found_by_what_is_known_of_them(site: Site, query: str, expected: list[str]) -> None:
    assert names(program(site).get(f"/api/v1/parts?{query}")) == expected


def test_pages_follow_one_another_and_end(site: Site) -> None:
    web, seen, after = program(site), [], ""
    for _ in range(4):
        page = web.get(f"/api/v1/parts?limit=2{after}").json()
        seen += [part["part_id"] for part in page["items"]]
        after = f"&after={page['next']}"
    assert page["next"] is None and seen == ["a-1", "a-2", "a-3", "a-4", "a-5", "a-6", "b-1"]
    backwards = web.get("/api/v1/parts?order=newest&limit=3").json()
    assert names(web.get(f"/api/v1/parts?order=newest&limit=3&after={backwards['next']}")) == ["a-4", "a-3", "a-2"]


def test_a_part_with_all_that_belongs_to_it(site: Site) -> None:
    web = program(site)
    row = web.get("/api/v1/parts?edge=edge-1&verdict=REJECT").json()["items"][0]
    part = PartDetail.model_validate(web.get(f"/api/v1/parts/{row['id']}").json())
    assert (part.part_id, part.line, part.recipe, part.engine) == ("a-6", "line-1", "washer", "openvino fp32")
    assert part.time == "2026-09-21T14:13:26.000Z"
    assert part.header is not None and part.header["regions"] and part.output is not None and part.output.code == 2
    assert [image.role for image in part.images] == ["map", "image", "reconstruction"]
    for image in part.images:
        data = web.get(image.url)
        assert len(data.content) == image.size
        kinds = {"raw": "application/octet-stream", "png": "image/png"}
        assert data.headers["content-type"] == kinds[image.codec]
    assert web.get("/api/v1/images/99").status_code == 404


def test_events_as_they_were_sent(site: Site) -> None:
    web = program(site)
    kinds = [each["kind"] for each in web.get("/api/v1/events?edge=edge-1").json()["items"]]
    assert kinds == ["result"] * 4 + ["missed", "trigger", "result", "attachment"]
    found = web.get("/api/v1/events?kind=missed").json()["items"]
    assert [(each["part_id"], each["header"]["reason"]) for each in found] == [("a-5", "the station was busy")]
    assert web.get(f"/api/v1/events/{found[0]['id']}").json() == found[0]
    assert [e["seq"] for e in web.get("/api/v1/events?part_id=a-6&order=newest").json()["items"]] == [8, 7, 6]
    assert web.get("/api/v1/events/99").json() == {"error": "there is no event 99"}


def test_scopes_of_tokens(site: Site) -> None:
    reader, reviewer, boss = (program(site, scope=scope) for scope in accounts.SCOPES)
    url = "/api/v1/parts/3/verdicts"
    for writer in (reader.post(url, json={"decision": "good"}), reader.post("/api/parts/3/verdict", json={})):
        assert writer.status_code == 403 and "needs a token to review; this one is to read" in writer.text
    assert reviewer.post("/api/control", json={}).status_code == 403, "edges are asked by who administers"
    assert boss.post("/api/control", json={"edge": "edge-1", "what": "status"}).status_code == 409, "no [control]"
    done = reviewer.post(url, json={"decision": "good"})
    assert done.status_code == 201, done.text
    assert reviewer.post(url, json={"decision": "good", "inspector": "ivan"}).status_code == 403
    assert boss.post(url, json={"decision": "undo"}).status_code == 201
    rows = [Review.model_validate(each) for each in reader.get(url).json()["items"]]
    assert [(row.decision, row.inspector, row.id) for row in rows] == [
        ("good", "eve", done.json()["review"]),
        ("undo", "eve", done.json()["review"] + 1),
    ]
    assert reader.get("/api/v1/verdicts").json()["items"] == reader.get(url).json()["items"]
    # A token's account may no more than its role, whatever its scope.
    assert program(site, "ivan", "administer").get("/api/v1/parts").status_code == 403
    for page in ("/queue", "/accounts", "/account"):
        assert boss.get(page).status_code == 303, "pages are a person's"
    assert boss.post("/accounts", data={"name": "zed"}).status_code == 303
    assert site.counted("beyond_scope") == 3


def test_with_a_cookie_the_sessions_token_is_needed_and_with_a_bearer_none(site: Site) -> None:
    browser = site.signed_in("ivan")
    url, body = "/api/v1/parts/4/verdicts", {"decision": "good"}
    assert browser.post(url, json=body).status_code == 403
    assert browser.post(url, json=body, headers={"x-csrf-token": "0" * 64}).status_code == 403
    assert browser.get(url).json()["items"] == []
    assert browser.post(url, json=body, headers={"x-csrf-token": browser.token()}).status_code == 201
    token = site.accounts.make_token("eve", 1, TEST, "review")
    both = browser.post(url, json={"decision": "undo"}, headers={"authorization": f"Bearer {token}"})
    assert both.status_code == 201
    assert [row["inspector"] for row in browser.get(url).json()["items"]] == ["ivan", "eve"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/api/v1/none", 404),
        ("GET", "/api/v1/parts/x", 404),
        ("GET", "/api/v1/parts/99999", 404),
        ("GET", "/api/v1/parts?limit=0", 422),
        ("GET", "/api/v1/parts?verdict=GOOD", 422),
        ("GET", "/api/v1/parts?since=yesterday", 422),
        ("GET", "/api/v1/parts?serial=%00", 422),
        ("GET", "/api/v1/stream?after=1-2", 422),
        ("DELETE", "/api/v1/parts/1", 405),
        ("PUT", "/api/v1/parts", 405),
    ],
)
def test_every_mistake_has_one_shape(site: Site, method: str, path: str, status: int) -> None:
    headers = {} if method == "GET" else {"content-length": "0"}
    answer = program(site).request(method, path, headers=headers)
    assert answer.status_code == status, answer.text
    assert list(answer.json()) == ["error"] and answer.json()["error"]


def test_mistakes_before_and_behind_the_routes_have_it_too(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    web = program(site, scope="review")
    url = "/api/v1/parts/1/verdicts"
    foreign = web.post(url, json={}, headers={"origin": "https://evil.example"})
    chunked = web.post(url, content=iter([b"{}"]))
    large = web.post(url, content=b" " * 70_000)
    unsound = web.post(url, content=b'{"decision": "good", "\\ud800": 1}', headers={"content-type": "application/json"})
    torn = web.post(url, content=b"{", headers={"content-type": "application/json"})
    answers = [site.browser().get(url), foreign, chunked, large, unsound, torn]
    assert [each.status_code for each in answers] == [401, 403, 413, 413, 422, 422]
    monkeypatch.setattr(site.service.reader, "find_parts", lambda *_: 1 / 0)
    broken = web.get("/api/v1/parts")
    assert broken.status_code == 500
    for each in [*answers, broken]:
        assert list(each.json()) == ["error"], each.text


def test_what_is_judged_blindly_says_no_more_here_than_elsewhere(tmp_path: Path) -> None:
    site = Site(tmp_path)
    dealer = Dealer(site.service.endpoint)
    drawn = s.result(1, "drawn", audit_share=0.5, audited=True, parts=(), score=0.4)
    dealer.send(s.frames(drawn))
    dealer.wait_acked(1)
    dealer.close()
    try:
        for told, web in ((False, site.signed_in("ivan")), (True, site.signed_in("eve"))):
            part = web.get("/api/v1/parts/1").json()
            assert part["blind"] is not told
            assert [part[name] is not None for name in ("verdict", "score", "threshold", "header", "output")] == [
                told
            ] * 5
            assert ("PASS" in json.dumps(part)) is told
    finally:
        site.stop()


def test_the_published_description_is_the_code_s(site: Site) -> None:
    """Written anew with: python -m plugin.review.openapi > docs/openapi.json."""
    published = json.loads((ROOT / "docs" / "openapi.json").read_text())
    assert published == openapi.make_api().openapi() == program(site).get("/api/openapi.json").json()
    assert site.app.openapi() == published


def test_the_description_says_who_may(site: Site) -> None:
    described = openapi.make_api().openapi()
    for path, operations in described["paths"].items():
        for method, operation in operations.items():
            if path != "/healthz":
                assert operation["x-role"] in ("inspector", "engineer") and operation["security"], path
                assert (operation["x-scope"] == "read") is (method == "get"), path
            answer = operation["responses"]["422"]["content"]["application/json"]["schema"]
            assert answer == {"$ref": "#/components/schemas/Problem"}, path
            if path.startswith("/api/v1/"):
                (good,) = (each for status, each in operation["responses"].items() if status[0] == "2")
                shapes = [kind["schema"] for kind in good["content"].values()]
                assert all("$ref" in shape or shape.get("type") == "string" for shape in shapes), path
    assert described["paths"]["/api/v1/parts/{number}/verdicts"]["post"]["x-scope"] == "review"
    assert described["paths"]["/api/control"]["post"]["x-scope"] == "administer"
    assert needs.__doc__


def test_metrics(site: Site) -> None:
    assert site.browser().get("/metrics").status_code == 401
    web = program(site)
    answer = web.get("/metrics")
    assert answer.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    assert {PREFIX + name for name in ENTRIES} <= set(families)

    def value(name: str, **labels: str) -> float:
        (found,) = (x.value for x in families[PREFIX + name].samples if labels.items() <= x.labels.items())
        return found

    assert value("ok") == 1 and value("line_ok", line="line-1") == 0
    assert value("parts", line="line-1", verdict="PASS") == 3
    assert value("parts", line="line-1", verdict="NOT_INSPECTED") == 2
    assert value("review_waiting") == 2 and value("review_oldest_seconds") > 0
    assert value("receiver", what="received") == 9
    assert value("writer_waiting_events") == value("ledger_open_parts") == 0
    assert value("state_free_bytes") > 1 << 20


def test_accounts_of_an_earlier_flawline_keep_their_tokens(tmp_path: Path) -> None:
    old = accounts_in(tmp_path)
    token = old.make_token("eve", 1, TEST)
    old.close()
    file = sqlite3.connect(tmp_path / accounts.DATABASE)
    file.execute("ALTER TABLE tokens RENAME TO newer")
    file.execute("CREATE TABLE tokens AS SELECT token_sha256, account, epoch, made_s, ends_s FROM newer")
    file.execute("DROP TABLE newer")
    file.execute("PRAGMA user_version=1")
    file.commit()
    file.close()
    for _ in range(2):
        again = accounts_in(tmp_path)
        assert again.of_token(token) == ("eve", "engineer", "read")
        again.close()
