"""Engines whose runtime has one call that returns when it is done, made on a thread of their own (hop 4)."""

from __future__ import annotations

from abc import abstractmethod
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from contract.images import Pixels
from edge_runtime.engines.base import Engine


class Outputs(NamedTuple):
    """``scores`` float32 [N], ``maps`` float32 [N, h, w], ``reconstruction`` uint8 [N, H, W, C]."""

    scores: NDArray[np.float32]
    maps: NDArray[np.float32]
    reconstruction: Pixels


class WorkerEngine(Engine):
    """Infers on one thread, which lasts as long as the engine. A back-end supplies ``_load``, ``_run``, ``describe``.

    The thread needs Python's lock between two parts: a runtime that queues by itself does not, and is to be preferred.
    """

    def _set_up(self) -> None:
        super()._set_up()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"{self.name}")
        self._futures: dict[int, Future[Outputs]] = {}

    @abstractmethod
    def _run(self, tiles: Pixels) -> Outputs:
        """Infer, on the engine's thread; arrays that no later call changes."""

    def _start(self, slot: int, tiles: Pixels) -> None:
        self._futures[slot] = self._thread.submit(self._run_and_ring, tiles)

    def _run_and_ring(self, tiles: Pixels) -> Outputs:
        try:
            return self._run(tiles)
        finally:
            self._bell.ring()  # before the result can be had: a later ring would never be taken back

    def _ready(self, slot: int) -> bool:
        return self._futures[slot].done()

    def _finish(self, slot: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        outputs = self._futures[slot].result()
        return outputs.scores, outputs.maps

    def _reconstruction(self, slot: int) -> Pixels:
        return self._futures[slot].result().reconstruction

    def close(self) -> None:
        """As in the base class."""
        super().close()
        self._thread.shutdown()
