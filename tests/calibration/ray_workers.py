"""The processes of a local Ray cluster that score, as `/proc` shows them."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def scoring_pids() -> list[int]:
    """Those below this process, whatever other clusters this machine has."""
    found = []
    for path in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            words = (path / "cmdline").read_bytes()
            if words.startswith(b"ray::") and b"MapWorker" in words and os.getpid() in _ancestors(int(path.name)):
                found.append(int(path.name))
    return sorted(found)


def _ancestors(pid: int) -> list[int]:
    found = []
    while pid > 1:
        pid = int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1])
        found.append(pid)
    return found
