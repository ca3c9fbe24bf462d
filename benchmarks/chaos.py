"""Kills at every named point of edge, camera and host, and other faults, while parts pass: what became of each part.

One campaign a point: real processes, a drawn line, a line controller at the registers. The side that died is started
again at once and killed again at the same point, --kills times; then all points in turn on both sides at once; then
the other faults of tests/chaos/faults.py, --times times each on one line, some of them as root only. Each row is
written as soon as it is there, with the commit that it ran on; --resume keeps the rows that FILE holds of this very
code, and does all others. A row with ``failed`` says why its campaign came to no end; its counts are none. Of a row
that is not zero the logs and all that was counted are kept, and the table for docs/chaos.md is printed at the end.

    python -m benchmarks.chaos --kills 25 --json benchmarks/results/chaos.json
    python -m benchmarks.chaos --only "host: power cut" --json FILE --resume
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Container, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.common import machine, parser, write
from edge_runtime.draw import draw_dataset
from flawline import main as flawline
from tests.bundles import train_small_bundle
from tests.chaos.campaign import POINTS, Campaign, schedule
from tests.chaos.faults import FAULTS, absent, forbidden, strike

SECONDS_A_KILL = 60.0
LONGER = {"host away": 35.0}
"""Of the faults' own time: minutes."""

AT_MOST = {"host away": 2}
"""Times: what lasts for minutes is not done as often as the rest."""

Work = Callable[[Path, Path, int], dict[str, Any]]


def main() -> int:
    made = parser(__doc__)
    made.add_argument("--kills", type=int, default=25, help="at each point; 0: only the other faults")
    made.add_argument("--only", default="", help="points and faults whose name begins so")
    made.add_argument("--times", type=int, default=5, help="of each fault that is no kill at a point")
    made.add_argument("--seed", type=int, default=1)
    made.add_argument("--resume", action="store_true", help="keep the rows of FILE that came to an end with this code")
    options = made.parse_args()
    before = machine()
    rows = kept(options.json) if options.resume else []
    folder = Path(tempfile.mkdtemp(prefix="flawline-chaos-"))
    for row in campaigns(folder, options, {row["fault"] for row in rows}):
        rows.append(row)
        write(options.json, {"question": (__doc__ or "").splitlines()[0], "rows": rows}, before)
    print(table(rows))
    if all(map(is_zero, rows)):
        shutil.rmtree(folder)
        return 0
    sys.stderr.write(f"not zero; what was found lies in {folder}\n")
    return 1


def is_zero(row: dict[str, Any]) -> bool:
    """Whether the campaign came to its end and every part, number and PASS was right."""
    return "failed" not in row and not (row["unaccounted"] or row["duplicates"] or row["false_ok"])


def kept(path: Path) -> list[dict[str, Any]]:
    """The rows of an earlier run of the same code, without those whose campaign failed."""
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return [row for row in rows if "failed" not in row and row["commit"] == COMMIT]


def campaigns(work: Path, options: argparse.Namespace, done: Container[str]) -> Iterator[dict[str, Any]]:
    """One row for each point and each other fault that is not ``done``."""
    data, bundle = work / "data", work / "bundle"
    draw_dataset("synthetic://line?seed=1", data, 100, 20, 24)
    train_small_bundle(bundle, data)
    if flawline(["calibrate", "thresholds", str(bundle), "--data", str(data)]) != 0:
        raise SystemExit("the bundle could not be calibrated")
    works: dict[str, Work] = {}
    if options.kills:
        works = {name: partial(kill, points=[name] * options.kills) for name in POINTS}
        turns = schedule(len(POINTS) * max(1, options.kills // 5), options.seed)
        works["all points in turn, both sides"] = partial(kill, points=turns)
    for name in FAULTS:
        works[name] = partial(fault, name=name, times=min(options.times, AT_MOST.get(name, options.times)))
    for number, (name, each) in enumerate(works.items()):
        if name in done or not name.startswith(options.only):
            continue
        folder = work / f"campaign{number}"
        folder.mkdir()
        row = run(name, partial(each, folder, bundle, options.seed + number))
        sys.stderr.write(f"{row}\n")
        if is_zero(row):
            shutil.rmtree(folder)
        yield row


def kill(folder: Path, bundle: Path, seed: int, points: list[str]) -> dict[str, Any]:
    """The account of one line whose sides are killed at these points, one after another."""
    campaign = Campaign(folder, bundle, points, seed)
    found = campaign.run(limit_s=SECONDS_A_KILL * len(points))
    kills = sum(campaign.kills.values())
    return {"times": kills, "kills": kills, **found._asdict()}


def fault(folder: Path, bundle: Path, seed: int, name: str, times: int) -> dict[str, Any]:
    """The account of one line to which the fault is done so often."""
    for gear in FAULTS[name].gear:
        if (program := absent(gear)) is not None:
            raise RuntimeError(f"{program} is not installed, which the {gear} needs")
        if (reason := forbidden(gear, folder)) is not None:
            raise RuntimeError(reason)
    found, kills = strike(folder, bundle, [name] * times, seed, LONGER.get(name, 1.0))
    return {"times": times, "kills": kills, **found._asdict()}


def run(name: str, work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """One row, with the commit that it ran on."""
    start = time.monotonic()
    try:
        row = {"fault": name, **work()}
    except Exception as error:  # noqa: BLE001 - the other rows are worth having; this one is no result
        row = {"fault": name, "failed": f"{type(error).__name__}: {error}"[-4000:]}
    return row | {"seconds": round(time.monotonic() - start, 1), "commit": COMMIT}


COLUMNS = ("fault", "times", "kills", "parts", "triggers", "results", "missed", "gap", "unaccounted", "duplicates")


def table(rows: list[dict[str, Any]]) -> str:
    """The rows as docs/chaos.md shows them, with their sum."""
    names = (*COLUMNS, "false_ok")
    shown = [[row["fault"], *("failed" if "failed" in row else row[name] for name in names[1:])] for row in rows]
    sums = ["**all**", *(f"**{sum(row.get(name, 0) for row in rows)}**" for name in names[1:])]
    head = ["| " + " | ".join(name.replace("_ok", " OK") for name in names) + " |", "|---" * len(names) + "|"]
    return "\n".join(head + ["| " + " | ".join(map(str, row)) + " |" for row in [*shown, sums]])


NO_CODE = (":/", ":(exclude,top)docs", ":(exclude,top)benchmarks/results", ":(exclude,top,glob)*.md")


def commit() -> str | None:
    """The last commit that changed code, tests or benchmarks; ``+`` behind it where files differ from it."""
    last = _git("log", "-1", "--abbrev=12", "--format=%h", "--", *NO_CODE)
    return last and last + ("+" if _git("status", "--porcelain", "--untracked-files=no", "--", *NO_CODE) else "")


def _git(*words: str) -> str | None:
    done = subprocess.run(["git", *words], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return done.stdout.strip() or None


COMMIT = commit()

if __name__ == "__main__":
    sys.exit(main())
