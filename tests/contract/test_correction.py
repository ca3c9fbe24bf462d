"""The preprocess file: what it does to pixels, and what of a file is refused before anything is done."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from contract import correction as module
from contract.correction import GAIN_ONE, Correction, PreprocessFile, open_correction
from contract.errors import ConfigError, FixtureError, ImageError
from contract.fixture import make_fixture
from contract.images import encode_png, encode_png16
from contract.locate import Box
from contract.preprocess import SATURATED
from tests.bundles import SIDE, draw_part
from tests.preprocessed import DARK, content, flat_field, raw, write_file


def only_flat(**changed: Any) -> PreprocessFile:
    return content(lens=None, plane=None, **changed)


def test_light_is_even_again_and_a_dead_pixel_is_its_neighbours() -> None:
    part = draw_part(3)
    frame = raw(part)
    assert np.abs(frame.astype(int) - part)[60:, 60:].mean() > 10
    even = Correction(only_flat(), "x").correct(frame)
    assert np.abs(even.astype(int) - part).max() <= 1
    frame[50, 20] = 255
    mended = Correction(only_flat(flat=flat_field(dead=(20, 50))), "x").correct(frame)
    assert mended[50, 20] == (int(mended[50, 19]) + int(mended[50, 21]) + 1) // 2
    mended[50, 20] = even[50, 20]
    assert np.array_equal(mended, even)


def test_colour_takes_the_grey_gain_in_each_plane() -> None:
    part = draw_part(4)
    rgb = np.stack([part, part // 2, part // 4], axis=2)
    even = Correction(only_flat(), "x").correct(raw(rgb))
    assert np.abs(even.astype(int) - rgb).max() <= 1


def test_light_above_white_stays_white_and_below_the_sensor_s_own_level_black() -> None:
    frame = np.full((SIDE, SIDE), 255, np.uint8)
    frame[:4] = DARK - 3
    even = Correction(only_flat(), "x").correct(frame)
    assert (even[60:, 60:] == 255).all() and (even[:4] == 0).all()


def test_what_the_sensor_could_not_measure_stays_white_where_light_is_plentiful() -> None:
    """Else the bound on saturated pixels would not see the brightest place, where saturation begins."""
    gain = np.full((SIDE, SIDE), GAIN_ONE * 3 // 4, np.uint16)
    bright = flat_field().model_copy(update={"gain": base64.b64encode(encode_png16(gain)).decode()})
    frame = np.full((SIDE, SIDE), 200, np.uint8)
    frame[:8], frame[8:16] = 255, SATURATED
    even = Correction(only_flat(flat=bright), "x").correct(frame)
    assert (even[:16] == 255).all() and even[16:].max() < 200


def test_the_picture_is_that_of_the_exact_projection() -> None:
    """Against OpenCV's own projection of every pixel's point, and a picture that is smooth: a level at most."""
    made = content(flat=None)
    assert made.plane is not None and made.lens is not None
    ys, xs = np.mgrid[:SIDE, :SIDE]
    frame = np.rint(120 + 60 * np.sin(xs / 9.0) * np.cos(ys / 11.0)).astype(np.uint8)
    width, height = made.plane.size_px
    us, vs = np.meshgrid(np.arange(width), np.arange(height))
    points = np.array(made.plane.origin) + us[..., None] * made.plane.along_x + vs[..., None] * made.plane.along_y
    seen, _ = cv2.projectPoints(
        points.reshape(-1, 3), np.zeros(3), np.zeros(3), made.lens.matrix(), np.array(made.lens.distortion)
    )
    x, y = seen.reshape(height, width, 2)[..., 0], seen.reshape(height, width, 2)[..., 1]
    correction = Correction(made, "x")
    found = correction.correct(frame).astype(float)
    assert found.shape == (height, width)
    assert np.abs(found - (120 + 60 * np.sin(x / 9.0) * np.cos(y / 11.0))).max() < 1.5
    back = correction.to_corrected(np.stack([x.ravel(), y.ravel()], axis=1))
    assert np.abs(back - np.stack([us.ravel(), vs.ravel()], axis=1)).max() < 1e-6


def test_a_box_of_the_frame_is_found_again_in_the_corrected_picture() -> None:
    correction = Correction(content(), "x")
    box = correction.box(Box(20, 25, 30, 20))
    corners = correction.to_corrected(np.array([[20.0, 25.0], [49.0, 25.0], [20.0, 44.0], [49.0, 44.0]]))
    assert box.x <= corners[:, 0].min() and box.x + box.w >= corners[:, 0].max()
    assert box.y <= corners[:, 1].min() and box.y + box.h >= corners[:, 1].max()
    assert correction.box(Box(0, 0, SIDE, SIDE)) == Box(0, 0, 64, 60)


def test_other_frames_are_refused_with_the_size_expected() -> None:
    for frame in (np.zeros((SIDE, SIDE - 1), np.uint8), np.zeros((SIDE, SIDE), np.uint16)):
        with pytest.raises(ImageError, match="whole frames of 80 x 80 px"):
            Correction(content(), "x").correct(frame)


def test_a_part_is_found_in_the_corrected_picture_or_refused() -> None:
    picture = np.full((SIDE, SIDE), 60, np.uint8)
    cv2.rectangle(picture, (30, 28), (52, 50), 200, -1)
    cv2.circle(picture, (36, 34), 4, 20, -1)
    bare = Correction(only_flat(), "x")
    placer = make_fixture(bare.correct(raw(picture)), (24, 22, 36, 36), max_angle_deg=10)
    template = {"fixture": placer.fixture, "mark": base64.b64encode(encode_png(placer.mark)).decode()}
    correction = Correction(only_flat(template=template), "x")
    moved = np.roll(picture, (3, -5), (0, 1))
    placed = correction.part(raw(moved))
    assert placed.pixels.shape == (36, 36)
    assert placed.to_picture[2] == pytest.approx(19, abs=0.2) and placed.to_picture[5] == pytest.approx(25, abs=0.2)
    searched = correction.part(raw(moved), search=Box(10, 15, 60, 60))
    assert np.allclose(searched.to_picture, placed.to_picture, atol=0.1)
    mask = np.where(moved > 150, 255, 0).astype(np.uint8)
    cut = correction.mask(raw(moved), mask)
    assert cut.shape == (36, 36) and set(np.unique(cut)) == {0, 255}
    assert np.abs((cut == 255).astype(int) - (placed.pixels > 130)).mean() < 0.05
    with pytest.raises(FixtureError):
        correction.part(raw(np.full((SIDE, SIDE), 60, np.uint8)))


# Hostile files -------------------------------------------------------------------------------------------------------


def changed(path: Path, change: Callable[[dict[str, Any]], None], resign: bool = True) -> Path:
    """The file of ``content`` with a change, its hash made right again unless ``resign`` is False."""
    raw_file = json.loads(content().signed())
    change(raw_file)
    if resign:
        raw_file["sha256"] = module._digest({name: value for name, value in raw_file.items() if name != "sha256"})
    path.write_text(json.dumps(raw_file))
    return path


def png16(value: int, side: int = SIDE) -> str:
    return base64.b64encode(encode_png16(np.full((side, side), value, np.uint16))).decode()


def png(side: int = SIDE) -> str:
    return base64.b64encode(encode_png(np.full((side, side), 7, np.uint8))).decode()


REFUSED: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "format": (lambda file: file.update(format="flawline.preprocess/9"), "this version reads"),
    "unknown key": (lambda file: file.update(gains=1), "unknown key"),
    "not a number": (lambda file: file["lens"].update(cx=float("nan")), "cx"),
    "infinite": (lambda file: file["plane"]["origin"].__setitem__(0, float("inf")), "origin"),
    "too many pixels": (lambda file: file.update(frame_px=[16384, 16384]), "at most 120000000 pixels"),
    "corrected too large": (lambda file: file["plane"].update(size_px=[16000, 16000]), "at most 120000000 pixels"),
    "too wide": (lambda file: file.update(frame_px=[10**9, 8]), "frame_px"),
    "lens without plane": (lambda file: file.update(plane=None), "lens and plane go together"),
    "another scale": (lambda file: file["plane"].update(mm_per_px=0.3), "mm_per_px = 0.3"),
    "askew": (lambda file: file["plane"].update(along_y=[0.25, 0.01, 0.0]), "across each other"),
    "behind the camera": (lambda file: file["plane"].update(origin=[0.0, 0.0, -5.0]), "behind the camera"),
    "out of the frame": (lambda file: file["plane"].update(size_px=[90, 60]), "reaches out of the frame"),
    "no Base64": (lambda file: file["flat"].update(gain="/etc/passwd"), "Base64|expected a whole PNG"),
    "picture of another size": (lambda file: file["flat"].update(gain=png16(8192, SIDE + 1)), "expected a whole PNG"),
    "picture of another depth": (lambda file: file["flat"].update(gain=png()), "16 bits"),
    "all dead": (lambda file: file["flat"].update(gain=png16(0)), "6400 dead pixels of 6400"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_a_hostile_file_is_refused_with_the_reason(tmp_path: Path, name: str) -> None:
    change, reason = REFUSED[name]
    with pytest.raises(ConfigError, match=reason):
        open_correction(changed(tmp_path / "camera.json", change))


def test_a_changed_file_is_refused_and_a_whole_one_read(tmp_path: Path) -> None:
    path = changed(tmp_path / "camera.json", lambda file: file["lens"].update(cx=40.0), resign=False)
    with pytest.raises(ConfigError, match="content and sha256 differ"):
        open_correction(path)
    good = open_correction(write_file(path, content()))
    assert good.content.computed_sha256() == good.content.sha256
    odd = write_file(path, content(measured={"ratio": float("nan"), "of": (1, 2.0), "named": "ü"}))
    assert open_correction(odd).content.measured["of"] == [1, 2.0]
    frame = raw(draw_part(1))
    assert np.array_equal(good.correct(frame), Correction(content(), "x").correct(frame))


def test_no_memory_is_taken_for_a_picture_that_only_claims_to_be_large(tmp_path: Path) -> None:
    """A PNG's header says 16384 x 7000, and so does the file: its pixels are not there."""
    header = bytearray(encode_png16(np.full((8, 8), 1, np.uint16)))
    header[16:24] = (16384).to_bytes(4) + (7000).to_bytes(4)
    torn = base64.b64encode(bytes(header[:60])).decode()

    def change(file: dict[str, Any]) -> None:
        file.update(frame_px=[16384, 7000], lens=None, plane=None)
        file["flat"].update(dark=torn, gain=torn)

    with pytest.raises(ConfigError, match="expected a whole PNG"):
        open_correction(changed(tmp_path / "camera.json", change))


def test_what_cannot_be_read_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="cannot be read"):
        open_correction(tmp_path / "none.json")
    for text in ("[1]", "{", "[" * 100_000, '{"format": 3}'):
        (tmp_path / "x.json").write_text(text)
        with pytest.raises(ConfigError, match=r"not valid JSON|format"):
            open_correction(tmp_path / "x.json")
    monkeypatch.setattr(module, "MAX_FILE_BYTES", 100)
    with pytest.raises(ConfigError, match="at most 100: not a preprocess file"):
        open_correction(write_file(tmp_path / "x.json", content()))
