"""Kills at every named point of edge, camera and host while parts pass: what became of each part.

One campaign a point: real processes, a drawn line, a line controller at the registers. The side that died is started
again at once and killed again at the same point, --kills times; then all points in turn on both sides at once.

    python -m benchmarks.chaos --kills 25 --json benchmarks/results/chaos.json
    python -m benchmarks.chaos --kills 25 --only host --json FILE
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import Any

from benchmarks.common import machine, parser, write
from edge_runtime.draw import draw_dataset
from flawline import main as flawline
from tests.bundles import train_small_bundle
from tests.chaos.campaign import POINTS, Campaign, Count, schedule

SECONDS_A_KILL = 60.0


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--kills", type=int, default=25, help="at each point")
    made.add_argument("--only", default="", help="points whose name begins so")
    made.add_argument("--seed", type=int, default=1)
    options = made.parse_args()
    before = machine()
    with tempfile.TemporaryDirectory() as folder:
        rows = list(campaigns(Path(folder), options.kills, options.only, options.seed))
    write(options.json, {"question": (__doc__ or "").splitlines()[0], "rows": rows}, before)
    return int(any(row["unaccounted"] or row["duplicates"] or row["false_ok"] for row in rows))


def campaigns(work: Path, kills: int, only: str, seed: int) -> Any:
    """One row a point, and one of all points in turn."""
    data, bundle = work / "data", work / "bundle"
    draw_dataset("synthetic://line?seed=1", data, 100, 20, 24)
    train_small_bundle(bundle, data)
    if flawline(["calibrate", "thresholds", str(bundle), "--data", str(data)]) != 0:
        raise SystemExit("the bundle could not be calibrated")
    faults = {name: [name] * kills for name in POINTS if name.startswith(only)}
    if not only:
        faults["all points in turn, both sides"] = schedule(len(POINTS) * max(1, kills // 5), seed)
    for number, (fault, points) in enumerate(faults.items()):
        folder = work / f"campaign{number}"
        folder.mkdir()
        found = run(folder, bundle, points, seed + number)
        row = found.row(fault, sum(found.kills.values()))
        sys.stderr.write(f"{row}\n")
        yield row


def run(folder: Path, bundle: Path, points: list[str], seed: int) -> Count:
    """One campaign; a failure is nothing to go on after."""
    return Campaign(folder, bundle, points, seed).run(limit_s=SECONDS_A_KILL * len(points))


if __name__ == "__main__":
    sys.exit(main())
