"""``flawline calibrate``: thresholds for a bundle, and its figures on test images (at the engineer's desk)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from calibration.camera_cli import camera, correct

if TYPE_CHECKING:
    from calibration.calibrate import Proposal
    from contract.release import State
    from edge_runtime.settings import CameraSettings, EdgeSettings

WIDE = 400
app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Set a bundle's thresholds from held-out good images, and measure it on test images.",
)
app.command()(camera)
app.command()(correct)

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
Looks = Annotated[
    Path | None, typer.Option("--looks", metavar="FILE", help="CSV to which every look at test images is appended")
]


@app.command()
def thresholds(
    bundle: BundleFolder,
    data: Annotated[Path | None, typer.Option(metavar="DIR", help="images in the MVTec AD layout")] = None,
    from_verdicts: Annotated[
        str | None, typer.Option(metavar="URL", help="instead of images: a host, or file:PATH of its export")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="from a host: its token (flawline host user token), mode 0600")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="from a host: its certificate, or its signer's, PEM")
    ] = None,
    false_reject_rate: Annotated[
        float | None, typer.Option(help="share of good parts that may be rejected; 0.05 unless said otherwise")
    ] = None,
    review_rate: Annotated[
        float | None, typer.Option(help="share of good parts flagged in all; above the false-reject rate")
    ] = None,
    method: Annotated[
        str | None,
        typer.Option(
            help="conformal (promises the rate on average) or pac (promises it with --confidence); without a promise: "
            "cross, percentile, sigma, pot, f1, cost, value  [default: conformal, or value where --value is given]"
        ),
    ] = None,
    confidence: Annotated[float, typer.Option(help="pac: how sure the rate must be")] = 0.95,
    sigmas: Annotated[float, typer.Option(help="sigma: standard deviations above the mean")] = 3.0,
    value: Annotated[float | None, typer.Option(help="an expert's own limit: reject above this score")] = None,
    fold_bundle: Annotated[
        list[Path] | None, typer.Option(metavar="BUNDLE", help="cross: trained like BUNDLE with another --seed")
    ] = None,
    defects: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="images of defective parts, for f1, cost and --cost-...")
    ] = None,
    looks: Annotated[
        Path | None, typer.Option(metavar="FILE", help="CSV on which defects that are test images go on record")
    ] = None,
    cost_escape: Annotated[float | None, typer.Option(help="what a defective part that passes costs")] = None,
    cost_false_reject: Annotated[float | None, typer.Option(help="what a good part that is rejected costs")] = None,
    cost_review_minute: Annotated[float | None, typer.Option(help="what a minute of an inspector costs")] = None,
    review_minutes: Annotated[float, typer.Option(help="how long an inspector looks at a part")] = 1.0,
    defect_rate: Annotated[float | None, typer.Option(help="share of defective parts on the line")] = None,
    zones: Annotated[
        Path | None, typer.Option(metavar="FILE", help="TOML of masks and zones, see docs/calibration.md")
    ] = None,
    mask: Annotated[
        list[str] | None,
        typer.Option(metavar="VIEW=FILE", help="picture of a view, white where it is inspected, black where not"),
    ] = None,
    level: Annotated[
        str,
        typer.Option(help="regions over the map's normal level at each place: auto (where it serves), always, never"),
    ] = "auto",
    preview: Annotated[bool, typer.Option("--preview", help="show which held-out parts change; write nothing")] = False,
    engine: EngineName = "auto",
    precision: OfGraph = "fp32",
    group_pattern: Pattern = None,
) -> None:
    """Choose the false-reject rate; thresholds and the bounds of a usable picture go into the bundle.

    Uses the good images of train/good whose parts training has never seen. Costs are in any one currency; with a cost
    for an inspector's minute they set the review band, with --method cost both limits.

    \b
    Examples:
      flawline calibrate thresholds bundle --data parts
      flawline calibrate thresholds bundle --data parts --false-reject-rate 0.02 --review-rate 0.1
      flawline calibrate thresholds bundle --data parts --method pac --confidence 0.95
      flawline calibrate thresholds bundle --data parts --method sigma --preview
      flawline calibrate thresholds bundle --data parts --method cost --defects scratched --defect-rate 0.01 \\
          --cost-escape 500 --cost-false-reject 5 --cost-review-minute 0.8
      flawline calibrate thresholds bundle --data parts --zones zones.toml --mask main=label.png

    With --from-verdicts the limits come from what inspectors said of flagged parts and of audited passes, each weighted
    by how likely it was to be shown; refused where no passes were audited (audit_share in edge.toml).

    \b
      flawline calibrate thresholds bundle --from-verdicts https://host.plant.local:8765 --token-file host.token
      flawline calibrate thresholds bundle --from-verdicts file:verdicts.jsonl --preview
    """
    if from_verdicts is not None:
        of_images = {
            "--data": data,
            "--method": method,
            "--value": value,
            "--fold-bundle": fold_bundle,
            "--defects": defects,
            "--looks": looks,
            "--cost-escape": cost_escape,
            "--cost-false-reject": cost_false_reject,
            "--cost-review-minute": cost_review_minute,
            "--defect-rate": defect_rate,
            "--group-pattern": group_pattern,
            "--zones": zones,
            "--mask": mask,
        }
        _refuse_given("--from-verdicts", of_images)
        source = (from_verdicts, token_file, ca)
        _from_verdicts(bundle, source, (false_reject_rate, review_rate), engine, precision, preview)
        return
    _refuse_given("without --from-verdicts", {"--token-file": token_file, "--ca": ca})
    if data is None:
        raise _error("give --data DIR with images of good parts, or --from-verdicts URL with inspectors' verdicts")
    from calibration.calibrate import propose, told, write
    from calibration.costs import costs_from
    from calibration.methods import METHODS, Choice, Rates
    from calibration.places import Where, as_use, dropped
    from calibration.report import EXCHANGEABLE, summary
    from contract.bundle import as_precision

    name = method or ("conformal" if value is None else "value")
    rated = name not in METHODS or METHODS[name].rated
    choice = Choice(
        method=name,
        confidence=confidence,
        sigmas=sigmas,
        value=value,
        costs=costs_from(cost_escape, cost_false_reject, cost_review_minute, review_minutes, defect_rate),
        defects=tuple(defects or ()),
        looks=looks,
        folds=tuple(fold_bundle or ()),
    )
    rates = Rates(0.05 if false_reject_rate is None and rated else false_reject_rate, review_rate)
    where = Where(zones, tuple(mask or ()), as_use(level))
    lost = dropped(bundle, where)
    found = propose(bundle, data, rates, engine, group_pattern, as_precision(precision), choice, where)
    _print(None, [*summary(found.thresholds), *told(found.measured)])
    if lost:
        typer.echo(lost)
    if choice.costs is not None and choice.costs.review is not None and found.thresholds.review is None:
        typer.echo("no review band: with these costs and defects no look pays")
    if preview:
        _preview(found)
    else:
        report = write(found)
        typer.echo(f"picture bounds from {found.quality.samples} good images; report: {report}")
        _say_draft(found.bundle.state, bundle)
    typer.echo(EXCHANGEABLE)


def _say_draft(before: State, bundle: Path) -> None:
    from contract.release import draft_again

    if said := draft_again(before, str(bundle)):
        typer.echo(said)


def _from_verdicts(
    bundle: Path,
    source: tuple[str, Path | None, Path | None],
    rates: tuple[float | None, float | None],
    engine: str,
    precision: str,
    preview: bool,
) -> None:
    from calibration.exports import Source
    from calibration.methods import Rates
    from calibration.report import EXCHANGEABLE
    from calibration.verdicts import CHANGES_HEADER, changes, limit_rows, recalibrate, rows, write
    from contract.bundle import as_precision

    found = recalibrate(bundle, Source(*source), Rates(*rates), engine, as_precision(precision))
    _print(None, [*limit_rows(found), *rows(found)])
    if preview:
        listed = changes(found)
        typer.echo(f"{len(listed)} judged parts would change their verdict{':' if listed else '.'}")
        if listed:
            _print(CHANGES_HEADER, listed)
        typer.echo("Nothing was written: leave out --preview to write it.")
    else:
        typer.echo(f"report: {write(found)}")
    typer.echo(EXCHANGEABLE)


def _refuse_given(what: str, options: Mapping[str, object]) -> None:
    """Raise CalibrationError where an option is given that goes with something else."""
    if given := [name for name, value in options.items() if value not in (None, [])]:
        raise _error(f"{', '.join(given)}: not {what if what.startswith('without') else f'with {what}'}; leave it out")


def _error(text: str) -> Exception:
    from calibration.errors import CalibrationError

    return CalibrationError(text)


def _preview(proposal: Proposal) -> None:
    from calibration.preview import HEADER, changes, preview_rows

    _print(None, preview_rows(proposal))
    found = changes(proposal)
    total = len(proposal.measured.scores)
    typer.echo(f"{len(found)} of {total} held-out images would change their verdict{':' if found else '.'}")
    if found:
        _print(HEADER, [(c.file, c.group, f"{c.score:.6g}", c.now, c.then) for c in found])
    typer.echo("Nothing was written: leave out --preview to write it.")


@app.command()
def int8(
    bundle: BundleFolder,
    data: Data,
    false_reject_rate: Annotated[
        float | None, typer.Option(help="sets the limits to compare verdicts at; default: the bundle's, else 0.05")
    ] = None,
    engine: EngineName = "auto",
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="the figures, also where refused")] = None,
    looks: Looks = None,
    group_pattern: Pattern = None,
) -> None:
    """Make an INT8 graph of the bundle's FP32 graph; it goes into the bundle only if it agrees with FP32.

    Ranges and the layers that stay FP32 come from good images of train/good that training saw. Held-out good images,
    and test/good and test/<defect> where they are given, decide: rank correlation, verdicts at the limit, AUROC. That
    is a look at test images, which --looks puts on record.

    \b
    Examples:
      flawline calibrate int8 bundle --data parts
      flawline calibrate int8 bundle --data parts --engine tensorrt --json int8.json
    """
    from json import dumps

    from calibration.errors import CalibrationError
    from calibration.int8 import make_int8

    tried = make_int8(bundle, data, false_reject_rate, engine, group_pattern, looks)
    if json is not None:
        _write(json, dumps(tried.fields(), indent=1, allow_nan=False) + "\n")
    for line in tried.lines():
        typer.echo(line)
    if tried.test_images:
        where = "--looks FILE puts that on record" if looks is None else f"on record in {looks}"
        typer.echo(f"{tried.test_images} test images were looked at to decide: {where}")
    if tried.faults:
        raise CalibrationError(
            f"INT8 is refused and the bundle as it was: {'; '.join(tried.faults)}. Stay with precision = 'fp32', or "
            "'fp16' on a graphics card"
        )
    typer.echo(
        f"the bundle has an INT8 graph; next: flawline calibrate thresholds {bundle} --data {data} "
        f"--engine {tried.golden.engine} --precision int8"
    )
    _say_draft(tried.was, bundle)


@app.command()
def evaluate(
    bundle: BundleFolder,
    data: Data,
    json: Annotated[Path, typer.Option("--json", metavar="FILE", help="the figures, for machines")],
    html: Annotated[Path | None, typer.Option("--html", metavar="FILE", help="the figures as a page")] = None,
    looks: Looks = None,
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


@app.command()
def capability(
    bundle: BundleFolder,
    data: Data,
    html: Annotated[Path, typer.Option("--html", metavar="FILE", help="the page, to be read and signed")],
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="the figures, for machines")] = None,
    implant: Annotated[
        list[str] | None,
        typer.Option(metavar="KIND", help="spot or scratch, drawn into good pictures; may be given again"),
    ] = None,
    implants: Annotated[int, typer.Option(min=1, help="defects implanted of each kind")] = 200,
    contrast: Annotated[float, typer.Option(min=1, max=255, help="grey levels that implants are off")] = 40.0,
    sizes: Annotated[str, typer.Option(metavar="LOW:HIGH", help="extents of implants, pixels of the picture")] = "2:32",
    region: Annotated[
        str, typer.Option(metavar="X,Y,W,H", help="where implants have their middle, as fractions of the picture")
    ] = "0.15,0.15,0.7,0.7",
    seed: Annotated[int, typer.Option(min=0, help="of the implants")] = 1,
    repeats: Annotated[
        Path | None, typer.Option(metavar="DIR", help="pictures taken by flawline calibrate repeats")
    ] = None,
    looks: Looks = None,
    engine: EngineName = "auto",
    precision: OfGraph = "fp32",
    group_pattern: Pattern = None,
) -> None:
    """How small a defect is found: detection rate by size with a90/95, agreement of repeats, errors with intervals.

    From the defects of test/<defect> that have a mask, and from defects drawn into good pictures. A defect is
    detected where its part is rejected or sent to review.

    \b
    Examples:
      flawline calibrate capability bundle --data parts --html capability.html
      flawline calibrate capability bundle --data parts --html c.html --implant spot --implant scratch --sizes 2:24
      flawline calibrate capability bundle --data parts --html capability.html --repeats repeats
    """
    from json import dumps

    from calibration.capability import Implants, measure
    from calibration.capability_page import DETECTION_HEADER, capability_page, detection_rows, error_rows
    from calibration.evaluate import log_look
    from contract.bundle import as_precision

    asked = None
    if implant:
        low, high = _numbers("--sizes", sizes, ":", 2)
        x, y, w, h = _numbers("--region", region, ",", 4)
        asked = Implants(tuple(implant), implants, contrast, (low, high), (x, y, w, h), seed)
    result = measure(bundle, data, engine, group_pattern, as_precision(precision), asked, repeats)
    _write(html, capability_page(result))
    if json is not None:
        _write(json, dumps(result.document(), indent=1, allow_nan=False) + "\n")
    if looks is not None and result.evaluation is not None:
        log_look(looks, result.evaluation.figures)
    _print(None, error_rows(result))
    _print(DETECTION_HEADER, detection_rows(result))
    typer.echo(f"page: {html}")


@app.command()
def repeats(
    bundle: BundleFolder,
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="where the pictures go, and where they go on")],
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="edge.toml: its camera as the edge is set up")
    ] = None,
    camera: Annotated[str | None, typer.Option(metavar="ID", help="which of edge.toml's cameras")] = None,
    url: Annotated[str | None, typer.Option(metavar="URL", help="a camera without an edge.toml: usb://0, ...")] = None,
    parts: Annotated[int, typer.Option(min=1, help="how many parts; some near the limit say most")] = 10,
    times: Annotated[int, typer.Option(min=2, help="how often each")] = 10,
    lying: Annotated[
        bool, typer.Option("--lying", help="each part lies before the camera, which takes its pictures one by one")
    ] = False,
    ask: Annotated[
        bool | None,
        typer.Option("--ask/--no-ask", help="wait for Enter before each part  [default: unless it is a recording]"),
    ] = None,
    json: Annotated[Path | None, typer.Option("--json", metavar="FILE", help="the figures, for machines")] = None,
    engine: Annotated[str | None, typer.Option(help="the line's  [default: edge.toml's, or auto]")] = None,
    precision: Annotated[str | None, typer.Option(help="of the graph  [default: edge.toml's, or fp32]")] = None,
) -> None:
    """Put some parts before the line's camera ten times each: how well verdict and score repeat.

    Taken, cut and judged as the edge does; stop the edge first where both would open one camera. Pictures are kept:
    the same command goes on where it was interrupted, and a part whose folder is removed is taken again.

    \b
    Examples:
      flawline calibrate repeats bundle --config edge.toml --out repeats
      flawline calibrate repeats bundle --config edge.toml --out lying --lying --parts 5
      flawline calibrate repeats bundle --url "synthetic://line?seed=7&parts=10&repeat=10&fps=50" --out repeats
      flawline calibrate capability bundle --data parts --html capability.html --repeats repeats
    """
    from json import dumps

    from calibration.capability_page import REPEAT_HEADER, part_rows, repeats_rows
    from calibration.repeats import Asked, judge, take
    from contract.bundle import as_precision, open_bundle
    from edge_runtime.cameras import is_live
    from edge_runtime.recipes import refuse_unfit

    opened = open_bundle(bundle)
    settings = _edge_of(bundle, config, url)
    if precision is not None:
        settings = settings.model_copy(update={"precision": as_precision(precision)})
    refuse_unfit(opened, settings)
    chosen = _one_camera(settings, camera)
    if lying:
        chosen = chosen.model_copy(update={"trigger": "every-frame"})

    def await_part(part: int) -> None:
        how = "lay it before the camera" if lying else f"put it before the camera {times} times"
        input(f"Part {part} of {parts}: {how}. Enter begins ")

    wait = await_part if (is_live(chosen.url) if ask is None else ask) else None
    take(opened, Asked(chosen, parts, times, lying), out, typer.echo, wait)
    result = judge(opened, out, engine or settings.engine, settings.precision)
    if json is not None:
        _write(json, dumps(result.fields(), indent=1, allow_nan=False) + "\n")
    _print(REPEAT_HEADER, part_rows(result))
    _print(None, repeats_rows(result))
    typer.echo(f"onto the page: flawline calibrate capability {bundle} --data DIR --html FILE --repeats {out}")


@app.command()
def replay(
    bundle: Annotated[Path, typer.Argument(metavar="BUNDLE", help="the candidate")],
    archive: Annotated[
        str, typer.Option(metavar="URL", help="a folder of pictures (any layout, any size), or https://HOST:PORT")
    ],
    out: Annotated[Path, typer.Option(metavar="DIR", help="for the page, the figures and every part's verdicts")],
    against: Annotated[
        Path | None, typer.Option(metavar="CURRENT", help="the current bundle; a host's parts: else what was recorded")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(metavar="FILE", help="from a host: its token (flawline host user token), mode 0600")
    ] = None,
    ca: Annotated[
        Path | None, typer.Option(metavar="FILE", help="from a host: its certificate, or its signer's, PEM")
    ] = None,
    recipe: Annotated[str | None, typer.Option(metavar="NAME", help="from a host: parts of this recipe alone")] = None,
    since: Annotated[str | None, typer.Option(metavar="TIME", help="from a host: captured then or later (UTC)")] = None,
    until: Annotated[str | None, typer.Option(metavar="TIME", help="from a host: captured before")] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, max=1024, help="processes  [default: one for each core]")
    ] = None,
    ray: Annotated[
        str | None, typer.Option(metavar="ADDRESS", help="on a Ray cluster: HOST:PORT, auto, or local")
    ] = None,
    engine: EngineName = "auto",
    precision: OfGraph = "fp32",
) -> None:
    """Score an archive again with a candidate beside the current bundle: what would change, before it is live.

    OUT gets replay.html with pictures of the largest changes, replay.json, and parts.jsonl with every part of the
    archive once. What is done is kept in OUT/work: the same command goes on where it was interrupted.

    \b
    Examples:
      flawline calibrate replay candidate --against bundle --archive parts --out replay
      flawline calibrate replay candidate --archive https://host.plant.local:8765 --token-file host.token --out replay
      flawline calibrate replay candidate --against bundle --archive /mnt/archive --ray head:6379 --out replay
    """
    from json import dumps

    from calibration.archive import Place, folder_of
    from calibration.exports import Source
    from calibration.progress import counted
    from calibration.replay import Run, document, pictures, whole
    from calibration.replay import replay as run
    from calibration.replay_page import draw, rate_rows, replay_page, rows
    from calibration.rescoring import Scoring
    from contract.bundle import as_precision, open_bundle

    asked = {"recipe": recipe, "since": since, "until": until}
    views = open_bundle(bundle).manifest.recipe.views
    place = Place(
        Source(archive, token_file, ca),
        len({view.camera for view in views}) > 1,
        tuple((name, value) for name, value in asked.items() if value is not None),
    )
    if not place.is_host:
        if against is None:
            raise _error("a folder has no verdicts on record: give the bundle to compare with, --against CURRENT")
        given = {f"--{name}": value for name, value in asked.items()}
        _refuse_given("without a host", given | {"--token-file": token_file, "--ca": ca})
        place = place._replace(source=Source(str(folder_of(archive))))  # wherever the command is given again
    scoring = Scoring(bundle.resolve(), against and against.resolve(), place, engine, as_precision(precision))
    way: Run = whole
    if ray is not None:
        from calibration.replay_ray import on_ray

        way = on_ray(ray)
    try:
        with counted("scoring the archive") as heard:
            found = run(scoring, out, workers, way, heard)
    except KeyboardInterrupt as stop:
        typer.echo(f"\ninterrupted; what is done is kept in {out}: the same command goes on from there", err=True)
        raise typer.Exit(130) from stop
    _write(out / "replay.json", dumps(document(found), indent=1, allow_nan=False) + "\n")
    _write(out / "replay.html", replay_page(found, pictures(found, draw)))
    _print(None, rows(found))
    _print(("flagged", "current", "candidate"), rate_rows(found))
    typer.echo(f"page: {out / 'replay.html'}")


def _edge_of(bundle: Path, config: Path | None, url: str | None) -> EdgeSettings:
    """The edge whose camera takes the pictures. Raises ConfigError."""
    from contract.errors import ConfigError
    from edge_runtime.settings import CameraSettings, EdgeSettings, load_settings

    if (config is None) == (url is None):
        raise ConfigError("give --config edge.toml, or --url URL for a camera without one")
    if config is not None:
        return load_settings(config)
    return EdgeSettings(edge_id="repeats", bundle=bundle, cameras=[CameraSettings(id="top", url=url or "")])


def _one_camera(settings: EdgeSettings, camera: str | None) -> CameraSettings:
    from contract.errors import ConfigError

    found = [each for each in settings.cameras if camera in (None, each.id)]
    if len(found) != 1:
        known = ", ".join(each.id for each in settings.cameras)
        raise ConfigError(f"{f'no camera {camera!r}' if camera else 'several cameras'}: --camera ID, of {known}")
    return found[0]


def _numbers(option: str, text: str, between: str, count: int) -> list[float]:
    """``count`` numbers of an option; raises CalibrationError."""
    from calibration.errors import CalibrationError

    try:
        found = [float(each) for each in text.split(between)]
    except ValueError:
        found = []
    if len(found) != count:
        raise CalibrationError(f"{option} {text!r}: expected {count} numbers with {between!r} between them")
    return found


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
