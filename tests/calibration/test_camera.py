"""A camera calibrated on rendered boards with known truth, and what is refused instead of measured badly."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from calibration.board import Board, Found, find_board, printable
from calibration.camera import Limits, Pose, make_plane, solve_lens, solve_plane
from calibration.camera_file import MOST_PLACE_PX, Asked, make_file
from calibration.errors import CalibrationError
from calibration.flat_field import measure_flat
from calibration.place_error import PlaceError, place_error
from contract.correction import Correction, Lens, open_correction
from contract.errors import ConfigError
from contract.images import Pixels, declared_size, decode_image, encode_png
from flawline import main
from tests.boards import Pose as BoardPose
from tests.boards import Truth, camera, plane_pose, pose_at, poses, poses_at, write_views

BOARD = Board()
SEED, FRAME = 1, (480, 360)


@pytest.fixture(scope="module")
def truth() -> Truth:
    return camera(SEED, *FRAME)


@pytest.fixture(scope="module")
def pictures(truth: Truth, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_views(tmp_path_factory.mktemp("boards"), truth, BOARD, 10, SEED)


@pytest.fixture(scope="module")
def made(pictures: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of the command."""
    out = tmp_path_factory.mktemp("made") / "camera.json"
    assert (
        main(["calibrate", "camera", "--board", str(pictures[0]), "--plane", str(pictures[1]), "--out", str(out)]) == 0
    )
    return out


@pytest.fixture(scope="module")
def found(pictures: tuple[Path, Path]) -> list[Found]:
    """Corners in all views, and in the plane's picture last."""
    paths = [*sorted(pictures[0].iterdir()), pictures[1]]
    return [find_board(BOARD, decode_image(path.read_bytes(), 1, path.name), path.name) for path in paths]


def test_scale_and_places_are_those_of_the_truth(made: Path, truth: Truth) -> None:
    """Points all over the plane: half a per cent and a fifth of a pixel are asked for, far less is left."""
    correction = open_correction(made)
    assert correction.content.lens is not None and correction.content.mm_per_px is not None
    assert correction.content.lens.fx == pytest.approx(truth.focal, rel=0.005)
    xs, ys = np.meshgrid(np.linspace(0, 250, 12), np.linspace(0, 175, 9))
    points = np.stack([xs.ravel(), ys.ravel()], axis=1)
    found = correction.to_corrected(truth.project(points, plane_pose(truth, BOARD, SEED)))
    a, b = found - found.mean(axis=0), (points - points.mean(axis=0)) / correction.content.mm_per_px
    first, second = a[:, 0] + 1j * a[:, 1], b[:, 0] + 1j * b[:, 1]
    way = complex((np.conj(second) * first).sum() / (np.abs(second) ** 2).sum())
    assert abs(abs(way) - 1) < 0.002
    assert np.abs(first - way / abs(way) * second).max() < 0.15


def test_the_corrected_picture_of_the_board_is_a_grid_of_squares(made: Path, pictures: tuple[Path, Path]) -> None:
    correction = open_correction(made)
    frame = decode_image(pictures[1].read_bytes(), 1, "plane")
    found = find_board(BOARD, correction.correct(frame), "plane")
    assert len(found.pixels) > 40
    pairs = np.linalg.norm(found.board_mm[:, None] - found.board_mm[None], axis=2)
    seen = np.linalg.norm(found.pixels[:, None] - found.pixels[None], axis=2) * (correction.content.mm_per_px or 0)
    long = pairs > 100
    assert np.abs(seen[long] / pairs[long] - 1).max() < 0.01
    assert abs(float((seen[long] / pairs[long]).mean()) - 1) < 0.003


def test_a_surface_above_the_board_has_a_finer_scale(found: list[Found], made: Path, truth: Truth) -> None:
    below = open_correction(made).content
    assert below.lens is not None and below.mm_per_px is not None
    above = make_plane(below.lens, solve_plane(BOARD, below.lens, found[-1], 30.0), FRAME)
    away = plane_pose(truth, BOARD, SEED).shift[2]
    assert above.mm_per_px is not None
    assert above.mm_per_px / below.mm_per_px == pytest.approx(1 - 30.0 / away, abs=0.02)
    assert above.mm_per_px < below.mm_per_px * 0.97


