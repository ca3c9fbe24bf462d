"""Every page of the host with parts of the synthetic line: `python -m tests.browser.gallery docs/pictures/review`.

The pages are listed here by their routes; ``test_gallery.py`` fails where a route is not.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from playwright.sync_api import Browser, Page, expect

from contract.event import CameraState, LineCode, Region, Verdict, part_ref
from edge_runtime.draw import draw_dataset
from plugin import containment
from plugin.connectors.base import GateOutcome
from plugin.lines import Asked
from plugin.looks import Follow, register
from plugin.service import CONTROLLER
from plugin.settings import ReviewSettings
from plugin.tally import add_up
from tests.plugin import synthetic as s
from tests.plugin.people import PASSWORD, Site
from tests.plugin.synthetic import Dealer

CLASSES = ["scratch", "dent", "chip", "stain", "crack", "undrilled"]
SIZES = {1280: 860, 768: 1024}
THEMES = ("light", "dark")
EDGE = "press-2"
FALSE_ALARM = 4
LINE = "line-1"
RECIPE = 3
OUTCOMES: tuple[GateOutcome, ...] = ("confirmed", "not_confirmed", "confirmed")
CELL = 4  # pixels of the part for a value of the map


class Shot(NamedTuple):
    """A page: the route that makes it, where it is, what to do before it is looked at, whether somebody signs in."""

    route: str
    path: str
    before: Callable[[Page], None] | None = None
    signed_in: bool = True


def _press(key: str) -> Callable[[Page], None]:
    def press(page: Page) -> None:
        expect(page.locator("body[data-keys]")).to_be_attached()
        page.keyboard.press(key)

    return press


SHOTS = {
    "queue": Shot("/queue", "/queue"),
    "unsure": Shot("/queue", "/queue?show=unsure"),
    "help": Shot("/queue", "/queue", _press("?")),
    "part": Shot("/parts/{number}", "/parts/1?last=5"),
    "side-by-side": Shot("/parts/{number}", "/parts/3", _press("v")),
    "blind": Shot("/looks/{word}", "/parts/{blind}"),
    "stations": Shot("/stations", "/stations"),
    "station": Shot("/station", f"/station?edge={EDGE}"),
    "lost": Shot("/lost", "/lost"),
    "find": Shot("/find", "/find?lot=L-2026-47"),
    "lines": Shot("/lines", "/lines"),
    "containment": Shot("/containments/{number}", "/containments/1"),
    "drift": Shot("/drift", "/drift"),
    "counts": Shot("/counts", "/counts"),
    "figures": Shot("/figures", "/figures"),
    "inspectors": Shot("/inspectors", "/inspectors"),
    "candidates": Shot("/candidates", "/candidates"),
    "known": Shot("/known", "/known"),
    "disputed": Shot("/disputed", "/disputed"),
    "accounts": Shot("/accounts", "/accounts"),
    "account": Shot("/account", "/account"),
    "error": Shot("/parts/{number}", "/parts/999"),
    "name": Shot("/name", "/name", signed_in=False),
    "sign-in": Shot("/sign-in", "/sign-in", signed_in=False),
}
NO_PAGES = {"/", "/stations/latest", "/station/latest", "/looks/{word}/pictures/{n}"}
NO_PAGES |= {"/figures/{table}.csv", "/inspectors/{table}.csv"}
"""Routes that lead elsewhere, give a piece of a page to its script, a picture or a table."""


class Gallery:
    """Two hosts over the same parts, one that asks for sign-in and one that does not, and one whose line has a stop."""

    def __init__(self, folder: Path) -> None:
        pictures = list(_drawn(folder / "parts"))
        review = ReviewSettings(classes=CLASSES)
        self.closed = Site(folder / "closed", review=review)
        self.open = Site(folder / "open", review=review, sign_in=False)
        self.held = Site(folder / "held", review=review)  # apart, for its pages say in red what it is held for
        self.blind = _fill(self.closed, pictures)
        _fill(self.open, pictures[:2])
        _hold(self.held, pictures[:3])

    def stop(self) -> None:
        for site in (self.closed, self.open, self.held):
            site.stop()

    def site_of(self, shot: Shot) -> Site:
        """The host that shows a page best."""
        if shot.route.startswith(("/lines", "/containments", "/drift")):
            return self.held
        return self.open if shot.route == "/name" else self.closed

    @contextmanager
    def page(self, browser: Browser, name: str) -> Iterator[tuple[Page, list[str]]]:
        """The page as ``SHOTS`` names it, ready, and what its console says that is no good."""
        shot = SHOTS[name]
        context = browser.new_context(viewport={"width": 1280, "height": SIZES[1280]}, color_scheme="light")
        page, problems = context.new_page(), []
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("console", lambda told: problems.append(told.text) if told.type in ("error", "warning") else None)
        site = self.site_of(shot)
        if shot.signed_in:
            page.goto(site.service.url + "sign-in")
            page.fill("#name", "ada")
            page.fill("#password", PASSWORD)
            page.keyboard.press("Enter")
            page.wait_for_url("**/queue")
        if shot.route.startswith(("/station", "/lines")):
            dealer = Dealer(site.service.endpoint)
            heartbeat(dealer)
            dealer.close()
        page.goto(site.service.url.rstrip("/") + shot.path.format(blind=self.blind))
        if "/parts/" in shot.path and name != "error":
            expect(page.locator("canvas[data-ready]").first).to_be_visible()
        if shot.before is not None:
            shot.before(page)
        page.wait_for_function("() => [...document.images].every((each) => each.complete)")
        # A part that is not there is said with 404, which Chromium writes on the console.
        yield page, problems if name != "error" else [text for text in problems if "404" not in text]
        context.close()


def _drawn(folder: Path) -> Iterator[dict[str, Any]]:
    """Defective parts of the synthetic line with a map over them, and each as it should be."""
    draw_dataset("synthetic://line?seed=1", folder, good=1, test_good=1, defective=12)
    noise = np.random.default_rng(1)
    good = (folder / "train" / "good" / "0000.png").read_bytes()
    for mask_file in sorted(folder.glob("ground_truth/*/*_mask.png"), key=lambda file: file.name):
        label = mask_file.parent.name
        image_file = folder / "test" / label / mask_file.name.replace("_mask", "")
        image, mask = cv2.imread(str(image_file)), cv2.imread(str(mask_file), cv2.IMREAD_GRAYSCALE)
        assert image is not None and mask is not None
        wide = cv2.dilate(mask, np.ones((9, 9), np.uint8))
        cells = (image.shape[1] // CELL, image.shape[0] // CELL)
        near = cv2.resize(cv2.GaussianBlur(wide, (0, 0), 6), cells, interpolation=cv2.INTER_AREA).astype(np.float32)
        deviation = (1.4 * near / 255 + 0.12 * noise.random(near.shape)).astype("<f2")
        x, y, w, h = cv2.boundingRect(wide)
        yield {
            "label": label,
            # One was flagged for nothing: an inspector calls it good, and it is the good part that others are shown.
            "image": good if mask_file.name.startswith(f"{FALSE_ALARM:04d}") else image_file.read_bytes(),
            "wanted": cv2.imencode(".png", cv2.inpaint(image, wide, 5, cv2.INPAINT_TELEA))[1].tobytes(),
            "map": deviation,
            "shape": image.shape,
            "region": Region(
                view="main", box_px=(x, y, w, h), area_px=float((mask > 0).sum()), peak=float(deviation.max())
            ),
        }


def _flagged(seq: int, name: str, verdict: Verdict, score: float, drawn: dict[str, Any], **more: Any) -> list[Any]:
    """As an edge sends a part that is flagged or audited: announced, judged with its map, its pictures after."""
    identity = {"edge_id": EDGE, "lot": "L-2026-47", "serial": f"SN{4200 + seq}", "t_wall_ns": time.time_ns()}
    deviation: np.ndarray[Any, Any] = drawn["map"]
    to_part = (float(CELL), 0.0, 0.0, 0.0, float(CELL), 0.0)
    raw = deviation.tobytes()
    reference = part_ref("map", raw, codec="raw", dtype="float16", shape=deviation.shape, to_part=to_part)
    pictures = tuple(
        part_ref(role, drawn[kind], codec="png", shape=drawn["shape"])  # type: ignore[arg-type]
        for role, kind in (("image", "image"), ("reconstruction", "wanted"))
    )
    result = s.result(
        seq + 1, name, verdict, score=score, regions=(drawn["region"],), parts=(reference,), **identity, **more
    )
    return [
        s.frames(s.trigger(seq, name, **identity)),
        s.frames(result, [raw], age_ms=48.0),
        s.frames(s.attachment(seq + 2, name, seq + 1, pictures, **identity), [drawn["image"], drawn["wanted"]]),
    ]


def _fill(site: Site, pictures: list[dict[str, Any]]) -> int:
    """Parts of every kind, some of them judged; returns the row of one that is to be judged blindly."""
    dealer, seq = Dealer(site.service.endpoint), 1
    for n, drawn in enumerate(pictures):
        verdict = Verdict.REVIEW if n % 4 == 3 else Verdict.REJECT
        score = 1.15 if verdict is Verdict.REVIEW else 4.6 - 0.3 * n
        reason = f"score {score:.3g} above 1.2"
        for message in _flagged(seq, f"bracket-{n + 1:04d}", verdict, score, drawn, reason=reason):
            dealer.send(message)
        seq += 3
    more = {"audit_share": 0.02, "audited": True}
    for message in _flagged(seq, "bracket-0800", Verdict.PASS, 0.4, pictures[0], **more):
        dealer.send(message)
    seq += 3
    now = {"edge_id": EDGE, "t_wall_ns": time.time_ns()}
    for n in range(30):
        dealer.send(s.frames(s.result(seq + n, f"bracket-{900 + n:04d}", **now)))
    seq += 30
    dealer.send(s.frames(s.missed(seq, "bracket-0931", "the station was busy", **now)))
    since = {"from_wall_ns": time.time_ns() - 9 * 10**9, "to_wall_ns": time.time_ns() - 4 * 10**9}
    dealer.send(s.frames(s.gap(seq + 1, "the edge was stopped", edge_id=EDGE, **since)))
    flips = [(f"bracket-{n:04d}", Verdict.PASS, Verdict.REJECT, {}) for n in (903, 911)]
    flips += [("bracket-0004", Verdict.REVIEW, Verdict.PASS, {"score": 0.93})]
    scores = [s.shadow_score(part, live, said, **more) for part, live, said, more in flips]
    scores += [s.shadow_score(f"bracket-{912 + n:04d}", Verdict.PASS, Verdict.PASS, score=0.4) for n in range(15)]
    dealer.send(s.frames(s.shadow(seq + 2, scores, edge_id=EDGE, offered=31, dropped=12, unseen=1)))
    dealer.wait_acked(*range(1, seq + 3), timeout_s=60)
    heartbeat(dealer)
    dealer.close()
    reader = site.service.reader
    number = {part["part_id"]: part["id"] for part in reader.parts(0, 100)}
    judge = site.service._writer.call
    if len(pictures) > 6:
        judge(lambda store: setattr(store, "follow", Follow(1.0, 0.0)))
        judge(lambda store: store.review(number["bracket-0005"], "good", "ada", dwell_ms=2300, station="desk 1"))
        judge(lambda store: store.review(number["bracket-0006"], "unsure", "ivan", comment="glare or scratch?"))
        judge(lambda store: store.review(number["bracket-0007"], "defect", "ivan", defect_class="stain"))
        for n, said in ((5, "good"), (7, "good")):
            judge(lambda store, n=n, said=said: store.review(number[f"bracket-000{n}"], said, "olga", purpose="second"))
        judge(lambda store: store.review(number["bracket-0004"], "defect", "eve", defect_class="dent"))
        judge(lambda store: store.review(number["bracket-0004"], "defect", "olga", purpose="second"))
        judge(lambda store: store.run(lambda connection: register(connection, number["bracket-0004"], "eve")))
    judge(lambda store: store.run(add_up))
    return int(number["bracket-0800"])


def _hold(site: Site, pictures: list[dict[str, Any]]) -> None:
    """A line that was released, made parts, lost a reject at its gate, failed its challenge, and is at the next."""
    dealer, ledger, line = Dealer(site.service.endpoint), site.service.ledger, LINE
    heartbeat(dealer)
    now = {"edge_id": EDGE, "lot": "L-2026-47"}
    judged = {"recipe_number": RECIPE, "reason": "above 1.2"}
    seq = 1

    def ask(what: Asked, who: str, **values: Any) -> None:
        ledger.ask(line, what, who, **values).result(30)

    def read(names: str, *verdicts: Verdict, then: str) -> None:
        nonlocal seq
        for verdict in verdicts:
            part = {**now, "t_wall_ns": time.time_ns()}
            dealer.send(s.frames(s.trigger(seq, f"{names}-{seq}", **part), age_ms=0))  # begun or released just now
            dealer.send(s.frames(s.result(seq + 1, f"{names}-{seq}", verdict, recipe_number=RECIPE, **part)))
            seq += 2
        dealer.wait_acked(*range(seq - 2 * len(verdicts), seq))
        s.until(lambda: ledger.state_of(line).challenge == then)

    ask("add_master", "eve", name="good-1", expected="pass")
    ask("add_master", "eve", name="scratch-0.3", expected="reject", defect_class="scratch")
    ask("begin_challenge", "ivan")
    read("master", Verdict.PASS, Verdict.REJECT, then="passed")
    heartbeat(dealer)
    for n, drawn in enumerate(pictures):
        for message in _flagged(seq, f"bracket-{n + 1:04d}", Verdict.REJECT, 4.6 - n, drawn, **judged):
            dealer.send(message)
        dealer.wait_acked(seq, seq + 1, seq + 2)
        seq += 3
    read("bracket", *[Verdict.PASS] * 5, then="passed")
    last = site.service._numbered.last_number(line)
    rejects = [row["number"] for row in site.service._numbered.between(line, 0, last) if row["code"] == LineCode.REJECT]
    for number, outcome in zip(rejects, OUTCOMES, strict=True):
        ledger.gate(line, number, outcome, CONTROLLER)
    s.until(lambda: ledger.state_of(line).stop == "not_confirmed")
    ask("begin_challenge", "ivan")
    read("master", Verdict.PASS, Verdict.PASS, then="failed")
    failed = site.service._numbered.journal_of(line, ["challenge_failed"], 1)[0]["id"]
    interval = containment.since_good_check(site.service._numbered, line, failed)
    judge = site.service._writer.call
    one = judge(lambda store: store.run(lambda connection: containment.open_one(connection, interval, "eve")))
    text = "bracket-0002 found in the bin of good parts and scrapped; the others are sorted again"
    judge(lambda store: store.run(lambda connection: containment.note(connection, one, text, "eve")))
    ask("begin_challenge", "ivan")
    read("master", Verdict.PASS, then="running")
    s.until(lambda: ledger.state_of(line).taken == 1)
    _drift(site, dealer, seq)
    dealer.close()


def _drift(site: Site, dealer: Dealer, seq: int) -> None:
    """A lamp that ages, until it is an alarm."""
    noise = np.random.default_rng(4)
    begun_ns = time.time_ns() - 40 * 15 * 60 * 10**9
    for n in range(40):
        shift = float(noise.normal(0, 0.15)) - 0.1 * max(0, n - 15)
        evidence = {"evidence": -6.5 + float(noise.random()) + 0.26 * max(0, n - 18)}
        alarm = "picture" if n == 39 else ""
        at = {"edge_id": EDGE, "t_wall_ns": begun_ns + n * 15 * 60 * 10**9, "since_part_id": None}
        dealer.send(s.frames(s.drift(seq + n, "", alarm, shift=shift, **evidence, **at)))
    dealer.wait_acked(*range(seq, seq + 40))
    s.until(lambda: site.service._drift.of_line(LINE))


def heartbeat(dealer: Dealer) -> None:
    """What an edge says of itself several times a second."""
    camera = CameraState(camera_id="cam-1", state="running", frames=18_250, triggers=931, frame_age_ms=31.0)
    known = {"recipe": "bracket", "recipe_number": RECIPE, "bundle_id": "bracket-2026-11-20", "engine": "openvino fp32"}
    known["model_sha256"] = "ab" * 32  # as the results say too
    dealer.send(s.frames(s.state(1, edge_id=EDGE, t_wall_ns=time.time_ns(), cameras=(camera,), **known)))
    dealer.wait_acked(1, spool="state-run-1")


def write(folder: Path) -> int:
    """Every page in every size and theme as JPEG, about 40 KB each."""
    from playwright.sync_api import sync_playwright

    from tests.browser.conftest import launch

    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as draft, sync_playwright() as playwright:
        browser, gallery = launch(playwright), Gallery(Path(draft))
        for name in SHOTS:
            with gallery.page(browser, name) as (page, problems):
                for theme in THEMES:
                    page.emulate_media(color_scheme=theme)  # type: ignore[arg-type]
                    for width, height in SIZES.items():
                        page.set_viewport_size({"width": width, "height": height})
                        page.wait_for_timeout(250)  # until canvases and transitions have settled
                        page.screenshot(path=folder / f"{name}-{width}-{theme}.jpg", type="jpeg", quality=55)
                assert problems == [], (name, problems)
        gallery.stop()
        browser.close()
    return len(SHOTS) * len(SIZES) * len(THEMES)


if __name__ == "__main__":
    target = Path(sys.argv[1] if len(sys.argv) > 1 else "docs/pictures/review")
    print(f"{write(target)} pictures in {target}")
