"""A real edge and a real host for a long time: memory, files, latencies, and what became of every part.

Both run as in production, each a process with its capture process, its spool, ledger and store, over loopback; pictures
come from memory at a fixed rate, each a part. In the second half two busy loops run beside them.

growth       robust slope of every process's own memory per 1000 parts, and the verdict by the criterion beside it; the
             curve itself is kept
latency_ms   from a picture's capture until its number stands in the host's ledger, before and with the busy loops
stages_ms    where it was spent, and where the slowest thousandth of the parts spent it
counts       each picture is one result, one missed, or stands in a declared gap
disk         the spool and the logs are bounded; the host keeps a record of every part, for ever: bytes per part
idle_cpu     share of a core per camera (capture process and its part of the edge) while nothing is to be inspected

    python -m benchmarks.soak --parts 200000 --json benchmarks/results/soak.json
    python -m benchmarks.soak --parts 2000 --json FILE      a smoke test
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sqlite3
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack, closing, suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from rich.progress import Progress

from benchmarks import watching
from benchmarks.common import machine, parser, write
from edge_runtime.account import percentile
from edge_runtime.demo import fetch
from edge_runtime.draw import draw_dataset
from edge_runtime.observer import MARKS
from flawline import main as flawline
from tests.processes import Process, free_port, until

DEADLINE_MS = 1000
FRAME_WH = (173, 133)
PICTURES = 50
PROBE_FPS = 1000
HOGS = 2
IDLE_HW = (1024, 1280)
IDLE = ((1, 10), (1, 25), (4, 10), (4, 25))
PERCENT = {"p50": 50.0, "p99": 99.0, "p99_9": 99.9, "p99_99": 99.99, "max": 100.0}
SETTLE_S = 300.0  # longest start on a machine that is busy with other things
ATTACHMENTS_MB = 64


def main(words: list[str] | None = None) -> int:
    made = parser(__doc__)
    made.add_argument("--parts", type=int, default=200_000, help="0: idle_cpu alone")
    made.add_argument("--rate", type=float, help="pictures a second; unsaid: --share of what the machine sustains")
    made.add_argument("--share", type=float, default=0.5, help="of what is sustained when more is offered")
    made.add_argument("--probe", type=float, default=15.0, help="seconds of more than can be sustained; 0: none")
    made.add_argument("--idle", type=float, default=10.0, help="seconds for each figure of idle_cpu; 0: none")
    made.add_argument("--size", type=int, default=64, help="graph size in pixels")
    made.add_argument("--work", type=Path, help="folder to run in, whose bundle serves again; unsaid: a temporary one")
    options = made.parse_args(words)
    before = machine()
    with ExitStack() as stack:
        work = options.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        work.mkdir(parents=True, exist_ok=True)
        bundle = make_bundle(work, options.size)
        make_frames(work)
        idle = [idle_cpu(work, bundle, cameras, fps, options.idle) for cameras, fps in IDLE if options.idle]
        rate = options.rate
        figures: dict[str, Any] = {"question": (__doc__ or "").splitlines()[0], "idle_cpu": idle}
        if not options.parts:
            write(options.json, figures, before)
            return 0
        if options.probe:
            figures["sustained_parts_per_s"] = sustained(work, bundle, options.probe)
            rate = rate or round(options.share * figures["sustained_parts_per_s"], 1)
            figures["share_of_sustained"] = round(rate / figures["sustained_parts_per_s"], 3)
        elif rate is None:
            made.error("--rate is needed without --probe")
        figures |= soak(work / "soak", bundle, options.parts, rate)
    write(options.json, figures, before)
    return int(bool(figures["counts"]["unaccounted"] or figures["counts"]["duplicates"]))


def make_bundle(work: Path, size: int) -> Path:
    """A calibrated bundle; a few steps of training are enough, neither speed nor memory depends on the weights."""
    data, out = work / "data", work / "bundle"
    if (out / "bundle.json").exists():
        return out  # of an earlier run in this folder
    draw_dataset("synthetic://line?seed=1", data, 120, 0, 0)
    for words in (
        ["train", "--data", str(data), "--out", str(out), "--size", str(size), "--steps", "4"],
        ["calibrate", "thresholds", str(out), "--data", str(data)],
    ):
        if code := flawline(words):
            raise SystemExit(f"flawline {' '.join(words)} ended with {code}")
    return out


def make_frames(work: Path) -> None:
    """Pictures of one part each, and of a bare belt with a sensor's noise."""
    (work / "frames").mkdir(exist_ok=True)
    (work / "belt").mkdir(exist_ok=True)
    for index, source in enumerate(sorted((work / "data" / "train" / "good").iterdir())[:PICTURES]):
        grey = cv2.imread(str(source), cv2.IMREAD_GRAYSCALE)
        cv2.imwrite(str(work / "frames" / f"{index:03d}.bmp"), cv2.resize(grey, FRAME_WH, interpolation=cv2.INTER_AREA))
    noise = np.random.default_rng(0)
    for index in range(8):
        belt = np.clip(45 + noise.normal(0, 3, IDLE_HW), 0, 255).astype(np.uint8)
        cv2.imwrite(str(work / "belt" / f"{index}.bmp"), belt)


