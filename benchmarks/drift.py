"""How soon the edge's watch over drift notices what changes, and how often it is wrong.

A small network is trained and calibrated on drawn parts. Further parts are drawn, changed as the fault would change
them, and inspected by that bundle; the simulated streams draw from what was measured of them, with a share of
defective parts of the same line throughout.

fault, magnitude         what changes, at once or slowly
delay_parts              parts from the change to the first alarm: mean of --times streams with its 95 % interval, worst
missed                   streams without an alarm within --most parts
test, suspect            which test was first and what the report says to look at, in most streams
false_alarms_per_month   of the streams without a fault, --parts parts in all, the first of --seeds against the bundle's
                         own baseline and limit, the others each against good parts of their own and the limit that
                         those give: alarms over months, and what the rate is at most (exact Poisson, 95 %); one number,
                         beside every fault
cost                     what the watch takes of a part, beside that part's inspection by the same thread, in turns
calibration              how many further good parts were held against the bundle's own baseline

Delays are those of a line that makes a part every 2.6 s (10^6 a month). False alarms are counted at a tenth of that:
each part then is worth ten times as much evidence, so that 10^6 parts are ten months.

    OMP_NUM_THREADS=1 python -m benchmarks.drift --json benchmarks/results/drift.json
"""

from __future__ import annotations

import math
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.common import machine, parser, write
from calibration import conformal
from calibration.calibrate import propose
from calibration.calibrate import write as write_calibration
from calibration.methods import Rates
from contract.baseline import Baseline, read_baseline
from contract.bundle import Bundle, open_bundle
from contract.images import Pixels, read_image
from edge_runtime.draw import draw_dataset, further_parts
from edge_runtime.drift import MOVED, SCORE, TESTS, Crossed, Reference, Watch, suspect
from edge_runtime.engines import open_engine
from edge_runtime.inspector import Inspector

URL = "synthetic://line?seed=1"
GOOD, DEFECTIVE, FAULTY, FURTHER = 160, 48, 80, 900
BATCH = 60  # good parts that each stream of no fault is calibrated on, others than those it draws
DEFECTS, REJECTED = 0.05, 0.05
RATE = 1.0
FAST, SLOW = 1e6, 1e5  # parts a month
WARM = 300
Floats = NDArray[np.float64]


class Fault(NamedTuple):
    """What becomes of a good part's picture at the ``n``-th part since it began; ``steps``: magnitudes to prepare."""

    name: str
    magnitude: str
    change: Callable[[Pixels, float], Pixels]
    steps: tuple[float, ...]
    parts_a_step: float = math.inf


def dimmed(picture: Pixels, share: float) -> Pixels:
    return np.asarray(np.clip(picture.astype(np.float32) * (1 - share), 0, 255), np.uint8)


def blurred(picture: Pixels, sigma: float) -> Pixels:
    return np.asarray(cv2.GaussianBlur(picture, (0, 0), sigma), np.uint8)


def shifted(picture: Pixels, pixels: float) -> Pixels:
    move = np.array([[1.0, 0.0, pixels], [0.0, 1.0, pixels / 2]])
    size = (picture.shape[1], picture.shape[0])
    return np.asarray(cv2.warpAffine(picture, move, size, borderMode=cv2.BORDER_REPLICATE), np.uint8)


def grainy(picture: Pixels, strength: float) -> Pixels:
    """Another surface: a grain of some pixels, brighter where the old one was dull."""
    random = np.random.default_rng(int(picture.sum()) % 2**32)
    grain = cv2.GaussianBlur(random.normal(0, 1, picture.shape[:2]).astype(np.float32), (0, 0), 1.2)
    return np.asarray(np.clip(picture + 20 * strength * grain + 10 * strength, 0, 255), np.uint8)


