"""``flawline data``: options, help, and the report on the terminal (before hop 1)."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from training.data_check import Examination

WIDE = 200
SHOWN_FILES = 3

app = typer.Typer(
    no_args_is_help=True,
    help="Look at a data folder before a model does.",
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    add_completion=False,
)


@app.callback()
def data() -> None:
    """Look at a data folder before a model does."""


@app.command()
def check(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="images, MVTec AD layout, or just images")],
    json_file: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="the findings, for machines")] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="the findings as a page, with pictures")] = None,
    group_pattern: Annotated[
        str | None, typer.Option(metavar="RE", help=r"names the part in a file name: 'part(\d+)_'")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="exit with 1 for warnings too")] = False,
) -> None:
    """Damaged files, masks, one part in train and in test, light that gives the answer away, too few parts.

    Reads every image once and opens test images with their labels: nothing may be chosen by what it prints. Exit
    code 0 where nothing is worse than a warning, 1 where there are errors, 2 where DIR cannot be examined.

    \b
    Examples:
      flawline data check parts
      flawline data check parts --html parts.html       the pairs beside each other, histograms
      flawline data check parts --json parts.json --strict
    """
    from rich.console import Console

    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = WIDE  # a file or a pipe has no width to keep to
    found = _examine(folder, group_pattern)
    if json_file is not None:
        _write(json_file, json.dumps(found.document(), indent=1, allow_nan=False) + "\n")
    if html is not None:
        from training.data_page import page

        _write(html, page(found))
    _print(console, found)
    levels = {"error", "warning"} if strict else {"error"}
    raise typer.Exit(1 if found.worst() in levels else 0)


def _examine(folder: Path, group_pattern: str | None) -> Examination:
    """The examination, under a bar on stderr where that is a terminal."""
    from rich.console import Console
    from rich.progress import Progress

    from training.data_check import check as run

    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bar:
        task = bar.add_task("Listing files", total=None)

        def tell(stage: str, done: int, of: int) -> None:
            bar.update(task, description=stage, completed=done, total=of or None)

        return run(folder, group_pattern, tell)


def _write(path: Path, text: str) -> None:
    from contract.bundle import write_atomic
    from contract.errors import ConfigError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.encode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error})") from error


COLOURS = {"error": "bold red", "warning": "yellow", "note": "cyan"}


def _print(console: Console, found: Examination) -> None:
    from rich.table import Table

    counts = ", ".join(f"{label} {count}" for label, count in found.counts.items() if label != "train")
    console.print(f"{found.root}: {found.counts['train']} good images to learn from; test: {counts or 'none'}")
    console.print(f"parts: {found.grouping}")
    if found.baselines:
        console.print(
            "\nWhat needs no model: image AUROC on the test images. A model must beat it; choose nothing by it."
        )
        console.print(_baselines(found))
    console.print()
    table = Table.grid(padding=(0, 2))
    for finding in found.findings:
        table.add_row(finding.level.value, finding.what, style=COLOURS[finding.level.value])
        if finding.files:
            more = f" and {len(finding.files) - SHOWN_FILES} more" if len(finding.files) > SHOWN_FILES else ""
            table.add_row("", ", ".join(finding.files[:SHOWN_FILES]) + more)
        if finding.way_out:
            table.add_row("", f"-> {finding.way_out}")
    console.print(table)
    levels = found.document()["levels"]
    console.print("\n" + ", ".join(f"{count} {level}{'' if count == 1 else 's'}" for level, count in levels.items()))


def _baselines(found: Examination) -> Table:
    from rich.table import Table

    classes = list(found.baselines[0].classes)
    table = Table("", "all", *classes, box=None, pad_edge=False, caption="* the better of both directions")
    table.caption_justify = "left"
    for row in found.baselines:
        figures = [row.overall, *(row.classes[name] for name in classes)]
        table.add_row(row.name + (" *" if row.free else ""), *(f"{figure:.3f}" for figure in figures))
    return table
