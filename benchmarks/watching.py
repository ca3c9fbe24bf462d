"""What a long run's processes and files take, sampled while it goes on, and whether it grows."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

MOST_POINTS = 500
TICKS = os.sysconf("SC_CLK_TCK")
WARM_UP = 0.5  # share of a phase's parts that pass before growth is judged: caches and queues reach their size once
FLAT_KB = 5.0  # per 1000 parts: a megabyte over 200 000
KINDS = {"rss": "VmRSS:", "anon": "RssAnon:", "file": "RssFile:", "shmem": "RssShmem:"}
"""anon: the process's own, which alone can leak. file: programs and databases as the system keeps them at hand.
shmem: frames that two processes share, bounded by their slots and taken when a slot is first used."""

FEWEST_PARTS, FEWEST_POINTS = 5000, 20
CRITERION = (
    f"flat: in each phase, after the first {WARM_UP:.0%} of its parts, the Theil-Sen line of a process's own memory "
    f"rises by less than {FLAT_KB:g} kB per 1000 parts; too short: fewer than {FEWEST_PARTS} parts or {FEWEST_POINTS} "
    "samples after that"
)


def memory_kb(pid: int) -> dict[str, int]:
    """Resident memory in kB: all of it (rss), and by kind. All 0 where the process has ended.

    From `status`: `smaps_rollup` walks the whole address space and keeps the process from mapping anything meanwhile.
    """
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        lines = []
    found = {line.split()[0]: int(line.split()[1]) for line in lines if line.startswith(tuple(KINDS.values()))}
    return {name: found.get(label, 0) for name, label in KINDS.items()}


def cpu_s(pid: int) -> float:
    """Processor time in user and system mode so far, its threads together; 0 where it has ended."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return (int(fields[11]) + int(fields[12])) / TICKS


def children(pid: int) -> list[int]:
    """Processes that ``pid`` started and that run."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            if int(status.read_text().rpartition(")")[2].split()[1]) == pid:
                found.append(int(status.parent.name))
    return sorted(found)


def open_files(pid: int) -> tuple[int, float]:
    """(descriptors, MB of anonymous shared memory behind them)."""
    count, shared = 0, {}
    with suppress(OSError):
        for entry in Path(f"/proc/{pid}/fd").iterdir():
            count += 1
            with suppress(OSError):
                if str(entry.readlink()).startswith("/memfd:"):
                    status = entry.stat()
                    shared[status.st_ino] = status.st_blocks * 512 / 1e6
    return count, sum(shared.values())


def threads(pid: int) -> int:
    with suppress(OSError):
        return len(list(Path(f"/proc/{pid}/task").iterdir()))
    return 0


class Sampler:
    """Samples named processes and files every ``every_s`` on a thread of its own, as columns of equal length."""

    def __init__(
        self,
        every_s: float,
        pids: Callable[[], dict[str, int]],
        files: dict[str, Path],
        parts: Callable[[], int],
    ) -> None:
        self.columns: dict[str, list[float]] = {}
        self._every_s, self._pids, self._files, self._parts = every_s, pids, files, parts
        self._stop = threading.Event()
        self._begun_s = _now_s()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        self._thread.join(30)

    def _run(self) -> None:
        while not self._stop.wait(self._every_s):
            self._sample()

    def _sample(self) -> None:
        row: dict[str, float] = {
            "t_s": round(_now_s() - self._begun_s, 2),
            "parts": self._parts(),
            "load_1min": round(os.getloadavg()[0], 2),
        }
        for name, pid in self._pids().items():
            row |= {f"{name}.{kind}_kb": kb for kind, kb in memory_kb(pid).items()}
            row[f"{name}.open_files"], shared = open_files(pid)
            row[f"{name}.shared_memory_mb"] = round(shared, 2)
            row[f"{name}.threads"], row[f"{name}.cpu_s"] = threads(pid), round(cpu_s(pid), 2)
        for name, path in self._files.items():
            row[f"{name}_mb"] = round(path.stat().st_size / 1e6, 3) if path.exists() else 0.0
        if any(row[key] == 0 for key in row if key.endswith(".anon_kb")):
            return  # a process is ending: what is left of it says nothing
        if self.columns and set(row) != set(self.columns):
            return  # a process is being replaced; the counts of the run tell of it
        for key, value in row.items():
            self.columns.setdefault(key, []).append(value)

    def curve(self) -> dict[str, list[float]]:
        """The columns, thinned evenly to at most MOST_POINTS samples, the last among them."""
        length = len(self.columns.get("parts", []))
        kept = np.unique(np.linspace(0, length - 1, min(length, MOST_POINTS)).round().astype(int)) if length else []
        return {key: [values[index] for index in kept] for key, values in self.columns.items()}

    def growth(self, changed_at: float | None = None) -> dict[str, dict[str, Any]]:
        """Of each process's own memory: robust slopes and the verdict by CRITERION.

        ``changed_at``: after so many parts another phase began, with another load.
        """
        curve = self.curve()
        return {
            key.removesuffix("_kb"): growth(curve["parts"], values, changed_at)
            for key, values in curve.items()
            if key.endswith(".anon_kb")
        }


def growth(parts: list[float], kb: list[float], changed_at: float | None = None) -> dict[str, Any]:
    """The worst phase's verdict, each one's slope, and the memory at the ends and at most of the whole run."""
    x, y = np.asarray(parts, float), np.asarray(kb, float)
    if not len(x):
        return {"verdict": "too short", "phases": []}
    bounds = [0.0, float(x.max())] if changed_at is None else [0.0, changed_at, float(x.max())]
    phases = [_phase(x, y, begin, end) for begin, end in pairwise(bounds)]
    verdicts = {phase["verdict"] for phase in phases}
    return {
        "verdict": next(verdict for verdict in ("grows", "too short", "flat") if verdict in verdicts),
        "phases": phases,
        "first_kb": float(y[0]),
        "last_kb": float(y[-1]),
        "most_kb": float(y.max()),
    }


def _phase(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any], begin: float, end: float) -> dict[str, Any]:
    """Slope in kB per 1000 parts after the warm-up of one phase, and whether that is flat."""
    warm = (x >= begin + WARM_UP * (end - begin)) & (x <= end)
    x, y = x[warm] / 1000, y[warm]
    if len(x) < FEWEST_POINTS or np.ptp(x) * 1000 < FEWEST_PARTS:
        return {"verdict": "too short", "samples": len(x)}
    slope = theil_sen(x, y)
    return {
        "verdict": "flat" if slope < FLAT_KB else "grows",
        "slope_kb_per_1000_parts": round(slope, 3),
        "first_kb": float(y[0]),
        "last_kb": float(y[-1]),
        "samples": len(x),
        "parts": [int(1000 * x[0]), int(1000 * x[-1])],
    }


def theil_sen(x: np.ndarray[Any, Any], y: np.ndarray[Any, Any]) -> float:
    """The median slope of all pairs: a third of the samples may be anything without moving it far."""
    first, second = np.triu_indices(len(x), 1)
    apart = x[second] != x[first]
    first, second = first[apart], second[apart]
    return float(np.median((y[second] - y[first]) / (x[second] - x[first])))


def _now_s() -> float:
    return os.times().elapsed
