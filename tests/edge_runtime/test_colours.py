"""One coloured picture through every camera: what reaches the graph is what training's loader gives for it.

From the camera's class through the capture loop and its shared memory to the tiles, grey and in colour. Where the way
to us is lossy (H.264, Motion JPEG in a video) the colours of large fields are compared.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
import pytest

from contract.images import (
    GRAPH_FORMATS,
    Channels,
    PixelFormat,
    Pixels,
    decode_image,
    developed,
    read_image,
    to_channels,
)
from contract.preprocess import prepare
from contract.recipe import Recipe
from edge_runtime.cameras import CAMERAS, make_camera
from edge_runtime.cameras.base import Camera, CameraFrame, Source
from edge_runtime.cameras.device import UsbCamera
from edge_runtime.capture import Capture
from edge_runtime.ring import Ring
from edge_runtime.settings import CameraSettings
from tests.edge_runtime.mjpeg_server import picture
from tests.edge_runtime.test_cameras import serve_rtsp
from tests.edge_runtime.test_gentl import producer  # noqa: F401 - a fixture
from tests.edge_runtime.test_mjpeg import Server

FIELDS = ((200, 30, 40), (30, 180, 60), (40, 60, 210), (150, 150, 150))  # red, green, blue, grey from left to right
LOSSY = 6  # grey levels

Case = tuple[Camera, Callable[[Channels], Pixels], bool]


def card(height: int = 48, width: int = 64) -> Pixels:
    """RGB: four upright fields."""
    rgb = np.zeros((height, width, 3), np.uint8)
    for number, colour in enumerate(FIELDS):
        rgb[:, number * width // 4 : (number + 1) * width // 4] = colour
    return rgb


def write(path: Path, rgb: Pixels) -> Path:
    cv2.imwrite(str(path), rgb[..., ::-1])
    return path


def video(path: Path) -> Path:
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 25, (64, 48))
    for _ in range(5):
        writer.write(np.ascontiguousarray(card()[..., ::-1]))
    writer.release()
    return path


def file_video(place: Path, _: pytest.FixtureRequest) -> Iterator[Case]:
    png = write(place / "card.png", card())
    camera = make_camera(f"file://{video(place / 'v.avi')}", "top", place / "state")
    camera.open()
    yield camera, lambda channels: read_image(png, channels), True


def file_folder(place: Path, _: pytest.FixtureRequest) -> Iterator[Case]:
    png = write(place / "card.png", card())
    camera = make_camera(f"file://{place}", "top", place / "state")
    camera.open()
    yield camera, lambda channels: read_image(png, channels), False


def replay(place: Path, _: pytest.FixtureRequest) -> Iterator[Case]:
    png = write(place / "card.png", card())
    camera = make_camera(f"replay://{place}?channels=3", "top", place / "state")
    camera.open()
    yield camera, lambda channels: read_image(png, channels), False


def watch(place: Path, _: pytest.FixtureRequest) -> Iterator[Case]:
    png = write(place / "card.png", card())
    camera = make_camera(f"watch://{place}?settle=0.05", "top", place / "state")
    camera.open()
    yield camera, lambda channels: read_image(png, channels), False


def synthetic(place: Path, _: pytest.FixtureRequest) -> Iterator[Case]:
    from edge_runtime.synthetic import SyntheticLine

    line = SyntheticLine(seed=4, parts=1, colour=True)
    png = write(place / "frame.png", line.render(0))
    camera = make_camera("synthetic://line?seed=4&parts=1&colour=1", "top", place / "state")
    camera.open()
    yield camera, lambda channels: read_image(png, channels), False


def usb(place: Path, _: pytest.FixtureRequest) -> Iterator[Case]:
    """OpenCV's own capture in the USB camera's class: of a video, for want of a device."""
    png = write(place / "card.png", card())
    camera = UsbCamera(Source("usb://0", "0", {}, "top", place / "state", 2.0))
    camera._start(cv2.VideoCapture(str(video(place / "v.avi"))))
    yield camera, lambda channels: read_image(png, channels), True


def rtsp(place: Path, _: pytest.FixtureRequest) -> Iterator[Case]:
    flat = np.empty((240, 320, 3), np.uint8)
    flat[:] = FIELDS[0]
    png = write(place / "flat.png", flat)
    (colour,) = ["0xff" + "".join(f"{level:02x}" for level in FIELDS[0])]
    server = serve_rtsp(f"pattern=solid-color foreground-color={colour}")
    url, _process = next(server)
    camera = make_camera(url, "top", place / "state", 10.0)
    camera.open()
    yield camera, lambda channels: read_image(png, channels), True
    camera.close()
    next(server, None)


def http(place: Path, _: pytest.FixtureRequest) -> Iterator[Case]:
    server = Server()
    camera = make_camera(server.url("good"), "top", place / "state")
    camera.open()
    yield camera, lambda channels: decode_image(picture(0), channels, "its first picture"), False
    camera.close()
    server.kill()


def gentl(place: Path, request: pytest.FixtureRequest) -> Iterator[Case]:
    """A ball that moves: what was seen is written as a picture, in the order that the maker's format declares."""
    url = f"gentl://{request.getfixturevalue('producer')}?serial=0&pixel_format=RGBa8"
    camera = make_camera(url, "top", place / "state")
    camera.open()
    held: list[CameraFrame] = []
    read = camera.read

    def keep() -> object:
        frame = read()
        held.extend([frame] if isinstance(frame, CameraFrame) else [])
        return frame

    camera.read = keep  # type: ignore[method-assign,assignment]

    def loaded(channels: Channels) -> Pixels:
        red, green, blue, _alpha = (held[0].pixels[..., plane] for plane in range(4))
        return read_image(write(place / "seen.png", np.dstack([red, green, blue])), channels)

    yield camera, loaded, False


