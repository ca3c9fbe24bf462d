"""Loaded by every Python process whose path begins here: kills it where it is told to, lets engine or camera misbehave.

``FLAWLINE_CRASH=MODULE:NAME:before|after:SECONDS:FILE``: the first call of that function that comes SECONDS after the
first one of all ends the process by SIGKILL, before or after it did its work, and leaves FILE; nothing dies where FILE
is already there. ``FLAWLINE_BEND_ENGINE=FOLDER``, ``FLAWLINE_BEND_CAMERA=FOLDER``: files there make the engine hang
and the camera lie. The product knows nothing of it.
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
from pathlib import Path
from types import ModuleType
from typing import Any

CRASH = "FLAWLINE_CRASH"


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


def hanging(finish: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """The engine's ``finish``, which does not come back once ``hang`` stands in the folder."""

    @functools.wraps(finish)
    def wrapped(*words: Any, **named: Any) -> Any:
        if (folder / "hang").exists():
            time.sleep(3600)
        return finish(*words, **named)

    return wrapped


def lying(read: Callable[..., Any], folder: Path) -> Callable[..., Any]:
    """A camera's ``read``; its frames are as many times as large, each way, as ``lie`` in the folder says."""

    @functools.wraps(read)
    def wrapped(self: Any) -> Any:
        frame = read(self)
        lie = folder / "lie"
        if frame is None or not lie.exists():
            return frame
        times = float(lie.read_text())
        step = np.arange(0, 1 << 20, 1 / times).astype(int)
        rows, columns = (step[step < size] for size in frame.pixels.shape[:2])
        return frame._replace(pixels=np.ascontiguousarray(frame.pixels[rows][:, columns]))

    import numpy as np  # only where a camera is

    return wrapped


def bend_engine(module: ModuleType, folder: Path) -> None:
    """Engines hang when they are told to."""
    module.Engine.finish = hanging(module.Engine.finish, folder)  # type: ignore[attr-defined]


def bend_capture(module: ModuleType, folder: Path) -> None:
    """A live camera counts from 0 again where the drawn line counts on: its frames keep their true numbers."""
    restore = module.Capture._restore  # type: ignore[attr-defined]

    @functools.wraps(restore)
    def wrapped(self: Any) -> None:
        restore(self)
        self._first_no = 0

    module.Capture._restore = wrapped  # type: ignore[attr-defined]


def bend_camera(module: ModuleType, folder: Path) -> None:
    """The drawn line counts as a live camera, which announces a size and may give another."""
    module.SyntheticCamera.live = True  # type: ignore[attr-defined]
    module.SyntheticCamera.read = lying(module.SyntheticCamera.read, folder)  # type: ignore[attr-defined]


class Finder(importlib.abc.MetaPathFinder):
    """Changes the one module as soon as it is imported."""

    def __init__(self, module: str, change: Callable[[ModuleType], None]) -> None:
        self.module, self.change = module, change

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
            self.change(made)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


if asked := os.environ.get(CRASH):
    words = asked.split(":", 4)
    sys.meta_path.insert(0, Finder(words[0], lambda made: arm(made, words[1], words[2], float(words[3]), words[4])))
for module, variable, change in (
    ("edge_runtime.engines.base", "FLAWLINE_BEND_ENGINE", bend_engine),
    ("edge_runtime.cameras.synthetic", "FLAWLINE_BEND_CAMERA", bend_camera),
    ("edge_runtime.capture", "FLAWLINE_BEND_CAMERA", bend_capture),
):
    if bent := os.environ.get(variable):
        sys.meta_path.insert(0, Finder(module, functools.partial(change, folder=Path(bent))))
