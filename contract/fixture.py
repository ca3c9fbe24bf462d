"""Finds the part by a mark, at any turn, and cuts it out upright: the same for data sets and on the line (hop 3)."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, NamedTuple

import cv2
import numpy as np
from pydantic import Field

from contract.baseline import MOST_PARTS, PLACED
from contract.bundle import MANIFEST, ROLE_FIXTURE, Bundle, open_bundle, write_atomic
from contract.config import Strict, validate
from contract.errors import BundleError, ConfigError, FixtureError
from contract.images import PixelFormat, Pixels, encode_png, read_image, to_channels
from contract.recipe import Fixture
from contract.template import Found, Matrix, Pose, Template

FOLDER = "fixture"  # of a data set that was cut by it
FILE, PICTURE = "fixture.json", "mark.png"
MAX_FILE_BYTES = 1 << 20
SCORE_MARGIN = 0.15  # below the lowest score of a good picture, besides half their spread
LEAD_SHARE = 0.3  # of the smallest lead of a good picture
SLACK = 0.02  # share of the cut's longer side that may lie outside of the picture
LEAST_SLACK_PX = 2.0
ANGLE_SLACK_DEG = 0.5
SCALE_SLACK = 0.005

Affine = tuple[float, float, float, float, float, float]


class Placed(NamedTuple):
    """A part cut out upright, uint8 [h, w] or RGB [h, w, 3] of the fixture's size, and where it was in the picture.

    ``to_picture``: (a, b, c, d, e, f), picture x = a*u + b*v + c, y = d*u + e*v + f for the corner (u, v) of a pixel.
    ``measures``: ``fixture.score``, ``.lead``, ``.angle_deg`` and ``.scale``.
    """

    pixels: Pixels
    to_picture: Affine
    measures: dict[str, float]


class FixtureFile(Strict):
    """``fixture.json``, beside the mark's picture.

    ``placed``: of a data set that was cut by it, by name what it said of each good part, also of one not found.
    """

    fixture: Fixture
    sha256: str
    placed: dict[Annotated[str, Field(max_length=40)], Annotated[list[float], Field(max_length=MOST_PARTS)]] = Field(
        default_factory=dict, max_length=8
    )


class Placer:
    """A fixture ready to be used, one picture at a time. Not for several threads."""

    def __init__(self, fixture: Fixture, mark: Pixels) -> None:
        """``mark``: uint8 grey of the fixture's size. Raises ConfigError where it cannot be told by its structure."""
        if (mark.shape[1], mark.shape[0]) != fixture.mark_px[2:]:
            raise ConfigError(
                f"fixture: its mark's picture is {mark.shape[1]} x {mark.shape[0]} px, expected "
                f"{fixture.mark_px[2]} x {fixture.mark_px[3]}"
            )
        self.fixture, self.mark = fixture, mark
        try:
            self._template = Template(mark, fixture.max_angle_deg, fixture.scale_play)
        except ValueError as error:
            raise ConfigError(f"fixture: {error}; choose a mark with edges") from error

    def place(self, picture: Pixels) -> Placed:
        """Find the part in ``picture``, uint8 [H, W] or RGB [H, W, 3], and cut it out upright.

        Raises FixtureError where it is not found, not surely enough, or reaches out of the picture.
        """
        try:
            found = self._template.find(to_channels(picture, _format(picture), 1))
        except ValueError as error:
            raise FixtureError(f"fixture: {error}; set a region around the parts, or take a larger mark") from error
        if found is None:
            raise FixtureError(
                "fixture: the part is not found, nothing in the picture looks like the mark", {"fixture.score": 0.0}
            )
        measures = _measures(found)
        if (fault := self._fault(found)) is not None:
            raise FixtureError(f"fixture: {fault}", measures)
        to_picture = self._cut_to_picture(found.pose)
        if (outside := _outside(to_picture, self.fixture.cut_px, picture.shape)) > self._slack():
            raise FixtureError(
                f"fixture: the part at {_place(found.pose)} reaches {outside:.1f} px out of the picture, at most "
                f"{self._slack():.1f}",
                measures,
            )
        return Placed(_warped(picture, to_picture, self.fixture.cut_px), _affine(to_picture), measures)

    def _slack(self) -> float:
        return max(LEAST_SLACK_PX, SLACK * max(self.fixture.cut_px))

    def _fault(self, found: Found) -> str | None:
        """Why the place must not be cut out; None: it is the part's."""
        limits, pose, lead = self.fixture, found.pose, found.score - found.next_score
        if not found.score >= limits.least_score:
            return f"score {found.score:.3f} below {limits.least_score:.3f} at {_place(pose)}"
        if not lead >= limits.least_lead:
            other = "" if found.next_pose is None else f" at {_place(found.next_pose)}"
            return (
                f"ambiguous: score {found.score:.3f} at {_place(pose)} and {found.next_score:.3f}{other}, a lead of "
                f"{lead:.3f} below {limits.least_lead:.3f}"
            )
        if abs(pose.angle_deg) > limits.max_angle_deg + ANGLE_SLACK_DEG:
            return f"turned by {pose.angle_deg:.1f} degrees, at most {limits.max_angle_deg:g}"
        if abs(pose.scale - 1) > limits.scale_play + SCALE_SLACK:
            return f"scale {pose.scale:.3f}, at most {100 * limits.scale_play:g} % from 1"
        return None

    def _cut_to_picture(self, pose: Pose) -> Matrix:
        """2 x 3, from the centres of the cut's pixels to those of the picture's."""
        x, y, width, height = self.fixture.mark_px
        matrix = pose.matrix()
        matrix[:, 2] -= matrix[:, :2] @ np.array([x + (width - 1) / 2, y + (height - 1) / 2])
        return matrix


