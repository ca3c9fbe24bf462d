"""An inspector at work in a real browser: looks, decides with one key, takes it back."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from contract.event import Verdict
from tests.plugin import synthetic as s
from tests.plugin.synthetic import Dealer, HostProcess

PIXELS = """() => {
  const canvas = document.querySelector(".viewer canvas");
  const context = canvas.getContext("2d");
  const data = context.getImageData(0, 0, canvas.width, canvas.height).data;
  let colour = 0;
  for (let i = 0; i < data.length; i += 4) {
    if (Math.abs(data[i] - data[i + 2]) > 24) colour += 1;
  }
  return { width: canvas.width, height: canvas.height, colour, sum: data.reduce((a, b) => a + b, 0) };
}"""


ONLY_LOOKS = pytest.mark.usefixtures("calm_host")


def open_part(page: Page, name: str) -> None:
    page.goto("/queue")
    page.get_by_text(name, exact=True).click()
    shown(page, name)


def shown(page: Page, name: str) -> None:
    """The part's page is there, and its pictures are drawn."""
    expect(page.get_by_role("heading", level=1)).to_have_text(name)
    expect(page.locator("canvas[data-ready]")).to_be_visible()


def takes_keys(page: Page) -> None:
    """The page's script has run; a key that is pressed before would be lost."""
    expect(page.locator("body[data-keys]")).to_be_attached()


def decisions(host: HostProcess) -> list[tuple[str, str]]:
    connection = sqlite3.connect(host.folder / "state" / "store.sqlite")
    rows = connection.execute("SELECT decision, inspector FROM reviews ORDER BY id").fetchall()
    connection.close()
    return rows


@ONLY_LOOKS
def test_the_queue_shows_pictures_worst_first(page: Page) -> None:
    page.goto("/queue")
    expect(page.locator(".card .name")).to_have_text(["worst", "middle", "mild"])
    page.wait_for_function(
        "() => [...document.querySelectorAll('.card img')].every((i) => i.complete && i.naturalWidth)"
    )
    takes_keys(page)
    page.keyboard.press("j")
    page.keyboard.press("j")
    page.keyboard.press("Enter")
    shown(page, "middle")


@ONLY_LOOKS
def test_the_slider_fades_the_map_over_the_picture(page: Page) -> None:
    open_part(page, "worst")
    slider = page.locator("#opacity")
    slider.fill("100")
    full = page.evaluate(PIXELS)
    slider.fill("50")
    part = page.evaluate(PIXELS)
    slider.fill("0")
    none = page.evaluate(PIXELS)
    assert full["colour"] > 1000  # a map above its limit is coloured; the picture alone is grey
    assert none["colour"] == 0
    assert len({full["sum"], part["sum"], none["sum"]}) == 3
    slider.focus()
    page.keyboard.press("ArrowRight")  # belongs to the slider while it has the focus
    assert slider.input_value() == "1"
    expect(page.get_by_role("heading", level=1)).to_have_text("worst")


@ONLY_LOOKS
def test_the_map_lies_where_the_region_is(page: Page) -> None:
    open_part(page, "worst")
    page.locator("#opacity").fill("100")
    _, _, _, region = s.washer(0)
    inside = page.evaluate(
        """([x, y, w, h]) => {
          const canvas = document.querySelector(".viewer canvas");
          const [scale, left, top] = JSON.parse(canvas.dataset.place);
          const context = canvas.getContext("2d");
          const count = (data) => {
            let n = 0;
            for (let i = 0; i < data.length; i += 4) if (Math.abs(data[i] - data[i + 2]) > 24) n += 1;
            return n;
          };
          const box = [left + x * scale, top + y * scale, w * scale, h * scale].map(Math.round);
          return count(context.getImageData(...box).data) /
            count(context.getImageData(0, 0, canvas.width, canvas.height).data);
        }""",
        list(region.box_px),
    )
    assert inside > 0.9


@ONLY_LOOKS
def test_boxes_start_hidden_and_the_choice_is_kept(page: Page) -> None:
    open_part(page, "worst")
    before = page.evaluate(PIXELS)["sum"]
    expect(page.locator("#boxes")).to_have_attribute("aria-pressed", "false")
    page.keyboard.press("b")
    assert page.evaluate(PIXELS)["sum"] != before
    page.keyboard.press("j")
    shown(page, "middle")
    expect(page.locator("#boxes")).to_have_attribute("aria-pressed", "true")


