"""A progress bar on a terminal, silence elsewhere (commands at the engineer's desk)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TypeVar

from rich.console import Console
from rich.progress import track

Item = TypeVar("Item")


def steps(items: Sequence[Item], what: str) -> Iterable[Item]:
    """Iterate over ``items`` and show how far it is, on stderr."""
    console = Console(stderr=True)
    return track(items, description=what, console=console, transient=True, disable=not console.is_terminal)
