"""``flawline doctor``: what this machine has, what it lacks and the way out (before hop 1)."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from contract.errors import FlawlineError
from edge_runtime.checks.base import Finding, Status, Subject, settings_of, settings_or_none
from edge_runtime.checks.cameras import check_cameras
from edge_runtime.checks.machine import check_clock, check_disk, check_shared_memory
from edge_runtime.checks.network import check_keys, check_ports
from edge_runtime.errors import EngineError

if TYPE_CHECKING:
    from contract.bundle import Bundle, Precision
    from edge_runtime.settings import EdgeSettings

app = typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False)

# import name -> package to install, for each extra
EXTRAS = {
    "edge": {
        "cv2": "opencv-python-headless",
        "onnxruntime": "onnxruntime",
        "cryptography": "cryptography",
        "prometheus_client": "prometheus-client",
    },
    "host": {"fastapi": "fastapi", "uvicorn": "uvicorn", "jinja2": "jinja2", "sqlalchemy": "sqlalchemy"},
    "train": {"torch": "torch", "lightning": "lightning", "onnx": "onnx", "onnxscript": "onnxscript"},
    "calibrate": {"cv2": "opencv-python-headless", "onnxruntime": "onnxruntime", "onnx": "onnx"},
}
MIN_PYTHON = (3, 11)


def check_python(_: Subject) -> Iterator[Finding]:
    """Interpreter and platform."""
    found = f"{platform.python_version()} on {platform.system()} {platform.machine()}, {os.cpu_count()} core(s)"
    good = sys.version_info[:2] >= MIN_PYTHON
    yield Finding("python", Status.OK if good else Status.FAIL, found, "" if good else "install Python 3.11 or newer")


def check_extras(_: Subject) -> Iterator[Finding]:
    """Which extras are there, whole or in part; none of them is needed by everyone."""
    for extra, modules in EXTRAS.items():
        missing = [package for module, package in modules.items() if importlib.util.find_spec(module) is None]
        status = Status.WARN if missing else Status.OK
        found = f"missing: {', '.join(missing)}" if missing else "installed"
        yield Finding(f"extra {extra}", status, found, f"pip install 'flawline[{extra}]'" if missing else "")


def check_engines(_: Subject) -> Iterator[Finding]:
    """Every engine of the table runs a tiny graph; at least one has to."""
    from edge_runtime.engines import AUTO_ORDER, ENGINES, ON_A_CARD, PACKAGES, choose, installed, obstacle

    working = 0
    for name in ENGINES:
        if not installed(name):
            # Most machines have no graphics card, and nothing is amiss there.
            status = Status.OK if name in ON_A_CARD else Status.WARN
            yield Finding(f"engine {name}", status, "not installed", f"pip install 'flawline[{PACKAGES[name][1]}]'")
            continue
        why = obstacle(name)
        if why is not None:
            found, way_out = why.partition("; ")[::2]
            yield Finding(f"engine {name}", Status.WARN, f"installed, but {found}", way_out)
            continue
        finding = _try_engine(name)
        working += finding.status is Status.OK
        yield finding
    if working:
        yield Finding("engine auto", Status.OK, f"stands for {choose('auto')} here")
    else:
        yield Finding(
            "engine auto", Status.FAIL, f"none of {', '.join(AUTO_ORDER)} works", "pip install 'flawline[edge]'"
        )


def _try_engine(name: str) -> Finding:
    from edge_runtime.engines import probe

    try:
        return Finding(f"engine {name}", Status.OK, probe(name))
    except FlawlineError as error:
        return Finding(f"engine {name}", Status.FAIL, str(error), "reinstall it: pip install -U 'flawline[edge]'")


def check_gpu(_: Subject) -> Iterator[Finding]:
    """Graphics card, and how TensorRT would reach it; the other engines need none."""
    from edge_runtime.engines.cuda import card, serving_adapter

    try:
        on = card()
    except EngineError as error:
        found, way_out = str(error).partition("; ")[::2]
        yield Finding("graphics card", Status.OK, f"{found} (only TensorRT needs it)", way_out)
        return
    found = f"{on.name}, {on.memory_mb} MB, compute capability {on.compute}, driver {on.driver}, CUDA {on.cuda}"
    yield Finding("graphics card", Status.OK, found)
    try:
        yield Finding("CUDA from Python", Status.OK, serving_adapter())
    except EngineError as error:
        found, way_out = str(error).partition(": ")[::2]
        yield Finding("CUDA from Python", Status.WARN, found, way_out)


def check_config(subject: Subject) -> Iterator[Finding]:
    """The edge's configuration: every key, and every camera's URL."""
    if subject.config is None:
        return
    try:
        settings = settings_of(subject)
    except FlawlineError as error:
        yield Finding("config", Status.FAIL, str(error), "correct the file; `flawline edge init` writes an example")
        return
    if settings is None:
        return
    yield Finding("config", Status.OK, f"{subject.config}: {len(settings.cameras)} camera(s)")


def check_release(subject: Subject) -> Iterator[Finding]:
    """Whether unreleased bundles could run on this edge, and whether those configured are released."""
    settings = settings_or_none(subject)
    if settings is None:
        return
    if settings.mode != "production":
        found = "trial: every calibrated bundle runs, whoever made it"
        way_out = 'in a plant set mode = "production" and trusted = "signers" under [bundles]; flawline bundle --help'
        yield Finding("mode", Status.WARN, found, way_out)
        yield from _cuts_of(settings)
        return
    from contract.signing import read_trusted

    try:
        roles = read_trusted(settings.bundles.trusted or Path()).roles
    except FlawlineError as error:
        yield Finding("mode", Status.FAIL, f"production: {error}", "flawline keys sign-trust --help")
        return
    missing = [role for role, keys in roles.items() if not keys]
    may = "; ".join(f"{', '.join(sorted(keys.values())) or 'nobody'} may {role}" for role, keys in roles.items())
    way_out = f"flawline keys sign-trust NAME.sign --may {missing[0]}" if missing else ""
    yield Finding("mode", Status.FAIL if missing else Status.OK, f"production: {may}", way_out)
    yield from _releases_of(settings, subject)
    yield from _cuts_of(settings)


def _releases_of(settings: EdgeSettings, subject: Subject) -> Iterator[Finding]:
    """Each recipe's bundle as this edge would take or refuse it."""
    from edge_runtime.recipes import open_fit

    for number in sorted(settings.bundle_folders()):
        try:
            bundle = open_fit(settings, number)
        except FlawlineError as error:
            way_out = _way_to_slot(settings.bundle_links()[number], number, subject) or "flawline bundle --help"
            yield Finding(f"recipe {number}", Status.FAIL, str(error), way_out)
        else:
            last = bundle.manifest.history[-1]
            yield Finding(f"recipe {number}", Status.OK, f"{bundle.root}: released by {last.who} on {last.when}")


