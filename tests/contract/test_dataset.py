"""Folders of images, and which of them show the same part."""

from __future__ import annotations

from pathlib import Path

import pytest

from contract.dataset import load_dataset
from contract.errors import DatasetError


def make(root: Path, *names: str) -> Path:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def test_mvtec_layout_with_masks_under_either_name(tmp_path: Path) -> None:
    make(tmp_path, "train/good/a.png", "test/good/b.png", "test/crack/c.jpg", "test/dent/d.png", "test/dent/notes.txt")
    make(tmp_path, "ground_truth/crack/c_mask.png", "ground_truth/dent/d.png")
    data = load_dataset(tmp_path)
    assert [(s.path.name, s.label) for s in data.test] == [("c.jpg", "crack"), ("d.png", "dent"), ("b.png", "good")]
    assert [s.mask and s.mask.name for s in data.test] == ["c_mask.png", "d.png", None]
    assert data.grouping == "one image, one part"
    assert len({s.group for s in data.train + data.test}) == 4


def test_a_plain_folder_of_images_is_training_data(tmp_path: Path) -> None:
    assert len(load_dataset(make(tmp_path, "1.png", "2.JPG")).train) == 2


def test_exposures_of_one_part_are_found_and_plain_numbering_is_not(tmp_path: Path) -> None:
    names = [f"train/good/exp{e}_num_{base + 7 * e}.jpg" for base in (1000, 5000, 9000) for e in range(1, 7)]
    data = load_dataset(make(tmp_path / "tiles", *names))
    assert len({s.group for s in data.train}) == 3
    plain = load_dataset(make(tmp_path / "plain", *[f"train/good/{i:03d}.png" for i in range(40)]))
    assert len({s.group for s in plain.train}) == 40
    dated = load_dataset(make(tmp_path / "dated", *[f"train/good/cam1_{i:05d}.png" for i in range(40)]))
    assert len({s.group for s in dated.train}) == 40


def test_pattern_and_csv_name_the_part(tmp_path: Path) -> None:
    make(tmp_path, "train/good/p7_a.png", "train/good/p7_b.png", "train/good/p8_a.png")
    assert [s.group for s in load_dataset(tmp_path, r"p(\d+)_").train] == ["7", "7", "8"]
    (tmp_path / "groups.csv").write_text(
        "file,group\n" + "".join(f"train/good/p{n}.png,same\n" for n in ("7_a", "7_b"))
    )
    with pytest.raises(DatasetError, match=r"no group for train/good/p8_a.png \(1 file"):
        load_dataset(tmp_path)


@pytest.mark.parametrize(
    ("pattern", "expected"), [("(", "not a regular expression"), ("zzz", "finds no group in p7_a.png")]
)
def test_a_pattern_that_does_not_fit(tmp_path: Path, pattern: str, expected: str) -> None:
    with pytest.raises(DatasetError, match=expected):
        load_dataset(make(tmp_path, "train/good/p7_a.png"), pattern)


def test_nothing_to_train_on(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such folder"):
        load_dataset(tmp_path / "none")
    with pytest.raises(DatasetError, match="no images found; expected"):
        load_dataset(make(tmp_path, "train/good/readme.txt"))
