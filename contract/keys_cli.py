"""``flawline keys``: pairs for the wire and for signing bundles, made, trusted and revoked (before hops 3, 6 and 7)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="""Keys for the wire between edges and a host, and of the people who sign bundles.

\b
Joining an edge to a host on another machine:
  on the host   flawline keys new host
  on the edge   flawline keys new edge-1            (the name is the edge_id)
  carry         keys/edge-1.key to the host, keys/host.key to the edge's keys/
  on the host   flawline keys authorise edge-1.key
Secret files (*.key_secret) never travel. Compare fingerprints with `flawline keys show`.

\b
Signing bundles, for edges in production:
  each person   flawline keys sign-new ada          (a pair of one's own; ada.sign_secret is never shared)
  on the edge   flawline keys sign-trust ada.sign --may validate
                flawline keys sign-trust grace.sign --may release
""",
)

Folder = Annotated[Path, typer.Option("--dir", help="the key folder")]
Name = Annotated[str, typer.Argument(metavar="NAME", help="host, or the edge_id of an edge", show_default=False)]
KEYS = Path("keys")


@app.command()
def new(name: Name, folder: Folder = KEYS) -> None:
    """Make a key pair: NAME.key to carry to the other side, NAME.key_secret (mode 0600) that stays.

    \b
    Examples:
      flawline keys new host
      flawline keys new edge-1 --dir /etc/flawline/keys
    """
    from contract.keys import HOST, PUBLIC, SECRET, fingerprint, new_pair

    pair = new_pair(folder, name)
    typer.echo(f"{folder / (name + SECRET)}: secret, stays on this machine")
    typer.echo(f"{folder / (name + PUBLIC)}: carry it to the other side; fingerprint {fingerprint(pair.public)}")
    if name == HOST:
        typer.echo(f'Next: keys = "{folder}" at the top of host.toml, and each edge gets {HOST}{PUBLIC}')
        return
    typer.echo(
        f'Next: key = "{folder / (name + SECRET)}" and server_key = "{folder / (HOST + PUBLIC)}" under [host] in'
    )
    typer.echo(f"edge.toml; on the host: flawline keys authorise {name}{PUBLIC}")


@app.command("list")
def list_keys(folder: Folder = KEYS) -> None:
    """Every key of a folder: pairs, the public keys of others, and the edges that are authorised.

    \b
    Example:
      flawline keys list
    """
    from contract.errors import KeyFileError
    from contract.keys import EDGES, PUBLIC, SECRET, check_folder, fingerprint, load_pair, load_public, read_authorised

    check_folder(folder)
    bad = 0
    for path in sorted({*folder.glob(f"*{PUBLIC}"), *(each.with_suffix(PUBLIC) for each in folder.glob(f"*{SECRET}"))}):
        secret = path.with_suffix(SECRET)
        try:
            pair = load_pair(secret) if secret.is_symlink() or secret.exists() else None
            public = load_public(path) if pair is None else pair.public
        except KeyFileError as error:
            bad += 1
            typer.echo(f"{path.stem:<24} NOT USABLE: {error}")
            continue
        typer.echo(f"{path.stem:<24} {fingerprint(public)}  {'public only' if pair is None else 'key pair'}")
    found = read_authorised(folder)
    for public, name in sorted(found.names.items(), key=lambda item: item[1]):
        typer.echo(f"{EDGES + '/' + name:<24} {fingerprint(public)}  authorised")
    for problem in found.problems:
        typer.echo(f"NOT AUTHORISED: {problem}")
    if bad or found.problems:
        raise typer.Exit(2)


@app.command()
def show(name: Name, folder: Folder = KEYS) -> None:
    """Show a public key and its fingerprint, to compare both ends over the telephone.

    \b
    Example:
      flawline keys show host
    """
    from contract.keys import EDGES, PUBLIC, fingerprint, load_public

    file = folder / f"{name}{PUBLIC}"
    public = load_public(file if file.exists() else folder / EDGES / f"{name}{PUBLIC}")
    typer.echo(f"{name}: {public}\nfingerprint {fingerprint(public)}")


@app.command()
def authorise(
    file: Annotated[
        Path, typer.Argument(metavar="EDGE.key", help="the edge's public file, as carried here", show_default=False)
    ],
    folder: Folder = KEYS,
) -> None:
    """Let an edge speak to the host of this folder; the file's name is its edge_id. A running host obeys within 2 s.

    \b
    Example:
      flawline keys authorise /media/stick/edge-1.key
    """
    from contract.keys import EDGES, PUBLIC, authorise, fingerprint, load_public

    name = authorise(folder, file)
    public = load_public(folder / EDGES / f"{name}{PUBLIC}")
    typer.echo(f"Edge {name} is authorised, fingerprint {fingerprint(public)}. Compare: flawline keys show {name}")


@app.command()
def revoke(name: Name, folder: Folder = KEYS) -> None:
    """Take an edge's authorisation away, for good. A running host cuts its connections within 2 s.

    Every other edge connects again at once and sends again what was under way.

    \b
    Example:
      flawline keys revoke edge-1
    """
    from contract.keys import fingerprint, revoke

    public = revoke(folder, name)
    typer.echo(
        f"Edge {name} is no longer authorised, fingerprint {fingerprint(public)}. It needs a new pair to return."
    )


Person = Annotated[str, typer.Argument(metavar="NAME", help="a person's name, as others know it", show_default=False)]
TrustFolder = Annotated[Path, typer.Option("--dir", help="the edge's folder of trusted keys: [bundles] trusted")]
SIGNERS = Path("signers")


@app.command("sign-new")
def sign_new(name: Person, folder: Folder = KEYS) -> None:
    """Make a person's pair for signing bundles: NAME.sign to carry to the edges, NAME.sign_secret (mode 0600) to keep.

    A release needs two people, so each makes a pair of their own, under their own account.

    \b
    Examples:
      flawline keys sign-new ada
      flawline keys sign-new grace --dir ~/.flawline
    """
    from contract.keys import fingerprint
    from contract.signing import PUBLIC, SECRET, new_signing_pair

    pair = new_signing_pair(folder, name)
    typer.echo(f"{folder / (name + SECRET)}: secret, belongs to {name} alone")
    typer.echo(f"{folder / (name + PUBLIC)}: carry it to the edges; fingerprint {fingerprint(pair.public)}")
    typer.echo(f"Next, on each edge: flawline keys sign-trust {name}{PUBLIC} --may validate (or release)")


@app.command("sign-trust")
def sign_trust(
    file: Annotated[
        Path, typer.Argument(metavar="NAME.sign", help="the person's public file, as carried here", show_default=False)
    ],
    may: Annotated[str, typer.Option(help="validate or release; run it twice for both")],
    folder: TrustFolder = SIGNERS,
) -> None:
    """Let a person validate or release bundles for the edge of this folder. Holds from the next bundle loaded.

    Run it as the user who administers the edge: the edge itself needs to read the folder, not to write it.

    \b
    Examples:
      flawline keys sign-trust /media/stick/ada.sign --may validate
      flawline keys sign-trust /media/stick/grace.sign --may release --dir /etc/flawline/signers
    """
    from contract.errors import ConfigError
    from contract.keys import fingerprint
    from contract.signing import PUBLIC, ROLES, load_signer, trust

    role = next((each for each in ROLES if each == may), None)
    if role is None:
        raise ConfigError(f"--may {may!r}: no such role; there are: {', '.join(ROLES)}")
    name = trust(folder, file, role)
    public = load_signer(folder / role / f"{name}{PUBLIC}")
    typer.echo(f"{name} may {role}, fingerprint {fingerprint(public)}. Compare it with {name}'s own.")


@app.command("sign-revoke")
def sign_revoke(name: Person, folder: TrustFolder = SIGNERS) -> None:
    """Trust a person's signatures no longer: bundles that rest on them are refused from the next load on.

    \b
    Example:
      flawline keys sign-revoke ada
    """
    from contract.signing import distrust

    typer.echo(f"{name} may no longer {' or '.join(distrust(folder, name))}. A bundle that runs now runs until the")
    typer.echo("edge is started again or loads another; bundles that rest on the key need signing anew.")


@app.command("sign-list")
def sign_list(folder: TrustFolder = SIGNERS) -> None:
    """Who may validate and who may release for the edge of this folder.

    \b
    Example:
      flawline keys sign-list --dir /etc/flawline/signers
    """
    from contract.keys import fingerprint
    from contract.signing import read_trusted

    for role, keys in read_trusted(folder).roles.items():
        for public, name in sorted(keys.items(), key=lambda item: item[1]):
            typer.echo(f"{name:<24} {fingerprint(public)}  may {role}")
        if not keys:
            typer.echo(f"{'nobody':<24} {'':<19}  may {role}")
