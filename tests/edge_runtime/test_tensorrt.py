"""The engine's own order of calls, walked without a card; and the sentences about libraries that do not serve.

Card and library below are of paper: what is queued is done when somebody waits, and the network is ONNX Runtime. That
catches a copy after its launch, a wait too few or a buffer used twice in *our* code. It says nothing about TensorRT,
whose parser and builder are asked for real elsewhere, and what needs a card is in tests/gpu.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

import edge_runtime.engines.tensorrt as tensorrt
from edge_runtime.engines import plan_process
from edge_runtime.engines.base import INPUT, MAP, OUTPUTS, RECONSTRUCTION, SCORE, GraphSpec
from edge_runtime.engines.cuda import Card, Cuda, Event, Graph
from edge_runtime.engines.onnxruntime import OnnxRuntimeEngine
from edge_runtime.engines.plan_process import Request
from edge_runtime.engines.tensorrt import TensorRtEngine, TensorRtRtxEngine, library
from edge_runtime.engines.tiny import GRAPH, SIDE
from edge_runtime.errors import EngineError

BATCH = 2
SPEC = GraphSpec(BATCH, (SIDE, SIDE), 1, (SIDE, SIDE))
CARD = Card("NVIDIA RTX A2000", (8, 6), 8192, "570.1", "12.8")
SHAPES = {
    INPUT: (BATCH, SIDE, SIDE, 1),
    SCORE: (BATCH,),
    MAP: (BATCH, SIDE, SIDE),
    RECONSTRUCTION: (BATCH, SIDE, SIDE, 1),
}
PLAN = b"a plan of paper"


class PaperCuda(Cuda):
    """A stream that does nothing before somebody waits for it, and insists on its context."""

    name = "paper"
    stream = 7

    def __init__(self, captures: bool = True) -> None:
        self.captures, self.current, self.closed = captures, 0, False
        self.memory: dict[int, np.ndarray] = {}
        self.queued: list[Callable[[], None]] = []
        self.written: list[Callable[[], None]] | None = None
        self.allocations = self.launches = self.done = 0

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        self.current += 1
        try:
            yield
        finally:
            self.current -= 1

    def add(self, work: Callable[[], None]) -> None:
        assert self.current == 1 and not self.closed
        (self.queued if self.written is None else self.written).append(work)

    def _allocate(self, size: int) -> np.ndarray:
        assert self.current == 1 and not self.closed
        self.allocations += 1
        return np.full(size, 0xEE, np.uint8)

    def pinned(self, size: int) -> np.ndarray:
        return self._allocate(size)

    def device(self, size: int) -> int:
        self.memory[1000 * (len(self.memory) + 1)] = self._allocate(size)
        return 1000 * len(self.memory)

    def to_device(self, address: int, source: np.ndarray) -> None:
        self.add(lambda: np.copyto(self.memory[address], source))

    def to_host(self, target: np.ndarray, address: int) -> None:
        self.add(lambda: np.copyto(target, self.memory[address]))

    def event(self) -> Event:
        return SimpleNamespace(mark=0)

    def record(self, event: Event) -> None:
        event.mark = self.done + len(self.queued)

    def wait(self, event: Event) -> None:
        assert self.current == 1
        while self.done < event.mark:
            self._do_next()

    def elapsed_ms(self, start: Event, end: Event) -> float:
        raise NotImplementedError

    def synchronize(self) -> None:
        assert self.current == 1
        while self.queued:
            self._do_next()

    def _do_next(self) -> None:
        self.queued.pop(0)()
        self.done += 1

    def begin_capture(self) -> None:
        self.written = []

    def end_capture(self) -> Graph:
        written, self.written = self.written, None
        if not self.captures:
            raise EngineError("CUDA: cuStreamEndCapture says 901, operation failed")
        return written

    def launch(self, graph: Graph) -> None:
        assert self.current == 1
        self.launches += 1
        self.queued += graph

    def open(self) -> PaperCuda:
        self.closed = False
        return self

    def close(self) -> None:
        self.closed = True


class Mode(Enum):
    INPUT = 0
    OUTPUT = 1


def paper_library(cuda: PaperCuda, types: dict[str, str] | None = None) -> Any:
    """What of TensorRT's runtime the session asks; the network is ONNX Runtime's."""
    network = onnxruntime.InferenceSession(GRAPH, providers=["CPUExecutionProvider"])
    kinds = types or {INPUT: "UINT8", SCORE: "FLOAT", MAP: "FLOAT", RECONSTRUCTION: "UINT8"}

    class Context:
        def __init__(self) -> None:
            self.addresses: dict[str, int] = {}

        def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
            return tuple(shape) == SHAPES[name]

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return SHAPES[name]

        def set_tensor_address(self, name: str, address: int) -> bool:
            self.addresses[name] = address
            return True

        def execute_async_v3(self, stream: int) -> bool:
            assert stream == cuda.stream and set(self.addresses) == set(SHAPES)
            cuda.add(self._compute)
            return True

        def _compute(self) -> None:
            image = cuda.memory[self.addresses[INPUT]].reshape(SHAPES[INPUT])
            for name, value in zip(OUTPUTS, network.run(list(OUTPUTS), {INPUT: image}), strict=True):
                cuda.memory[self.addresses[name]][:] = np.ascontiguousarray(value).reshape(-1).view(np.uint8)

    engine = SimpleNamespace(
        num_io_tensors=len(kinds),
        get_tensor_name=lambda index: list(kinds)[index],
        get_tensor_mode=lambda name: Mode.INPUT if name == INPUT else Mode.OUTPUT,
        get_tensor_dtype=lambda name: SimpleNamespace(name=kinds[name]),
        create_execution_context=Context,
    )

    class Logger:
        Severity = Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")

    return SimpleNamespace(
        __version__="10.3.0",
        ILogger=Logger,
        TensorIOMode=Mode,
        Runtime=lambda logger: SimpleNamespace(
            deserialize_cuda_engine=lambda plan: (
                engine if plan == PLAN else logger.log(Logger.Severity.ERROR, "bad magic")
            )
        ),
    )


class Box:
    """A box of paper: its card's memory, and what children were asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
        self.patch = monkeypatch
        self.requests: list[Request] = []
        self.plan = PLAN
        self.fault: str | None = None
        self.use(PaperCuda())
        monkeypatch.setattr(tensorrt, "card", lambda: CARD)
        monkeypatch.setattr(plan_process, "run", self.run)
        monkeypatch.setenv("CACHE_DIRECTORY", str(folder))

    def use(self, cuda: PaperCuda, types: dict[str, str] | None = None) -> None:
        self.cuda = cuda
        module = paper_library(cuda, types)
        self.patch.setattr(tensorrt, "open_cuda", lambda adapter=None: cuda.open())
        self.patch.setattr(tensorrt, "library", lambda engine: module)

    def run(self, request: Request, timeout_s: float) -> dict[str, Any]:
        assert request.graph.read_bytes() == GRAPH
        self.requests.append(request)
        if request.task == "build":
            request.plan.write_bytes(self.plan)
        elif self.fault:
            raise EngineError(self.fault)
        return {}


