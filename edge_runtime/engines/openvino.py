"""OpenVINO on the CPU: the default engine of x86 boxes without a graphics card (hop 4)."""

from __future__ import annotations

import threading
import weakref
from contextlib import suppress
from functools import cache
from queue import SimpleQueue
from typing import ClassVar, NamedTuple

import numpy as np
import openvino
from numpy.typing import NDArray

from contract.bundle import Precision
from contract.images import Pixels
from edge_runtime.engines.base import INPUT, MAP, RECONSTRUCTION, SCORE, SLOTS, Bell, Engine

OPTIONS = {
    "PERFORMANCE_HINT": "LATENCY",
    "NUM_STREAMS": "1",
    "ENABLE_CPU_PINNING": "NO",
}


@cache
def _core() -> openvino.Core:
    """The one core of the process, which lasts as long as the process does.

    Where the CPU has AMX, the plugin behind a core gives the thread that loads it a signal stack of its own, and frees
    that when the last engine of the core is given back: on another thread, whoever loaded it is left with a signal
    stack that is no longer there, and the next signal, SIGTERM among them, kills the process.
    """
    return openvino.Core()


class _Started(NamedTuple):
    request: openvino.InferRequest
    done: threading.Event


class OpenVinoEngine(Engine):
    """The graph compiled for one fixed batch, one stream, in float32 and where the graph says so in int8."""

    name = "openvino"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "int8")
    # By itself OpenVINO computes in bfloat16 where the CPU has it: scores then differ by 1e-3 instead of 1e-7.
    floats: ClassVar[str] = "f32"

    def _load(self, graph: bytes) -> set[str]:
        core = _core()
        model = core.read_model(graph)
        model.reshape({INPUT: list(self.spec.input_shape)})
        options = {"INFERENCE_PRECISION_HINT": self.floats, "INFERENCE_NUM_THREADS": str(self.threads), **OPTIONS}
        compiled = core.compile_model(model, "CPU", options)
        self._requests = [compiled.create_infer_request() for _ in range(SLOTS)]
        self._held: dict[int, Pixels] = {}
        self._done = [threading.Event() for _ in range(SLOTS)]
        self._started: SimpleQueue[_Started | None] = SimpleQueue()
        threading.Thread(target=_ring_when_done, args=(self._started, self._bell), daemon=True, name=self.name).start()
        self._end_thread = weakref.finalize(self, self._started.put, None)  # also where nobody calls close
        return {name for output in compiled.outputs for name in output.get_names()}

    def _start(self, slot: int, tiles: Pixels) -> None:
        # A request under way has the next one wait inside OpenVINO, which begins it without asking Python. (A callback
        # of ours would have OpenVINO's thread wait for Python's lock between the two.)
        self._requests[slot].set_tensor(INPUT, openvino.Tensor(tiles, shared_memory=True))
        self._requests[slot].start_async()
        self._held[slot] = tiles
        self._done[slot].clear()
        self._started.put(_Started(self._requests[slot], self._done[slot]))

    def _ready(self, slot: int) -> bool:
        return self._done[slot].is_set()

    def _finish(self, slot: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        self._done[slot].wait()
        self._requests[slot].wait()
        return self._output(slot, SCORE), self._output(slot, MAP)

    def _reconstruction(self, slot: int) -> Pixels:
        return np.asarray(self._requests[slot].get_tensor(RECONSTRUCTION).data)

    def _output(self, slot: int, name: str) -> NDArray[np.float32]:
        return np.asarray(self._requests[slot].get_tensor(name).data)

    def close(self) -> None:
        """As in the base class."""
        super().close()
        self._end_thread()

    def describe(self) -> str:
        """As in the base class."""
        return f"openvino-{'.'.join(openvino.__version__.split('.')[:2])} {self.spec.precision} cpu"


def _ring_when_done(started: SimpleQueue[_Started | None], bell: Bell) -> None:
    while (each := started.get()) is not None:
        with suppress(RuntimeError):  # it failed; finish says how
            each.request.wait()
        bell.ring()  # before it is known to be done: a later ring would never be taken back
        each.done.set()
