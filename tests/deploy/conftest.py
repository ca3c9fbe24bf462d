"""The wheelhouse that the tests of an installed box share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.needs import lacking

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Made once; or the one that $FLAWLINE_WHEELHOUSE names."""
    if given := os.environ.get("FLAWLINE_WHEELHOUSE"):
        return Path(given)
    out = tmp_path_factory.mktemp("offline") / "wheelhouse"
    command = [sys.executable, str(ROOT / "deploy" / "wheelhouse.py"), "--extras", "edge,host", "--out", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=out.parent)
    if done.returncode:
        lacking(f"no wheelhouse can be made: {done.stderr[-300:]}")
    return out
