"""A review station at work: thirty parts by keys alone, two inspectors, the other language, a station live."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from contract.event import Verdict
from tests.browser.test_review import shown, takes_keys
from tests.plugin import synthetic as s
from tests.plugin.synthetic import Dealer, HostProcess

CLASSES = ["scratch", "dent", "stain"]
HEAD = f"[review]\nclasses = {CLASSES}".replace("'", '"')


@pytest.fixture
def host(tmp_path: Path) -> Iterator[HostProcess]:
    host = HostProcess(tmp_path, deadline_ms=60_000, head=HEAD)
    host.start()
    yield host
    assert host.end() == 0


def send(host: HostProcess, dealer: Dealer, count: int) -> list[str]:
    """So many flagged parts with their pictures; their names, worst first."""
    names = [f"part-{n:02d}" for n in range(count)]
    for n, name in enumerate(names):
        for message in s.flagged(3 * n + 1, name, Verdict.REJECT, 90.0 - n, seed=n % 3):
            dealer.send(message)
    dealer.wait_acked(*range(1, 3 * count + 1), timeout_s=60)
    return names


def records(host: HostProcess) -> list[tuple[str, str, str | None, str | None, int]]:
    connection = sqlite3.connect(host.folder / "state" / "store.sqlite")
    rows = connection.execute("SELECT part_id, decision, defect_class, comment, dwell_ms FROM reviews ORDER BY id")
    found = rows.fetchall()
    connection.close()
    return found


def test_thirty_parts_are_cleared_by_keys_alone(
    page: Page, host: HostProcess, make_dealer: Callable[[str], Dealer]
) -> None:
    names = send(host, make_dealer(host.endpoint), 30)
    asked: list[str] = []
    page.on("requestfinished", lambda request: asked.append(request.url))
    page.goto("/queue")
    takes_keys(page)
    page.keyboard.press("Enter")
    wanted: list[tuple[str, str, str | None, str | None]] = []
    for n, name in enumerate(names):
        shown(page, name)
        takes_keys(page)
        if n == 7:
            page.keyboard.press("c")
            page.keyboard.type("defect 2, good g")  # text, not verdicts
            page.keyboard.press("Enter")
        if n == 11:  # the wrong key, taken back
            page.keyboard.press("g")
            shown(page, names[12])
            takes_keys(page)
            page.keyboard.press("u")
            shown(page, name)
            takes_keys(page)
            wanted += [(name, "good", None, None), (name, "undo", None, None)]
        key, decision, defect_class = [
            ("g", "good", None),
            ("d", "defect", None),
            ("1", "defect", "scratch"),
            ("3", "defect", "stain"),
            ("s", "unsure", None),
        ][n % 5]
        page.keyboard.press(key)
        wanted.append((name, decision, defect_class, "defect 2, good g" if n == 7 else None))
    expect(page.get_by_role("heading", name="Nothing waits")).to_be_visible()
    said = records(host)
    assert [row[:4] for row in said] == wanted
    assert all(0 < row[4] < 60_000 for row in said if row[1] != "undo")
    pictures = [url for url in asked if "/api/attachments/" in url]
    assert len(set(pictures)) >= 90
    expect(page.locator(".tabs")).to_contain_text("Unsure 6")


def test_two_inspectors_never_have_the_same_part(
    browser: Browser, host: HostProcess, make_dealer: Callable[[str], Dealer]
) -> None:
    names = send(host, make_dealer(host.endpoint), 6)
    desks = [browser.new_context(base_url=host.url) for _ in range(2)]
    ada, ben = (desk.new_page() for desk in desks)
    for page in (ada, ben):
        page.goto("/queue")
        takes_keys(page)
    ada.keyboard.press("Enter")
    shown(ada, names[0])
    ben.reload()
    takes_keys(ben)
    ben.keyboard.press("Enter")  # the first that is free
    shown(ben, names[1])
    for page, key, then in ((ada, "d", names[2]), (ben, "g", names[3]), (ada, "d", names[4]), (ben, "g", names[5])):
        takes_keys(page)
        page.keyboard.press(key)
        shown(page, then)
    ben.goto("/stations")  # leaves the page, and with it the part
    takes_keys(ada)
    ada.keyboard.press("d")
    shown(ada, names[5])
    takes_keys(ada)
    ada.keyboard.press("d")
    expect(ada.get_by_role("heading", name="Nothing waits")).to_be_visible()
    assert sorted(row[0] for row in records(host)) == names
    for desk in desks:
        desk.close()


def test_the_pages_speak_chinese_where_the_browser_does(
    browser: Browser, host: HostProcess, make_dealer: Callable[[str], Dealer]
) -> None:
    send(host, make_dealer(host.endpoint), 1)
    context = browser.new_context(base_url=host.url, locale="zh-CN")
    page = context.new_page()
    page.goto("/queue")
    expect(page.get_by_role("heading", level=1)).to_have_text("待复检")
    takes_keys(page)
    page.keyboard.press("Enter")
    expect(page.locator("canvas[data-ready]")).to_be_visible()
    expect(page.locator("[data-status]")).to_contain_text("偏差峰值")
    page.locator(".look summary").click()
    page.get_by_role("button", name="English").click()
    expect(page.get_by_role("button", name="Good g")).to_be_visible()
    assert page.url.endswith("/parts/1")
    page.locator(".look summary").click()
    page.get_by_role("button", name="Dark").click()
    expect(page.locator("html")).to_have_attribute("data-theme", "dark")
    context.close()


def test_a_station_shows_parts_as_they_come(
    page: Page, host: HostProcess, make_dealer: Callable[[str], Dealer]
) -> None:
    dealer = make_dealer(host.endpoint)
    dealer.send(s.frames(s.state(1, recipe="washer")))
    dealer.wait_acked(1, spool="state-run-1")
    page.goto("/stations")
    page.get_by_role("link", name=s.EDGE).click()
    expect(page.get_by_text("None of the newest")).to_be_visible()
    for message in s.flagged(1, "fresh", Verdict.REJECT, 3.0, seed=1):
        dealer.send(message)
    dealer.wait_acked(1, 2, 3)
    expect(page.locator(".card .name")).to_have_text("fresh")
    page.wait_for_function("() => document.querySelector('.card img')?.naturalWidth")
    dealer.send(s.frames(s.state(2, recipe="nut")))
    expect(page.locator(".facts")).to_contain_text("nut")
