"""Pictures in an S3-compatible bucket: on this host's disk first, then carried there by a thread of its own (hop 8).

A picture is safe, and acknowledged, once the disk has it; neither a commit nor a verdict waits for the network. The
disk's copy goes when the bucket has said that it holds as many bytes. Removals are noted as files and done likewise.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from plugin.blobs import BlobStore
from plugin.errors import ConfigError
from plugin.logs import LimitedLog

FOLDER = "blobs"
REMOVED = "blobs-removed"
IDLE_S = 1.0
RETRY_S = 5.0
PATIENCE = {"connect_timeout": 5, "read_timeout": 20, "retries": {"max_attempts": 1}}
log = logging.getLogger(__name__)


class Bucket:
    """``run`` on a thread of its own carries; ``put`` and ``remove`` belong to the writer; any thread may read."""

    def __init__(
        self, state_dir: Path, url: str, endpoint: str | None = None, credentials: tuple[str, str] | None = None
    ) -> None:
        """``credentials``: key id and secret; without them those of the environment, as every tool for S3 finds them.

        Connects to nothing: a bucket that is away keeps no host from starting.
        """
        try:
            import fsspec

            key, secret = credentials or (None, None)
            self._files: Any = fsspec.filesystem(
                "s3",
                key=key,
                secret=secret,
                endpoint_url=endpoint,
                config_kwargs=PATIENCE,
                use_listings_cache=False,
                skip_instance_cache=True,
            )
        except ImportError as error:
            raise ConfigError("store.pictures: s3fs is not installed: pip install 'flawline[s3]'") from error
        self._root = url.removeprefix("s3://").rstrip("/")
        self._staged = BlobStore(state_dir / FOLDER)
        self._removed = state_dir / REMOVED
        self._removed.mkdir(exist_ok=True)
        self._stopping = threading.Event()
        self._log = LimitedLog(log)
        self.trouble: str | None = None

    def put(self, sha256: str, data: bytes) -> None:
        # Staged before the note goes: whatever the carrier does meanwhile, it carries this one afterwards.
        self._staged.put(sha256, data)
        (self._removed / sha256).unlink(missing_ok=True)

    def find(self, _sha256: str) -> Path | None:
        """None: what is staged leaves the disk at any moment."""
        return None

    def read(self, sha256: str) -> bytes | None:
        """Raises OSError where the bucket does not answer."""
        staged = self._staged.read(sha256)
        if staged is not None:
            return staged
        try:
            data: bytes = self._files.cat_file(self._path(sha256))
        except FileNotFoundError:
            return self._staged.read(sha256)
        except Exception as error:
            raise OSError(f"the bucket does not answer ({_short(error)})") from error
        return data

    def remove(self, sha256: str) -> None:
        (self._removed / sha256).touch()
        self._staged.remove(sha256)

    def groups(self) -> Iterator[list[str]]:
        """Raises OSError where the bucket does not answer."""
        yield from self._staged.groups()
        for folder in self._list(self._root):
            found = [path.rpartition("/")[2] for path in self._list(folder)]
            yield [name for name in found if not (self._removed / name).exists()]

    def _list(self, folder: str) -> list[str]:
        try:
            return list(self._files.ls(folder, detail=False))
        except FileNotFoundError:
            return []
        except Exception as error:
            raise OSError(f"the bucket does not answer ({_short(error)})") from error

    def run(self) -> None:
        """Carry until stopped; what fails is tried again for ever and waits on the disk."""
        while not self._stopping.is_set():
            try:
                self.carry()
                self.trouble = None
                wait_s = IDLE_S
            except Exception as error:  # noqa: BLE001 - a client library of many layers; nothing of it may end the host
                self.trouble = f"pictures wait on the host's disk: the bucket does not take them ({_short(error)})"
                self._log.warning("bucket", self.trouble)
                wait_s = RETRY_S
            self._stopping.wait(wait_s)

    def stop(self) -> None:
        """End ``run`` after the picture under way; what is left waits for the next run."""
        self._stopping.set()

    def carry(self) -> None:
        """Remove what is to be removed, then upload what is staged. Raises whatever the client raises."""
        for note in sorted(self._removed.iterdir()):
            if self._stopping.is_set():
                return
            if note.exists() and self._files.exists(self._path(note.name)):
                self._files.rm_file(self._path(note.name))
            note.unlink(missing_ok=True)
        for names in self._staged.groups():
            for name in names:
                if self._stopping.is_set():
                    return
                self._upload(name)

    def _upload(self, sha256: str) -> None:
        data = self._staged.read(sha256)
        if data is None:
            return
        self._files.pipe_file(self._path(sha256), data)
        if self._files.info(self._path(sha256))["size"] != len(data):
            raise OSError(f"it holds another number of bytes of {sha256}")
        self._staged.remove(sha256)

    def _path(self, sha256: str) -> str:
        return f"{self._root}/{sha256[:2]}/{sha256}"


def _short(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
