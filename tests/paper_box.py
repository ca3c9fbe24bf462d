"""A box with a graphics card of paper: an environment in which real processes find a driver and a TensorRT.

What is tested so is our own: commands, children, cache, the order of calls, what becomes of errors. Nothing of it is a
card or TensorRT; tests/gpu is for those.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from edge_runtime.engines.cuda import _found
from tests.needs import lacking

PAPER = Path(__file__).parent / "paper"


class PaperBox:
    """Where the box's cache lies, and how to make its card fail or its builder wait; the environment is set."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        if shutil.which("gcc") is None:
            lacking("gcc is not installed")
        if not _found("cuda.bindings"):
            lacking("cuda-bindings is not installed")
        self.cache, self._fault, self._builds = folder / "cache", folder / "fault", folder / "builds"
        self._builds.mkdir()
        compile_driver(folder / "libraries")
        for name, value in {
            "LD_LIBRARY_PATH": str(folder / "libraries"),
            "PYTHONPATH": os.pathsep.join([str(PAPER / "site"), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "CACHE_DIRECTORY": str(self.cache),
            "PAPER_FAULT": str(self._fault),
            "PAPER_BUILDS": str(self._builds),
        }.items():
            monkeypatch.setenv(name, value)

    def lose_card(self) -> None:
        """From now on every copy fails, as after an illegal address, for as long as the process lives."""
        self._fault.touch()

    def mend_card(self) -> None:
        """For processes that begin now."""
        self._fault.unlink()

    def hold_builders(self) -> None:
        (self._builds / "wait").touch()

    def let_builders_go(self) -> None:
        (self._builds / "wait").unlink()

    def builders(self) -> dict[int, int]:
        """Process id -> niceness of everything that has built."""
        return {int(path.name): int(path.read_text() or 0) for path in self._builds.glob("[0-9]*")}

    def plans(self) -> int:
        return len(list(self.cache.glob("engines/*.json")))


def compile_driver(folder: Path, further: Iterable[str] = ()) -> Path:
    """The driver as ``libcuda.so.1`` in ``folder``; ``further``: functions that only have to be there."""
    folder.mkdir()
    source, library = folder / "driver.c", folder / "libcuda.so.1"
    source.write_text(
        (PAPER / "driver.c").read_text()
        + "".join(f"int {name}(void) {{ return NOT_SUPPORTED; }}\n" for name in further)
    )
    words = ["gcc", "-w", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", str(source), "-o", str(library), "-ldl"]
    subprocess.run(words, check=True)
    return library
