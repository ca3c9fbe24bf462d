"""What a live preview costs the line: parts a second of a saturated station, interleaved in one run.

ratio_watched    with a watcher over without a preview, median of the rounds (range beside it)
ratio_unwatched  with a preview that nobody watches, likewise
station_cpu_ms   processor time of the station's process for a part, the preview's and the watcher's threads in it, each
                 way; on a machine with other work this says more than the ratios
offer_cpu_ms     what one frame that is shown costs its capture process, by size of frame, in processor time
picture_cpu_ms   what drawing and encoding it costs the preview's thread, likewise

    python -m benchmarks.preview --json benchmarks/results/preview.json
"""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import zmq

from benchmarks.common import machine, parser, write
from contract.bundle import Bundle, open_bundle
from contract.event import Result, Verdict
from contract.images import PixelFormat
from edge_runtime.draw import draw_dataset
from edge_runtime.emitter import Emitter
from edge_runtime.engines import open_engine
from edge_runtime.engines.base import Engine
from edge_runtime.glimpse import Glimpse, Seen
from edge_runtime.preview import LastVerdict, Preview, drawn
from edge_runtime.preview_cli import Watcher, Where
from edge_runtime.settings import CameraSettings, EdgeSettings, HostLink, PreviewSettings
from edge_runtime.spool import Spool
from edge_runtime.station import Station
from flawline import main as flawline

FRAMES = 20_000
FRAME_WH = (640, 480)
OFFERED_FPS = 1000.0
"""Far more than the station takes: its own speed decides how many parts are inspected."""

PREVIEW_FPS = 5.0
SIZES = {"640 x 480": (480, 640), "5 megapixels": (2048, 2448)}
Mode = Literal["off", "unwatched", "watched"]
MODES: tuple[Mode, ...] = ("off", "unwatched", "watched")


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--bundle", type=Path, help="a calibrated bundle; none: a small one is made")
    made.add_argument("--rounds", type=int, default=7)
    made.add_argument("--seconds", type=float, default=5.0, help="length of each measurement")
    options = made.parse_args()
    before = machine()
    cv2.setNumThreads(1)  # as in a capture process
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), options.bundle, options.rounds, options.seconds)
    write(options.json, figures, before)


def measure(folder: Path, bundle_folder: Path | None, rounds: int, seconds: float) -> dict[str, Any]:
    """All figures; the three ways take turns, in another order each round."""
    bundle = open_bundle(bundle_folder or make_bundle(folder))
    frames = make_frames(folder)
    engine = open_engine("auto", bundle, 1)
    rates: dict[Mode, list[float]] = {mode: [] for mode in MODES}
    cpu_ms: dict[Mode, list[float]] = {mode: [] for mode in MODES}
    pictures = 0
    for number in range(rounds):
        for mode in MODES[number % 3 :] + MODES[: number % 3]:
            rate, cpu, seen = station_rate(folder, bundle, engine, frames, mode, seconds)
            rates[mode].append(rate)
            cpu_ms[mode].append(cpu)
            pictures += seen
    watched = ratios(rates["watched"], rates["off"])
    unwatched = ratios(rates["unwatched"], rates["off"])
    return {
        "preview_fps": PREVIEW_FPS,
        "rounds": rounds,
        "parts_per_s": {mode: statistics.median(values) for mode, values in rates.items()},
        "station_cpu_ms": {mode: statistics.median(values) for mode, values in cpu_ms.items()},
        "ratio_watched": statistics.median(watched),
        "ratio_watched_range": [min(watched), max(watched)],
        "ratio_unwatched": statistics.median(unwatched),
        "ratio_unwatched_range": [min(unwatched), max(unwatched)],
        "pictures_watched": pictures,
        "offer_cpu_ms": {name: offer_cpu_ms(hw) for name, hw in SIZES.items()},
        "picture_cpu_ms": picture_cpu_ms(),
    }


def ratios(some: list[float], others: list[float]) -> list[float]:
    return [one / other for one, other in zip(some, others, strict=True)]


def make_bundle(folder: Path) -> Path:
    data, out = folder / "data", folder / "bundle"
    draw_dataset("synthetic://line?seed=1", data, 120, 0, 0)
    for words in (
        ("train", "--data", data, "--out", out, "--size", 128, "--steps", 4),
        ("calibrate", "thresholds", out, "--data", data),
    ):
        if code := flawline([str(word) for word in words]):
            raise SystemExit(f"flawline {words} ended with {code}")
    return out


