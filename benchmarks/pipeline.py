"""Camera to wire against the bare engine, in one interleaved run.

ratio_to_engine   parts per second through the whole edge (capture processes, shared memory, preprocessing, gate,
                  engine, decision, spool, wire) over the images per second of the engine alone on one thread;
                  the largest offered rate at which no more than one part in fifty is missed
added_latency_ms  per stage at a steady rate well under the limit, from the frame's capture to the event on the wire;
                  "added" is all of it but preprocessing and inference

    python -m benchmarks.pipeline --json benchmarks/results/pipeline.json
"""

from __future__ import annotations

import multiprocessing
import statistics
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import zmq

from benchmarks.common import machine, parser, write
from contract.bundle import Bundle, open_bundle
from contract.event import MAGIC, Ack, Result, from_frames
from contract.preprocess import prepare
from edge_runtime.account import percentile
from edge_runtime.draw import draw_dataset
from edge_runtime.emitter import Emitter
from edge_runtime.engines import open_engine
from edge_runtime.engines.base import Engine
from edge_runtime.settings import CameraSettings, EdgeSettings, HostLink
from edge_runtime.spool import Spool
from edge_runtime.station import Station
from flawline import main as flawline

FRAMES = 6000
OFFERED = (0.95, 0.9, 0.85, 0.8, 0.75, 0.7, 0.6, 0.5, 0.4, 0.3)
"""Frames offered per image that the engine alone can take, tried from above."""
MOST_MISSED = 0.02
FRAME_WH = (173, 133)
"""The drawn part's usual size in pixels, so that frames are as quick to read as they can be and still pass the gate."""
CAMERAS = (1, 4)
AGES = "ages.txt"


class Measured(NamedTuple):
    """A result and its age in milliseconds when it was first put on the wire (nan where it never was)."""

    result: Result
    age_ms: float


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--size", type=int, default=128, help="graph size in pixels")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--seconds", type=float, default=4.0, help="length of each measurement")
    made.add_argument("--rate", type=float, default=20.0, help="frames per second for the latencies")
    options = made.parse_args()
    before = machine()
    with tempfile.TemporaryDirectory() as folder:
        figures = measure(Path(folder), options.size, options.rounds, options.seconds, options.rate)
    write(options.json, figures, before)


def measure(folder: Path, size: int, rounds: int, seconds: float, rate: float) -> dict[str, Any]:
    """All figures; the bare engine and the pipeline take turns in every round."""
    bundle = make_bundle(folder, size)
    frames = make_frames(folder)
    engine = open_engine("auto", bundle, 1)
    bare: list[float] = []
    through: dict[int, list[float]] = {count: [] for count in CAMERAS}
    ratios: dict[int, list[float]] = {count: [] for count in CAMERAS}
    for _ in range(rounds):
        for count in CAMERAS:
            bare.append(engine_rate(engine, bundle, frames, seconds / 2))
            results = sustained(folder, bundle, engine, frames, count, bare[-1], seconds)
            after = engine_rate(engine, bundle, frames, seconds / 2)
            through[count].append(parts_per_second(results))
            ratios[count].append(through[count][-1] / statistics.mean([bare[-1], after]))
            bare.append(after)
    steady = run_station(folder, bundle, engine, frames, 1, rate, max(10.0, 2 * seconds))
    return {
        "graph": {"model": "ganomaly", "size_px": size, "engine": engine.describe(), "threads": 1},
        "engine_images_per_s": statistics.median(bare),
        "parts_per_s": {str(count): statistics.median(values) for count, values in through.items()},
        "ratio_to_engine": {str(count): statistics.median(values) for count, values in ratios.items()},
        "ratio_to_engine_range": {str(count): [min(values), max(values)] for count, values in ratios.items()},
        "added_latency_ms": latencies(steady),
        "steady_frames_per_s": rate,
        "steady_parts": len(steady),
    }


def make_bundle(folder: Path, size: int) -> Bundle:
    """A calibrated bundle of real size; a few steps of training are enough, speed does not depend on the weights."""
    data, out = folder / "data", folder / "bundle"
    draw_dataset("synthetic://line?seed=1", data, 120, 0, 0)
    run("train", "--data", data, "--out", out, "--size", size, "--steps", 4)
    run("calibrate", "thresholds", out, "--data", data)
    return open_bundle(out)


def run(*words: object) -> None:
    if code := flawline([str(word) for word in words]):
        raise SystemExit(f"flawline {words} ended with {code}")


def make_frames(folder: Path) -> Path:
    """A folder of small frames of one part each, under many names, so that reading one costs next to nothing."""
    frames = folder / "frames"
    frames.mkdir()
    sources = sorted((folder / "data" / "train" / "good").iterdir())[:50]
    for index in range(FRAMES):
        target = frames / f"{index:06d}.bmp"
        if index < len(sources):
            grey = cv2.imread(str(sources[index]), cv2.IMREAD_GRAYSCALE)
            cv2.imwrite(str(target), cv2.resize(grey, FRAME_WH, interpolation=cv2.INTER_AREA))
        else:
            target.hardlink_to(frames / f"{index % len(sources):06d}.bmp")
    return frames


def engine_rate(engine: Engine, bundle: Bundle, frames: Path, seconds: float) -> float:
    """Images per second of the engine alone, tiles replayed from memory."""
    pictures = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted(frames.iterdir())[:50]]
    tiles = [prepare(np.asarray(picture, np.uint8), bundle.manifest.recipe).tiles for picture in pictures]
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        engine.infer(tiles[done % len(tiles)])
        done += 1
    return done / (time.perf_counter() - began)


