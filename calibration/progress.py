"""A progress bar on a terminal, silence elsewhere (commands at the engineer's desk)."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn, track

Item = TypeVar("Item")


def steps(items: Sequence[Item], what: str) -> Iterable[Item]:
    """Iterate over ``items`` and show how far it is, on stderr."""
    console = Console(stderr=True)
    return track(items, description=what, console=console, transient=True, disable=not console.is_terminal)


@contextmanager
def counted(what: str) -> Iterator[Callable[[int, int], None]]:
    """Gives what is told how many are done, of how many, and shows it on stderr."""
    console = Console(stderr=True)
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task(what, total=None)
        yield lambda done, of: progress.update(task, completed=done, total=of)
