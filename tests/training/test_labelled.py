"""A few labelled defects: found and refused, changed together with their masks, and learnt by the discriminator."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from calibration.calibrate import propose
from calibration.errors import CalibrationError
from calibration.evaluate import evaluate
from calibration.int8 import make_int8
from calibration.methods import Choice, Rates
from calibration.report import evaluation_rows
from contract.bundle import ROLE_DATA, open_bundle
from contract.dataset import load_dataset, sha256_of_image
from contract.errors import ConfigError, DatasetError
from contract.recipe import Recipe, Tiling, View
from tests.bundles import draw_data, draw_part, train_small_bundle
from training.augment import Augmentation
from training.cli import app, make_settings
from training.defect_files import defects_of_types, find_defects, refuse_known
from training.defects import Drawn
from training.errors import TrainingError
from training.fit import Loop, Tiles, measure_statistics, new_model
from training.labelled import Labelled, load_labelled
from training.models import MODELS
from training.models.ganomaly_d import GanomalyD, as_good
from training.settings import TrainSettings

Picture = NDArray[np.uint8]


def _waves(number: int, side: int = 80) -> tuple[Picture, Picture]:
    """A good part with faint waves in a patch, and the mask of the patch."""
    part = draw_part(number, side=side).astype(np.float32)
    y, x = np.mgrid[:side, :side].astype(np.float32)
    random = np.random.default_rng(number)
    patch = np.hypot(x - random.uniform(0.3, 0.7) * side, y - random.uniform(0.3, 0.7) * side) < 0.16 * side
    made = part + patch * 20.0 * np.sin(2 * np.pi * x / 6)
    return np.clip(made, 0, 255).astype(np.uint8), (255 * patch).astype(np.uint8)


def _save(folder: Path, name: str, picture: Picture, mask: Picture | None, label: str = "waves") -> None:
    for path, content in ((folder / label / name, picture), (folder / "ground_truth" / label / name, mask)):
        if content is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), content)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return draw_data(tmp_path_factory.mktemp("data"), good=16, test_good=4, defective=4)


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three images with waves, which no image of ``data`` shows."""
    folder = tmp_path_factory.mktemp("known")
    for number in range(3):
        _save(folder, f"{number}.png", *_waves(50_000 + number))
    return folder


# The folder ----------------------------------------------------------------------------------------------------------


def test_labelled_images_are_found_by_class_with_their_masks(known: Path) -> None:
    found = find_defects(known)
    assert [(sample.label, sample.group) for sample in found] == [("waves", f"waves/{n}.png") for n in range(3)]
    assert all(sample.mask is not None and "ground_truth" in sample.mask.parts for sample in found)


def _in_the_way(folder: Path) -> None:
    cv2.imwrite(str(folder / "a.png"), draw_part(1))


def _good(folder: Path) -> None:
    _save(folder, "a.png", draw_part(1), np.zeros((80, 80), np.uint8), "good")


def _without_a_mask(folder: Path) -> None:
    _save(folder, "a.png", draw_part(1), None)


def _of_another_size(folder: Path) -> None:
    _save(folder, "a.png", draw_part(1), np.full((40, 40), 255, np.uint8))


def _empty(folder: Path) -> None:
    _save(folder, "a.png", draw_part(1), np.zeros((80, 80), np.uint8))


def _inverted(folder: Path) -> None:
    mask = np.full((80, 80), 255, np.uint8)
    mask[40:44, 40:44] = 0
    _save(folder, "a.png", draw_part(1), mask)


def _torn(folder: Path) -> None:
    _save(folder, "a.png", *_waves(1))
    path = folder / "waves" / "a.png"
    path.write_bytes(path.read_bytes()[:200])


def _torn_mask(folder: Path) -> None:
    _save(folder, "a.png", *_waves(1))
    (folder / "ground_truth" / "waves" / "a.png").write_bytes(b"no image")


def _class_without_images(folder: Path) -> None:
    (folder / "waves").mkdir()
    (folder / "waves" / "notes.txt").write_text("later")


def _masks_alone(folder: Path) -> None:
    _save(folder / "ground_truth", "a.png", draw_part(1), None)


