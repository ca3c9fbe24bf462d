"""Parts that several cameras see: one folder a part, from the images to a bundle that judges them together."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from calibration.errors import CalibrationError
from contract.bundle import Bundle, open_bundle
from contract.dataset import load_dataset, per_picture, sha256_of_image
from contract.errors import DatasetError, ImageError
from contract.event import Verdict
from contract.images import Pixels
from contract.part_pictures import read_part
from contract.preprocess import prepare
from contract.recipe import Recipe, View
from edge_runtime.engines import open_engine
from edge_runtime.inspector import Inspector
from flawline import main
from tests.bundles import draw_part, train_small_bundle

RECIPE = Recipe(views=[View(name="above", camera="top"), View(name="beside", camera="side")])


def draw_seen(number: int, defect: str = "") -> dict[str, Pixels]:
    """A part as two cameras see it: the one beside sees it narrower and upside down."""
    beside = draw_part(number, defect == "side")[::-1]
    return {"top": draw_part(number + 500_000, defect == "top"), "side": np.ascontiguousarray(beside[:, :60])}


def put(folder: Path, seen: dict[str, Pixels]) -> Path:
    folder.mkdir(parents=True)
    for camera, picture in seen.items():
        cv2.imwrite(str(folder / f"{camera}.png"), picture)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("cameras")
    for number in range(90):
        put(root / "train" / "good" / f"part_{number:03d}", draw_seen(number))
    for number in range(6):
        put(root / "test" / "good" / f"part_{number:03d}", draw_seen(1000 + number))
        put(root / "test" / "spot" / f"part_{number:03d}", draw_seen(2000 + number, "side" if number % 2 else "top"))
    return root


@pytest.fixture(scope="module")
def opened(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = train_small_bundle(tmp_path_factory.mktemp("trained") / "bundle", data, steps=60)
    assert main(["calibrate", "thresholds", str(folder), "--data", str(data)]) == 0
    return open_bundle(folder)


def test_a_folder_is_a_part_and_its_files_are_cameras(data: Path) -> None:
    dataset = load_dataset(data)
    assert (len(dataset.train), len(dataset.test)) == (90, 12)
    assert len({sample.group for sample in dataset.train}) == 90
    assert {sample.path.stem for sample in per_picture(dataset).train} == {"top", "side"}
    read = read_part(dataset.train[0].path, RECIPE)
    assert isinstance(read, dict)
    assert {view: picture.shape for view, picture in read.items()} == {"above": (80, 80), "beside": (80, 60)}
    assert prepare(read, RECIPE).tiles.shape == (2, 64, 64, 1)
    with pytest.raises(ImageError, match="one picture of a part that cameras side, top see"):
        prepare(read["above"], RECIPE)


def test_a_part_is_known_by_all_of_its_pictures(tmp_path: Path) -> None:
    part = put(tmp_path / "part", draw_seen(1))
    before = sha256_of_image(part)
    cv2.imwrite(str(part / "side.png"), draw_part(7))
    assert sha256_of_image(part) != before


def test_what_is_missing_or_double_is_named(tmp_path: Path) -> None:
    good = tmp_path / "train" / "good"
    put(good / "a", draw_seen(1))
    put(good / "b", draw_seen(2))
    (good / "b" / "side.png").rename(good / "b" / "back.png")
    with pytest.raises(DatasetError, match="b: back, top; expected side, top, as a has: one of each camera"):
        load_dataset(tmp_path)
    with pytest.raises(ImageError, match=r"no picture of camera 'side' \(back, top found\)"):
        read_part(good / "b", RECIPE)
    cv2.imwrite(str(good / "b" / "back.bmp"), draw_part(7))
    with pytest.raises(DatasetError, match=r"back\.bmp and back\.png are both of camera 'back'"):
        load_dataset(tmp_path)


def test_the_bundle_judges_both_pictures_as_one_part(opened: Bundle) -> None:
    views = opened.manifest.recipe.views
    assert [(view.name, view.camera) for view in views] == [("side", "side"), ("top", "top")]
    assert opened.manifest.quality is not None and set(opened.manifest.quality.views) == {"side", "top"}
    inspector = Inspector(opened, open_engine("onnxruntime", opened))
    good = [inspector.inspect(draw_seen(3000 + number)) for number in range(12)]
    assert sum(each.verdict is Verdict.PASS for each in good) >= 9, [each.reason for each in good]
    for bad in ("side", "top"):
        found = [inspector.inspect(draw_seen(4000 + number, bad)) for number in range(8)]
        flagged = [each for each in found if each.verdict in (Verdict.REJECT, Verdict.REVIEW)]
        assert len(flagged) >= 6, [each.reason for each in found]
        assert sum(each.part is not None and each.part.worst_view == bad for each in flagged) >= 5
    alone = inspector.inspect(draw_part(1))
    assert (alone.verdict, "expected one of each view" in (alone.reason or "")) == (Verdict.NOT_INSPECTED, True)
    turned = draw_seen(3000) | {"side": 0 * draw_seen(3000)["side"]}
    assert "of view 'side' is" in (inspector.inspect(turned).reason or "")


def test_test_images_of_both_are_looked_at_and_implants_are_refused(opened: Bundle, data: Path) -> None:
    from calibration.capability import Implants, measure

    with pytest.raises(CalibrationError, match="is of several cameras"):
        measure(opened.root, data, implants=Implants(("spot",)))
