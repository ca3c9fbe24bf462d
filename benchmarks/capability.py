"""Whether a stated a90/95 is true: from 2 000 parts of the drawn line, against what thousands more around it show.

what        `line`: the renderer's own defects, drawn on the part to size, under the line's belt, turn, light and noise;
            the size is measured on the drawn mask, and as on the line a part rejected for another reason counts.
            `implant`: spots and scratches of known size drawn into pictures of good parts that pass without them, as
            `flawline calibrate capability --implant` does
a90_95      what is stated from --parts parts, their sizes chosen in stages (calibration/stages.py)
truth       the size at which 90 % are detected: --truth-parts (of the line) or --truth-implants further parts at each
            of GRID sizes around a90_95, and a straight line of log-odds through their rates, which over so short a
            range is straight enough; `truth_low` and `truth_high` are its 95 % interval, from rates drawn again
off         a90_95 / truth - 1; the bound should lie above the truth in 95 of 100 cases, and near it

The model is trained first, on good parts of the drawn line (--steps), or given with --bundle and --data.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.capability --json benchmarks/results/capability.json
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression

from benchmarks.common import machine, parser, write
from calibration.capability import Implants, Trial, detection, is_detected
from calibration.evaluate import open_inspector
from calibration.implant import KINDS, implant
from calibration.stages import staged
from contract.bundle import open_bundle
from contract.errors import ConfigError
from contract.event import Verdict
from contract.images import Pixels, extent_px, read_image
from edge_runtime.draw import SizedParts, draw_dataset
from edge_runtime.inspector import Inspector

SIZES = (2.0, 48.0)
OF_LINE = ("scratch", "dent")
CONTRAST = 40.0
GRID = 7
BELOW, ABOVE = 1.35, 1.15  # of a90/95: where the truth is looked for
AGAIN = 500
PARTS = 20_000  # of the line, for a statement and again for its truth
LINE = "synthetic://line?seed=404"
Inspected = tuple[float, Verdict]
"""Measured size and verdict of one part."""


class Task(NamedTuple):
    """One row: what is drawn, of which kind, and how many parts."""

    what: str
    kind: str
    parts: int
    truth_parts: int
    bundle: Path
    data: Path


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--steps", type=int, default=1200, help="of training")
    made.add_argument("--parts", type=int, default=2000, help="parts with a defect that a statement rests on")
    made.add_argument("--truth-parts", type=int, default=500, help="parts of the line at each size for the truth")
    made.add_argument("--truth-implants", type=int, default=1000, help="implants at each size for the truth")
    made.add_argument("--bundle", type=Path, help="a calibrated bundle instead of a new one")
    made.add_argument("--data", type=Path, help="its images")
    made.add_argument("--processes", type=int, default=4, help="rows at a time")
    options = made.parse_args()
    before = machine()
    with tempfile.TemporaryDirectory() as folder:
        data, bundle = options.data, options.bundle
        if bundle is None:
            data, bundle = Path(folder) / "data", Path(folder) / "bundle"
            trained(data, bundle, options.steps)
        tasks = [Task("line", kind, options.parts, options.truth_parts, bundle, data) for kind in OF_LINE]
        tasks += [Task("implant", kind, options.parts, options.truth_implants, bundle, data) for kind in KINDS]
        with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
            rows = list(pool.map(row, tasks))
        steps = open_bundle(bundle).manifest.metrics.get("steps")
    write(
        options.json,
        {
            "question": (__doc__ or "").splitlines()[0],
            "line": LINE,
            "training_steps": steps,
            "sizes_px": SIZES,
            "implants_contrast": CONTRAST,
            "rows": rows,
        },
        before,
    )


def trained(data: Path, bundle: Path, steps: int) -> None:
    draw_dataset(LINE, data, good=400, test_good=300, defective=0)
    flawline = [sys.executable, "-m", "flawline"]
    words = ["train", "--data", str(data), "--out", str(bundle), "--steps", str(steps), "--size", "64"]
    subprocess.run([*flawline, *words, "--seed", "1"], check=True)
    subprocess.run([*flawline, "calibrate", "thresholds", str(bundle), "--data", str(data)], check=True)


def row(task: Task) -> dict[str, Any]:
    """The statement, the truth, and how far it is off."""
    inspector = open_inspector(open_bundle(task.bundle), "auto", "fp32")
    source = of_line if task.what == "line" else implanted
    draw = source(inspector, task, 1)
    trials: list[Trial] = []

    def detect(size: float) -> bool | None:
        trials.append(Trial(*draw(size)))
        return is_detected(trials[-1].verdict)

    staged(task.parts, SIZES, np.random.default_rng([1, *task.kind.encode()]), detect)
    found = detection(task.kind, trials)
    pod = found.pod
    stated = None if pod is None else pod.a90_95
    result: dict[str, Any] = {
        "what": task.what,
        "kind": task.kind,
        "parts": task.parts,
        "inspected": found.detected.total,
        "detected": found.detected.text(),
        "a90": None if pod is None else pod.a90,
        "a90_95": stated,
        "why_not": found.why,
        "truth": None,
        "off": None,
    }
    if stated is None:
        return result
    return {**result, **truth_of(source(inspector, task, 2), stated, task.truth_parts)}


def of_line(inspector: Inspector, task: Task, seed: int) -> Callable[[float], Inspected]:
    """Parts of the line, each another one, with a defect drawn to the size asked for."""
    parts = SizedParts(LINE, 2 * PARTS)
    numbers = iter(range((seed - 1) * PARTS, seed * PARTS))

    def draw(size: float) -> Inspected:
        while True:
            try:
                drawn = parts.draw(next(numbers), task.kind, size)
            except ConfigError:  # no place for it on this part
                continue
            if drawn is not None:
                return extent_px(drawn.mask > 0), inspector.inspect(drawn.pixels).verdict

    return draw


def implanted(inspector: Inspector, task: Task, seed: int) -> Callable[[float], Inspected]:
    """Good pictures that pass as they are, with an implant of the size asked for."""
    pictures = [read_image(path, 1) for path in sorted((task.data / "test" / "good").iterdir())]
    goods: list[Pixels] = [each for each in pictures if inspector.inspect(each).verdict is Verdict.PASS]
    random = np.random.default_rng([20_261_122, seed])

    def draw(size: float) -> Inspected:
        good = goods[int(random.integers(len(goods)))]
        made = implant(good, task.kind, size, CONTRAST, random, Implants((task.kind,)).region)
        return size, inspector.inspect(made.picture).verdict

    return draw


def truth_of(draw: Callable[[float], Inspected], stated: float, parts: int) -> dict[str, Any]:
    sizes, hits, counts = [], [], []
    for asked in np.geomspace(stated / BELOW, min(stated * ABOVE, SIZES[1]), GRID):
        seen = [draw(float(asked)) for _ in range(parts)]
        known = [hit for _, verdict in seen if (hit := is_detected(verdict)) is not None]
        sizes.append(float(np.mean([size for size, _ in seen])))
        hits.append(sum(known))
        counts.append(len(known))
    truth = where_90(sizes, hits, counts)
    rates = np.array(hits) / np.array(counts)
    again = np.random.default_rng(7).binomial(counts, rates, (AGAIN, GRID)).tolist()
    spread = [found for each in again if (found := where_90(sizes, each, counts)) is not None]
    low, high = np.percentile(spread, [2.5, 97.5]).tolist() if truth is not None else (None, None)
    return {
        "truth": truth,
        "truth_low": low,
        "truth_high": high,
        "off": None if truth is None else stated / truth - 1,
        "truth_parts": sum(counts),
        "rates": [[round(size, 3), round(share, 4)] for size, share in zip(sizes, rates.tolist(), strict=True)],
    }


def where_90(sizes: list[float], hits: list[int], counts: list[int]) -> float | None:
    """The size at which the line of log-odds comes to 90 %; None where it does not within ``sizes``."""
    x = np.log(sizes)[:, np.newaxis]
    weights = np.concatenate([hits, np.array(counts) - np.array(hits)])
    line = LogisticRegression(C=1e6, tol=1e-8).fit(np.vstack([x, x]) - x.mean(), np.repeat([1, 0], GRID), weights)
    slope, level = float(line.coef_[0, 0]), float(line.intercept_[0])
    truth = float(np.exp(x.mean() + (np.log(9) - level) / slope)) if slope > 0 else float("nan")
    return truth if min(sizes) <= truth <= max(sizes) else None


if __name__ == "__main__":
    main()
