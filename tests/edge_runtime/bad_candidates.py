"""A candidate's process with an engine that fails in a way of its own, for `test_shadow`."""

from __future__ import annotations

import os
import signal
import sys
import time
from typing import Any

from edge_runtime import inspector, shadow_child
from edge_runtime.inspector import Inspector


def _raise(*_: Any) -> Any:
    raise RuntimeError("the engine is broken")


def _hang(*_: Any) -> Any:
    while True:
        time.sleep(60)


def _crash(*_: Any) -> Any:
    os.kill(os.getpid(), signal.SIGSEGV)


def _garble(*_: Any) -> Any:
    class Answer:
        def model_dump_json(self) -> str:
            return '{"verdict": 7, "score": "none"'

    return Answer()


def main(memory_fd: int, how: str) -> None:
    """The real process, with one thing in it broken."""
    if how == "raises":
        inspector.fuse = _raise
    elif how == "hangs":
        Inspector.end = _hang  # type: ignore[method-assign]
    elif how == "crashes":
        Inspector.end = _crash  # type: ignore[method-assign]
    elif how == "garbles":
        shadow_child._answer = _garble
    elif how == "never starts":
        _hang()
    elif how == "lies":
        sys.stdout.write("no line of JSON\n")
        sys.stdout.flush()
        _hang()
    shadow_child.main(memory_fd)