@pytest.fixture
def box(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Box:
    return Box(monkeypatch, tmp_path)


def parts(count: int) -> list[np.ndarray]:
    return [np.random.default_rng(seed).integers(0, 256, SHAPES[INPUT], np.uint8) for seed in range(count)]


@pytest.mark.parametrize("captures", [True, False])
def test_every_part_gets_its_own_result(box: Box, captures: bool, caplog: pytest.LogCaptureFixture) -> None:
    box.use(PaperCuda(captures))
    engine, reference = TensorRtEngine(GRAPH, SPEC), OnnxRuntimeEngine(GRAPH, SPEC)
    for part in parts(5):
        ours, theirs = engine.infer(part), reference.infer(part)
        np.testing.assert_array_equal(ours.scores, theirs.scores)
        np.testing.assert_array_equal(ours.maps, theirs.maps)
        np.testing.assert_array_equal(engine.reconstruction(), part)
    assert box.cuda.launches == (5 if captures else 0)
    assert ("no CUDA graph" in caplog.text) is not captures
    assert engine.describe() == "tensorrt-10.3 fp32 NVIDIA RTX A2000"


@pytest.mark.parametrize("captures", [True, False])
def test_two_in_flight_come_back_in_order(box: Box, captures: bool) -> None:
    box.use(PaperCuda(captures))
    engine, reference = TensorRtEngine(GRAPH, SPEC), OnnxRuntimeEngine(GRAPH, SPEC)
    outputs = list(engine.infer_many(parts(7)))
    assert len(outputs) == 7
    for part, output in zip(parts(7), outputs, strict=True):
        np.testing.assert_array_equal(output.maps, reference.infer(part).maps)
    with pytest.raises(EngineError, match="no reconstruction"):
        engine.reconstruction()
    assert list(engine.infer_many([])) == []
    with pytest.raises(EngineError, match="expected uint8"):
        list(engine.infer_many([np.zeros((1, 2, 2, 1), np.uint8)]))


@pytest.mark.parametrize(
    ("captures", "broken"),
    [
        (True, "launch"),
        (True, "record"),
        (False, "to_device"),
        (False, "to_host"),
        (False, "record"),
    ],
)
def test_a_start_that_fails_costs_its_own_part_alone(box: Box, captures: bool, broken: str) -> None:
    """The second of four starts fails at some call: the others get what is theirs, and nothing is left behind."""
    box.use(PaperCuda(captures))
    engine, reference = TensorRtEngine(GRAPH, SPEC), OnnxRuntimeEngine(GRAPH, SPEC)
    first, second, third, fourth = parts(4)
    tickets = [engine.start(first)]
    work = getattr(box.cuda, broken)

    def fail(*given: Any) -> None:
        if broken == "launch":
            work(*given)  # some of it is queued before the fault
        raise EngineError("CUDA: cuLaunch says 2, out of memory")

    box.patch.setattr(box.cuda, broken, fail)
    with pytest.raises(EngineError, match="out of memory"):
        engine.start(second)
    assert engine.failing and box.cuda.queued == [], "what was queued before the fault is done, not left behind"
    box.patch.setattr(box.cuda, broken, work)
    tickets.append(engine.start(third))
    np.testing.assert_array_equal(engine.finish(tickets.pop(0)).maps, reference.infer(first).maps)
    assert not engine.failing
    tickets.append(engine.start(fourth))
    for ticket, tiles in zip(tickets, (third, fourth), strict=True):
        np.testing.assert_array_equal(engine.finish(ticket).maps, reference.infer(tiles).maps)
        np.testing.assert_array_equal(engine.reconstruction(), tiles)


def test_nothing_is_allocated_for_a_part_and_the_reconstruction_stays_on_the_card(box: Box) -> None:
    engine = TensorRtEngine(GRAPH, SPEC)
    before = box.cuda.allocations
    copied: list[int] = []
    to_host = box.cuda.to_host
    box.patch.setattr(
        box.cuda, "to_host", lambda target, address: (copied.append(target.size), to_host(target, address))
    )
    for part in parts(3):
        engine.infer(part)
    assert copied == [], "what comes back is in the graph, scores and maps"
    engine.reconstruction()
    assert copied == [BATCH * SIDE * SIDE] and box.cuda.allocations == before


def test_the_plan_is_built_and_tried_once(box: Box) -> None:
    TensorRtEngine(GRAPH, SPEC).close()
    assert box.cuda.closed
    assert [request.task for request in box.requests] == ["build", "try"]
    assert {request.capability for request in box.requests} == {""}
    box.use(PaperCuda())
    TensorRtEngine(GRAPH, SPEC)
    assert len(box.requests) == 2
    TensorRtRtxEngine(GRAPH, SPEC)
    assert [request.engine for request in box.requests[2:]] == ["tensorrt-rtx"] * 2
    assert {request.capability for request in box.requests[2:]} == {"8.6"}


def test_a_plan_that_fails_its_trial_is_not_kept(box: Box, tmp_path: Path) -> None:
    box.fault = "tensorrt: trying the plan crashed (SIGSEGV): it said nothing"
    with pytest.raises(EngineError, match=r"crashed \(SIGSEGV\)"):
        TensorRtEngine(GRAPH, SPEC)
    assert list((tmp_path / "engines").glob("*.plan")) == []
    box.fault = None
    TensorRtEngine(GRAPH, SPEC)
    assert len(box.requests) == 4


def test_a_plan_that_does_not_load_or_is_of_another_graph_is_refused(
    box: Box, caplog: pytest.LogCaptureFixture
) -> None:
    box.plan = b"something else"
    with pytest.raises(EngineError, match="the plan cannot be loaded: bad magic"):
        TensorRtEngine(GRAPH, SPEC)
    with pytest.raises(EngineError, match="the plan cannot be loaded: bad magic"):
        TensorRtEngine(GRAPH, SPEC)
    assert len(box.requests) == 4, "what was in the cache and did not load was built once more"
    assert "the plan from the cache does not load" in caplog.text
    assert box.cuda.closed, "what was opened for it is given back"
    box.plan = PLAN
    TensorRtEngine(GRAPH, SPEC)
    box.use(PaperCuda(), {INPUT: "UINT8", SCORE: "HALF", MAP: "FLOAT", RECONSTRUCTION: "UINT8"})
    with pytest.raises(EngineError, match=r"the plan has the tensors .*'score': 'HALF'"):
        TensorRtEngine(GRAPH, SPEC)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("__version__ = '10.2.0'", r"tensorrt is 10\.2\.0; expected 10\.3 or newer"),
        ("__version__ = '8.6.1'", r"tensorrt is 8\.6\.1; expected 10\.3 or newer"),
        ("raise OSError('libnvinfer.so.10: cannot open')", r"installed but cannot be imported \(libnvinfer"),
        ("import nothing_of_the_kind", r"installed but cannot be imported \(No module named"),
    ],
)
def test_a_library_that_does_not_serve_says_so(
    content: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tensorrt.py").write_text(content)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    try:
        with pytest.raises(EngineError, match=said):
            library("tensorrt")
    finally:
        sys.modules.pop("tensorrt", None)


def test_a_library_that_is_not_there_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(tensorrt.LIBRARIES, "tensorrt", ("tensorrt_that_is_not_there",))
    with pytest.raises(EngineError, match=r"pip install 'flawline\[tensorrt\]' .*--system-site-packages"):
        library("tensorrt")