def test_it_is_told_where_the_file_comes_from_and_what_was_covered(made: Path) -> None:
    measured = open_correction(made).content.measured
    assert measured["lens"]["rms_px"] < 0.2 and measured["lens"]["views"] == 11
    assert set(measured["lens"]["files"]) == {f"{number:02d}.png" for number in range(10)}
    assert measured["lens"]["board"].startswith("10 x 7 squares of 25 mm") and measured["opencv"] == cv2.__version__
    assert str(made.parent.parent) not in made.read_text()
    assert declared_size((made.parent / "camera-coverage.png").read_bytes()) == FRAME


def test_without_a_plane_only_the_lens_is_corrected(made: Path) -> None:
    lens = open_correction(made).content.lens
    assert lens is not None
    plane = make_plane(lens, None, FRAME)
    assert plane.mm_per_px is None
    # A barrel's inner rectangle has about the frame's own size at the scale of its middle.
    assert all(0.9 < size / side < 1.2 for size, side in zip(plane.size_px, FRAME, strict=True))


def test_places_that_views_know_badly_are_told_and_known_once_views_were_there(truth: Truth) -> None:
    """Twelve views without the top left, then two more with the board there."""
    random = np.random.default_rng(5)
    known = np.asarray(BOARD.made().getChessboardCorners(), np.float64)

    def seen(name: str, pose: BoardPose) -> Found:
        at = truth.project(known[:, :2], pose)
        inside = ((at > 0) & (at < np.array(FRAME) - 1)).all(axis=1)
        return Found(name, at[inside] + random.normal(0, 0.05, (int(inside.sum()), 2)), known[inside])

    every = [seen(str(number), pose) for number, pose in enumerate(poses(truth, BOARD, 12, SEED))]
    short = [_without(view, view.pixels @ (1, 1) < 1.0 * FRAME[1]) for view in every]
    flat = seen("plane", plane_pose(truth, BOARD, SEED))

    def error(views: list[Found]) -> PlaceError:
        solved = solve_lens(BOARD, views, FRAME)
        pose = solve_plane(BOARD, solved.lens, flat, 0.0)
        return place_error(BOARD, solved, FRAME, flat, make_plane(solved.lens, pose, FRAME))

    blind = error(short)
    assert blind.where == "top left" and blind.worst_px > MOST_PLACE_PX > blind.mean_px
    there = [seen(f"more {number}", pose) for number, pose in enumerate(poses_at(truth, BOARD, "top left", 2, SEED))]
    assert error([*short, *there]).worst_px < MOST_PLACE_PX


def _without(view: Found, left_out: NDArray[np.bool_]) -> Found:
    return Found(view.name, view.pixels[~left_out], view.board_mm[~left_out])


def test_corners_are_found_better_than_the_detector_finds_them(tmp_path: Path) -> None:
    """The root of the mean square over four views: 0.04 px, and 0.07 of the detector alone."""
    truth = camera(3, 640, 480)
    views, _ = write_views(tmp_path, truth, BOARD, 4, 3)
    own, ours = [], []
    for path, pose in zip(sorted(views.iterdir()), poses(truth, BOARD, 4, 3), strict=True):
        picture = decode_image(path.read_bytes(), 1, path.name)
        view = find_board(BOARD, picture, path.name)
        known = truth.project(view.board_mm[:, :2], pose)
        ours.append(view.pixels - known)
        own.append(cv2.aruco.CharucoDetector(BOARD.made()).detectBoard(picture)[0].reshape(-1, 2) - known)
    here, there = (np.sqrt((np.concatenate(errors) ** 2).sum(axis=1).mean()) for errors in (ours, own))
    assert here < 0.05 and here < 0.75 * there


# What is refused ------------------------------------------------------------------------------------------------------


def test_views_that_say_too_little_are_refused(tmp_path: Path, pictures: tuple[Path, Path], made: Path) -> None:
    few = sorted(pictures[0].iterdir())[:4]
    with pytest.raises(CalibrationError, match=r"4 usable view.s. of 4, at least 6"):
        make_file(Asked(board=few))
    empty = tmp_path / "empty.png"
    empty.write_bytes(encode_png(np.full(FRAME[::-1], 120, np.uint8)))
    with pytest.raises(CalibrationError, match=r"too few corners in empty.png \(0\)"):
        make_file(Asked(board=[*few, empty]))
    lens = open_correction(made).content.lens
    assert lens is not None
    with pytest.raises(CalibrationError, match=r"--plane empty.png: 0 corner"):
        solve_plane(BOARD, lens, find_board(BOARD, np.full(FRAME[::-1], 120, np.uint8), "empty.png"), 0.0)