def sink(endpoint: str, ages: str) -> None:
    """A host that acknowledges at once, in a process of its own; notes each result's age when it was first sent."""
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.bind(endpoint)
        file = Path(ages).open("w", buffering=1)  # noqa: SIM115 - this process is killed in the end
        while True:
            peer, *frames = socket.recv_multipart()
            header, _, envelope = from_frames(frames)
            if isinstance(header, Result) and envelope.attempt == 1:
                file.write(f"{header.part_id} {envelope.age_ms}\n")
            reply = Ack(spool_id=header.spool_id, seqs=(header.seq,)).model_dump_json().encode()
            socket.send_multipart([peer, MAGIC, reply])


def sustained(
    folder: Path, bundle: Bundle, engine: Engine, frames: Path, cameras: int, bare: float, seconds: float
) -> list[Measured]:
    """Results at the largest offered rate that is kept up with; at the smallest one where none is."""
    for share in OFFERED:
        fps = share * bare / cameras
        results = run_station(folder, bundle, engine, frames, cameras, fps, seconds)
        if len(results) >= (1 - MOST_MISSED) * triggers(results):
            break
    return results


def triggers(measured: list[Measured]) -> int:
    """Parts that were announced between the first result and the last, inspected or missed."""
    ids: dict[str, list[int]] = {}
    for m in measured:
        ids.setdefault(m.result.camera_id, []).append(m.result.trigger_id)
    return sum(max(numbers) - min(numbers) + 1 for numbers in ids.values())


def run_station(
    folder: Path, bundle: Bundle, engine: Engine, frames: Path, cameras: int, fps: float, seconds: float
) -> list[Measured]:
    """Results of a real station for ``seconds``, capture processes and wire included."""
    state = Path(tempfile.mkdtemp(dir=folder))
    endpoint = f"ipc://{state}/sink"
    receiver = multiprocessing.get_context("spawn").Process(
        target=sink, args=(endpoint, str(state / AGES)), daemon=True
    )
    receiver.start()
    while not (state / AGES).exists():  # a host that is still starting is not what is measured
        time.sleep(0.01)
    settings = EdgeSettings(
        edge_id="bench",
        bundle=bundle.root,
        state_dir=state,
        images="none",
        deadline_ms=60_000,
        host=HostLink(endpoint=endpoint),
        cameras=[
            CameraSettings(
                id=f"camera-{number}", url=f"file://{frames}?fps={fps:g}", trigger="every-frame",
                fixture="region", region=(0, 0, *FRAME_WH), policy="freshest", max_frame_mb=1,
            )
            for number in range(cameras)
        ],
    )  # fmt: skip
    results: list[Result] = []
    with zmq.Context() as context:
        spool = Spool(state / "spool.sqlite")
        emitter = Emitter(spool, settings.host, context)
        station = Station(settings, bundle, engine, spool, emitter, results.append)
        emitter.start()
        timer = threading.Thread(target=stop_after, args=(station, results, seconds), daemon=True)
        timer.start()
        station.run()
        emitter.wait_until_empty(10)
        emitter.stop()
        spool.close()
    receiver.kill()
    receiver.join()
    ages = dict(line.split() for line in (state / AGES).read_text().splitlines())
    return [Measured(result, float(ages.get(result.part_id, "nan"))) for result in results]


def stop_after(station: Station, results: list[Result], seconds: float) -> None:
    """Count the seconds from the first result on, since starting processes is not what is measured."""
    while len(results) < 5:
        time.sleep(0.01)
    time.sleep(seconds)
    station.stop_event.set()


def parts_per_second(measured: list[Measured]) -> float:
    """Rate between the fifth result and the last that was really inspected."""
    done = sorted(m.result.timing.t_spooled_ns for m in measured[5:] if m.result.timing.t_inferred_ns)
    return (len(done) - 1) / ((done[-1] - done[0]) / 1e9)


def latencies(measured: list[Measured]) -> dict[str, dict[str, float]]:
    """p50 and p99 of each stage in milliseconds; ``added`` leaves preprocessing and inference out."""
    stages: dict[str, list[float]] = {}
    unscored = Counter(m.result.reason for m in measured if not m.result.timing.t_inferred_ns)
    if unscored:
        raise SystemExit(f"parts that were not scored: {unscored.most_common(3)}")
    for result, age_ms in measured[5:]:
        t = result.timing
        scored_ns = t.t_inferred_ns - t.t_taken_ns
        marks = {
            "trigger": t.t_trigger_ns - t.t_capture_ns,
            "queue": t.t_taken_ns - t.t_trigger_ns,
            "preprocess": t.t_prepared_ns - t.t_taken_ns,
            "inference": t.t_inferred_ns - t.t_prepared_ns,
            "decision": t.t_decided_ns - t.t_inferred_ns,
            "record": t.t_spooled_ns - t.t_decided_ns,
            "send": age_ms * 1e6 - (t.t_spooled_ns - t.t_capture_ns),
            "added": age_ms * 1e6 - scored_ns,
            "total": age_ms * 1e6,
        }
        for name, value in marks.items():
            stages.setdefault(name, []).append(value / 1e6)
    return {name: {"p50": percentile(values, 50), "p99": percentile(values, 99)} for name, values in stages.items()}


if __name__ == "__main__":
    main()