CASES = {
    "file": (file_video, file_folder),
    "replay": (replay,),
    "watch": (watch,),
    "synthetic": (synthetic,),
    "usb": (usb,),
    "rtsp": (rtsp,),
    "http": (http,),
    "gentl": (gentl,),
}


def test_every_camera_s_colours_are_compared() -> None:
    assert set(CASES) == set(CAMERAS) - {"https"} and CAMERAS["https"] == CAMERAS["http"]


def through_the_capture(camera: Camera, place: Path) -> tuple[Pixels, PixelFormat]:
    """The camera's first frame as the station cuts it out of shared memory."""
    url = camera.source.url
    made = {"id": "top", "url": url, "trigger": "every-frame", "fixture": "region", "region": (0, 0, 8, 8)}
    settings = CameraSettings.model_validate(made)
    ring, (reading, writing) = Ring.create(4, 2_000_000), os.pipe2(os.O_NONBLOCK)
    try:
        capture = Capture(camera, ring, settings, writing)
        frame = None
        while frame is None:
            frame = camera.read()
        assert isinstance(frame, CameraFrame), frame
        capture.take(frame)
        (record,) = ring.drain()
        return ring.read(record.slot)
    finally:
        ring.close()
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("case", [case for cases in CASES.values() for case in cases], ids=lambda case: case.__name__)
def test_the_graph_s_input_is_the_loader_s(
    case: Callable[[Path, pytest.FixtureRequest], Iterator[Case]], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    place = tmp_path / "pictures"
    place.mkdir()
    made = case(place, request)
    camera, loaded, lossy = next(made)
    try:
        pixels, pixel_format = through_the_capture(camera, tmp_path)
        for channels in GRAPH_FORMATS:
            recipe = Recipe(channels=channels, tile_hw=(48, 64))
            seen = prepare(to_channels(pixels, pixel_format, channels), recipe).tiles
            learnt = prepare(loaded(channels), recipe).tiles
            assert seen.shape == learnt.shape == (1, 48, 64, channels)
            if not lossy:
                assert np.array_equal(seen, learnt)
                continue
            for number in range(4):
                middle = (0, slice(12, 36), slice(16 * number + 6, 16 * number + 10))
                apart = seen[middle].mean((0, 1)) - learnt[middle].mean((0, 1))
                assert np.abs(apart).max() < LOSSY, (number, channels, apart)
    finally:
        camera.close()
        next(made, None)


PATTERNS = {
    PixelFormat.BAYER_RG8: ("RG", "GB"),
    PixelFormat.BAYER_GR8: ("GR", "BG"),
    PixelFormat.BAYER_GB8: ("GB", "RG"),
    PixelFormat.BAYER_BG8: ("BG", "GR"),
}


@pytest.mark.parametrize("pixel_format", [each for each in PixelFormat if each is not PixelFormat.MONO8])
def test_every_pixel_format_comes_out_in_the_same_colours(pixel_format: PixelFormat) -> None:
    """Each laid out by its own definition, one value at a time."""
    rgb = card()
    if pixel_format in PATTERNS:
        raw = np.empty(rgb.shape[:2], np.uint8)
        for row in range(2):
            for column in range(2):
                plane = "RGB".index(PATTERNS[pixel_format][row][column])
                raw[row::2, column::2] = rgb[row::2, column::2, plane]
    else:
        planes = {"r": rgb[..., 0], "g": rgb[..., 1], "b": rgb[..., 2], "a": np.full(rgb.shape[:2], 7, np.uint8)}
        raw = np.dstack([planes[letter] for letter in pixel_format.value.removesuffix("8")])
    out, out_format = developed(raw, pixel_format)
    assert out_format in (PixelFormat.RGB8, PixelFormat.BGR8)
    for number, colour in enumerate(FIELDS):
        field = to_channels(raw, pixel_format, 3)[4:-4, 16 * number + 4 : 16 * number + 12]
        assert (field == colour).all(), (pixel_format, number)
    assert np.array_equal(to_channels(out, out_format, 1), to_channels(raw, pixel_format, 1))


def test_every_pixel_format_is_either_shared_or_developed() -> None:
    assert set(PATTERNS) | {PixelFormat.BGRA8, PixelFormat.RGBA8} == set(PixelFormat) - set(ring_formats())


def ring_formats() -> tuple[PixelFormat, ...]:
    from edge_runtime.ring import FORMATS

    return FORMATS
