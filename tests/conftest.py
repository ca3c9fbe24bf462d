"""Fixtures that more than one folder needs: drawn data and one trained, calibrated bundle a session."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def synthetic_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Parts cut from the synthetic line's frames, MVTec AD layout."""
    from edge_runtime.draw import draw_dataset

    folder = tmp_path_factory.mktemp("synthetic")
    draw_dataset("synthetic://line?seed=1", folder, 100, 20, 24)
    return folder


@pytest.fixture(scope="session")
def bundle(synthetic_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model trained on the drawn parts and calibrated; tests that change it copy it first."""
    from flawline import main
    from tests.bundles import train_small_bundle

    out = train_small_bundle(tmp_path_factory.mktemp("trained") / "bundle", synthetic_data)
    assert main(["calibrate", "thresholds", str(out), "--data", str(synthetic_data)]) == 0
    return out
