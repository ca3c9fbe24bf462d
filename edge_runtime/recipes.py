"""Recipes of an edge: a bundle made ready to judge, and which one was asked for last (hops 3 to 5)."""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from pathlib import Path
from typing import Any

from pydantic import Field, ValidationError

from contract.bundle import (
    GRAPHS,
    ROLE_PREPROCESS,
    Bundle,
    Precision,
    open_bundle,
    preprocess_fault,
    read_manifest,
    refuse_unfit_for_production,
    write_atomic,
)
from contract.camera import ANY, controls_of
from contract.config import Strict
from contract.correction import correction_of
from contract.errors import BundleError, ConfigError, FlawlineError
from contract.fixture import placer_of
from contract.recipe import Recipe
from contract.signing import read_trusted
from edge_runtime.cameras import is_live, is_settable
from edge_runtime.drift_desk import held_against
from edge_runtime.engines import Together, open_shared
from edge_runtime.engines.base import Engine
from edge_runtime.engines.golden import check_golden
from edge_runtime.inspector import Inspector
from edge_runtime.settings import EdgeSettings

FILE = "recipe.json"
SIZE_LOW, SIZE_HIGH = 0.8, 1.25  # times the smallest and the largest picture: a cut outside is another one

log = logging.getLogger(__name__)


