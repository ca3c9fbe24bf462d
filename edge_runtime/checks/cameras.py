"""Opens each configured camera for a moment, in a process that can be killed, and says what it gives (before hop 1)."""

from __future__ import annotations

import ctypes
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from contract.errors import FlawlineError
from edge_runtime.checks.base import Finding, Status, Subject, edge_runs, settings_or_none

if TYPE_CHECKING:
    from edge_runtime.settings import CameraSettings, EdgeSettings

OPEN_S = 20.0
"""From the start of the process to its last word."""

LOOK_S = 1.0  # frames are counted for so long
ENOUGH = 50  # or until there are so many
AT_ONCE = 4
CONSUMING = ("watch",)  # a picture that is read there counts as taken
_CODE = "from edge_runtime.checks.cameras import child_main; child_main()"


def check_cameras(subject: Subject) -> Iterator[Finding]:
    """Each camera: well-formed, opened, its first frame and its rate."""
    settings = settings_or_none(subject)
    if settings is None:
        return
    sound = []
    for camera in settings.cameras:
        fault = _malformed(camera, settings)
        if fault is not None:
            yield Finding(f"camera {camera.id}", Status.FAIL, fault, "correct `url` in the configuration")
        else:
            sound.append(camera)
    why_not = _left_alone(subject, settings)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        yield from pool.map(lambda camera: _look(camera, why_not), sound)


def _malformed(camera: CameraSettings, settings: EdgeSettings) -> str | None:
    from edge_runtime.cameras import make_camera

    try:
        make_camera(camera.url, camera.id, settings.state_dir)
    except FlawlineError as error:
        return str(error)
    return None


def _left_alone(subject: Subject, settings: EdgeSettings) -> str | None:
    if not subject.open_cameras:
        return "it was not opened, as asked"
    return "it was not opened: the edge runs and holds it" if edge_runs(settings) else None


def _look(camera: CameraSettings, why_not: str | None) -> Finding:
    from edge_runtime.cameras.base import redacted

    name, url = f"camera {camera.id}", redacted(camera.url)
    if camera.url.partition(":")[0] in CONSUMING:
        why_not = "it was not opened: what is read from a watched folder counts as taken"
    if why_not is not None:
        return Finding(name, Status.OK, f"{url} is well-formed; {why_not}")
    seen = ask_child(camera)
    if "error" in seen:
        way_out = "check cable, power and address, and that no other program holds it; docs/cameras.md"
        fault = str(seen["error"]).removeprefix(f"camera {camera.id}: ")
        return Finding(name, Status.FAIL, fault if url in fault else f"{url}: {fault}", way_out)
    if not seen.get("frames"):
        if camera.trigger == "hardware":
            return Finding(name, Status.OK, f"{url}: opened; it waits for its trigger")
        return Finding(name, Status.FAIL, f"{url}: opened, but gave no frame in {LOOK_S:g} s", "docs/cameras.md")
    found = (
        f"{url}: {seen['width']} x {seen['height']} {seen['format']}, {seen['fps']:.1f} frames a second, the first "
        f"after {seen['first_s']:.1f} s"
    )
    megabytes = seen["bytes"] / 1e6
    if megabytes > camera.max_frame_mb:
        way_out = f"max_frame_mb = {megabytes:.0f} for this camera, or a smaller format"
        return Finding(name, Status.FAIL, f"{found}; a frame has {megabytes:.1f} MB", way_out)
    if camera.fps is not None and seen["fps"] < camera.fps / 2:
        way_out = "give it more light or a shorter exposure, a better link, or correct `fps`"
        return Finding(name, Status.WARN, f"{found}; `fps` asks for {camera.fps:g}", way_out)
    return Finding(name, Status.OK, found)


def ask_child(camera: CameraSettings, limit_s: float = OPEN_S) -> dict[str, Any]:
    """What a process of its own saw of the camera: ``error``, or frames, width, height, format, fps, first_s, bytes.

    Its own because a driver may hang for ever in opening or reading; it is killed then.
    """
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, sys.path)),
        "OPENCV_FFMPEG_LOGLEVEL": "-8",  # it logs whole addresses, passwords too
        "OPENCV_LOG_LEVEL": "SILENT",
    }
    with tempfile.TemporaryDirectory(prefix="flawline-doctor-") as folder:
        order = json.dumps({"settings": camera.model_dump(mode="json"), "state_dir": folder})
        child = subprocess.Popen(
            [sys.executable, "-c", _CODE],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment, text=True,
        )  # fmt: skip
        try:
            said, _ = child.communicate(order, timeout=limit_s)
        except subprocess.TimeoutExpired:
            child.kill()
            child.communicate()
            return {"error": f"it did not open and give a frame within {limit_s:g} s; its process was killed"}
    try:
        found: dict[str, Any] = json.loads(said.splitlines()[-1])
    except (ValueError, IndexError):
        return {"error": f"its process ended with code {child.returncode} and said nothing"}
    return found


def child_main() -> None:
    """The process that opens one camera: an order on standard input, what it saw as a line of JSON; never returns."""
    from edge_runtime.capture import PR_SET_PDEATHSIG
    from edge_runtime.settings import CameraSettings

    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
    order = json.loads(sys.stdin.read())
    try:
        seen = _see(CameraSettings.model_validate(order["settings"]), Path(order["state_dir"]))
    except FlawlineError as error:
        seen = {"error": str(error)}
    except Exception as error:  # noqa: BLE001 - the last words of this process
        seen = {"error": f"{type(error).__name__}: {error}"}
    sys.stdout.write(json.dumps(seen) + "\n")
    sys.stdout.flush()
    os._exit(0)  # a thread may hang in a camera's read


def _see(settings: CameraSettings, state_dir: Path) -> dict[str, Any]:
    from edge_runtime.cameras import make_camera
    from edge_runtime.cameras.base import BadFrame

    camera = make_camera(settings.url, settings.id, state_dir, settings.stall_s, 1 << 30)
    camera.triggered = settings.trigger == "hardware"
    begun = time.monotonic()
    camera.open()
    times: list[int] = []
    first: dict[str, Any] = {}
    deadline = time.monotonic() + max(LOOK_S, settings.stall_s)
    while time.monotonic() < deadline and len(times) < ENOUGH and camera.ended is None:
        frame = camera.read()
        if frame is None:
            continue
        if isinstance(frame, BadFrame):
            first.setdefault("error", frame.reason)
            continue
        if not times:
            deadline = time.monotonic() + LOOK_S
            height, width = frame.pixels.shape[:2]
            first = {"width": width, "height": height, "format": frame.pixel_format.value, "bytes": frame.pixels.nbytes}
            first["first_s"] = time.monotonic() - begun
        times.append(frame.t_capture_ns)
    span_s = (times[-1] - times[0]) / 1e9 if len(times) > 1 else 0.0
    return first | {"frames": len(times), "fps": (len(times) - 1) / span_s if span_s else 0.0}