@ONLY_LOOKS
def test_the_part_as_it_should_be_can_be_shown(page: Page) -> None:
    open_part(page, "worst")
    page.locator("#opacity").fill("0")
    with_scratch = page.evaluate(PIXELS)["sum"]
    page.keyboard.press("r")
    without = page.evaluate(PIXELS)["sum"]
    page.keyboard.press("r")
    assert without > with_scratch  # the scratch is dark
    assert page.evaluate(PIXELS)["sum"] == with_scratch
    page.keyboard.down(" ")
    assert page.evaluate(PIXELS)["sum"] == without
    page.keyboard.up(" ")
    assert page.evaluate(PIXELS)["sum"] == with_scratch


@ONLY_LOOKS
def test_blinking_shows_one_after_the_other(page: Page) -> None:
    open_part(page, "worst")
    canvas = page.locator(".viewer canvas")
    expect(canvas).to_have_attribute("data-shows", "image")
    page.keyboard.press("x")
    for shows in ("reconstruction", "image", "reconstruction"):
        expect(canvas).to_have_attribute("data-shows", shows)
    page.keyboard.press("x")
    expect(canvas).to_have_attribute("data-shows", "image")
    expect(page.locator("#blink")).to_have_attribute("aria-pressed", "false")


@ONLY_LOOKS
def test_true_pixels_are_the_picture_s_own(page: Page) -> None:
    open_part(page, "worst")
    page.locator("#opacity").fill("0")
    page.keyboard.press("z")
    scale, left, top = place(page)
    assert (scale, left % 1, top % 1) == (1, 0, 0)
    picture = page.evaluate(
        """async ([x, y]) => {
          const image = new Image();
          image.src = JSON.parse(document.querySelector(".viewer").dataset.view).pictures.image.url;
          await image.decode();
          const canvas = new OffscreenCanvas(256, 256);
          const context = canvas.getContext("2d");
          context.drawImage(image, 0, 0);
          const shown = document.querySelector(".viewer canvas").getContext("2d").getImageData(x, y, 256, 256).data;
          const own = context.getImageData(0, 0, 256, 256).data;
          return own.every((value, i) => value === shown[i]);
        }""",
        [left, top],
    )
    assert picture
    page.keyboard.press("f")
    assert place(page)[0] > 1


@ONLY_LOOKS
def test_panes_beside_each_other_have_one_zoom_and_pan(page: Page) -> None:
    open_part(page, "worst")
    page.keyboard.press("v")
    panes = page.locator(".pane")
    expect(panes).to_have_count(3)  # image, map, as it should be; there is no good part yet
    page.keyboard.press("+")
    page.keyboard.press("Shift+ArrowLeft")
    box = panes.nth(2).bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 50, box["y"] + 50)
    page.mouse.wheel(0, -200)
    page.mouse.down()
    page.mouse.move(box["x"] + 90, box["y"] + 80)
    page.mouse.up()
    places = page.eval_on_selector_all(".pane canvas", "(all) => all.map((each) => each.dataset.place)")
    assert len(set(places)) == 1 and place(page)[0] != 1
    page.keyboard.press("v")
    expect(panes).to_have_count(1)


def place(page: Page) -> list[float]:
    found: list[float] = page.evaluate('JSON.parse(document.querySelector(".viewer canvas").dataset.place)')
    return found


@ONLY_LOOKS
def test_the_keys_are_explained_by_a_key(page: Page) -> None:
    open_part(page, "worst")
    takes_keys(page)
    page.keyboard.press("?")
    expect(page.get_by_role("dialog")).to_contain_text("true pixels")
    page.keyboard.press("d")  # decides nothing while they are read
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_be_hidden()
    page.keyboard.press("4")
    expect(page.get_by_role("status")).to_have_text("No class has the digit 4.")


def test_one_key_decides_goes_on_and_another_takes_it_back(page: Page, host: HostProcess) -> None:
    page.goto("/queue")
    page.get_by_placeholder("your name").fill("d'Ärcy")
    page.keyboard.press("Enter")
    expect(page.locator(".who")).to_have_text("d'Ärcy")
    page.get_by_text("worst", exact=True).click()
    shown(page, "worst")
    page.keyboard.press("d")
    shown(page, "middle")
    assert decisions(host) == [("defect", "d'Ärcy")]
    page.keyboard.press("g")
    shown(page, "mild")
    expect(page.locator("#waiting")).to_have_text("1")
    page.keyboard.press("u")
    shown(page, "middle")
    expect(page.locator(".history li")).to_have_count(2)
    assert decisions(host) == [("defect", "d'Ärcy"), ("good", "d'Ärcy"), ("undo", "d'Ärcy")]
    page.keyboard.press("g")
    shown(page, "mild")
    page.keyboard.press("d")
    expect(page.get_by_role("heading", name="Nothing waits")).to_be_visible()
    takes_keys(page)
    page.keyboard.press("u")
    shown(page, "mild")
    assert [decision for decision, _ in decisions(host)] == ["defect", "good", "undo", "good", "defect", "undo"]


