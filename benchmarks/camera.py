"""How true a calibrated camera is: millimetres and places on rendered boards, light on shaded parts, and the time.

    python -m benchmarks.camera --json FILE

``geometry``: cameras with known lens, tilt, blur and noise see a ChArUco board; the preprocess file made of the
pictures is held against the truth. ``told_px``: what the command itself says that places may be off, after the first
views and after more were taken where it asked for them. ``off_px``: the worst of ``lens_px`` after the same views.
``scale``: error of its millimetres per pixel in per cent. ``lens_px``: how far points of the plane, projected exactly,
lie from where they belong in the corrected picture, over the whole of it. ``mark_px``: the same for a mark that lies at
eight places and turns in rendered, noisy frames, found by the fixture.
Where the picture begins is free, so that places are compared after one shift and turn for all, without a scale.
``light``: AUROC of small bundles on drawn plates anywhere in the frame: learnt and tested in even light, in shade with
dust, and in shade with the flat field made of white and dark frames; the same parts and noise each
time. ``speed_ms``: a 5 MP grey frame on one core, in processor time; the median and the least of the rounds.
``anew``: what was measured after the rest of the file, when and where.
"""

from __future__ import annotations

import base64
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from benchmarks.common import machine, parser, write
from calibration.board import Board
from calibration.camera_file import MOST_PLACE_PX, Asked, expand, make_file
from calibration.flat_field import measure_flat
from calibration.metrics import ranking
from contract.bundle import open_bundle
from contract.correction import Correction, PreprocessFile, Template
from contract.dataset import load_dataset
from contract.errors import ImageError
from contract.fixture import make_fixture
from contract.images import Pixels, encode_png
from contract.part_pictures import line_of, read_part
from edge_runtime.engines import open_engine
from edge_runtime.inspector import Inspector
from edge_runtime.synthetic import DEFECTS
from tests.boards import Pose, Truth, camera, plane_pose, poses_at, see, write_poses, write_views
from tests.bundles import train_small_bundle
from tests.turned import FRAME_HW, Lie, Turned, anywhere

BOARD = Board()
FRAME = (640, 480)
VIEWS, SEEDS = 16, 4
MORE, MOST_ROUNDS = 3, 8  # views taken in addition where places are badly known, and how often
CONDITIONS: dict[str, dict[str, float]] = {
    "blur 0.6 px, noise 2": {},
    "blur 1.2 px, noise 2": {"blur_px": 1.2},
    "blur 0.6 px, noise 6": {"noise": 6.0},
}
MARK_MM = (70.0, 50.0)
TEXELS = 8  # of a millimetre, in what is rendered
PLACES = 8
PARTS, TESTED, STEPS, LIGHT_SEEDS = 90, 80, 200, 3
LIGHT_REGION = (70, 80, 180, 140)
ROUNDS = 15
FIVE_MP = (2448, 2048)
Floats = NDArray[np.float64]


# Geometry ------------------------------------------------------------------------------------------------------------


def apart(found: Floats, true_mm: Floats, mm_per_px: float) -> tuple[Floats, float]:
    """Distances in pixels after the best shift and turn, and the scale's error in per cent."""
    a, b = (values - values.mean(axis=0) for values in (found, true_mm / mm_per_px))
    first, second = a[:, 0] + 1j * a[:, 1], b[:, 0] + 1j * b[:, 1]
    way = complex((np.conj(second) * first).sum() / (np.abs(second) ** 2).sum())
    return np.abs(first - way / abs(way) * second), 100 * (abs(way) - 1)


