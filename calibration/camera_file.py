"""Writes the preprocess file: new, an older one with a part measured anew, or a bundle's (before hop 1)."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np

from calibration.board import Board, Found, find_board
from calibration.camera import Limits, Solved, coverage_picture, cropped, make_plane, solve_lens, solve_plane
from calibration.errors import CalibrationError
from calibration.flat_field import measure_flat
from calibration.place_error import place_error
from calibration.progress import steps
from contract.bundle import ROLE_FIXTURE, ROLE_PREPROCESS, open_bundle, put_files, write_atomic
from contract.correction import Correction, PreprocessFile, Template, open_correction
from contract.errors import BundleError
from contract.fixture import open_fixture
from contract.images import SUFFIXES, Channels, Pixels, encode_png, read_image
from contract.versions import installed

TEMPLATE_LEFT_OUT = (
    "the older file's template is left out: its mark is in pixels of the older plane. Make one from pictures corrected "
    "with this file (flawline calibrate correct, flawline fixture make), then --from this file --template FIXTURE"
)
MOST_PLACE_PX = 0.2
UNSURE = (
    f"places in the corrected picture are known to {{worst_px:.2f}} px only, at the {{where}} (95 %; {MOST_PLACE_PX:g} "
    "is good): add views with the board there, tilted, as far out as its squares are seen"
)


class Asked(NamedTuple):
    """What to measure; what is empty is taken from ``base``, or left out."""

    board: Sequence[Path] = ()
    plane: Path | None = None
    white: Sequence[Path] = ()
    dark: Sequence[Path] = ()
    template: Path | None = None
    base: Path | None = None
    geometry: Board = Board()
    height_mm: float | None = None
    mm_per_px: float | None = None
    region: tuple[int, int, int, int] | None = None
    channels: str = "auto"
    limits: Limits = Limits()


class Made(NamedTuple):
    """The file's content, the picture of the coverage where a board was measured, and what has to be said of it."""

    content: PreprocessFile
    coverage: Pixels | None
    notes: tuple[str, ...] = ()


def make_file(asked: Asked) -> Made:
    """Measure what is asked for. Raises CalibrationError, or what reading its files raises."""
    content = None if asked.base is None else open_correction(asked.base).content
    fields: dict[str, Any] = {} if content is None else content.model_dump(exclude={"sha256", "created", "format"})
    measured: dict[str, Any] = dict(fields.pop("measured", {}))
    sizes = _Sizes(None if content is None else content.frame_px)
    coverage, notes = None, []
    _refuse_plane_of_before(asked)
    if asked.board:
        measured.pop("plane", None)
        if fields.pop("template", None) is not None and asked.template is None:
            notes.append(TEMPLATE_LEFT_OUT)
        solved, behind = _lens(asked, sizes)
        coverage = coverage_picture(solved, sizes.px, behind)
        pose = found = None
        measured["lens"] = solved.figures | {"board": asked.geometry.text(), "files": _hashes(asked.board)}
        if asked.plane is not None:
            found = find_board(asked.geometry, sizes.read(asked.plane, 1), asked.plane.name)
            pose = solve_plane(asked.geometry, solved.lens, found, asked.height_mm or 0.0, asked.limits)
            measured["plane"] = {
                "file": _hashes([asked.plane]),
                "rms_px": pose.rms_px,
                "height_mm": asked.height_mm or 0.0,
                "tilt_deg": float(np.degrees(np.arccos(np.clip(abs(pose.normal[2]), 0, 1)))),
            }
        plane = make_plane(solved.lens, pose, sizes.px, asked.mm_per_px)
        known = place_error(asked.geometry, solved, sizes.px, found, plane)
        measured["lens"]["places"] = known._asdict()
        if known.worst_px > MOST_PLACE_PX:
            notes.append(UNSURE.format(**known._asdict()))
        fields |= {"lens": solved.lens.model_dump(), "plane": plane.model_dump()}
    if asked.white or asked.dark:
        flat = measure_flat(*_frames(asked, sizes))
        measured["flat"] = flat.figures | {"files": _hashes([*asked.white, *asked.dark])}
        fields["flat"] = flat.flat.model_dump()
    if asked.region is not None:
        fields["plane"] = _cropped(fields, asked.region)
    if asked.template is not None:
        placer = open_fixture(asked.template)
        mark = base64.b64encode(encode_png(placer.mark)).decode()
        fields["template"] = Template(fixture=placer.fixture, mark=mark).model_dump()
    if not any(fields.get(each) for each in ("plane", "flat", "template")):
        raise CalibrationError(
            "nothing to measure: give --board IMAGES, --white and --dark IMAGES, or --template FIXTURE; "
            "--draw-board FILE writes the board's picture"
        )
    measured["flawline"], measured["opencv"] = installed("flawline") or "", cv2.__version__
    made = PreprocessFile(
        **fields | {"created": datetime.now(UTC).isoformat(timespec="seconds"), "measured": measured}
        | {"frame_px": sizes.px}
    )  # fmt: skip
    content = made.model_copy(update={"sha256": made.computed_sha256()})
    Correction(content, "the preprocess file")  # it can be used, or it is not written
    return Made(content, coverage, tuple(notes))


