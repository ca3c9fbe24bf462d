"""The page of drift in a real browser: the evidence, what moved, in both languages, and an engineer who clears it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.plugin import synthetic as s
from tests.plugin.people import PASSWORD, Site
from tests.plugin.synthetic import Dealer


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    made = Site(tmp_path)
    dealer = Dealer(made.service.endpoint)
    for seq in range(1, 12):
        shift = -0.5 * max(0, seq - 4)
        dealer.send(s.frames(s.drift(seq, "", "picture" if seq == 11 else "", evidence=-6.0 + seq / 2, shift=shift)))
    dealer.wait_acked(*range(1, 12))
    s.until(lambda: made.service._drift.of_line("line-1"))
    dealer.close()
    yield made
    made.stop()


def signed_in(browser: Browser, site: Site, name: str) -> Page:
    page = browser.new_context(base_url=site.service.url).new_page()
    page.goto("/sign-in")
    page.fill("#name", name)
    page.fill("#password", PASSWORD)
    page.keyboard.press("Enter")
    page.wait_for_url("**/queue")
    page.get_by_role("link", name="Drift", exact=True).click()
    return page


def test_what_drifts_is_seen_with_its_reasons_and_cleared(browser: Browser, site: Site) -> None:
    page = signed_in(browser, site, "eve")
    panel = page.locator("#cam-1")
    expect(panel.locator(".chip")).to_have_text("drift")
    expect(panel).to_contain_text("the lamp")
    expect(panel.locator(".moved li")).to_have_text(["brightness cam-1 main.mean: 101.2 instead of 112, -3.5 spreads"])
    evidence = panel.get_by_role("img", name="Evidence against the alarm line")
    expect(evidence.locator("polyline.test")).to_have_count(3)
    # Drawn where it is: the only mark of an alarm lies above the line, the last point of the measure outside its band.
    marks, line = evidence.locator("rect.outside"), evidence.locator("polyline.limit").bounding_box()
    expect(marks).to_have_count(1)
    mark = marks.bounding_box()
    assert mark is not None and line is not None and mark["y"] + mark["height"] / 2 < line["y"] + line["height"]
    brightness = panel.get_by_role("img", name="brightness, main.mean")
    band, last = brightness.locator("rect.usual").bounding_box(), brightness.locator("circle").bounding_box()
    assert band is not None and last is not None and last["y"] > band["y"] + band["height"]
    page.locator("details.look summary").click()
    page.get_by_role("button", name="中文").click()
    expect(page.locator("#cam-1")).to_contain_text("光源")
    page.get_by_role("button", name="解除报警").click()
    expect(page.locator("#cam-1 .chip")).to_have_text("与标定一致")
    expect(page.locator(".alarm")).to_have_count(0)
    page.context.close()


def test_an_inspector_sees_and_cannot_clear(browser: Browser, site: Site) -> None:
    page = signed_in(browser, site, "ivan")
    expect(page.locator("#cam-1")).to_contain_text("the lamp")
    expect(page.locator("#cam-1 form")).to_have_count(0)
    page.context.close()