def geometry(seed: int, look: dict[str, float], folder: Path) -> dict[str, Any]:
    """One camera's errors against the truth."""
    truth = camera(seed, *FRAME)
    contents, pose = taken(seed, truth, look, folder), plane_pose(truth, BOARD, seed)
    off = [_off(content, truth, pose) for content in contents]
    content, (lens_px, scale) = contents[-1], off[-1]
    assert content.mm_per_px is not None and content.lens is not None
    correction = Correction(content, "benchmark")
    mark_px, mark_scale = apart(*_found_marks(correction, truth, pose, seed, look), content.mm_per_px)
    return {
        "seed": seed,
        "views": content.measured["lens"]["views"] - 1,
        "told_px": [each.measured["lens"]["places"]["worst_px"] for each in contents],
        "off_px": [float(distances.max()) for distances, _ in off],
        "rms_px": content.measured["lens"]["rms_px"],
        "focal_percent": 100 * (content.lens.fx / truth.focal - 1),
        "scale_percent": scale,
        "mark_scale_percent": mark_scale,
        "lens_px": {
            "mean": float(lens_px.mean()),
            "p99": float(np.quantile(lens_px, 0.99)),
            "worst": float(lens_px.max()),
        },
        "mark_px": {"mean": float(mark_px.mean()), "worst": float(mark_px.max())},
    }


def taken(seed: int, truth: Truth, look: dict[str, float], folder: Path) -> list[PreprocessFile]:
    """What the command makes of VIEWS, and each time of more where it says that places are badly known."""
    views, plane = write_views(folder, truth, BOARD, VIEWS, seed, **look)
    made: list[PreprocessFile] = []
    for again in range(MOST_ROUNDS):
        made.append(make_file(Asked(board=expand([views], "--board"), plane=plane)).content)
        places = made[-1].measured["lens"]["places"]
        if places["worst_px"] <= MOST_PLACE_PX:
            break
        more = poses_at(truth, BOARD, places["where"], MORE, 100 * seed + again)
        write_poses(views, truth, BOARD, more, np.random.default_rng([seed, 8, again]), **look)
    return made


def _off(content: PreprocessFile, truth: Truth, pose: Pose) -> tuple[Floats, float]:
    """How far points of the plane lie from where they belong, and the scale's error in per cent."""
    assert content.mm_per_px is not None
    return apart(*_seen_points(Correction(content, "benchmark"), truth, pose), content.mm_per_px)


def _seen_points(correction: Correction, truth: Truth, pose: Pose) -> tuple[Floats, Floats]:
    """Points of the plane all over the field: in the corrected picture, and in millimetres."""
    xs, ys = np.meshgrid(np.linspace(-150, 400, 45), np.linspace(-150, 330, 41))
    points = np.stack([xs.ravel(), ys.ravel()], axis=1)
    frame = truth.project(points, pose)
    inside = ((frame >= 0) & (frame <= np.array(truth.frame_px) - 1)).all(axis=1)
    found = correction.to_corrected(frame[inside])
    shown = ((found >= 0) & (found <= np.array(correction.content.size_px) - 1)).all(axis=1)
    return found[shown], points[inside][shown]


def _found_marks(
    correction: Correction, truth: Truth, pose: Pose, seed: int, look: dict[str, float]
) -> tuple[Floats, Floats]:
    """Middles of a mark at several places and turns: as found in corrected frames, and in millimetres."""
    random, drawn = np.random.default_rng([seed, 7]), mark_picture()
    middle = np.array([BOARD.columns, BOARD.rows]) * BOARD.square_mm / 2
    found, true_mm, placer = [], [], None
    for number in range(PLACES):
        turn = 0.0 if number == 0 else float(random.uniform(-180, 180))
        at = middle + (0 if number == 0 else random.uniform((-70, -45), (70, 45)))
        frame = see(truth, _lying(pose, at, turn), drawn, TEXELS, random, **look)
        straight = correction.correct(frame)
        if placer is None:
            seen = correction.to_corrected(truth.project(at[np.newaxis], pose))[0]
            half = 0.55 * np.hypot(*MARK_MM) / (correction.content.mm_per_px or 1.0)
            box = (round(seen[0] - half), round(seen[1] - half), round(2 * half), round(2 * half))
            placer = make_fixture(straight, box)
            reference = seen - (box[0] - 0.0, box[1] - 0.0)
        a, b, c, d, e, f = placer.place(straight).to_picture
        u, v = reference + 0.5
        found.append((a * u + b * v + c, d * u + e * v + f))
        true_mm.append(at)
    return np.array(found), np.array(true_mm)


