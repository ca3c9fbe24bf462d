"""The tiles' many exposures of one part: never on two sides, and what so few parts can carry."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from contract.bundle import open_bundle
from contract.dataset import load_dataset, sha256_of_image
from contract.images import read_image
from flawline import main
from tests.graphs import write_bundle
from tests.shared_data import shared_data
from training.data import Split, groups_in, split_by_group
from training.settings import TrainSettings

TO_LEARN = 40


@pytest.fixture(scope="module")
def tiles() -> Path:
    return shared_data("magnetic_tile")


@pytest.fixture(scope="module")
def split(tiles: Path) -> Split:
    """What training deals by default."""
    settings = TrainSettings(data=tiles, out=Path("none"))
    return split_by_group(load_dataset(tiles), settings.holdout, settings.validation, settings.seed)


@pytest.fixture(scope="module")
def made(split: Split, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle "trained" on some of the split's images that declares all of it."""
    folder = tmp_path_factory.mktemp("tiles") / "bundle"
    fit, validation = ([sha256_of_image(s.path) for s in side] for side in (split.fit, split.validation))
    write_bundle(folder, [read_image(s.path, 1) for s in split.fit[:TO_LEARN]], fit=fit, validation=validation)
    return folder


def test_exposures_of_one_tile_are_one_part_and_stay_on_one_side(tiles: Path, split: Split) -> None:
    dataset = load_dataset(tiles)
    assert (len(dataset.train), groups_in(dataset.train)) == (465, 71)
    sides = [{sample.group for sample in side} for side in (split.fit, split.validation, split.holdout)]
    assert sum(map(len, sides)) == len(set.union(*sides)) == 71
    assert len(split.fit) + len(split.validation) + len(split.holdout) == 465
    assert groups_in(split.holdout) >= 19


def test_one_in_a_hundred_needs_99_parts(made: Path, tiles: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["calibrate", "thresholds", str(made), "--data", str(tiles), "--false-reject-rate", "0.01"]) == 2
    assert "needs at least 99 held-out good parts" in capsys.readouterr().err
    assert open_bundle(made).manifest.thresholds is None


def test_one_in_twenty_can_be_carried(made: Path, tiles: Path, split: Split, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(made, tmp_path / "bundle"))
    assert main(["calibrate", "thresholds", str(folder), "--data", str(tiles), "--false-reject-rate", "0.05"]) == 0
    found = open_bundle(folder).manifest.thresholds
    assert found is not None and found.groups == groups_in(split.holdout)
