"""`flawline edge top`: how the edge on this box is doing, read from what it writes (beside hop 6)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import NamedTuple

from pydantic import ValidationError
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

from contract.errors import ConfigError
from contract.event import CameraState, State, Verdict
from edge_runtime.clock import boot_id, boot_ns
from edge_runtime.figures import FIGURES_FILE, Figures
from edge_runtime.observer import STAGES
from edge_runtime.settings import EdgeSettings, load_settings
from edge_runtime.station import STATE_FILE

EVERY_S = 0.5
ENDED = ("stopped", "failed")
PLAIN = 120
"""Columns where there is no terminal to ask."""


class Look(NamedTuple):
    """What was found on the disk. ``silent_s``: since the heartbeat, None where it is of another boot."""

    state: State
    figures: Figures
    silent_s: float | None
    patience_s: float

    @property
    def alive(self) -> bool:
        """Whether an edge runs: its heartbeat is of this boot and fresh, by a clock that no step moves."""
        return self.silent_s is not None and self.silent_s <= self.patience_s and self.state.state not in ENDED


def look(settings: EdgeSettings) -> Look:
    """Read the heartbeat and the figures. Raises ConfigError where no edge has ever run here."""
    path = settings.state_dir / STATE_FILE
    try:
        state = State.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ConfigError(f"{path}: no edge has run with this state_dir: flawline edge run edge.toml") from error
    try:
        figures = Figures.model_validate_json((settings.state_dir / FIGURES_FILE).read_bytes())
    except (OSError, ValidationError):
        figures = Figures()  # of an edge that has just begun
    return Look(state, figures, silent_s(state), patience_s(settings))


def silent_s(state: State) -> float | None:
    """Seconds since a heartbeat, by the clock since boot; None where the machine was started anew since."""
    same_boot = state.t_boot_ns and state.boot_id == boot_id() and state.t_boot_ns <= boot_ns()
    return (boot_ns() - state.t_boot_ns) / 1e9 if same_boot else None


def patience_s(settings: EdgeSettings) -> float:
    """How old a heartbeat may be."""
    return 3 * settings.heartbeat_ms / 1000 + 2


def run_top(config: Path, once: bool, console: Console | None = None) -> int:
    """Show the edge until Ctrl-C, or once; 0 where it runs, else 3. Raises ConfigError."""
    settings = load_settings(config)
    console = console or Console()
    if not console.is_terminal and console.width < PLAIN:
        console = Console(file=console.file, width=PLAIN)
    seen = look(settings)
    if once or not console.is_terminal:
        console.print(picture(seen))
        return 0 if seen.alive else 3
    with Live(picture(seen), console=console, screen=True, auto_refresh=False) as live:
        try:
            while True:
                time.sleep(EVERY_S)
                seen = look(settings)
                live.update(picture(seen), refresh=True)
        except KeyboardInterrupt:
            return 0 if seen.alive else 3


def picture(seen: Look) -> RenderableType:
    """All of it, top to bottom: the edge, its cameras, its verdicts, its times, what waits for the host."""
    return Group(_head(seen), _cameras(seen), _verdicts(seen.figures), _latencies(seen.figures), _foot(seen))


def _head(seen: Look) -> Text:
    state = seen.state
    text = Text(no_wrap=False)
    text.append(f"{state.edge_id}: ", "bold")
    if seen.alive:
        text.append(state.state, "bold green" if state.state == "running" else "bold yellow")
        text.append(f" for {_span((state.t_boot_ns - seen.figures.since_boot_ns) / 1e9)}" if _of_run(seen) else "")
    else:
        text.append(_why_not(seen), "bold red")
    text.append(
        f"\nrecipe {state.recipe_number} ({state.recipe}), bundle {state.bundle_id}"
        f"{f', {state.bundle_state}' if state.bundle_state else ''}\nengine {state.engine}, inference {state.inference}"
    )
    if not state.inspecting:
        text.append("\ninspection is stopped by request: every part is NOT_INSPECTED", "bold yellow")
    if state.detail:
        text.append(f"\n{state.detail}", "bold red")
    return text


def _of_run(seen: Look) -> bool:
    return seen.figures.boot_id == seen.state.boot_id and 0 < seen.figures.since_boot_ns <= seen.state.t_boot_ns


def _why_not(seen: Look) -> str:
    """Why what follows is of the past."""
    what = "THE EDGE DOES NOT RUN"
    if seen.silent_s is None:
        return f"{what}: its last word, {seen.state.state!r}, is of before this machine was started"
    if seen.state.state in ENDED:
        return f"{what}: {seen.state.state} {_span(seen.silent_s)} ago"
    return f"{what}, or hangs: silent for {_span(seen.silent_s)}, it was {seen.state.state!r} then"


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim", padding=(0, 2, 0, 0))
    for number, name in enumerate(columns):
        table.add_column(name, justify="left" if number == 0 else "right")
    return table


def _cameras(seen: Look) -> Table:
    table = _table(
        "\ncamera", "\nstate", "\nfps", "\nframe age", "\nframes", "\nskipped", "\nparts", "\nrestarts", "\n"
    )
    for camera in seen.state.cameras:
        good = camera.state == "running"
        table.add_row(
            camera.camera_id,
            Text(camera.state, "green" if good else "red"),
            f"{seen.figures.fps.get(camera.camera_id, 0.0):.1f}",
            _frame_age(camera),
            *(str(count) for count in (camera.frames, camera.skipped, camera.triggers, camera.restarts)),
            Text(camera.detail or "", "dim"),
        )
    return table


def _frame_age(camera: CameraState) -> str:
    return "-" if not camera.frames else f"{max(0.0, camera.frame_age_ms):.0f} ms"


def _verdicts(figures: Figures) -> Table:
    table = _table("\nverdicts", *(f"\n{verdict.value}" for verdict in Verdict))
    for camera, counts in sorted(figures.results.items()):
        table.add_row(camera, *(str(counts.get(verdict.value, 0)) for verdict in Verdict))
    if not figures.results:
        table.add_row("none yet")
    return table


def _latencies(figures: Figures) -> Table:
    stages = [stage for stage in STAGES if stage in figures.latency_ms]
    parts = max((figures.latency_ms[stage].n for stage in stages), default=0)
    table = _table(f"\nms, last {parts} parts", *(f"\n{stage}" for stage in stages))
    if stages:
        table.add_row("p50", *(f"{figures.latency_ms[stage].p50:.2f}" for stage in stages))
        table.add_row("p99", *(f"{figures.latency_ms[stage].p99:.2f}" for stage in stages))
    return table


def _foot(seen: Look) -> Text:
    state, figures = seen.state, seen.figures
    heard = "has acknowledged nothing yet"
    if figures.acknowledged_s is not None:
        heard = f"acknowledged an event {_span(figures.acknowledged_s)} ago"
    text = Text(
        f"\nmissed {figures.missed}, gaps {figures.gaps} ({figures.gap_s:.1f} s), pictures dropped "
        f"{state.attachments_dropped}, parts waiting {state.waiting}\n"
        f"host: {heard}; {state.spool_rows} event(s), {state.spool_bytes / 1e6:.1f} MB wait for it; newest event "
        f"{state.last_seq}\n"
    )
    kept = {True: "synchronised", False: "NOT synchronised", None: "nobody says whether it is synchronised"}
    text.append(f"clock: {kept[state.clock_synchronised]}", "" if state.clock_synchronised is not False else "yellow")
    if state.clock_steps:
        text.append(f", set {state.clock_steps} time(s), last by {state.clock_step_ms / 1e3:+.1f} s", "yellow")
    return text


def _span(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"
