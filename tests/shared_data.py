"""Where the developer's data pack lies; tests that need it are skipped where it is absent."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def shared_data(*parts: str) -> Path:
    """A file or folder of the pack: below FLAWLINE_DATA, else ``../shared/data`` beside the checkout."""
    base = Path(os.environ.get("FLAWLINE_DATA", ROOT.parent / "shared" / "data"))
    path = base.joinpath(*parts)
    if not path.exists():
        pytest.skip(f"{path} is absent; set FLAWLINE_DATA to the folder of the data pack")
    return path
