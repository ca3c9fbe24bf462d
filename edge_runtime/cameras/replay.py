"""A few pictures from memory, again and again: for measuring, where reading must cost nothing (in place of hop 1)."""

from __future__ import annotations

from pathlib import Path

from contract.camera import Value
from contract.dataset import images_in
from contract.images import GRAPH_FORMATS, Channels, Pixels, read_image
from edge_runtime.cameras.base import Camera, CameraFrame, Playhead, Source

MOST_BYTES = 512_000_000  # of all pictures together


class ReplayCamera(Camera):
    """``replay:///folder``; options ``fps`` (25), ``frames`` (until it ends; 0: for ever) and ``channels`` (1; 3).

    In the order of the names, all read before the first is given. Frame ``i`` is due ``i / fps`` after the start.
    """

    live = False

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        source.only("fps", "frames", "channels")
        self.fps = source.option("fps", 25, 0.01, 10_000)
        self._frames = int(source.option("frames", 0, 0, 1e12))
        self._channels: Channels = 3 if source.option("channels", 1, 1, 3) > 1 else 1
        self._folder = Path(source.place)
        self._pictures: list[Pixels] = []
        self._playhead: Playhead | None = None
        self._next = 0
        if not self._folder.is_dir():
            raise self.error(f"{self._folder}: no such folder")

    def open(self) -> None:
        self._pictures = []
        files = images_in(self._folder)
        for path in files:
            self._pictures.append(read_image(path, self._channels))
            if sum(picture.nbytes for picture in self._pictures) > MOST_BYTES:
                raise self.error(f"{self._folder}: its pictures take more than {MOST_BYTES / 1e6:g} MB; keep fewer")
        if not files:
            raise self.error(f"{self._folder}: the folder holds no images; expected PNG, JPEG, BMP, TIFF or WebP files")
        self.hold_to_controls()
        self._playhead = Playhead(self.source, self.fps)
        self._next = 0

    def reported(self) -> dict[str, Value]:
        if not self._pictures:
            return {}
        height, width = self._pictures[0].shape[:2]
        return {"width": width, "height": height, "fps": self.fps}

    def read(self) -> CameraFrame | None:
        if self._playhead is None:
            raise self.error("read before it was opened")
        index = self._playhead.choose(self._next)
        if self._frames and index >= self._frames:
            self.ended = f"ended: all {self._frames} frames of {self.source.url} have been given"
            return None
        if not self._playhead.wait(index):
            return None
        self._next = index + 1
        pixels = self._pictures[index % len(self._pictures)]
        return CameraFrame(pixels, GRAPH_FORMATS[self._channels], index, self._playhead.due_ns(index))

    def close(self) -> None:
        self._pictures = []