def _format(picture: Pixels) -> PixelFormat:
    return PixelFormat.MONO8 if picture.ndim == 2 else PixelFormat.RGB8


def _measures(found: Found) -> dict[str, float]:
    return {
        "fixture.score": found.score,
        "fixture.lead": found.score - found.next_score,
        "fixture.angle_deg": found.pose.angle_deg,
        "fixture.scale": found.pose.scale,
    }


def _place(pose: Pose) -> str:
    return f"({pose.x:.0f}, {pose.y:.0f}) turned {pose.angle_deg:.0f} degrees"


def _outside(to_picture: Matrix, cut_px: tuple[int, int], picture_hw: tuple[int, ...]) -> float:
    """By how many pixels the cut's corners lie outside of the picture; 0 and below: inside."""
    width, height = cut_px
    corners = np.array([[0, 0, 1], [width - 1, 0, 1], [0, height - 1, 1], [width - 1, height - 1, 1]]) @ to_picture.T
    most = np.array([picture_hw[1] - 1, picture_hw[0] - 1])
    return float(max((-corners).max(), (corners - most).max()))


def _warped(pixels: Pixels, to_picture: Matrix, cut_px: tuple[int, int]) -> Pixels:
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    cut = cv2.warpAffine(pixels, to_picture, cut_px, flags=flags, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(cut, np.uint8)


def _affine(to_picture: Matrix) -> Affine:
    """The same between corners of pixels instead of their centres."""
    a, b, c, d, e, f = (float(value) for value in to_picture.ravel())
    return a, b, c + 0.5 - (a + b) / 2, d, e, f + 0.5 - (d + e) / 2


def cut_mask(mask: Pixels, placed: Placed) -> Pixels:
    """A mask of the whole picture, uint8 [H, W] of 0 and 255, cut out as the part was."""
    a, b, c, d, e, f = placed.to_picture
    matrix = np.array([[a, b, c - 0.5 + (a + b) / 2], [d, e, f - 0.5 + (d + e) / 2]])
    soft = _warped(mask, matrix, (placed.pixels.shape[1], placed.pixels.shape[0]))
    return np.where(soft >= 128, 255, 0).astype(np.uint8)


def moved(affine: Affine, x: float, y: float) -> Affine:
    """``affine`` into a picture that was itself cut out at (x, y): now into what it was cut from."""
    a, b, c, d, e, f = affine
    return a, b, c + x, d, e, f + y


# Made, kept, read ----------------------------------------------------------------------------------------------------


def make_fixture(
    picture: Pixels,
    region: tuple[int, int, int, int],
    mark: tuple[int, int, int, int] | None = None,
    max_angle_deg: float = 180.0,
    scale_play: float = 0.03,
) -> Placer:
    """A fixture from one good picture: ``region`` is cut out, ``mark`` (default: the region) is what it is found by.

    Both x, y, width, height in pixels of ``picture``. Raises ConfigError where one leaves the picture, or where the
    mark is not found in that very picture alone and at one turn alone.
    """
    mark = region if mark is None else mark
    for name, (x, y, width, height) in (("region", region), ("mark", mark)):
        if x < 0 or y < 0 or min(width, height) < 8 or x + width > picture.shape[1] or y + height > picture.shape[0]:
            raise ConfigError(
                f"{name} = {x},{y},{width},{height} leaves the picture of {picture.shape[1]} x {picture.shape[0]} px, "
                "or is under 8 px; expected x,y,width,height within it"
            )
    grey = to_channels(picture, _format(picture), 1)
    fixture = validate(
        Fixture,
        {
            "cut_px": region[2:],
            "mark_px": (mark[0] - region[0], mark[1] - region[1], mark[2], mark[3]),
            "max_angle_deg": max_angle_deg,
            "scale_play": scale_play,
        },
        "fixture",
    )
    x, y, width, height = mark
    placer = Placer(fixture, np.ascontiguousarray(grey[y : y + height, x : x + width]))
    try:
        placer.place(picture)
    except FixtureError as error:
        raise ConfigError(
            f"{error}, in the very picture that it was taken from. Choose a mark that is there once and looks "
            "different at every turn (--mark), or allow smaller turns (--max-angle)"
        ) from error
    return placer


def learnt_limits(fixture: Fixture, measures: Sequence[dict[str, float]]) -> Fixture:
    """``fixture`` with limits below what at least one good picture gave, with a margin; never under the defaults.

    What a defect does to the score has to fit into the margin: it is to be rejected by its deviation, not here.
    """
    scores = [each["fixture.score"] for each in measures]
    leads = [each["fixture.lead"] for each in measures]
    defaults = Fixture.model_fields
    score = min(scores) - SCORE_MARGIN - 0.5 * (max(scores) - min(scores))
    return fixture.model_copy(
        update={
            "least_score": round(max(defaults["least_score"].default, score), 4),
            "least_lead": round(max(defaults["least_lead"].default, LEAD_SHARE * min(leads)), 4),
            "samples": len(measures),
        }
    )


def write_fixture(folder: Path, placer: Placer, good: Sequence[Mapping[str, float]] = ()) -> None:
    """Write ``fixture.json`` and the mark's picture into ``folder``; ``good``: measures of each good part."""
    folder.mkdir(parents=True, exist_ok=True)
    data = encode_png(placer.mark)
    write_atomic(folder / PICTURE, data)
    placed = {
        name: [measures[f"fixture.{name}"] for measures in good[:MOST_PARTS] if f"fixture.{name}" in measures]
        for name in PLACED
    }
    content = FixtureFile(fixture=placer.fixture, sha256=hashlib.sha256(data).hexdigest(), placed=placed)
    write_atomic(folder / FILE, (content.model_dump_json(indent=1) + "\n").encode())


def open_fixture(folder: Path) -> Placer:
    """The fixture in ``folder``: a bundle, a data set that was cut by one, or what ``flawline fixture make`` wrote.

    Raises ConfigError or BundleError.
    """
    if (folder / MANIFEST).exists():
        placer = placer_of(open_bundle(folder))
        if placer is None:
            raise BundleError(f"{folder}: this bundle has no fixture; train it on pictures cut by one")
        return placer
    found = folder if (folder / FILE).exists() else folder / FOLDER
    if not (found / FILE).exists():
        raise ConfigError(f"{folder}: no fixture ({FILE} is missing); make one: flawline fixture make --help")
    return _read(found)


def fixture_of_data(data: Path) -> Placer | None:
    """The fixture that a data set was cut by; None: by none. Raises ConfigError where it cannot be read."""
    return _read(data / FOLDER) if (data / FOLDER / FILE).exists() else None


def placed_of_data(data: Path) -> dict[str, list[float]]:
    """By name what the fixture that cut a data set said of its good parts; empty where nothing is known.

    Raises ConfigError where its file cannot be read.
    """
    if not (data / FOLDER / FILE).exists():
        return {}
    return {name: values for name, values in _content(data / FOLDER).placed.items() if values}


def _read(folder: Path) -> Placer:
    content = _content(folder)
    try:
        data = (folder / PICTURE).read_bytes()
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be read ({error.strerror})") from error
    if hashlib.sha256(data).hexdigest() != content.sha256:
        raise ConfigError(f"{folder / PICTURE}: is not the picture that {FILE} names: make the fixture again")
    return Placer(content.fixture, read_image(folder / PICTURE, 1))


def _content(folder: Path) -> FixtureFile:
    path = folder / FILE
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: {path.stat().st_size} bytes, at most {MAX_FILE_BYTES}: not a fixture")
        return FixtureFile.model_validate_json(path.read_bytes())
    except OSError as error:
        raise ConfigError(f"{error.filename}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise ConfigError(f"{path}: not a fixture ({str(error).splitlines()[0]}); make it again") from error


def placer_of(bundle: Bundle) -> Placer | None:
    """The bundle's fixture, ready; None: it has none. Raises BundleError where its files do not fit each other."""
    fixture = bundle.manifest.fixture
    if fixture is None:
        return None
    try:
        return Placer(fixture, read_image(bundle.path(ROLE_FIXTURE), 1))
    except ConfigError as error:
        raise BundleError(f"{bundle.root}: {error}") from error


def same_fixture(a: Placer | None, b: Placer | None) -> bool:
    """Whether pictures cut by one are cut as by the other, whatever their limits."""
    if a is None or b is None:
        return a is b
    return (
        a.fixture.cut_px == b.fixture.cut_px
        and a.fixture.mark_px == b.fixture.mark_px
        and np.array_equal(a.mark, b.mark)
    )
