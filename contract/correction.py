"""The preprocess file: raw frame -> even light -> straight picture of the parts' plane -> the part (hop 3, its start).

In this order, since dark and white frames are of the sensor's own pixels, and a mark is found by its true shape. The
same function corrects the pictures that are learnt from and the frames of the line; it is made of whole numbers and
single roundings, so that every machine computes the same pixels.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import threading
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from pydantic_core import from_json

from contract.bundle import ROLE_PREPROCESS, Bundle, preprocess_fault
from contract.config import Strict, validate
from contract.errors import BundleError, ConfigError, ImageError
from contract.fixture import Placed, Placer, cut_mask, moved
from contract.images import MAX_PIXELS, Channels, Pixels, decode_png
from contract.locate import Box
from contract.preprocess import SATURATED
from contract.recipe import Fixture
from contract.release import digest_of

FORMAT = "flawline.preprocess/1"
MAX_FILE_BYTES = 512 << 20
MAX_SIDE = 16384
GAIN_ONE = 8192  # a gain of 1 in the file; 0: the pixel is dead, and its neighbours stand for it
DEAD_SHARE = 0.002
DEAD_REACH = 8  # pixels within which a dead one needs a good one
EDGE_PX = 1.0  # by which the corrected picture may reach over the frame's border: what is there repeats the border
_PIECE = 1 << 20  # characters of Base64, a multiple of four
_ROWS = 64  # of a map that are made at a time
ITERATIONS = 60  # of the lens's inverse
_SUB = 32  # OpenCV's own steps within a pixel

Side = Annotated[int, Field(ge=8, le=MAX_SIDE)]
Size = tuple[Side, Side]
Number = Annotated[float, Field(ge=-1e6, le=1e6, allow_inf_nan=False)]
Vector = tuple[Number, Number, Number]


class Lens(Strict):
    """OpenCV's pinhole camera with radial (k1, k2, k3) and tangential (p1, p2) distortion, in pixels of the frame."""

    fx: Annotated[float, Field(ge=1, le=1e6)]
    fy: Annotated[float, Field(ge=1, le=1e6)]
    cx: Number
    cy: Number
    distortion: tuple[Number, Number, Number, Number, Number] = Field(description="k1, k2, p1, p2, k3")

    def matrix(self) -> NDArray[np.float64]:
        return np.array([[self.fx, 0, self.cx], [0, self.fy, self.cy], [0, 0, 1]], np.float64)

    def rays(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Of pixels of the frame, [N, 2], the undistorted x / z and y / z in the camera's axes."""
        k1, k2, p1, p2, k3 = self.distortion
        seen = (points - (self.cx, self.cy)) / (self.fx, self.fy)
        x, y = seen[:, 0], seen[:, 1]
        for _ in range(ITERATIONS):
            r2 = x * x + y * y
            radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
            x, y = (
                (seen[:, 0] - 2 * p1 * x * y - p2 * (r2 + 2 * x * x)) / radial,
                (seen[:, 1] - p1 * (r2 + 2 * y * y) - 2 * p2 * x * y) / radial,
            )
        return np.stack([x, y], axis=1)


class Plane(Strict):
    """What the corrected picture shows: the plane in which parts lie, seen straight from above.

    Its pixel (u, v) is the point ``origin + u * along_x + v * along_y``, in millimetres in the camera's own axes;
    without a scale the plane is one across the camera's axis, and only the lens is corrected.
    """

    origin: Vector
    along_x: Vector
    along_y: Vector
    size_px: Size = Field(description="width and height of the corrected picture")
    mm_per_px: Annotated[float, Field(gt=1e-6, le=1e3)] | None = None

    @model_validator(mode="after")
    def _square(self) -> Plane:
        x, y = np.array(self.along_x), np.array(self.along_y)
        sides = float(np.linalg.norm(x)), float(np.linalg.norm(y))
        if min(sides) <= 0 or abs(sides[0] - sides[1]) > 1e-6 * sides[0] or abs(x @ y) > 1e-6 * sides[0] * sides[1]:
            raise ValueError("along_x and along_y are not of one length and across each other")
        if self.mm_per_px is not None and abs(sides[0] - self.mm_per_px) > 1e-6 * self.mm_per_px:
            raise ValueError(f"mm_per_px = {self.mm_per_px:g}, and along_x is {sides[0]:g} mm long")
        width, height = self.size_px
        depths = [(np.array(self.origin) + u * x + v * y)[2] for u in (0, width - 1) for v in (0, height - 1)]
        if min(depths) <= 0 or max(depths) > 100 * min(depths):
            raise ValueError("the plane reaches behind the camera")
        return self

    def homography(self) -> NDArray[np.float64]:
        """Takes (u, v, 1) to the ray through it, [x, y, z] in the camera's axes."""
        return np.array([self.along_x, self.along_y, self.origin], np.float64).T


class FlatField(Strict):
    """Even light: (raw - dark) * gain. Both pictures are PNGs of the frame's size in Base64."""

    channels: Literal[1, 3]
    dark: str = Field(description="8 bits: what the sensor gives without light")
    gain: str = Field(description="16 bits: 8192 is a gain of 1, 0 marks a dead pixel")


class Template(Strict):
    """The fixture by which a part is found in the corrected picture, with its mark's picture (PNG, Base64)."""

    fixture: Fixture
    mark: str


class PreprocessFile(Strict):
    """Written by ``flawline calibrate camera``; ``sha256`` is that of the rest in canonical JSON."""

    format: Literal["flawline.preprocess/1"] = FORMAT  # type: ignore[assignment]
    created: str = Field(max_length=100)
    frame_px: Size = Field(description="width and height of the raw frame")
    lens: Lens | None = None
    plane: Plane | None = None
    flat: FlatField | None = None
    template: Template | None = None
    measured: dict[str, Any] = Field(default_factory=dict, description="where it comes from, and how good it is")
    sha256: str = ""

    @model_validator(mode="after")
    def _whole(self) -> PreprocessFile:
        if (self.lens is None) != (self.plane is None):
            raise ValueError("lens and plane go together")
        for name, size in (("frame_px", self.frame_px), ("size_px", self.size_px)):
            if size[0] * size[1] > MAX_PIXELS:
                raise ValueError(f"{name} = {size[0]} x {size[1]}: at most {MAX_PIXELS} pixels")
        return self

    @property
    def size_px(self) -> tuple[int, int]:
        """Width and height of the corrected picture."""
        return self.frame_px if self.plane is None else self.plane.size_px

    @property
    def mm_per_px(self) -> float | None:
        return None if self.plane is None else self.plane.mm_per_px

    def computed_sha256(self) -> str:
        return _digest(self.model_dump(mode="json"))

    def signed(self) -> bytes:
        """The file's bytes, its hash renewed."""
        content = self.model_copy(update={"sha256": self.computed_sha256()})
        return (content.model_dump_json(indent=1) + "\n").encode()


class Correction:
    """A preprocess file ready to be used, for frames of one size. May be used by several threads."""

    def __init__(self, content: PreprocessFile, source: str) -> None:
        """Raises ConfigError where its pictures and numbers do not fit each other."""
        self.content = content
        self.source = source
        width, height = content.frame_px
        self._maps = None if content.plane is None else _maps(content, source)
        self._flat: dict[int, tuple[Pixels, NDArray[np.float32]]] = {}
        self._dead: tuple[NDArray[np.intp], ...] = ()
        if content.flat is not None:
            dark, gain = _flat_pictures(content.flat, (width, height), source)
            self._dead = _dead_pixels(gain, source)
            self._flat[content.flat.channels] = dark, gain.astype(np.float32) / np.float32(GAIN_ONE)
        self.placer = None if content.template is None else _placer(content.template, source)
        self._lock = threading.Lock()

    def correct(self, frame: Pixels) -> Pixels:
        """Even light, then straight: uint8 [h, w] or RGB [h, w, 3] of ``size_px``; a new array unless nothing changes.

        ``frame``: uint8 [H, W] or RGB [H, W, 3] of ``frame_px``. Raises ImageError where it is another.
        """
        width, height = self.content.frame_px
        if frame.dtype != np.uint8 or frame.shape[:2] != (height, width) or frame.ndim not in (2, 3):
            raise ImageError(
                f"frame of shape {frame.shape}, {frame.dtype}: the preprocess file is of whole frames of {width} x "
                f"{height} px; set the camera to that size, or calibrate it again: flawline calibrate camera"
            )
        if self.content.flat is not None:
            frame = self._even(frame)
        if self._maps is None:
            return frame
        straight = cv2.remap(frame, *self._maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        return np.asarray(straight, np.uint8)

    def part(self, frame: Pixels, placer: Placer | None = None, search: Box | None = None) -> Placed:
        """The corrected part, and how it lies in the corrected picture.

        ``placer``: the file's own fixture, perhaps with learnt limits. ``search``: where in the raw frame the part is;
        it is looked for around there. Raises ImageError, FixtureError where the part is not found.
        """
        picture = self.correct(frame)
        placer = placer or self.placer
        if placer is None:
            return Placed(picture, (1.0, 0.0, 0.0, 0.0, 1.0, 0.0), {})
        box = Box(0, 0, picture.shape[1], picture.shape[0]) if search is None else self.box(search)
        with self._lock:
            placed = placer.place(picture[box.y : box.y + box.h, box.x : box.x + box.w])
        return placed._replace(to_picture=moved(placed.to_picture, box.x, box.y))

    def mask(self, frame: Pixels, mask: Pixels, placer: Placer | None = None) -> Pixels:
        """A mask of the raw frame, uint8 [H, W] of 0 and 255, as the part of ``frame`` was cut out."""
        if mask.shape != frame.shape[:2]:
            raise ImageError(f"mask of {mask.shape[1]} x {mask.shape[0]} px for a picture of {frame.shape[1]} x "
                             f"{frame.shape[0]} px")  # fmt: skip
        straight = mask if self._maps is None else np.asarray(cv2.remap(mask, *self._maps, cv2.INTER_LINEAR), np.uint8)
        straight = np.where(straight >= 128, 255, 0).astype(np.uint8)
        if (placer or self.placer) is None:
            return straight
        return cut_mask(straight, self.part(frame, placer))

    def box(self, box: Box) -> Box:
        """The corrected picture's part that shows a box of the raw frame: its corners' and sides' bounds."""
        width, height = self.content.size_px
        if self.content.plane is None:
            return box
        xs, ys = np.meshgrid(np.linspace(box.x, box.x + box.w - 1, 5), np.linspace(box.y, box.y + box.h - 1, 5))
        found = self.to_corrected(np.stack([xs.ravel(), ys.ravel()], axis=1))
        low = np.clip(np.floor(found.min(axis=0)), 0, (width - 1, height - 1)).astype(int)
        high = np.clip(np.ceil(found.max(axis=0)) + 1, low + 1, (width, height)).astype(int)
        return Box(int(low[0]), int(low[1]), int(high[0] - low[0]), int(high[1] - low[1]))

    def to_corrected(self, points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Centres of pixels of the raw frame, float64 [N, 2], as those of the corrected picture."""
        lens, plane = self.content.lens, self.content.plane
        if lens is None or plane is None:
            return points
        rays = lens.rays(points)
        found = np.column_stack([rays, np.ones(len(rays))]) @ np.linalg.inv(plane.homography()).T
        return np.asarray(found[:, :2] / found[:, 2:], np.float64)

    def _even(self, frame: Pixels) -> Pixels:
        channels: Channels = 1 if frame.ndim == 2 else 3
        if channels not in self._flat:
            if channels == 1:
                raise ImageError(
                    "a grey picture, and the preprocess file's flat field is in colour: train with --channels rgb, or "
                    "calibrate the camera with --channels grey"
                )
            dark, gain = self._flat[1]
            self._flat[3] = cv2.merge([dark] * 3), cv2.merge([gain] * 3)  # type: ignore[assignment]
        dark, gain = self._flat[channels]
        # A product of two exact numbers, rounded once to float32 and once to a level: the same on every processor.
        even = np.asarray(cv2.subtract(frame, dark), np.uint8)
        cv2.multiply(even, gain, dst=even, dtype=cv2.CV_8U)
        # Where light is plentiful the gain is below 1: what the sensor could not measure must not look as if it had.
        cv2.max(even, cv2.threshold(frame, SATURATED - 1, 255, cv2.THRESH_BINARY)[1], dst=even)
        if self._dead:
            at, one, other = self._dead
            flat = even.reshape(-1, *even.shape[2:])
            flat[at] = (flat[one].astype(np.uint16) + flat[other] + 1) >> 1
        return even


def _maps(content: PreprocessFile, source: str) -> tuple[NDArray[np.int16], NDArray[np.uint16]]:
    """Where in the frame each corrected pixel lies: whole pixels, and 32nds of one in both directions.

    Computed element by element, where no library may fuse or order otherwise: equal on every machine.
    """
    lens, plane = content.lens, content.plane
    assert lens is not None and plane is not None  # noqa: S101 - as the file's model says
    width, height = plane.size_px
    k1, k2, p1, p2, k3 = lens.distortion
    ways = plane.homography()
    whole, within = np.empty((height, width, 2), np.int16), np.empty((height, width), np.uint16)
    most = np.array([content.frame_px[0] - 1 + EDGE_PX, content.frame_px[1] - 1 + EDGE_PX])
    u = np.arange(width, dtype=np.float64)
    for top in range(0, height, _ROWS):
        v = np.arange(top, min(height, top + _ROWS), dtype=np.float64)[:, np.newaxis]
        ray = [way[0] * u + way[1] * v + way[2] for way in ways]
        x, y = ray[0] / ray[2], ray[1] / ray[2]
        r2 = x * x + y * y
        radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
        frame_x = lens.fx * (x * radial + 2 * p1 * (x * y) + p2 * (r2 + 2 * (x * x))) + lens.cx
        frame_y = lens.fy * (y * radial + p1 * (r2 + 2 * (y * y)) + 2 * p2 * (x * y)) + lens.cy
        low = min(float(frame_x.min()), float(frame_y.min()))
        if not (low >= -EDGE_PX and float(frame_x.max()) <= most[0] and float(frame_y.max()) <= most[1]):
            raise ConfigError(f"{source}: the corrected picture reaches out of the frame: calibrate the camera again")
        at_x = np.floor(frame_x * _SUB + 0.5).astype(np.int32)
        at_y = np.floor(frame_y * _SUB + 0.5).astype(np.int32)
        rows = slice(top, top + len(v))
        whole[rows, :, 0], whole[rows, :, 1] = at_x >> 5, at_y >> 5
        within[rows] = (at_y & _SUB - 1) * _SUB + (at_x & _SUB - 1)
    return whole, within


def _flat_pictures(flat: FlatField, size: tuple[int, int], source: str) -> tuple[Pixels, NDArray[np.uint16]]:
    dark = decode_png(_bytes(flat.dark, source), size, flat.channels, np.dtype(np.uint8), f"{source}: dark")
    gain = decode_png(_bytes(flat.gain, source), size, flat.channels, np.dtype(np.uint16), f"{source}: gain")
    return dark.astype(np.uint8, copy=False), gain.astype(np.uint16, copy=False)


def _digest(raw: dict[str, Any]) -> str:
    """Of all that stands in a file but its hash; the light's large pictures are in it by their own."""
    rest = {name: value for name, value in raw.items() if name != "sha256"}
    if isinstance(flat := raw.get("flat"), dict):
        rest["flat"] = {name: _short(value) for name, value in flat.items()}
    return digest_of(rest)


def _short(value: Any) -> Any:
    return hashlib.sha256(value.encode()).hexdigest() if isinstance(value, str) else value


def _bytes(text: str, source: str) -> bytes:
    """Piece by piece: a running station's other threads wait for each."""
    try:
        pieces = (text[at : at + _PIECE] for at in range(0, len(text), _PIECE))
        return b"".join(base64.b64decode(piece, validate=True) for piece in pieces)
    except (ValueError, binascii.Error) as error:
        raise ConfigError(f"{source}: a picture in it is not Base64 ({error}): calibrate the camera again") from error


def _dead_pixels(gain: NDArray[np.uint16], source: str) -> tuple[NDArray[np.intp], ...]:
    """Indices of dead pixels and of two good ones near each, of one row or column; empty where there are none."""
    dead = (gain if gain.ndim == 2 else gain.min(axis=2)) == 0
    places = np.argwhere(dead)
    if len(places) > DEAD_SHARE * dead.size:
        raise ConfigError(
            f"{source}: {len(places)} dead pixels of {dead.size}, at most {100 * DEAD_SHARE:g} %: clean or replace "
            "the camera, then calibrate it again"
        )
    if not len(places):
        return ()
    pairs = [_near(dead, int(y), int(x)) for y, x in places]
    if None in pairs:
        y, x = places[pairs.index(None)]
        raise ConfigError(f"{source}: around ({x}, {y}) no pixel within {DEAD_REACH} is alive: clean the camera")
    width = dead.shape[1]
    found = np.array([each for each in pairs if each is not None], np.intp)
    return places[:, 0] * width + places[:, 1], found[:, 0], found[:, 1]


def _near(dead: NDArray[np.bool_], y: int, x: int) -> tuple[int, int] | None:
    """The two nearest good pixels left and right, above and below, or one of them twice at the border."""
    height, width = dead.shape
    for reach in range(1, DEAD_REACH + 1):
        for pair in (((y, x - reach), (y, x + reach)), ((y - reach, x), (y + reach, x))):
            good = [
                row * width + column
                for row, column in pair
                if 0 <= row < height and 0 <= column < width and not dead[row, column]
            ]
            if good:
                return good[0], good[-1]
    return None


def _placer(template: Template, source: str) -> Placer:
    size = template.fixture.mark_px[2], template.fixture.mark_px[3]
    mark = decode_png(_bytes(template.mark, source), size, 1, np.dtype(np.uint8), f"{source}: mark")
    return Placer(template.fixture, mark.astype(np.uint8, copy=False))


def open_correction(path: Path) -> Correction:
    """Read and verify a preprocess file. Raises ConfigError; no memory is taken for what it only claims to hold."""
    try:
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ConfigError(f"{path}: {path.stat().st_size} bytes, at most {MAX_FILE_BYTES}: not a preprocess file")
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror or error})") from error
    try:
        return Correction(read_content(data, str(path)), str(path))
    except ImageError as error:
        raise ConfigError(str(error)) from error


def read_content(data: bytes, source: str) -> PreprocessFile:
    """The verified content of a preprocess file. Raises ConfigError."""
    try:
        raw = from_json(data)
    except ValueError as error:
        raise ConfigError(f"{source}: not valid JSON ({str(error)[:100]}): not a preprocess file") from error
    if not isinstance(raw, dict) or raw.get("format") != FORMAT:
        found = raw.get("format") if isinstance(raw, dict) else type(raw).__name__
        raise ConfigError(f"{source}: format {found!r:.60}; this version reads {FORMAT!r}")
    content = validate(PreprocessFile, raw, source)
    # Of what stands in the file: a field that a later version adds is not in an older file's hash.
    if content.sha256 != _digest(raw):
        raise ConfigError(f"{source}: content and sha256 differ: it was changed after it was written; calibrate again")
    return content


def correction_of(bundle: Bundle, renewing: bool = False) -> Correction | None:
    """The bundle's preprocess file, ready; None: it has none.

    Raises BundleError where it cannot be used, or where thresholds and golden images were made with another one, unless
    ``renewing``: they are about to be made anew.
    """
    entry = bundle.manifest.files.get(ROLE_PREPROCESS)
    if not renewing and (fault := preprocess_fault(bundle.manifest)) is not None:
        raise BundleError(f"{bundle.root}: {fault}")
    return None if entry is None else _opened(bundle.path(ROLE_PREPROCESS), entry.sha256)


@lru_cache(maxsize=4)
def _opened(path: Path, sha256: str) -> Correction:
    """Of a bundle's file, whose hash stands in the manifest: its maps are made once for all that read pictures."""
    try:
        return open_correction(path)
    except ConfigError as error:
        raise BundleError(str(error)) from error
