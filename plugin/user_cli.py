"""``flawline host user``: accounts of the review pages from the host's own terminal (beside hop 11).

The accounts are a file in the state folder, so that this works whether or not the host runs.
"""

from __future__ import annotations

import getpass
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contract.errors import ConfigError

if TYPE_CHECKING:
    from plugin.accounts import Accounts, Actor

MAX_PASSWORD_BYTES = 4096
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="Accounts of the review pages: add, list, password, role, disable, enable, token. Works while the host runs.",
)

ADD_HELP = """Add an account; the password is asked for, or read from a file.

\b
Examples:
  flawline host user add host.toml ada --role administrator
  flawline host user add host.toml bert --password-file bert.txt
"""
LIST_HELP = """List the accounts with role, state and last sign-in.

\b
Example:
  flawline host user list host.toml
"""
PASSWORD_HELP = """Set a password anew; the account's sessions end, delays after failures too.

\b
Example:
  flawline host user password host.toml ada
"""
ROLE_HELP = """Give an account another role; its sessions end.

\b
Example:
  flawline host user role host.toml ada engineer
"""
DISABLE_HELP = """Let an account sign in no more; its sessions end. Its name stays with what it decided.

\b
Example:
  flawline host user disable host.toml bert
"""
ENABLE_HELP = """Let a disabled account sign in again.

\b
Example:
  flawline host user enable host.toml bert
"""
TOKEN_HELP = """Make a token: with it a program does what --scope and the account's role both allow, without a password.

read: everything of the HTTP API that reads. review: besides, record decisions on parts, in the account's name.
administer: besides, ask edges for another recipe, stop, start and parts. A token opens no page.
It is written to a new file of mode 0600 and sent as `Authorization: Bearer TOKEN`. It ends after --days, when password,
role or state of the account change, or with --end, which ends every token of the account.

\b
Examples:
  flawline host user token host.toml eve --token-file calibrate.token
  flawline host user token host.toml robot --scope review --token-file robot.token
  flawline host user token host.toml eve --end
"""
Config = Annotated[Path, typer.Argument(metavar="CONFIG", help="host.toml", show_default=False)]
Name = Annotated[str, typer.Argument(metavar="NAME", help="the account", show_default=False)]
PasswordFile = Annotated[
    str | None, typer.Option("--password-file", help="a file of mode 0600 with the password; - reads standard input")
]


@app.command("add", help=ADD_HELP)
def add(
    config: Config,
    name: Name,
    role: Annotated[str, typer.Option(help="inspector, engineer or administrator")] = "inspector",
    password_file: PasswordFile = None,
) -> None:
    """Add an account."""
    with _accounts(config) as accounts:
        accounts.add(name, read_password(name, password_file), role, _myself())  # type: ignore[arg-type]
    typer.echo(f"Added {name}, {role}.")


@app.command("list", help=LIST_HELP)
def show(config: Config) -> None:
    """Print a line an account."""
    with _accounts(config) as accounts:
        for each in accounts.all():
            last = "never" if each.signed_in_s is None else f"{datetime.fromtimestamp(each.signed_in_s, UTC):%F %T} UTC"
            typer.echo(f"{each.name:20} {each.role:14} {'enabled' if each.enabled else 'disabled':9} {last}")


@app.command("password", help=PASSWORD_HELP)
def password(config: Config, name: Name, password_file: PasswordFile = None) -> None:
    """Set a password."""
    with _accounts(config) as accounts:
        accounts.set_password(name, read_password(name, password_file), _myself())
    typer.echo(f"The password of {name} is set; its sessions have ended.")


@app.command("role", help=ROLE_HELP)
def role(
    config: Config,
    name: Name,
    role: Annotated[str, typer.Argument(help="inspector, engineer or administrator", show_default=False)],
) -> None:
    """Give a role."""
    with _accounts(config) as accounts:
        accounts.set_role(name, role, _myself())  # type: ignore[arg-type]
    typer.echo(f"{name} is {role}.")


@app.command("disable", help=DISABLE_HELP)
def disable(config: Config, name: Name) -> None:
    """Disable an account."""
    with _accounts(config) as accounts:
        accounts.set_enabled(name, False, _myself())
    typer.echo(f"{name} can sign in no more.")


@app.command("enable", help=ENABLE_HELP)
def enable(config: Config, name: Name) -> None:
    """Enable an account."""
    with _accounts(config) as accounts:
        accounts.set_enabled(name, True, _myself())
    typer.echo(f"{name} can sign in.")


@app.command("token", help=TOKEN_HELP)
def token(
    config: Config,
    name: Name,
    token_file: Annotated[Path | None, typer.Option(help="the file to write; it must not exist")] = None,
    scope: Annotated[str, typer.Option(help="read, review or administer")] = "read",
    days: Annotated[float, typer.Option(min=0.01, max=3660, help="how long it is good")] = 90.0,
    end: Annotated[bool, typer.Option("--end", help="end every token of the account")] = False,
) -> None:
    """Make a token, or end all."""
    if end == (token_file is not None):
        raise ConfigError("say where the token goes, --token-file FILE, or --end to end every token of the account")
    with _accounts(config) as accounts:
        if token_file is None:
            typer.echo(f"{accounts.end_tokens(name, _myself())} token(s) of {name} ended.")
            return
        try:
            handle = os.open(token_file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        except OSError as error:
            raise ConfigError(f"{token_file}: cannot be written ({error.strerror}); no token was made") from error
        with os.fdopen(handle, "w", encoding="ascii") as file:
            try:
                file.write(accounts.make_token(name, days, _myself(), scope) + "\n")  # type: ignore[arg-type]
            except BaseException:
                token_file.unlink()
                raise
    typer.echo(f"Wrote a token of {name} to {token_file}, to {scope} what {name} may, good for {days:g} days.")


@contextmanager
def _accounts(config: Path) -> Iterator[Accounts]:
    from plugin.accounts import DATABASE, Accounts
    from plugin.settings import load_settings

    settings = load_settings(config)
    if not settings.http.needs_sign_in:
        typer.echo("Note: these pages are this machine's alone and ask nobody to sign in (http.sign_in).", err=True)
    accounts = Accounts(settings.state_dir / DATABASE)
    try:
        yield accounts
    finally:
        accounts.close()


def _myself() -> Actor:
    from plugin.accounts import Actor

    try:
        user = getpass.getuser()
    except (KeyError, OSError):  # a container's number without a name
        user = str(os.getuid())
    return Actor(f"command line ({user})", "this machine")


def read_password(name: str, file: str | None, new: bool = True) -> str:
    """A password from the terminal, a new one typed twice, or from a file; ``-`` is standard input."""
    if file is None:
        if not sys.stdin.isatty():
            raise ConfigError("there is no terminal to ask on; give --password-file FILE, or - for standard input")
        found: str = typer.prompt(f"Password of {name}", hide_input=True, confirmation_prompt=new, err=True)
        return found
    data = sys.stdin.buffer.read(MAX_PASSWORD_BYTES) if file == "-" else _read(Path(file))
    try:
        return data.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{file}: expected a password as UTF-8 text") from error


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            mode = os.fstat(file.fileno()).st_mode & 0o777
            if mode & 0o077:
                raise ConfigError(f"{path}: others may read it (mode {mode:o}, expected 600); chmod 600 {path}")
            return file.read(MAX_PASSWORD_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from error
