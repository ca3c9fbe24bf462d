"""How often a stated a90/95 lies above the true a90, by the shape of the true curve and the choice of sizes.

Nothing is inspected: hits are drawn by chance from a known curve, --trials times over.

sizes       `staged`: chosen as `flawline calibrate capability --implant` does; `even`: evenly by chance over ln size
coverage    share of trials whose a90/95 lies above the true a90, with its 95 % Wilson interval: 95 % is promised
excess      a90/95 over the true a90, less 1: the median of the trials, and what nine in ten stay below; null: unstated
near        share of trials whose a90/95 lies within 15 % of the true a90
unstated    share of trials that state no a90/95 (they count as covered: nothing false is said)

    OMP_NUM_THREADS=1 python -m benchmarks.bounds --json benchmarks/results/bounds.json
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from benchmarks.common import machine, parser, write
from calibration.pod import fit
from calibration.stages import staged
from contract.stats import rate, rate_fields

LIMITS = (2.0, 48.0)
NEAR = 0.15
DESIGNS = (("staged", 2000), ("even", 80), ("staged", 200), ("even", 2000))
Floats = NDArray[np.float64]


def logistic(middle: float, slope: float) -> Callable[[Floats], Floats]:
    return lambda x: 1 / (1 + np.exp(-slope * (x - math.log(middle))))


def probit(x: Floats) -> Floats:
    return np.vectorize(lambda each: 0.5 + 0.5 * math.erf(each / math.sqrt(2)))(1.2816 + 2.2 * (x - math.log(10)))


def late(x: Floats) -> Floats:
    """The link of Aranda-Ordaz (Biometrika 68, 1981) at 4: it comes to 1 far more slowly than a logit."""
    return 1 - (1 + 4 * np.exp(math.log((0.1**-4 - 1) / 4) + 4 * (x - math.log(10)))) ** -0.25


def mixed(share: float, easy: float, hard: float) -> Callable[[Floats], Floats]:
    """In ``share`` of places a defect is easy to see, in the others it has to be larger."""
    return lambda x: share * logistic(easy, 5)(x) + (1 - share) * logistic(hard, 5)(x)


def broken(sizes: tuple[float, ...], rates: tuple[float, ...]) -> Callable[[Floats], Floats]:
    return lambda x: np.interp(x, np.log(sizes), rates)


CURVES: dict[str, Callable[[Floats], Floats]] = {
    "logit, slope 4": logistic(5.8, 4),
    "logit, shallow (slope 1.7)": logistic(4.4, 1.7),
    "logit, steep (slope 15)": logistic(8.6, 15),
    "probit": probit,
    "Aranda-Ordaz, 4": late,
    "70 % of places easy": mixed(0.7, 3, 7),
    "85 % of places easy": mixed(0.85, 3, 12),
    "at most 97 %": lambda x: 0.97 * logistic(6, 4)(x),
    "kink at 88 %, flatter above": broken((2, 7, 48), (0.1, 0.88, 0.99)),
    "kink at 86 %, steeper above": broken((2, 5, 12, 15, 48), (0.3, 0.8, 0.86, 0.97, 0.995)),
}


class Task(NamedTuple):
    """One row."""

    curve: str
    sizes: str
    defects: int
    trials: int


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--trials", type=int, default=300)
    made.add_argument("--processes", type=int, default=2)
    made.add_argument("--designs", type=int, default=len(DESIGNS), help="only the first so many of DESIGNS")
    options = made.parse_args()
    before = machine()
    tasks = [Task(curve, *design, options.trials) for design in DESIGNS[: options.designs] for curve in CURVES]
    with ProcessPoolExecutor(options.processes, mp_context=get_context("spawn")) as pool:
        rows = list(pool.map(row, tasks))
    write(options.json, {"question": (__doc__ or "").splitlines()[0], "limits": LIMITS, "rows": rows}, before)


def row(task: Task) -> dict[str, Any]:
    truth = true_a90(CURVES[task.curve])
    stated = np.array([one(task, number) for number in range(task.trials)])
    excess = np.sort(stated / truth - 1)
    middle, ninth = excess[task.trials // 2], excess[9 * task.trials // 10]
    return {
        "curve": task.curve,
        "sizes": task.sizes,
        "defects": task.defects,
        "trials": task.trials,
        "true_a90": truth,
        **rate_fields("coverage", rate(int((stated >= truth).sum()), task.trials)),
        "excess_median": float(middle) if math.isfinite(middle) else None,
        "excess_90": float(ninth) if math.isfinite(ninth) else None,
        "near": float((np.abs(excess) <= NEAR).mean()),
        "unstated": float(np.isinf(stated).mean()),
    }


def one(task: Task, number: int) -> float:
    """What one experiment states; infinite where nothing."""
    random = np.random.default_rng([number, task.defects])
    x = np.linspace(math.log(LIMITS[0]), math.log(LIMITS[1]), 4001)
    rates = CURVES[task.curve](x)
    sizes: list[float] = []
    hits: list[bool] = []

    def detect(size: float) -> bool:
        sizes.append(size)
        hits.append(bool(random.random() < np.interp(math.log(size), x, rates)))
        return hits[-1]

    if task.sizes == "staged":
        staged(task.defects, LIMITS, random, detect)
    else:
        for log_size in random.uniform(x[0], x[-1], task.defects):
            detect(math.exp(log_size))
    return fit(sizes, hits).a90_95 or math.inf


def true_a90(curve: Callable[[Floats], Floats]) -> float:
    x = np.linspace(math.log(LIMITS[0]), math.log(LIMITS[1]), 400_001)
    return math.exp(x[int(np.argmax(curve(x) >= 0.9))])


if __name__ == "__main__":
    main()
