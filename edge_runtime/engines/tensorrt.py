"""TensorRT 10.3 to 11.x and TensorRT-RTX through one module: parse, build, cache, run (hop 4).

The two libraries share their Python interface as far as it is used here; which one serves is the engine's name. Both
are imported only when an engine is opened. Building and trying a plan happen in a child process.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from contract.bundle import Precision
from contract.images import Pixels
from edge_runtime.engines import plan_process, plans
from edge_runtime.engines.base import INPUT, MAP, OUTPUTS, RECONSTRUCTION, SCORE, SLOTS, Engine, GraphSpec
from edge_runtime.engines.cuda import Card, Cuda, Event, Graph, card, open_cuda
from edge_runtime.errors import EngineError

if TYPE_CHECKING:
    import tensorrt as trt

# engine -> names under which its library may be installed, the first that is found serves
LIBRARIES = {
    "tensorrt": ("tensorrt", "tensorrt_bindings"),
    "tensorrt-rtx": ("tensorrt_rtx", "tensorrt_rtx_bindings"),
}
OLDEST = {"tensorrt": (10, 3), "tensorrt-rtx": (1, 0)}
# Cards that TensorRT-RTX builds for, by its own list of compute capabilities.
RTX_CAPABILITIES = frozenset({(7, 5), (8, 0), (8, 6), (8, 9), (12, 0), (12, 1)})
WORKSPACE_MB = 1024
FLOAT32, UINT8 = "FLOAT", "UINT8"  # names of the library's data types
GREY = 128

log = logging.getLogger(__name__)


class BuildOptions(NamedTuple):
    """``input_shape`` [N, H, W, C] is the only profile; ``capability`` such as ``8.6`` is TensorRT-RTX's target card.

    An empty ``capability`` leaves TensorRT-RTX its own range of cards; TensorRT always builds for the card at hand.
    """

    input_shape: tuple[int, int, int, int]
    workspace_mb: int = WORKSPACE_MB
    capability: str = ""


def library(engine: str) -> ModuleType:
    """The library behind an engine, imported now. Raises EngineError where it is missing, broken or too old."""
    name = next((name for name in LIBRARIES[engine] if importlib.util.find_spec(name) is not None), None)
    if name is None:
        raise EngineError(
            f"engine {engine!r}: none of {', '.join(LIBRARIES[engine])} is installed: pip install 'flawline[{engine}]' "
            "(a Jetson's system packages bring tensorrt: make the environment with --system-site-packages)"
        )
    try:
        module = importlib.import_module(name)
    except Exception as error:  # a missing .so raises OSError in one version and ImportError in another
        raise EngineError(f"engine {engine!r}: {name} is installed but cannot be imported ({error})") from error
    if _numbers(module.__version__) < OLDEST[engine]:
        oldest = ".".join(map(str, OLDEST[engine]))
        raise EngineError(f"engine {engine!r}: {name} is {module.__version__}; expected {oldest} or newer")
    return module


def _numbers(version: str) -> tuple[int, int]:
    major, minor = version.split(".")[:2]
    return int(major), int(minor)


def _logger(engine: str) -> tuple[trt.ILogger, list[str]]:
    """A logger for the library, and the list to which its errors are added."""
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = library(engine)
    errors: list[str] = []
    levels = {
        trt.ILogger.Severity.INTERNAL_ERROR: logging.ERROR,
        trt.ILogger.Severity.ERROR: logging.ERROR,
        trt.ILogger.Severity.WARNING: logging.WARNING,
    }

    class Logger(trt.ILogger):  # type: ignore[misc]  # unknown where the library is not installed
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: trt.ILogger.Severity, msg: str) -> None:
            level = levels.get(severity, logging.DEBUG)
            log.log(level, "%s: %s", engine, msg)
            if level == logging.ERROR:
                errors.append(msg)

    return Logger(), errors


def build_plan(engine: str, graph: bytes, options: BuildOptions) -> bytes:
    """Parse an ONNX graph as a strongly typed network and build it for one shape; returns the plan.

    TensorRT-RTX needs no graphics card for that, TensorRT does. Raises EngineError with what parser or builder say.
    """
    if TYPE_CHECKING:
        import tensorrt as trt
    else:
        trt = library(engine)
    logger, errors = _logger(engine)
    try:
        builder = trt.Builder(logger)
    except TypeError as error:  # the constructor has returned a null pointer
        raise EngineError(f"{engine}: there is no builder without a working graphics card: {_last(errors)}") from error
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(graph):
        raise EngineError(f"{engine} {trt.__version__} refuses the graph: {_parser_faults(parser)}")
    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb << 20)
    config.clear_flag(trt.BuilderFlag.TF32)  # FP32 has to agree within 1e-4; TF32 keeps three digits
    profile = builder.create_optimization_profile()
    shape = trt.Dims(list(options.input_shape))
    profile.set_shape(INPUT, shape, shape, shape)
    config.add_optimization_profile(profile)
    if options.capability:
        _aim(library(engine), config, options.capability)
    plan: Any = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"{engine} {trt.__version__} cannot build the graph: {_last(errors)}")
    return bytes(plan)


def _aim(rtx: ModuleType, config: Any, capability: str) -> None:
    """Build for one kind of card. TensorRT-RTX alone has these names, which is why they are not type-checked."""
    config.num_compute_capabilities = 1
    config.set_compute_capability(getattr(rtx.ComputeCapability, f"SM{capability.replace('.', '')}"), 0)


def _parser_faults(parser: trt.OnnxParser) -> str:
    """Every error of the parser with the node that it is about."""
    found = []
    for index in range(parser.num_errors):
        error = parser.get_error(index)
        place = f"node {error.node()} {error.node_name()!r} ({error.node_operator()}): " if error.node() >= 0 else ""
        found.append(f"{place}{' '.join(error.desc().split())}")
    return "; ".join(found)[:1000] or "its parser gives no reason"


def _last(errors: list[str]) -> str:
    return " ".join(errors[-1].split())[:500] if errors else "it gives no reason"


class PlanError(EngineError):
    """The plan itself is at fault, and not the card at this moment."""


class Slot(NamedTuple):
    """One of two sets of buffers, each with a context of its own, since a graph belongs to the context it was made of.

    ``image``, ``scores``, ``maps`` and ``reconstruction`` are pinned; ``addresses`` are the tensors' on the card.
    """

    context: trt.IExecutionContext
    image: Pixels
    scores: NDArray[np.float32]
    maps: NDArray[np.float32]
    reconstruction: Pixels
    addresses: dict[str, int]
    done: Event


class Session:
    """A plan on the card: a few slots of buffers, one stream, a CUDA graph for each slot. Belongs to one thread.

    Nothing is allocated after the constructor. The other slots let the next tiles be copied and queued while the card
    still computes the ones before.
    """

    def __init__(
        self,
        engine: str,
        plan: bytes,
        input_shape: Sequence[int],
        *,
        adapter: str | None = None,
        graphs: bool = True,
    ) -> None:
        if TYPE_CHECKING:
            import tensorrt as trt
        else:
            trt = library(engine)
        self.name = engine
        self.input_shape = tuple(input_shape)
        # First, and with better words: without a driver the library's own runtime has been seen to crash.
        self.cuda: Cuda = open_cuda(adapter=adapter)
        self._closed = False
        self._logger, errors = _logger(engine)
        try:
            with self.cuda.active():
                self._runtime = trt.Runtime(self._logger)
                self._engine = self._runtime.deserialize_cuda_engine(plan)
                if self._engine is None:
                    raise PlanError(f"{engine}: the plan cannot be loaded: {_last(errors)}")
                names = [self._engine.get_tensor_name(index) for index in range(self._engine.num_io_tensors)]
                self.outputs = {name for name in names if self._engine.get_tensor_mode(name) == trt.TensorIOMode.OUTPUT}
                self._check(names)
                self.slots = [self._slot() for _ in range(SLOTS)]
                self.graphs: list[Graph | None] = [self._capture(slot) if graphs else None for slot in self.slots]
        except BaseException:
            self._release()
            self.cuda.close()
            raise

    def _check(self, names: list[str]) -> None:
        """Names and types of the graph that the bundle promises; a plan of another one must not be run."""
        found = {name: self._engine.get_tensor_dtype(name).name for name in names}
        expected = {INPUT: UINT8, SCORE: FLOAT32, MAP: FLOAT32, RECONSTRUCTION: UINT8}
        if found != expected:
            raise PlanError(f"{self.name}: the plan has the tensors {found}; expected {expected}")

    def _slot(self) -> Slot:
        context = self._engine.create_execution_context()
        if context is None:
            raise EngineError(f"{self.name}: no execution context; is the card's memory full? Look at nvidia-smi")
        if not context.set_input_shape(INPUT, self.input_shape):
            raise EngineError(f"{self.name}: the plan does not take the shape {self.input_shape}")
        addresses: dict[str, int] = {}
        pinned: dict[str, Pixels] = {}
        shapes: dict[str, tuple[int, ...]] = {}
        for name in (INPUT, *OUTPUTS):
            dims = context.get_tensor_shape(name)
            shapes[name] = tuple(dims[index] for index in range(len(dims)))
            size = int(np.prod(shapes[name])) * (4 if name in (SCORE, MAP) else 1)
            if size <= 0:
                raise EngineError(f"{self.name}: tensor {name!r} has the shape {shapes[name]}")
            addresses[name] = self.cuda.device(size)
            pinned[name] = self.cuda.pinned(size)
            if not context.set_tensor_address(name, addresses[name]):
                raise EngineError(f"{self.name}: the plan has no tensor {name!r}")
        return Slot(
            context,
            pinned[INPUT].reshape(shapes[INPUT]),
            pinned[SCORE].view(np.float32).reshape(shapes[SCORE]),
            pinned[MAP].view(np.float32).reshape(shapes[MAP]),
            pinned[RECONSTRUCTION].reshape(shapes[RECONSTRUCTION]),
            addresses,
            self.cuda.event(),
        )

    def _queue(self, slot: Slot) -> None:
        """Tiles in, network, scores and maps out: the same for every part, so that a graph can stand for it."""
        self.cuda.to_device(slot.addresses[INPUT], slot.image.reshape(-1))
        if not slot.context.execute_async_v3(self.cuda.stream):
            raise EngineError(f"{self.name}: the network could not be queued; its log says why")
        for name, target in ((SCORE, slot.scores), (MAP, slot.maps)):
            self.cuda.to_host(target.view(np.uint8).reshape(-1), slot.addresses[name])

    def _capture(self, slot: Slot) -> Graph | None:
        """The work of a slot as a CUDA graph, or None where it cannot be captured: then it is queued each time."""
        slot.image.fill(GREY)
        self._queue(slot)  # once for real: what is set up at the first call must not be part of the graph
        self.cuda.synchronize()
        try:
            self.cuda.begin_capture()
            try:
                self._queue(slot)
            finally:
                graph = self.cuda.end_capture()
        except EngineError as error:
            log.warning("%s: no CUDA graph, the work is queued for each part instead: %s", self.name, error)
            return None
        return graph

    def start(self, index: int, tiles: Pixels) -> None:
        """Queue uint8 tiles [N, H, W, C] in a slot; ``finish`` it before it is started again.

        Raises EngineError: then nothing of it is under way any more, and the slot is as free as before.
        """
        slot, graph = self.slots[index], self.graphs[index]
        with self.cuda.active():
            try:
                self.cuda.wait(slot.done)  # at once, unless it was not finished
                np.copyto(slot.image, tiles)
                if graph is None:
                    self._queue(slot)
                else:
                    self.cuda.launch(graph)
                self.cuda.record(slot.done)
            except BaseException:
                # What was queued before the fault would go on reading and writing the slot's memory unseen.
                with contextlib.suppress(Exception):
                    self.cuda.synchronize()
                raise

    def finish(self, index: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Wait for a slot; its scores and maps, views that hold until the slot is started again."""
        slot = self.slots[index]
        with self.cuda.active():
            self.cuda.wait(slot.done)
        return slot.scores, slot.maps

    def reconstruction(self, index: int) -> Pixels:
        """The slot's reconstruction, a view; copied off the card only now."""
        slot = self.slots[index]
        with self.cuda.active():
            self.cuda.to_host(slot.reconstruction.reshape(-1), slot.addresses[RECONSTRUCTION])
            self.cuda.synchronize()
        return slot.reconstruction

    def try_once(self) -> float:
        """Run on grey in every slot and return the highest score. Raises EngineError where it is no number."""
        highest = 0.0
        for index in range(SLOTS):
            self.start(index, np.full(self.input_shape, GREY, np.uint8))
            scores, maps = self.finish(index)
            if not (np.isfinite(scores).all() and np.isfinite(maps).all()):
                raise EngineError(f"{self.name}: the plan gives values that are no numbers for a grey tile")
            highest = max(highest, float(scores.max()))
        return highest

    def close(self) -> None:
        """Give everything back to the card, contexts before the engine, the engine before the memory."""
        if self._closed:
            return
        self._closed = True
        with contextlib.suppress(EngineError), self.cuda.active():
            self.cuda.synchronize()  # fails after an error of the card, and everything must go all the same
        self.graphs.clear()
        self._release()
        self.cuda.close()

    def _release(self) -> None:
        """Let go of what must end before the memory that it uses, contexts before the engine; some may not be there."""
        self.slots = []
        for name in ("_engine", "_runtime"):
            self.__dict__.pop(name, None)


