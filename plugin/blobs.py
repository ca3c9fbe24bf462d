"""Pictures and maps as files named by their sha256, on disk before their row is committed (hop 8)."""

from __future__ import annotations

import os
import re
from pathlib import Path

_NAME = re.compile(r"[0-9a-f]{64}")


class BlobStore:
    """A folder of content-addressed files. One thread writes; any may read."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, sha256: str, data: bytes) -> None:
        """Write ``data`` under its (already verified) hash; returns once it would survive a power cut."""
        path = self._path(sha256)
        if path.exists():
            return
        path.parent.mkdir(exist_ok=True)
        draft = path.with_name(f".{sha256}.draft")
        with draft.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        draft.replace(path)
        _sync_folder(path.parent)
        _sync_folder(self._folder)

    def find(self, sha256: str) -> Path | None:
        """The file of a hash, or None where there is none or the name is not a hash."""
        if _NAME.fullmatch(sha256) is None:
            return None
        path = self._path(sha256)
        return path if path.is_file() else None

    def _path(self, sha256: str) -> Path:
        return self._folder / sha256[:2] / sha256


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
