"""``flawline host backup``, ``restore`` and ``verify``: everything a host keeps, as a folder to carry away (hop 8)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contract.errors import ConfigError

if TYPE_CHECKING:
    from plugin.settings import HostSettings

BACKUP_HELP = """Copy store, pictures, ledger and accounts into an empty folder, while the host runs or not.

Every file's sha256 is noted and checked by `restore`. host.toml, keys and certificates are not in it: keep them apart.

\b
Example:
  flawline host backup host.toml /mnt/backup/2026-11-23
"""
RESTORE_HELP = """Put a backup into an empty place, after every file was checked against its sha256.

The folder must be empty that `state_dir` names, and the database that `store.url` names. What was taken after the
backup is lost and shows as a gap. No number is given to a line twice: numbering goes on beyond all that can have been
given out since; where a controller's own last number is known, say it with --last. Sessions and tokens end.

\b
Examples:
  flawline host restore /mnt/backup/2026-11-23 host.toml
  flawline host restore /mnt/backup/2026-11-23 host.toml --last line-1=184467
"""

Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="host.toml", show_default=False)]


def backup(
    config: Config,
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="empty or not there yet", show_default=False)],
) -> None:
    """Read beside the host."""
    from plugin.backup import back_up
    from plugin.blob_places import open_blobs
    from plugin.database import place_of
    from plugin.settings import load_settings

    settings = load_settings(config)
    where = place_of(settings.state_dir, settings.store.url, settings.store.password_file)
    if not settings.state_dir.is_dir():
        raise ConfigError(f"{settings.state_dir}: no host has run here; there is nothing to back up")
    made = back_up(settings.state_dir, where, open_blobs(settings), folder)
    typer.echo(f"Copied {len(made.files)} file(s) and {made.pictures} picture(s) to {folder}")


def restore(
    folder: Annotated[Path, typer.Argument(metavar="FOLDER", help="of `backup`", show_default=False)],
    config: Config,
    last: Annotated[
        list[str] | None, typer.Option(metavar="LINE=NUMBER", help="the last number that a controller has seen")
    ] = None,
) -> None:
    """Verify, then copy."""
    from plugin.backup import restore as put_back
    from plugin.blob_places import open_blobs
    from plugin.database import place_of
    from plugin.settings import load_settings

    settings = load_settings(config)
    where = place_of(settings.state_dir, settings.store.url, settings.store.password_file)
    numbers = _numbers(settings, last or [])
    made = put_back(folder, settings.state_dir, where, lambda: open_blobs(settings), numbers)
    typer.echo(f"Put {len(made.files)} file(s) and {made.pictures} picture(s) back. Next: flawline host run {config}")


def _numbers(settings: HostSettings, said: list[str]) -> dict[str, int]:
    lines = {line.id for line in settings.lines}
    found = {}
    for each in said:
        line, _, number = each.rpartition("=")
        if line not in lines or not number.isdecimal() or len(number) > 15:
            raise ConfigError(f"--last {each[:80]!r}: expected LINE=NUMBER with a line of {sorted(lines)}")
        found[line] = int(number)
    return found
