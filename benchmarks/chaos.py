"""Kills at every named point of edge, camera and host while parts pass: what became of each part.

One campaign a point: real processes, a drawn line, a line controller at the registers. The side that died is started
again at once and killed again at the same point, --kills times; then all points in turn on both sides at once. Each
row is written as soon as it is there; --resume goes on behind the rows that FILE holds. A row with ``failed`` says why
its campaign came to no end; its counts are none.

    python -m benchmarks.chaos --kills 25 --json benchmarks/results/chaos.json
    python -m benchmarks.chaos --kills 25 --only host --json FILE --resume
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any

from benchmarks.common import machine, parser, write
from edge_runtime.draw import draw_dataset
from flawline import main as flawline
from tests.bundles import train_small_bundle
from tests.chaos.campaign import POINTS, Campaign, schedule

SECONDS_A_KILL = 60.0


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--kills", type=int, default=25, help="at each point")
    made.add_argument("--only", default="", help="points whose name begins so")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--resume", action="store_true", help="keep the rows of FILE that came to an end")
    options = made.parse_args()
    before = machine()
    rows = kept(options.json) if options.resume else []
    with tempfile.TemporaryDirectory() as folder:
        for row in campaigns(Path(folder), options.kills, options.only, options.seed, {row["fault"] for row in rows}):
            rows.append(row)
            write(options.json, {"question": (__doc__ or "").splitlines()[0], "rows": rows}, before)
    return int(any("failed" in row or row["unaccounted"] or row["duplicates"] or row["false_ok"] for row in rows))


def kept(path: Path) -> list[dict[str, Any]]:
    """The rows of an earlier run, without those whose campaign failed."""
    return [row for row in json.loads(path.read_text())["rows"] if "failed" not in row] if path.exists() else []


def campaigns(work: Path, kills: int, only: str, seed: int, done: Container[str]) -> Iterator[dict[str, Any]]:
    """One row a point that is not ``done``, and one of all points in turn."""
    data, bundle = work / "data", work / "bundle"
    draw_dataset("synthetic://line?seed=1", data, 100, 20, 24)
    train_small_bundle(bundle, data)
    if flawline(["calibrate", "thresholds", str(bundle), "--data", str(data)]) != 0:
        raise SystemExit("the bundle could not be calibrated")
    faults = {name: [name] * kills for name in POINTS if name.startswith(only)}
    if not only:
        faults["all points in turn, both sides"] = schedule(len(POINTS) * max(1, kills // 5), seed)
    for number, (fault, points) in enumerate(faults.items()):
        if fault in done:
            continue
        folder = work / f"campaign{number}"
        folder.mkdir()
        row = run(fault, folder, bundle, points, seed + number)
        sys.stderr.write(f"{row}\n")
        yield row


def run(fault: str, folder: Path, bundle: Path, points: list[str], seed: int) -> dict[str, Any]:
    """One campaign's row, with the commit that it ran on."""
    start = time.monotonic()
    try:
        campaign = Campaign(folder, bundle, points, seed)
        found = campaign.run(limit_s=SECONDS_A_KILL * len(points))
        row = found.row(fault, sum(campaign.kills.values()))
    except Exception as error:  # noqa: BLE001 - the other points' figures are worth having; the row is no result
        row = {"fault": fault, "failed": f"{type(error).__name__}: {error}"[-4000:]}
    return row | {"seconds": round(time.monotonic() - start, 1), "commit": COMMIT}


def commit() -> str | None:
    """The checked-out commit; ``+`` behind it where files differ from it."""
    done = subprocess.run(
        ["git", "describe", "--always", "--abbrev=12", "--dirty=+", "--exclude=*"],
        cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    return done.stdout.strip() or None


COMMIT = commit()

if __name__ == "__main__":
    sys.exit(main())
