"""An archive of synthetic parts scored again, in processes of this machine and on a local Ray cluster.

    python -m benchmarks.replay_archive --json benchmarks/results/replay.json

First the whole archive without Ray and on Ray while one of its workers is killed: nothing skipped, nothing double, and
the same result. Then parts a second with 1 and 2 workers, by turns, on a share of the archive; without the time that
processes take to start. Needs the extras train, calibrate and ray.
"""

from __future__ import annotations

import json
import os
import signal
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.common import machine, parser, write
from benchmarks.pipeline import run
from calibration.archive import Place
from calibration.exports import Source
from calibration.replay import Run, replay, rows_of, whole
from calibration.replay_ray import on_ray
from calibration.rescoring import Row, Scoring
from calibration.rescoring_pool import Chunk
from contract.images import Pixels
from edge_runtime.draw import draw_dataset
from tests.calibration.ray_workers import scoring_pids

TOLERANCE = 1e-6
"""Most that a score may differ, relative; verdicts may not differ at all."""

DRAWN = 100
WORKERS = (1, 2)
SIZE = 64
WARM = 3
"""Chunks at the beginning whose time does not count: processes start meanwhile."""


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--parts", type=int, default=50_000)
    made.add_argument("--rate-parts", type=int, default=6_000, help="parts of each measurement of speed")
    made.add_argument("--rounds", type=int, default=3)
    options = made.parse_args()
    before = machine()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        current, candidate = make_bundles(folder)
        archive, few = folder / "archive", folder / "few"
        draw_archive(folder / "data", archive, options.parts)
        draw_archive(folder / "data", few, options.rate_parts)
        figures = {"parts": options.parts} | prove(folder, scoring_of(current, candidate, archive), options.parts)
        figures["parts_per_s"] = measure(folder, scoring_of(current, candidate, few), options.rounds)
    figures |= {"load_1min_after": os.getloadavg()[0], "nice": os.nice(0)}
    write(options.json, figures, before)


def make_bundles(folder: Path) -> tuple[Path, Path]:
    """A current bundle and a candidate of another seed, both of few steps and calibrated."""
    data = folder / "data"
    draw_dataset("synthetic://line?seed=1", data, DRAWN, 20, 20)
    made = []
    for seed in (1, 2):
        out = folder / f"bundle-{seed}"
        run("train", "--data", data, "--out", out, "--size", SIZE, "--steps", 30, "--seed", seed)
        run("calibrate", "thresholds", out, "--data", data)
        made.append(out)
    return made[0], made[1]


def draw_archive(data: Path, archive: Path, parts: int) -> None:
    """Parts of the synthetic line, each with noise of its own, some of them defective; flat, a thousand a folder."""
    pictures = [_read(path) for path in sorted((data / "test").rglob("*.png"))]
    noise = np.random.default_rng(1)
    for number in range(parts):
        folder = archive / f"{number // 1000:03d}"
        folder.mkdir(parents=True, exist_ok=True)
        picture = pictures[number % len(pictures)]
        noisy = picture + noise.normal(0, 2, picture.shape).astype(np.float32)
        cv2.imwrite(str(folder / f"part-{number:06d}.png"), np.clip(noisy, 0, 255).astype(np.uint8))


def _read(path: Path) -> Pixels:
    return np.asarray(cv2.imread(str(path), cv2.IMREAD_GRAYSCALE), np.uint8)


def scoring_of(current: Path, candidate: Path, archive: Path) -> Scoring:
    return Scoring(candidate, current, Place(Source(str(archive)), of_cameras=False))


def prove(folder: Path, scoring: Scoring, parts: int) -> dict[str, Any]:
    """The whole archive both ways; a worker of the cluster is killed when half of it is done."""
    replay(scoring, folder / "whole", WORKERS[-1])
    killed: list[int] = []
    came: Counter[int] = Counter()

    def killing(asked: Scoring, workers: int, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, list[Row]]]:
        done = 0
        for chunk, rows in on_ray("local")(asked, workers, chunks):
            done += len(rows)
            if done >= parts // 2 and not killed:
                killed.append(scoring_pids()[0])
                os.kill(killed[0], signal.SIGKILL)
            came[chunk.number] += 1
            yield chunk, rows

    found = replay(scoring, folder / "ray", WORKERS[-1], run=killing)
    keys: Counter[str] = Counter()
    verdicts = worst = 0
    for ours, rays in zip(rows_of(folder / "whole" / "work"), rows_of(folder / "ray" / "work"), strict=True):
        keys[rays.item.key] += 1
        for one, other in ((ours.current, rays.current), (ours.candidate, rays.candidate)):
            verdicts += (one.verdict, one.reason) != (other.verdict, other.reason)
            worst = max(worst, _apart(one.score, other.score))
    expected = {line["key"] for line in map(json.loads, (folder / "whole" / "parts.jsonl").open())}
    figures = {
        "listed": found.listed,
        "workers_killed": len(killed),
        "skipped": len(expected - set(keys)) + parts - len(expected),
        "double": sum(count - 1 for count in keys.values()),
        "chunks_that_came_twice": sum(count > 1 for count in came.values()),
        "other_verdicts_than_without_ray": verdicts,
        "largest_relative_difference_of_scores": worst,
        "tolerance": TOLERANCE,
        "changed": found.changed.text(),
    }
    if figures["skipped"] or figures["double"] or verdicts or worst > TOLERANCE or not killed:
        raise SystemExit(f"the archive is not accounted for: {figures}")
    return figures


def _apart(one: float | None, other: float | None) -> float:
    if one is None or other is None:
        return 0.0 if one is other else float("inf")
    return abs(one - other) / max(abs(one), 1e-12)


def measure(folder: Path, scoring: Scoring, rounds: int) -> dict[str, Any]:
    """Medians by way and number of workers, all of them in every round."""
    ways: dict[str, Run] = {"processes": whole, "ray": on_ray("local")}
    rates: dict[str, list[float]] = {}
    for turn in range(rounds):
        for name, way in ways.items():
            for workers in WORKERS:
                out = folder / f"rate-{turn}-{name}-{workers}"
                rates.setdefault(f"{name}_{workers}", []).append(rate(scoring, out, workers, way))
    return {
        "cores": len(os.sched_getaffinity(0)),
        "median": {name: statistics.median(values) for name, values in rates.items()},
        "range": {name: [min(values), max(values)] for name, values in rates.items()},
    }


def rate(scoring: Scoring, out: Path, workers: int, way: Run) -> float:
    """Parts a second once every process has begun."""
    marks: list[tuple[float, int]] = []
    replay(scoring, out, workers, way, lambda done, of: marks.append((time.perf_counter(), done)))
    (begun, first), (ended, last) = marks[WARM * workers], marks[-1]
    return (last - first) / (ended - begun)


if __name__ == "__main__":
    main()
