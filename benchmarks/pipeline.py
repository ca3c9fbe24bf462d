"""Camera to wire against the bare engine, in one interleaved run.

ratio_to_engine       parts per second through the whole edge (capture processes, shared memory, preprocessing, gate,
                      engine, decision, spool, wire, a host that acknowledges) over the images per second of the engine
                      alone on one thread, which always has its next image; cameras offer more than it takes
ratio_to_engine_5mp   the same with one camera whose frames have 5 megapixels, each shrunk to the graph's size
added_latency_ms      per stage at a steady rate well under the limit, from the frame's capture to the event on the
                      wire; "added" is all of it but preprocessing and inference
preprocess_ms_5mp     one core's time to bring 5 megapixels to preprocess_size_px
frame_handover_ms_5mp one core's time to put 5 megapixels, grey, into shared memory and to get an own copy out of it
anomalib              its inferencers from a picture in memory to score and map, see benchmarks.inference_peer; where
                      `--anomalib PYTHON` names none, why it did not run
restart_to_ready_s    from starting an edge that was killed until its heartbeat says that it runs

    python -m benchmarks.pipeline --json benchmarks/results/pipeline.json
"""

from __future__ import annotations

import json
import multiprocessing
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import cycle
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import zmq

from benchmarks import inference_peer
from benchmarks.common import machine, parser, write
from benchmarks.replay import SCHEME, register
from contract.bundle import Bundle, open_bundle
from contract.event import MAGIC, Ack, Result, from_frames
from contract.images import PixelFormat, Pixels
from contract.preprocess import prepare
from contract.recipe import Recipe
from edge_runtime.account import percentile
from edge_runtime.draw import draw_dataset
from edge_runtime.emitter import Emitter
from edge_runtime.engines import Together, open_engine
from edge_runtime.engines.base import Engine
from edge_runtime.ring import Record, Ring
from edge_runtime.run import settle
from edge_runtime.settings import CameraSettings, EdgeSettings, HostLink, ShadowSettings
from edge_runtime.shadow import Shadow
from edge_runtime.spool import Spool
from edge_runtime.station import Station
from flawline import main as flawline

OFFERED = 1.05
"""Frames offered per image that the engine alone can take; what it does not get to ends as missed."""

FRAME_WH = (173, 133)
"""The drawn part's usual size in pixels, so that frames pass the gate."""

FRAMES = 50
LARGE_HW = (2048, 2448)
LARGE_FRAMES = 4
PREPROCESS_PX = 256
"""The largest tile that a graph can have."""

CAMERAS = (1, 4)
BATCH_MS = 1000.0
"""No limit here: how long the parts of one inference take is among the figures."""

AGES = "ages.txt"
COMMIT_S = 0.005
"""How long a host gathers what it commits together."""

RESTARTS = 3


class Measured(NamedTuple):
    """A result and its age in milliseconds when it was first put on the wire (nan where it never was)."""

    result: Result
    age_ms: float


class Line(NamedTuple):
    """What the cameras replay."""

    frames: Path
    frame_wh: tuple[int, int]


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--size", type=int, default=128, help="graph size in pixels")
    made.add_argument("--rounds", type=int, default=5)
    made.add_argument("--seconds", type=float, default=4.0, help="length of each measurement")
    made.add_argument("--rate", type=float, default=20.0, help="frames per second for the latencies")
    made.add_argument("--batch", type=int, default=1, help="parts that at most go through one inference")
    made.add_argument("--bundle", type=Path, help="one that is there already, instead of training one")
    made.add_argument("--anomalib", type=Path, metavar="PYTHON", help="a Python that has anomalib, to be measured too")
    options = made.parse_args()
    before = machine()
    register()
    with tempfile.TemporaryDirectory() as folder:
        bundle = make_bundle(Path(folder), options.size) if options.bundle is None else open_bundle(options.bundle)
        figures = measure(Path(folder), bundle, options.batch, options.rounds, options.seconds, options.rate)
        pictures = Path(folder) / "small.npy"
        figures["anomalib"] = inference_peer.compare(
            options.anomalib, bundle, pictures, options.rounds, options.seconds
        )
    write(options.json, figures | {"load_1min_after": os.getloadavg()[0], "nice": os.nice(0)}, before)


