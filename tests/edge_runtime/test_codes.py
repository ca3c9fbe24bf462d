"""Codes written by the decoder's own writer, laid into pictures as a camera shows them: read, or refused, in time."""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import cv2
import numpy as np
import pytest

from contract.bundle import Bundle, open_bundle
from contract.correction import Correction
from contract.errors import ConfigError
from contract.event import Result, Verdict
from contract.images import PixelFormat, Pixels
from contract.locate import Box
from edge_runtime import codes
from edge_runtime.capture import CameraProcess, CapturedTrigger
from edge_runtime.codes import MAX_PIXELS, CodeReader, read_code
from edge_runtime.cutting import STRAIGHT, CutPart, cut_part, with_cut
from edge_runtime.engines import open_engine
from edge_runtime.errors import CodeError
from edge_runtime.inspector import Outcome
from edge_runtime.settings import CameraSettings, CodeSettings
from edge_runtime.synthetic import SyntheticLine
from tests.edge_runtime.test_station import Run
from tests.preprocessed import content

zxingcpp = pytest.importorskip("zxingcpp", reason="zxing-cpp is not installed: pip install 'flawline[codes]'")

KINDS = {"datamatrix": "DataMatrix", "qr": "QRCode", "code128": "Code128"}
SERIAL = "FL-7-000123"


def code(text: str = SERIAL, symbology: str = "datamatrix", scale: int = 4) -> Pixels:
    made = zxingcpp.create_barcode(text, getattr(zxingcpp.BarcodeFormat, KINDS[symbology]))
    return np.array(made.to_image(scale=scale), np.uint8)


def scene(
    mark: Pixels,
    angle_deg: float = 0.0,
    low: float = 20.0,
    high: float = 200.0,
    noise: float = 3.0,
    blur: float = 0.0,
    hw: tuple[int, int] = (480, 640),
) -> Pixels:
    """The code on a grey plate on a dark belt: turned, of this contrast, blurred and noisy."""
    random = np.random.default_rng(1)
    height, width = mark.shape
    picture = np.full(hw, 45.0, np.float32)
    picture[hw[0] // 8 : -hw[0] // 8, hw[1] // 8 : -hw[1] // 8] = high
    matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle_deg, 1.0)
    matrix[:, 2] += np.array([hw[1] - width, hw[0] - height]) / 2
    laid = low + (high - low) * mark.astype(np.float32) / 255
    turned = cv2.warpAffine(laid, matrix, (hw[1], hw[0]), borderValue=-1.0, flags=cv2.INTER_LINEAR)
    picture = np.where(turned >= low - 1, turned, picture)
    if blur:
        picture = cv2.GaussianBlur(picture, (0, 0), blur)
    return np.clip(picture + random.normal(0, noise, hw), 0, 255).astype(np.uint8)


