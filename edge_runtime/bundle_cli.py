"""``flawline bundle``: what a bundle is, who signed it, and the steps from draft to retired (before hop 3)."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from contract.bundle import Bundle
    from contract.camera import CameraControls
    from contract.release import State

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="""A bundle's state: draft, validated, released, retired; each step signed by a person.

\b
From a calibrated bundle to one that an edge in production takes:
  the engineer      flawline keys sign-new ada
                    flawline bundle validate bundle --key keys/ada.sign_secret --why "1200 parts, report 17"
  a second person   flawline keys sign-new grace
                    flawline bundle release bundle --key keys/grace.sign_secret --why "approved for line 3"
  on the edge       flawline keys sign-trust ada.sign --may validate
                    flawline keys sign-trust grace.sign --may release
                    mode = "production" and [bundles] trusted = "signers" in edge.toml
Whatever changes the bundle, calibrating it again for one, makes it a draft.
""",
)

Folder = Annotated[Path, typer.Argument(metavar="BUNDLE", help="the bundle's folder", show_default=False)]
Key = Annotated[
    Path, typer.Option("--key", metavar="FILE", help="your own NAME.sign_secret: flawline keys sign-new NAME")
]
Why = Annotated[str, typer.Option("--why", metavar="TEXT", help="the reason, for whoever reads the history later")]
TrustedFolder = Annotated[
    Path | None, typer.Option("--trusted", metavar="DIR", help="whose signatures count, as on the edge")
]


@app.command()
def show(bundle: Folder) -> None:
    """What the bundle is, its state and the history of it. The history is verified; whose keys they are is not.

    \b
    Example:
      flawline bundle show bundle
    """
    from contract.bundle import open_bundle
    from contract.errors import BundleError
    from contract.keys import fingerprint
    from contract.release import verify_history

    opened = open_bundle(bundle)
    manifest = opened.manifest
    typer.echo(f"{manifest.name}, {manifest.id}: {opened.state}")
    typer.echo(f"content      {opened.content[:16]}")
    typer.echo(f"model        {manifest.model.name}, sha256 {opened.model_sha256[:16]}")
    typer.echo(f"calibration  {manifest.calibration_id() or 'none'}")
    if (fixture := manifest.fixture) is not None:
        size = f"{fixture.cut_px[0]} x {fixture.cut_px[1]} px, turned by at most {fixture.max_angle_deg:g} degrees"
        typer.echo(f"fixture      {size}, score at least {fixture.least_score:g} (of {fixture.samples} pictures)")
    for name, controls in manifest.cameras.items():
        typer.echo(f"camera {name:<6}{_listed(controls)}")
    for step in manifest.history:
        key = f"  key {fingerprint(step.key)}" if step.key else ""
        typer.echo(f"{step.when}  {step.state:<9}  {step.who}: {step.why}{key}")
    try:
        verify_history(manifest.history, opened.content, str(bundle))
    except BundleError as error:
        typer.echo(f"NOT VALID: {error}")
        raise typer.Exit(2) from error


@app.command()
def validate(
    bundle: Folder,
    key: Key,
    why: Why,
    engine: Annotated[
        str, typer.Option(help="which engine proves the golden images; auto, openvino, onnxruntime, ...")
    ] = "auto",
) -> None:
    """Sign a draft as validated, by the engineer: it must be calibrated and agree with training on its golden images.

    \b
    Example:
      flawline bundle validate bundle --key keys/ada.sign_secret --why "1200 parts, report 17"
    """
    from contract.bundle import advance, open_bundle
    from contract.release import refuse_state
    from contract.signing import load_signing_pair

    pair = load_signing_pair(key)
    opened = open_bundle(bundle)
    refuse_state(opened.manifest.history, "validated", str(bundle))
    proven = prove(opened, engine)
    done = advance(opened, "validated", pair, why)
    typer.echo(f"{bundle}: validated by {pair.name}, content {done.content[:16]}; golden images agree with {proven}")
    typer.echo(f"Next, by a second person: flawline bundle release {bundle} --key KEY --why TEXT")


def prove(bundle: Bundle, engine_name: str) -> str:
    """Run the golden images in every precision that the bundle is calibrated for; returns the engines' names.

    Raises FlawlineError where it is not calibrated, or an engine disagrees with training.
    """
    from contract.bundle import GRAPHS
    from contract.errors import BundleError
    from edge_runtime.engines import open_engine
    from edge_runtime.engines.golden import check_golden
    from edge_runtime.recipes import precision_fault, refuse_uncalibrated

    refuse_uncalibrated(bundle)
    proven = []
    for precision, role in GRAPHS.items():
        if role not in bundle.manifest.files or precision_fault(bundle, precision) is not None:
            continue
        engine = open_engine(engine_name, bundle, precision=precision)
        try:
            check_golden(engine, bundle)
            proven.append(engine.describe())
        finally:
            engine.close()
    if not proven:
        raise BundleError(f"{bundle.root}: none of its graphs is calibrated; run: flawline calibrate thresholds")
    return ", ".join(proven)


@app.command()
def release(bundle: Folder, key: Key, why: Why) -> None:
    """Sign a validated bundle as released, by a second person: the key that validated it is refused.

    \b
    Example:
      flawline bundle release bundle --key keys/grace.sign_secret --why "approved for line 3"
    """
    done = _sign(bundle, "released", key, why)
    typer.echo(f"{bundle}: released by {done.manifest.history[-1].who}, content {done.content[:16]}")
    typer.echo(f"Next, on the edge's box: flawline bundle verify {bundle} --trusted DIR")


@app.command()
def retire(bundle: Folder, key: Key, why: Why) -> None:
    """Sign a validated or released bundle as retired: edges in production refuse it from their next start on.

    Copies elsewhere do not know of it: copy the folder there again, or add the printed line to their edge.toml.

    \b
    Example:
      flawline bundle retire bundle --key keys/grace.sign_secret --why "escapes of 12 March"
    """
    done = _sign(bundle, "retired", key, why)
    typer.echo(f"{bundle}: retired by {done.manifest.history[-1].who}. For edges that have another copy, in edge.toml:")
    typer.echo(f'[bundles]\nretired = ["{done.content[:16]}"]')


def _sign(bundle: Path, state: State, key: Path, why: str) -> Bundle:
    """One step with one person's key; returns the bundle as it stands then."""
    from contract.bundle import advance, open_bundle
    from contract.signing import load_signing_pair

    pair = load_signing_pair(key)
    return advance(open_bundle(bundle), state, pair, why)