def _refuse_plane_of_before(asked: Asked) -> None:
    """Raise CalibrationError where something is said of a plane that is not measured now: it would be ignored."""
    if asked.plane is not None and not asked.board:
        raise CalibrationError("--plane needs --board IMAGES: the plane is seen through the lens")
    if asked.plane is not None:
        return
    for option, value in (("--height-mm", asked.height_mm), ("--mm-per-px", asked.mm_per_px)):
        if value is not None:
            raise CalibrationError(
                f"{option} needs --board IMAGES and --plane IMAGE: it is of a plane that is measured now, and the one "
                "of an older file stays as it is; give the pictures that it was measured with once more"
            )


class _Sizes:
    """Reads frames, all of one size."""

    def __init__(self, px: tuple[int, int] | None) -> None:
        self._px, self._of = px, "--from"

    @property
    def px(self) -> tuple[int, int]:
        if self._px is None:
            raise CalibrationError("--template alone says nothing of the frame's size: give --from FILE as well")
        return self._px

    def read(self, path: Path, channels: Channels) -> Pixels:
        picture = read_image(path, channels)
        size = picture.shape[1], picture.shape[0]
        if self._px is None:
            self._px, self._of = size, str(path)
        if size != self._px:
            raise CalibrationError(
                f"{path}: {size[0]} x {size[1]} px, and {self._of} has {self._px[0]} x {self._px[1]}: all pictures "
                "must be whole frames of one camera at the size that it runs at"
            )
        return picture


def _lens(asked: Asked, sizes: _Sizes) -> tuple[Solved, Pixels]:
    found: list[Found] = []
    picture: Pixels | None = None
    paths = [*asked.board, *([asked.plane] if asked.plane is not None and asked.plane not in asked.board else [])]
    for path in steps(paths, "finding the board"):
        picture = sizes.read(path, 1)
        found.append(find_board(asked.geometry, picture, path.name))
    if picture is None:
        raise CalibrationError("--board: no images")
    return solve_lens(asked.geometry, found, sizes.px, asked.limits), picture


def _frames(asked: Asked, sizes: _Sizes) -> tuple[list[Pixels], list[Pixels]]:
    """White and dark frames, grey where the white ones are or where it is asked for."""
    white = [sizes.read(path, 1 if asked.channels == "grey" else 3) for path in asked.white]
    grey = all(int(np.ptp(frame[::8, ::8], axis=2).max()) <= 2 for frame in white if frame.ndim == 3)
    if asked.channels == "auto" and grey:
        white = [np.ascontiguousarray(frame[..., 1]) for frame in white]
    channels: Channels = 3 if white and white[0].ndim == 3 else 1
    return white, [sizes.read(path, channels) for path in asked.dark]


def _cropped(fields: dict[str, Any], region: tuple[int, int, int, int]) -> dict[str, Any]:
    content = PreprocessFile(created="", frame_px=(8, 8), lens=fields.get("lens"), plane=fields.get("plane"))
    if content.plane is None:
        raise CalibrationError("--region is of the corrected picture: give --board and --plane, or --from FILE")
    return cropped(content.plane, region).model_dump()