class Pair:
    """A host and an edge that run in ``folder``."""

    def __init__(self, folder: Path, bundle: Path, cameras: list[str]) -> None:
        """``cameras``: the body of each one's table."""
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        self.folder = folder
        self.ledger = folder / "host" / "ledger.sqlite"
        self.store = folder / "host" / "store.sqlite"
        self.spool = folder / "edge" / "spool.sqlite"
        port = free_port()
        (folder / "host.toml").write_text(
            f'state_dir = "host"\n[events]\nbind = "tcp://127.0.0.1:{port}"\n[http]\nport = 0\n'
            f'[[lines]]\nid = "line-1"\ndeadline_ms = {DEADLINE_MS}\n[[connectors]]\nurl = "loop://"\n'
        )
        tables = "".join(f'[[cameras]]\nid = "camera-{n}"\n{body}\n' for n, body in enumerate(cameras))
        (folder / "edge.toml").write_text(
            f'edge_id = "edge-1"\nbundle = "{bundle}"\nstate_dir = "edge"\ndeadline_ms = {DEADLINE_MS}\n'
            f'[host]\nendpoint = "tcp://127.0.0.1:{port}"\n[spool]\nmax_mb = {ATTACHMENTS_MB}\n{tables}'
        )
        self.host = Process(folder / "host.log", "host", "run", str(folder / "host.toml"))
        until(lambda: self._healthy() or not self.host.running(), "the host is ready", SETTLE_S)
        self.edge = Process(folder / "edge.log", "edge", "run", str(folder / "edge.toml"), "--quiet")

    @property
    def address(self) -> str:
        return fetch_json(self.folder / "host" / "http.json")["url"].rstrip("/")

    def _healthy(self) -> bool:
        with suppress(OSError, ValueError, KeyError):
            fetch(f"{self.address}/healthz")
            return True
        return False

    def running(self) -> bool:
        return self.host.running() and self.edge.running()

    def seeing(self) -> bool:
        """Whether every camera gives frames."""
        with suppress(OSError, ValueError):
            cameras = fetch_json(self.folder / "edge" / "state.json")["cameras"]
            return all(camera["frames"] > 0 for camera in cameras)
        return False

    def ended(self) -> bool:
        """Whether the edge has gone because every picture was given."""
        with suppress(OSError, ValueError):
            cameras = fetch_json(self.folder / "edge" / "state.json")["cameras"]
            return not self.edge.running() and all(camera["state"] == "ended" for camera in cameras)
        return False

    def pids(self) -> dict[str, int]:
        captures = {f"capture{n}": pid for n, pid in enumerate(watching.children(self.edge.pid))}
        return {"host": self.host.pid, "edge": self.edge.pid} | captures

    def parts(self) -> int:
        """Parts that have their number."""
        with suppress(sqlite3.Error):
            return int(self.ask(self.ledger, "SELECT coalesce(max(id), 0) FROM outputs")[0][0])
        return 0

    @staticmethod
    def ask(path: Path, sql: str) -> list[Any]:
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True, timeout=10)) as connection:
            return connection.execute(sql).fetchall()

    def files(self) -> dict[str, Path]:
        databases = {"spool": self.spool, "ledger": self.ledger, "store": self.store}
        logs = {f"{name}_log": path.with_name(f"{path.name}-wal") for name, path in databases.items()}
        return databases | logs

    def close(self) -> None:
        for process in (self.edge, self.host):
            with suppress(AssertionError):
                process.stop()


