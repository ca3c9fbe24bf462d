"""Recipes of an edge: a bundle made ready to judge, and which one was asked for last (hops 3 to 5)."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from contract.bundle import GRAPHS, Bundle, Precision, open_bundle, refuse_unfit_for_production, write_atomic
from contract.camera import ANY, controls_of
from contract.config import Strict
from contract.errors import BundleError, ConfigError, FlawlineError
from contract.signing import read_trusted
from edge_runtime.cameras import is_live
from edge_runtime.engines import open_engine
from edge_runtime.engines.base import Engine
from edge_runtime.engines.golden import check_golden
from edge_runtime.inspector import Inspector
from edge_runtime.settings import EdgeSettings

FILE = "recipe.json"


class Judge:
    """One recipe with its engine, ready for parts: an inspector for each camera."""

    def __init__(self, number: int, bundle: Bundle, engine: Engine, settings: EdgeSettings) -> None:
        self.number = number
        self.bundle = bundle
        self.engine = engine
        self.engine_name = engine.describe()
        self.bundle_state = bundle.state if settings.mode == "production" else None  # else nobody has verified it
        self.inspectors = {
            camera.id: Inspector(bundle, engine, frozen_check=is_live(camera.url)) for camera in settings.cameras
        }

    def names(self) -> dict[str, Any]:
        """The fields by which results, heartbeats and replies name what judges."""
        return {
            "recipe": self.bundle.manifest.recipe.name,
            "recipe_number": self.number,
            "bundle_id": self.bundle.manifest.id,
            "bundle_state": self.bundle_state,
            "model_sha256": self.bundle.manifest.files[GRAPHS[self.engine.spec.precision]].sha256,
            "engine": self.engine_name,
        }


class Choice(Strict):
    """What a host asked for last. It outlives a restart: an edge that came back with another recipe judges wrongly."""

    number: int = Field(ge=1, le=65535)
    inspecting: bool


NEVER_ASKED = Choice(number=1, inspecting=True)


def load_judge(settings: EdgeSettings, number: int) -> Judge:
    """Open, check and warm up a recipe and prove its engine on the golden images. Raises FlawlineError."""
    bundle = open_fit(settings, number)
    engine = open_engine(settings.engine, bundle, settings.threads, settings.precision)
    try:
        check_golden(engine, bundle)
        return Judge(number, bundle, engine, settings)
    except BaseException:
        engine.close()
        raise


def open_fit(settings: EdgeSettings, number: int) -> Bundle:
    """Open and verify a recipe's bundle. Raises FlawlineError where it may not, or could not, judge on this edge."""
    bundles = settings.bundle_folders()
    if number not in bundles:
        raise ConfigError(f"no recipe {number}; there are: {', '.join(map(str, sorted(bundles)))}")
    bundle = open_bundle(bundles[number])
    if settings.mode == "production":
        refuse_unreleased(bundle, settings)
    refuse_unfit(bundle, settings)
    return bundle


def refuse_unreleased(bundle: Bundle, settings: EdgeSettings) -> None:
    """Raise FlawlineError unless the bundle may run in production on this edge."""
    if settings.bundles.trusted is None:
        raise ConfigError('mode = "production" and no [bundles] trusted: nobody\'s signature counts')
    refuse_unfit_for_production(bundle, read_trusted(settings.bundles.trusted), settings.bundles.retired)


def faults_of_others(settings: EdgeSettings, number: int) -> list[str]:
    """Why recipes besides ``number`` would be refused when a host selects them; a sentence for each."""
    faults = []
    for other in sorted(set(settings.bundle_folders()) - {number}):
        try:
            open_fit(settings, other)
        except FlawlineError as error:
            faults.append(f"recipe {other} would be refused: {error}")
    return faults


def precision_fault(bundle: Bundle, precision: Precision) -> str | None:
    """Why limits that were measured in one precision must not judge scores of another; None where they are alike."""
    thresholds = bundle.manifest.thresholds
    if thresholds is None or precision in thresholds.engine.split():
        return None
    return (
        f"{bundle.root}: the limits were measured with {thresholds.engine!r} and the line would run in {precision}, "
        f"whose scores differ: flawline calibrate thresholds {bundle.root} --data DIR --precision {precision}"
    )


