"""``flawline host line``, ``masters`` and ``contain``: a person sees to a line, through the running host (hop 9)."""

from __future__ import annotations

import getpass
from pathlib import Path
from typing import Annotated, Any, BinaryIO
from urllib.parse import quote

import typer

from contract.errors import ConfigError
from plugin.control_cli import connected
from plugin.user_cli import PasswordFile

EXPORT_S = 600.0
ORDERS = {"clear-stop": "clear_stop", "challenge": "require_challenge", "begin": "begin_challenge"}
Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="host.toml", show_default=False)]
Line = Annotated[str, typer.Argument(metavar="LINE", help="line id", show_default=False)]
User = Annotated[str | None, typer.Option(help="account, where the host asks people to sign in", show_default=False)]

LINE_HELP = """Show the lines of the running host; clear a stop, make a challenge with master parts due, begin it.

\b
Examples:
  flawline host line host.toml
  flawline host line host.toml line-1 clear-stop
  flawline host line host.toml line-1 challenge
  flawline host line host.toml line-1 begin
"""

CONTAIN_HELP = """List every part of a line since its last good check, with what is known of each, and record who asked.

Up to now, or up to a failed challenge (--event, its number as the lines' page and --list tell it), or every part that a
model judged (--model). --csv and --zip write the parts, and the parts with their pictures, into files.

\b
Examples:
  flawline host contain host.toml line-1 --list
  flawline host contain host.toml line-1 --csv parts.csv --zip parts.zip
  flawline host contain host.toml line-1 --event 1790000000000000 --note "sorted again by hand, 3 scrapped"
"""

masters_app = typer.Typer(
    no_args_is_help=True, rich_markup_mode=None, help="Master parts of a line, in the order in which they are run."
)


def line(
    config: Config,
    name: Annotated[str | None, typer.Argument(metavar="[LINE]", help="line id", show_default=False)] = None,
    what: Annotated[str, typer.Argument(metavar="[WHAT]", help="status, clear-stop, challenge or begin")] = "status",
    user: User = None,
    password_file: PasswordFile = None,
) -> None:
    """Ask and print how the line stands then."""
    if what != "status" and (what not in ORDERS or name is None):
        raise ConfigError(f"{what!r} cannot be asked; expected LINE and one of: status, {', '.join(ORDERS)}")
    with connected(_settings(config), user, password_file) as host:
        if what != "status":
            host.ask("POST", f"/api/lines/{quote(str(name), safe='')}", {"what": ORDERS[what], **_by(user)})
        rows = [row for row in host.ask("GET", "/api/lines") if name in (None, row["line"])]
    if not rows:
        raise ConfigError(f"there is no line {name!r}")
    typer.echo("\n".join(map(_said, rows)))


@masters_app.command("add")
def add(
    config: Config,
    line: Line,
    name: Annotated[str, typer.Argument(metavar="NAME", help="what the master is called", show_default=False)],
    expected: Annotated[str, typer.Argument(metavar="pass|reject", help="its right verdict", show_default=False)],
    defect_class: Annotated[str | None, typer.Option("--class", help="the defect that it has")] = None,
    recipe: Annotated[int | None, typer.Option(help="number of the one recipe that it belongs to")] = None,
    edge: Annotated[str | None, typer.Option(help="the one edge at which it is expected to be so")] = None,
    serial: Annotated[str | None, typer.Option(help="that it bears; then the order does not matter")] = None,
    user: User = None,
    password_file: PasswordFile = None,
) -> None:
    """Register a master behind those that are there; the line's challenge is due then."""
    about = {"defect_class": defect_class, "recipe": recipe, "edge": edge, "serial": serial}
    body = {"name": name, "expected": expected, **about, **_by(user)}
    with connected(_settings(config), user, password_file) as host:
        host.ask("POST", f"/api/lines/{quote(line, safe='')}/masters", body)
    typer.echo(f"{name} is a master of {line}; its challenge is due: flawline host line {config} {line} begin")