def measure(folder: Path, bundle: Bundle, batch: int, rounds: int, seconds: float, rate: float) -> dict[str, Any]:
    """All figures; the bare engine, one part at a time, and the pipeline take turns in every round."""
    small, large = make_lines(folder)
    engine = open_engine("auto", bundle, 1, together=Together(batch, BATCH_MS))
    ways = {str(count): (small, count) for count in CAMERAS} | {"5mp": (large, 1)}
    bare: list[float] = []
    through: dict[str, list[float]] = {name: [] for name in ways}
    ratios: dict[str, list[float]] = {name: [] for name in ways}
    steady: list[Measured] = []
    for _ in range(rounds):
        for name, (line, count) in ways.items():
            before = engine_rate(engine, bundle, small, seconds / 2)
            results = run_station(folder, bundle, engine, line, count, OFFERED * before / count, seconds)
            after = engine_rate(engine, bundle, small, seconds / 2)
            through[name].append(parts_per_second(results))
            ratios[name].append(through[name][-1] / statistics.mean([before, after]))
            bare += [before, after]
        # Without the first ones and the last: a part that is under way at the stop waits until the cameras have ended.
        steady += run_station(folder, bundle, engine, small, 1, rate, seconds)[5:-5]
    large_ratio = ratios.pop("5mp")
    return {
        "graph": {
            "model": bundle.manifest.model.name,
            "size_px": bundle.manifest.recipe.tile_hw[0],
            "engine": engine.describe(),
            "joined": engine.joined,
            "threads": 1,
        },
        "engine_images_per_s": statistics.median(bare),
        "parts_per_s": {name: statistics.median(values) for name, values in through.items()},
        "ratio_to_engine": {name: statistics.median(values) for name, values in ratios.items()},
        "ratio_to_engine_range": {name: [min(values), max(values)] for name, values in ratios.items()},
        "ratio_to_engine_5mp": statistics.median(large_ratio),
        "ratio_to_engine_5mp_range": [min(large_ratio), max(large_ratio)],
        "added_latency_ms": latencies(steady),
        "steady_frames_per_s": rate,
        "steady_parts": len(steady),
        "preprocess_ms_5mp": {"grey": preprocess_ms(1), "colour": preprocess_ms(3)},
        "preprocess_size_px": PREPROCESS_PX,
        "frame_handover_ms_5mp": handover_ms(),
        "restart_to_ready_s": restart_s(folder, bundle),
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


def make_lines(folder: Path) -> tuple[Line, Line]:
    """Frames of one part each: of the part's own size, and blown up to 5 megapixels."""
    data = folder / "parts"
    draw_dataset("synthetic://line?seed=1", data, FRAMES, 0, 0)
    pictures = [cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in sorted((data / "train" / "good").iterdir())]
    lines = []
    for name, size, count in (("small", FRAME_WH, FRAMES), ("large", LARGE_HW[::-1], LARGE_FRAMES)):
        frames = [cv2.resize(np.asarray(picture), size, interpolation=cv2.INTER_LINEAR) for picture in pictures[:count]]
        np.save(folder / f"{name}.npy", np.stack(frames))
        lines.append(Line(folder / f"{name}.npy", (size[0], size[1])))
    return lines[0], lines[1]


def engine_rate(engine: Engine, bundle: Bundle, line: Line, seconds: float) -> float:
    """Images per second of the engine alone, tiles replayed from memory, the next one always in place."""
    tiles = [prepare(picture, bundle.manifest.recipe).tiles for picture in np.load(line.frames)]
    began, done = time.perf_counter(), 0

    def until_over() -> Iterator[Pixels]:
        for each in cycle(tiles):
            if time.perf_counter() - began > seconds:
                return
            yield each

    for _ in engine.infer_many(until_over()):
        done += 1
    return done / (time.perf_counter() - began)


def sink(endpoint: str, ages: str) -> None:
    """A host that acknowledges, in a process of its own: like ours everything that has come, in one reply.

    Notes each result's age when it was first sent.
    """
    with zmq.Context() as context, context.socket(zmq.ROUTER) as socket:
        socket.bind(endpoint)
        file = Path(ages).open("w", buffering=1)  # noqa: SIM115 - this process is killed in the end
        while socket.poll():
            committed: dict[tuple[bytes, str], list[int]] = {}
            while socket.poll(0):
                peer, *frames = socket.recv_multipart()
                header, _, envelope = from_frames(frames)
                committed.setdefault((peer, header.spool_id), []).append(header.seq)
                if isinstance(header, Result) and envelope.attempt == 1:
                    file.write(f"{header.part_id} {envelope.age_ms}\n")
            for (peer, spool_id), seqs in committed.items():
                reply = Ack(spool_id=spool_id, seqs=tuple(seqs)).model_dump_json().encode()
                socket.send_multipart([peer, MAGIC, reply])
            time.sleep(COMMIT_S)


def run_station(
    folder: Path,
    bundle: Bundle,
    engine: Engine,
    line: Line,
    cameras: int,
    fps: float,
    seconds: float,
    candidate: ShadowSettings | None = None,
    counts: Counter[str] | None = None,
    beside: Callable[[EdgeSettings, Spool, Emitter], Shadow] = Shadow,
) -> list[Measured]:
    """Results of a real station for ``seconds``, capture processes and wire included.

    ``counts`` gets what became of the parts that a ``candidate`` in shadow was offered, ``beside`` makes it.
    """
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
        shadow=candidate or ShadowSettings(),
        cameras=[
            CameraSettings(
                id=f"camera-{number}", url=f"{SCHEME}://{line.frames}?fps={fps:g}", trigger="every-frame",
                fixture="region", region=(0, 0, *line.frame_wh), max_frame_mb=6,
            )
            for number in range(cameras)
        ],
    )  # fmt: skip
    results: list[Result] = []
    with zmq.Context() as context:
        spool = Spool(state / "spool.sqlite")
        emitter = Emitter(spool, settings.host, context)
        shadow = None if candidate is None else beside(settings, spool, emitter)
        station = Station(settings, bundle, engine, spool, emitter, results.append, shadow=shadow)
        settle()
        emitter.start()
        if shadow is not None:  # a candidate that is still being opened is not what is measured
            shadow.start()
            shadow.ready.wait(120)
        timer = threading.Thread(target=stop_after, args=(station, results, seconds), daemon=True)
        timer.start()
        station.run()
        if shadow is not None and shadow.trouble is not None:
            raise SystemExit(f"the candidate scored nothing: {shadow.trouble}")
        if shadow is not None and counts is not None:
            counts.update(offered=shadow.offered, scored=shadow.scored, dropped=shadow.dropped, unseen=shadow.unseen)
        emitter.wait_until_empty(10)
        emitter.stop()
        spool.close()
    receiver.kill()
    receiver.join()
    ages = dict(text.split() for text in (state / AGES).read_text().splitlines())
    return [Measured(result, float(ages.get(result.part_id, "nan"))) for result in results]


