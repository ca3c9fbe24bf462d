"""Pictures and maps as files named by their sha256, on disk before their row is committed (hop 8)."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Protocol

_NAME = re.compile(r"[0-9a-f]{64}")


class Blobs(Protocol):
    """Where pictures are. One thread puts and removes; any may read."""

    def put(self, sha256: str, data: bytes) -> None:
        """Keep ``data`` under its (already verified) hash; returns once it would survive a power cut."""

    def find(self, sha256: str) -> Path | None:
        """The file of a hash, where it stays on this machine; None for any other, and where the name is no hash."""

    def read(self, sha256: str) -> bytes | None:
        """The bytes of a hash, from wherever they are; None where they are nowhere."""

    def remove(self, sha256: str) -> None:
        """Let go of a picture; of one that is not there too."""

    def groups(self) -> Iterator[list[str]]:
        """Every hash that is kept, some at a time. What was left half written goes meanwhile."""


class BlobStore:
    """A folder of content-addressed files."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)

    def put(self, sha256: str, data: bytes) -> None:
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
        _sync_folder(self.folder)

    def find(self, sha256: str) -> Path | None:
        if _NAME.fullmatch(sha256) is None:
            return None
        path = self._path(sha256)
        return path if path.is_file() else None

    def read(self, sha256: str) -> bytes | None:
        path = self.find(sha256)
        if path is None:
            return None
        try:
            return path.read_bytes()
        except FileNotFoundError:  # removed just now
            return None

    def remove(self, sha256: str) -> None:
        self._path(sha256).unlink(missing_ok=True)

    def groups(self) -> Iterator[list[str]]:
        for folder in sorted(self.folder.glob("[0-9a-f][0-9a-f]")):
            names = sorted(path.name for path in folder.iterdir())
            for draft in (name for name in names if name.endswith(".draft")):
                with suppress(OSError):
                    (folder / draft).unlink(missing_ok=True)
            yield [name for name in names if _NAME.fullmatch(name)]

    def _path(self, sha256: str) -> Path:
        return self.folder / sha256[:2] / sha256


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
