"""The commands of the box beside the line: run the edge, draw synthetic parts, write a line's truth."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from edge_runtime import spool_cli

app = typer.Typer(
    no_args_is_help=True,
    help="The edge beside the line.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)
app.add_typer(spool_cli.app, name="spool")

EXAMPLE = """\
edge_id = "line-1"
bundle = "bundle"              # folder written by `flawline train` and `flawline calibrate`
engine = "auto"                # tensorrt on a card, openvino on x86, else onnxruntime
# audit_share = 0.02           # of the parts that pass, drawn at random for an inspector to judge: what escapes
# bundle = "slots/active"        # instead: two slots and a link, filled by `flawline edge update BUNDLE`
# mode = "production"          # in a plant: released bundles alone, signed by two people; flawline bundle --help

[host]
endpoint = "tcp://127.0.0.1:5701"
control = "tcp://127.0.0.1:5702"            # the host selects recipes, stops and starts; leave out for none
# key = "keys/line-1.key_secret"             # both needed where the host is another machine:
# server_key = "keys/host.key"               # flawline keys --help

# [bundles]
# trusted = "signers"                        # whose signatures count: flawline keys sign-trust --help

# [metrics]
# listen = "127.0.0.1:9108"                  # for Prometheus: docs/operations.md
# [log]
# format = "json"                            # one object a line; "text" for people

[[cameras]]
id = "top"
url = "synthetic://line?seed=1&parts=50"    # or usb://0, rtsp://camera/stream, ...: docs/cameras.md
trigger = "presence"

# [[recipes]]                                # further recipes that the host may select; 1 is `bundle`
# number = 2
# bundle = "bundle-of-the-other-product"
"""


@app.command()
def run(
    config: Annotated[Path, typer.Argument(metavar="FILE", help="edge.toml", show_default=False)],
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="no line for each part")] = False,
) -> None:
    """Watch the cameras, inspect each part, send every verdict to the host.

    Ends by itself when every camera has ended (a video file); else Ctrl-C or SIGTERM stops it cleanly.

    Exit code 0: the host has everything; 2: it could not start; 3: events wait in the spool for the next start; 70: one
    of its loops hung; 75: the graphics card is lost to this process, or the spool cannot be written (disk full,
    read-only). After 70 and 75 it has to be started again, which deploy/flawline-edge.service does.

    \b
    Example:
      flawline edge init edge.toml
      flawline edge run edge.toml
    """
    from edge_runtime.errors import CardLostError
    from edge_runtime.run import run_edge

    code = run_edge(config, quiet)
    if code == CardLostError.exit_code:
        _end_now(code)
    raise typer.Exit(code)


def _end_now(code: int) -> None:
    """End without the libraries' own tidying up: on a card that is lost it can crash or hang, and all is written."""
    logging.shutdown()
    sys.stdout.flush()
    os._exit(code)


@app.command()
def build(
    config: Annotated[Path, typer.Argument(metavar="FILE", help="edge.toml", show_default=False)],
) -> None:
    """Build the TensorRT plan of every recipe and try it once, so that no start and no swap waits for it.

    Run it before a shift, after a new bundle and after an upgrade of driver or TensorRT; what is in the box's cache and
    still fits is left as it is. An engine on the processor needs no building, and the command says so.

    Exit code 0: every recipe is ready; 1: one could not be built; 2: no recipe could be looked at.

    \b
    Examples:
      flawline edge build edge.toml
      flawline edge build edge.toml && flawline edge run edge.toml
    """
    from edge_runtime.build import build_edge

    raise typer.Exit(build_edge(config))


@app.command()
def state(
    config: Annotated[Path, typer.Argument(metavar="FILE", help="edge.toml", show_default=False)],
    alive: Annotated[bool, typer.Option("--alive", help="for a health check: only whether the edge turns")] = False,
) -> None:
    """What the edge last said of itself, and why the host does not let it in where it does not.

    Exit code 0: it runs and nothing is wrong; 3: something is.

    \b
    Example:
      flawline edge state edge.toml
    """
    from edge_runtime.state import is_alive, print_state

    if alive:
        raise typer.Exit(0 if is_alive(config) else 3)
    raise typer.Exit(print_state(config))


@app.command()
def update(
    bundle: Annotated[
        Path | None, typer.Argument(metavar="BUNDLE", help="the new bundle's folder", show_default=False)
    ] = None,
    config: Annotated[Path, typer.Option(metavar="FILE", help="the edge's edge.toml")] = Path("edge.toml"),
    recipe: Annotated[int, typer.Option(min=1, max=65535, help="number of the recipe that gets it")] = 1,
    rollback: Annotated[bool, typer.Option("--rollback", help="go back to the bundle before")] = False,
    timeout: Annotated[
        float, typer.Option(min=1, metavar="SECONDS", help="building an engine on a card takes minutes")
    ] = 600.0,
) -> None:
    """Bring another bundle into the idle one of two slots, and have it take over between two parts.

    It is copied, verified (in production the signatures too), loaded, warmed up and proven on its golden images while
    the old one goes on; the old one stays in the other slot for --rollback. No host is needed. Where no edge runs, the
    next start takes it. edge.toml names the slots: bundle = "slots/active".

    Exit code 0: it is active; 2: it is not, and what ran goes on; 1: nobody knows, `flawline edge slots` says.

    \b
    Examples:
      flawline edge update /media/usb/washer --config /etc/flawline/edge.toml
      flawline edge update --rollback --config /etc/flawline/edge.toml
    """
    from contract.errors import ConfigError
    from edge_runtime import update as updating

    if (bundle is None) != rollback:
        raise ConfigError("give a bundle's folder, or --rollback for the one before")
    if bundle is None:
        updating.roll_back(config, recipe, timeout)
    else:
        updating.update(config, bundle, recipe, timeout)