def _cuts_of(settings: EdgeSettings) -> Iterator[Finding]:
    """Recipes that leave a camera as another set it, and pictures that the line cuts otherwise than calibration."""
    from contract.bundle import open_bundle
    from edge_runtime.recipes import cut_doubts, unset_controls

    status = Status.FAIL if settings.mode == "production" else Status.WARN
    for number, faults in unset_controls(settings).items():
        for fault in faults:
            yield Finding(f"recipe {number}", status, *fault.split(": ", 1))
    for number, folder in settings.bundle_folders().items():
        try:
            doubts = cut_doubts(open_bundle(folder), settings)
        except FlawlineError:
            continue  # said elsewhere
        for doubt in doubts:
            yield Finding(f"recipe {number}", Status.WARN, doubt)


def _way_to_slot(link: Path, number: int, subject: Subject) -> str:
    """How a link that names no slot yet gets one; nothing where it is no such link, or is one already."""
    from edge_runtime.slots import LINK

    if link.name != LINK or link.exists():
        return ""
    recipe = f" --recipe {number}" if number != 1 else ""
    return f"flawline edge update DIR --config {subject.config or 'edge.toml'}{recipe}, DIR being the bundle"


def check_bundle(subject: Subject) -> Iterator[Finding]:
    """Verification, calibration and agreement with training of the bundle that is given or configured."""
    settings = settings_or_none(subject)
    folder = subject.bundle or (settings.bundle if settings else None)
    if folder is None:
        return
    try:
        from contract.bundle import open_bundle

        bundle = open_bundle(folder)
    except FlawlineError as error:
        way_out = _way_to_slot(folder, 1, subject) or "copy the bundle again, or train it again"
        yield Finding("bundle", Status.FAIL, str(error), way_out)
        return
    yield Finding("bundle", Status.OK, f"{bundle.manifest.name}, {bundle.manifest.id}: every file as it was written")
    calibrated = bundle.manifest.calibration_id()
    way_out = "" if calibrated else f"flawline calibrate thresholds {folder} --data DIR"
    state = f"calibration {calibrated}" if calibrated else "not calibrated: every part would be NOT_INSPECTED"
    yield Finding("calibration", Status.OK if calibrated else Status.FAIL, state, way_out)
    yield _try_golden(bundle, settings)


