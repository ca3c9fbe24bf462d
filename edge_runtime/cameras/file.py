"""A video or a folder of images played in real time, as if it were a line: never rewound, never paused (hop 1)."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np

from contract.camera import Value
from contract.dataset import images_in
from contract.errors import ImageError
from contract.images import PixelFormat, Pixels, read_image, to_channels
from edge_runtime.cameras.base import BadFrame, Camera, CameraFrame, Playhead, Source

FOLDER_FPS = 5.0
SEEK_FROM = 60  # frames to skip from which seeking beats decoding


class FileCamera(Camera):
    """``file:///path/to/video`` or a folder of images; options ``fps`` and ``channels`` (3; 1: made grey).

    In the path ``#``, ``?`` and ``%`` are written as %23, %3F and %25.
    """

    live = False

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        if "watch" in source.options:
            raise self.error(f"{source.url}: a folder that is being filled is watch://{source.place}")
        source.only("fps", "channels")
        self._path = Path(source.place)
        self._grey = source.option("channels", 3, 1, 3) == 1
        self._reader: _Video | _Folder | None = None
        self._playhead: Playhead | None = None
        self._next = 0
        if not self._path.exists():
            raise self.error(f"{self._path}: no such file or folder")

    def open(self) -> None:
        self._reader = self._folder() if self._path.is_dir() else self._video()
        self.fps = self.source.option("fps", self._reader.fps, 0.01, 1000)
        self.hold_to_controls()
        self._playhead = Playhead(self.source, self.fps)
        self._next = 0

    def reported(self) -> dict[str, Value]:
        if self._reader is None:
            return {}
        height, width = self._reader.size()
        return {"width": width, "height": height, "fps": self.fps}

    def _folder(self) -> _Folder:
        files = images_in(self._path)
        if not files:
            raise self.error(f"{self._path}: the folder holds no images; expected PNG, JPEG, BMP, TIFF or WebP files")
        return _Folder(files)

    def _video(self) -> _Video:
        if not os.access(self._path, os.R_OK):
            raise self.error(f"{self._path}: may not be read by this user")
        if self._path.stat().st_size == 0:
            raise self.error(f"{self._path}: the file is empty (0 bytes); expected a video")
        video = _Video(self._path)
        if not video.opened:
            video.close()
            raise self.error(f"{self._path}: not a video that can be read; is it truncated or of another type?")
        return video

    def read(self) -> CameraFrame | BadFrame | None:
        if self._reader is None or self._playhead is None:
            raise self.error("read before it was opened")
        if self.ended is not None:
            return None
        index = self._playhead.choose(self._next)
        if self._reader.count is not None and index >= self._reader.count:
            self._end(index)
            return None
        if not self._playhead.wait(index):
            return None
        try:
            pixels = self._reader.frame(index)
        except ImageError as error:
            self._next = index + 1
            return BadFrame(str(error)[-280:], index, self._playhead.due_ns(index))
        if pixels is None:
            self._end(self._reader.position)
            return None
        self._next = index + 1
        if self._grey:
            pixels = to_channels(pixels, self._reader.colour, 1)
        pixel_format = PixelFormat.MONO8 if self._grey else self._reader.colour
        return CameraFrame(pixels, pixel_format, index, self._playhead.due_ns(index))

    def _end(self, reached: int) -> None:
        count = None if self._reader is None else self._reader.count
        if count is not None and reached < count:
            self.ended = f"ended early: {reached} of {count} frames could be decoded; {self._path} is damaged"
        elif reached == 0:
            raise self.error(f"{self._path}: no frame could be decoded; is it truncated?")
        else:
            self.ended = f"ended: {self._path} has been played to its end"

    def close(self) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None


class _Video:
    """Frames of a video by number, forwards."""

    colour = PixelFormat.BGR8

    def __init__(self, path: Path) -> None:
        self._capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
        self.opened = self._capture.isOpened()
        self.fps = self._capture.get(cv2.CAP_PROP_FPS) if self.opened else 0.0
        if not 0.01 <= self.fps <= 1000:
            self.fps = 25.0
        count = int(self._capture.get(cv2.CAP_PROP_FRAME_COUNT)) if self.opened else 0
        self.count = count if count > 0 else None
        self.position = 0

    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        capture = self._capture
        return int(capture.get(cv2.CAP_PROP_FRAME_HEIGHT)), int(capture.get(cv2.CAP_PROP_FRAME_WIDTH))

    def frame(self, index: int) -> Pixels | None:
        if index - self.position >= SEEK_FROM:
            self._seek(index)
        while self.position < index:
            if not self._capture.grab():
                return None
            self.position += 1
        ok, pixels = self._capture.read()
        if not ok:
            return None
        self.position += 1
        return np.asarray(pixels, dtype=np.uint8)

    def _seek(self, index: int) -> None:
        if self._capture.set(cv2.CAP_PROP_POS_FRAMES, index):
            self.position = max(self.position, int(self._capture.get(cv2.CAP_PROP_POS_FRAMES)))

    def close(self) -> None:
        self._capture.release()


class _Folder:
    """Images of a folder, in the order of their names."""

    colour = PixelFormat.RGB8
    fps = FOLDER_FPS

    def __init__(self, files: list[Path]) -> None:
        self._files = files
        self.count: int | None = len(files)
        self.position = 0

    def size(self) -> tuple[int, int]:
        """Height and width of the first image in pixels. Raises ImageError."""
        height, width = read_image(self._files[0], 3).shape[:2]
        return height, width

    def frame(self, index: int) -> Pixels | None:
        self.position = index + 1
        return read_image(self._files[index], 3)

    def close(self) -> None:
        """Nothing is held open."""
