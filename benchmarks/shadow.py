"""What a candidate in shadow costs the line beside it, at the most that the machine takes.

in_turns         within one run the candidate is switched on and off; each pair of turns, one with and one without it in
                 either order, compares the parts per second: lost_percent is the mean share lost, with its 95 %
                 Student interval over all pairs. While it is off it is offered no part, and its process waits
ratio_to_engine  of runs with a candidate and without one, in turns; the bare engine is measured before and after each
added_latency_ms of the same at a steady rate well under the limit

The candidate is the line's own bundle, and so costs as much. Each turn begins with a part for it at once, since it has
rested while it was off: what is found is rather too much than too little.

    python -m benchmarks.shadow --json benchmarks/results/shadow.json
"""

from __future__ import annotations

import math
import os
import random
import statistics
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from benchmarks.common import machine, parser, write
from benchmarks.pipeline import (
    OFFERED,
    Line,
    Measured,
    engine_rate,
    latencies,
    make_bundle,
    make_lines,
    parts_per_second,
    refuse_unscored,
    run_station,
)
from benchmarks.replay import register
from contract.bundle import Bundle, open_bundle
from contract.event import Result
from contract.stats import student_quantile
from edge_runtime.cutting import CutPart
from edge_runtime.emitter import Emitter
from edge_runtime.engines import open_engine
from edge_runtime.engines.base import Engine
from edge_runtime.settings import EdgeSettings, ShadowSettings
from edge_runtime.shadow import Shadow
from edge_runtime.spool import Spool

WARM_UP_NS = 1_000_000_000
SETTLE_NS = 100_000_000
"""After it was switched off the candidate may still have a part in hand."""


class Turn(NamedTuple):
    """When parts were judged while the candidate was ``on``, or off."""

    on: bool
    at_ns: list[int]

    @property
    def parts_per_s(self) -> float:
        if len(self.at_ns) < 2:
            raise SystemExit("no parts were judged in a turn: give longer ones, --turn SECONDS")
        return (len(self.at_ns) - 1) / ((self.at_ns[-1] - self.at_ns[0]) / 1e9)


class Switched(Shadow):
    """A candidate that takes turns with nothing, one after the other from a second after the first part on."""

    def __init__(
        self, settings: EdgeSettings, spool: Spool, emitter: Emitter, order: Sequence[bool], turn_s: float
    ) -> None:
        super().__init__(settings, spool, emitter)
        self.turns = [Turn(on, []) for on in order]
        self._turn_ns = round(turn_s * 1e9)
        self._begin_ns: int | None = None

    def offer(self, result: Result, seq: int, cut: CutPart | None) -> None:
        now = time.monotonic_ns()
        if self._begin_ns is None:
            self._begin_ns = now + WARM_UP_NS
        number, into_ns = divmod(now - self._begin_ns, self._turn_ns)
        turn = self.turns[number] if 0 <= number < len(self.turns) else None
        if turn is not None and (turn.on or into_ns >= SETTLE_NS):
            turn.at_ns.append(now)
        if turn is None or not turn.on:
            cut = None  # counted, with how busy the line is, and not seen
            if self._waiting:
                with self._lock:
                    self.dropped += len(self._waiting)
                    self._waiting.clear()
        super().offer(result, seq, cut)


def main() -> None:
    made = parser(__doc__)
    made.add_argument("--size", type=int, default=128, help="graph size in pixels")
    made.add_argument("--runs", type=int, default=5, help="runs in which the candidate is switched on and off")
    made.add_argument("--pairs", type=int, default=10, help="of turns, in each of them")
    made.add_argument("--turn", type=float, default=2.0, help="seconds of a turn")
    made.add_argument("--rounds", type=int, default=5, help="of runs with it and without; 0: none")
    made.add_argument("--seconds", type=float, default=4.0, help="length of each of those")
    made.add_argument("--rate", type=float, default=20.0, help="frames per second for the latencies")
    made.add_argument("--bundle", type=Path, help="one that is there already, instead of training one")
    made.add_argument("--share", type=float, default=ShadowSettings().share, help="of a core, for the candidate")
    options = made.parse_args()
    before = machine()
    register()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        bundle = make_bundle(folder, options.size) if options.bundle is None else open_bundle(options.bundle)
        line, _ = make_lines(folder)
        engine = open_engine("auto", bundle, 1)
        candidate = ShadowSettings(bundle=bundle.root, share=options.share)
        figures: dict[str, Any] = {
            "graph": {"model": bundle.manifest.model.name, "size_px": bundle.manifest.recipe.tile_hw[0]},
            "share": options.share,
            "in_turns": in_turns(folder, bundle, engine, line, candidate, options.runs, options.pairs, options.turn),
        }
        if options.rounds:
            figures |= with_and_without(
                folder, bundle, engine, line, candidate, options.rounds, options.seconds, options.rate
            )
    write(options.json, figures | {"load_1min_after": os.getloadavg()[0], "nice": os.nice(0)}, before)


