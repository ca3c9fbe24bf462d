"""A camera that replays frames from memory, so that neither disk nor decoder is measured; benchmarks alone know it."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from contract.images import PixelFormat
from edge_runtime.cameras import CAMERAS
from edge_runtime.cameras.base import Camera, CameraFrame, Playhead, Source

SCHEME = "replay"
CHILD = Path(__file__).with_name("replay_child")
"""On the path of a capture process its ``sitecustomize`` makes the scheme known there."""


class ReplayCamera(Camera):
    """``replay:///path/to/frames.npy?fps=50``: uint8 [N, H, W] grey or [N, H, W, 3] RGB, again and again."""

    live = False

    def __init__(self, source: Source) -> None:
        super().__init__(source)
        source.only("fps")
        self.fps = source.option("fps", 25.0, 0.01, 100_000)
        self._next = 0

    def open(self) -> None:
        self._frames = np.load(self.source.place)
        self._format = PixelFormat.MONO8 if self._frames.ndim == 3 else PixelFormat.RGB8
        self._playhead = Playhead(self.source, self.fps)

    def read(self) -> CameraFrame | None:
        index = self._playhead.choose(self._next)
        if not self._playhead.wait(index):
            return None
        self._next = index + 1
        frame = self._frames[index % len(self._frames)]
        return CameraFrame(frame, self._format, index, self._playhead.due_ns(index))

    def close(self) -> None:
        """Nothing is held open."""


def register() -> None:
    """Make the scheme known in this process, and in capture processes that it starts."""
    CAMERAS[SCHEME] = "benchmarks.replay:ReplayCamera"
    if str(CHILD) not in sys.path:
        sys.path.insert(0, str(CHILD))
