"""Sign-in at a running host: who gets in, what each role reaches, what is refused, said and counted."""

from __future__ import annotations

import logging
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import APIRouter, FastAPI
from fastapi.routing import APIRoute
from fastapi.staticfiles import StaticFiles

from plugin.accounts import ROLES
from plugin.errors import ConfigError
from plugin.review.signin import (
    ACCOUNT_FREE,
    ADDRESS_FREE,
    FOR_PROGRAMS,
    READING,
    WAITING_HASHES,
    declared,
    flat,
    undeclared,
)
from plugin.review.signin import OPEN as OPEN_TO_ALL
from plugin.service import Service
from plugin.settings import load_settings
from tests.plugin.people import PASSWORD, PEOPLE, TEST, Browser, Site, Stuck, add_part, certificate
from tests.plugin.synthetic import ROOT, until

BY_ROLE = {"inspector": "ivan", "engineer": "eve", "administrator": "ada"}
OPEN = {("GET", "/healthz"), ("GET", "/sign-in"), ("POST", "/sign-in"), ("POST", "/look")}
LISTS = {"/api/parts", "/api/line", "/api/gaps", "/api/summary", "/api/openapi.json", "/api/control"}
LISTS |= {
    "/api/export/verdicts",
    "/metrics",
    "/known",
    "/inspectors",
    "/inspectors/couples.csv",
    "/drift/1/clear",
    "/candidates",
}
LISTS |= {f"/api/v1/{name}" for name in ("parts", "verdicts", "events", "events/1", "stream")}
LISTS |= {f"/api/v1/export/{name}" for name in ("verdicts", "dataset")}
LISTS |= {"/api/gate", *(f"/api/lines/line-1/{name}" for name in ("journal", "alarm", "containments"))}
LISTS |= {f"{api}/lines/line-1/masters{more}" for api in ("", "/api") for more in ("", "/remove")}
LISTS |= {"/lines/line-1/contain", "/containments/1", "/containments/1/notes"}
LISTS |= {f"/api/containments/1{more}" for more in ("", "/notes", "/parts.csv", "/parts.zip")}
ENDLESS = "/api/v1/stream"


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """A host with one flagged part, for tests that fail no sign-in."""
    site = Site(tmp_path_factory.mktemp("shared"))
    add_part(site)
    eve = site.signed_in("eve")
    opened = eve.post("/api/lines/line-1/containments", json={}, headers={"x-csrf-token": eve.token()})
    assert opened.status_code == 200, opened.text
    yield site
    site.stop()


@pytest.fixture
def make_site(tmp_path: Path) -> Iterator[Callable[..., Site]]:
    made: list[Site] = []

    def make(**options: Any) -> Site:
        made.append(Site(tmp_path, **options))
        return made[-1]

    yield make
    for site in made:
        site.stop()


@pytest.fixture
def site(make_site: Callable[..., Site]) -> Site:
    return make_site()


def routes(app: FastAPI) -> list[tuple[str, str, str | None]]:
    """(method, path with something in its place, role) of every route that is not everybody's."""
    found = []
    for route in flat(app.routes):
        if isinstance(route, APIRoute):
            path = route.path.replace("{number}", "1").replace("{name}", "olga").replace("{line}", "line-1")
            path = path.replace("{word}", "A" * 22).replace("{n}", "0")
            path = path.replace("/figures/{table}", "/figures/time").replace("{table}", "couples")
            found += [(method, path, declared(route)[0]) for method in sorted(route.methods)]
    return found


def ask(browser: Browser, method: str, path: str, **options: Any) -> httpx.Response:
    """Any request with what its route could want in its body."""
    if method in READING:
        return browser.request(method, path, **options)
    if path.startswith("/api/"):
        return browser.request(method, path, json={"decision": "defect"}, **options)
    everything = {"decision": "defect", "name": "zed", "role": "administrator"}
    passwords = dict.fromkeys(("password", "old", "new", "again"), PASSWORD)
    return browser.request(method, path, data={**everything, **passwords}, **options)


def test_every_route_says_which_role_it_needs(shared: Site) -> None:
    app = shared.app
    assert undeclared(app.routes) == []
    assert {(method, path) for method, path, role in routes(app) if role is None} == OPEN
    for method, path, role in routes(app):
        if (method, path) not in OPEN:
            wanted = "administrator" if path.startswith("/accounts") else "engineer" if path in LISTS else "inspector"
            assert role == wanted, path
    assert {path for _, path, _ in routes(app)} >= LISTS
    assert len(routes(app)) > 25


