"""``flawline host export``: what inspectors said, as a file or a data set for the engineer's desk (after hop 12)."""

from __future__ import annotations

from contextlib import closing
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contract.errors import ConfigError

if TYPE_CHECKING:
    from plugin.finder import Filter, Finder
    from plugin.settings import HostSettings

MOMENTS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]
HELP = """Write what inspectors said: verdicts for a calibration, or a data set with pictures for training.

--as verdicts (unless said otherwise) writes a file for `flawline calibrate thresholds BUNDLE --from-verdicts file:OUT`:
JSON lines, every part that inspectors were to judge (flagged ones, and passed ones drawn for the audit), its score,
what judged it, what an inspector said, and the probability with which it was shown.

--as mvtec, coco or fiftyone writes a folder: pictures of parts that an inspector called good or defective, and
manifest.json, which names part, edge, bundle, inspector, time and sha256 of each. What nobody has settled is left out
and counted. `flawline train` and `flawline calibrate` read the mvtec folder.

Works whether or not the host runs; a running one gives the same at /api/v1/export.

\b
Examples:
  flawline host export host.toml verdicts.jsonl
  flawline host export host.toml washers --as mvtec --recipe washer --since 2026-11-01
  flawline host export host.toml washers-coco --as coco --line line-1
  flawline host export host.toml washers-51 --as fiftyone --edge edge-1
"""


def export(
    config: Annotated[Path, typer.Argument(metavar="CONFIG", help="host.toml", show_default=False)],
    out: Annotated[
        Path,
        typer.Argument(
            metavar="OUT", help="file that is not there yet, or folder that is empty or not there", show_default=False
        ),
    ],
    kind: Annotated[str, typer.Option("--as", help="verdicts, mvtec, coco or fiftyone")] = "verdicts",
    since: Annotated[datetime | None, typer.Option(formats=MOMENTS, help="captured then or later, UTC")] = None,
    until: Annotated[datetime | None, typer.Option(formats=MOMENTS, help="captured before, UTC")] = None,
    line: Annotated[str | None, typer.Option(help="of this line's edges only")] = None,
    edge: Annotated[str | None, typer.Option(help="of this edge only")] = None,
    recipe: Annotated[str | None, typer.Option(help="of this recipe only")] = None,
    lot: Annotated[str | None, typer.Option(help="of this lot only")] = None,
    test_share: Annotated[float, typer.Option(min=0, max=1, help="of good parts, kept for tests")] = 0.2,
    masks: Annotated[
        bool, typer.Option("--machine-masks", help="mvtec: also the machine's maps as ground_truth")
    ] = False,
) -> None:
    """Read the store page by page."""
    from plugin.database import place_of, shown_as, upgraded
    from plugin.finder import Filter, Finder
    from plugin.settings import load_settings

    settings = load_settings(config)
    store = place_of(settings.state_dir, settings.store.url, settings.store.password_file)
    if isinstance(store, Path) and not store.is_file():
        raise ConfigError(f"{store}: there is no store; a host writes it: flawline host run {config}")
    with closing(Finder(store)) as finder:
        if not upgraded(store):
            raise ConfigError(
                f"{shown_as(store)}: written by an older Flawline; start the host once: flawline host run {config}"
            )
        if kind == "verdicts":
            if any((since, until, line, edge, recipe, lot, masks)):
                raise ConfigError("verdicts are exported whole; --since and the like are for data sets")
            _write_verdicts(finder, out)
            return
        edges = None if edge is None else [edge]
        if line is not None:
            edges = [each for each in edges or finder.edges_heard() if settings.line_of(each).id == line]
        _write_dataset(finder, settings, out, kind, Filter(since, until, edges, recipe, lot=lot), test_share, masks)


def _write_verdicts(finder: Finder, file: Path) -> None:
    from contract.verdicts import MAX_PAGE

    shown, judged, after = 0, 0, 0
    try:
        with file.open("x", encoding="utf-8") as output:
            more = True
            while more:
                page = finder.verdicts(after, MAX_PAGE)
                output.write(page.model_dump_json(exclude_none=True) + "\n")
                shown += len(page.parts)
                judged += sum(part.judged is not None for part in page.parts)
                more, after = page.next is not None, page.next or 0
    except FileExistsError as error:
        raise ConfigError(f"{file}: exists already; nothing was written") from error
    except OSError as error:
        raise ConfigError(f"{file}: cannot be written ({error.strerror or error})") from error
    typer.echo(f"Wrote {shown} part(s) that inspectors were to judge, {judged} of them judged, to {file}")


def _write_dataset(
    finder: Finder, settings: HostSettings, out: Path, kind: str, parts: Filter, test_share: float, masks: bool
) -> None:
    import sys

    from plugin import datasets
    from plugin.blob_places import open_blobs
    from plugin.layouts import LAYOUTS

    if kind not in LAYOUTS:
        raise ConfigError(f"--as {kind}: there are: verdicts, {', '.join(LAYOUTS)}")
    wanted = datasets.Wanted(kind, parts, test_share, masks, tuple(settings.review.classes))
    pictures, _ = finder.settled_size(parts)
    with typer.progressbar(length=pictures, label=f"Writing {pictures} picture(s)", file=sys.stderr) as bar:
        found = datasets.files(finder, open_blobs(settings).read, wanted, lambda: bar.update(1))
        made = datasets.write_folder(found, out)
    typer.echo(f"Wrote {out}: {_listed(made['counts']) or 'no part that an inspector settled'}")
    if made["left_out"]:
        typer.echo(f"Left out: {_listed(made['left_out'])}")


def _listed(counts: dict[str, int]) -> str:
    return ", ".join(f"{number} {name}" for name, number in counts.items())
