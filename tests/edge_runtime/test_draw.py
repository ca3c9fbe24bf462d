"""Drawing a data set: the layout, the pixels of the line, masks that fit, parts that no line shows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from contract.dataset import load_dataset
from contract.errors import DatasetError
from contract.images import extent_px, read_image
from edge_runtime.draw import OTHER_SEED, SizedParts, draw_dataset, write_truth
from edge_runtime.errors import CameraError
from edge_runtime.synthetic import DEFECTS, EXTENT_OFF_PX, PLATE_H, PLATE_W

URL = "synthetic://line?seed=1"


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("drawn") / "parts"
    steps: list[int] = []
    assert draw_dataset(URL, out, 20, 5, 12, steps.append) == 37
    assert steps == list(range(1, 38))
    return out


def test_the_layout_is_what_training_reads(drawn: Path) -> None:
    dataset = load_dataset(drawn)
    assert len(dataset.train) == 20
    assert sum(sample.label == "good" for sample in dataset.test) == 5
    defective = [sample for sample in dataset.test if sample.label != "good"]
    assert {sample.label for sample in defective} == set(DEFECTS)
    assert len(defective) == 12 and all(sample.mask is not None for sample in defective)


def test_parts_are_cut_tight_and_masks_fit(drawn: Path) -> None:
    for sample in load_dataset(drawn).train + load_dataset(drawn).test:
        pixels = read_image(sample.path, 1)
        assert abs(pixels.shape[0] - PLATE_H) < 16 and abs(pixels.shape[1] - PLATE_W) < 16
        if sample.mask is not None:
            mask = read_image(sample.mask, 1)
            assert mask.shape == pixels.shape
            assert set(np.unique(mask)) == {0, 255}
            assert np.count_nonzero(mask) < 0.2 * mask.size


def test_the_same_url_draws_the_same(drawn: Path, tmp_path: Path) -> None:
    draw_dataset(URL, tmp_path / "again", 3, 0, 0)
    for path in sorted((tmp_path / "again" / "train" / "good").iterdir()):
        assert path.read_bytes() == (drawn / "train" / "good" / path.name).read_bytes()
    assert OTHER_SEED > 1_000_000


def test_colour(tmp_path: Path) -> None:
    draw_dataset(URL + "&colour=1", tmp_path / "colour", 2, 0, 0)
    pixels = read_image(tmp_path / "colour" / "train" / "good" / "0000.png", 3)
    assert not np.array_equal(pixels[..., 0], pixels[..., 2])


def test_what_cannot_be_drawn_is_explained(drawn: Path, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="not empty"):
        draw_dataset(URL, drawn)
    with pytest.raises(CameraError, match="only synthetic://line"):
        draw_dataset("file:///x.avi", tmp_path / "no")


def test_the_truth_of_a_line(tmp_path: Path) -> None:
    assert write_truth(URL + "&parts=3", tmp_path / "truth.csv") > 50


def test_parts_with_a_defect_of_known_size() -> None:
    parts = SizedParts(URL, 14)
    found = [drawn for number in range(14) if (drawn := parts.draw(number, "scratch", 10.0)) is not None]
    assert len(found) >= 7, "the others touch"
    for drawn in found:
        assert drawn.label == "scratch" and drawn.mask.shape == drawn.pixels.shape
        assert abs(drawn.pixels.shape[0] - PLATE_H) < 16 and abs(drawn.pixels.shape[1] - PLATE_W) < 16
        assert extent_px(drawn.mask > 0) == pytest.approx(10.0, abs=EXTENT_OFF_PX)
