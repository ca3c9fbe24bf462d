"""Every page, at a desk and on a tablet, light and dark: a quiet console, nothing too wide, nothing that axe finds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from fastapi.routing import APIRoute
from playwright.sync_api import Browser, Page

from plugin.review.signin import flat
from tests.browser.gallery import NO_PAGES, SHOTS, SIZES, THEMES, Gallery

PICTURES = Path(__file__).resolve().parents[2] / "docs" / "pictures" / "review"
PROGRAMS = ("/api/", "/healthz", "/metrics")
TOO_WIDE = """() => [...document.querySelectorAll("body *")]
  .filter((each) => each.getBoundingClientRect().right > innerWidth + 1 && each.checkVisibility() &&
    !each.closest(".panel, nav, .pane"))
  .map((each) => `${each.tagName} ${each.className}`)
  .concat(document.documentElement.scrollWidth > innerWidth ? ["the page"] : [])"""
"""What sticks out; panels, the bar of pages and the zoomed picture scroll or are cut within themselves."""


@pytest.fixture(scope="module")
def gallery(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gallery]:
    gallery = Gallery(tmp_path_factory.mktemp("gallery"))
    yield gallery
    gallery.stop()


def test_every_page_is_in_the_gallery_and_has_its_pictures(gallery: Gallery) -> None:
    routes = {
        route.path
        for route in flat(gallery.closed.app.routes)
        if isinstance(route, APIRoute) and "GET" in route.methods and not route.path.startswith(PROGRAMS)
    }
    assert routes - NO_PAGES == {shot.route for shot in SHOTS.values()}
    wanted = {f"{name}-{width}-{theme}.jpg" for name in SHOTS for width in SIZES for theme in THEMES}
    assert {file.name for file in PICTURES.glob("*")} == wanted, "python -m tests.browser.gallery docs/pictures/review"
    assert sum(file.stat().st_size for file in PICTURES.glob("*")) < 5 << 20


@pytest.mark.parametrize("name", SHOTS)
def test_a_page_fits_and_can_be_read(gallery: Gallery, browser: Browser, name: str) -> None:
    with gallery.page(browser, name) as (page, problems):
        for theme in THEMES:
            page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
            for width, height in SIZES.items():
                page.set_viewport_size({"width": width, "height": height})
                assert page.evaluate(TOO_WIDE) == [], (width, theme)
            assert violations(page) == [], theme
        assert problems == []


def test_what_is_wrong_with_a_page_is_found(gallery: Gallery, browser: Browser) -> None:
    with gallery.page(browser, "sign-in") as (page, problems):
        page.evaluate(
            """() => {
              const wrong = document.createElement("button");
              wrong.id = "wrong";
              document.querySelector("main").append(wrong, Object.assign(document.createElement("pre"),
                { textContent: "x".repeat(500), style: "width: 4000px; white-space: pre" }));
              console.error("planted");
            }"""
        )
        assert any("button-name" in each for each in violations(page))
        assert {"PRE ", "the page"} <= set(page.evaluate(TOO_WIDE))
        assert problems == ["planted"]


def violations(page: Page) -> list[str]:
    """What axe calls serious or critical."""
    found = Axe().run(page).response["violations"]
    return [
        f"{each['id']}: {node['html'][:150]} {node['failureSummary'][:300]}"
        for each in found
        if each["impact"] in ("serious", "critical")
        for node in each["nodes"]
    ]
