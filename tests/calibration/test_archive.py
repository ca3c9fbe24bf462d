"""Archives of a host: a real one over its API, and what poses as one: nothing that it says is a name or an address."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from calibration import archive as module
from calibration.archive import IMAGES, PARTS, Item, Place
from calibration.errors import CalibrationError
from calibration.exports import Source
from calibration.replay import replay, rows_of
from calibration.rescoring import Scoring
from contract.errors import ImageError
from contract.event import Verdict, part_ref
from contract.images import encode_png, read_image
from contract.recipe import Recipe
from tests.calibration.test_replay import bundles
from tests.plugin import synthetic as s
from tests.plugin.people import Site
from tests.plugin.synthetic import Dealer

__all__ = ["bundles"]
PART = {"id": 1, "edge_id": "e", "part_id": "p", "verdict": "PASS", "score": 0.5, "review": None}
IMAGE = {"id": 5, "role": "image", "view": "main", "codec": "png", "url": "http://127.0.0.1:1/elsewhere"}
Answers = dict[str, tuple[int, bytes]]


class Poser(ThreadingHTTPServer):
    """Answers by the path that is asked, and notes it."""

    daemon_threads = True

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), Answering)

    @property
    def place(self) -> Place:
        return Place(Source(f"http://127.0.0.1:{self.server_address[1]}"), of_cameras=False)


class Answering(BaseHTTPRequestHandler):
    server: Poser

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        status, body = self.server.answers.get(self.path.partition("?")[0], (404, b"{}"))
        self.send_response(status)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *words: object) -> None:
        return


@pytest.fixture
def pose() -> Iterator[Callable[[dict[str, Any]], Poser]]:
    made: list[Poser] = []

    def make(answers: dict[str, Any]) -> Poser:
        plain = {
            path: (200, said if isinstance(said, bytes) else json.dumps(said).encode())
            if not isinstance(said, int)
            else (said, b"{}")
            for path, said in answers.items()
        }
        made.append(Poser(plain))
        threading.Thread(target=made[-1].serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return made[-1]

    yield make
    for server in made:
        server.shutdown()
        server.server_close()


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ({"items": [{**PART, "id": "../../etc/passwd"}], "next": None}, "items.0.id"),
        ({"items": [{**PART, "id": -1}], "next": None}, "items.0.id"),
        ({"items": [PART, PART], "next": None}, "part 1 comes behind part 1"),
        ({"items": [{**PART, "id": 7}], "next": 3}, "leads to 3"),
        ({"items": [PART] * 1001, "next": None}, "at items"),
        ({"items": [{**PART, "verdict": "FINE"}], "next": None}, "verdict"),
        ({"items": [{**PART, "part_id": "x" * 200}], "next": None}, "part_id"),
        (b"<html>", "at its start"),
        (b"[" * 50_000, "at its start"),
        (403, "refused .403"),
        (404, "has no /api/v1/parts"),
        (302, "answered 302"),
    ],
)
def test_a_list_that_cannot_be_right_ends_the_replay(
    pose: Callable[[dict[str, Any]], Poser], page: Any, words: str
) -> None:
    with pytest.raises(CalibrationError, match=words):
        list(pose({PARTS: page}).place.open().items())


def test_a_host_that_has_no_time_is_asked_again(
    pose: Callable[[dict[str, Any]], Poser], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PAUSE_S", 0.0)
    server = pose({PARTS: 503})
    with pytest.raises(CalibrationError, match="answered 503"):
        list(server.place.open().items())
    assert len(server.asked) == module.TRIES


@pytest.mark.parametrize(
    ("detail", "image", "words"),
    [
        ({"images": []}, b"", "no picture of it .edges send"),
        ({"images": [], "images_dropped": True}, b"", "spool was full"),
        ({"images": [IMAGE]}, 410, "no more"),
        ({"images": [IMAGE]}, b"no picture", "not a readable image"),
        ({"images": [IMAGE, {**IMAGE, "view": "../side"}]}, b"x", "2 pictures of views"),
        (404, b"", "no more"),
    ],
)
def test_a_part_without_a_picture_is_a_part_with_a_reason(
    pose: Callable[[dict[str, Any]], Poser], detail: Any, image: Any, words: str
) -> None:
    server = pose({f"{PARTS}/1": detail, f"{IMAGES}/5": image})
    with pytest.raises(ImageError, match=words):
        server.place.open().read("1", Recipe())
    assert set(server.asked) <= {f"{PARTS}/1", f"{IMAGES}/5"}, "no address that it gave was asked"


@pytest.mark.parametrize("number", ["../../x", 2**70, None])
def test_an_image_s_number_is_a_number(pose: Callable[[dict[str, Any]], Poser], number: Any) -> None:
    server = pose({f"{PARTS}/1": {"images": [{**IMAGE, "id": number}]}})
    with pytest.raises(CalibrationError, match=r"images.0.id"):
        server.place.open().read("1", Recipe())


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    site = Site(tmp_path / "host", sign_in=False)
    yield site
    site.stop()


def test_the_parts_of_a_real_host_are_scored_again(
    site: Site, bundles: tuple[Path, Path], drawn: Path, tmp_path: Path
) -> None:
    """Flagged parts have pictures, one that passed has none; the truth is what the inspector said."""
    dealer = Dealer(site.service.endpoint)
    for n, name in ((1, "spot/part_000"), (2, "good/part_000")):
        data = encode_png(read_image(drawn / "test" / f"{name}.png", 1))
        picture = part_ref("image", data, codec="png", shape=(80, 80))
        dealer.send(s.frames(s.result(2 * n - 1, f"part-{n}", verdict=Verdict.REJECT)))
        dealer.send(s.frames(s.attachment(2 * n, f"part-{n}", 2 * n - 1, (picture,)), (data,)))
    dealer.send(s.frames(s.result(5, "part-3")))
    dealer.wait_acked(*range(1, 6), timeout_s=60)
    dealer.close()
    number = {part["part_id"]: part["id"] for part in site.service.reader.parts(0, 10)}
    site.service._writer.call(lambda store: store.review(number["part-2"], "good", "ada"))
    place = Place(Source(site.service.url), of_cameras=False)
    items = list(place.open().items())
    assert items[1] == Item(str(number["part-2"]), f"{s.EDGE}/part-2", "good", "REJECT", 2.4)
    replay(Scoring(bundles[1], None, place), tmp_path / "out", workers=1)
    rows = list(rows_of(tmp_path / "out" / "work"))
    assert [(row.current.verdict, row.candidate.verdict) for row in rows] == [
        ("REJECT", "REJECT"),
        ("REJECT", "PASS"),
        ("PASS", "NOT_INSPECTED"),
    ]
    assert "no picture" in (rows[2].candidate.reason or "")