FAULTS = (
    Fault("lamp dimmer", "2 %", dimmed, (0.02,)),
    Fault("lamp dimmer", "5 %", dimmed, (0.05,)),
    Fault("lamp dimmer", "10 %", dimmed, (0.10,)),
    Fault("lamp ages", "1 % in 500 parts", dimmed, tuple(n / 100 for n in range(16)), 500.0),
    Fault("lamp ages", "1 % in 5 000 parts", dimmed, tuple(n / 100 for n in range(16)), 5000.0),
    Fault("defocus", "sigma 0.6 px", blurred, (0.6,)),
    Fault("defocus", "sigma 1 px", blurred, (1.0,)),
    Fault("defocus", "sigma 2 px", blurred, (2.0,)),
    Fault("shifted fixture", "2 px", shifted, (2.0,)),
    Fault("shifted fixture", "5 px", shifted, (5.0,)),
    Fault("shifted fixture", "10 px", shifted, (10.0,)),
    Fault("new material", "slight grain", grainy, (0.3,)),
    Fault("new material", "grain", grainy, (0.6,)),
    Fault("new material", "coarse grain", grainy, (1.2,)),
)
EPIDEMICS = (0.1, 0.2, 0.3, 0.5)


def main() -> None:
    cli = parser(__doc__)
    cli.add_argument("--parts", type=int, default=1_000_000, help="without a fault, in all")
    cli.add_argument("--seeds", type=int, default=5)
    cli.add_argument("--times", type=int, default=40, help="streams of each fault")
    cli.add_argument("--most", type=int, default=20_000, help="parts after which a fault counts as missed")
    cli.add_argument("--faulty", type=int, default=FAULTY, help="parts inspected of each magnitude")
    asked = cli.parse_args()
    before = machine()
    with tempfile.TemporaryDirectory() as folder:
        bundle, data = trained(Path(folder))
        bench = Bench(bundle, data)
    calm = without_fault(bench, asked.parts, asked.seeds)
    rows = []
    for made in (
        *(lambda fault=fault: row(fault, bench, asked, calm["per_month"]) for fault in FAULTS),
        *(lambda share=share: epidemic(share, bench, asked, calm["per_month"]) for share in EPIDEMICS),
    ):
        rows.append(made())
        sys.stderr.write(f"{rows[-1]['fault']}, {rows[-1]['magnitude']}: {rows[-1]['delay_parts']} parts\n")
    result = {
        "asked": {"false_alarms_per_month": RATE, "defect_share": DEFECTS, "parts_per_month": FAST},
        "without_a_fault": calm,
        "cost": cost(bench),
        "calibration": {"scores": bench.reference.parts, "rejects_at_most": bench.reference.rejects_at_most},
        "rows": rows,
    }
    write(asked.json, result, before)


def trained(folder: Path) -> tuple[Bundle, Path]:
    """A small network on drawn parts, calibrated."""
    from training.build import train
    from training.settings import TrainSettings

    data = folder / "data"
    draw_dataset(URL, data, GOOD, 1, DEFECTIVE)
    small: dict[str, Any] = {"model": "ganomaly", "size": 64, "steps": 250, "width": 8, "latent": 32, "batch": 16}
    out = train(
        TrainSettings(
            data=data, out=folder / "bundle", learning_rate=1e-3, device="cpu", threads=1, fp16=False, **small
        )
    )
    write_calibration(propose(out, data, Rates(REJECTED)))
    return open_bundle(out), data