HOSTILE: dict[Callable[[Path], None], str] = {
    lambda folder: None: "holds no class of defects; expected .*<class>/<name>.png",
    _in_the_way: "images without a class",
    _good: "holds the class 'good'; good images belong into --data",
    _without_a_mask: r"no mask of waves/a.png: where a defect is, is what is learnt. Draw .*_mask.png",
    _of_another_size: "40 x 40, the image 80 x 80; expected a mask of the image's size",
    _empty: "no pixel at 128 or above",
    _inverted: "100% of the pixels; expected a mask",
    _torn: "a.png: truncated",
    _torn_mask: "ground_truth/waves/a.png",
    _class_without_images: "waves: no images of that class",
    _masks_alone: "holds no class of defects",
}


@pytest.mark.parametrize(("make", "message"), HOSTILE.items())
def test_a_folder_that_cannot_be_learnt_from_is_refused(
    make: Callable[[Path], None], message: str, tmp_path: Path
) -> None:
    make(tmp_path)
    with pytest.raises(DatasetError, match=message):
        find_defects(tmp_path)


def test_a_missing_folder_is_met_before_the_training(data: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"--defects .*none: no such folder"):
        app(["--data", str(data), "--out", str(tmp_path / "b"), "--defects", str(tmp_path / "none")])
    assert not (tmp_path / "b").exists()


def test_folders_of_types_are_those_of_the_data(known: Path, tmp_path: Path) -> None:
    (tmp_path / "plate").mkdir()
    assert defects_of_types(tmp_path, ["plate", "ring"]) == {"plate": tmp_path / "plate"}
    with pytest.raises(DatasetError, match=r"ground_truth is none of the product types; .* for the types plate, ring"):
        defects_of_types(known, ["plate", "ring"])


@pytest.mark.parametrize("name", sorted(name for name, model in MODELS.items() if not model.defects))
def test_models_that_learn_no_labelled_defects_name_those_that_do(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} has no discriminator .* learnt by ganomaly_d$"):
        make_settings({"data": "d", "out": "o", "model": name, "defects": "k"})


# Never the test's ----------------------------------------------------------------------------------------------------


def _copy(picture: Picture, how: str) -> Picture:
    if how == "mirrored":
        return np.ascontiguousarray(picture[:, ::-1])
    if how == "darker":
        return np.clip(0.8 * picture.astype(np.float32) + 5, 0, 255).astype(np.uint8)
    if how == "jpeg":
        coded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, 85])[1]
        return np.asarray(cv2.imdecode(coded, cv2.IMREAD_GRAYSCALE), np.uint8)
    return picture


@pytest.mark.parametrize("how", ["bytes", "saved anew", "darker", "jpeg", "mirrored"])
def test_an_image_of_the_test_is_refused_however_it_was_saved(how: str, data: Path, tmp_path: Path) -> None:
    of_test = next(iter(sorted((data / "test" / "spot").iterdir())))
    mask = np.zeros((80, 80), np.uint8)
    mask[20:40, 20:40] = 255
    for number in range(2):
        _save(tmp_path, f"{number}.png", *_waves(60_000 + number))
    picture = _copy(np.asarray(cv2.imread(str(of_test), cv2.IMREAD_GRAYSCALE), np.uint8), how)
    _save(tmp_path, "z.png", picture, mask)
    path = tmp_path / "waves" / "z.png"
    if how == "bytes":
        path.write_bytes(of_test.read_bytes())
    elif how == "saved anew":
        cv2.imwrite(str(path), picture, [cv2.IMWRITE_PNG_COMPRESSION, 1])
        assert path.read_bytes() != of_test.read_bytes()
    with pytest.raises(DatasetError, match=r"waves/z.png.*test.*never be tested on"):
        refuse_known(tmp_path, find_defects(tmp_path), load_dataset(data))