@masters_app.command("list")
def list_masters(config: Config, line: Line, user: User = None, password_file: PasswordFile = None) -> None:
    """Show the masters of a line."""
    with connected(_settings(config), user, password_file) as host:
        rows = [row for row in host.ask("GET", "/api/lines") if row["line"] == line]
    masters = rows[0]["masters"] if rows else []
    typer.echo("\n".join(map(_master, masters)) or f"{line} has no masters.")


@masters_app.command("remove")
def remove(
    config: Config,
    line: Line,
    name: Annotated[str, typer.Argument(metavar="NAME", help="of the master", show_default=False)],
    user: User = None,
    password_file: PasswordFile = None,
) -> None:
    """Take a master out; a line without masters has no challenge."""
    with connected(_settings(config), user, password_file) as host:
        host.ask("POST", f"/api/lines/{quote(line, safe='')}/masters/remove", {"name": name, **_by(user)})
    typer.echo(f"{name} is no master of {line} any more.")


def contain(
    config: Config,
    line: Line,
    event: Annotated[int | None, typer.Option(help="a failed challenge or a stop", show_default=False)] = None,
    model: Annotated[str | None, typer.Option(help="sha256 of a bad model", show_default=False)] = None,
    show: Annotated[bool, typer.Option("--list", help="only show failed challenges and stops")] = False,
    csv: Annotated[Path | None, typer.Option(help="file to write the parts to", show_default=False)] = None,
    zip: Annotated[Path | None, typer.Option(help="the same with their pictures", show_default=False)] = None,
    note: Annotated[str | None, typer.Option(help="what was decided", show_default=False)] = None,
    user: User = None,
    password_file: PasswordFile = None,
) -> None:
    """Open a containment through the running host, and fetch what is asked for."""
    for file in (csv, zip):
        if file is not None and file.exists():
            raise ConfigError(f"{file}: exists already; nothing was written")
    place = f"/api/lines/{quote(line, safe='')}"
    with connected(_settings(config), user, password_file) as host:
        if show:
            rows = [row for row in host.ask("GET", f"{place}/journal?limit=1000") if _is_cause(row)]
            typer.echo("\n".join(map(_event, rows)) or f"{line} has no failed challenge and no stop.")
            return
        found = host.ask("POST", f"{place}/containments", {"event": event, "model": model, **_by(user)}, EXPORT_S)
        number = found["id"]
        if note is not None:
            host.ask("POST", f"/api/containments/{number}/notes", {"text": note, **_by(user)})
        for file, kind in ((csv, "csv"), (zip, "zip")):
            if file is not None:
                with _new(file) as output:
                    host.download(f"/api/containments/{number}/parts.{kind}", output, EXPORT_S)
    typer.echo(f"Containment {number}: line {line}, numbers {found['after'] + 1} to {found['last']}, {found['cause']}")


def _settings(config: Path) -> Any:
    from plugin.settings import load_settings

    return load_settings(config)


def _by(user: str | None) -> dict[str, str]:
    """Who asks, where nobody signs in; with sign-in it is the session's."""
    return {} if user is not None else {"by": f"{getpass.getuser()[:40]} (terminal)"}


def _new(file: Path) -> BinaryIO:
    try:
        return file.open("xb")
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written ({error.strerror})") from error


def _is_cause(row: dict[str, Any]) -> bool:
    return row["kind"] in ("challenge_failed", "stop")


def _event(row: dict[str, Any]) -> str:
    why = row["detail"].get("why") or row["detail"].get("text")
    return f"{row['id']}  {row['kind']}, after part no. {row['number']}: {why}"


def _master(row: dict[str, Any]) -> str:
    about = [f"{name} {row[name]}" for name in ("defect_class", "recipe", "edge", "serial") if row[name] is not None]
    return ", ".join([f"{row['name']}: {row['expected']}", *about])


def _said(row: dict[str, Any]) -> str:
    stop = "" if row["stop"] is None else f"\n  is to stop: {row['stop_text']}"
    run = f", {row['taken']} of {row['steps']} readings" if row["challenge"] == "running" else ""
    challenge = "" if row["challenge"] == "none" else f"\n  challenge: {row['challenge']}{run}"
    return f"{row['line']}: {row['trouble'] or 'inspected'}{stop}{challenge}"