def stop_after(station: Station, results: list[Result], seconds: float) -> None:
    """Count the seconds from the first result on, since starting processes is not what is measured."""
    while len(results) < 5:
        time.sleep(0.01)
    time.sleep(seconds)
    station.stop_event.set()


def parts_per_second(measured: list[Measured]) -> float:
    """Rate between the fifth result and the last, all of them really inspected."""
    refuse_unscored(measured)
    done = sorted(m.result.timing.t_spooled_ns for m in measured[5:])
    return (len(done) - 1) / ((done[-1] - done[0]) / 1e9)


def refuse_unscored(measured: list[Measured]) -> None:
    unscored = Counter(m.result.reason for m in measured if not m.result.timing.t_inferred_ns)
    if unscored:
        raise SystemExit(f"parts that were not scored: {unscored.most_common(3)}")


def latencies(measured: list[Measured]) -> dict[str, dict[str, float]]:
    """p50 and p99 of each stage in milliseconds; ``added`` leaves preprocessing and inference out."""
    refuse_unscored(measured)
    stages: dict[str, list[float]] = {}
    for result, age_ms in measured:
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


def core_ms(work: Callable[[], object], times: int = 41) -> float:
    """Median of one core's time in milliseconds: of this thread alone, whatever else the machine does."""
    cv2.setNumThreads(1)
    taken = []
    for _ in range(times):
        began = time.thread_time()
        work()
        taken.append(1e3 * (time.thread_time() - began))
    return statistics.median(taken[1:])


def large_picture(channels: int) -> Pixels:
    shape = LARGE_HW if channels == 1 else (*LARGE_HW, channels)
    return np.random.default_rng(0).integers(0, 256, shape, np.uint8)


def preprocess_ms(channels: int) -> float:
    """5 megapixels to the tiles of a graph."""
    picture = large_picture(channels)
    recipe = Recipe(channels=1 if channels == 1 else 3, tile_hw=(PREPROCESS_PX, PREPROCESS_PX))
    return core_ms(lambda: prepare(picture, recipe))


def handover_ms() -> float:
    """A frame from a capture process's memory to the station's: both sides' work, one after the other."""
    picture = large_picture(1)
    ours = Ring.create(4, picture.nbytes)
    theirs = Ring.attach(os.dup(ours.fd))

    def hand_over() -> None:
        slot = theirs.put(picture, PixelFormat.MONO8, 1, 1)
        if slot is None:
            raise SystemExit("no slot is free")
        theirs.announce(Record(0, 1, 1, 1, None, slot, None))
        theirs.unkeep(slot)
        (record,) = ours.drain()
        ours.read(record.slot)
        ours.release(record.slot)

    taken = core_ms(hand_over)
    theirs.close()
    ours.close()
    return taken


def restart_s(folder: Path, bundle: Bundle) -> float:
    """Median seconds from the start of an edge that was killed to a heartbeat that says that it runs."""
    config = folder / "edge.toml"
    config.write_text(
        f'edge_id = "restart"\nbundle = "{bundle.root}"\nstate_dir = "restart"\n'
        f'[host]\nendpoint = "ipc://{folder}/nobody"\n'
        '[[cameras]]\nid = "top"\nurl = "synthetic://line?repeat=20"\n'
    )
    words = [sys.executable, "-m", "flawline", "edge", "run", str(config), "--quiet"]
    taken, run_id = [], ""
    for _ in range(RESTARTS + 1):  # the first one is no restart
        began = time.perf_counter()
        edge = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while (found := running(folder / "restart")) in ("", run_id):
            if edge.poll() is not None:
                raise SystemExit(f"the edge ended with {edge.returncode}")
            time.sleep(0.01)
        taken.append(time.perf_counter() - began)
        run_id = found
        edge.kill()
        edge.wait()
    return statistics.median(taken[1:])


def running(state_dir: Path) -> str:
    """The run that the edge's last heartbeat says is running; empty where it says something else."""
    try:
        state = json.loads((state_dir / "state.json").read_text())
    except (OSError, ValueError):
        return ""
    return str(state["run_id"]) if state["state"] == "running" else ""


if __name__ == "__main__":
    main()
