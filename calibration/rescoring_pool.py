"""Processes of this machine that score an archive's parts; one that dies loses nothing (at the engineer's desk)."""

from __future__ import annotations

import multiprocessing
import signal
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import chain
from multiprocessing.connection import Connection, wait
from typing import NamedTuple

from calibration.archive import Item
from calibration.errors import CalibrationError
from calibration.rescoring import Row, Scorer, Scoring, lost
from contract.errors import FlawlineError

DEATHS = 2
"""So many processes may die on a chunk before its parts are given out one by one, and so many on one part."""

STARTS = 3
"""So many may die before they are ready: then it is no part that kills them."""

STOP_S = 5.0
READY = "ready"


class Chunk(NamedTuple):
    """Some parts that go to a process together; by its number its result is kept."""

    number: int
    items: tuple[Item, ...]


class _Job:
    """A chunk on its way: whole, or part by part once processes have died on it."""

    def __init__(self, chunk: Chunk) -> None:
        self.chunk = chunk
        self.deaths = 0
        self.rows: list[Row] = []

    def next_items(self) -> Sequence[Item]:
        """What a process is given now."""
        rest = self.chunk.items[len(self.rows) :]
        return rest[:1] if self.apart else rest

    @property
    def apart(self) -> bool:
        return self.deaths >= DEATHS

    @property
    def done(self) -> bool:
        return len(self.rows) == len(self.chunk.items)

    def died(self, exit_code: int | None) -> None:
        """A process died on it; the part that kills every process gets no verdict, with the reason."""
        self.deaths += 1
        if self.deaths >= 2 * DEATHS:
            self.rows.append(lost(self.chunk.items[len(self.rows)], f"scoring it ends the process ({_how(exit_code)})"))
            self.deaths = DEATHS


class _Worker:
    """A process and what it has been given."""

    def __init__(self, scoring: Scoring) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipe, theirs = context.Pipe()
        self.process = context.Process(target=_work, args=(theirs, scoring), name="replay", daemon=True)
        self.process.start()
        theirs.close()
        self.job: _Job | None = None
        self.ready = False

    def give(self, job: _Job) -> None:
        self.job = job
        with suppress(OSError):  # it has died: its end is seen by the one who waits
            self.pipe.send(job.next_items())

    def stop(self) -> None:
        self.process.terminate()
        self.process.join(STOP_S)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()


class Pool:
    """Scores chunks in ``workers`` processes; use as a context, whose end ends the processes.

    ``pids`` are those of the processes at this moment, ``deaths`` how many have died.
    """

    def __init__(self, scoring: Scoring, workers: int) -> None:
        self._scoring = scoring
        self._count = workers
        self._workers: list[_Worker] = []
        self._again: deque[_Job] = deque()
        self._failed_starts = 0
        self.deaths = 0

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *error: object) -> None:
        for worker in self._workers:
            worker.stop()
        self._workers.clear()

    @property
    def pids(self) -> list[int]:
        return [worker.process.pid for worker in self._workers if worker.process.pid is not None]

    def run(self, chunks: Iterable[Chunk]) -> Iterator[tuple[Chunk, list[Row]]]:
        """Every chunk once with a row for each of its parts, as they are done.

        Raises CalibrationError where the archive fails, or processes cannot be started.
        """
        waiting = iter(chunks)
        first = next(waiting, None)
        if first is None:
            return  # no process is started for nothing
        waiting, more = chain([first], waiting), True
        while True:
            more = self._give_out(waiting) if more or self._again else False
            busy = [worker for worker in self._workers if worker.job is not None or not worker.ready]
            if not any(worker.job for worker in self._workers) and not self._again and not more:
                return
            for worker in self._woken(busy):
                if (job := self._heard(worker)) is not None:
                    yield job.chunk, job.rows

    def _give_out(self, waiting: Iterator[Chunk]) -> bool:
        """Work for every process that is ready, and a process where one is missing; False: there is no more."""
        while len(self._workers) < self._count:
            self._workers.append(_Worker(self._scoring))
        for worker in self._workers:
            if worker.ready and worker.job is None:
                job = self._again.popleft() if self._again else _next(waiting)
                if job is None:
                    return False
                worker.give(job)
        return True

    def _woken(self, workers: Sequence[_Worker]) -> list[_Worker]:
        """Those that have said something, or have died."""
        awake = set(wait([each.pipe for each in workers] + [each.process.sentinel for each in workers]))
        return [each for each in workers if each.pipe in awake or each.process.sentinel in awake]

    def _heard(self, worker: _Worker) -> _Job | None:
        """Take what a process says; its job where that is done now."""
        try:
            answer = worker.pipe.recv() if worker.pipe.poll() else None
        except (EOFError, OSError):
            answer = None
        if answer is None:
            self._buried(worker)
            return None
        if isinstance(answer, str) and answer != READY:
            raise CalibrationError(answer)
        job, worker.job = worker.job, None
        if job is None:
            worker.ready = True
            self._failed_starts = 0
            return None
        job.rows += [Row.of(row) for row in answer]
        if job.done:
            return job
        job.deaths = DEATHS  # the next part has its own
        worker.give(job)
        return None

    def _buried(self, worker: _Worker) -> None:
        """A process has died: what it had is done again, by another."""
        worker.process.join()
        self._workers.remove(worker)
        worker.pipe.close()
        self.deaths += 1
        if worker.job is not None:
            worker.job.died(worker.process.exitcode)
            self._again.append(worker.job)
        self._failed_starts += not worker.ready
        if self._failed_starts >= STARTS:
            raise CalibrationError(
                f"processes that score die while they start ({_how(worker.process.exitcode)}): is there memory for "
                f"{self._count} of them? Try --workers 1"
            )


def _next(waiting: Iterator[Chunk]) -> _Job | None:
    chunk = next(waiting, None)
    return None if chunk is None else _Job(chunk)


def _how(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        return signal.Signals(-exit_code).name
    return f"exit code {exit_code}"


def _work(pipe: Connection, scoring: Scoring) -> None:
    """A process's life: score what comes until the other end is gone; Ctrl-C is the parent's to hear."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        scorer = Scorer(scoring)
        pipe.send(READY)
        while True:
            pipe.send([row.plain() for row in scorer.rows(pipe.recv())])
    except FlawlineError as error:
        with suppress(OSError):
            pipe.send(str(error))
    except (EOFError, OSError):
        return
