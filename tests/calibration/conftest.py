"""Drawn parts and a bundle made from some of them, calibrated for real by each test that needs it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from contract.dataset import load_dataset, sha256_of_image
from contract.images import read_image
from tests.bundles import draw_data
from tests.graphs import write_bundle

FITTED = 30


@pytest.fixture(scope="session")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 good images to learn and calibrate from, 30 good and 20 defective test images, some with masks."""
    import cv2
    import numpy as np

    folder = draw_data(tmp_path_factory.mktemp("drawn"), 60, 30, 20)
    masks = folder / "ground_truth" / "spot"
    masks.mkdir(parents=True)
    for image in sorted((folder / "test" / "spot").iterdir())[:15]:
        mask = np.zeros((80, 80), np.uint8)
        mask[16:32, 16:64] = 255
        cv2.imwrite(str(masks / f"{image.stem}_mask.png"), mask)
    return folder


@pytest.fixture(scope="session")
def _made(drawn: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    fitted = load_dataset(drawn).train[:FITTED]
    folder = tmp_path_factory.mktemp("made") / "bundle"
    hashes = [sha256_of_image(sample.path) for sample in fitted]
    write_bundle(folder, [read_image(s.path, 1) for s in fitted], fit=hashes[:-5], validation=hashes[-5:])
    return folder


@pytest.fixture
def fresh(_made: Path, tmp_path: Path) -> Path:
    """An uncalibrated bundle of one's own: 30 of the 60 good parts are held out."""
    return Path(shutil.copytree(_made, tmp_path / "bundle"))