def test_a_route_that_says_nothing_is_found() -> None:
    app = FastAPI()
    router = APIRouter()
    router.get("/forgotten")(lambda: None)
    router.get("/twice", dependencies=[OPEN_TO_ALL, OPEN_TO_ALL])(lambda: None)
    app.include_router(router)
    app.mount("/files", StaticFiles(directory=ROOT / "docs"))
    assert {"/forgotten", "/twice", "/files"} <= set(undeclared(app.routes))


POLLING = ("/api/waiting", "/stations/latest", "/station/latest", "/parts/1/hold")


def test_nobody_reaches_anything(shared: Site, caplog: pytest.LogCaptureFixture) -> None:
    before = shared.counted("not_signed_in")
    browser = shared.browser()
    with caplog.at_level(logging.WARNING):
        assert browser.get("/queue").status_code == 303
        assert caplog.text == "", "every shift begins like that"
        assert browser.get("/api/parts").status_code == 401
    assert "nobody is signed in, GET '/api/parts' from 127.0.0.1" in caplog.text
    closed = [(method, path) for method, path, role in routes(shared.app) if role is not None]
    for method, path in closed:
        answer = ask(browser, method, path)
        if path.startswith(FOR_PROGRAMS):
            assert (answer.status_code, answer.json()) == (401, {"error": "Sign in first."}), path
        else:
            assert answer.status_code == 303, path
            assert answer.headers["location"].startswith(("/sign-in?next=", "/sign-in?why=out")), path
    assert shared.counted("not_signed_in") == before + 2 + len(closed) - len(POLLING), "a page that polls is no attempt"
    page = browser.get("/no-such-page")
    assert (page.status_code, "Counts" in page.text) == (404, False)


@pytest.mark.parametrize("role", ["inspector", "engineer"])
def test_no_role_reaches_beyond_itself(shared: Site, role: str, caplog: pytest.LogCaptureFixture) -> None:
    browser = shared.signed_in(BY_ROLE[role])
    token, before, accounts = browser.token(), shared.counted("beyond_role"), shared.accounts.all()
    beyond = [
        (method, path)
        for method, path, needed in routes(shared.app)
        if needed is not None and ROLES.index(needed) > ROLES.index(role)  # type: ignore[arg-type]
    ]
    assert beyond
    for method, path in beyond:
        answer = ask(browser, method, path, headers={"x-csrf-token": token})
        assert answer.status_code == 403, path
        assert f"{BY_ROLE[role]} is {role}" in answer.text, path
    assert shared.counted("beyond_role") == before + len(beyond)
    assert shared.accounts.all() == accounts
    assert browser.get("/accounts").status_code == 403


@pytest.mark.parametrize("role", ROLES)
def test_a_role_reaches_what_is_its_own(shared: Site, role: str) -> None:
    browser = shared.signed_in(BY_ROLE[role])
    for method, path, needed in routes(shared.app):
        if path == ENDLESS:
            continue
        if method in READING and (needed is None or ROLES.index(needed) <= ROLES.index(role)):  # type: ignore[arg-type]
            answer = browser.get(path)
            assert answer.status_code in (200, 303, 307), (path, answer.text)
            assert "/sign-in" not in answer.headers.get("location", ""), path