class TensorRtEngine(Engine):
    """The graph built for this card and the recipe's tiles, from the box's cache where it is there."""

    name: ClassVar[str] = "tensorrt"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "fp16", "int8")

    def _load(self, graph: bytes) -> set[str]:
        self._on = usable_card(self.name)
        self._session = self._open(graph, self._key(graph, self.spec, self._on))
        return self._session.outputs

    def _open(self, graph: bytes, key: plans.PlanKey) -> Session:
        """A session from the cache; what does not load although it should is built once more."""
        plan = self._obtain(graph, key)
        try:
            return Session(self.name, plan.data, self.spec.input_shape)
        except PlanError as fault:
            if plan.built:
                raise
            log.warning("%s: the plan from the cache does not load and is built once more: %s", self.name, fault)
        plans.forget(plans.cache_folder(), key)
        return Session(self.name, self._obtain(graph, key).data, self.spec.input_shape)

    @classmethod
    def why_not_built(cls, graph: bytes, spec: GraphSpec) -> str | None:
        """As in the base class."""
        return plans.why_not_built(plans.cache_folder(), cls._key(graph, spec, usable_card(cls.name)))

    @classmethod
    def build_ahead(cls, graph: bytes, spec: GraphSpec, *, background: bool = False) -> plans.Plan:
        """As in the base class."""
        return cls._obtain(graph, cls._key(graph, spec, usable_card(cls.name)), background)

    @classmethod
    def _obtain(cls, graph: bytes, key: plans.PlanKey, background: bool = False) -> plans.Plan:
        return plans.obtain(plans.cache_folder(), key, lambda target: cls._build(graph, key, target, background))

    @classmethod
    def _key(cls, graph: bytes, spec: GraphSpec, on: Card) -> plans.PlanKey:
        return plans.PlanKey(
            graph_sha256=hashlib.sha256(graph).hexdigest(),
            library=cls.name,
            library_version=library(cls.name).__version__,
            card=on.name,
            capability=on.compute,
            driver=on.driver,
            cuda=on.cuda,
            input_shape=list(spec.input_shape),
            options={"workspace_mb": WORKSPACE_MB, "tf32": 0, "builds_for": cls._target(on)},
        )

    @classmethod
    def _target(cls, on: Card) -> str:
        """TensorRT builds for the card that it runs on."""
        return ""

    @classmethod
    def _build(cls, graph: bytes, key: plans.PlanKey, target: Path, background: bool) -> None:
        """Build into ``target`` and try the result, each in a child."""
        log.info("%s: building the engine for %s; up to some minutes, once for each bundle", cls.name, key.card)
        batch, height, width, channels = key.input_shape
        beside = target.with_name(f"{target.name}.onnx")  # so that the cache clears it away if we are killed
        try:
            beside.write_bytes(graph)
            request = plan_process.Request(
                task="build",
                engine=cls.name,
                graph=beside,
                plan=target,
                input_shape=(batch, height, width, channels),
                workspace_mb=WORKSPACE_MB,
                capability=str(key.options["builds_for"]),
                background=background,
            )
            plan_process.run(request, plan_process.BUILD_S)
            plan_process.run(request.model_copy(update={"task": "try"}), plan_process.TRY_S)
        finally:
            beside.unlink(missing_ok=True)

    def _lost(self) -> str | None:
        why = self._session.cuda.lost()
        if why is None:
            return None
        return f"{self.name}: {self._on.name} does not compute for this process any more ({why}): it ends"

    def _start(self, slot: int, tiles: Pixels) -> None:
        self._session.start(slot, tiles)
        self._bell.ring()  # at once: nobody tells us when the card is done, which is soon

    def _ready(self, slot: int) -> bool:
        return True

    def _finish(self, slot: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        return self._session.finish(slot)

    def _reconstruction(self, slot: int) -> Pixels:
        return self._session.reconstruction(slot)

    def close(self) -> None:
        """As in the base class."""
        super().close()
        self._session.close()

    def describe(self) -> str:
        """As in the base class."""
        version = ".".join(library(self.name).__version__.split(".")[:2])
        return f"{self.name}-{version} {self.spec.precision} {self._on.name}"


class TensorRtRtxEngine(TensorRtEngine):
    """The same through TensorRT-RTX, which finishes a plan for the card when it loads it."""

    name: ClassVar[str] = "tensorrt-rtx"

    @classmethod
    def _target(cls, on: Card) -> str:
        return on.compute


def usable_card(engine: str) -> Card:
    """The card that ``engine`` would run on. Raises EngineError: no driver, no card, or not one for this library."""
    on = card()
    if engine == "tensorrt-rtx" and on.capability not in RTX_CAPABILITIES:
        raise EngineError(
            f"engine 'tensorrt-rtx' serves RTX cards; {on.name} has compute capability {on.compute}, which it does not "
            "build for; install tensorrt and use engine = 'tensorrt'"
        )
    return on
