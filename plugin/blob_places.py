"""Which place for pictures a configuration names (hop 8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugin.blobs import Blobs, BlobStore

if TYPE_CHECKING:
    from plugin.settings import HostSettings


def open_blobs(settings: HostSettings) -> Blobs:
    """The place, made where it is missing."""
    return BlobStore(settings.state_dir / "blobs")
