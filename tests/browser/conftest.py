"""A browser, and a host with a queue of drawn parts."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, ConsoleMessage, Page, Playwright, sync_playwright

from contract.event import Verdict
from tests.needs import lacking
from tests.plugin import synthetic as s
from tests.plugin.synthetic import Dealer, HostProcess
from tests.plugin.synthetic import make_dealer as make_dealer


def launch(playwright: Playwright) -> Browser:
    """The system's Chromium; the test is skipped where there is none."""
    chromium = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if chromium is None:
        lacking("no Chromium on this machine: apt-get install chromium")
    return playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        browser = launch(playwright)
        yield browser
        browser.close()


def host_with_a_queue(folder: Path) -> Iterator[HostProcess]:
    """A host that has three flagged parts: worst, middle, mild."""
    host = HostProcess(folder, deadline_ms=60_000)
    host.start()
    dealer = Dealer(host.endpoint)
    for n, (name, verdict, score) in enumerate(
        [("worst", Verdict.REJECT, 4.0), ("middle", Verdict.REJECT, 2.0), ("mild", Verdict.REVIEW, 1.1)]
    ):
        for message in s.flagged(3 * n + 1, name, verdict, score, seed=n):
            dealer.send(message)
    dealer.wait_acked(*range(1, 10))
    dealer.close()
    yield host
    assert host.end() == 0


@pytest.fixture(scope="session")
def calm_host(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostProcess]:
    """A host for tests that only look."""
    yield from host_with_a_queue(tmp_path_factory.mktemp("calm"))


@pytest.fixture
def host(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[HostProcess]:
    """A host of the test's own, or the shared one where the test is marked as only looking."""
    if request.node.get_closest_marker("usefixtures") is not None:
        yield request.getfixturevalue("calm_host")
    else:
        yield from host_with_a_queue(tmp_path)


@pytest.fixture
def page(browser: Browser, host: HostProcess) -> Iterator[Page]:
    """A page at the host; anything on its console that is an error fails the test."""
    context = browser.new_context(viewport={"width": 1360, "height": 860}, base_url=host.url)
    page = context.new_page()
    page.set_default_timeout(10_000)
    problems: list[str] = []

    def heard(message: ConsoleMessage) -> None:
        # Only a test reads pixels back; the pages do not.
        if message.type in ("error", "warning") and "willReadFrequently" not in message.text:
            problems.append(message.text)

    page.on("console", heard)
    page.on("pageerror", lambda error: problems.append(str(error)))
    yield page
    context.close()
    assert problems == []