def test_a_refused_role_is_said_in_the_log(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        site.signed_in("ivan").get("/accounts")
    assert "refused: ivan is inspector, administrator is needed, GET '/accounts' from 127.0.0.1" in caplog.text


def test_a_write_without_the_sessions_token_is_refused(shared: Site) -> None:
    browser, other = shared.signed_in("ada"), shared.signed_in("ada")
    foreign, before = other.token(), shared.counted("without_token")
    writes = [(m, path) for m, path, role in routes(shared.app) if m not in READING and role is not None]
    accounts = shared.accounts.all()
    for method, path in writes:
        for headers in ({}, {"x-csrf-token": foreign}, {"x-csrf-token": ""}, {"x-csrf-token": "\xff"}):
            raw = {name: value.encode("latin-1") for name, value in headers.items()}
            assert ask(browser, method, path, headers=raw).status_code == 403, path
    form = {"csrf": foreign, "decision": "good"}
    assert browser.post("/parts/1/verdict", data=form).status_code == 403
    assert browser.post("/parts/1/verdict", files={"csrf": (None, browser.token())}).status_code in (403, 422)
    assert shared.counted("without_token") >= before + 4 * len(writes) + 1
    assert shared.accounts.all() == accounts
    assert browser.get("/api/parts/1").json()["reviews"] == []
    assert browser.get("/queue").status_code == 200, "still signed in"


def test_a_foreign_page_cannot_write_even_with_a_token(shared: Site) -> None:
    browser = shared.signed_in("ivan")
    form = {"csrf": browser.token(), "decision": "good"}
    for headers in ({"origin": "https://evil.example"}, {"sec-fetch-site": "cross-site"}):
        assert browser.post("/parts/1/verdict", data=form, headers=headers).status_code == 403
        assert browser.post("/sign-in", data={"name": "ada", "password": PASSWORD}, headers=headers).status_code == 403


def test_a_session_is_new_its_cookie_is_kept_from_scripts_and_other_sites(shared: Site) -> None:
    browser = shared.browser()
    browser.cookies.set("flawline", "chosen-by-somebody")
    answer = browser.sign_in("ivan", next="/parts/1?last=0")
    assert (answer.status_code, answer.headers["location"]) == (303, "/parts/1?last=0")
    cookie = answer.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert "Secure" not in cookie, "there is no TLS on this host"
    first = cookie.partition(";")[0].partition("=")[2]
    assert len(first) == 43
    again = shared.browser(cookies={"flawline": first})
    second = again.sign_in("eve").headers["set-cookie"]
    assert first not in second
    assert shared.browser(cookies={"flawline": first}).get("/queue").status_code == 303
    assert shared.browser(cookies={"flawline": "chosen-by-somebody"}).get("/queue").status_code == 303


@pytest.mark.parametrize("token", ["", "x", "A" * 43, "A" * 5000, "' OR 1=1 --", "\xff\xfe", "%00", '"quoted"'])
def test_forged_tokens_are_nobodys(shared: Site, token: str) -> None:
    browser = shared.browser()
    answer = browser.get("/api/waiting", headers={"cookie": f"flawline={token}".encode("latin-1")})
    assert answer.status_code == 401


def test_another_hosts_session_is_nobodys(shared: Site, site: Site) -> None:
    theirs = shared.signed_in("ada").cookies
    assert site.browser(cookies=theirs).get("/accounts").status_code == 303


@pytest.mark.parametrize(
    "target", ["//evil.example", "https://evil.example", "/\\evil.example", "/a\r\nX: y", "", "/sign-out", "evil", "/ö"]
)
def test_sign_in_leads_nowhere_else(shared: Site, target: str) -> None:
    assert shared.browser().sign_in("ivan", next=target).headers["location"] == "/queue"


def test_signing_out_ends_the_session(shared: Site) -> None:
    browser = shared.signed_in("ivan")
    cookies = dict(browser.cookies)
    out = browser.submit("/sign-out")
    assert (out.status_code, out.headers["location"]) == (303, "/sign-in?why=out")
    assert "signed out" in browser.get(out.headers["location"]).text
    assert shared.browser(cookies=cookies).get("/queue").status_code == 303
    assert [row["action"] for row in shared.accounts.audit(2)] == ["signed out", "signed in"]


def test_sessions_expire_and_polling_is_no_sign_of_life(site: Site) -> None:
    browser = site.signed_in("ivan")
    for _ in range(6):
        site.clock.now += 299
        assert browser.get("/api/waiting").status_code == 200
    site.clock.now += 10
    assert browser.get("/api/waiting").status_code == 401
    ended = browser.get("/parts/1?last=0")
    assert ended.headers["location"] == "/sign-in?next=%2Fparts%2F1%3Flast%3D0&why=ended"
    assert "session has ended" in browser.get(ended.headers["location"]).text
    busy = site.signed_in("ivan")
    for _ in range(43):
        site.clock.now += 1000
        assert busy.get("/queue").status_code == 200
    site.clock.now += 201
    assert busy.get("/queue").status_code == 303


def test_what_was_sent_after_the_session_ended_is_said_to_be_lost(site: Site) -> None:
    browser = site.signed_in("ivan")
    token, page = browser.token(), f"{site.service.url}parts/1"
    site.clock.now += 3600
    answer = browser.post("/parts/1/verdict", data={"csrf": token, "decision": "good"}, headers={"referer": page})
    assert answer.headers["location"] == "/sign-in?next=%2Fparts%2F1&why=unsaved"
    assert "was not recorded" in browser.get(answer.headers["location"]).text


def test_a_verdict_is_recorded_under_the_sessions_name_alone(site: Site) -> None:
    add_part(site)
    browser = site.signed_in("ivan")
    browser.cookies.set("inspector", "ada")
    browser.submit("/parts/1/verdict", decision="good", inspector="ada", name="ada")
    headers = {"x-csrf-token": browser.get("/api/session").json()["csrf"]}
    api = "/api/parts/1/verdict"
    foreign = browser.post(api, json={"decision": "defect", "inspector": "ada"}, headers=headers)
    assert (foreign.status_code, "ivan's" in foreign.json()["error"]) == (403, True)
    assert site.counted("beyond_role") == 1
    assert browser.post(api, json={"decision": "defect"}, headers=headers).status_code == 201
    assert browser.post(api, json={"decision": "good", "inspector": "ivan"}, headers=headers).status_code == 201
    said = [(row["decision"], row["inspector"]) for row in browser.get("/api/parts/1").json()["reviews"]]
    assert said == [("good", "ivan"), ("defect", "ivan"), ("good", "ivan")]
    assert browser.get("/name").headers["location"] == "/account"
    assert browser.submit("/name", name="ada").headers["location"] == "/account"


def test_guessing_is_slowed_said_counted_and_noted(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    browser = site.browser("127.0.0.9")
    with caplog.at_level(logging.WARNING):
        for _ in range(ACCOUNT_FREE + 1):
            answer = browser.sign_in("eve", "a wrong password")
            assert (answer.status_code, "Name or password is wrong." in answer.text) == (401, True)
        waits = []
        for _ in range(4):
            refused = browser.sign_in("eve")  # even the right one is not looked at
            assert refused.status_code == 429
            waits.append(int(refused.headers["retry-after"]))
            site.clock.now += waits[-1]
            assert browser.sign_in("eve", "a wrong password").status_code == 401
    assert waits == [2, 4, 8, 16]
    assert (site.counted("wrong"), site.counted("delayed")) == (ACCOUNT_FREE + 5, 4)
    assert "wrong name or password, eve from 127.0.0.9" in caplog.text
    assert "too many failures, eve from 127.0.0.9 must wait 2 s" in caplog.text
    noted = [row for row in site.accounts.audit(50) if row["action"] == "refused"]
    assert {(row["actor"], row["address"]) for row in noted} == {("eve", "127.0.0.9")}
    assert len(noted) == ACCOUNT_FREE + 5
    site.clock.now += 32
    assert browser.sign_in("eve").status_code == 303
    counts = site.signed_in("eve").get("/healthz").json()["sign_in"]
    assert (counts["wrong"], counts["delayed"], counts["signed_in"]) == (ACCOUNT_FREE + 5, 4, 2)


def test_guesses_at_once_gain_nothing(site: Site) -> None:
    browsers = [site.browser() for _ in range(30)]
    with ThreadPoolExecutor(30) as pool:
        codes = list(pool.map(lambda browser: browser.sign_in("ada", "a wrong password").status_code, browsers))
    assert codes.count(401) <= ACCOUNT_FREE + 1
    assert set(codes) <= {401, 429, 503}


def test_nobody_can_lock_somebody_out_of_where_they_work(site: Site) -> None:
    site.signed_in("ada", "127.0.0.2")
    attacker = site.browser("127.0.0.9")
    for _ in range(30):
        while (answer := attacker.sign_in("ada", "a wrong password")).status_code == 429:
            site.clock.now += int(answer.headers["retry-after"])
    assert attacker.sign_in("ada").status_code == 429
    assert site.browser("127.0.0.3").sign_in("ada").status_code == 429, "from a place that was never hers"
    assert site.browser("127.0.0.2").sign_in("ada").status_code == 303


def test_the_command_line_ends_delays_and_sessions_of_a_running_host(site: Site) -> None:
    ivan = site.signed_in("ivan", "127.0.0.2")
    attacker = site.browser("127.0.0.9")
    for _ in range(ACCOUNT_FREE + 1):
        attacker.sign_in("ivan", "a wrong password")
    assert site.browser("127.0.0.3").sign_in("ivan").status_code == 429
    config = site.folder / "host.toml"
    config.write_text('state_dir = "state"\n[http]\nsign_in = true\n')
    command = [sys.executable, "-m", "flawline", "host", "user", "password", str(config), "ivan"]
    done = subprocess.run([*command, "--password-file", "-"], cwd=ROOT, input=b"a fresh password", timeout=60)
    assert done.returncode == 0
    assert ivan.get("/queue").status_code == 303
    assert site.browser("127.0.0.3").sign_in("ivan", "a fresh password").status_code == 303


def test_one_address_cannot_try_many_names(site: Site) -> None:
    browser = site.browser("127.0.0.9")
    codes = [browser.sign_in(f"name-{number}", "a wrong password").status_code for number in range(ADDRESS_FREE + 5)]
    assert codes == [401] * (ADDRESS_FREE + 1) + [429] * 4
    assert site.browser("127.0.0.8").sign_in("ada").status_code == 303


def test_names_are_not_given_away(site: Site, caplog: pytest.LogCaptureFixture) -> None:
    site.accounts.set_enabled("olga", False, TEST)
    with caplog.at_level(logging.WARNING):
        answers = [
            site.browser(f"127.0.0.{50 + number}").sign_in(name, password)
            for number, (name, password) in enumerate(
                [("nobody", PASSWORD), ("ivan", "a wrong password"), ("olga", PASSWORD), ("hunter2 is my secret", "x")]
            )
        ]
    bodies = {answer.text.replace("nobody", "").replace("ivan", "").replace("olga", "") for answer in answers[:3]}
    assert len(bodies) == 1
    assert {answer.status_code for answer in answers} == {401}
    assert "hunter2" not in caplog.text, "a password typed as a name must not be written down"
    assert all("hunter2" not in str(row) for row in site.accounts.audit(50))
    for _ in range(ACCOUNT_FREE + 1):
        last = site.browser("127.0.0.99").sign_in("nobody", "x")
    assert last.status_code == 429, "delays as for a name that exists"


@pytest.mark.parametrize(
    "name", ["ädä", "ａｄａ", "ada\0", "a" * 1000, "'; DROP TABLE accounts; --", "🦊", "\u202eada"]
)
def test_odd_names_are_only_wrong(shared: Site, name: str) -> None:
    answer = shared.browser("127.0.1.1").sign_in(name)
    assert (answer.status_code, answer.text.count("Name or password is wrong.")) == (401, 1)
    assert len(shared.accounts.all()) == len(PEOPLE)


def test_huge_passwords_cost_nothing(shared: Site) -> None:
    browser = shared.browser("127.0.1.2")
    assert browser.sign_in("ada", "x" * 10_000_000).status_code == 413
    assert browser.sign_in("ada", "x" * 60_000).status_code == 401
    assert browser.post("/sign-in", content=iter([b"name=ada&password=x"])).status_code == 413


def test_a_flood_of_sign_ins_stalls_nothing_else(make_site: Callable[..., Site]) -> None:
    hasher = Stuck()
    hasher.go.set()
    site = make_site(hasher=hasher)
    ada = site.signed_in("ada")
    hasher.go.clear()
    browsers = [site.browser(f"127.0.2.{number + 1}") for number in range(WAITING_HASHES + 40)]
    with ThreadPoolExecutor(len(browsers)) as pool:
        flood = [pool.submit(browser.sign_in, f"name-{n}", "x" * 12) for n, browser in enumerate(browsers)]
        until(lambda: site.counted("busy") >= 39, what="a full queue of sign-ins")
        assert ada.get("/queue").status_code == 200
        add_part(site)
        assert len(ada.get("/api/parts").json()) == 1
        hasher.go.set()
        codes = [each.result().status_code for each in flood]
    assert (codes.count(401), codes.count(503)) == (WAITING_HASHES + 1, 39)
    assert hasher.most == 1, "one hash at a time"


def test_sessions_outlive_the_host(make_site: Callable[..., Site], tmp_path: Path) -> None:
    first = make_site()
    cookies = first.signed_in("eve").cookies
    first.stop()
    second = make_site()
    assert second.browser(cookies=cookies).get("/queue").status_code == 200
    first.stop = lambda: None  # type: ignore[method-assign]


def test_a_disk_that_refuses_keeps_nobody_from_looking(site: Site) -> None:
    browser = site.signed_in("ivan")
    site.accounts._connection.execute("PRAGMA query_only=ON")  # what a full disk does to writes
    site.clock.now += 120
    assert browser.get("/queue").status_code == 200
    refused = site.browser().sign_in("eve")
    assert (refused.status_code, "nothing was changed" in refused.text) == (503, True)


def test_strangers_learn_only_whether_the_host_works(shared: Site) -> None:
    assert shared.browser().get("/healthz").json() == {"ok": True}
    assert {"trouble", "receiver", "sign_in"} <= set(shared.signed_in("ivan").get("/healthz").json())


def test_administrators_keep_the_accounts(site: Site) -> None:
    ada, ivan = site.signed_in("ada"), site.signed_in("ivan")
    assert ada.submit("/accounts", name="fred", password="a good first one", role="engineer").status_code == 303
    fred = site.browser()
    assert fred.sign_in("fred", "a good first one").status_code == 303
    short = ada.submit("/accounts", name="gina", password="short", role="inspector")
    assert (short.status_code, "10 to 256" in short.text) == (409, True)
    assert ada.submit("/accounts", name="<b>", password=PASSWORD, role="inspector").status_code == 409
    assert ada.submit("/accounts", name="gina", password=PASSWORD, role="root").status_code == 422
    for path, fields in [
        ("/accounts/ivan/role", {"role": "engineer"}),
        ("/accounts/ivan/password", {"password": "another good one"}),
        ("/accounts/ivan/disable", {}),
        ("/accounts/ivan/enable", {}),
    ]:
        assert ada.submit(path, **fields).status_code == 303
        assert ivan.get("/queue").status_code == 303, f"{path} ends the sessions"
        ivan = site.browser()
        ivan.sign_in("ivan", PASSWORD if "role" in fields else "another good one")
    last = ada.submit("/accounts/ada/disable")
    assert (last.status_code, "last administrator" in last.text) == (409, True)
    assert ada.submit("/accounts/nobody/disable").status_code == 409
    page = ada.get("/accounts").text
    assert "inspector to engineer" in page
    noted = [(row["actor"], row["action"], row["account"]) for row in site.accounts.audit(100)]
    assert ("ada", "added", "fred") in noted
    assert ("ada", "disabled", "ivan") in noted


def test_ones_own_password_needs_the_old_one_and_ends_other_sessions(site: Site) -> None:
    here, there = site.signed_in("ivan"), site.signed_in("ivan")
    for old, new, again, status in [
        ("not the old one", "a brand new one", "a brand new one", 401),
        (PASSWORD, "short", "short", 409),
        (PASSWORD, "a brand new one", "a brand new on", 409),
        (PASSWORD, "a brand new one", "a brand new one", 303),
    ]:
        answer = here.submit("/account/password", old=old, new=new, again=again)
        assert answer.status_code == status
    assert "password is changed" in here.get(answer.headers["location"]).text
    assert (here.get("/queue").status_code, there.get("/queue").status_code) == (303, 303)
    assert site.browser().sign_in("ivan").status_code == 401
    assert site.browser().sign_in("ivan", "a brand new one").status_code == 303


@pytest.mark.parametrize("tls", ["certificate", "proxy"])
def test_an_address_that_is_only_claimed_is_believed_of_a_proxy(make_site: Callable[..., Site], tls: str) -> None:
    site = make_site(tls=tls)
    browser = site.browser()
    claim = {"x-forwarded-for": "10.9.9.9, 10.1.2.3"}  # the proxy adds the last one, the browser claims the first
    browser.post("/sign-in", data={"name": "ada", "password": "wrong one"}, headers=claim)
    seen = {row["address"] for row in site.accounts.audit(50) if row["action"] == "refused"}
    assert seen == {"10.1.2.3" if tls == "proxy" else "127.0.0.1"}
    cookie = browser.sign_in("ada").headers["set-cookie"]
    assert cookie.startswith("__Host-flawline=") == ("Secure" in cookie) == (tls == "proxy")


def test_other_machines_are_served_over_tls(make_site: Callable[..., Site], tmp_path: Path) -> None:
    chain, key, trust = certificate(tmp_path, "host.plant.local", "127.0.0.1", "127.0.0.5")
    site = make_site(host="0.0.0.0", sign_in=False, certificate=chain, key=key, names=["Host.plant.local"])
    port = site.service.url.rstrip("/").rpartition(":")[2]
    assert site.service.url == f"https://Host.plant.local:{port}/", "where people can go, not 0.0.0.0"
    browser = site.browser(url=f"https://127.0.0.5:{port}", verify=trust)
    cookie = browser.sign_in("ada").headers["set-cookie"]
    assert cookie.startswith("__Host-flawline=")
    assert {"Secure", "HttpOnly", "SameSite=strict", "Path=/"} <= set(cookie.split("; "))
    assert "Domain" not in cookie
    assert browser.get("/accounts").status_code == 200
    named = {"host": f"HOST.plant.local:{port}", "origin": f"https://host.plant.local:{port}"}
    assert browser.post("/sign-in", data={"name": "eve", "password": PASSWORD}, headers=named).status_code == 303
    for name in ("evil.example", "plant.local", "host.plant.local.evil.example", "10.0.0.1", "0.0.0.0"):
        assert browser.get("/queue", headers={"host": name}).status_code == 403, name
    with pytest.raises(httpx.HTTPError):
        httpx.get(f"http://127.0.0.1:{port}/healthz")
    with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
        httpx.get(f"https://127.0.0.1:{port}/healthz")


def host_toml(folder: Path, http: str) -> Path:
    config = folder / "host.toml"
    config.write_text(f'[events]\nbind = "tcp://127.0.0.1:*"\n[http]\nport = 0\n{http}\n')
    return config


def test_the_first_start_beyond_loopback_names_the_command(tmp_path: Path) -> None:
    chain, key, _ = certificate(tmp_path, "localhost")
    config = host_toml(tmp_path, f'host = "0.0.0.0"\ncertificate = "{chain.name}"\nkey = "{key.name}"')
    with pytest.raises(ConfigError, match=r"no administrator yet.*flawline host user add CONFIG NAME --role administ"):
        Service(load_settings(config), tmp_path)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda folder: (folder / "host.key").chmod(0o640), "mode 640, expected 600"),
        (lambda folder: (folder / "host.key").unlink(), "cannot be read"),
        (lambda folder: (folder / "host.pem").write_bytes(b"nothing"), "cannot be used"),
        (lambda folder: os.rename(certificate(folder, "b")[1], folder / "host.key"), None),
        (lambda folder: other_key(folder), "belongs to it"),
    ],
)
def test_a_certificate_that_will_not_do_is_refused_at_the_start(
    tmp_path: Path, spoil: Callable[[Path], Any], words: str | None
) -> None:
    certificate(tmp_path, "localhost")
    spoil(tmp_path)
    config = host_toml(tmp_path, 'certificate = "host.pem"\nkey = "host.key"\nsign_in = true')
    with pytest.raises(ConfigError, match=words or "no administrator yet"):
        Service(load_settings(config), tmp_path)


