"""``flawline inspect``: a verdict and a picture for image files (hops 3 to 5 without a camera)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from contract.images import Pixels
    from edge_runtime.inspector import Inspector, Outcome

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

SUFFIX = ".flawline.png"
WIDE = 400
HELP = """Inspect image files: a verdict for each, and a picture of image, deviation and reconstruction.

An image that cannot be read gets a sentence, the others are still inspected, and the exit code is 2.

Examples:

\b
  flawline inspect bundle part-17.png
  flawline inspect bundle parts/test/scratch --out seen
"""


@app.command(help=HELP)
def inspect(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="folder written by flawline train")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="image files or folders of them")],
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="folder for the pictures; default: here")] = None,
    engine: Annotated[str, typer.Option(help="auto, tensorrt, tensorrt-rtx, openvino or onnxruntime")] = "auto",
    pictures: Annotated[bool, typer.Option(help="write a picture for each image")] = True,
) -> None:
    """Open bundle and engine, then go through the images."""
    from contract.bundle import open_bundle
    from edge_runtime.engines import open_engine
    from edge_runtime.inspector import Inspector

    opened = open_bundle(bundle)
    inspector = Inspector(opened, open_engine(engine, opened))
    raise typer.Exit(_inspect_all(inspector, _expand(images), (out or Path()) if pictures else None))


def _expand(paths: list[Path]) -> list[Path]:
    """Folders replaced by the images below them, pictures of an earlier run left out."""
    from contract.images import SUFFIXES

    files: list[Path] = []
    for path in paths:
        below = sorted(path.rglob("*")) if path.is_dir() else [path]
        wanted = [file for file in below if file.suffix.lower() in SUFFIXES and not file.name.endswith(SUFFIX)]
        files += wanted if path.is_dir() else [path]
    return files


def _inspect_all(inspector: Inspector, files: list[Path], out: Path | None) -> int:
    """Print the table and return the exit code: 0, or 2 where an image could not be used."""
    from rich.console import Console
    from rich.table import Table

    from contract.errors import FixtureError, ImageError
    from contract.fixture import placer_of
    from contract.part_pictures import line_of, read_corrected

    line = line_of(inspector.bundle)
    placer = placer_of(inspector.bundle) if line.correction is None else None
    rows = Table(box=None, pad_edge=False)
    for column in ("image", "verdict", "score", "regions", "why"):
        rows.add_column(column, overflow="fold", no_wrap=column in ("verdict", "score", "regions"))
    faults = [] if files else ["no images found; give image files or a folder that holds some"]
    used: set[str] = set()
    for path in files:
        try:
            part = read_corrected(path, inspector.bundle.manifest.recipe, line)
            part = part if placer is None else placer.place(part).pixels
        except FixtureError as error:
            rows.add_row(str(path), "NOT_INSPECTED", "-", "0", str(error))
            continue
        except ImageError as error:
            faults.append(str(error))
            continue
        outcome = inspector.inspect(part)
        score = "-" if outcome.score is None else f"{outcome.score:.4g}"
        rows.add_row(str(path), outcome.verdict.value, score, str(len(outcome.regions)), outcome.reason or "")
        if out is not None:
            _write_picture(_target(path, out, used), part, outcome, inspector)
    if rows.row_count:
        console = Console(markup=False, highlight=False)
        if not console.is_terminal:
            console.width = WIDE  # a file or a pipe has no width to keep to
        console.print(rows)
    if out is not None and rows.row_count:
        typer.echo(f"pictures: {out.resolve()}")
    for fault in faults:
        typer.echo(f"flawline inspect: {fault}", err=True)
    return 2 if faults else 0


def _target(path: Path, out: Path, used: set[str]) -> Path:
    """A name for the picture that no other image of this run has."""
    stem, number = path.stem, 1
    while stem in used:
        number += 1
        stem = f"{path.stem}-{number}"
    used.add(stem)
    return out / f"{stem}{SUFFIX}"


def _write_picture(target: Path, part: Pixels, outcome: Outcome, inspector: Inspector) -> None:
    from contract.errors import ConfigError
    from contract.images import encode_png

    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(encode_png(picture_of(part, outcome, inspector)))
    except OSError as error:
        raise ConfigError(f"{target}: the picture cannot be written ({error.strerror or error})") from error


def picture_of(part: Pixels, outcome: Outcome, inspector: Inspector) -> Pixels:
    """Image, overlay with boxes, and reconstruction side by side, RGB; the image alone where nothing was scored."""
    from edge_runtime.picture import Caption, compose, draw_regions, join_maps, lay_views, overlay, resize, shown_size

    manifest = inspector.bundle.manifest
    part_hw = (part.shape[0], part.shape[1])
    size = shown_size(part_hw)
    shown = resize(part, size)
    score = "" if outcome.score is None else f"score {outcome.score:.4g}"
    caption = Caption(outcome.verdict, outcome.reason or score)
    if outcome.part is None:
        return compose([shown], caption)
    limit = None if manifest.thresholds is None else manifest.thresholds.map
    marked = overlay(shown, join_maps(outcome.part.maps, part_hw, size), limit)
    draw_regions(marked, outcome.regions, (size[1] / part_hw[1], size[0] / part_hw[0]))
    expected = lay_views(inspector.reconstruction(), manifest.recipe, part_hw, size)
    return compose([shown, marked, expected], caption)