def fetch_json(path: Path) -> Any:
    return json.loads(path.read_text())


def every_picture(work: Path, fps: float, frames: int, policy: str = "every-part") -> str:
    """A camera whose pictures are parts."""
    region = f"[0, 0, {FRAME_WH[0]}, {FRAME_WH[1]}]"
    return (
        f'url = "replay://{work / "frames"}?fps={fps:g}&frames={frames}"\ntrigger = "every-frame"\n'
        f'fixture = "region"\nregion = {region}\npolicy = "{policy}"\nslots = 64\nmax_frame_mb = 1'
    )


def sustained(work: Path, bundle: Path, seconds: float) -> float:
    """Verdicts a second while far more pictures are offered than can be inspected; the newest are taken."""
    pair = Pair(work / "probe", bundle, [every_picture(work, PROBE_FPS, 0, "freshest")])
    verdicts = "SELECT count(*) FROM outputs WHERE source = 'verdict'"
    try:
        until(lambda: pair.parts() > 200, "the first parts", SETTLE_S)
        begun, first = time.monotonic(), pair.ask(pair.ledger, verdicts)[0][0]
        time.sleep(seconds)
        done = pair.ask(pair.ledger, verdicts)[0][0] - first
        return round(done / (time.monotonic() - begun), 1)
    finally:
        pair.close()


def idle_cpu(work: Path, bundle: Path, cameras: int, fps: float, seconds: float) -> dict[str, Any]:
    """Shares of a core while a bare belt passes; the host's is for all cameras together."""
    body = f'url = "replay://{work / "belt"}?fps={fps:g}"\ntrigger = "presence"\nmax_frame_mb = 2'
    pair = Pair(work / f"idle-{cameras}-{fps:g}", bundle, [body] * cameras)
    try:
        until(pair.seeing, "every camera gives frames", SETTLE_S)
        time.sleep(2)  # what belongs to starting
        pids = pair.pids()
        begun, before = time.monotonic(), {name: watching.cpu_s(pid) for name, pid in pids.items()}
        time.sleep(seconds)
        took = time.monotonic() - begun
        share = {name: (watching.cpu_s(pid) - before[name]) / took for name, pid in pids.items()}
    finally:
        pair.close()
    capture = sum(value for name, value in share.items() if name.startswith("capture"))
    return {
        "cameras": cameras,
        "frames_per_s": fps,
        "frame_px": [IDLE_HW[1], IDLE_HW[0]],
        "per_camera_percent": round(100 * (capture + share["edge"]) / cameras, 2),
        "capture_percent": round(100 * capture / cameras, 2),
        "edge_percent": round(100 * share["edge"], 2),
        "host_percent": round(100 * share["host"], 2),
    }


