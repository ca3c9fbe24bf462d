"""Builds and tries TensorRT plans in a process of their own, since either can crash or hang (start of hop 4).

    python -m edge_runtime.engines.plan_process < request.json

The child reads one request from its standard input and answers with one line of JSON on its standard output. The
parent gives it a time limit, and survives whatever becomes of it.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Literal

from contract.config import Strict, validate
from contract.errors import FlawlineError
from edge_runtime.errors import EngineError

BUILD_S = 1800.0
TRY_S = 300.0
NICE = 10  # beside a line: a tenth of a busy core, where 19 would be starved until its time is up
CHILD = [sys.executable, "-m", "edge_runtime.engines.plan_process"]
PR_SET_PDEATHSIG = 1
SAID = 2000  # characters of the child's own words that an error repeats

log = logging.getLogger(__name__)


class Request(Strict):
    """What the child is to do: build ``graph`` into the file ``plan``, or try the plan once on grey tiles."""

    task: Literal["build", "try"]
    engine: str
    graph: Path
    plan: Path
    input_shape: tuple[int, int, int, int]
    workspace_mb: int
    capability: str
    background: bool = False
    """Whether a line runs meanwhile, which must not wait for this."""


def run(request: Request, timeout_s: float, environment: dict[str, str] | None = None) -> dict[str, Any]:
    """Let a child do what is asked and return its answer. Raises EngineError: refused, crashed, or out of time."""
    what = f"{request.engine}: {'building the plan' if request.task == 'build' else 'trying the plan'}"
    with subprocess.Popen(
        CHILD,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
        env={**os.environ, **(environment or {})},
    ) as child:
        try:
            answer, said = child.communicate(request.model_dump_json().encode(), timeout_s)
        except subprocess.TimeoutExpired:
            raise EngineError(f"{what} took more than {timeout_s:.0f} s and was ended; is the card busy?") from None
        finally:
            _end(child)
    return _answer(what, child.returncode, answer, said.decode(errors="replace").strip()[-SAID:])


def _end(child: subprocess.Popen[bytes]) -> None:
    """Kill the child if it still runs, and whatever it has started."""
    if child.poll() is None:
        os.killpg(child.pid, signal.SIGKILL)
        child.wait()


def _answer(what: str, code: int, answer: bytes, said: str) -> dict[str, Any]:
    if said:
        log.debug("%s: %s", what, said)
    last = said.splitlines()[-1] if said else "it said nothing"
    if code < 0:
        raise EngineError(f"{what} crashed ({signal.Signals(-code).name}): {last}")
    try:
        result = json.loads(answer)
    except ValueError:
        raise EngineError(f"{what} ended with code {code} and no answer: {last}") from None
    if not isinstance(result, dict) or "error" in result:
        raise EngineError(
            str(result["error"]) if isinstance(result, dict) else f"{what}: no answer but {result!r:.200}"
        )
    return result


def main() -> int:
    """The child: do what standard input asks, answer on standard output; 0, or 3 where it could not be done."""
    _die_with_parent()
    # Libraries print what they like: only the answer may reach the parent's pipe.
    answer = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        request = validate(Request, json.load(sys.stdin), "request")
        if request.background:
            _give_way()
        result = _work(request)
    except FlawlineError as error:
        result = {"error": str(error)}
    with answer:
        json.dump(result, answer)
    return 3 if "error" in result else 0


def _die_with_parent() -> None:
    """A killed edge must not leave a builder behind that keeps the card busy."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def _give_way() -> None:
    """Leave the processor to cameras and verdicts. The kernel may share it out by sessions first, and this is one."""
    os.nice(NICE)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text(str(NICE))


def _work(request: Request) -> dict[str, Any]:
    from edge_runtime.engines.tensorrt import BuildOptions, Session, build_plan

    options = BuildOptions(request.input_shape, request.workspace_mb, request.capability)
    if request.task == "build":
        plan = build_plan(request.engine, request.graph.read_bytes(), options)
        request.plan.write_bytes(plan)
        return {"bytes": len(plan)}
    session = Session(request.engine, request.plan.read_bytes(), request.input_shape)
    try:
        return {"highest": session.try_once()}
    finally:
        session.close()


if __name__ == "__main__":
    sys.exit(main())
