"""Loaded by every Python process whose path begins here: kills it where it is told to, lets it hang, makes cameras lie.

``FLAWLINE_CRASH=MODULE:NAME:before|after:SECONDS:FILE``: the first call of that function that comes SECONDS after the
first one of all ends the process by SIGKILL, before or after it did its work, and leaves FILE; nothing dies where FILE
is already there. ``FLAWLINE_HANG=MODULE:NAME:FILE``: once FILE is there the function never returns.
``FLAWLINE_NOTE=FOLDER,MODULE:NAME,...``: a function that was called leaves a file of its name there.
``FLAWLINE_BEND_CAMERA=FOLDER``: a file there makes the camera lie. The product knows nothing of it.
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
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import ModuleType
from typing import Any

CRASH, HANG = "FLAWLINE_CRASH", "FLAWLINE_HANG"

Function = Callable[..., Any]


def die(mark: str) -> None:
    """End this process, unless another one has been ended here."""
    with suppress(FileExistsError):
        os.close(os.open(mark, os.O_CREAT | os.O_EXCL))
        os.kill(os.getpid(), signal.SIGKILL)


def deadly(function: Function, when: str, seconds: float, mark: str) -> Function:
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


def hanging(function: Function, file: str) -> Function:
    """``function`` that does not come back once ``file`` is there."""

    @functools.wraps(function)
    def wrapped(*words: Any, **named: Any) -> Any:
        if os.path.exists(file):
            threading.Event().wait()
        return function(*words, **named)

    return wrapped


def noting(function: Function, file: str) -> Function:
    """``function`` that leaves ``file`` when it is called."""

    @functools.wraps(function)
    def wrapped(*words: Any, **named: Any) -> Any:
        Path(file).touch()
        return function(*words, **named)

    return wrapped


def replace(module: ModuleType, name: str, change: Callable[[Function], Function]) -> None:
    """Put the changed function in the place of ``name`` in ``module``."""
    owner: Any = module
    *path, last = name.split(".")
    for step in path:
        owner = getattr(owner, step)
    found = inspect.getattr_static(owner, last)
    kind = type(found) if isinstance(found, staticmethod | classmethod) else None
    made = change(found.__func__ if kind else found)
    setattr(owner, last, kind(made) if kind else made)


def lying(read: Function, folder: Path) -> Function:
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
    where, name, when, seconds, mark = asked.split(":", 4)
    kill = functools.partial(deadly, when=when, seconds=float(seconds), mark=mark)
    sys.meta_path.insert(0, Finder(where, functools.partial(replace, name=name, change=kill)))
if asked := os.environ.get(HANG):
    where, name, file = asked.split(":", 2)
    hang = functools.partial(hanging, file=file)
    sys.meta_path.insert(0, Finder(where, functools.partial(replace, name=name, change=hang)))
if asked := os.environ.get("FLAWLINE_NOTE"):
    folder, *functions = asked.split(",")
    for function in functions:
        where, name = function.split(":")
        note = functools.partial(noting, file=f"{folder}/{function}")
        sys.meta_path.insert(0, Finder(where, functools.partial(replace, name=name, change=note)))
if bent := os.environ.get("FLAWLINE_BEND_CAMERA"):
    for where, change in (("edge_runtime.cameras.synthetic", bend_camera), ("edge_runtime.capture", bend_capture)):
        sys.meta_path.insert(0, Finder(where, functools.partial(change, folder=Path(bent))))