def in_turns(
    folder: Path,
    bundle: Bundle,
    engine: Engine,
    line: Line,
    candidate: ShadowSettings,
    runs: int,
    pairs: int,
    turn_s: float,
) -> dict[str, Any]:
    """The share of its parts that a full line loses while the candidate is on."""
    counts: Counter[str] = Counter()
    by_run: list[list[float]] = []
    rates: dict[bool, list[float]] = {False: [], True: []}
    for seed in range(runs):
        made: list[Switched] = []

        def beside(
            settings: EdgeSettings, spool: Spool, emitter: Emitter, made: list[Switched] = made, seed: int = seed
        ) -> Shadow:
            made.append(Switched(settings, spool, emitter, order_of(pairs, seed), turn_s))
            return made[-1]

        fps = OFFERED * engine_rate(engine, bundle, line, 2.0)
        seconds = WARM_UP_NS / 1e9 + (2 * pairs + 0.5) * turn_s
        refuse_unscored(run_station(folder, bundle, engine, line, 1, fps, seconds, candidate, counts, beside))
        by_run.append(lost(made[0].turns))
        for turn in made[0].turns:
            rates[turn.on].append(turn.parts_per_s)
    found = [100 * share for run in by_run for share in run]
    return {
        "turn_s": turn_s,
        "runs": runs,
        "pairs": len(found),
        "lost_percent": statistics.mean(found),
        "lost_percent_plus_minus": half_width(found),
        "lost_percent_by_run": [100 * statistics.mean(run) for run in by_run],
        "lost_percent_by_pair": found,
        "parts_per_s": {"off": statistics.median(rates[False]), "on": statistics.median(rates[True])},
        "candidate": {
            "offered": counts["offered"] - counts["unseen"],
            "scored": counts["scored"],
            "scored_per_s": counts["scored"] / (len(found) * turn_s),
        },
    }


def order_of(pairs: int, seed: int) -> list[bool]:
    """On or off for each turn: half of the pairs begin with either, in random order."""
    first_on = [number % 2 == 0 for number in range(pairs)]
    random.Random(seed).shuffle(first_on)
    return [on for first in first_on for on in (first, not first)]


def lost(turns: Sequence[Turn]) -> list[float]:
    """The share of parts per second that is missing while the candidate is on, of each pair of turns."""
    shares = []
    for pair in zip(turns[::2], turns[1::2], strict=True):
        rates = {turn.on: turn.parts_per_s for turn in pair}
        shares.append(1 - rates[True] / rates[False])
    return shares


def half_width(values: Sequence[float]) -> float | None:
    """Of the mean's 95 % Student interval; None of a single value."""
    if len(values) < 2:
        return None
    return student_quantile(0.975, len(values) - 1) * statistics.stdev(values) / math.sqrt(len(values))


def with_and_without(
    folder: Path,
    bundle: Bundle,
    engine: Engine,
    line: Line,
    candidate: ShadowSettings,
    rounds: int,
    seconds: float,
    rate: float,
) -> dict[str, Any]:
    """The ratio to the bare engine of whole runs, what the candidate got to, and latencies at ``rate``."""
    beside = {"without": None, "with": candidate}
    ratios: dict[str, list[float]] = {name: [] for name in beside}
    steady: dict[str, list[Measured]] = {name: [] for name in beside}
    counts: Counter[str] = Counter()
    at_rate: Counter[str] = Counter()
    for turn in range(rounds):
        order = list(beside.items())
        for name, shadow in order if turn % 2 == 0 else order[::-1]:
            before = engine_rate(engine, bundle, line, seconds / 2)
            results = run_station(folder, bundle, engine, line, 1, OFFERED * before, seconds, shadow, counts)
            after = engine_rate(engine, bundle, line, seconds / 2)
            ratios[name].append(parts_per_second(results) / statistics.mean([before, after]))
            steady[name] += run_station(folder, bundle, engine, line, 1, rate, seconds, shadow, at_rate)[5:-5]
    return {
        "ratio_to_engine": {name: statistics.median(values) for name, values in ratios.items()},
        "ratio_to_engine_range": {name: [min(values), max(values)] for name, values in ratios.items()},
        "ratio_lost_by_round": [a - b for a, b in zip(ratios["without"], ratios["with"], strict=True)],
        "candidate_at_most": dict(counts),
        f"candidate_at_{rate:g}_per_s": dict(at_rate),
        "added_latency_ms": {name: latencies(measured)["added"] for name, measured in steady.items()},
    }


if __name__ == "__main__":
    main()
