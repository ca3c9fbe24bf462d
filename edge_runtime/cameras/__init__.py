"""The table of cameras: scheme of a URL -> the class that reads it (hop 1)."""

from __future__ import annotations

import difflib
import importlib
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from edge_runtime.cameras.base import Camera, Source, redacted
from edge_runtime.errors import CameraError

CAMERAS = {
    "file": "edge_runtime.cameras.file:FileCamera",
    "synthetic": "edge_runtime.cameras.synthetic:SyntheticCamera",
    "replay": "edge_runtime.cameras.replay:ReplayCamera",
    "usb": "edge_runtime.cameras.device:UsbCamera",
    "rtsp": "edge_runtime.cameras.device:RtspCamera",
    "http": "edge_runtime.cameras.mjpeg:MjpegCamera",
    "https": "edge_runtime.cameras.mjpeg:MjpegCamera",
    "watch": "edge_runtime.cameras.watch:WatchedFolder",
    "gentl": "edge_runtime.cameras.gentl:GentlCamera",
}
WHOLE = ("rtsp", "http", "https")  # whose options are the camera's own


def is_live(url: str) -> bool:
    """Whether a real sensor is behind ``url``, which never gives the same picture twice; False for a wrong URL."""
    return bool(getattr(_class_of(url), "live", False))


def is_settable(url: str) -> bool:
    """Whether the camera behind ``url`` keeps the settings that a recipe gives it; False for a wrong URL."""
    return bool(getattr(_class_of(url), "settable", False))


def _class_of(url: str) -> object:
    module, _, name = CAMERAS.get(urlsplit(url).scheme, "").partition(":")
    return getattr(importlib.import_module(module), name) if module else None


def make_camera(
    url: str, camera_id: str, state_dir: Path, stall_s: float = 3.0, max_frame_bytes: int = 16_000_000
) -> Camera:
    """The camera behind ``url``, not opened yet; raises CameraError naming the scheme that was meant."""
    parts = urlsplit(url)
    target = CAMERAS.get(parts.scheme)
    if target is None:
        near = difflib.get_close_matches(parts.scheme, CAMERAS, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}://?" if near else "is it a path? then write file:// before it"
        raise CameraError(
            f"camera {camera_id}: {redacted(url)!r} has no known scheme; there are: "
            f"{', '.join(f'{name}://' for name in CAMERAS)}; {hint}"
        )
    module, _, name = target.partition(":")
    options = {} if parts.scheme in WHOLE else dict(parse_qsl(parts.query, keep_blank_values=True))
    place = url if parts.scheme in WHOLE else unquote(parts.netloc + parts.path)
    camera = getattr(importlib.import_module(module), name)
    made = camera(Source(url, place, options, camera_id, state_dir, stall_s, max_frame_bytes))
    if not isinstance(made, Camera):
        raise TypeError(f"{target} is no Camera")
    return made
