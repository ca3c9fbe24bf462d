"""The map's normal level: what it rests on, and what it does for parts with a textured place."""

from __future__ import annotations

import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.calibrate import Rates
from calibration.levels import Tried, Use, find_levels, grid, grids_of, level_of, pool_side
from calibration.places import Where
from contract.bundle import open_bundle
from contract.dataset import load_dataset, sha256_of_image
from contract.decision import PartScore, ViewMap, find_regions
from contract.images import read_image
from contract.places import Located
from contract.recipe import Places, Recipe
from edge_runtime.engines import open_engine
from edge_runtime.inspector import Inspector
from flawline import main
from tests import graphs
from tests.bundles import calibrated, draw_part

USES: tuple[Use, ...] = ("always", "never")
BAND = (slice(12, 30), slice(12, 68))


def textured(number: int, defect: tuple[int, int] | None = None) -> np.ndarray:
    """A drawn part with a rough band across its upper half, and maybe a faint spot at (row, column)."""
    part = draw_part(number).astype(np.float32)
    random = np.random.default_rng(number + 9)
    part[BAND] += cv2.GaussianBlur(random.normal(0, 40, (18, 56)).astype(np.float32), (3, 3), 0)
    if defect is not None:
        cv2.circle(part, defect[::-1], 5, float(part[defect]) - 14, -1)
    return np.clip(part, 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A bundle whose graph does not divide by what is typical at a place, and 90 good parts."""
    folder = tmp_path_factory.mktemp("textured")
    data = folder / "data"
    (data / "train" / "good").mkdir(parents=True)
    for number in range(90):
        cv2.imwrite(str(data / "train" / "good" / f"part_{number:03d}.png"), textured(number))
    fitted = load_dataset(data).train[:30]
    hashes = [sha256_of_image(sample.path) for sample in fitted]
    with pytest.MonkeyPatch.context() as patch:
        plain_graph, plain_reference = graphs.make_graph, graphs.reference
        patch.setattr(graphs, "make_graph", lambda mean, scale: plain_graph(mean, np.full_like(scale, 10)))
        patch.setattr(
            graphs, "reference", lambda tiles, mean, scale: plain_reference(tiles, mean, np.full_like(scale, 10))
        )
        graphs.write_bundle(
            folder / "bundle", [read_image(s.path, 1) for s in fitted], fit=hashes[:-5], validation=hashes[-5:]
        )
    return folder / "bundle", data


def test_regions_lie_on_the_defect_and_not_in_the_texture(made: tuple[Path, Path], tmp_path: Path) -> None:
    """Both limits let 5 % of good parts show a region; with levels faint spots outside the texture are found."""
    found = {}
    for levels in USES:
        folder = Path(shutil.copytree(made[0], tmp_path / levels))
        calibrated(folder, made[1], Rates(0.05), "onnxruntime", where=Where(levels=levels))
        bundle = open_bundle(folder)
        limits = bundle.manifest.thresholds
        assert limits is not None and (limits.region_level is not None) is (levels == "always")
        inspector = Inspector(bundle, open_engine("onnxruntime", bundle))
        hits = false = 0
        for number in range(60):
            row, column = 45 + number % 20, 20 + (7 * number) % 40
            part = inspector.score(textured(1000 + number, (row, column)))[0]
            regions = find_regions(part, limits.map, bundle.manifest.recipe, inspector.places, limits.region_level)
            on = [r for r in regions if _holds(r.box_px, row, column)]
            hits += bool(on)
            false += len(regions) - len(on)
        found[levels] = (hits, false)
    assert found["always"][0] >= found["never"][0] + 20, found
    assert found["always"][1] <= 12, found


def _holds(box: tuple[float, float, float, float], row: int, column: int) -> bool:
    x, y, width, height = box
    return x - 3 <= column <= x + width + 3 and y - 3 <= row <= y + height + 3


def test_about_the_asked_share_of_good_parts_shows_a_region(made: tuple[Path, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made[0], tmp_path / "b"))
    result = calibrated(folder, made[1], Rates(0.05), "onnxruntime")
    bundle = open_bundle(folder)
    limits = result.thresholds
    inspector = Inspector(bundle, open_engine("onnxruntime", bundle))
    shown = sum(
        bool(
            find_regions(
                inspector.score(textured(5000 + number))[0],
                limits.map,
                bundle.manifest.recipe,
                inspector.places,
                limits.region_level,
            )
        )
        for number in range(400)
    )
    assert 0 < shown <= 0.12 * 400, shown


def test_levels_are_used_where_drawn_defects_say_so(
    made: tuple[Path, Path], drawn: Path, fresh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The textured parts need them; the graph of the others divides by what is typical at each place already."""
    textured_bundle = Path(shutil.copytree(made[0], tmp_path / "textured"))
    for folder, data, used in ((textured_bundle, made[1], True), (fresh, drawn, False)):
        assert main(["calibrate", "thresholds", str(folder), "--data", str(data), "--engine", "onnxruntime"]) == 0
        said = capsys.readouterr().out
        assert "of 60 defects drawn into held-out parts" in said
        assert ("serves no better" in said) is not used
        assert ("level.0" in open_bundle(folder).manifest.files) is used
    assert Tried(60, 20, 23).worth and not Tried(60, 20, 22).worth
    assert main(["calibrate", "thresholds", str(fresh), "--data", str(drawn), "--level", "yes"]) == 2
    assert "expected auto, always, never" in capsys.readouterr().err


def test_levels_move_no_verdict(made: tuple[Path, Path], tmp_path: Path) -> None:
    limits = []
    for levels in USES:
        folder = Path(shutil.copytree(made[0], tmp_path / levels))
        limits.append(
            calibrated(folder, made[1], Rates(0.05, 0.2), "onnxruntime", where=Where(levels=levels)).thresholds
        )
    assert limits[0].model_copy(update={"region_level": None}) == limits[1]


def test_calibrating_again_replaces_levels_and_leaves_no_file(made: tuple[Path, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made[0], tmp_path / "b"))
    calibrated(folder, made[1], Rates(0.05), "onnxruntime", where=Where(levels="always"))
    with_levels = open_bundle(folder).manifest
    assert list(with_levels.place_files()) == ["level.0"] and len(list(folder.glob("level-*"))) == 1
    calibrated(folder, made[1], Rates(0.05), "onnxruntime", where=Where(levels="never"))
    without = open_bundle(folder).manifest
    assert not without.place_files() and not list(folder.glob("level-*"))
    assert without.calibration_id() != with_levels.calibration_id()


def test_few_parts_are_said_and_get_no_level(
    drawn: Path, fresh: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "few"
    (data / "train" / "good").mkdir(parents=True)
    for path in sorted((drawn / "train" / "good").iterdir())[30:39]:
        shutil.copy(path, data / "train" / "good")
    command = ["calibrate", "thresholds", str(fresh), "--data", str(data), "--false-reject-rate", "0.2"]
    assert main(command) == 0
    assert "9 parts are too few for a normal level" in capsys.readouterr().out
    manifest = open_bundle(fresh).manifest
    assert manifest.thresholds is not None and manifest.thresholds.region_level is None and not manifest.place_files()


@pytest.mark.parametrize(("parts", "side"), [(10, 5), (22, 5), (23, 3), (199, 3), (200, 1), (1000, 1)])
def test_few_parts_pool_their_neighbours(parts: int, side: int) -> None:
    assert pool_side(parts) == side


def test_pooled_quantiles_are_steadier() -> None:
    stack = np.random.default_rng(2).gamma(2.0, 1.0, (20, 32, 32)).astype(np.float32)
    inside = np.ones((32, 32), bool)
    alone, pooled = level_of(stack, inside, 1), level_of(stack, inside, 5)
    assert pooled.spread.std() < 0.4 * alone.spread.std()


@pytest.mark.parametrize("shape", [(32, 32), (64, 64), (50, 70), (129, 33), (7, 5), (300, 211)])
def test_the_grid_s_peak_is_the_map_s(shape: tuple[int, int]) -> None:
    """What the limit was calibrated on is what the line cuts: each place of the grid holds the line's pixels."""
    recipe = Recipe(tile_hw=(512, 512))
    random = np.random.default_rng(3)
    maps = [random.random(shape).astype(np.float32) for _ in range(12)]
    parts = [PartScore(0.0, "main", [ViewMap("main", values, (0, 0, 8, 8))]) for values in maps]
    levels = find_levels([grids_of(part) for part in parts], [str(number) for number in range(12)])
    assert levels is not None
    places = Located(recipe, shape, Places(), {}, levels.views)
    level = levels.views["main"]
    for values in maps:
        on_map = places.levelled("main", values)
        assert on_map is not None
        on_grid = (grid(values) - level.middle) / level.spread
        assert float(on_map.max()) == pytest.approx(float(on_grid.max()), rel=1e-5)


def test_a_part_s_own_pictures_are_not_in_its_level() -> None:
    stack = np.ones((20, 4, 4), np.float32)
    stack[::2] += np.random.default_rng(4).random((10, 4, 4)).astype(np.float32)
    stack[6] = 50.0
    levels = find_levels([{"main": values} for values in stack], [str(number) for number in range(20)])
    own = level_of(stack, np.ones((4, 4), bool), pool_side(20))
    assert levels is not None and levels.peaks[6] > float(((stack[6] - own.middle) / own.spread).max())