def _of_one_texture(folder: Path) -> tuple[Path, Callable[[int], Picture]]:
    """Data whose parts all have one fine texture, each moved by some pixels, and what draws more of them."""
    random = np.random.default_rng(7)
    cloth = cv2.GaussianBlur(random.normal(0, 1, (120, 120)).astype(np.float32), (0, 0), 1.5)
    cloth = 115 + 25 * cloth / cloth.std()
    places = random.permutation(13 * 13)

    def part(number: int) -> Picture:
        own = np.random.default_rng(number)
        y, x = divmod(int(places[number]), 13)
        picture = cloth[y : y + 96, x : x + 96] + own.normal(0, 2, (96, 96))
        if number >= 100:
            across, down = own.integers(20, 76, 2)
            cv2.circle(picture, (int(across), int(down)), 7, (60.0,), -1)
        return np.asarray(np.clip(picture, 0, 255), np.uint8)

    for name, first, count in (("train/good", 0, 24), ("test/good", 30, 4), ("test/spot", 100, 6)):
        (folder / name).mkdir(parents=True)
        for number in range(first, first + count):
            assert cv2.imwrite(str(folder / name / f"{number}.png"), part(number))
    return folder, part


@pytest.mark.parametrize("how", ["jpeg 95", "jpeg 60", "brighter", "darker and jpeg", "turned"])
def test_copies_are_refused_where_all_parts_have_one_texture(how: str, tmp_path: Path) -> None:
    data, part = _of_one_texture(tmp_path / "data")
    known = tmp_path / "known"
    mask = np.zeros((96, 96), np.uint8)
    mask[20:60, 20:60] = 255
    for number in range(140, 144):
        _save(known, f"{number}.png", part(number), mask)
    assert refuse_known(known, find_defects(known), load_dataset(data)) == (
        "10 test images: none is nearly equal as it lies; whether one was cut out otherwise or shows the same part "
        "cannot be told, parts are too alike"
    )
    gain = {"brighter": 1.1, "darker and jpeg": 0.9}.get(how, 1.0)
    for number in (101, 104):
        picture = np.asarray(np.clip(gain * part(number).astype(np.float32), 0, 255), np.uint8)
        picture = np.ascontiguousarray(np.rot90(picture)) if how == "turned" else picture
        _save(known, f"z{number}.png", picture, mask)
        if "jpeg" in how:
            (known / "waves" / f"z{number}.png").unlink()
            quality = [cv2.IMWRITE_JPEG_QUALITY, 95 if how == "jpeg 95" else 60]
            assert cv2.imwrite(str(known / "waves" / f"z{number}.jpg"), picture, quality)
    message = r"2 of its images show .* such as waves/z10[14]\..* and test/spot/10[14].png .*pixels agree"
    with pytest.raises(DatasetError, match=message):
        refuse_known(known, find_defects(known), load_dataset(data))


def test_a_good_image_is_no_defect(data: Path, tmp_path: Path) -> None:
    _save(tmp_path, "a.png", *_waves(1))
    (tmp_path / "waves" / "a.png").write_bytes((data / "train" / "good" / "part_003.png").read_bytes())
    with pytest.raises(DatasetError, match=r"waves/a.png is among the good images as well"):
        refuse_known(tmp_path, find_defects(tmp_path), load_dataset(data))


def test_images_of_other_parts_are_learnt_from(known: Path, data: Path, tmp_path: Path) -> None:
    assert refuse_known(known, find_defects(known), load_dataset(data)) == (
        "8 test images: none is a copy or shows the same part"
    )
    untested = draw_data(tmp_path, good=8, test_good=0, defective=0)
    assert "no test image" in refuse_known(known, find_defects(known), load_dataset(untested))


# Tiles and masks -----------------------------------------------------------------------------------------------------


