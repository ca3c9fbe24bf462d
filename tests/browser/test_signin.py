"""Signing in, deciding under one's own name, signing out and coming back, in a real browser; pages that attack."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.plugin.people import PASSWORD, Site, add_part


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path)
    add_part(site)
    yield site
    site.stop()


@pytest.fixture
def page(browser: Browser, site: Site) -> Iterator[Page]:
    context = browser.new_context(base_url=site.service.url)
    page = context.new_page()
    page.set_default_timeout(10_000)
    yield page
    context.close()


def sign_in(page: Page, name: str, password: str = PASSWORD) -> None:
    """By keyboard alone: the first field has the focus as soon as the page is there."""
    expect(page.locator("#name")).to_be_focused()
    page.keyboard.type(name)
    page.keyboard.press("Tab")
    page.keyboard.type(password)
    page.keyboard.press("Enter")


def decisions(site: Site) -> list[tuple[str, str]]:
    connection = sqlite3.connect(site.folder / "state" / "store.sqlite")
    rows = connection.execute("SELECT decision, inspector FROM reviews ORDER BY id").fetchall()
    connection.close()
    return rows


def test_a_shift_of_an_inspector(page: Page, site: Site) -> None:
    problems: list[str] = []
    page.on("pageerror", lambda error: problems.append(str(error)))
    page.on("console", lambda message: problems.append(message.text) if "Security Policy" in message.text else None)
    page.goto("/parts/1")
    sign_in(page, "ivan", "a wrong password")
    expect(page.get_by_role("alert")).to_have_text("Name or password is wrong.")
    expect(page.locator("#password")).to_be_focused()  # the name is kept
    page.keyboard.type(PASSWORD)
    page.keyboard.press("Enter")
    expect(page.locator("canvas[data-ready]")).to_be_visible()
    assert page.url.endswith("/parts/1")
    expect(page.locator(".who")).to_have_text("ivan")
    expect(page.locator("body[data-keys]")).to_be_attached()
    expect(page.get_by_role("link", name="Accounts")).to_have_count(0)
    page.keyboard.press("d")
    expect(page.get_by_role("heading", name="Nothing waits")).to_be_visible()
    expect(page.locator("body[data-keys]")).to_be_attached()
    page.keyboard.press("u")
    expect(page.locator(".history li")).to_have_count(2)
    assert decisions(site) == [("defect", "ivan"), ("undo", "ivan")]
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_text("You are signed out.")).to_be_visible()
    page.go_back()
    expect(page.get_by_role("heading", name="Sign in")).to_be_visible()
    assert problems == []


def test_an_ended_session_turns_into_the_sign_in_page_and_back(page: Page, site: Site) -> None:
    page.goto("/parts/1")
    sign_in(page, "ivan")
    expect(page.locator("canvas[data-ready]")).to_be_visible()
    site.clock.now += 3600
    expect(page.get_by_text("Your session has ended.")).to_be_visible()  # by itself, when it asks for news
    sign_in(page, "olga")
    expect(page.locator("canvas[data-ready]")).to_be_visible()
    assert page.url.endswith("/parts/1")
    expect(page.locator("body[data-keys]")).to_be_attached()
    page.keyboard.press("g")
    expect(page.get_by_role("heading", name="Nothing waits")).to_be_visible()
    assert decisions(site) == [("good", "olga")]


def test_an_administrator_adds_an_account_and_changes_a_role(page: Page, site: Site) -> None:
    page.goto("/accounts")
    sign_in(page, "ada")
    form = page.locator("form.add")
    form.get_by_label("Name").fill("fred")
    form.get_by_label("First password").fill("a good first one")
    form.get_by_role("button").click()
    row = page.locator(".accounts tr", has_text="fred")
    row.get_by_label("role").select_option("engineer")
    row.get_by_role("button", name="Change").click()
    expect(page.get_by_text("role changed: inspector to engineer")).to_be_visible()
    assert {each.name: each.role for each in site.accounts.all()}["fred"] == "engineer"


@pytest.fixture
def attacker(site: Site) -> Iterator[int]:
    """The port of a page elsewhere that sends a verdict and a sign-in to the host."""
    target = site.service.url.rstrip("/")
    body = "".join(
        f'<form method="post" action="{target}{path}"><input name="{name}" value="{value}">'
        f'<input name="password" value="{PASSWORD}"><button>{path}</button></form>'
        for path, name, value in [("/parts/1/verdict", "decision", "good"), ("/sign-in", "name", "olga")]
    ).encode()

    class Evil(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.send_header("content-type", "text/html")
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_arguments: object) -> None:
            """Keep quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Evil)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize("name", ["localhost", "127.0.0.1"])  # another site; another origin of the same site
def test_a_page_elsewhere_can_neither_decide_nor_sign_in(page: Page, site: Site, attacker: int, name: str) -> None:
    page.goto("/queue")
    sign_in(page, "ivan")
    expect(page.locator(".who")).to_have_text("ivan")
    for path in ("/parts/1/verdict", "/sign-in"):
        page.goto(f"http://{name}:{attacker}/")
        with page.expect_response(lambda response: response.request.method == "POST") as answer:
            page.get_by_role("button", name=path).click()
        assert answer.value.status == 403
    page.goto("/queue")
    expect(page.locator(".who")).to_have_text("ivan")
    assert decisions(site) == []
