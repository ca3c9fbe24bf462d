"""One drawn data set, one small trained bundle and one torch thread for all tests of training."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.bundles import draw_data, train_small_bundle


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """Networks this small gain nothing from a second thread, and on a busy machine two wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 good parts to train on, 10 good and 10 defective ones to test with."""
    return draw_data(tmp_path_factory.mktemp("parts"))


@pytest.fixture(scope="session")
def small_bundle(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle trained on ``parts``; read it, never change it."""
    return train_small_bundle(tmp_path_factory.mktemp("trained") / "bundle", parts)
