"""What a test needs and a machine may lack: skipped there, and a failure where nothing may be skipped unseen."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest

STRICT = "FLAWLINE_CI"


def lacking(what: str) -> NoReturn:
    """Skip the test; fail it where $FLAWLINE_CI is set, as the project's own checks set it."""
    if os.environ.get(STRICT):
        pytest.fail(f"{what}; ${STRICT} is set, so that this is no reason to skip", pytrace=False)
    pytest.skip(what)


def download(folder: Path, *words: str) -> None:
    """Packages from the index into ``folder``, without what they depend on."""
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder)]
    done = subprocess.run([*pip, *words], capture_output=True, text=True, check=False)
    if done.returncode:
        said = (done.stderr.strip().splitlines() or ["pip says nothing"])[-1]
        lacking(f"{words[-1]} cannot be downloaded: {said[:200]}")
