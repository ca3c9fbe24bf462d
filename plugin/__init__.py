"""Wire to store, line outputs and review pages, on the host (hops 7 to 12).

``from plugin import FlawlinePlugin`` runs all of it inside another program: docs/embedding.md.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from plugin.embedded import FlawlinePlugin
    from plugin.models import Alarm, Part, Review
    from plugin.settings import HostSettings

__all__ = ["Alarm", "FlawlinePlugin", "HostSettings", "Part", "Review"]

_WHERE = {
    "Alarm": "plugin.models",
    "FlawlinePlugin": "plugin.embedded",
    "HostSettings": "plugin.settings",
    "Part": "plugin.models",
    "Review": "plugin.models",
}


def __getattr__(name: str) -> object:
    """Imported when used: the commands' help needs none of it."""
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_WHERE[name]), name)