def _hashes(paths: Sequence[Path]) -> dict[str, str]:
    """Where the file comes from: name and sha256 of each picture, no folder of this machine."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in paths}


def expand(paths: Sequence[Path], option: str) -> list[Path]:
    """Folders replaced by the images in them. Raises CalibrationError where there are none."""
    files: list[Path] = []
    for path in paths:
        if path.is_dir():
            files += sorted(file for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        else:
            files.append(path)
    if paths and not files:
        raise CalibrationError(f"{option}: no images in {', '.join(map(str, paths))}")
    return files


def write_file(path: Path, made: Made) -> Path | None:
    """Write the file, and beside it the picture of the coverage, whose path is returned. Raises CalibrationError."""
    picture = path.with_name(f"{path.stem}-coverage.png")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomic(path, made.content.signed())
        if made.coverage is not None:
            write_atomic(picture, encode_png(made.coverage))
    except OSError as error:
        raise CalibrationError(f"--out {path}: cannot be written ({error.strerror or error})") from error
    return None if made.coverage is None else picture


def put_into(folder: Path, content: PreprocessFile) -> None:
    """Make it the bundle's, whose thresholds and golden images hold no longer then. Raises BundleError."""
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    if len({view.camera for view in manifest.recipe.views}) > 1:
        raise BundleError(f"{folder}: has views of several cameras, and a preprocess file is of one")
    if content.flat is not None and content.flat.channels > manifest.recipe.channels:
        raise BundleError(f"{folder}: its recipe is grey, and the flat field is in colour: give --channels grey")
    correction = Correction(content, "the preprocess file")
    views = [view.model_copy(update={"mm_per_px": content.mm_per_px}) for view in manifest.recipe.views]
    files = {ROLE_PREPROCESS: ("preprocess.json", content.signed())}
    fixture = manifest.fixture
    if correction.placer is not None:
        fixture = correction.placer.fixture
        files[ROLE_FIXTURE] = ("fixture.png", encode_png(correction.placer.mark))
    elif fixture is not None:
        way_out = (
            "make one from pictures corrected with it (flawline calibrate correct, flawline fixture make) and give "
            "--template FIXTURE"
            if ROLE_PREPROCESS in manifest.files
            else f"give --template {folder}"
        )
        raise BundleError(f"{folder}: was trained on pictures cut out by a fixture, and this file has none: {way_out}")
    put_files(bundle, files, fixture=fixture, recipe=manifest.recipe.model_copy(update={"views": views}))


def told(content: PreprocessFile) -> list[tuple[str, str]]:
    """What the terminal says of a file."""
    rows = [("frames", f"{content.frame_px[0]} x {content.frame_px[1]} px")]
    if (lens := content.measured.get("lens")) is not None and content.lens is not None:
        rows += [
            ("reprojection error", f"{lens['rms_px']:.3f} px RMS, worst view {lens['worst_px']:.3f} px"
             f" ({lens['worst_view']})"),
            ("views", f"{lens['views']}, tilted by up to {lens['tilt_deg']:.0f} degrees, {100 * lens['covered']:.0f} % "
             "of the field covered"),
            ("focal length", f"{content.lens.fx:.1f}, {content.lens.fy:.1f} px, to {100 * lens['focal_error']:.2f} %"),
        ]  # fmt: skip
    if (places := (lens or {}).get("places")) is not None:
        rows.append(
            ("places", f"known to {places['worst_px']:.2f} px at the {places['where']}, {places['mean_px']:.3f} px on "
             "average")
        )  # fmt: skip
    if content.plane is not None:
        size, scale = content.plane.size_px, content.plane.mm_per_px
        told = "no scale: give --plane for millimetres" if scale is None else f"{scale:.6g} mm per pixel"
        rows.append(("corrected picture", f"{size[0]} x {size[1]} px, {told}"))
    if (flat := content.measured.get("flat")) is not None and content.flat is not None:
        rows.append(
            ("flat field", f"gain {flat['gain_low']:.2f} to {flat['gain_high']:.2f}, {flat['dead_pixels']} dead pixels")
        )
    if content.template is not None:
        cut = content.template.fixture.cut_px
        rows.append(("template", f"parts are cut out upright as {cut[0]} x {cut[1]} px"))
    return rows