def test_a_tile_and_its_mask_are_changed_together() -> None:
    torch.manual_seed(0)
    shares = torch.zeros(3, 32, 32, dtype=torch.uint8)
    for number in range(3):
        shares[number, 4 + number : 10, 3 : 12 + number] = 255
    limits = Augmentation(horizontal=True, vertical=True)
    drawn = Labelled(shares.unsqueeze(-1) // 2 + 20, shares, limits).draw(40)
    bright = drawn.image > drawn.image.mean(dim=(1, 2, 3), keepdim=True)
    assert torch.equal(bright, drawn.defect > 0)
    sides = drawn.defect[:, 0, :, :16].sum(dim=(1, 2)) > drawn.defect[:, 0, :, 16:].sum(dim=(1, 2))
    assert 5 < int(sides.sum()) < 35, "about half of them are mirrored"
    assert len({tuple(image.flatten().tolist()) for image in drawn.image}) > 20
    rim = drawn.unsure > 0
    assert bool(rim.any()) and not bool((rim & (drawn.defect > 0)).any())


def test_only_tiles_that_show_the_defect_are_kept(tmp_path: Path) -> None:
    mask = np.zeros((128, 256), np.uint8)
    mask[30:60, 10:60] = 200  # 128 and above is marked
    mask[60:90, 10:60] = 100
    _save(tmp_path, "a.png", np.full((128, 256), 90, np.uint8), mask)
    recipe = Recipe(channels=1, tile_hw=(64, 64), views=[View(tiling=Tiling(rows=1, columns=2))])
    labelled = load_labelled(find_defects(tmp_path), recipe, Augmentation())
    assert labelled.tiles.shape == (1, 64, 64, 1)
    marked = labelled.shares[0] > 0
    assert bool(marked[15:30, 5:30].all()) and int(marked.sum()) == 15 * 25


def test_a_defect_that_vanishes_at_the_tiles_size_is_named(tmp_path: Path) -> None:
    mask = np.zeros((640, 640), np.uint8)
    mask[300:302, 300:302] = 255
    _save(tmp_path, "a.png", np.full((640, 640), 90, np.uint8), mask)
    with pytest.raises(DatasetError, match=r"a.png: its defect is too small to be seen in tiles of 64 px; train with"):
        load_labelled(find_defects(tmp_path), Recipe(channels=1, tile_hw=(64, 64)), Augmentation())


# What is learnt ------------------------------------------------------------------------------------------------------


def test_nobody_is_asked_to_draw_the_defect_nor_what_it_hides() -> None:
    batch, image = torch.zeros(8, 1, 16, 16), torch.full((8, 1, 16, 16), 0.5, requires_grad=True)
    shown = Drawn(torch.full_like(batch, -1.0), torch.zeros_like(batch), torch.zeros_like(batch))
    shown.defect[-1, :, 4:8, 4:8] = 1.0
    shown.unsure[-1, :, 4:8, 8:9] = 1.0
    target = as_good(batch, shown, image)
    assert not target.requires_grad
    assert torch.equal(target[:-1], batch[:-1]), "the others are drawn as they were"
    (target - image).abs().sum().backward()  # type: ignore[no-untyped-call]
    assert image.grad is not None
    hidden = image.grad[-1, 0] == 0
    assert bool(hidden[4:8, 4:9].all()) and int(hidden.sum()) == 20
    assert torch.equal(target[-1, 0][~hidden], shown.image[-1, 0][~hidden])


@pytest.mark.parametrize(("batch", "count"), [(2, 1), (4, 1), (16, 2), (32, 4)])
def test_the_share_of_a_batch_is_bounded(batch: int, count: int) -> None:
    model = GanomalyD.build(size=64, channels=1, width=4, latent=8)
    tiles = torch.full((1, 64, 64, 1), 255, dtype=torch.uint8)
    model.labelled = Labelled(tiles, torch.full((1, 64, 64), 255, dtype=torch.uint8), Augmentation())
    good = torch.zeros(batch, 1, 64, 64)
    taken = model.with_labelled(Drawn(good, good, good)).defect.amin(dim=(1, 2, 3))
    assert taken.tolist() == [0.0] * (batch - count) + [1.0] * count


def test_the_discriminator_learns_what_it_was_shown(tmp_path: Path) -> None:
    """Waves on other parts than those it was shown get higher values there than without."""
    good = torch.from_numpy(np.stack([draw_part(number, side=64) for number in range(16)]))[..., None]
    pairs = [_waves(70_000 + number, 64) for number in range(12)]
    pictures, masks = (torch.from_numpy(np.stack(side)) for side in zip(*pairs, strict=True))
    labelled = Labelled(pictures[:6, ..., None], masks[:6], Augmentation())
    settings = TrainSettings(
        data=tmp_path, out=tmp_path, steps=40, size=64, width=4, latent=8, batch=8, device="cpu", precision="32-true"
    )

    def marked(known: Labelled | None) -> tuple[float, float]:
        loop = Loop(new_model(settings, 1), Tiles(good[:12], good[12:], Augmentation(), known), settings, "")
        while loop.share() < 1.0:
            loop.train_once()
        measure_statistics(loop.averaged, good[:12], loop._model.shown)
        with torch.no_grad():
            values = loop.averaged(_scaled(pictures[6:, ..., None])).deviation[:, 0]
        on = masks[6:] > 0
        return float(values[on].mean()), float(values[~on].mean())

    with_it, without = marked(labelled), marked(None)
    print(with_it, without)
    assert with_it[0] > 1.2 * without[0]
    assert with_it[0] / with_it[1] > 1.1 * without[0] / without[1]


def _scaled(tiles: Tensor) -> Tensor:
    return tiles.float().permute(0, 3, 1, 2) / 127.5 - 1.0


# The bundle ----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bundle(data: Path, known: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("trained") / "bundle"
    return train_small_bundle(out, data, defects=known, **SMALL)


SMALL = {"model": "ganomaly_d", "steps": 5, "width": 4, "latent": 8, "batch": 8, "learning_rate": 4e-3}


def test_the_bundle_says_which_defects_it_has_learnt_from(bundle: Path, known: Path, data: Path) -> None:
    opened = open_bundle(bundle)
    hashes = [sha256_of_image(known / "waves" / f"{number}.png") for number in range(3)]
    said = opened.manifest.training["defects"]
    assert (said["images"], said["classes"], said["sha256"]) == (3, {"waves": 3}, hashes)
    assert said["compared"].startswith("8 test images: none")
    rows = opened.json(ROLE_DATA)["defects"]
    assert [(row["sha256"], row["class"], row["file"]) for row in rows] == [
        (sha256, "waves", f"waves/{number}.png") for number, sha256 in enumerate(hashes)
    ]
    assert opened.manifest.data.fit_images + opened.manifest.data.validation_images <= 16
    assert "3 image(s) (waves 3)" in opened.path("training").read_text()
    assert not any(str(known).encode() in path.read_bytes() for path in bundle.iterdir())
    rows_shown = dict(evaluation_rows(evaluate(bundle, data, "onnxruntime").figures))
    assert rows_shown["learnt from labelled defects"].startswith("3 (waves 3): figures of these classes say nothing")


def test_a_bundle_is_not_evaluated_on_what_it_has_learnt(bundle: Path, known: Path, tmp_path: Path) -> None:
    later = draw_data(tmp_path, good=8, test_good=2, defective=2)
    (later / "test" / "spot" / "again.png").write_bytes((known / "waves" / "1.png").read_bytes())
    with pytest.raises(CalibrationError, match=r"again.png: the bundle has learnt from this very image .*1 of 5"):
        evaluate(bundle, later, "onnxruntime")


def test_no_limit_nor_int8_rests_on_what_was_learnt(bundle: Path, data: Path, known: Path, tmp_path: Path) -> None:
    later = draw_data(tmp_path / "later", good=30, test_good=2, defective=2)
    choice = Choice("f1", defects=(known / "waves",))
    with pytest.raises(
        CalibrationError, match=r"0.png: the bundle has learnt from this very image .*3 of 3 .* Give def"
    ):
        propose(bundle, later, Rates(None), "onnxruntime", choice=choice)
    (later / "test" / "spot" / "again.png").write_bytes((known / "waves" / "1.png").read_bytes())
    with pytest.raises(CalibrationError, match=r"again.png: the bundle has learnt from this very image .*1 of 5"):
        make_int8(bundle, later, engine="onnxruntime")


def test_other_defects_than_before_are_no_resumption(
    data: Path, known: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*given: object) -> None:
        raise TrainingError("not yet")

    out = tmp_path / "bundle"
    with monkeypatch.context() as patched:
        patched.setattr("training.build.export", fails)
        with pytest.raises(TrainingError, match="not yet"):
            train_small_bundle(out, data, defects=known, **{**SMALL, "steps": 2})
    other = tmp_path / "other"
    _save(other, "0.png", *_waves(80_000))
    with pytest.raises(TrainingError, match="the images or their groups have changed"):
        train_small_bundle(out, data, defects=other, resume=True, **{**SMALL, "steps": 2})