class Bench:
    """What was measured of good, defective and changed parts by the bundle, and the baseline that they are held to."""

    def __init__(self, bundle: Bundle, data: Path) -> None:
        self._inspector = Inspector(bundle, open_engine("auto", bundle, 1))
        baseline, thresholds = read_baseline(bundle), bundle.manifest.thresholds
        if baseline is None or thresholds is None:
            raise SystemExit("the bundle was calibrated without a baseline")
        self.baseline, self.limit = baseline, thresholds.reject
        self.reference = self.held_to(baseline, self.limit)
        self.pictures = list(islice(further_parts(URL), FURTHER))
        self.good = self.measured(self.pictures)
        defects = [
            read_image(file, 1) for file in sorted((data / "test").glob("*/*.png")) if file.parent.name != "good"
        ]
        self.defective = self.measured(defects)
        self.defects = defects

    def held_to(self, baseline: Baseline, limit: float) -> Reference:
        cameras = dict.fromkeys(baseline.measures, "top")
        return Reference(baseline, cameras, limit, DEFECTS, "benchmark")

    def measured(self, pictures: list[Pixels]) -> Floats:
        """Every measure and the score of each, [N, columns]; NaN where the gate let it not be scored."""
        names = [column.name for column in self.reference.columns]
        rows = []
        for picture in pictures:
            outcome = self._inspector.inspect(picture)
            found = outcome.quality | ({} if outcome.score is None else {"score": outcome.score})
            rows.append([found.get(name, math.nan) for name in names])
        return np.array(rows)

    def calibrated(self, good: Floats) -> tuple[Reference, float]:
        """Held against other good parts, with the limit that they give: a calibration of its own."""
        names = [column.name for column in self.reference.columns]
        values = {name: sorted(good[:, at].tolist()) for at, name in enumerate(names)}
        measures = {
            view: {name: values[f"{view}.{name}"] for name in of} for view, of in self.baseline.measures.items()
        }
        score = values["score"]
        limit = conformal.threshold(score, [str(n) for n in range(len(score))], REJECTED)
        return self.held_to(Baseline(engine=self.baseline.engine, score=score, measures=measures), limit), limit


def stream(random: np.random.Generator, good: Floats, defective: Floats, share: float) -> Iterator[list[float]]:
    """Good parts by chance, and defective ones."""
    while True:
        bad = random.random(1000) < share
        parts = good[random.integers(0, len(good), 1000)]
        parts[bad] = defective[random.integers(0, len(defective), int(bad.sum()))]
        yield from parts.tolist()


def see(watch: Watch, limit: float, part: list[float], months: float) -> list[Crossed]:
    flagged = None if math.isnan(part[-1]) else part[-1] > limit
    return watch.see("part", part, flagged, months)