@app.command()
def slots(
    config: Annotated[Path, typer.Argument(metavar="FILE", help="edge.toml", show_default=False)],
) -> None:
    """What the slots of each recipe hold, which one is active, and what runs.

    \b
    Example:
      flawline edge slots edge.toml
    """
    from edge_runtime.update import list_slots

    list_slots(config)


@app.command()
def top(
    config: Annotated[Path, typer.Argument(metavar="FILE", help="edge.toml", show_default=False)],
    once: Annotated[bool, typer.Option("--once", help="one picture, then end")] = False,
) -> None:
    """Watch the edge on this box: cameras, verdicts, times of each stage, what waits for the host, the clock.

    Reads what the edge writes into its state folder, and disturbs nothing. Ctrl-C ends it; without a terminal it prints
    one picture.

    Exit code 0: an edge runs; 3: none does, and what is shown is of the past.

    \b
    Examples:
      flawline edge top edge.toml
      flawline edge top edge.toml --once
    """
    from edge_runtime.top import run_top

    raise typer.Exit(run_top(config, once))


@app.command()
def preview(
    config: Annotated[Path, typer.Option(metavar="FILE", help="edge.toml", show_default=False)],
    camera: Annotated[str | None, typer.Option(help="the camera's id; needed with --save")] = None,
    save: Annotated[Path | None, typer.Option(metavar="FILE.jpg", help="write the newest picture")] = None,
    http: Annotated[
        str | None, typer.Option(metavar="127.0.0.1:PORT", help="serve a live page on this machine")
    ] = None,
    connect: Annotated[
        str | None, typer.Option(metavar="ENDPOINT", help="another address than `preview.listen`")
    ] = None,
    key: Annotated[Path | None, typer.Option(help="your secret key file, where the preview has keys")] = None,
    server_key: Annotated[Path | None, typer.Option(help="the preview's public key file")] = None,
) -> None:
    """Look at what a camera of a running edge sees, with its last verdict. Pictures may be lost, and say how many.

    Needs `listen` under [preview] in edge.toml.

    \b
    Examples:
      flawline edge preview --config edge.toml --camera top --save top.jpg
      flawline edge preview --config edge.toml --http 127.0.0.1:8080
    """
    from edge_runtime import preview_cli

    where = preview_cli.where_of(config, connect, key, server_key)
    if (save is None) == (http is None):
        raise typer.BadParameter("give either --save FILE.jpg or --http 127.0.0.1:PORT")
    if http is not None:
        preview_cli.serve(where, http)
        return
    if camera not in where.cameras or save is None:
        raise typer.BadParameter(f"--camera {camera}: this edge's cameras are {', '.join(where.cameras)}")
    preview_cli.save(where, camera, save)


@app.command()
def init(path: Annotated[Path, typer.Argument(metavar="FILE", help="file to write", show_default=False)]) -> None:
    """Write a commented edge.toml to start from."""
    if path.exists():
        raise typer.BadParameter(f"{path} exists already; it is left as it is")
    path.write_text(EXAMPLE)
    typer.echo(f"{path} written. Next: flawline edge run {path}")


@app.command()
def draw(
    out: Annotated[Path, typer.Argument(metavar="DIR", help="folder to write, MVTec AD layout", show_default=False)],
    url: Annotated[str, typer.Option(help="the synthetic line to draw from")] = "synthetic://line?seed=1",
    good: Annotated[int, typer.Option(min=1, help="good parts to train and calibrate with")] = 160,
    test_good: Annotated[int, typer.Option(min=0, help="good parts to test with")] = 40,
    defective: Annotated[int, typer.Option(min=0, help="defective parts to test with")] = 60,
) -> None:
    """Draw a folder of synthetic parts, cut from camera frames as the line cuts them.

    \b
    Example:
      flawline edge draw data/synthetic
      flawline train --data data/synthetic --out bundle
    """
    from rich.progress import Progress

    from edge_runtime.draw import draw_dataset

    with Progress() as progress:
        task = progress.add_task("Drawing parts", total=good + test_good + defective)
        draw_dataset(url, out, good, test_good, defective, lambda done: progress.update(task, completed=done))
    typer.echo(f"{good + test_good + defective} parts in {out}")


@app.command()
def truth(
    url: Annotated[str, typer.Argument(metavar="URL", help="a synthetic:// line", show_default=False)],
    csv: Annotated[Path, typer.Argument(metavar="FILE", help="file to write", show_default=False)],
) -> None:
    """Write what a synthetic line really shows, frame by frame, to compare verdicts with.

    \b
    Example:
      flawline edge truth 'synthetic://line?seed=1&parts=50' line_frames.csv
    """
    from edge_runtime.draw import write_truth

    write_truth(url, csv)
    typer.echo(f"{csv} written")
