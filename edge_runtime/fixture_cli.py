"""``flawline fixture``: a mark to find parts by, tried on pictures, and data sets cut upright by it (before hop 1)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

if TYPE_CHECKING:
    from contract.dataset import Sample
    from contract.fixture import Placed, Placer

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="""Parts that lie at any turn: found by a mark on them and cut out upright, in data sets and on the line.

\b
From pictures of turned parts to a line that cuts them upright:
  flawline fixture make raw/train/good/0001.png --region 220,140,180,140 --out fixture
  flawline fixture try fixture raw/train/good
  flawline fixture cut fixture --data raw --out parts
  flawline train --data parts --out bundle          the fixture goes into the bundle
  flawline calibrate thresholds bundle --data parts
  fixture = "template" under [[cameras]] in edge.toml
""",
)

Folder = Annotated[
    Path, typer.Argument(metavar="FIXTURE", help="written by make; or a bundle, or a data set cut by one")
]


@app.command()
def make(
    picture: Annotated[Path, typer.Argument(metavar="PICTURE", help="one good part as the camera shows it")],
    region: Annotated[str, typer.Option(metavar="X,Y,W,H", help="what is cut out, in pixels of the picture")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="folder for the fixture")],
    mark: Annotated[
        str | None, typer.Option(metavar="X,Y,W,H", help="what it is found by; default: the region")
    ] = None,
    max_angle: Annotated[float, typer.Option(metavar="DEGREES", help="turned by at most so much, either way")] = 180.0,
    scale_play: Annotated[float, typer.Option(metavar="SHARE", help="the scale may differ by so much; 0: not")] = 0.03,
) -> None:
    """Take a mark from a picture: what is cut out around it, and how far parts may be turned.

    \b
    Example:
      flawline fixture make raw/train/good/0001.png --region 220,140,180,140 --mark 300,160,60,60 --out fixture
    """
    from contract.errors import ConfigError
    from contract.fixture import FILE, make_fixture, write_fixture
    from contract.images import read_image

    if (out / FILE).exists():
        raise ConfigError(f"--out {out}: holds a fixture already; give another folder")
    placer = make_fixture(
        read_image(picture, 1),
        _box(region, "--region"),
        None if mark is None else _box(mark, "--mark"),
        max_angle,
        scale_play,
    )
    write_fixture(out, placer)
    typer.echo(f"{out}: parts are cut out as {placer.fixture.cut_px[0]} x {placer.fixture.cut_px[1]} px")
    typer.echo(f"Next: flawline fixture cut {out} --data DIR --out DIR")


def _box(text: str, option: str) -> tuple[int, int, int, int]:
    from contract.errors import ConfigError

    try:
        x, y, width, height = (int(number) for number in text.split(","))
    except ValueError as error:
        raise ConfigError(f"{option} {text!r}: expected four whole numbers, x,y,width,height") from error
    return x, y, width, height


@app.command(name="try")
def try_it(
    fixture: Folder,
    images: Annotated[list[Path], typer.Argument(metavar="IMAGE", help="image files or folders of them")],
) -> None:
    """Say of each picture how well the part is found in it, how it is turned, or why it is not cut out.

    Exit code 2 where one is not.

    \b
    Example:
      flawline fixture try fixture raw/train/good
    """
    from contract.errors import ImageError
    from contract.fixture import open_fixture
    from contract.images import SUFFIXES, read_image

    placer = open_fixture(fixture)
    files = [file for path in images for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    failed = 0
    for path in (file for file in files if file.suffix.lower() in SUFFIXES or file in images):
        try:
            found = placer.place(read_image(path, 1)).measures
            typer.echo(f"{path}  {_told(found)}")
        except ImageError as error:
            failed += 1
            typer.echo(f"{path}  {error}")
    raise typer.Exit(2 if failed else 0)


def _told(measures: dict[str, float]) -> str:
    return "  ".join(f"{name.partition('.')[2]} {value:.3f}" for name, value in measures.items())


@app.command()
def cut(
    fixture: Folder,
    data: Annotated[Path, typer.Option(metavar="DIR", help="pictures as the camera shows them, and their masks")],
    out: Annotated[Path, typer.Option(metavar="DIR", help="new folder for the cut-out parts")],
) -> None:
    """Cut a data set out upright, masks as well, and learn from its good pictures what the fixture may refuse.

    Pictures in which the part is not found are left out and named, and the exit code is 2 then: on the line they would
    be NOT_INSPECTED.

    \b
    Example:
      flawline fixture cut fixture --data raw --out parts
    """
    from contract.fixture import open_fixture

    told = cut_dataset(open_fixture(fixture), data, out)
    for fault in told.faults:
        typer.echo(f"flawline fixture cut: {fault}", err=True)
    limits = told.placer.fixture
    typer.echo(f"{out}: {told.cut} parts cut out, {len(told.faults)} left out; learnt from {limits.samples} good ones:")
    typer.echo(f"score at least {limits.least_score:.3f}, lead over the next best place {limits.least_lead:.3f}")
    typer.echo(f"Next: flawline train --data {out} --out BUNDLE")
    raise typer.Exit(2 if told.faults else 0)


class Told(NamedTuple):
    """What became of a data set: parts cut out, a sentence for each left out, and the fixture with its limits."""

    cut: int
    faults: list[str]
    placer: Placer


def cut_dataset(placer: Placer, data: Path, out: Path) -> Told:
    """Cut every picture of ``data`` out upright into ``out``, in the MVTec AD layout, with the fixture beside them.

    Raises DatasetError where ``out`` holds something already or no good picture shows the part.
    """
    from contract.dataset import GROUPS_FILE, load_dataset
    from contract.errors import DatasetError, FixtureError, ImageError
    from contract.fixture import FOLDER, Placer, learnt_limits, write_fixture

    if out.exists() and any(out.iterdir()):
        raise DatasetError(f"{out}: the folder is not empty; give one that does not exist yet")
    dataset = load_dataset(data)
    faults: list[str] = []
    good: list[dict[str, float]] = []
    said: dict[str, dict[str, float]] = {}  # of each good part's first picture, on the line a part is one picture
    groups: list[tuple[str, str]] = []
    for target, sample in _targets([*dataset.train, *dataset.test], len(dataset.train)):
        try:
            placed = _cut_one(placer, sample, out, target)
        except ImageError as error:
            if isinstance(error, FixtureError) and target.startswith("train/good/"):
                said.setdefault(sample.group, error.measures)
            faults.append(str(error) if str(sample.path) in str(error) else f"{sample.path}: {error}")
            continue
        groups.append((target, sample.group))
        if target.startswith("train/good/"):
            good.append(placed.measures)
            said.setdefault(sample.group, placed.measures)
    if not good:
        shown = f": {faults[0]}" if faults else ""
        raise DatasetError(f"{data}: in no picture of train/good is the part found{shown}")
    learnt = Placer(learnt_limits(placer.fixture, good), placer.mark)
    write_fixture(out / FOLDER, learnt, list(said.values()))
    if (data / GROUPS_FILE).is_file():
        _write_groups(out / GROUPS_FILE, groups)
    return Told(len(groups), faults, learnt)


def _targets(samples: list[Sample], train: int) -> Iterator[tuple[str, Sample]]:
    """The path of each picture in the new data set, with its old name."""
    for index, sample in enumerate(samples):
        side = "train/good" if index < train else f"test/{sample.label}"
        yield f"{side}/{sample.path.stem}.png", sample


def _cut_one(placer: Placer, sample: Sample, out: Path, target: str) -> Placed:
    """Write one part, and its mask where there is one. Raises ImageError."""
    from contract.errors import ImageError
    from contract.fixture import cut_mask
    from contract.images import encode_png, read_image

    picture = read_image(sample.path, 3)
    grey = bool((picture[..., :1] == picture).all())
    placed = placer.place(picture[..., 0].copy() if grey else picture)
    mask = None if sample.mask is None else read_image(sample.mask, 1)
    if mask is not None and mask.shape != picture.shape[:2]:
        raise ImageError(f"{sample.mask}: {mask.shape[1]} x {mask.shape[0]} px, expected those of {sample.path}")
    path = out / target
    if path.exists():
        raise ImageError(f"{sample.path}: another picture of that name was cut out already; rename one")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encode_png(placed.pixels))
    if mask is not None:
        path = out / "ground_truth" / sample.label / f"{sample.path.stem}_mask.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encode_png(cut_mask(mask, placed)))
    return placed


def _write_groups(path: Path, groups: list[tuple[str, str]]) -> None:
    import csv

    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("file", "group"))
        writer.writerows(groups)
