"""What every camera can do: open, give frames with their capture time, close (hop 1)."""

from __future__ import annotations

import json
import os
import re
import time
from abc import ABC, abstractmethod
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote, urlsplit, urlunsplit

from contract.camera import CameraControls, Value, agrees
from contract.images import PixelFormat, Pixels
from edge_runtime.clock import boot_id
from edge_runtime.errors import CameraError

MAX_LAG_S = 3.0  # a recording further behind real time than this goes on where real time is
NAP_S = 0.2  # longest wait inside one ``read``


class Source(NamedTuple):
    """A camera's URL taken apart; ``place`` is what stands behind the scheme, without the options."""

    url: str
    place: str
    options: dict[str, str]
    camera_id: str
    state_dir: Path
    stall_s: float
    max_frame_bytes: int = 16_000_000

    def option(self, name: str, default: float, least: float, most: float) -> float:
        """A number from the options; raises CameraError."""
        text = self.options.get(name)
        if text is None:
            return default
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not least <= value <= most:
            raise CameraError(
                f"camera {self.camera_id}: {name}={text!r} in {redacted(self.url)}: expected a number from "
                f"{least:g} to {most:g}"
            )
        return value

    def too_large(self, size: tuple[int, int] | None, planes: int) -> str | None:
        """Why a picture must not be decoded that declares ``size`` (width, height); None: it may be."""
        if size is None or size[0] * size[1] * planes <= self.max_frame_bytes:
            return None
        return (
            f"it declares {size[0]} x {size[1]} pixels, and at most {self.max_frame_bytes / 1e6:g} MB are taken: "
            "raise max_frame_mb"
        )

    def only(self, *known: str) -> None:
        """Raise CameraError for an option that this camera does not know."""
        for name in self.options:
            if name not in known:
                raise CameraError(
                    f"camera {self.camera_id}: unknown option {name!r} in {redacted(self.url)}; "
                    f"there are: {', '.join(known) or 'none'}"
                )


class CameraFrame(NamedTuple):
    """One frame. ``pixels`` may be reused by the next ``read``; ``t_capture_ns`` is CLOCK_MONOTONIC."""

    pixels: Pixels
    pixel_format: PixelFormat
    frame_no: int
    t_capture_ns: int


class BadFrame(NamedTuple):
    """A frame that came and cannot be used: what it would have shown is NOT_INSPECTED, with ``reason``."""

    reason: str
    frame_no: int
    t_capture_ns: int


class Camera(ABC):
    """One camera, used by one thread of one process."""

    live = True  # a real sensor: two frames are never the same, and all have one size
    waits = False  # frames come when parts do; between them ``read`` gives None, and only where all is well
    settable = False  # keeps what ``set_control`` sets, also when another recipe comes
    fps = 25.0

    def __init__(self, source: Source) -> None:
        self.source = source
        self.controls: CameraControls | None = None  # what a bundle asks for; set before ``open``
        self.triggered = False  # the line triggers the camera itself; set before ``open``
        self.announced_hw: tuple[int, int] | None = None  # set by ``open`` where the camera says: size of its frames
        self.proven_ns: int | None = (
            None  # of one that waits: when it last proved that it is there; None: each ``read``
        )
        self.ended: str | None = None  # set when no frame will ever follow: why

    @abstractmethod
    def open(self) -> None:
        """Make ready to read, with ``controls`` in force; raises CameraError, also where they do not read back."""

    def reported(self) -> dict[str, Value]:
        """What the open camera says of its settings, by the names of CameraControls; what it cannot say is left out."""
        return {}

    def set_control(self, name: str, value: Value) -> None:  # noqa: B027 - a recording has nothing to set
        """Ask the open camera for a setting; whether it took it, ``reported`` says."""

    @abstractmethod
    def read(self) -> CameraFrame | BadFrame | None:
        """The next frame; None where none came for a moment, or when it ended. Raises CameraError."""

    def taken(self) -> None:  # noqa: B027 - only what must never be given twice needs to know
        """The frame given last has been announced, or is known to need no announcement."""

    @abstractmethod
    def close(self) -> None:
        """Give everything back; may be called at any time."""

    def hold_to_controls(self) -> None:
        """Set every control, then read all of them back: one may change another.

        Raises CameraError naming each that is not as it was asked for.
        """
        asked = {} if self.controls is None else self.controls.asked()
        for name, value in asked.items():
            self.set_control(name, value)
        found = self.reported() if asked else {}
        faults = [
            f"{name} asked {_shown(value)}, {f'found {_shown(found[name])}' if name in found else 'not reported'}"
            for name, value in asked.items()
            if not agrees(value, found.get(name))
        ]
        if faults:
            raise self.error(
                f"{redacted(self.source.url)}: settings of the bundle do not read back: {'; '.join(faults)}. It "
                f"reports {', '.join(found) or 'nothing'}. Set them at the camera, or make a bundle for it as it is: "
                "flawline bundle camera BUNDLE --config edge.toml"
            )

    def error(self, text: str) -> CameraError:
        return CameraError(f"camera {self.source.camera_id}: {text}")