def refuse_uncalibrated(bundle: Bundle) -> None:
    """Raise BundleError where no part could pass with the bundle."""
    if bundle.manifest.thresholds is None or bundle.manifest.quality is None:
        raise BundleError(
            f"{bundle.root}: the bundle is not calibrated, so no part could pass; "
            f"run: flawline calibrate thresholds {bundle.root} --data DIR"
        )


def refuse_unfit(bundle: Bundle, settings: EdgeSettings) -> None:
    """Raise FlawlineError where this edge could pass no part with the bundle."""
    manifest = bundle.manifest
    refuse_uncalibrated(bundle)
    if (fault := precision_fault(bundle, settings.precision)) is not None:
        raise BundleError(fault)
    elsewhere = sorted(
        {view.camera for view in manifest.recipe.views if view.camera} - {c.id for c in settings.cameras}
    )
    if elsewhere:
        raise ConfigError(f"the recipe's views need camera(s) {elsewhere}, which the configuration does not have")
    if len({view.camera for view in manifest.recipe.views}) > 1:
        raise ConfigError("the recipe's views come from several cameras; this version joins views of one camera only")
    _refuse_other_cameras(bundle, settings)


def _refuse_other_cameras(bundle: Bundle, settings: EdgeSettings) -> None:
    """Raise BundleError where the bundle's camera settings are of cameras, or of a region, that this edge has not."""
    held = bundle.manifest.cameras
    known = [camera.id for camera in settings.cameras]
    if strange := sorted(set(held) - {*known, ANY}):
        raise BundleError(
            f"{bundle.root}: has settings of camera(s) {strange}, and edge.toml has {known}; give the camera that id, "
            f"or write the settings anew: flawline bundle camera {bundle.root} --config edge.toml"
        )
    for camera in settings.cameras:
        controls = controls_of(held, camera.id)
        found = camera.region if camera.fixture == "region" else None
        if controls is not None and controls.region not in (None, found):
            raise BundleError(
                f"{bundle.root}: camera {camera.id}: the bundle was made with region = {list(controls.region)}, "
                f'edge.toml has {"none" if found is None else list(found)}; set fixture = "region" and region = '
                f"{list(controls.region)} under [[cameras]]"
            )


def read_choice(settings: EdgeSettings) -> Choice:
    """What was asked for last; recipe 1 where nothing was. Raises ConfigError where it cannot be known or served."""
    path = settings.state_dir / FILE
    try:
        choice = Choice.model_validate_json(path.read_bytes())
    except FileNotFoundError:
        return NEVER_ASKED
    except (OSError, ValidationError) as error:
        raise ConfigError(
            f"{path}: which recipe was selected cannot be read ({str(error).splitlines()[0]}); "
            f"remove the file to begin with recipe 1"
        ) from error
    if choice.number not in settings.bundle_folders():
        raise ConfigError(
            f"{path}: recipe {choice.number} was selected last and is not configured any more; add it under "
            "[[recipes]], or remove the file to begin with recipe 1"
        )
    return choice


def write_choice(settings: EdgeSettings, choice: Choice) -> None:
    """Remember what was asked for, in one piece and on the disk, before it is done.

    Raises OSError; what was asked for before stands in the file then, or the error says that it does not.
    """
    path = settings.state_dir / FILE
    before = path.read_bytes() if path.exists() else None
    write_atomic(path, choice.model_dump_json().encode())
    try:
        _sync_folder(settings.state_dir)  # else a power cut could bring the recipe before back
    except OSError as error:
        try:
            _put_back(path, before)
        except OSError:
            raise OSError(
                error.errno, f"{error.strerror}; nor can {path} be put back: a restart begins with what was refused"
            ) from error
        raise


def _put_back(path: Path, before: bytes | None) -> None:
    if before is None:
        path.unlink()
    else:
        write_atomic(path, before)
    with suppress(OSError):  # the disk has just refused this once
        _sync_folder(path.parent)


def _sync_folder(path: Path) -> None:
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