def soak(folder: Path, bundle: Path, parts: int, rate: float) -> dict[str, Any]:
    """Run until every picture was offered, or until interrupted; the figures of what has passed."""
    pair = Pair(folder, bundle, [every_picture(folder.parent, rate, parts)])
    sampler = watching.Sampler(max(0.25, parts / rate / watching.MOST_POINTS), pair.pids, pair.files(), pair.parts)
    hogs: list[subprocess.Popen[bytes]] = []
    hogs_since_ns, hogs_at, interrupted = None, None, False
    # Either signal ends it in order, also where a shell started it with SIGINT ignored.
    handlers = {each: signal.signal(each, signal.default_int_handler) for each in (signal.SIGINT, signal.SIGTERM)}
    begun = time.monotonic()
    try:
        until(lambda: pair.seeing() or not pair.running(), "the camera gives frames", SETTLE_S)
        sampler.start()
        with Progress(transient=True) as bar:
            task = bar.add_task(f"{parts} parts at {rate:g} a second", total=parts)
            while pair.running():
                time.sleep(0.5)
                done = pair.parts()
                bar.update(task, completed=done)
                if not hogs and done >= parts / 2:
                    hogs_since_ns, hogs_at = time.time_ns(), done
                    hogs += [busy_loop() for _ in range(HOGS)]
    except KeyboardInterrupt:
        interrupted = True
    finally:
        took = time.monotonic() - begun
        for each, handler in handlers.items():
            signal.signal(each, handler)
        sampler.stop()
        for hog in hogs:
            hog.kill()
            hog.wait()
        code, resent, ended = pair.edge.code(), received(pair), pair.ended()
        pair.close()
    figures = {
        "parts": parts,
        "rate_per_s": rate,
        "seconds": round(took, 1),
        "interrupted": interrupted,
        "edge_exit_code": code,
        "busy_loops": HOGS,
        "deadline_ms": DEADLINE_MS,
        "latency_ms": latencies(pair, hogs_since_ns),
        "stages_ms": stages(pair, hogs_since_ns),
        "counts": counts(pair, parts if ended else None) | resent,
        "growth_criterion": watching.CRITERION,
        "growth": sampler.growth(hogs_at),
        "disk": disk(pair),
        "curve": sampler.curve(),
    }
    worst = [figures["latency_ms"][phase]["p99_99"] for phase in figures["latency_ms"]]
    return figures | {"p99_99_under_deadline": bool(worst) and max(worst) < DEADLINE_MS}


def busy_loop() -> subprocess.Popen[bytes]:
    """A program that wants a core; in a session of its own, since the scheduler shares a core out by sessions."""
    until_we_end = f"import os\nwhile os.getppid() == {os.getpid()}:\n    for _ in range(1_000_000): pass"
    return subprocess.Popen([sys.executable, "-c", until_we_end], start_new_session=True)


def received(pair: Pair) -> dict[str, Any]:
    """The host's own counts of what reached it."""
    with suppress(OSError, ValueError, KeyError):
        return {"host": fetch(f"{pair.address}/healthz")["receiver"]}
    return {}


def latencies(pair: Pair, hogs_since_ns: int | None) -> dict[str, dict[str, float]]:
    """Milliseconds from capture to the ledger, what the deadline closed among them."""
    since = hogs_since_ns or 2**62
    phases = {"before": f"t_wall_ns < {since}", "with_busy_loops": f"t_wall_ns >= {since}"}
    found = {}
    for phase, which in phases.items():
        ages = [row[0] for row in pair.ask(pair.ledger, f"SELECT age_ms FROM outputs WHERE {which}")]
        if ages:
            found[phase] = {"parts": len(ages)} | {
                name: round(percentile(ages, share), 3) for name, share in PERCENT.items()
            }
    return found


