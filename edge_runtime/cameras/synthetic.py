"""The synthetic line as a camera, in real time (in place of hop 1)."""

from __future__ import annotations

from contract.camera import Value
from contract.errors import ConfigError
from edge_runtime.cameras.base import Camera, CameraFrame, Playhead, Source
from edge_runtime.synthetic import HEIGHT, WIDTH, SyntheticLine, line_from


class SyntheticCamera(Camera):
    """``synthetic://line?seed=1&parts=50&fps=25&defects=0.25&speed=12&colour=0&repeat=1``."""

    live = False

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        self._line: SyntheticLine | None = None
        self._playhead: Playhead | None = None
        self._next = 0

    def open(self) -> None:
        if self.source.place.strip("/") != "line":
            raise self.error(f"{self.source.url}: there is synthetic://line only")
        try:
            self._line = line_from(self.source.options)
        except ConfigError as error:
            raise self.error(str(error)) from error
        self.fps = self._line.fps
        self.hold_to_controls()
        self._playhead = Playhead(self.source, self.fps)
        self._next = 0

    def reported(self) -> dict[str, Value]:
        return {"width": WIDTH, "height": HEIGHT, "fps": self.fps}

    def read(self) -> CameraFrame | None:
        if self._line is None or self._playhead is None:
            raise self.error("read before it was opened")
        index = self._playhead.choose(self._next)
        if index >= self._line.frames:
            self.ended = f"ended: all {len(self._line.parts)} parts of {self.source.url} have passed"
            return None
        if not self._playhead.wait(index):
            return None
        self._next = index + 1
        return CameraFrame(self._line.render(index), self._line.pixel_format, index, self._playhead.due_ns(index))

    def close(self) -> None:
        self._line = None