def test_a_board_seen_from_one_side_only_is_refused(truth: Truth) -> None:
    middle = BOARD.columns * BOARD.square_mm / 2, BOARD.rows * BOARD.square_mm / 2
    flat = [
        pose_at(middle, (0.0, 0.0, 0.5 * number), np.array([12.0 * (number % 3 - 1), 15.0 * (number // 3 - 1), 340.0]))
        for number in range(8)
    ]
    known = np.asarray(BOARD.made().getChessboardCorners(), np.float64)
    found = [Found(str(number), truth.project(known[:, :2], pose), known) for number, pose in enumerate(flat)]
    with pytest.raises(CalibrationError, match=r"tilts differ by 0 degrees at most|tilts differ by 1 degrees"):
        solve_lens(BOARD, found, FRAME)


def test_a_field_that_is_hardly_covered_is_refused(truth: Truth) -> None:
    middle = BOARD.columns * BOARD.square_mm / 2, BOARD.rows * BOARD.square_mm / 2
    far = [
        pose_at(middle, (25.0 * np.cos(number), 25.0 * np.sin(number), 0.0), np.array([-100.0, -60.0, 900.0]))
        for number in range(7)
    ]
    known = np.asarray(BOARD.made().getChessboardCorners(), np.float64)
    corners = [truth.project(known[:, :2], pose) for pose in far]
    found = [Found(str(number), seen, known) for number, seen in enumerate(corners)]
    with pytest.raises(CalibrationError, match=r"corners cover .* of the field, at least 60 %"):
        solve_lens(BOARD, found, FRAME)


def test_another_board_is_refused(pictures: tuple[Path, Path], found: list[Found]) -> None:
    paths = sorted(pictures[0].iterdir())[:6]
    for other, reason in (
        (Board(dictionary="6x6_50"), "usable view"),
        (Board(columns=7, rows=10), "usable view|reprojection error|cover"),
    ):
        with pytest.raises(CalibrationError, match=reason):
            make_file(Asked(board=paths, geometry=other))
    with pytest.raises(CalibrationError, match=r"the reprojection error is .* worst view is"):
        solve_lens(BOARD, found, FRAME, Limits(0.01, 0.02))
    with pytest.raises(CalibrationError, match="take that view out"):
        solve_lens(BOARD, found, FRAME, Limits(0.5, 0.01))
    bent = [view._replace(pixels=view.pixels + 3 * np.sin(view.board_mm[:, :2] / 20)) for view in found]
    with pytest.raises(CalibrationError, match="the reprojection error is"):
        solve_lens(BOARD, bent, FRAME)


def test_pictures_of_several_sizes_are_refused_by_name(pictures: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other.png"
    other.write_bytes(encode_png(np.full((100, 200), 9, np.uint8)))
    with pytest.raises(CalibrationError, match=r"other.png: 200 x 100 px, and .*00.png has 480 x 360"):
        make_file(Asked(board=[sorted(pictures[0].iterdir())[0], other]))


def test_a_camera_that_looks_from_the_side_is_refused() -> None:
    lens = Lens(fx=500, fy=500, cx=240, cy=180, distortion=(0, 0, 0, 0, 0))
    steep = np.array([0.0, np.sin(np.radians(80)), -np.cos(np.radians(80))])
    with pytest.raises(CalibrationError, match="looks"):
        make_plane(lens, Pose(np.array([0.0, 0.0, 300.0]), steep, 0.0), FRAME)
    with pytest.raises(CalibrationError, match=r"would have .* px; expected about"):
        make_plane(lens, Pose(np.array([0.0, 0.0, 300.0]), np.array([0.0, 0.0, -1.0]), 0.0), FRAME, 1e-4)


# White and dark -------------------------------------------------------------------------------------------------------


def frames(level: float, count: int = 4, shade: float = 0.6, seed: int = 0) -> list[Pixels]:
    random = np.random.default_rng(seed)
    ramp = np.linspace(1.0, shade, 60) * np.ones((40, 1))
    return [
        np.clip(np.rint(level * ramp + 4 + random.normal(0, 1, (40, 60))), 0, 255).astype(np.uint8)
        for _ in range(count)
    ]


def test_a_flat_field_makes_white_frames_even_at_their_own_mean() -> None:
    white, dark = frames(200), frames(0, seed=1)
    white[0][10, 10] = white[1][10, 10] = white[2][10, 10] = white[3][10, 10] = 5
    found = measure_flat(white, dark)
    assert found.figures["dead_pixels"] == 1 and found.flat.channels == 1
    from contract.correction import PreprocessFile

    even = Correction(PreprocessFile(created="", frame_px=(60, 40), flat=found.flat), "x").correct(
        frames(200, 1, seed=2)[0]
    )
    assert float(even[:, :10].mean()) == pytest.approx(float(even[:, -10:].mean()), abs=1.0)
    assert float(even.mean()) == pytest.approx(float(np.mean(white)) - 4, abs=1.5)


@pytest.mark.parametrize(
    ("white", "dark", "reason"),
    [
        (frames(300), frames(0), "saturated"),
        (frames(40), frames(0), "mean is .*, expected 60 to 245"),
        (frames(200), frames(90), "--dark: the frames' mean"),
        (frames(200, 1), frames(0), "1 frame.s., at least 3"),
        (frames(200), frames(0, 2), "--dark: 2 frame"),
        (frames(240, shade=0.02), frames(0), "too uneven"),
    ],
)
def test_frames_of_no_use_are_refused(white: list[Pixels], dark: list[Pixels], reason: str) -> None:
    with pytest.raises(CalibrationError, match=reason):
        measure_flat(white, dark)


def test_a_dirty_sensor_is_refused() -> None:
    white = frames(200)
    for frame in white:
        frame[5::8, 5::8] = 3
    with pytest.raises(CalibrationError, match="dead, hot or under dust"):
        measure_flat(white, frames(0))


# The command ----------------------------------------------------------------------------------------------------------


def test_the_board_is_drawn_with_its_size_and_found_in_its_own_picture(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "board.png"
    words = ["--squares", "6x5", "--square-mm", "12", "--marker-mm", "9", "--markers", "4x4_50"]
    assert main(["calibrate", "camera", "--draw-board", str(path), *words]) == 0
    assert "6 x 5 squares of 12 mm" in capfd.readouterr().out
    board = Board(6, 5, 12.0, 9.0, "4x4_50")
    data = path.read_bytes()
    assert data == printable(board) and data[37:41] == b"pHYs"
    assert int.from_bytes(data[41:45]) == 12_000  # pixels a metre
    found = find_board(board, decode_image(data, 1, "board"), "board")
    assert len(found.pixels) == board.corners
    sides = np.diff(found.pixels[:5], axis=0)[:, 0] / 12
    assert np.abs(sides - 12).max() < 0.05  # millimetres of the print
    for bad in (["--squares", "6"], ["--markers", "9x9_1"], ["--marker-mm", "30"], ["--squares", "60x60"]):
        assert main(["calibrate", "camera", "--draw-board", str(path), *bad]) == 2


def test_an_older_file_is_measured_anew_in_part_cropped_and_given_a_template(
    made: Path, pictures: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, level in (("white", 180), ("dark", 0)):
        (tmp_path / name).mkdir()
        for number in range(3):
            frame = np.clip(np.random.default_rng(number).normal(level + 4, 1, FRAME[::-1]), 0, 255).astype(np.uint8)
            (tmp_path / name / f"{number}.png").write_bytes(encode_png(frame))
    out = tmp_path / "both.json"
    light = ["--white", str(tmp_path / "white"), "--dark", str(tmp_path / "dark")]
    assert (
        main(["calibrate", "camera", "--from", str(made), *light, "--region", "20,30,200,150", "--out", str(out)]) == 0
    )
    before, after = open_correction(made).content, open_correction(out).content
    assert after.lens == before.lens and after.flat is not None and after.size_px == (200, 150)
    assert after.measured["lens"] == before.measured["lens"] and after.measured["flat"]["white_frames"] == 3
    frame = decode_image(pictures[1].read_bytes(), 1, "plane")
    whole = open_correction(made).correct(frame)[30:180, 20:220].astype(int)
    shown = Correction(after.model_copy(update={"flat": None}), "x").correct(frame)
    assert np.abs(whole - shown).max() <= 1
    straight = tmp_path / "straight"
    assert main(["calibrate", "correct", str(out), str(pictures[1]), "--out", str(straight)]) == 0
    assert declared_size((straight / "plane.png").read_bytes()) == (200, 150)
    fixture, placed = tmp_path / "fixture", tmp_path / "placed.json"
    words = ["--region", "60,40,80,60", "--out", str(fixture)]
    assert main(["fixture", "make", str(straight / "plane.png"), *words]) == 0
    assert main(["calibrate", "camera", "--from", str(out), "--template", str(fixture), "--out", str(placed)]) == 0
    cut = tmp_path / "cut"
    assert main(["calibrate", "correct", str(placed), str(pictures[1]), "--out", str(cut)]) == 0
    assert declared_size((cut / "plane.png").read_bytes()) == (80, 60)
    bare = tmp_path / "bare.png"
    bare.write_bytes(encode_png(np.full(FRAME[::-1], 120, np.uint8)))
    assert main(["calibrate", "correct", str(placed), str(bare), "--out", str(cut)]) == 2
    assert "bare.png: fixture: " in capfd.readouterr().err


def test_corrected_pictures_that_would_be_written_over_are_refused(
    made: Path, pictures: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    plane = pictures[1].read_bytes()
    for name in ("good/1.png", "scratch/1.png", "twice/1.jpg", "twice/1.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(plane)
    good, scratch, twice, out = (tmp_path / name for name in ("good", "scratch", "twice", "out"))

    def said(*words: Path | str) -> str:
        assert main(["calibrate", "correct", str(made), *map(str, words)]) == 2
        return " ".join(capfd.readouterr().err.split())

    both = said(good, scratch, "--out", out)
    assert f"{good / '1.png'} and {scratch / '1.png'}: both would become {out / '1.png'}" in both
    assert f"--out {out / 'scratch'}" in both
    assert f"{twice / '1.jpg'} and {twice / '1.png'}: both would become" in said(twice, "--out", out)
    assert "would be written over it" in said(good, "--out", good)
    assert not out.exists() and (good / "1.png").read_bytes() == plane
    assert f"--out {scratch / '1.png' / '1.png'}: cannot be written" in said(good, "--out", scratch / "1.png")
    assert main(["calibrate", "correct", str(made), str(scratch), "--out", str(out / "scratch")]) == 0
    assert [path.name for path in (out / "scratch").iterdir()] == ["1.png"]


def test_a_new_plane_takes_nothing_of_the_older_one(
    made: Path, pictures: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    fixture, placed, out = tmp_path / "fixture", tmp_path / "placed.json", tmp_path / "out.json"
    straight = tmp_path / "straight"
    assert main(["calibrate", "correct", str(made), str(pictures[1]), "--out", str(straight)]) == 0
    words = ["--region", "60,40,80,60", "--out", str(fixture)]
    assert main(["fixture", "make", str(straight / "plane.png"), *words]) == 0
    template = ["--template", str(fixture)]
    assert main(["calibrate", "camera", "--from", str(made), *template, "--out", str(placed)]) == 0
    assert "Note:" not in capfd.readouterr().out
    before = open_correction(placed).content
    assert before.template is not None and "plane" in before.measured
    board = ["calibrate", "camera", "--from", str(placed), "--board", str(pictures[0]), "--out", str(out)]
    assert main(board) == 0
    assert "template is left out: its mark is in pixels of the older plane" in capfd.readouterr().out
    bare = open_correction(out).content
    assert bare.template is None and bare.mm_per_px is None and "plane" not in bare.measured
    plane = ["--plane", str(pictures[1]), "--height-mm", "5", "--mm-per-px", "0.8"]
    assert main([*board, *plane, *template]) == 0
    assert "template is left out" not in capfd.readouterr().out
    anew = open_correction(out).content
    assert anew.template == before.template and anew.mm_per_px == 0.8 and anew.measured["plane"]["height_mm"] == 5


def test_words_of_a_plane_that_is_not_measured_are_refused(
    made: Path, pictures: tuple[Path, Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "x.json"
    for option, value in (("--height-mm", "5"), ("--height-mm", "0"), ("--mm-per-px", "0.05")):
        for board in ([], ["--board", str(pictures[0])]):
            words = ["--from", str(made), *board, option, value, "--out", str(out)]
            assert main(["calibrate", "camera", *words]) == 2, words
            assert f"{option} needs --board IMAGES and --plane IMAGE" in capfd.readouterr().err
    assert not out.exists()


def test_mistaken_options_are_refused(tmp_path: Path, made: Path, capfd: pytest.CaptureFixture[str]) -> None:
    out = str(tmp_path / "x.json")
    for words, reason in (
        (["--board", str(tmp_path)], "give --out FILE"),
        (["--board", str(tmp_path), "--out", out], "no images in"),
        (["--out", out], "nothing to measure"),
        (["--from", str(made), "--region", "400,0,400,20", "--out", out], "leaves the corrected picture"),
        (["--from", str(made), "--region", "1,2,3", "--out", out], "expected four whole numbers"),
        (["--from", str(made), "--channels", "blue", "--out", out], "expected grey, rgb or auto"),
        (["--from", str(tmp_path / "none"), "--out", out], "cannot be read"),
    ):
        assert main(["calibrate", "camera", *words]) == 2, words
        assert reason in capfd.readouterr().err
    assert not Path(out).exists()
    with pytest.raises(ConfigError):
        open_correction(tmp_path)
