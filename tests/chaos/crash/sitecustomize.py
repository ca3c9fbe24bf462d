"""Loaded by every Python process whose path begins here: kills it at the crash point that FLAWLINE_CRASH names.

``FLAWLINE_CRASH=MODULE:NAME:before|after:SECONDS:FILE``: the first call of that function that comes SECONDS after the
first one of all ends the process by SIGKILL, before or after it did its work, and leaves FILE; nothing dies where FILE
is already there. The product knows nothing of it.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from types import ModuleType
from typing import Any

VARIABLE = "FLAWLINE_CRASH"


def die(mark: str) -> None:
    """End this process, unless another one has been ended here."""
    with suppress(FileExistsError):
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        os.kill(os.getpid(), signal.SIGKILL)


def deadly(function: Callable[..., Any], when: str, seconds: float, mark: str) -> Callable[..., Any]:
    """``function`` that kills its process once ``seconds`` have passed since its first call."""
    first: list[float] = []

    @functools.wraps(function)
    def wrapped(*words: Any, **named: Any) -> Any:
        now = time.monotonic()
        first.append(now) if not first else None
        due = now - first[0] >= seconds
        if due and when == "before":
            die(mark)
        value = function(*words, **named)
        if due:
            die(mark)
        return value

    return wrapped


def arm(module: ModuleType, name: str, when: str, seconds: float, mark: str) -> None:
    """Put the deadly function in the place of ``name`` in ``module``."""
    owner: Any = module
    *path, last = name.split(".")
    for step in path:
        owner = getattr(owner, step)
    found = inspect.getattr_static(owner, last)
    kind = type(found) if isinstance(found, staticmethod | classmethod) else None
    function = found.__func__ if kind else found
    made = deadly(function, when, seconds, mark)
    setattr(owner, last, kind(made) if kind else made)


class Finder(importlib.abc.MetaPathFinder):
    """Arms the one module as soon as it is imported."""

    def __init__(self, module: str, name: str, when: str, seconds: float, mark: str) -> None:
        self.target = (module, name, when, seconds, mark)

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The module's own spec, its loader followed by the arming."""
        module, *rest = self.target
        if fullname != module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(made: ModuleType) -> None:
            execute(made)
            arm(made, *rest)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if asked := os.environ.get(VARIABLE):
    words = asked.split(":", 4)
    sys.meta_path.insert(0, Finder(words[0], words[1], words[2], float(words[3]), words[4]))
