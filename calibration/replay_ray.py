"""The same replay on a Ray cluster, by Ray Data (at the engineer's desk; needs the extra ``ray``).

Bundles and archive are read by every node under the paths that they have here, and Flawline is installed on each.
"""

from __future__ import annotations

import importlib
import json
import logging
import os
import socket
from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from calibration.archive import Item
from calibration.errors import CalibrationError
from calibration.replay import Run, whole
from calibration.rescoring import Row, Scorer, Scoring
from calibration.rescoring_pool import Chunk
from contract.errors import FlawlineError

WINDOW = 4096
"""Chunks that are given to the cluster at once, so that an archive of any size needs so much memory here."""

RESTARTS, RETRIES = 16, 3
"""How often an actor that died is replaced, and what it had is done again; then it is left to processes here."""

ANSWER_S = 10.0
LOCAL = "local"
"""A cluster of this machine alone, begun and ended with the replay."""

log = logging.getLogger(__name__)


class _Actor:
    """Scores chunks on a node. What stops the replay comes back as text, for Ray would try it again and again."""

    def __init__(self, scoring: Scoring) -> None:
        self._scorer = Scorer(scoring)

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        answers = [self._answer(text) for text in batch["items"]]
        return {"number": batch["number"], "answer": answers}

    def _answer(self, text: str) -> str:
        try:
            rows = self._scorer.rows([Item(*each) for each in json.loads(text)])
        except FlawlineError as error:
            return json.dumps(str(error))
        return json.dumps([row.plain() for row in rows])


def on_ray(address: str) -> Run:
    """A way to run chunks on the cluster at ``address``: HOST:PORT, auto, or LOCAL.

    Raises CalibrationError where Ray is not installed, or the address is of another kind.
    """
    if "://" in address:
        raise CalibrationError(
            f"--ray {address!r}: expected HOST:PORT of the cluster's head, such as head:6379, on a machine that is one "
            "of its nodes; auto; or local. Addresses with :// are those of Ray's client, which a replay does not use"
        )
    try:
        ray = importlib.import_module("ray")
        importlib.import_module("ray.data")
    except ModuleNotFoundError as error:
        raise CalibrationError(
            f"--ray: the package {error.name!r} is not installed; here and on every node: pip install 'flawline[ray]'"
        ) from error

    def run(scoring: Scoring, workers: int, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, list[Row]]]:
        waiting = iter(chunks)
        _join(ray, address, workers)
        try:
            while some := {chunk.number: chunk for chunk in islice(waiting, WINDOW)}:
                for number, rows in _window(ray, scoring, workers, some):
                    if (chunk := some.pop(number, None)) is not None:  # else it came before
                        yield chunk, rows
                yield from whole(scoring, workers, some.values()) if some else ()
        finally:
            ray.shutdown()

    return run


def _join(ray: Any, address: str, workers: int) -> None:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is reported to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")  # what fails is told by an error of ours
    _refuse_silent(address)
    of_its_own = {"num_cpus": workers, "include_dashboard": False} if address == LOCAL else {}
    try:
        ray.init(address, logging_level=logging.WARNING, log_to_driver=False, **of_its_own)
    except (ray.exceptions.RayError, ConnectionError, RuntimeError, ValueError) as error:
        raise CalibrationError(f"--ray {address!r}: no cluster answers there ({error})") from error
    ray.data.DataContext.get_current().enable_progress_bars = False


def _refuse_silent(address: str) -> None:
    """Raise CalibrationError where nobody takes a connection: Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return
    try:
        socket.create_connection((host.strip("[]"), int(port)), timeout=ANSWER_S).close()
    except (OSError, OverflowError) as error:
        raise CalibrationError(f"--ray {address!r}: no cluster answers there ({error})") from error


def _window(ray: Any, scoring: Scoring, workers: int, chunks: dict[int, Chunk]) -> Iterator[tuple[int, list[Row]]]:
    """What the cluster makes of chunks, as it is done; ends early where it gives up. Raises CalibrationError."""
    items = [{"number": number, "items": json.dumps(chunk.items)} for number, chunk in chunks.items()]
    scored = ray.data.from_items(items, override_num_blocks=len(items)).map_batches(
        _Actor,
        fn_constructor_args=(scoring,),
        batch_size=1,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(size=workers),
        num_cpus=1,
        max_restarts=RESTARTS,
        max_task_retries=RETRIES,
    )
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
    try:
        for answer in scored.iter_rows():
            rows = json.loads(answer["answer"])
            if isinstance(rows, str):
                raise CalibrationError(rows)
            yield int(answer["number"]), [Row.of(row) for row in rows]
    except ray.exceptions.RayError as error:
        log.warning("the cluster gives up what is left to this machine: %s", str(error).splitlines()[0])