def without_fault(bench: Bench, parts: int, seeds: int) -> dict[str, Any]:
    """Alarms of streams in which nothing changes, against calibrations by good parts that they do not draw."""
    alarms: Counter[str] = Counter()
    by_stream = []
    for seed in range(seeds):
        random = np.random.default_rng(1000 + seed)
        order = random.permutation(len(bench.good))
        reference, limit = bench.calibrated(bench.good[order[:BATCH]]) if seed else (bench.reference, bench.limit)
        watch = Watch(reference, len(TESTS) / RATE)
        drawn = stream(random, bench.good[order[BATCH:]], bench.defective, DEFECTS)
        before = alarms.total()
        for part in islice(drawn, parts // seeds):
            alarms.update(each.test for each in see(watch, limit, part, 1 / SLOW))
        by_stream.append(alarms.total() - before)
    months, found = parts / SLOW, alarms.total()
    return {
        "parts": parts,
        "months": months,
        "seeds": seeds,
        "good_parts_each": BATCH,
        "alarms": found,
        "alarms_by_stream": by_stream,
        "of": dict(alarms),
        "per_month": found / months,
        "at_most": _poisson_limit(found) / months,
    }


def cost(bench: Bench, rounds: int = 21, parts: int = 20) -> dict[str, Any]:
    """Microseconds a part, medians over rounds in which both take turns."""
    watch = Watch(bench.reference, len(TESTS) / RATE)
    rows = bench.good[:parts].tolist()
    pictures = bench.pictures[:parts]
    seen, inspected = [], []
    for _ in range(rounds):
        begun = time.perf_counter()
        for row in rows:
            see(watch, bench.limit, row, 1 / FAST)
        between = time.perf_counter()
        bench.measured(pictures)
        seen.append((between - begun) / parts)
        inspected.append((time.perf_counter() - between) / parts)
    watch_s, part_s = statistics.median(seen), statistics.median(inspected)
    return {
        "measures": len(bench.reference.columns),
        "watch_us": round(1e6 * watch_s, 1),
        "inspection_us": round(1e6 * part_s, 1),
        "ratio": round(watch_s / part_s, 4),
    }


def _poisson_limit(found: int) -> float:
    """The mean at which so few would be found in one case of twenty."""
    low, high = 0.0, 10.0 * (found + 10)
    while high - low > 1e-9:
        middle = (low + high) / 2
        seen = math.fsum(math.exp(n * math.log(middle) - middle - math.lgamma(n + 1)) for n in range(found + 1))
        low, high = (middle, high) if seen > 0.05 else (low, middle)
    return high


def row(fault: Fault, bench: Bench, asked: Any, false_alarms: float) -> dict[str, Any]:
    """Streams that begin well and then have the fault."""
    pools = []
    for step in fault.steps:
        good = [fault.change(picture, step) for picture in bench.pictures[: asked.faulty]]
        pools.append((bench.measured(good), bench.measured([fault.change(each, step) for each in bench.defects])))

    def parts(random: np.random.Generator) -> Iterator[list[float]]:
        streams = [stream(random, good, defective, DEFECTS) for good, defective in pools]
        n = 0
        while True:
            yield next(streams[min(len(streams) - 1, int(n / fault.parts_a_step))])
            n += 1

    return {"fault": fault.name, "magnitude": fault.magnitude, **delays(bench, asked, parts)} | {
        "false_alarms_per_month": false_alarms
    }


def epidemic(share: float, bench: Bench, asked: Any, false_alarms: float) -> dict[str, Any]:
    """A share of defects beyond the stated one; and whether it is still an alarm as often after 10 000 parts of it."""

    def parts(random: np.random.Generator) -> Iterator[list[float]]:
        return stream(random, bench.good, bench.defective, share)

    found = delays(bench, asked, parts)
    watch = Watch(bench.reference, len(TESTS) / RATE)
    often = []
    for _ in range(2):
        drawn = islice(parts(np.random.default_rng(77)), 5000)
        often.append(sum(len(see(watch, bench.limit, part, 1 / FAST)) for part in drawn))
    named = {"fault": "defect epidemic", "magnitude": f"{100 * share:.0f} % defective"}
    score = next(each for each in watch.measures() if each.name == SCORE)
    told = {f"{100 * each.share:.0f} %": round(each.shift, 2) for each in score.quantiles}
    return {
        **named,
        **found,
        "false_alarms_per_month": false_alarms,
        "alarms_in_5000_parts_and_in_the_next": often,
        "scores_quantiles_moved_by_spreads": told,
    }


def delays(bench: Bench, asked: Any, faulty: Callable[[np.random.Generator], Iterator[list[float]]]) -> dict[str, Any]:
    found: list[int] = []
    tests: Counter[str] = Counter()
    suspects: Counter[str] = Counter()
    moved: Counter[str] = Counter()
    early = 0
    for n in range(asked.times):
        random = np.random.default_rng(5000 + n)
        watch = Watch(bench.reference, len(TESTS) / RATE)
        calm = stream(random, bench.good, bench.defective, DEFECTS)
        early += sum(bool(see(watch, bench.limit, part, 1 / FAST)) for part in islice(calm, WARM))
        watch.reported()
        for delay, part in enumerate(islice(faulty(random), asked.most), start=1):
            if crossed := see(watch, bench.limit, part, 1 / FAST):
                found.append(delay)
                measures = watch.measures()
                tests[crossed[0].test] += 1
                suspects[str(suspect(measures, watch.tests()))] += 1
                moved.update(each.name for each in measures if abs(each.shift) >= MOVED)
                break
    mean = float(np.mean(found)) if found else None
    half = 1.96 * float(np.std(found, ddof=1)) / math.sqrt(len(found)) if len(found) > 1 else None
    return {
        "delay_parts": None if mean is None else round(mean, 1),
        "delay_interval": None if mean is None or half is None else [round(mean - half, 1), round(mean + half, 1)],
        "delay_worst": max(found, default=None),
        "streams": asked.times,
        "missed": asked.times - len(found),
        "alarms_before": early,
        "test": tests.most_common(1)[0][0] if tests else None,
        "suspect": suspects.most_common(1)[0][0] if suspects else None,
        "suspects": dict(suspects),
        "moved": dict(moved),
    }


if __name__ == "__main__":
    main()