def _shown(value: Value) -> str:
    return value if isinstance(value, str) else f"{value:.10g}"


def redacted(url: str) -> str:
    """The URL without user name, password and, of a camera on the network, options: what may be logged."""
    shown = re.sub(r"://.*@", "://***@", url)  # a password may hold any sign, also / ? and @
    return re.sub(r"\?.*", "?...", shown) if shown.startswith(("rtsp", "http")) else shown


def with_credentials(source: Source, variable: str) -> str:
    """The URL with the ``user:password`` from the file that the environment's ``variable``_<ID> names, where it is set.

    In the file signs such as / ? # @ may stand as they are, or in percent as in an address. Raises CameraError for a
    file that cannot be read. What comes back is never shown.
    """
    name = f"{variable}_{source.camera_id.upper().replace('-', '_').replace('.', '_')}"
    held = os.environ.get(name)
    if held is None:
        return source.url
    try:
        mode = Path(held).stat().st_mode
        secret = Path(held).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no text"
        raise CameraError(f"camera {source.camera_id}: {name} names {held}: cannot be read ({reason})") from error
    if mode & 0o077:
        raise CameraError(
            f"camera {source.camera_id}: {held} holds a password and can be read by others (mode "
            f"{mode & 0o777:03o}): chmod 600 {held}"
        )
    parts = urlsplit(source.url)
    user, colon, password = secret.partition(":")
    written = f"{quote(user, safe='%')}{colon}{quote(password, safe='%')}"
    return urlunsplit(parts._replace(netloc=f"{written}@{parts.netloc.rpartition('@')[2]}"))


class Playhead:
    """Where a recording is: frame ``i`` is due ``i / fps`` after a start that outlives the process.

    The start stands in ``camera-<id>.json`` with the boot's id, so that a killed edge goes on where a real line
    would be; ``forget`` on a clean stop makes the next run begin at the beginning.
    """

    def __init__(self, source: Source, fps: float) -> None:
        self.fps = fps
        self.start_ns, resumed = _start_ns(source)
        self._allowed_s = 1 / fps if resumed else MAX_LAG_S

    def due_ns(self, index: int) -> int:
        return self.start_ns + round(index * 1e9 / self.fps)

    def choose(self, following: int) -> int:
        """The frame to give next: ``following``, or a later one where that is over MAX_LAG_S late.

        A process that goes on for a killed one catches up nothing: what passed meanwhile is gone, as on a real line.
        """
        late_s = (time.monotonic_ns() - self.due_ns(following)) / 1e9
        allowed_s, self._allowed_s = self._allowed_s, MAX_LAG_S
        return following if late_s <= allowed_s else following + int(late_s * self.fps)

    def wait(self, index: int) -> bool:
        """Wait for a frame's time, at most NAP_S; true when it has come."""
        left_s = (self.due_ns(index) - time.monotonic_ns()) / 1e9
        if left_s > 0:
            time.sleep(min(left_s, NAP_S))
        return left_s <= NAP_S


def playhead_file(state_dir: Path, camera_id: str) -> Path:
    return state_dir / f"camera-{camera_id}.json"


def forget_playhead(state_dir: Path, camera_id: str) -> None:
    """A clean stop: the recording begins anew next time."""
    playhead_file(state_dir, camera_id).unlink(missing_ok=True)


def _start_ns(source: Source) -> tuple[int, bool]:
    """When frame 0 was due, and whether another process began it."""
    path = playhead_file(source.state_dir, source.camera_id)
    now, boot = time.monotonic_ns(), boot_id()
    try:
        held = json.loads(path.read_text())
        if held["boot_id"] == boot and held["url"] == source.url and 0 < int(held["start_ns"]) <= now:
            return int(held["start_ns"]), True
    except (OSError, ValueError, KeyError, TypeError):
        pass  # none yet, or of no use: this is the beginning
    source.state_dir.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    new.write_text(json.dumps({"boot_id": boot, "url": source.url, "start_ns": now}))
    new.replace(path)
    return now, False
