"""Markup in every text of an edge, in a real browser: what scripts put onto the pages is text as well."""

from __future__ import annotations

from pathlib import Path

from playwright.sync_api import Browser, expect

from tests.hostile.poison import Poison, messages, pages
from tests.plugin.synthetic import Dealer, HostProcess

OURS = "[...document.querySelectorAll('*')].filter((e) => e.localName.startsWith('xss-')).map((e) => e.localName)"


def test_no_script_makes_an_element_of_it(browser: Browser, tmp_path: Path) -> None:
    host, poison = HostProcess(tmp_path, deadline_ms=60_000), Poison()
    host.start()
    dealer = Dealer(host.endpoint)
    for message in messages(poison):
        dealer.send(message)
    dealer.wait_acked(*range(1, 6), spool=poison.probe("spool_id"))
    dealer.close()
    context = browser.new_context(base_url=host.url)
    page = context.new_page()
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    try:
        paths = [each for each in pages(_routes(), poison) if not each.startswith(("/api/", "/healthz", "/metrics"))]
        assert len(paths) > 6
        for path in paths:
            page.goto(path)
            assert page.evaluate(OURS) == [], path
        page.goto("/parts/1")
        expect(page.locator("canvas[data-ready]").first).to_be_visible()
        for key in ("b", "r", "x", "m", "h"):  # whatever they show or hide
            page.keyboard.press(key)
        assert page.evaluate(OURS) == []
        expect(page.get_by_role("heading", level=1)).to_have_text(poison.probe("part_id"))
    finally:
        context.close()
        assert host.end() == 0
    assert dialogs == []


def _routes() -> list[object]:
    from plugin.review import pages as review
    from plugin.review.signin import flat

    return list(flat(review.router.routes))
