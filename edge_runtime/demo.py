"""The whole product on one machine: starts the other commands as processes and prints what became of every part."""

from __future__ import annotations

import contextlib
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import typer

app = typer.Typer(
    help="Train, calibrate and run a whole line on this machine.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)

LINE_URL = "synthetic://line?seed=7"
PARTS = 60
DATA_URL = "synthetic://line?seed=31"
READY_S = 60.0


@app.command()
def demo(
    data: Annotated[Path | None, typer.Option(help="images in the MVTec AD layout [default: drawn]")] = None,
    video: Annotated[
        Path | None, typer.Option(help="video of a line; <video>_frames.csv beside it is the truth [default: drawn]")
    ] = None,
    out: Annotated[Path, typer.Option(help="folder for everything that is made")] = Path("runs/demo"),
    model: Annotated[str, typer.Option(help="model to train")] = "ganomaly_d",
    minutes: Annotated[float, typer.Option(min=0.05, help="training time")] = 2.5,
    size: Annotated[int, typer.Option(help="side of a tile in pixels; more sees more and takes longer")] = 64,
    false_reject_rate: Annotated[float, typer.Option(help="share of good parts that may be rejected")] = 0.05,
    wait: Annotated[
        bool | None, typer.Option("--wait/--no-wait", help="leave the review pages open [default: at a terminal]")
    ] = None,
    parts: Annotated[int, typer.Option(min=1, hidden=True)] = PARTS,
) -> None:
    """Draw good parts (or take yours), train, calibrate, run a line past the camera, print the account.

    \b
    Examples:
      flawline demo
      flawline demo --data photos/ --video line.avi --size 128 --minutes 10
    """
    from contract.errors import FlawlineError

    if (data is None) != (video is None):
        raise FlawlineError("--data and --video belong together: a model only fits the parts that it was trained on")
    for path in (data, video):
        if path is not None and not path.exists():
            raise FlawlineError(f"{path}: no such file or folder")
    Demo(out, model, minutes, size, false_reject_rate, parts).run(
        data, video, sys.stdin.isatty() if wait is None else wait
    )


class Demo:
    """One run in one folder, begun anew."""

    def __init__(
        self, out: Path, model: str, minutes: float, size: int, false_reject_rate: float, parts: int = PARTS
    ) -> None:
        self.out = out
        self.model = model
        self.minutes = minutes
        self.size = size
        self.false_reject_rate = false_reject_rate
        self.bundle = out / "bundle"
        self.line_url = f"{LINE_URL}&parts={parts}"
        self.presence = ""
        self.started = time.monotonic()

    def run(self, data: Path | None, video: Path | None, wait: bool) -> None:
        """All steps in order; raises FlawlineError where one fails."""
        self._empty_folder()
        if data is None or video is None:
            data, url, truth = self._draw()
        else:
            truth = video.with_name(f"{video.stem}_frames.csv")
            url = video.resolve().as_uri()
        self._step(f"Training {self.model} on good images", "train", *self._train_options(data))
        self._step(
            "Calibrating", "calibrate", "thresholds", self.bundle, "--data", data,
            "--false-reject-rate", self.false_reject_rate,
        )  # fmt: skip
        if (data / "test").is_dir():
            evaluation = self.out / "evaluation.json"
            self._step("Evaluating", "calibrate", "evaluate", self.bundle, "--data", data, "--json", evaluation)
        with self._host() as address:
            began = time.monotonic()
            self._step("Running the line", "edge", "run", self._edge_config(url), "--quiet")
            self._report(address, truth if truth.is_file() else None, time.monotonic() - began)
            if wait:
                self._leave_open(address)
        if not wait:
            sys.stdout.write(
                f"\nReview pages: `flawline host run {shlex.quote(str(self.out / 'host.toml'))}` opens them again\n"
            )

    def _empty_folder(self) -> None:
        """Begin anew, but only in a folder that a demo made, and say so."""
        from contract.errors import FlawlineError

        marker = self.out / ".flawline-demo"
        taken = self.out.exists() and (not self.out.is_dir() or any(self.out.iterdir()))
        if taken and not marker.is_file():
            raise FlawlineError(f"{self.out}: not empty and not made by a demo; give another folder with --out")
        if marker.is_file():
            sys.stdout.write(f"{self.out}: the demo before is replaced, its bundle and reviews too; --out keeps both\n")
        try:
            if self.out.exists():
                shutil.rmtree(self.out)
            self.out.mkdir(parents=True)
            marker.touch()
        except OSError as error:
            raise FlawlineError(
                f"{error.filename or self.out}: cannot be replaced ({error.strerror}); give another folder with --out"
            ) from error

    def _draw(self) -> tuple[Path, str, Path]:
        from edge_runtime.synthetic import PART_LENGTH_PX

        self.presence = f"\n[cameras.presence]\npart_length_px = {PART_LENGTH_PX}\n"  # parts that touch are told apart
        data, truth = self.out / "data", self.out / "line_frames.csv"
        self._step("Drawing parts", "edge", "draw", data, "--url", DATA_URL)
        self._step("Writing the line's truth", "edge", "truth", self.line_url, truth)
        return data, self.line_url, truth

    def _train_options(self, data: Path) -> list[object]:
        options = ["--model", self.model, "--size", self.size, "--minutes", self.minutes]
        return ["--data", data, "--out", self.bundle, *options]

    def _step(self, title: str, *words: object) -> None:
        from contract.errors import FlawlineError

        command = [str(word) for word in words]
        sys.stdout.write(f"\n== {title}: flawline {' '.join(command)}\n")
        sys.stdout.flush()
        done = subprocess.run([sys.executable, "-m", "flawline", *command], check=False)
        if done.returncode != 0:
            raise FlawlineError(f"`flawline {' '.join(command)}` ended with {done.returncode}")

    def _edge_config(self, url: str) -> Path:
        path = self.out / "edge.toml"
        endpoint = (self.out / "host" / "endpoint").read_text().strip()
        path.write_text(
            f'edge_id = "demo"\nbundle = "bundle"\nstate_dir = "edge"\nimages = "all"\n\n'
            f"[host]\nendpoint = {toml_text(endpoint)}\n\n"
            f'[[cameras]]\nid = "top"\nurl = {toml_text(url)}\ntrigger = "presence"\n{self.presence}'
        )
        return path

    @contextlib.contextmanager
    def _host(self) -> Iterator[str]:
        """A host process on free ports; yields the address of its pages."""
        config, outputs = self.out / "host.toml", (self.out / "line.jsonl").resolve()
        config.write_text(
            'state_dir = "host"\n\n[events]\nbind = "tcp://127.0.0.1:*"\n\n[http]\nport = 0\n\n'
            f"[[connectors]]\nurl = {toml_text(outputs.as_uri().replace('file:', 'loop:', 1))}\n"
        )
        log = (self.out / "host.log").open("w")
        with log, subprocess.Popen(
            [sys.executable, "-m", "flawline", "host", "run", str(config)], stdout=log, stderr=subprocess.STDOUT
        ) as process:  # fmt: skip
            try:
                yield self._wait_ready(process)
            finally:
                process.send_signal(signal.SIGTERM)
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(10)
                process.kill()

    def _wait_ready(self, process: subprocess.Popen[bytes]) -> str:
        from contract.errors import FlawlineError

        deadline = time.monotonic() + READY_S
        while time.monotonic() < deadline and process.poll() is None:
            with contextlib.suppress(OSError, ValueError, KeyError):
                address = str(json.loads((self.out / "host" / "http.json").read_text())["url"]).rstrip("/")
                fetch(f"{address}/healthz")
                return address
            time.sleep(0.1)
        raise FlawlineError(f"the host did not become ready in {READY_S:.0f} s; see {self.out / 'host.log'}")

    def _report(self, address: str, truth_file: Path | None, seconds: float) -> None:
        from edge_runtime.account import account, read_truth, stage_latencies

        rows, gaps = fetch_parts(address), fetch(f"{address}/api/gaps")
        found = account(rows, gaps, None if truth_file is None else read_truth(truth_file))
        summary = found.to_json() | {
            "model": self.model,
            "seconds": round(seconds, 3),
            "seconds_in_all": round(time.monotonic() - self.started, 3),
            "latency_ms": stage_latencies(rows),
        }
        (self.out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n")
        from edge_runtime.table import print_account

        print_account(found, summary["latency_ms"], self.model, self.out)

    def _leave_open(self, address: str) -> None:
        sys.stdout.write(f"\nReview pages: {address}/\nThey stay open until Ctrl-C.\n")
        sys.stdout.flush()
        with contextlib.suppress(KeyboardInterrupt):
            while True:
                signal.pause()


def toml_text(text: str) -> str:
    """A basic string of TOML. JSON's escapes are TOML's as long as the text is ASCII, as every address is."""
    return json.dumps(text)


def fetch(url: str) -> Any:
    """JSON from the host's own address; proxies are not asked."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(url, timeout=10) as answer:
        return json.loads(answer.read())


def fetch_parts(address: str) -> list[dict[str, Any]]:
    """Every part that the host holds, page by page."""
    rows: list[dict[str, Any]] = []
    after = 0
    while items := fetch(f"{address}/api/parts?after={after}&limit=500"):
        rows += items
        after = items[-1]["id"]
    return rows