def stages(pair: Pair, hogs_since_ns: int | None) -> dict[str, dict[str, dict[str, float]]]:
    """Milliseconds of each stage over the parts that have a verdict, and what the slowest thousandth spent there."""
    with closing(sqlite3.connect(f"file:{pair.ledger}?mode=ro", uri=True)) as connection:
        connection.execute("ATTACH ? AS store", (f"file:{pair.store}?mode=ro",))
        rows = connection.execute(
            "SELECT o.t_wall_ns, o.age_ms, p.age_ms, p.timing "
            "FROM outputs o JOIN store.parts p USING (edge_id, part_id) WHERE o.source = 'verdict'"
        ).fetchall()
    phases: dict[str, list[dict[str, float]]] = {"before": [], "with_busy_loops": []}
    for t_wall_ns, age_ms, sent_ms, timing in rows:
        spent = stage_times(json.loads(timing), sent_ms, age_ms)
        if spent is not None:
            phases["before" if hogs_since_ns is None or t_wall_ns < hogs_since_ns else "with_busy_loops"].append(spent)
    found = {}
    for phase, parts in phases.items():
        slowest = sorted(parts, key=lambda part: -sum(part.values()))[: max(1, len(parts) // 1000)]
        found[phase] = {
            stage: {
                name: round(percentile([part[stage] for part in parts], share), 3) for name, share in PERCENT.items()
            }
            | {"mean_of_slowest": round(statistics.fmean(part[stage] for part in slowest), 3)}
            for stage in (parts[0] if parts else ())
        }
    return found


def stage_times(timing: dict[str, Any], sent_ms: float, age_ms: float) -> dict[str, float] | None:
    """Of one part, by its age when it was sent and when it had its number. None where a stage was not reached."""
    spent = {}
    for stage, begin, end in MARKS:
        if not timing.get(begin) or not timing.get(end):
            return None
        spent[stage] = (timing[end] - timing[begin]) / 1e6
    spooled_ms = (timing["t_spooled_ns"] - timing["t_capture_ns"]) / 1e6
    return spent | {"spool and send": sent_ms - spooled_ms, "wire and ledger": age_ms - sent_ms}


def counts(pair: Pair, offered: int | None) -> dict[str, Any]:
    """What became of each part. ``offered`` None: the run was cut short, and only what was announced is counted."""
    rows = pair.ask(pair.ledger, "SELECT source, count(*) FROM outputs GROUP BY source")
    codes = pair.ask(pair.ledger, "SELECT code, count(*) FROM outputs GROUP BY code")
    numbered, distinct, last = pair.ask(
        pair.ledger, "SELECT count(*), count(DISTINCT part_id), coalesce(max(trigger_id), 0) FROM outputs"
    )[0]
    gaps = [row[0] for row in pair.ask(pair.store, "SELECT reason FROM gaps")]
    skipped = sum(int(found[1]) for reason in gaps if (found := re.search(r"(\d+) frame\(s\) not looked at", reason)))
    sources = dict(rows)
    return {
        "offered": offered,
        "triggers": last,
        "results": sources.get("verdict", 0),
        "missed": sources.get("missed", 0),
        "deadline": sources.get("deadline", 0),
        "codes": {str(code): count for code, count in codes},
        "gaps": len(gaps),
        "frames_in_gaps": skipped,
        "unaccounted": max(0, last - distinct) + (0 if offered is None else max(0, offered - last - skipped)),
        "duplicates": numbered - distinct,
        "in_store": pair.ask(pair.store, "SELECT count(*) FROM parts")[0][0],
        "resent": pair.ask(pair.store, "SELECT coalesce(sum(duplicates), 0) FROM spools")[0][0],
    }


def disk(pair: Pair) -> dict[str, Any]:
    """Sizes at the end; of what the host keeps for ever also bytes per part."""
    parts = max(1, pair.parts())
    sizes = {name: path.stat().st_size if path.exists() else 0 for name, path in pair.files().items()}
    blobs = [path.stat().st_size for path in (pair.folder / "host" / "blobs").rglob("*") if path.is_file()]
    return {
        "end_mb": {name: round(size / 1e6, 3) for name, size in sizes.items()} | {"blobs": round(sum(blobs) / 1e6, 3)},
        "bytes_per_part": {name: round(sizes[name] / parts) for name in ("ledger", "store")},
        "blobs": len(blobs),
        "bounded_by": {
            "spool": f"what the host has not committed; pictures and maps give way at {ATTACHMENTS_MB} MB",
            "spool_log, store_log": "folded into the database from 8 and 4 MB on",
            "ledger_log": "begun anew from 32 MB on when no part waits, at 256 MB in any case",
            "blobs": "equal pictures and maps are kept once, and the pictures repeat here",
            "ledger, store": "nothing: the host has no retention, every part is kept",
        },
    }


if __name__ == "__main__":
    sys.exit(main())
