"""``flawline calibrate``: thresholds for a bundle, and its figures on test images (at the engineer's desk)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

WIDE = 400
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Set a bundle's thresholds from held-out good images, and measure it on test images.",
)

BundleFolder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="folder written by flawline train")]
Data = Annotated[Path, typer.Option("--data", metavar="DIR", help="images in the MVTec AD layout")]
EngineName = Annotated[
    str, typer.Option("--engine", help="auto, tensorrt, tensorrt-rtx, openvino or onnxruntime: the line's")
]
OfGraph = Annotated[
    str, typer.Option("--precision", help="fp32, fp16 or int8: which of the bundle's graphs the line runs")
]
Pattern = Annotated[
    str | None, typer.Option("--group-pattern", metavar="RE", help="its first brackets name the part in a file name")
]


@app.command()
def thresholds(
    bundle: BundleFolder,
    data: Data,
    false_reject_rate: Annotated[float, typer.Option(help="share of good parts that may be rejected")] = 0.05,
    review_rate: Annotated[
        float | None, typer.Option(help="share of good parts flagged in all; above the false-reject rate")
    ] = None,
    engine: EngineName = "auto",
    precision: OfGraph = "fp32",
    group_pattern: Pattern = None,
) -> None:
    """Choose the false-reject rate; thresholds and the bounds of a usable picture go into the bundle.

    Uses the good images of train/good whose parts training has never seen.

    \b
    Examples:
      flawline calibrate thresholds bundle --data parts
      flawline calibrate thresholds bundle --data parts --false-reject-rate 0.02 --review-rate 0.1
    """
    from calibration.calibrate import Rates, calibrate
    from calibration.report import EXCHANGEABLE, summary
    from contract.bundle import as_precision

    result = calibrate(
        bundle, data, Rates(false_reject_rate, review_rate), engine, group_pattern, as_precision(precision)
    )
    _print(None, summary(result.thresholds))
    typer.echo(f"picture bounds from {result.quality.samples} good images; report: {result.report}")
    typer.echo(EXCHANGEABLE)


@app.command()
def int8(
    bundle: BundleFolder,
    data: Data,
    false_reject_rate: Annotated[
        float | None, typer.Option(help="sets the limits to compare verdicts at; default: the bundle's, else 0.05")
    ] = None,
    engine: EngineName = "auto",
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="the figures, also where refused")] = None,
    group_pattern: Pattern = None,
) -> None:
    """Make an INT8 graph of the bundle's FP32 graph; it goes into the bundle only if it agrees with FP32.

    Ranges and the layers that stay FP32 come from good images of train/good that training saw. Held-out good images,
    and test/good and test/<defect> where they are given, decide: rank correlation, verdicts at the limit, AUROC.

    \b
    Examples:
      flawline calibrate int8 bundle --data parts
      flawline calibrate int8 bundle --data parts --engine tensorrt --json int8.json
    """
    from json import dumps

    from calibration.errors import CalibrationError
    from calibration.int8 import make_int8

    tried = make_int8(bundle, data, false_reject_rate, engine, group_pattern)
    if json is not None:
        _write(json, dumps(tried.fields(), indent=1, allow_nan=False) + "\n")
    for line in tried.lines():
        typer.echo(line)
    if tried.faults:
        raise CalibrationError(
            f"INT8 is refused and the bundle as it was: {'; '.join(tried.faults)}. Stay with precision = 'fp32', or "
            "'fp16' on a graphics card"
        )
    typer.echo(
        f"the bundle has an INT8 graph; next: flawline calibrate thresholds {bundle} --data {data} "
        f"--engine {tried.golden.engine} --precision int8"
    )


@app.command()
def evaluate(
    bundle: BundleFolder,
    data: Data,
    json: Annotated[Path, typer.Option("--json", metavar="FILE", help="the figures, for machines")],
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="the figures as a page")] = None,
    looks: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV to which every look at test images is appended")
    ] = None,
    engine: EngineName = "auto",
    precision: OfGraph = "fp32",
    group_pattern: Pattern = None,
) -> None:
    """Inspect test/good and test/<defect> as the line would; false rejects, escapes and the field's metrics.

    \b
    Example:
      flawline calibrate evaluate bundle --data parts --json figures.json --html figures.html
    """
    from json import dumps

    from calibration.evaluate import evaluate as run
    from calibration.evaluate import log_look
    from calibration.report import CLASS_HEADER, class_rows, evaluation_page, evaluation_rows
    from contract.bundle import as_precision

    result = run(bundle, data, engine, group_pattern, as_precision(precision))
    _write(json, dumps(result.figures, indent=1, allow_nan=False) + "\n")
    if html is not None:
        _write(html, evaluation_page(result.figures, result.scores))
    if looks is not None:
        log_look(looks, result.figures)
    _print(None, evaluation_rows(result.figures))
    if result.figures["classes"]:
        _print(CLASS_HEADER, class_rows(result.figures))


def _write(path: Path, text: str) -> None:
    from contract.bundle import write_atomic
    from contract.errors import ConfigError

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, text.encode())
    except OSError as error:
        raise ConfigError(f"{path}: cannot be written ({error.strerror or error})") from error


def _print(header: Sequence[str] | None, rows: Sequence[Sequence[str]]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*(header or ("", "")), box=None, show_header=header is not None, pad_edge=False)
    for row in rows:
        table.add_row(*row)
    console = Console(markup=False, highlight=False)
    if not console.is_terminal:
        console.width = WIDE  # a file or a pipe has no width to keep to
    console.print(table)