@ONLY_LOOKS
def test_the_next_parts_pictures_are_there_before_they_are_asked_for(page: Page) -> None:
    fetched: list[str] = []
    page.on("requestfinished", lambda request: fetched.append(request.url))
    open_part(page, "worst")
    wanted = page.evaluate("JSON.parse(document.getElementById('part').dataset.preload)")
    assert len(wanted) == 3
    page.wait_for_function(
        "(wanted) => wanted.every((url) => performance.getEntriesByName(new URL(url, location).href).length)",
        arg=wanted,
    )


@ONLY_LOOKS
def test_moving_through_the_queue_decides_nothing(page: Page, host: HostProcess) -> None:
    open_part(page, "worst")
    for key, name in [("ArrowRight", "middle"), ("j", "mild"), ("j", "mild"), ("k", "middle"), ("ArrowLeft", "worst")]:
        page.keyboard.press(key)
        shown(page, name)
    assert decisions(host) == []


def test_an_audited_part_is_judged_without_the_machine_s_word(
    page: Page, host: HostProcess, make_dealer: Callable[[str], Dealer]
) -> None:
    dealer = make_dealer(host.endpoint)
    for message in s.flagged(20, "drawn", Verdict.PASS, 0.4, seed=5, audit_share=0.25, audited=True, reason=None):
        dealer.send(message)
    dealer.wait_acked(20, 21, 22)
    open_part(page, "drawn")
    expect(page.locator(".badge")).to_have_text("to judge")
    expect(page.locator("#opacity")).to_be_hidden()
    expect(page.locator("#boxes")).to_be_hidden()
    page.keyboard.press("b")
    before = page.evaluate(PIXELS)
    assert before["colour"] == 0  # its map is above the limit, and is not shown
    page.keyboard.press("r")
    assert page.evaluate(PIXELS)["sum"] != before["sum"]  # as it should be may be looked at
    page.keyboard.press("d")
    expect(page.locator(".undo")).to_contain_text("drawn")
    assert [decision for decision, _ in decisions(host)] == ["defect"]
    page.get_by_role("link", name="drawn").click()
    shown(page, "drawn")
    expect(page.locator(".badge")).to_have_text("pass")
    expect(page.locator("#opacity")).to_be_visible()


def test_new_parts_appear_by_themselves(page: Page, host: HostProcess, make_dealer: Callable[[str], Dealer]) -> None:
    page.goto("/queue")
    dealer = make_dealer(host.endpoint)
    dealer.send(s.frames(s.result(20, "fresh", Verdict.REJECT, score=9.0)))
    dealer.wait_acked(20)
    expect(page.locator(".card .name").first).to_have_text("fresh")


def test_hostile_text_stays_text(page: Page, host: HostProcess, make_dealer: Callable[[str], Dealer]) -> None:
    evil = "<img src=x onerror=alert(1)>'\"</script><script>alert(2)</script>"
    dealer = make_dealer(host.endpoint)
    dealer.send(s.frames(s.result(20, evil, Verdict.REJECT, score=9.0, reason=evil)))
    dealer.send(s.frames(s.missed(21, evil + "2", evil)))
    dealer.send(s.frames(s.gap(22, evil)))
    dealer.send(s.frames(s.state(1, detail=evil)))
    dealer.wait_acked(20, 21, 22)
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    page.goto("/queue")
    page.locator(".card").first.click()
    expect(page.get_by_role("heading", level=1)).to_have_text(evil)
    for path in ("/lost", "/counts"):
        page.goto(path)
        expect(page.locator("main")).to_contain_text("onerror=alert(1)")
    assert dialogs == []


def test_a_map_that_lies_about_itself_is_said_not_drawn(
    page: Page, host: HostProcess, make_dealer: Callable[[str], Dealer]
) -> None:
    data = bytes(4 * 16)
    reference = s.part_ref("map", data, codec="raw", dtype="float32", shape=(2, 2, 4))
    picture = s.part_ref("image", b"no picture", codec="png", shape=(1, 1, 3))
    dealer = make_dealer(host.endpoint)
    dealer.send(
        s.frames(s.result(20, "odd", Verdict.REJECT, score=9.0, parts=(reference, picture)), [data, b"no picture"])
    )
    dealer.wait_acked(20)
    page.goto("/queue")
    page.get_by_text("odd", exact=True).click()
    expect(page.locator("[data-status]")).to_contain_text("the map's shape does not fit")
    expect(page.locator("[data-status]")).to_contain_text("image: cannot be shown")