def mark_picture() -> Pixels:
    """A plate with holes that looks different at every turn, TEXELS to a millimetre."""
    width, height = (round(side * TEXELS) for side in MARK_MM)
    picture = np.full((height, width), 60, np.uint8)
    for x, y, radius, level in (
        (0.2, 0.3, 0.14, 230),
        (0.75, 0.25, 0.09, 200),
        (0.7, 0.7, 0.18, 20),
        (0.3, 0.8, 0.06, 250),
    ):
        cv2.circle(picture, (round(x * width), round(y * height)), round(radius * height), level, -1, cv2.LINE_AA)
    cv2.rectangle(picture, (width // 2 - 30, 20), (width // 2 + 30, height // 2), 180, -1)
    return picture


def _lying(plane: Pose, at: Floats, turn_deg: float) -> Pose:
    """The mark's middle at ``at`` millimetres in the plane of ``plane``, turned within it."""
    rotation = np.asarray(cv2.Rodrigues(plane.turn)[0], np.float64)
    turned = rotation @ np.asarray(cv2.Rodrigues(np.array([0.0, 0.0, np.radians(turn_deg)]))[0], np.float64)
    shift = plane.shift + rotation @ np.array([*at, 0.0]) - turned @ np.array([MARK_MM[0] / 2, MARK_MM[1] / 2, 0.0])
    return Pose(np.asarray(cv2.Rodrigues(turned)[0]).ravel(), shift)


# Light ---------------------------------------------------------------------------------------------------------------


class Lamp:
    """Shade that falls to half in one corner, with dust on the sensor; ``even`` is without both."""

    def __init__(self, seed: int) -> None:
        random, (height, width) = np.random.default_rng([seed, 8]), FRAME_HW
        ys, xs = np.mgrid[:height, :width].astype(np.float32)
        far = np.hypot((xs - 0.3 * width) / width, (ys - 0.35 * height) / height)
        self.shade = 1.0 - 0.55 * np.clip(far, 0, 0.9)
        for _ in range(12):
            x, y, radius = random.uniform(0, width), random.uniform(0, height), random.uniform(1.5, 4.0)
            self.shade *= 1 - 0.45 * np.exp(-(((xs - x) ** 2 + (ys - y) ** 2) / (2 * radius**2)))

    def lit(self, scene: Floats, random: np.random.Generator, even: bool) -> Pixels:
        """A frame of a scene without noise: light, the sensor's own level and its noise."""
        light = scene if even else scene * self.shade
        return np.clip(np.rint(light + 4 + random.normal(0, 1.5, scene.shape)), 0, 255).astype(np.uint8)


def write_parts(folder: Path, lamp: Lamp, even: bool, seed: int) -> Path:
    """Plates at any place, good ones to learn from, and good and defective ones to test; equal but for light."""
    random = np.random.default_rng([seed, 9])
    good = Turned(seed=seed, parts=PARTS + TESTED + 2)
    kinds = {kind: Turned(seed=seed, parts=PARTS + 2 * TESTED + 2, kind=kind) for kind in DEFECTS}
    sides = [("train/good", number, good) for number in range(PARTS)]
    sides += [("test/good", PARTS + number, good) for number in range(TESTED)]
    for number in range(TESTED):
        kind = list(kinds)[number % len(kinds)]
        sides.append((f"test/{kind}", PARTS + TESTED + number, kinds[kind]))
    for name, number, parts in sides:
        lie = Lie(160, 150, 0.0) if number == 0 else _near(random)
        scene = parts.frame(number, lie, random, noise=0.0).astype(np.float64)
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / f"{number:04d}.png").write_bytes(encode_png(lamp.lit(scene, random, even)))
    return folder


def _near(random: np.random.Generator) -> Lie:
    """Anywhere in the frame, turned a little."""
    return anywhere(random)._replace(angle_deg=float(random.uniform(-8, 8)))


def files_of(lamp: Lamp, data: Path, seed: int, flat: bool) -> PreprocessFile:
    """The template, and the flat field if wanted, as ``flawline calibrate camera`` would make them."""
    random = np.random.default_rng([seed, 10])
    made = None
    if flat:
        white = [lamp.lit(np.full(FRAME_HW, 225.0), random, even=False) for _ in range(16)]
        made = measure_flat(white, [lamp.lit(np.zeros(FRAME_HW), random, even=False) for _ in range(16)]).flat
    bare = PreprocessFile(created="", frame_px=FRAME_HW[::-1], flat=made)
    first = cv2.imread(str(data / "train/good/0000.png"), cv2.IMREAD_GRAYSCALE)
    placer = make_fixture(
        Correction(bare, "benchmark").correct(np.asarray(first, np.uint8)), LIGHT_REGION, max_angle_deg=15
    )
    mark = base64.b64encode(encode_png(placer.mark)).decode()
    return bare.model_copy(update={"template": Template(fixture=placer.fixture, mark=mark)})


def light(seed: int, folder: Path) -> dict[str, Any]:
    """AUROC in even light, in shade, and in shade with the flat field."""
    lamp, found = Lamp(seed), {}
    for name, even, flat in (("even", True, False), ("shaded", False, False), ("corrected", False, True)):
        data = write_parts(folder / name / "data", lamp, even, seed)
        file = folder / name / "preprocess.json"
        file.write_bytes(files_of(lamp, data, seed, flat).signed())
        out = train_small_bundle(folder / name / "bundle", data, steps=STEPS, preprocess=file, seed=seed)
        found[name] = _auroc(out, data)
    return {"seed": seed} | found


def _auroc(folder: Path, data: Path) -> float:
    bundle = open_bundle(folder)
    inspector, line = Inspector(bundle, open_engine("onnxruntime", bundle, 1)), line_of(bundle)
    scores: dict[bool, list[float]] = {True: [], False: []}
    for sample in load_dataset(data).test:
        try:
            score = inspector.score(read_part(sample.path, bundle.manifest.recipe, line))[0].score
        except ImageError:
            score = float("inf")  # not found: never passed
        scores[sample.label == "good"].append(score)
    return ranking(np.array(scores[True]), np.array(scores[False])).auroc or 0.0


# Speed ---------------------------------------------------------------------------------------------------------------


def speed() -> dict[str, Any]:
    """Milliseconds of a 5 MP grey frame."""
    truth = camera(1, *FIVE_MP)
    random = np.random.default_rng(0)
    lens = {"fx": truth.focal, "fy": truth.focal, "cx": truth.centre[0], "cy": truth.centre[1],
            "distortion": (*truth.distortion, 0.0)}  # fmt: skip
    from calibration.camera import Pose as Plane
    from calibration.camera import make_plane
    from contract.correction import Lens

    pose = plane_pose(truth, BOARD, 1)
    normal = np.asarray(cv2.Rodrigues(pose.turn)[0], np.float64)[:, 2]
    plane = make_plane(Lens(**lens), Plane(pose.shift, -normal, 0.0), FIVE_MP)  # type: ignore[arg-type]
    white = [np.clip(random.normal(180, 3, FIVE_MP[::-1]), 0, 250).astype(np.uint8) for _ in range(3)]
    dark = [np.full(FIVE_MP[::-1], 4, np.uint8) for _ in range(3)]
    content = PreprocessFile(
        created="",
        frame_px=FIVE_MP,
        lens=Lens(**lens),
        plane=plane,
        flat=measure_flat(white, dark).flat,  # type: ignore[arg-type]
    )
    begun = time.process_time()
    whole = Correction(content, "benchmark")
    ready_ms = 1e3 * (time.process_time() - begun)
    flat = Correction(content.model_copy(update={"lens": None, "plane": None}), "benchmark")
    straight = Correction(content.model_copy(update={"flat": None}), "benchmark")
    frame = random.integers(0, 250, FIVE_MP[::-1], dtype=np.uint8)
    size = plane.size_px
    xs, ys = (values.astype(np.float32) for values in np.meshgrid(np.arange(size[0]), np.arange(size[1])))
    ways: dict[str, Callable[[], object]] = {
        "copy": frame.copy,
        "cv2.remap alone": lambda: cv2.remap(frame, xs, ys, cv2.INTER_LINEAR),
        "flat field": lambda: flat.correct(frame),
        "straight": lambda: straight.correct(frame),
        "both": lambda: whole.correct(frame),
    }
    cv2.setNumThreads(1)
    took: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(ROUNDS):
        for name, way in ways.items():
            begun = time.process_time()
            way()
            took[name].append(1e3 * (time.process_time() - begun))
    rows = {name: {"median": statistics.median(each), "least": min(each)} for name, each in took.items()}
    return {
        "frame": f"{FIVE_MP[0]} x {FIVE_MP[1]}",
        "corrected": f"{size[0]} x {size[1]}",
        "made_ready_ms": ready_ms,
        "rows": rows,
        "both_to_remap": rows["both"]["median"] / rows["cv2.remap alone"]["median"],
    }


def worst(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Over all cameras of a condition."""
    return {
        "scale_percent": max(abs(row["scale_percent"]) for row in rows),
        "mark_scale_percent": max(abs(row["mark_scale_percent"]) for row in rows),
        "lens_px_p99": max(row["lens_px"]["p99"] for row in rows),
        "lens_px": max(row["lens_px"]["worst"] for row in rows),
        "lens_px_after_the_first_views": max(row["off_px"][0] for row in rows),
        "mark_px": max(row["mark_px"]["worst"] for row in rows),
        "mark_px_mean": statistics.mean(row["mark_px"]["mean"] for row in rows),
    }


def all_geometry(folder: Path) -> dict[str, Any]:
    """Every camera in every condition."""
    found = {}
    for number, (condition, look) in enumerate(CONDITIONS.items()):
        rows = [geometry(seed, look, folder / f"{number}-{seed}") for seed in range(1, SEEDS + 1)]
        found[condition] = {"rows": rows, "worst": worst(rows)}
    return found


def all_light(folder: Path) -> dict[str, Any]:
    """Every seed, and the means."""
    rows = [light(seed, folder / f"light{seed}") for seed in range(1, LIGHT_SEEDS + 1)]
    means = {way: statistics.mean(row[way] for row in rows) for way in ("even", "shaded", "corrected")}
    return {"rows": rows, "mean": means, "corrected_to_even": means["corrected"] - means["even"]}


PARTS_OF_IT: dict[str, Callable[[Path], dict[str, Any]]] = {
    "speed_ms": lambda _: speed(),
    "geometry": all_geometry,
    "light": all_light,
}


def main() -> None:
    asked = parser(__doc__)
    asked.add_argument("--part", choices=PARTS_OF_IT, help="measure this anew and keep the rest of the file")
    arguments, before = asked.parse_args(), machine()
    figures: dict[str, Any] = {}
    if arguments.part is not None:
        older = json.loads(arguments.json.read_text())
        kept = ("date", "machine", "anew", *PARTS_OF_IT)
        figures = {name: older[name] for name in kept if name in older}
        now = datetime.now(UTC).isoformat(timespec="seconds")
        figures["anew"] = figures.get("anew", {}) | {arguments.part: {"date": now, "machine": before}}
    for name in PARTS_OF_IT if arguments.part is None else [arguments.part]:
        with tempfile.TemporaryDirectory() as folder:
            figures[name] = PARTS_OF_IT[name](Path(folder))
    write(arguments.json, figures, before)


if __name__ == "__main__":
    main()