def other_key(folder: Path) -> None:
    chain = (folder / "host.pem").read_bytes()
    certificate(folder, "somebody.else")
    (folder / "host.pem").write_bytes(chain)


def test_without_sign_in_nothing_is_there_to_sign_in_to(tmp_path: Path) -> None:
    service = Service(load_settings(host_toml(tmp_path, "")), tmp_path)
    service.start()
    try:
        with httpx.Client(base_url=service.url) as client:
            assert client.get("/sign-in").status_code == 404
            assert client.get("/accounts").status_code == 404
            assert client.get("/queue").status_code == 200
            assert client.get("/api/session").json() == {"name": None, "role": None, "csrf": None}
            assert not (tmp_path / "host-state" / "accounts.sqlite").exists()
    finally:
        service.stop()


def test_every_form_that_writes_carries_the_sessions_token() -> None:
    before_signing_in, forms = ('action="/sign-in"', 'action="/name"'), 0
    for file in (ROOT / "plugin" / "review" / "templates").glob("*.html"):
        for form in re.findall(r"<form\b.*?</form>", file.read_text(), re.S):
            if 'method="get"' in form and 'role="search"' in form:
                continue  # it writes nothing
            assert 'method="post"' in form, (file.name, form)
            assert "{{ token(viewer) }}" in form or any(each in form for each in before_signing_in), (file.name, form)
            forms += 1
    assert forms >= 10
