"""OpenVINO on the CPU: the default engine of x86 boxes without a graphics card (hop 4)."""

from __future__ import annotations

import threading
import weakref
from functools import cache
from queue import SimpleQueue
from typing import ClassVar

import numpy as np
import openvino
from numpy.typing import NDArray

from contract.bundle import Precision
from contract.images import Pixels
from edge_runtime.engines.base import INPUT, MAP, RECONSTRUCTION, SCORE, SLOTS, Bell, Engine
from edge_runtime.engines.precedence import precedence

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


class _Run:
    """One slot's inferences of one number of tiles.

    ``begun``: OpenVINO has it; else it waits for one of another number to end. ``fault``: why there is no output.
    """

    def __init__(self, compiled: openvino.CompiledModel, tiles: int) -> None:
        self.request = compiled.create_infer_request()
        self.tiles = tiles
        self.begun = False
        self.done = threading.Event()
        self.fault: Exception | None = None


class OpenVinoEngine(Engine):
    """The graph compiled for the tiles of one part, and of several parts where they are joined.

    One stream, in float32 and where the graph says so in int8. (Compiled once for any number of tiles it takes half as
    long again.)
    """

    name = "openvino"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "int8")
    shares: ClassVar[bool] = True
    joins: ClassVar[bool] = True
    # By itself OpenVINO computes in bfloat16 where the CPU has it: scores then differ by 1e-3 instead of 1e-7.
    floats: ClassVar[str] = "f32"

    def _load(self, graph: bytes) -> set[str]:
        compiled = self._compile(graph, self.spec.batch)
        self._compiled = {self.spec.batch: compiled}
        return {name for output in compiled.outputs for name in output.get_names()}

    def _load_joined(self, graph: bytes, tiles: int) -> None:
        one = self.spec.batch
        self._compiled = {one: self._compiled[one]}  # first: there must be room for what comes in its place
        self._make_runs()
        if tiles != one:
            self._compiled[tiles] = self._compile(graph, tiles)
            self._make_runs()

    def _compile(self, graph: bytes, tiles: int) -> openvino.CompiledModel:
        core = _core()
        model = core.read_model(graph)
        model.reshape({INPUT: [tiles, *self.spec.input_shape[1:]]})
        options = {"INFERENCE_PRECISION_HINT": self.floats, "INFERENCE_NUM_THREADS": str(self.threads), **OPTIONS}
        with precedence():
            return core.compile_model(model, "CPU", options)

    def _make_runs(self) -> None:
        self._runs = {tiles: [_Run(each, tiles) for _ in range(SLOTS)] for tiles, each in self._compiled.items()}
        self._in_slot = list(self._runs[self.spec.batch])
        self._last: _Run | None = None

    def _set_up(self) -> None:
        super()._set_up()
        self._make_runs()
        self._held: dict[int, Pixels] = {}
        self._started: SimpleQueue[_Run | None] = SimpleQueue()
        threading.Thread(target=_ring_when_done, args=(self._started, self._bell), daemon=True, name=self.name).start()
        self._end_thread = weakref.finalize(self, self._started.put, None)  # also where nobody calls close

    def _start(self, slot: int, tiles: Pixels) -> None:
        # A request under way has the next one wait inside OpenVINO, which begins it without asking Python. (A callback
        # of ours would have OpenVINO's thread wait for Python's lock between the two.) Only one of another number of
        # tiles, which OpenVINO would compute at the same time, is begun by our thread that waits for the one before.
        run, before = self._runs[len(tiles)][slot], self._last
        run.request.set_tensor(INPUT, openvino.Tensor(tiles, shared_memory=True))
        run.begun = before is None or before.done.is_set() or (before.begun and before.tiles == run.tiles)
        if run.begun:
            run.request.start_async()
        run.fault = None
        run.done.clear()
        self._held[slot] = tiles
        self._in_slot[slot] = self._last = run
        self._started.put(run)

    def _ready(self, slot: int) -> bool:
        return self._in_slot[slot].done.is_set()

    def _finish(self, slot: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        run = self._in_slot[slot]
        run.done.wait()
        if run.fault is not None:
            raise run.fault
        return self._output(slot, SCORE), self._output(slot, MAP)

    def _reconstruction(self, slot: int) -> Pixels:
        return np.asarray(self._in_slot[slot].request.get_tensor(RECONSTRUCTION).data)

    def _output(self, slot: int, name: str) -> NDArray[np.float32]:
        return np.asarray(self._in_slot[slot].request.get_tensor(name).data)

    def close(self) -> None:
        """As in the base class."""
        super().close()
        self._end_thread()

    def describe(self) -> str:
        """As in the base class."""
        return f"openvino-{'.'.join(openvino.__version__.split('.')[:2])} {self.spec.precision} cpu"


def _ring_when_done(started: SimpleQueue[_Run | None], bell: Bell) -> None:
    while (run := started.get()) is not None:
        try:
            if not run.begun:
                run.request.start_async()
                run.begun = True
            run.request.wait()
        except Exception as error:  # noqa: BLE001 - whatever it was, whoever waits must be told
            run.fault = error
        bell.ring()  # before it is known to be done: a later ring would never be taken back
        run.done.set()
