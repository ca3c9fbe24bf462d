"""Which place for pictures a configuration names (hop 8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from plugin.blobs import BlobStore
from plugin.bucket import FOLDER, Bucket
from plugin.database import read_lines

if TYPE_CHECKING:
    from plugin.settings import HostSettings


def open_blobs(settings: HostSettings) -> BlobStore | Bucket:
    """The place; its folder is made where it is missing. Raises ConfigError."""
    store = settings.store
    if store.pictures is None:
        return BlobStore(settings.state_dir / FOLDER)
    credentials = None
    if store.pictures_credentials is not None:
        key, secret = read_lines(store.pictures_credentials, "store.pictures_credentials", 2)
        credentials = (key, secret)
    return Bucket(settings.state_dir, store.pictures, store.pictures_endpoint, credentials)
