"""``flawline calibrate camera`` and ``correct``: the preprocess file, and what it makes of pictures (before hop 1)."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

Images = list[Path] | None


def camera(
    board: Annotated[
        Images, typer.Option(metavar="IMAGES", help="the board all over the field; files or folders")
    ] = None,
    plane: Annotated[
        Path | None, typer.Option(metavar="IMAGE", help="the board lying where parts lie: millimetres and perspective")
    ] = None,
    white: Annotated[Images, typer.Option(metavar="IMAGES", help="an even white sheet; files or folders")] = None,
    dark: Annotated[Images, typer.Option(metavar="IMAGES", help="the lens covered; files or folders")] = None,
    template: Annotated[
        Path | None, typer.Option(metavar="FIXTURE", help="by which parts are found: flawline fixture, bundle or data")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="the preprocess file")] = None,
    into: Annotated[
        Path | None, typer.Option(metavar="BUNDLE", help="put it into this bundle, which must be calibrated again then")
    ] = None,
    base: Annotated[
        Path | None, typer.Option("--from", metavar="FILE", help="an older file: what is not measured anew stays")
    ] = None,
    region: Annotated[
        str | None, typer.Option(metavar="X,Y,W,H", help="show only this of the corrected picture")
    ] = None,
    squares: Annotated[str, typer.Option(metavar="CxR", help="the board's squares, columns by rows")] = "10x7",
    square_mm: Annotated[float, typer.Option(help="side of a square as measured on the print")] = 25.0,
    marker_mm: Annotated[float, typer.Option(help="side of a marker as measured on the print")] = 18.0,
    markers: Annotated[str, typer.Option(help="which markers: 4x4_50 to 6x6_1000")] = "5x5_100",
    draw_board: Annotated[
        Path | None, typer.Option(metavar="FILE", help="write the board as a PNG to be printed at 100 %")
    ] = None,
    height_mm: Annotated[
        float | None, typer.Option(help="parts' surface: so much nearer to the camera than the board; default: 0")
    ] = None,
    mm_per_px: Annotated[
        float | None, typer.Option(help="of the corrected picture; default: as in the frame's middle")
    ] = None,
    channels: Annotated[str, typer.Option(help="of the flat field: grey, rgb, or auto (as the white frames)")] = "auto",
    max_rms: Annotated[float, typer.Option(help="px; reprojection error above which the board is refused")] = 0.5,
    max_worst: Annotated[float, typer.Option(help="px; the same of a single view")] = 1.0,
) -> None:
    """Measure lens, plane, light and position once; training, calibration and line then see straight, even pictures.

    15 views of the board fill the field, tilted by 20 to 40 degrees, with focus and exposure as on the line.

    \b
    Examples:
      flawline calibrate camera --draw-board board.png
      flawline calibrate camera --board views --plane flat.png --white white --dark dark --out camera.json
      flawline calibrate camera --from camera.json --template fixture --out placed.json
      flawline calibrate camera --from camera.json --white white --dark dark --into bundle
    """
    from calibration.board import Board
    from calibration.board import draw_board as draw
    from calibration.camera import Limits
    from calibration.camera_file import Asked, expand, make_file, put_into, told, write_file
    from calibration.errors import CalibrationError

    shape = re.fullmatch(r"(\d{1,2})[xX](\d{1,2})", squares.strip())
    if shape is None:
        raise CalibrationError(f"--squares {squares!r}: expected COLUMNSxROWS such as 10x7")
    if channels not in ("auto", "grey", "rgb"):
        raise CalibrationError(f"--channels {channels!r}: expected grey, rgb or auto")
    geometry = Board(int(shape[1]), int(shape[2]), square_mm, marker_mm, markers)
    geometry.made()
    if draw_board is not None:
        draw(geometry, draw_board)
        typer.echo(f"{draw_board}: {geometry.text()}; print it at 100 %, glue it to something flat, measure a square")
        if not (board or white or base or template):
            return
    if out is None and into is None:
        raise CalibrationError("give --out FILE for the preprocess file, or --into BUNDLE")
    asked = Asked(
        board=expand(board or [], "--board"),
        plane=plane,
        white=expand(white or [], "--white"),
        dark=expand(dark or [], "--dark"),
        template=template,
        base=base,
        geometry=geometry,
        height_mm=height_mm,
        mm_per_px=mm_per_px,
        region=None if region is None else _region(region),
        channels=channels,
        limits=Limits(max_rms, max_worst),
    )
    made = make_file(asked)
    for name, value in told(made.content):
        typer.echo(f"{name:20}{value}")
    for note in made.notes:
        typer.echo(f"Note: {note}")
    if out is not None:
        picture = write_file(out, made)
        typer.echo(f"{out}: written" + ("" if picture is None else f"; which of the field is covered: {picture}"))
        typer.echo(f"Next: flawline train --data DIR --preprocess {out} --out BUNDLE")
    if into is not None:
        put_into(into, made.content)
        typer.echo(
            f"{into}: holds it; its thresholds and golden images were made with another one, so an edge refuses it "
            f"now. Next: flawline calibrate thresholds {into} --data DIR, with pictures taken as the camera is now"
        )


def correct(
    source: Annotated[Path, typer.Argument(metavar="FILE", help="preprocess file, or a bundle that has one")],
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="whole frames; files or folders")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder for the corrected pictures")],
    whole: Annotated[bool, typer.Option("--whole", help="do not cut parts out, though there is a template")] = False,
) -> None:
    """Write pictures as training and the line see them: to draw masks over, or to take a template's mark from.

    Each becomes NAME.png in DIR; two of one name are refused before anything is written. Exit code 2 where one cannot
    be corrected.

    \b
    Example:
      flawline calibrate correct camera.json raw/train/good --out straight
    """
    from calibration.camera_file import expand
    from calibration.errors import CalibrationError
    from contract.bundle import MANIFEST, open_bundle, write_atomic
    from contract.correction import open_correction
    from contract.errors import ImageError
    from contract.images import encode_png, read_image
    from contract.part_pictures import Line, line_of

    if (source / MANIFEST).exists():
        line = line_of(open_bundle(source), renewing=True)
    else:
        correction = open_correction(source)
        line = Line(correction, correction.placer)
    if line.correction is None:
        raise CalibrationError(f"{source}: this bundle has no preprocess file")
    failed = 0
    outputs = _outputs(expand(images, "IMAGE"), out)
    for path, made in outputs.items():
        try:
            frame = read_image(path, 3)
            grey = bool((frame[..., :1] == frame).all())
            frame = frame[..., 0].copy() if grey else frame
            part = line.correction.correct(frame) if whole else line.part(frame)
        except ImageError as error:
            failed += 1
            typer.echo(f"{path}: {error}", err=True)
            continue
        try:
            out.mkdir(parents=True, exist_ok=True)
            write_atomic(made, encode_png(part))
        except OSError as error:
            raise CalibrationError(f"--out {made}: cannot be written ({error.strerror or error})") from error
    if failed < len(outputs):
        typer.echo(f"pictures: {out}")
    raise typer.Exit(2 if failed else 0)


def _outputs(files: list[Path], out: Path) -> dict[Path, Path]:
    """Where each picture goes. Raises CalibrationError where that is another's place, or one of the pictures."""
    from calibration.errors import CalibrationError

    sources = {file.resolve(): file for file in files}
    taken: dict[Path, Path] = {}
    for file in files:
        made = out / f"{file.stem}.png"
        if (other := taken.setdefault(made, file)) is not file:
            raise CalibrationError(
                f"{other} and {file}: both would become {made}, and nothing was written; correct them one after the "
                f"other with an --out each, such as --out {out / (file.parent.name or 'more')}"
            )
        if (source := sources.get(made.resolve())) is not None:
            raise CalibrationError(
                f"{source}: {file} would be written over it; give another folder than {out} as --out"
            )
    return {file: made for made, file in taken.items()}


def _region(text: str) -> tuple[int, int, int, int]:
    from calibration.errors import CalibrationError

    try:
        x, y, width, height = (int(number) for number in text.split(","))
    except ValueError as error:
        raise CalibrationError(f"--region {text!r}: expected four whole numbers, x,y,width,height") from error
    return x, y, width, height
