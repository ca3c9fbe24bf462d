"""``flawline inspect`` on real files: verdicts, pictures, exit codes."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.quality import bounds_from, see
from contract.images import read_image
from contract.preprocess import prepare
from contract.recipe import Recipe, Thresholds, Tiling, View
from edge_runtime.inspect_cli import SUFFIX
from edge_runtime.picture import join_maps
from flawline import main
from tests.bundles import draw_part
from tests.graphs import write_bundle

LIMITS = Thresholds(
    reject=2.0, map=1.5, method="test", false_reject_rate=0.1, groups=1, images=1, engine="onnxruntime-1 fp32 cpu"
)


def make(folder: Path, recipe: Recipe, calibrated: bool = True) -> Path:
    good = [draw_part(number, colour=recipe.channels == 3) for number in range(20)]
    quality = bounds_from([see(prepare(part, recipe), part.shape[:2]) for part in good])
    write_bundle(
        folder, good, recipe, thresholds=LIMITS if calibrated else None, quality=quality if calibrated else None
    )
    return folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make(tmp_path_factory.mktemp("inspect") / "bundle", Recipe())


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    folder = tmp_path / "parts"
    (folder / "more").mkdir(parents=True)
    bad = draw_part(90)
    bad[16:24, 56:64] = 20
    cv2.imwrite(str(folder / "good.png"), draw_part(91))
    cv2.imwrite(str(folder / "more" / "bad.png"), bad)
    cv2.imwrite(str(folder / "more" / "black.png"), np.zeros((80, 80), np.uint8))
    return folder


def test_verdict_and_picture_for_each(
    bundle: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "new" / "seen"
    assert main(["inspect", str(bundle), str(parts), "--out", str(out)]) == 0
    lines = capsys.readouterr().out.splitlines()
    found = {Path(line.split()[0]).name: line.split()[1] for line in lines if ".png" in line.split()[0]}
    assert found == {"good.png": "PASS", "bad.png": "REJECT", "black.png": "NOT_INSPECTED"}
    assert any("image quality: mean of view 'main' is 0 below" in line for line in lines)
    pictures = {path.name: read_image(path, 3) for path in out.iterdir()}
    assert set(pictures) == {f"{name}{SUFFIX}" for name in ("good", "bad", "black")}
    assert pictures[f"bad{SUFFIX}"].shape[1] > 3 * 380 > pictures[f"black{SUFFIX}"].shape[1]
    # where it deviates the overlay is coloured, elsewhere it is the grey picture
    overlay = pictures[f"bad{SUFFIX}"][28:, 390:774].astype(int)
    colour = np.abs(overlay[..., 0] - overlay[..., 2])
    assert colour[80:110, 275:300].mean() > 30 > 5 > colour[300:370, 20:200].mean()


def test_folder_with_earlier_pictures_is_not_inspected_twice(bundle: Path, parts: Path) -> None:
    for _ in range(2):
        assert main(["inspect", str(bundle), str(parts), "--out", str(parts)]) == 0
    assert len(list(parts.glob(f"*{SUFFIX}"))) == 3


def test_same_name_in_two_folders(bundle: Path, parts: Path, tmp_path: Path) -> None:
    cv2.imwrite(str(parts / "more" / "good.png"), draw_part(95))
    assert main(["inspect", str(bundle), str(parts), "--out", str(tmp_path / "out")]) == 0
    assert len(list((tmp_path / "out").iterdir())) == 4


def test_bad_images_are_named_and_the_others_inspected(
    bundle: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (parts / "empty.png").write_bytes(b"")
    (parts / "text.jpg").write_text("hello")
    missing = parts / "none.png"
    assert main(["inspect", str(bundle), str(parts), str(missing), "--out", str(tmp_path / "out")]) == 2
    shown = capsys.readouterr()
    assert {name for name in ("empty.png", "text.jpg", "none.png") if name in shown.err} == {
        "empty.png",
        "text.jpg",
        "none.png",
    }
    assert shown.err.count("\n") == 3
    assert "good.png" in shown.out and "PASS" in shown.out
    assert len(list((tmp_path / "out").iterdir())) == 3


def test_without_pictures(bundle: Path, parts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["inspect", str(bundle), str(parts / "good.png"), "--no-pictures"]) == 0
    assert list(tmp_path.glob(f"**/*{SUFFIX}")) == []


def test_nothing_to_inspect(bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "bare").mkdir()
    assert main(["inspect", str(bundle), str(tmp_path / "bare")]) == 2
    assert "no images found" in capsys.readouterr().err


def test_target_that_is_a_file(bundle: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").write_text("")
    assert main(["inspect", str(bundle), str(parts / "good.png"), "--out", str(tmp_path / "file")]) == 2
    assert "cannot be written" in capsys.readouterr().err


def test_uncalibrated_bundle_says_the_way_out(parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make(tmp_path / "bundle", Recipe(), calibrated=False)
    assert main(["inspect", str(bundle), str(parts / "good.png"), "--out", str(tmp_path / "out")]) == 0
    shown = capsys.readouterr().out
    assert "NOT_INSPECTED" in shown and "flawline calibrate thresholds" in shown
    assert read_image(tmp_path / "out" / f"good{SUFFIX}", 3).shape[1] > 1000  # scored, so there is a map to see


def test_unknown_engine_and_missing_bundle(
    bundle: Path, parts: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(bundle), str(parts), "--engine", "abacus"]) == 2
    assert "no engine 'abacus'" in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "nowhere"), str(parts)]) == 2
    assert "no such folder" in capsys.readouterr().err


def test_colour_parts_with_several_views(tmp_path: Path) -> None:
    views = [
        View(name="top", region=(0, 0, 1, 0.5), tiling=Tiling(columns=2, overlap_px=8)),
        View(name="low", region=(0, 0.5, 0.5, 0.5)),
    ]
    bundle = make(tmp_path / "bundle", Recipe(channels=3, tile_hw=(32, 32), views=views))
    cv2.imwrite(str(tmp_path / "part.png"), draw_part(3, colour=True))
    assert main(["inspect", str(bundle), str(tmp_path / "part.png"), "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / f"part{SUFFIX}").is_file()


def test_joined_maps_lie_where_the_views_do() -> None:
    from contract.decision import ViewMap

    left = ViewMap("left", np.full((4, 4), 2.0, np.float32), (0, 0, 50, 100))
    right = ViewMap("right", np.full((8, 8), 5.0, np.float32), (40, 0, 40, 100))
    joined = join_maps([left, right], (100, 100), (50, 50))
    assert (joined[:, :20] == 2).all() and (joined[:, 20:40] == 5).all() and (joined[:, 40:] == 2).all()
