"""One drawn data set, one small trained bundle and two torch threads for all tests of training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.bundles import draw_data, train_small_bundle


@pytest.fixture(scope="session", autouse=True)
def _two_threads() -> None:
    torch.set_num_threads(2)


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 good parts to train on, 10 good and 10 defective ones to test with."""
    return draw_data(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="session")
def small_bundle(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle trained on ``parts``; read it, never change it."""
    return train_small_bundle(tmp_path_factory.mktemp("trained") / "bundle", parts)
