"""``flawline train --preprocess``: the bundle is learnt from corrected pictures, and carries what corrected them."""

from __future__ import annotations

import base64
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from contract.bundle import ROLE_FIXTURE, ROLE_PREPROCESS, open_bundle
from contract.correction import Correction, FlatField
from contract.dataset import load_dataset
from contract.errors import ConfigError, ImageError
from contract.images import decode_png, encode_png, encode_png16, read_image
from contract.part_pictures import line_of, read_part
from contract.preprocess import prepare
from flawline import main
from tests.bundles import train_small_bundle
from tests.preprocessed import MM_PER_PX, content, flat_field, raw_data, write_file
from training import build
from training.data import line_asked, load_tiles, make_recipe
from training.errors import TrainingError
from training.settings import TrainSettings


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return raw_data(tmp_path_factory.mktemp("raw"), defective=1)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_file(tmp_path_factory.mktemp("file") / "camera.json", content())


@pytest.fixture(scope="module")
def trained(data: Path, file: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train_small_bundle(tmp_path_factory.mktemp("trained") / "bundle", data, steps=4, preprocess=file)


def test_the_bundle_carries_the_file_and_its_golden_images_name_it(trained: Path, file: Path) -> None:
    bundle = open_bundle(trained)
    manifest = bundle.manifest
    assert bundle.path(ROLE_PREPROCESS).read_bytes() == file.read_bytes()
    assert manifest.golden.preprocess == manifest.files[ROLE_PREPROCESS].sha256
    assert manifest.recipe.views[0].mm_per_px == MM_PER_PX
    assert "preprocess" not in manifest.training["settings"] and str(file) not in (trained / "bundle.json").read_text()
    assert ROLE_FIXTURE not in manifest.files


def test_training_learns_from_the_very_pixels_that_the_line_judges(trained: Path, data: Path, file: Path) -> None:
    """Bit by bit: tiles of training, of calibration, and of the correction's own function."""
    settings = TrainSettings(data=data, out=trained, preprocess=file, size=64, tiles=(1, 1))
    samples = load_dataset(data).train[:5]
    line = line_asked(settings)
    recipe = make_recipe(settings, samples, line)
    bundle = open_bundle(trained)
    assert recipe.model_dump() == bundle.manifest.recipe.model_dump()
    learnt = load_tiles(samples, recipe, line).numpy()
    own = Correction(content(), "x")
    for tile, sample in zip(learnt, samples, strict=True):
        judged = prepare(read_part(sample.path, bundle.manifest.recipe, line_of(bundle)), bundle.manifest.recipe).tiles
        assert np.array_equal(tile, judged[0])
        assert np.array_equal(tile, prepare(own.correct(read_image(sample.path, 1)), recipe).tiles[0])
        assert not np.array_equal(tile, prepare(read_image(sample.path, 1), recipe).tiles[0])


def test_without_the_option_pictures_stay_as_they_are(data: Path, tmp_path: Path) -> None:
    settings = TrainSettings(data=data, out=tmp_path, size=64, tiles=(1, 1))
    samples = load_dataset(data).train[:2]
    recipe = make_recipe(settings, samples, line_asked(settings))
    assert recipe.views[0].mm_per_px is None
    assert np.array_equal(
        load_tiles(samples, recipe, line_asked(settings)).numpy(), load_tiles(samples, recipe).numpy()
    )


def test_a_flat_field_in_colour_needs_a_recipe_in_colour(data: Path, tmp_path: Path) -> None:
    grey = flat_field()
    gain = np.repeat(decode_png(base64.b64decode(grey.gain), (80, 80), 1, np.dtype(np.uint16), "x")[..., None], 3, 2)
    dark = np.repeat(decode_png(base64.b64decode(grey.dark), (80, 80), 1, np.dtype(np.uint8), "x")[..., None], 3, 2)
    colour = FlatField(
        channels=3,
        dark=base64.b64encode(encode_png(dark)).decode(),
        gain=base64.b64encode(encode_png16(gain)).decode(),
    )
    file = write_file(tmp_path / "colour.json", content(flat=colour))
    samples = load_dataset(data).train[:2]
    for channels in ("rgb", "grey"):
        settings = TrainSettings(
            data=data, out=tmp_path, preprocess=file, size=64, model="ganomaly_d", tiles="auto", channels=channels
        )
        line = line_asked(settings)
        recipe = make_recipe(settings, samples, line)  # which looks at the parts' layout
        if channels == "grey":
            with pytest.raises(
                ImageError, match=r"train with --channels rgb, or calibrate the camera with --channels grey"
            ):
                load_tiles(samples, recipe, line)
        else:
            tiles = load_tiles(samples, recipe, line).numpy()
            own = Correction(content(), "x").correct(read_image(samples[0].path, 3))
            assert np.array_equal(tiles[0], prepare(own, recipe).tiles[0])


def test_pictures_of_another_size_and_cut_ones_are_refused(
    data: Path, file: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    other = write_file(tmp_path / "other.json", content(side=90))
    words = ["train", "--data", str(data), "--steps", "1", "--out", str(tmp_path / "out")]
    assert main([*words, "--preprocess", str(other)]) == 2
    assert "whole frames of 90 x 90 px" in capfd.readouterr().err
    assert main([*words, "--preprocess", str(tmp_path / "none.json"), "--overwrite"]) == 2
    assert "cannot be read" in capfd.readouterr().err
    cut = Path(shutil.copytree(data, tmp_path / "cut"))
    words = ["--region", "5,5,70,70", "--max-angle", "5", "--out", str(cut / "fixture")]
    picture = cut / "test" / "spot" / "part_000.png"
    assert main(["fixture", "make", str(picture), *words]) == 0
    with pytest.raises(ConfigError, match="were cut out by a fixture"):
        line_asked(TrainSettings(data=cut, out=tmp_path, preprocess=file, size=64))


def test_a_stopped_training_does_not_go_on_with_another_file(
    data: Path, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its path may be another; its content is held against that of the stopped run."""
    asked: list[str] = []

    def note(path: Path, learnt: dict[str, Any], data_sha256: str) -> dict[str, Any]:
        assert "preprocess" not in learnt
        asked.append(data_sha256)
        raise TrainingError("noted")

    tiles = build.Tiles(torch.zeros(1), torch.zeros(1))
    monkeypatch.setattr(build, "load", lambda *_: tiles)
    monkeypatch.setattr(build, "load_checkpoint", note)
    copy = Path(shutil.copy(file, tmp_path / "copy.json"))
    other = write_file(tmp_path / "other.json", content(created="2026-02-02"))
    for each in (file, copy, other):
        with pytest.raises(TrainingError, match="noted"):
            train_small_bundle(tmp_path / "out", data, steps=4, preprocess=each, resume=True)
    assert asked[0] == asked[1] and len(set(asked)) == 2
