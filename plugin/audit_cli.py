"""``flawline host audit``: whether the records of what inspectors said are as they were written (after hop 12)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from contract.errors import ConfigError

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="The records of what inspectors said: whether they are as they were written.",
)

VERIFY_HELP = """Walk the chain of review records and name the first that is broken.

Each record's hash is over its content and the hash before it; the hashes are also noted in `reviews.chain` beside the
store, which shows whether the last records were cut off. Note the printed last record somewhere else from time to
time, and give it with --last: then nobody who can write to this machine changes what was said before without being
found. Works whether or not the host runs.

Exit code 0: nothing is broken; 1: something is; 2: there is no store.

\b
Examples:
  flawline host audit verify host.toml
  flawline host audit verify host.toml --last 1204:9f86d081884c7d65...
"""


@app.callback()
def audit() -> None:
    """Hold the sub-commands together."""


@app.command("verify", help=VERIFY_HELP)
def verify_command(
    config: Annotated[Path, typer.Argument(help="host.toml", show_default=False)],
    last: Annotated[str, typer.Option(metavar="NUMBER:SHA256", help="a last record noted earlier")] = "",
) -> None:
    """Ask the store on a connection of its own."""
    from plugin.database import open_engine, place_of, shown_as, upgraded
    from plugin.reviews import JOURNAL, verify
    from plugin.settings import load_settings

    known = _known(last)
    settings = load_settings(config)
    state_dir = settings.state_dir
    store = place_of(state_dir, settings.store.url, settings.store.password_file)
    if isinstance(store, Path) and not store.is_file():
        raise ConfigError(f"{store}: there is no store; a host writes it: flawline host run {config}")
    if not upgraded(store):
        raise ConfigError(
            f"{shown_as(store)}: written by an older Flawline; start the host once: flawline host run {config}"
        )
    engine = open_engine(store)
    try:
        with engine.connect() as connection, connection.begin():
            found = verify(connection, state_dir / JOURNAL, known)
    finally:
        engine.dispose()
    for note in found.notes:
        typer.echo(f"Note: {note}.")
    if found.broken is not None:
        typer.echo(f"BROKEN: {found.broken}. Behind {found.records} whole record(s).", err=True)
        raise typer.Exit(1)
    end = "" if found.last is None else f" The last one is {found.last[0]}:{found.last[1]}"
    typer.echo(f"{found.records} record(s), each as it was written.{end}")


def _known(last: str) -> tuple[int, str] | None:
    if not last:
        return None
    number, _, digest = last.partition(":")
    if not number.isdecimal() or len(digest) != 64:
        raise ConfigError(f"--last {last!r}: expected NUMBER:SHA256, as this command prints it")
    return int(number), digest.lower()