class Judge:
    """One recipe with its engine, ready for parts: an inspector for each camera."""

    def __init__(self, number: int, bundle: Bundle, engine: Engine, settings: EdgeSettings) -> None:
        self.number = number
        self.slot: Path | None = None
        """The slot of an update, which becomes the active one when this takes over; None: what is configured."""
        self.bundle = bundle
        self.engine = engine
        self.placer = placer_of(bundle)
        self.correction = correction_of(bundle)
        self.engine_name = engine.describe()
        self.calibration_id = bundle.manifest.calibration_id()
        self.bundle_state = bundle.state if settings.mode == "production" else None  # else nobody has verified it
        leads = [camera.id for camera in settings.cameras if camera.trigger != "follow"]
        self.drift = held_against(bundle, settings, leads)
        live = {camera.id: is_live(camera.url) for camera in settings.cameras}
        self.inspectors = {
            lead: Inspector(bundle, engine, frozen_check=all(live[camera] for camera in cameras))
            for lead, cameras in cameras_by_lead(settings, bundle.manifest.recipe).items()
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


def cameras_by_lead(settings: EdgeSettings, recipe: Recipe) -> dict[str, set[str]]:
    """For each camera that makes parts, those whose pictures the recipe's views need of one."""
    leads = [camera.id for camera in settings.cameras if camera.trigger != "follow"]
    return {lead: {view.camera or lead for view in recipe.views} for lead in leads}


def load_judge(settings: EdgeSettings, number: int) -> Judge:
    """Open, check and warm up a recipe and prove its engine on the golden images. Raises FlawlineError.

    A recipe of the same graph that is loaded already lends what it has compiled; the golden images are this one's own.
    """
    bundle = open_fit(settings, number)
    for doubt in cut_doubts(bundle, settings):
        log.warning("%s", doubt)
    together = Together(settings.batch, settings.batch_ms)
    engine = open_shared(settings.engine, bundle, settings.threads, settings.precision, together)
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
        if faults := unset_controls(settings).get(number):
            raise ConfigError("; ".join(faults))
    refuse_unfit(bundle, settings)
    return bundle


def refuse_uneven(settings: EdgeSettings) -> None:
    """In production raise ConfigError where a recipe leaves a camera as another one set it; on trial say so."""
    faults = [fault for each in unset_controls(settings).values() for fault in each]
    if faults and settings.mode == "production":
        raise ConfigError("; ".join(faults))
    for fault in faults:
        log.warning("%s", fault)


def unset_controls(settings: EdgeSettings) -> dict[int, list[str]]:
    """For each recipe a sentence for each camera of which it does not ask what another recipe asks.

    What nobody sets stays as the recipe before has left it. A bundle that cannot be read is refused by itself, and a
    camera that nothing can be set at keeps nothing.
    """
    held = {}
    for number, folder in settings.bundle_folders().items():
        with suppress(BundleError):
            held[number] = read_manifest(folder).cameras
    faults: dict[int, list[str]] = {}
    for camera in settings.cameras:
        if not is_settable(camera.url):
            continue
        controls = {number: controls_of(cameras, camera.id) for number, cameras in held.items()}
        asked = {number: {} if found is None else found.asked() for number, found in controls.items()}
        setter = {name: number for number in sorted(asked, reverse=True) for name in asked[number]}
        for number, found in asked.items():
            if missing := [name for name in setter if name not in found]:
                others = sorted({setter[name] for name in missing})
                folder = settings.bundle_folders()[number]
                faults.setdefault(number, []).append(
                    f"recipe {number} ({folder}) does not ask camera {camera.id} for {', '.join(missing)}, which "
                    f"recipe {', '.join(map(str, others))} sets: it would run with what that left. Every "
                    "recipe must set what any of them sets: "
                    f"flawline bundle camera {folder} --config edge.toml, or --file camera.toml"
                )
    return faults


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
    if (fault := preprocess_fault(bundle.manifest)) is not None:
        raise BundleError(f"{bundle.root}: {fault}")


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
    _refuse_ungrouped(bundle, settings)
    _refuse_fixture_of_several(bundle, settings)
    _refuse_other_cameras(bundle, settings)
    if ROLE_PREPROCESS in manifest.files:
        _refuse_own_cut(bundle, settings)
    else:
        _refuse_other_fixture(bundle, settings)
    _refuse_other_shape(bundle, settings)
    if settings.mode == "production" and (fault := _size_fault(bundle, settings)) is not None:
        raise BundleError(fault)


def _refuse_fixture_of_several(bundle: Bundle, settings: EdgeSettings) -> None:
    """Raise ConfigError where a mark would have to be found by several cameras at once."""
    several = any(len(cameras) > 1 for cameras in cameras_by_lead(settings, bundle.manifest.recipe).values())
    if several and bundle.manifest.fixture is not None:
        raise ConfigError(
            f"{bundle.root}: has a fixture, which finds a mark in one camera's picture, and views of several cameras; "
            "cut those by fixed regions"
        )


def _refuse_ungrouped(bundle: Bundle, settings: EdgeSettings) -> None:
    """Raise ConfigError where a part would lack a camera that the recipe's views need."""
    for lead, needed in cameras_by_lead(settings, bundle.manifest.recipe).items():
        group = {lead, *(follower.camera for follower in settings.group_of(lead))}
        if missing := sorted(needed - group):
            raise ConfigError(
                f"{bundle.root}: a part is seen by cameras {', '.join(sorted(needed))}, and those that camera {lead} "
                f"triggers by {', '.join(sorted(group))} only: add {', '.join(missing)} with trigger = 'follow' and a "
                f"group under [[groups]] with lead = {lead!r}, or let no other camera make parts"
            )


def _refuse_own_cut(bundle: Bundle, settings: EdgeSettings) -> None:
    """Raise FlawlineError where the bundle's preprocess file cannot be used, or the line gives it no whole frames.

    What is cut out of the corrected frame, the file says alone.
    """
    correction = correction_of(bundle)
    placer_of(bundle)
    if any(len(cameras) > 1 for cameras in cameras_by_lead(settings, bundle.manifest.recipe).values()):
        raise ConfigError(f"{bundle.root}: has a preprocess file, which is of one camera, and views of several")
    for camera in settings.cameras:
        if camera.fixture != "template" or camera.region is not None:
            raise ConfigError(
                f"{bundle.root}: its preprocess file corrects whole frames and says what is cut out of them, and "
                f'camera {camera.id} has fixture = "{camera.fixture}"'
                + ("" if camera.region is None else f" and region = {list(camera.region)}")
                + ': set fixture = "template" and no region under [[cameras]]'
            )
        asked = controls_of(bundle.manifest.cameras, camera.id)
        size = (None, None) if asked is None else (asked.width, asked.height)
        if correction is not None and any(
            value not in (None, px) for value, px in zip(size, correction.content.frame_px, strict=True)
        ):
            raise BundleError(
                f"{bundle.root}: its preprocess file is of frames of {correction.content.frame_px[0]} x "
                f"{correction.content.frame_px[1]} px, and camera {camera.id} is asked for {size[0]:g} x {size[1]:g}: "
                "calibrate the camera at the size that it runs at: flawline calibrate camera"
            )


def _refuse_other_fixture(bundle: Bundle, settings: EdgeSettings) -> None:
    """Raise FlawlineError where the line would cut its pictures otherwise than those of the bundle were."""
    for camera in settings.cameras:
        if camera.fixture == "template" and bundle.manifest.fixture is None:
            raise BundleError(
                f'{bundle.root}: camera {camera.id} has fixture = "template" and the bundle has none: cut pictures by '
                "one and train on those (flawline fixture --help), or set another fixture"
            )
        if camera.fixture != "template" and bundle.manifest.fixture is not None:
            raise ConfigError(
                f"{bundle.root}: its pictures were cut out upright by a fixture, and camera {camera.id} has fixture = "
                f'"{camera.fixture}"; set fixture = "template" under [[cameras]]'
            )
    placer_of(bundle)


def _refuse_other_shape(bundle: Bundle, settings: EdgeSettings) -> None:
    """Raise BundleError where the region is so much wider or higher that the quality gate would let no part pass."""
    quality = bundle.manifest.quality
    for camera in settings.cameras:
        if camera.fixture != "region" or camera.region is None or quality is None:
            continue
        aspect = camera.region[2] / camera.region[3]
        of_others = {view.name for view in bundle.manifest.recipe.views if view.camera not in (None, camera.id)}
        for view, bounds in quality.views.items():
            if view not in of_others and "aspect" in bounds and (breach := bounds["aspect"].breach(aspect)) is not None:
                raise BundleError(
                    f"{bundle.root}: camera {camera.id}: region = {list(camera.region)} has width over height {breach} "
                    f"of the pictures it was calibrated with (view {view!r}), so no part could pass; cut the region "
                    "that they show, or calibrate with pictures cut by this one"
                )


def _size_fault(bundle: Bundle, settings: EdgeSettings) -> str | None:
    """How a region's size differs from that of the pictures the bundle was calibrated with; None: it does not."""
    sizes = bundle.manifest.pictures
    if len({view.camera for view in bundle.manifest.recipe.views}) > 1:
        return None  # each camera has its own, which each view's bounds hold
    for camera in settings.cameras:
        if sizes is None or camera.fixture != "region" or camera.region is None:
            continue
        spans = zip(camera.region[2:], (sizes.width, sizes.height), strict=True)
        if not all(SIZE_LOW * low <= found <= SIZE_HIGH * high for found, (low, high) in spans):
            return (
                f"{bundle.root}: camera {camera.id} cuts {camera.region[2]} x {camera.region[3]} px out of its frame, "
                f"and the bundle was calibrated with pictures of {_span(sizes.width)} x {_span(sizes.height)} px: "
                "another cut, or another scale. Cut what those pictures show, or calibrate with pictures cut by this "
                "camera and region"
            )
    return None


def _span(sizes: tuple[int, int]) -> str:
    return str(sizes[0]) if sizes[0] == sizes[1] else f"{sizes[0]} to {sizes[1]}"


def cut_doubts(bundle: Bundle, settings: EdgeSettings) -> list[str]:
    """What looks as if the line cut its pictures otherwise than those that the bundle was calibrated with."""
    doubts = [fault] if (fault := _size_fault(bundle, settings)) is not None else []
    sizes = bundle.manifest.pictures
    around = [camera.id for camera in settings.cameras if camera.fixture == "foreground"]
    if sizes is not None and around and sizes.width[0] == sizes.width[1] and sizes.height[0] == sizes.height[1]:
        doubts.append(
            f"{bundle.root}: every picture it was calibrated with is {sizes.width[0]} x {sizes.height[0]} px, and "
            f"camera {', '.join(around)} cuts around each part, which differs from part to part: were they whole "
            'pictures? Then set fixture = "region" and the region that they show'
        )
    return doubts


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