def make_frames(folder: Path) -> Path:
    """One frame under many names: what is read does not matter, only that it costs next to nothing."""
    frames = folder / "frames"
    frames.mkdir()
    noise = np.random.default_rng(1).integers(90, 130, FRAME_WH[::-1], dtype=np.uint8)
    cv2.imwrite(str(frames / "000000.bmp"), cv2.GaussianBlur(noise, (0, 0), 3))
    for index in range(1, FRAMES):
        (frames / f"{index:06d}.bmp").hardlink_to(frames / "000000.bmp")
    return frames


def station_rate(
    folder: Path, bundle: Bundle, engine: Engine, frames: Path, mode: Mode, seconds: float
) -> tuple[float, float, int]:
    """Parts a second that a saturated station ends, its processor milliseconds for one, the watcher's pictures."""
    state = Path(tempfile.mkdtemp(dir=folder))
    settings = EdgeSettings(
        edge_id="bench",
        bundle=bundle.root,
        state_dir=state,
        images="none",
        deadline_ms=60_000,
        host=HostLink(endpoint=f"ipc://{state}/nobody"),
        cameras=[
            CameraSettings(
                id="top", url=f"file://{frames}?fps={OFFERED_FPS:g}", trigger="every-frame", fixture="region",
                region=(0, 0, *FRAME_WH), policy="freshest", max_frame_mb=1,
            )
        ],
    )  # fmt: skip
    preview = (
        None
        if mode == "off"
        else Preview(PreviewSettings(listen=f"ipc://{state}/p", fps=PREVIEW_FPS), "bench", ["top"])
    )
    results: list[tuple[int, int]] = []

    def hear(result: Result) -> None:
        results.append((time.perf_counter_ns(), time.process_time_ns()))
        if preview is not None:
            preview.note(result)

    pictures: list[int] = []
    done = threading.Event()
    with zmq.Context() as context:
        spool = Spool(state / "spool.sqlite")
        emitter = Emitter(spool, settings.host, context)
        glimpses = None if preview is None else preview.glimpses
        station = Station(settings, bundle, engine, spool, emitter, hear, glimpses=glimpses)
        emitter.start()
        helpers = [threading.Thread(target=stop_after, args=(station, results, seconds))]
        if preview is not None:
            preview.start()
        if mode == "watched":
            helpers.append(threading.Thread(target=watch, args=(f"ipc://{state}/p", done, pictures)))
        for helper in helpers:
            helper.start()
        station.run()
        done.set()
        for helper in helpers:
            helper.join()
        if preview is not None:
            preview.stop()
        emitter.stop()
        spool.close()
    timed = results[5:]
    took_ns, cpu_ns = (last - first for first, last in zip(timed[0], timed[-1], strict=True))
    return (len(timed) - 1) / (took_ns / 1e9), cpu_ns / 1e6 / (len(timed) - 1), len(pictures)


def stop_after(station: Station, results: list[tuple[int, int]], seconds: float) -> None:
    """Count the seconds from the fifth result on, since starting processes is not what is measured."""
    while len(results) < 5:
        time.sleep(0.01)
    time.sleep(seconds)
    station.stop_event.set()


def watch(endpoint: str, done: threading.Event, pictures: list[int]) -> None:
    watcher = Watcher(Where(endpoint, None, ["top"]), "top")
    while not done.is_set():
        if (got := watcher.next(0.1)) is not None:
            pictures.append(got[0].number)
    watcher.close()


def offer_cpu_ms(hw: tuple[int, int], times: int = 100) -> float:
    """Median processor milliseconds of making a frame small and writing it."""
    glimpse = Glimpse.create(640)
    glimpse.want(600, 0.0, 640)
    pixels = np.random.default_rng(1).integers(0, 255, hw, dtype=np.uint8)
    took = []
    for number in range(times):
        began = time.thread_time()
        glimpse.offer(pixels, PixelFormat.MONO8, number, 1, part=False)
        took.append(1000 * (time.thread_time() - began))
    glimpse.close()
    return statistics.median(took)


def picture_cpu_ms(times: int = 100) -> float:
    """Median processor milliseconds of drawing and encoding one picture of 640 x 480."""
    pixels = cv2.GaussianBlur(np.random.default_rng(1).integers(0, 255, (480, 640), dtype=np.uint8), (0, 0), 3)
    seen = Seen(1, 1, 1, np.asarray(pixels, np.uint8), PixelFormat.MONO8, (640, 480))
    last = LastVerdict(part_id="p", frame_no=1, verdict=Verdict.PASS, box_px=(10, 10, 50, 50))
    took = []
    for _ in range(times):
        began = time.thread_time()
        cv2.imencode(".jpg", drawn(seen, last), [cv2.IMWRITE_JPEG_QUALITY, PreviewSettings().quality])
        took.append(1000 * (time.thread_time() - began))
    return statistics.median(took)


if __name__ == "__main__":
    main()
