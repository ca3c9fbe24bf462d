"""Loaded by every Python process whose path begins here: what FLAWLINE_HANG names never returns while a file is there.

``FLAWLINE_HANG=MODULE:CLASS.METHOD:FILE``. The product knows nothing of it.
"""

from __future__ import annotations

import functools
import importlib.abc
import importlib.machinery
import importlib.util
import os
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

VARIABLE = "FLAWLINE_HANG"


def hang(module: ModuleType, name: str, file: Path) -> None:
    """Put in the place of the method one that waits for ever once ``file`` exists."""
    kind, _, method = name.partition(".")
    owner = getattr(module, kind)
    function = getattr(owner, method)

    @functools.wraps(function)
    def wrapped(*words: Any, **named: Any) -> Any:
        if file.exists():
            threading.Event().wait()
        return function(*words, **named)

    setattr(owner, method, wrapped)


class Finder(importlib.abc.MetaPathFinder):
    """Changes the one module as soon as it is imported."""

    def __init__(self, module: str, name: str, file: Path) -> None:
        self.module, self.name, self.file = module, name, file

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        """The module's own spec, its loader followed by the change."""
        if fullname != self.module:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is None or spec.loader is None:
            return None
        execute = spec.loader.exec_module

        def exec_module(made: ModuleType) -> None:
            execute(made)
            hang(made, self.name, self.file)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if asked := os.environ.get(VARIABLE):
    module, name, file = asked.split(":", 2)
    sys.meta_path.insert(0, Finder(module, name, Path(file)))