def damaged(share: float) -> Pixels:
    """A scratch over the code, as wide as this share of it."""
    mark = code(scale=6)
    side = mark.shape[0]
    cv2.line(mark, (side // 3, 2 * side // 3), (2 * side // 3, side // 3), 255, max(1, round(share * side)))
    return mark


def read(pixels: Pixels, **settings: Any) -> str | None:
    found = read_code(pixels, CodeSettings(**settings))
    return None if found is None else found.text


@pytest.mark.parametrize("symbology", KINDS)
@pytest.mark.parametrize("angle", [0, 17, 45, 90, 133, 180, 300])
def test_a_code_at_any_turn_is_read(symbology: str, angle: float) -> None:
    assert read(scene(code(symbology=symbology, scale=3), angle), symbology=symbology) == SERIAL


@pytest.mark.parametrize(
    "picture",
    [
        lambda: scene(code(), noise=25.0),
        lambda: scene(code(), low=100, high=125),
        lambda: scene(code(), low=15, high=30, noise=1.5),
        lambda: scene(code(scale=5), blur=2.0),
        lambda: scene(damaged(0.06), 30.0),
        lambda: scene(255 - code()),
        lambda: scene(code(scale=2), hw=(120, 160)),
        lambda: np.repeat(scene(code())[..., None], 3, axis=2),
        lambda: scene(code(scale=12), hw=(2000, 2600)),
    ],
    ids=["noisy", "low contrast", "dark", "blurred", "scratched", "inverted", "small", "colour", "large"],
)
def test_a_code_that_is_hard_to_see_is_read(picture: Any) -> None:
    assert read(picture()) == SERIAL


@pytest.mark.parametrize(
    "picture",
    [
        lambda: np.full((480, 640), 120, np.uint8),
        lambda: np.random.default_rng(1).integers(0, 256, (480, 640)).astype(np.uint8),
        lambda: scene(damaged(0.4)),
        lambda: scene(code(symbology="qr")),
        lambda: scene(code())[:, :310],
        lambda: np.zeros((3, 3), np.uint8),
    ],
    ids=["flat", "noise", "destroyed", "another kind", "half of it", "tiny"],
)
def test_where_none_is_readable_none_is_invented(picture: Any) -> None:
    assert read(picture()) is None


def test_two_that_differ_are_refused_and_two_that_agree_are_one() -> None:
    def pair(first: str, second: str) -> Pixels:
        return np.hstack([scene(code(first)), scene(code(second))])

    assert read(pair("A-1", "A-1")) == "A-1"
    with pytest.raises(CodeError, match="2 different ones in view \\('A-1', 'A-2'\\): set the region"):
        read(pair("A-1", "A-2"))


def test_a_huge_payload_and_control_characters_are_no_serial() -> None:
    large = scene(code("x" * 1200, "qr", 3), hw=(600, 700))
    with pytest.raises(CodeError, match=r"1200 characters .*expected 1 to 100"):
        read(large, symbology="qr")
    text = read(scene(code("[)>\x1e06\x1d1T123\x1e\x04")))
    assert text is not None and text.isprintable() and "1T123" in text


def test_a_picture_is_reduced_to_what_can_be_read_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    real = zxingcpp.read_barcodes

    def counted(picture: Pixels, **words: Any) -> Any:
        seen.append(picture.size)
        return real(picture, **words)

    monkeypatch.setattr(zxingcpp, "read_barcodes", counted)
    assert read(np.full((4000, 5000), 100, np.uint8)) is None
    assert seen and max(seen) <= MAX_PIXELS * 1.01


def test_without_the_package_the_way_out_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zxingcpp", None)
    with pytest.raises(ConfigError, match=r"pip install 'flawline\[codes\]'"):
        CodeReader(CodeSettings())


def test_a_reading_that_takes_too_long_ends_with_its_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first one hangs; the second waits behind it, is given up as well, and is never begun."""
    go_on, begun = threading.Event(), []

    def slow(pixels: Pixels, settings: CodeSettings) -> None:
        begun.append(pixels)
        go_on.wait(20)

    monkeypatch.setattr(codes, "read_code", slow)
    reader = CodeReader(CodeSettings(budget_ms=30))
    pixels = np.zeros((8, 8), np.uint8)
    first, second = reader.begin(pixels), reader.begin(pixels)
    for reading in (first, second):
        assert reader.result(reading) == (None, "code: not read within 30 ms")
    go_on.set()
    assert second.done.wait(30) and len(begun) == 1


def test_a_decoder_that_fails_is_a_reason_and_the_next_part_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    reader = CodeReader(CodeSettings(budget_ms=10_000))
    broken = reader.begin(np.zeros((8, 8, 2), np.float64))  # type: ignore[arg-type]
    assert reader.result(broken)[0] is None and reader.result(broken)[1]
    assert reader.result(reader.begin(scene(code()))) == (SERIAL, None)
    optional = CodeReader(CodeSettings(required=False, budget_ms=10_000))
    assert optional.result(optional.begin(np.zeros((60, 60), np.uint8))) == (None, None)


@pytest.fixture(scope="module")
def opened(bundle: Path) -> Bundle:
    return open_bundle(bundle)


@pytest.fixture
def runs() -> Iterator[list[Run]]:
    made: list[Run] = []
    yield made
    for run in made:
        run.close()


@pytest.mark.parametrize("required", [True, False])
def test_parts_carry_their_serials_and_one_without_is_not_inspected_where_it_is_required(
    opened: Bundle, tmp_path: Path, runs: list[Run], required: bool
) -> None:
    """Plates with a label in the frame's corner, which the fixture does not cut out: the last one's is torn."""
    line = SyntheticLine(seed=2, parts=6, defects=0.0)
    (tmp_path / "in").mkdir()
    for number in range(3):
        frame = line.render(line.first_frame(line.parts[number]) + 2)
        label = code(f"SN{number}", scale=4)
        frame[8 : 8 + label.shape[0], 8 : 8 + label.shape[1]] = label if number < 2 else 128
        cv2.imwrite(str(tmp_path / "in" / f"{number}.png"), frame)
    camera = {
        "trigger": "every-frame",
        "code": CodeSettings(region=(0, 0, 160, 140), required=required, budget_ms=10_000),
    }
    url = f"file://{tmp_path}/in?fps=20&channels=1"
    runs.append(Run(tmp_path, opened, open_engine("onnxruntime", opened), url, camera=camera))
    results = [header for header in runs[0].run() if isinstance(header, Result)]
    assert [result.serial for result in results] == ["SN0", "SN1", None]
    last = results[-1]
    told = (last.reason or "").startswith("code: no readable datamatrix in view")
    assert told == required
    assert not required or last.verdict is Verdict.NOT_INSPECTED
    assert all("code:" not in (result.reason or "") for result in results[:2])
    assert all(result.part_to_frame is not None for result in results)


def test_a_region_outside_of_the_frame_is_said(opened: Bundle, tmp_path: Path, runs: list[Run]) -> None:
    camera = {"code": CodeSettings(region=(600, 0, 100, 100))}
    url = "synthetic://line?seed=2&parts=1&fps=50"
    runs.append(Run(tmp_path, opened, open_engine("onnxruntime", opened), url, camera=camera))
    (result,) = [header for header in runs[0].run() if isinstance(header, Result)]
    assert result.verdict is Verdict.NOT_INSPECTED
    assert result.reason == "camera top: region (600, 0, 100, 100) leaves the frame of 640 x 480 pixels"


def test_a_symbology_that_is_not_read_is_refused() -> None:
    with pytest.raises(ValueError, match="datamatrix"):
        CameraSettings(id="top", url="usb://0", code={"symbology": "aztec"})  # type: ignore[arg-type]


def test_a_code_that_says_another_part_than_its_trigger_is_not_inspected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codes, "read_code", lambda pixels, settings: codes.Code("B-2", "datamatrix"))
    reader = CodeReader(CodeSettings(required=False, budget_ms=10_000))
    passed = Outcome(Verdict.PASS, None, 0.1, None, [], {}, 1, 2, 3)
    for told, verdict in ((None, Verdict.PASS), ("B-2", Verdict.PASS), ("A-1", Verdict.NOT_INSPECTED)):
        cut = CutPart(np.zeros((8, 8), np.uint8), STRAIGHT, {}, reading=reader.begin(np.zeros((8, 8), np.uint8)))
        outcome, serial = with_cut(passed, cut, reader, told)
        assert (outcome.verdict, serial) == (verdict, None if told == "A-1" else "B-2"), told
    assert outcome.reason is not None and "'B-2'" in outcome.reason and "'A-1'" in outcome.reason


def judged(required: bool = True) -> tuple[CodeReader, Outcome]:
    reader = CodeReader(CodeSettings(required=required, budget_ms=10_000))
    return reader, Outcome(Verdict.PASS, None, 0.5, None, [], {"main.mean": 90.0}, 1, 2, 3)


def test_another_serial_than_the_trigger_s_is_another_part_s() -> None:
    reader, passed = judged()
    cut = CutPart(scene(code()), None, {"fixture.score": 0.9}, reading=reader.begin(scene(code())))
    same, serial = with_cut(passed, cut, reader, SERIAL)
    assert (same.verdict, serial) == (Verdict.PASS, SERIAL)
    assert same.quality == {"main.mean": 90.0, "fixture.score": 0.9}
    other, serial = with_cut(passed, cut, reader, "FL-7-000124")
    assert (other.verdict, serial) == (Verdict.NOT_INSPECTED, None)
    assert other.reason is not None and "FL-7-000124" in other.reason and SERIAL in other.reason


@pytest.mark.parametrize("required", [True, False])
def test_a_part_whose_code_nobody_looked_for_is_not_inspected_where_it_is_required(required: bool) -> None:
    reader, passed = judged(required)
    outcome, serial = with_cut(passed, CutPart({}, None, {}), reader)
    assert serial is None
    assert outcome.verdict is (Verdict.NOT_INSPECTED if required else Verdict.PASS)
    assert (outcome.reason or "").startswith("code: no view of the recipe") == required


def test_a_camera_that_follows_reads_no_code() -> None:
    with pytest.raises(ValueError, match="a code is read by the camera that makes the part"):
        CameraSettings(id="side", url="usb://1", trigger="follow", code=CodeSettings())


class TwoInView:
    """Stands for a camera that was triggered for the left one of two parts in view."""

    def __init__(self, frame: Pixels, box: Box) -> None:
        self.frame, self.box = frame, box

    def whole(self, _: CapturedTrigger) -> tuple[Pixels, PixelFormat]:
        return self.frame, PixelFormat.MONO8

    def cut(self, _: CapturedTrigger, region: Box | None = None) -> tuple[Pixels, PixelFormat]:
        x, y, w, h = region or self.box
        return self.frame[y : y + h, x : x + w].copy(), PixelFormat.MONO8

    def search(self, _: CapturedTrigger) -> Box:
        return self.box

    def origin(self, _: CapturedTrigger) -> tuple[int, int]:
        return self.box.x, self.box.y


@pytest.mark.parametrize("region", [None, (150, 0, 150, 150)])
@pytest.mark.parametrize("corrected", [True, False])
def test_of_two_parts_in_view_each_gets_its_own_serial(corrected: bool, region: tuple[int, ...] | None) -> None:
    """With a correction too, though it is given the whole frame; a region that is asked for says where to read."""
    side = 300
    frame = np.full((side, side), 200, np.uint8)
    for text, x in (("LEFT", 30), ("RIGHT", 180)):
        mark = code(text)
        frame[30 : 30 + mark.shape[0], x : x + mark.shape[1]] = mark
    camera = cast(CameraProcess, TwoInView(frame, Box(0, 0, 150, 150)))
    reader = CodeReader(CodeSettings(region=region))
    trigger = CapturedTrigger(1, 1, 0, 0, (10, 10, 130, 130), None)
    correction = Correction(content(side), "x") if corrected else None
    cut = cut_part(camera, trigger, 1, None, reader, correction)
    assert cut.reading is not None and cut.reading.done.wait(60)
    assert (cut.reading.text, cut.reading.fault) == ("LEFT" if region is None else "RIGHT", None)
