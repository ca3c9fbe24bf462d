"""``flawline edge spool``: what waits for the host, and what it refused for good (beside hop 6)."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edge_runtime.dead_letters import Letter, SpoolFile

app = typer.Typer(
    no_args_is_help=True,
    help="""What waits in the spool for the host, and the dead letters: messages that the host refused for good.

    Works beside a running edge.

    \b
    Examples:
      flawline edge spool list edge.toml
      flawline edge spool dead retry edge.toml 3 4
    """,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
dead = typer.Typer(
    no_args_is_help=True,
    help="Messages that the host refused for good: list, show, send again, drop, export.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
app.add_typer(dead, name="dead")

Config = Annotated[Path, typer.Argument(metavar="FILE", help="edge.toml", show_default=False)]
Numbers = Annotated[
    list[int] | None, typer.Argument(metavar="[NUMBER]...", help="of dead letters, as listed", show_default=False)
]
Everyone = Annotated[bool, typer.Option("--all", help="every dead letter")]
Code = Annotated[
    str | None, typer.Option(help="with --all: those alone with this code: schema, size, parts, version or identity")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="do not ask")]


@app.command("list")
def list_(config: Config) -> None:
    """How much waits for the host of each kind, since when, and how many dead letters there are.

    Exit code 0: nothing is dead; 3: something is.

    \b
    Example:
      flawline edge spool list edge.toml
    """
    spool = _open(config)
    for waiting in spool.waiting():
        since = "" if waiting.oldest_s is None else f", the oldest from {_age(waiting.oldest_s)} ago"
        typer.echo(f"{waiting.name:<13}{waiting.rows:>9}  {_size(waiting.size):>10}{since}")
    letters, removed = spool.letters(), spool.removed()
    gone = f"; {removed} more had to go for want of room" if removed else ""
    typer.echo(f"dead letters {len(letters):>9}  {_size(sum(letter.size for letter in letters)):>10}{gone}")
    raise typer.Exit(3 if letters or removed else 0)


@dead.command("list")
def dead_list(config: Config) -> None:
    """Every dead letter, and why the host refused it.

    \b
    Example:
      flawline edge spool dead list edge.toml
    """
    for letter in _open(config).letters():
        typer.echo(_line(letter))


@dead.command()
def show(config: Config, number: Annotated[int, typer.Argument(help="as listed", show_default=False)]) -> None:
    """One dead letter: its header in full, and the size of its binary parts.

    \b
    Example:
      flawline edge spool dead show edge.toml 3
    """
    spool = _open(config)
    (letter,) = spool.letters([number])
    header, parts = spool.parts(number)
    typer.echo(_line(letter))
    typer.echo(header.decode("utf-8", "replace"))
    for part in parts:
        typer.echo(f"a part of {_size(len(part))}")


@dead.command()
def retry(
    config: Config, numbers: Numbers = None, everyone: Everyone = False, code: Code = None, yes: Yes = False
) -> None:
    """Send dead letters again, as they are: after the host was mended or updated. A running edge sends them at once.

    \b
    Examples:
      flawline edge spool dead retry edge.toml 3 4
      flawline edge spool dead retry edge.toml --all --code schema
    """
    spool = _open(config)
    chosen = _chosen(spool, numbers, everyone, code)
    _confirm(f"Send {len(chosen)} dead letter(s) again?", yes)
    done = spool.retry([letter.n for letter in chosen])
    typer.echo(f"{len(done)} dead letter(s) wait for the host again")
    if len(done) < len(chosen):
        typer.echo(f"{len(chosen) - len(done)} stay dead: of them only the header was kept, or they wait already")
        raise typer.Exit(3)


@dead.command()
def drop(
    config: Config, numbers: Numbers = None, everyone: Everyone = False, code: Code = None, yes: Yes = False
) -> None:
    """Remove dead letters for good: nobody will ever see what they say.

    \b
    Example:
      flawline edge spool dead drop edge.toml 3
    """
    spool = _open(config)
    chosen = _chosen(spool, numbers, everyone, code)
    _confirm(f"Remove {len(chosen)} dead letter(s) for good?", yes)
    typer.echo(f"{spool.drop([letter.n for letter in chosen])} dead letter(s) removed")


@dead.command()
def export(
    config: Config,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="folder to write", show_default=False)],
    numbers: Numbers = None,
    everyone: Everyone = False,
    code: Code = None,
) -> None:
    """Write dead letters as files: NUMBER.json, the header, and NUMBER-1.bin on, its parts. They stay in the spool.

    \b
    Example:
      flawline edge spool dead export edge.toml refused --all
    """
    spool = _open(config)
    chosen = _chosen(spool, numbers, everyone, code)
    folder.mkdir(parents=True, exist_ok=True)
    for letter in chosen:
        header, parts = spool.parts(letter.n)
        (folder / f"{letter.n}.json").write_bytes(header)
        for place, part in enumerate(parts, start=1):
            (folder / f"{letter.n}-{place}.bin").write_bytes(part)
    typer.echo(f"{len(chosen)} dead letter(s) written to {folder}")


def _open(config: Path) -> SpoolFile:
    from edge_runtime.dead_letters import SpoolFile
    from edge_runtime.settings import load_settings
    from edge_runtime.spool_tables import SPOOL_FILE

    return SpoolFile(load_settings(config).state_dir / SPOOL_FILE)


def _chosen(spool: SpoolFile, numbers: list[int] | None, everyone: bool, code: str | None) -> list[Letter]:
    if bool(numbers) == everyone or (code is not None and not everyone):
        raise typer.BadParameter("name dead letters by their numbers, or give --all, with --code or without")
    return [letter for letter in spool.letters(numbers or ()) if code in (None, letter.code)]


def _confirm(question: str, yes: bool) -> None:
    if not yes:
        typer.confirm(question, abort=True)


def _line(letter: Letter) -> str:
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(letter.t_dead_ns / 1e9))
    return (
        f"{letter.n:>6}  {when}  {letter.kind:<10} {letter.spool_id[:12]}/{letter.seq}  {_size(letter.size):>10}  "
        f"{letter.code}: {letter.message}"
    )


def _size(size: int) -> str:
    return f"{size / 1e6:.1f} MB" if size >= 1e6 else f"{size / 1e3:.1f} kB"


def _age(seconds: float) -> str:
    for unit, length in (("day(s)", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"
