"""``flawline host opcua``: what an OPC UA server needs before it can serve (beside hop 10).

Each command works on the server's folder, whether or not the host runs.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from contract.errors import ConfigError
from plugin import user_cli

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    help="The folder of an OPC UA server: its nodeset, certificate, users and whom it trusts.",
)

NODESET_HELP = """Get the nodeset of OPC 40100-1, check it and put it into the folder, with its notice.

It comes from an npm package, node-opcua-nodesets: by `npm pack` where npm is installed, else from what you bring: the
package's .tgz, the folder that it was unpacked to, or the XML file itself.

\b
Examples:
  flawline host opcua nodeset opcua
  flawline host opcua nodeset opcua --from node-opcua-nodesets-2.182.0.tgz
"""
CERTIFICATE_HELP = """Make the server's certificate and key, where there is none yet; say what it is.

The first start of the host makes one as well. --name: how clients call this machine, names or addresses.

\b
Examples:
  flawline host opcua certificate opcua --name vision.plant.local --name 10.1.0.5
  flawline host opcua certificate opcua --renew
"""
USER_HELP = """Add a user, or give one another password and role; the password is asked for, or read from a file.

A user is a program. One that may `read` gets results and states; one that may `control` also prepares recipes, starts
and stops. Nobody can change a verdict.

\b
Examples:
  flawline host opcua user opcua scada
  flawline host opcua user opcua mes --role control --password-file mes.txt
  flawline host opcua user opcua old-panel --remove
"""
TRUST_HELP = """List the certificates that were turned away, or trust one of them, or one of a file.

\b
Examples:
  flawline host opcua trust opcua
  flawline host opcua trust opcua UaExpert-1f2e3d4c5b6a7988.der
"""
Folder = Annotated[Path, typer.Argument(metavar="FOLDER", help="the server's folder", show_default=False)]


@app.command("nodeset", help=NODESET_HELP)
def nodeset(
    folder: Folder,
    source: Annotated[Path | None, typer.Option("--from", help="a .tgz, a folder or the XML file")] = None,
) -> None:
    """Take the nodeset."""
    from plugin.opcua_folder import take_nodeset

    typer.echo(f"Wrote {take_nodeset(folder, source)}, checked.")


@app.command("certificate", help=CERTIFICATE_HELP)
def certificate(
    folder: Folder,
    name: Annotated[list[str] | None, typer.Option("--name", help="may be given several times")] = None,
    renew: Annotated[bool, typer.Option("--renew", help="make another one; every client has to trust it anew")] = False,
) -> None:
    """Make or show the certificate."""
    certificates = _certificates()
    own = certificates.make_certificate(folder, name or [], renew)
    typer.echo(f"{folder / 'own' / 'certificate.der'}: {own.uri}, good for {own.days_left} days")
    typer.echo(f"SHA-256 {own.thumbprint}")


@app.command("user", help=USER_HELP)
def user(
    folder: Folder,
    name: Annotated[str, typer.Argument(help="the user", show_default=False)],
    role: Annotated[str, typer.Option(help="read or control")] = "read",
    password_file: user_cli.PasswordFile = None,
    remove: Annotated[bool, typer.Option("--remove", help="take the user away")] = False,
) -> None:
    """Add, change or remove a user."""
    from plugin.opcua_folder import Users

    if remove:
        Users(folder).remove(name)
        typer.echo(f"Removed {name}; its connections end within seconds.")
        return
    Users(folder).put(name, _role(role), user_cli.read_password(name, password_file))
    typer.echo(f"{name} may {role}.")


@app.command("trust", help=TRUST_HELP)
def trust(
    folder: Folder,
    name: Annotated[
        str | None, typer.Argument(help="a file of rejected/, or any certificate", show_default=False)
    ] = None,
) -> None:
    """List or trust."""
    certificates = _certificates()
    if name is not None:
        typer.echo(f"Trusted: {certificates.trust(folder, name)}")
        return
    for path in certificates.rejected(folder):
        typer.echo(path.name)


def _role(text: str) -> Literal["read", "control"]:
    if text in ("read", "control"):
        return text  # type: ignore[return-value]
    raise ConfigError(f"there is no role {text[:40]!r}; there are: read, control")


def _certificates() -> Any:
    try:
        from plugin import opcua_certificates
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed: pip install 'flawline[opcua]'") from error
    return opcua_certificates
