"""``flawline edge state``: what the edge on this box last said of itself (beside hop 6)."""

from __future__ import annotations

from pathlib import Path

import typer
from pydantic import ValidationError

from contract.errors import ConfigError
from contract.event import State
from edge_runtime.settings import load_settings
from edge_runtime.station import STATE_FILE
from edge_runtime.top import ENDED, patience_s, silent_s


def is_alive(config: Path) -> bool:
    """Whether the station turns, whatever it says of itself: what a restart would mend. Raises ConfigError."""
    settings = load_settings(config)
    try:
        state = State.model_validate_json((settings.state_dir / STATE_FILE).read_bytes())
    except (OSError, ValidationError):
        return False
    age_s = silent_s(state)
    return state.state not in ENDED and age_s is not None and age_s < settings.hang_s


def print_state(config: Path) -> int:
    """Print the last heartbeat; 0 where it is fresh, running and without trouble, else 3. Raises ConfigError."""
    settings = load_settings(config)
    path = settings.state_dir / STATE_FILE
    try:
        state = State.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        raise ConfigError(f"{path}: no edge has run with this state_dir: flawline edge run {config}") from error
    age_s = silent_s(state)
    silent = state.state not in ENDED and (age_s is None or age_s > patience_s(settings))
    since = "since before this boot" if age_s is None else f"for {age_s:.0f} s"
    typer.echo(f"{state.edge_id}: {state.state}{f', but silent {since}' if silent else ''}")
    bundle = f"bundle {state.bundle_id}{f', {state.bundle_state}' if state.bundle_state else ''}"
    typer.echo(f"recipe {state.recipe_number} ({state.recipe}, {bundle}), {state.engine}")
    if not state.inspecting:
        typer.echo("inspection is stopped by request: every part is NOT_INSPECTED")
    for camera in state.cameras:
        typer.echo(f"camera {camera.camera_id}: {camera.state}{f', {camera.detail}' if camera.detail else ''}")
    typer.echo(f"{state.spool_rows} event(s) wait for the host")
    if state.dead_letters or state.dead_removed:
        typer.echo(
            f"{state.dead_letters + state.dead_removed} were refused for good: flawline edge spool list {config}"
        )
    if state.detail:
        typer.echo(state.detail if state.state == "failed" else f"host: {state.detail}")
    return 0 if state.state == "running" and not silent and not state.detail and state.inspecting else 3
