"""``flawline host``: run the host, write its configuration, keep its accounts (hops 7 to 12)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from plugin import audit_cli, backup_cli, control_cli, export_cli, line_cli, opcua_cli, user_cli

if TYPE_CHECKING:
    from plugin.service import Service

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="The host: keeps every event, tells the line controller, serves the review pages.",
)

app.add_typer(user_cli.app, name="user")
app.add_typer(audit_cli.app, name="audit")
app.add_typer(opcua_cli.app, name="opcua")
app.command("control", help=control_cli.HELP)(control_cli.control)

app.add_typer(line_cli.masters_app, name="masters")
app.command("line", help=line_cli.LINE_HELP)(line_cli.line)
app.command("contain", help=line_cli.CONTAIN_HELP)(line_cli.contain)

app.command("export", help=export_cli.HELP)(export_cli.export)
app.command("backup", help=backup_cli.BACKUP_HELP)(backup_cli.backup)
app.command("restore", help=backup_cli.RESTORE_HELP)(backup_cli.restore)

RUN_HELP = """Run the host until it is told to stop (Ctrl-C or SIGTERM).

Prints where edges connect and where the review pages are once both are ready.

\b
Examples:
  flawline host init host.toml
  flawline host run host.toml
"""

ALIVE_HELP = """For a health check: whether the host that runs with this configuration answers.

Exit code 0: it does, whatever it says of itself; 3: it does not.

\b
Example:
  flawline host alive host.toml
"""

INIT_HELP = """Write a host.toml to start from; every setting is explained in it.

\b
Example:
  flawline host init station/host.toml
"""


@app.callback()
def host() -> None:
    """Hold the sub-commands together."""


@app.command("run", help=RUN_HELP)
def run_command(config: Annotated[Path, typer.Argument(help="host.toml", show_default=False)]) -> None:
    """Read the configuration and run the service."""
    from plugin.settings import load_settings

    settings = load_settings(config)

    import logging

    from plugin import service

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("alembic").setLevel(logging.WARNING)
    service.run(settings, config.resolve().parent, _say_ready)


def _say_ready(service: Service) -> None:
    typer.echo(f"The host is ready. Review pages: {service.url}  Edges connect to: {service.endpoint}")
    import sys

    sys.stdout.flush()


@app.command("alive", help=ALIVE_HELP)
def alive_command(config: Annotated[Path, typer.Argument(help="host.toml", show_default=False)]) -> None:
    """Ask the pages' own port, on this machine."""
    from plugin.alive import answers
    from plugin.settings import load_settings

    raise typer.Exit(0 if answers(load_settings(config).state_dir) else 3)


@app.command("init", help=INIT_HELP)
def init_command(file: Annotated[Path, typer.Argument(help="file to write", show_default=False)]) -> None:
    """Write the example unless there is a file already."""
    from contract.errors import ConfigError
    from plugin.settings import EXAMPLE

    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with file.open("x", encoding="utf-8") as output:
            output.write(EXAMPLE)
    except FileExistsError as error:
        raise ConfigError(f"{file}: exists already; nothing was written") from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written ({error.strerror})") from error
    typer.echo(f"Wrote {file}. Next: flawline host run {file}")
