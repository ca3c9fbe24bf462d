"""Whether a stated a90/95 is true: from 2 000 parts of the drawn line, against what 1 000s more of each size show.

a90_95      what `flawline calibrate capability` states from --parts parts with implants of known size
truth       the size at which 90 % are detected: --truth-parts more parts at each of GRID sizes around it, their rates
            made monotone (isotonic regression) and interpolated
off         a90_95 / truth - 1; the bound should lie above the truth in 95 of 100 cases, and near it

The model is trained first, on good parts of the drawn line (--minutes), or given with --bundle and --data.

    OMP_WAIT_POLICY=PASSIVE python -m benchmarks.capability --json benchmarks/results/capability.json
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.isotonic import IsotonicRegression

from benchmarks.common import machine, parser, write
from calibration.capability import DETECTED, Implants, measure
from calibration.evaluate import open_inspector
from calibration.implant import KINDS, implant
from calibration.progress import steps
from contract.bundle import open_bundle
from contract.event import Verdict
from contract.images import Pixels, read_image
from edge_runtime.draw import draw_dataset
from edge_runtime.inspector import Inspector

SIZES = (2.0, 48.0)
CONTRAST = 40.0
GRID = 13
AROUND = 1.8
LINE = "synthetic://line?seed=404"


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--minutes", type=float, default=4.0, help="training time")
    made.add_argument("--parts", type=int, default=2000, help="parts with an implant that the statement rests on")
    made.add_argument("--truth-parts", type=int, default=1500, help="parts at each size that the truth rests on")
    made.add_argument("--bundle", type=Path, help="a calibrated bundle instead of a new one")
    made.add_argument("--data", type=Path, help="its images")
    options = made.parse_args()
    before = machine()
    with tempfile.TemporaryDirectory() as folder:
        if options.bundle is None:
            data, bundle = Path(folder) / "data", Path(folder) / "bundle"
            trained(data, bundle, options.minutes)
        else:
            data, bundle = options.data, options.bundle
        rows = [row(bundle, data, kind, options.parts, options.truth_parts) for kind in KINDS]
    write(
        options.json,
        {
            "question": (__doc__ or "").splitlines()[0],
            "line": LINE,
            "minutes": options.minutes,
            "contrast": CONTRAST,
            "rows": rows,
        },
        before,
    )


def trained(data: Path, bundle: Path, minutes: float) -> None:
    draw_dataset(LINE, data, good=400, test_good=300, defective=0)
    flawline = [sys.executable, "-m", "flawline"]
    words = ["train", "--data", str(data), "--out", str(bundle), "--minutes", str(minutes), "--size", "64"]
    subprocess.run([*flawline, *words, "--seed", "1"], check=True)
    subprocess.run([*flawline, "calibrate", "thresholds", str(bundle), "--data", str(data)], check=True)


def row(bundle: Path, data: Path, kind: str, parts: int, truth_parts: int) -> dict[str, Any]:
    """One kind of implant: the statement, the truth, and how far it is off."""
    found = measure(bundle, data, implants=Implants((kind,), parts, CONTRAST, SIZES))
    detection = found.implanted[0]
    stated = None if detection.pod is None else detection.pod.a90_95
    result: dict[str, Any] = {
        "kind": kind,
        "parts": parts,
        "detected": detection.detected.text(),
        "a90": None if detection.pod is None else detection.pod.a90,
        "a90_95": stated,
        "truth": None,
        "off": None,
        "rates": [],
    }
    if stated is None:
        return result
    sizes = np.geomspace(stated / AROUND, min(stated * AROUND, SIZES[1]), GRID)
    rates = true_rates(open_inspector(open_bundle(bundle), "auto", "fp32"), data, kind, sizes, truth_parts)
    truth = where_90(sizes, rates)
    result |= {"rates": [[round(float(s), 3), round(r, 4)] for s, r in zip(sizes, rates, strict=True)], "truth": truth}
    return result if truth is None else {**result, "off": stated / truth - 1}


def true_rates(inspector: Inspector, data: Path, kind: str, sizes: np.ndarray, parts: int) -> list[float]:
    """Detected share of ``parts`` other parts at each size; good pictures that do not pass are left out as before."""
    goods = [read_image(path, 1) for path in sorted((data / "test" / "good").iterdir())]
    goods = [good for good in goods if inspector.inspect(good).verdict is Verdict.PASS]
    random = np.random.default_rng(20_261_122)
    return [
        detected(inspector, goods, kind, float(size), parts, random) for size in steps(list(sizes), f"truth: {kind}")
    ]


def detected(
    inspector: Inspector, goods: list[Pixels], kind: str, size: float, parts: int, random: np.random.Generator
) -> float:
    region = Implants((kind,)).region
    hits = 0
    for index in range(parts):
        made = implant(goods[index % len(goods)], kind, size, CONTRAST, random, region)
        hits += inspector.inspect(made.picture).verdict in DETECTED
    return hits / parts


def where_90(sizes: np.ndarray, rates: list[float]) -> float | None:
    """The size at which the rate, made monotone, comes to 0.9; None where it does not within ``sizes``."""
    smooth = IsotonicRegression(increasing=True).fit_transform(np.log(sizes), rates)
    if smooth[0] >= 0.9 or smooth[-1] < 0.9:
        return None
    at = int(np.argmax(smooth >= 0.9))
    share = (0.9 - smooth[at - 1]) / (smooth[at] - smooth[at - 1])
    return float(np.exp(np.log(sizes[at - 1]) + share * np.log(sizes[at] / sizes[at - 1])))


if __name__ == "__main__":
    main()