@app.command()
def verify(bundle: Folder, trusted: TrustedFolder = None) -> None:
    """Whether an edge in production would take the bundle: released, untampered, rightly signed by two people.

    Exit code 0 where it would, else 2 with the reason. Without --trusted it is not asked whose keys they are.

    \b
    Examples:
      flawline bundle verify bundle --trusted /etc/flawline/signers
      flawline bundle verify bundle
    """
    from contract.bundle import open_bundle, refuse_unfit_for_production
    from contract.keys import fingerprint
    from contract.signing import read_trusted

    opened = open_bundle(bundle)
    refuse_unfit_for_production(opened, None if trusted is None else read_trusted(trusted))
    for step in opened.manifest.history[-2:]:
        typer.echo(f"{step.state} by {step.who} on {step.when}, key {fingerprint(step.key or '')}")
    if trusted is None:
        typer.echo("Every byte is as it was signed. Whose keys these are was not asked: --trusted DIR")
    else:
        typer.echo(f"Every byte is as it was signed, by people whom {trusted} trusts.")


@app.command()
def camera(
    bundle: Folder,
    config: Annotated[
        Path | None, typer.Option(metavar="FILE", help="edge.toml: read from its cameras as they are set now")
    ] = None,
    file: Annotated[Path | None, typer.Option(metavar="FILE", help="TOML with [cameras.ID] and settings")] = None,
    clear: Annotated[bool, typer.Option("--clear", help="no settings any more")] = False,
) -> None:
    """Make camera settings part of the bundle: an edge sets them, and refuses a camera that does not read back so.

    Set the camera by hand before it is read: what it changes by itself (exposure, white balance) will not read back.

    \b
    Examples:
      flawline bundle camera bundle --config edge.toml
      flawline bundle camera bundle --file camera.toml
    camera.toml, by hand; ID is the camera's in edge.toml, or any:
      [cameras.top]
      width = 1280
      height = 960
      auto_exposure = 1
      exposure = 156
    """
    from contract.bundle import open_bundle, write_manifest
    from contract.camera import CameraFile
    from contract.config import load_toml
    from contract.errors import ConfigError
    from contract.release import draft_again

    if (config is not None) + (file is not None) + clear != 1:
        raise ConfigError("give one of --config edge.toml, --file camera.toml and --clear")
    opened = open_bundle(bundle)
    cameras = read_cameras(config) if config else load_toml(file, CameraFile).cameras if file else {}
    write_manifest(bundle, opened.manifest.model_copy(update={"cameras": cameras}))
    for name, controls in cameras.items():
        typer.echo(f"camera {name}: {_listed(controls)}")
    typer.echo(f"{bundle}: {len(cameras)} camera(s) in the bundle")
    if said := draft_again(opened.state, str(bundle)):
        typer.echo(said)


def read_cameras(config: Path) -> dict[str, CameraControls]:
    """What each camera of an edge.toml reports, and the region that is cut from it. Raises FlawlineError."""
    import tempfile

    from contract.camera import CameraControls
    from contract.config import validate
    from edge_runtime.cameras import make_camera
    from edge_runtime.settings import load_settings

    found = {}
    for each in load_settings(config).cameras:
        with tempfile.TemporaryDirectory() as place:  # a recording that is looked at has not begun
            opened = make_camera(each.url, each.id, Path(place), each.stall_s)
            try:
                opened.open()
                values = {**opened.reported(), "region": each.region if each.fixture == "region" else None}
            finally:
                opened.close()
        found[each.id] = validate(CameraControls, values, f"camera {each.id}")
    return found


def _listed(controls: CameraControls) -> str:
    return ", ".join(f"{name} {value}" for name, value in controls if value is not None) or "nothing"
