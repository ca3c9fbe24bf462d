"""The pages and the API against whoever means harm: markup in texts, forged requests, odd paths, endless bodies."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from plugin.blobs import BlobStore
from plugin.review.guard import MAX_BODY_BYTES
from plugin.review.signin import READING, declared, flat
from plugin.service import Service
from plugin.settings import EventSettings, HostSettings, HttpSettings, LineSettings
from tests.hostile.poison import Poison, forms, messages, pages
from tests.plugin.people import Browser, Site
from tests.plugin.synthetic import Dealer, until

# What an edge says of a part or of itself and people are shown; the walk may find more, never less.
SHOWN = {
    "edge_id",
    "part_id",
    "camera_id",
    "reason",
    "serial",
    "lot",
    "recipe",
    "bundle_id",
    "engine",
    "detail",
    "view",
}
SIGNING = ("/sign-in", "/sign-out")


def send(endpoint: str, poison: Poison) -> None:
    dealer = Dealer(endpoint)
    for message in messages(poison):
        dealer.send(message)
    dealer.wait_acked(*range(1, 6), spool=poison.probe("spool_id"))
    dealer.close()


@pytest.fixture(scope="module")
def poison() -> Poison:
    return Poison()


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, poison: Poison) -> Iterator[Site]:
    """A host whose parts, edge, cameras, recipe and gap are called by markup."""
    site = Site(tmp_path_factory.mktemp("site"))
    send(site.service.endpoint, poison)
    ada = site.signed_in("ada")
    until(lambda: ada.get("/api/summary").json()["states"], what="the heartbeat")
    opened = ada.post("/api/lines/line-1/containments", json={}, headers={"x-csrf-token": ada.token()})
    assert opened.status_code == 200, opened.text
    yield site
    site.stop()


def routes(site: Site) -> list[Any]:
    found: list[Any] = flat(site.app.routes)
    return found


def test_every_text_of_the_events_took_its_probe(site: Site, poison: Poison) -> None:
    wanted = {f"Result.{name}" for name in SHOWN - {"detail", "view"}} | {"Region.view", "PartRef.view", "Gap.reason"}
    wanted |= {"State.detail", "CameraState.detail", "Missed.reason", "Result.calibration_id", "Result.run_id"}
    assert wanted <= poison.reached
    parts = site.signed_in("eve").get("/api/v1/parts").json()["items"]
    assert parts[0]["part_id"] == poison.probe("part_id") and parts[0]["line"] == "line-1"


def test_markup_of_an_edge_is_text_on_every_page(site: Site, poison: Poison) -> None:
    shown: set[int] = set()
    browser = site.signed_in("ada")
    read = 0
    for path in pages(routes(site), poison):
        answer = browser.get(path)
        assert answer.status_code < 500, (path, answer.text)
        if answer.headers.get("content-type", "").startswith("text/html"):
            shown |= poison.shown_on(answer.text)
            read += 1
        else:
            assert answer.headers["x-content-type-options"] == "nosniff", path
        assert "content-security-policy" in answer.headers, path
    assert read > 8
    assert {poison.number_of(name) for name in SHOWN} <= shown, "the walk reaches what people are shown"


def test_markup_in_every_form_is_text_in_every_answer(site: Site, poison: Poison) -> None:
    browser = site.signed_in("ada")
    shown: set[int] = set()
    tried = 0
    for method, path, fields, body in forms(routes(site), poison):
        if path in SIGNING:
            continue
        token = {"x-csrf-token": browser.token()}
        given: dict[str, Any] = {"data": fields} if fields or not path.startswith("/api/") else {"json": body}
        answer = browser.request(method, path, headers=token, **given)
        assert answer.status_code < 500, (path, answer.text)
        if answer.headers.get("content-type", "").startswith("text/html"):
            shown |= poison.shown_on(answer.text)
        tried += 1
    assert tried >= 9
    for path in pages(routes(site), poison):
        answer = browser.get(path)
        if answer.headers.get("content-type", "").startswith("text/html"):
            shown |= poison.shown_on(answer.text)
    assert poison.number_of("name") in shown, "a name that was refused is said, as text"
    texts = ("name", "defect_class", "edge", "serial")
    master = {**{name: poison.probe(name) for name in texts}, "expected": "pass"}
    answer = browser.request("POST", "/lines/line-1/masters", data=master, headers={"x-csrf-token": browser.token()})
    assert answer.status_code == 303, answer.text
    lines = poison.shown_on(browser.get("/lines").text)
    assert {poison.number_of(name) for name in (*texts, "body")} <= lines, "a master, and what else was asked"
    assert poison.number_of("text") in poison.shown_on(browser.get("/containments/1").text), "what was decided"
    answer = site.browser().post("/sign-in", data={"name": poison.probe("name"), "password": "x", "next": "/queue"})
    assert poison.number_of("name") in poison.shown_on(answer.text)


def test_markup_in_the_name_that_somebody_types_without_sign_in(tmp_path: Path, poison: Poison) -> None:
    settings = HostSettings(
        state_dir=tmp_path / "state",
        events=EventSettings(bind="tcp://127.0.0.1:*"),
        http=HttpSettings(port=0),
        lines=[LineSettings(id="line-1", deadline_ms=60_000)],
    )
    service = Service(settings, tmp_path)
    service.start()
    try:
        send(service.endpoint, poison)
        with httpx.Client(base_url=service.url) as browser:
            assert browser.post("/name", data={"name": poison.probe("name")}).status_code == 303
            assert browser.post("/parts/1/verdict", data={"decision": "good"}).status_code == 303
            shown = {
                path: poison.shown_on(browser.get(path).text) for path in ("/queue", "/parts/1", "/name", "/counts")
            }
        assert all(poison.number_of("name") in each for each in shown.values()), shown
    finally:
        service.stop()


FORGED = {
    "no token": {},
    "another session's token": {"x-csrf-token": "theirs"},
    "an empty token": {"x-csrf-token": ""},
    "from elsewhere": {"x-csrf-token": "own", "origin": "https://evil.example"},
    "from a sandbox": {"x-csrf-token": "own", "origin": "null"},
    "from another port": {"x-csrf-token": "own", "origin": "http://127.0.0.1:1"},
    "from another site": {"x-csrf-token": "own", "sec-fetch-site": "cross-site"},
    "from a neighbour": {"x-csrf-token": "own", "sec-fetch-site": "same-site"},
}


@pytest.mark.parametrize("forged", FORGED)
def test_no_route_that_writes_takes_a_forged_request(site: Site, poison: Poison, forged: str) -> None:
    browser, other = site.signed_in("ada"), site.signed_in("ada")
    tokens = {"own": browser.token(), "theirs": other.token()}
    headers = {name: tokens.get(value, value) for name, value in FORGED[forged].items()}
    before = standing(site, browser)
    tried = 0
    for method, path, fields, body in forms(routes(site), poison):
        if path in ("/sign-in", "/look") and "origin" not in headers and "sec-fetch-site" not in headers:
            continue  # nobody has a session yet: this signs in, or chooses language and theme of the browser
        for given in ({"data": {**fields, "decision": "good"}}, {"json": body or {"decision": "good"}}):
            answer = browser.request(method, path, headers=headers, **given)  # type: ignore[arg-type]
            assert answer.status_code == 403, (method, path, answer.status_code, answer.text[:200])
            tried += 1
    assert tried > 20
    assert standing(site, browser) == before, "nothing was changed"
    assert browser.get("/queue").status_code == 200, "still signed in"


def standing(site: Site, browser: Browser) -> list[Any]:
    accounts = [each._replace(signed_in_s=None) for each in site.accounts.all()]
    actions = [row["action"] for row in site.accounts.audit(1000) if row["action"] != "signed in"]
    records = ("/api/v1/verdicts", "/api/lines/line-1/journal", "/api/containments/1")
    return [accounts, actions, *(browser.get(path).json() for path in records)]


@pytest.mark.parametrize(
    "path",
    [
        "/static/../templates/base.html",
        "/static/%2e%2e/templates/base.html",
        "/static/..%2ftemplates%2fbase.html",
        "/static/..%5ctemplates%5cbase.html",
        "/static/....//templates/base.html",
        "/static//etc/passwd",
        "/static/%2fetc%2fpasswd",
        "/static/review.css%00.html",
        "/static/review.css/../../app.py",
        "/../../../../etc/passwd",
        "//etc/passwd",
        "/api/v1/images/..%2f..%2faccounts.sqlite",
        "/api/v1/images/../../../accounts.sqlite",
        "/api/attachments/1%2f..%2f..%2faccounts.sqlite",
        "/api/v1/images/-1",
        "/api/v1/images/99999999999999999999999",
        "/parts/..%2f..%2fetc%2fpasswd",
    ],
)
def test_no_path_leads_out(site: Site, path: str) -> None:
    """Sent as it stands, for clients tidy paths up."""
    eve = site.signed_in("eve")
    address = httpx.URL(site.service.url)
    connection = http.client.HTTPConnection(str(address.host), address.port, timeout=10)
    connection.putrequest("GET", path, skip_accept_encoding=True)
    connection.putheader("cookie", f"flawline={eve.cookies['flawline']}")
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    assert answer.status in (400, 404, 422), (answer.status, body[:200])
    for secret in (b"root:", b"{% extends", b"{% block", b"SQLite format 3", b"import "):
        assert secret not in body


@pytest.mark.parametrize("name", ["../accounts.sqlite", "/etc/passwd", "..", "", "a" * 63, "A" * 64, "a" * 64 + "\n"])
def test_no_hash_leads_out(tmp_path: Path, name: str) -> None:
    blobs = BlobStore(tmp_path / "blobs")
    (tmp_path / "accounts.sqlite").write_text("secret")
    assert blobs.find(name) is None


def test_no_route_that_writes_takes_a_large_body(site: Site, poison: Poison) -> None:
    browser = site.signed_in("ada")
    headers = {"x-csrf-token": browser.token(), "content-type": "application/x-www-form-urlencoded"}
    large = b"decision=good&comment=" + b"x" * MAX_BODY_BYTES
    before = standing(site, browser)
    writing = [(method, path) for method, path, *_ in forms(routes(site), poison)]
    assert len(writing) > 9
    for method, path in writing:
        for answer in (
            browser.request(method, path, content=large, headers=headers),
            browser.request(method, path, content=iter([large]), headers=headers),  # in chunks, without a length
            browser.request(method, path, files={"upload": ("x.png", large, "image/png")}, headers=headers | MULTIPART),
        ):
            assert answer.status_code == 413, (method, path, answer.status_code)
    assert standing(site, browser) == before


MULTIPART = {"content-type": "multipart/form-data; boundary=x"}


@pytest.mark.parametrize("length", ["-1", "1e3", "0x10", "9" * 40, "12 12", "+5", "٣".encode().decode("latin-1")])
def test_a_length_that_is_none_is_refused(site: Site, length: str) -> None:
    address = httpx.URL(site.service.url)
    connection = http.client.HTTPConnection(str(address.host), address.port, timeout=10)
    connection.putrequest("POST", "/api/v1/parts/1/verdicts")
    connection.putheader("content-length", length)
    connection.endheaders()
    answer = connection.getresponse()
    assert answer.status in (400, 413)
    connection.close()


def test_a_head_without_end_is_refused(site: Site) -> None:
    address = httpx.URL(site.service.url)
    for head in ("x" * 200_000, "/" + "y" * 200_000):
        connection = http.client.HTTPConnection(str(address.host), address.port, timeout=10)
        try:
            connection.putrequest("GET", head if head[0] == "/" else "/queue")
            if head[0] == "x":
                connection.putheader("x-long", head)
            connection.endheaders()
            assert connection.getresponse().status in (400, 414, 431)
        except (ConnectionError, http.client.HTTPException):
            pass  # closed while it was still sending: refused as well
        connection.close()
    assert site.browser().get("/healthz").status_code == 200


def test_every_route_that_reads_changes_nothing(site: Site, poison: Poison) -> None:
    browser = site.signed_in("ada")
    before = standing(site, browser)
    for path in pages(routes(site), poison):
        browser.get(path)
    assert standing(site, browser) == before
    reading = [route for route in routes(site) if declared(route) and set(route.methods) <= set(READING)]
    assert len(reading) > 20