def _try_golden(bundle: Bundle, settings: EdgeSettings | None) -> Finding:
    from edge_runtime.engines import ALONE, Together, open_engine
    from edge_runtime.engines.golden import check_golden

    precision: Precision = settings.precision if settings else "fp32"
    together = Together(settings.batch, settings.batch_ms) if settings else ALONE
    try:
        engine = open_engine(settings.engine if settings else "auto", bundle, 1, precision, together)
        deviation = check_golden(engine, bundle)
    except FlawlineError as error:
        return Finding("golden images", Status.FAIL, str(error), "try another engine, or train the bundle again")
    witness = "its admission" if precision == "int8" else "training"
    return Finding("golden images", Status.OK, f"{engine.describe()} agrees with {witness} to {deviation:.1e} relative")


def check_plans(subject: Subject) -> Iterator[Finding]:
    """On a graphics card: whether a start or a swap of recipes would have to build a plan first."""
    settings = settings_or_none(subject)
    if settings is None:
        return
    from edge_runtime.build import builds, is_built

    if not builds(settings):
        yield Finding("plans", Status.OK, "none needed: no engine for a graphics card serves here")
        return
    built: list[int] = []
    absent: list[int] = []
    for number in sorted(settings.bundle_folders()):
        try:
            (built if is_built(settings, number) else absent).append(number)
        except FlawlineError as error:
            yield Finding("plans", Status.FAIL, f"recipe {number}: {error}", "mend that, then flawline edge build")
    if absent:
        found = f"none yet for recipe(s) {', '.join(map(str, absent))}: to start with one or swap to it takes minutes"
        yield Finding("plans", Status.WARN, found, f"flawline edge build {subject.config}")
    elif built:
        yield Finding("plans", Status.OK, f"built for {len(built)} recipe(s)")


CHECKS: dict[str, Callable[[Subject], Iterator[Finding]]] = {
    "python": check_python,
    "extras": check_extras,
    "engines": check_engines,
    "disk": check_disk,
    "shared memory": check_shared_memory,
    "clock": check_clock,
    "ports": check_ports,
    "gpu": check_gpu,
    "config": check_config,
    "cameras": check_cameras,
    "keys": check_keys,
    "plans": check_plans,
    "release": check_release,
    "bundle": check_bundle,
}


def examine(subject: Subject) -> list[Finding]:
    """All findings, in the table's order. A check that breaks is itself a finding."""
    findings: list[Finding] = []
    for name, check in CHECKS.items():
        try:
            findings += check(subject)
        except Exception as error:  # noqa: BLE001 - the doctor must get through its round on any machine
            findings.append(Finding(name, Status.FAIL, f"the check itself failed: {error!r}", "please report this"))
    return findings


@app.command()
def doctor(
    bundle: Annotated[Path | None, typer.Option(metavar="DIR", help="also verify and run this bundle")] = None,
    config: Annotated[Path | None, typer.Option(metavar="FILE", help="also check this edge.toml")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the findings as JSON")] = False,
    open_cameras: Annotated[bool, typer.Option("--open-cameras/--no-cameras", help="open each for a moment")] = True,
) -> None:
    """Check this machine and say the way out; exit code 1 where something fails.

    With --config also what that edge needs: cameras, engine, plans, disk, keys, ports. A running edge is not disturbed.

    \b
    Examples:
      flawline doctor
      flawline doctor --bundle bundle --config edge.toml
    """
    findings = examine(Subject(bundle, config, open_cameras))
    if as_json:
        typer.echo(json.dumps([finding._asdict() for finding in findings], indent=1))
    else:
        _print(findings)
    raise typer.Exit(1 if any(finding.status is Status.FAIL for finding in findings) else 0)


def _print(findings: list[Finding]) -> None:
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        colour = {Status.OK: "green", Status.WARN: "yellow", Status.FAIL: "red"}[finding.status]
        mark = typer.style(f"{finding.status.value:<4}", fg=colour)
        typer.echo(f"{mark}  {finding.name:<{width}}  {finding.found}")
        if finding.way_out:
            typer.echo(f"      {'':<{width}}  -> {finding.way_out}")
