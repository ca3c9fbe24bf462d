"""The table of engines and how one is chosen: one graph, several runtimes (hop 4)."""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import logging
import platform
import threading
from typing import TYPE_CHECKING, NamedTuple
from weakref import WeakKeyDictionary

from edge_runtime.errors import EngineError

if TYPE_CHECKING:
    from contract.bundle import Bundle, Precision
    from edge_runtime.engines.base import Engine, GraphSpec

ENGINES = {
    "tensorrt": "edge_runtime.engines.tensorrt:TensorRtEngine",
    "tensorrt-rtx": "edge_runtime.engines.tensorrt:TensorRtRtxEngine",
    "openvino": "edge_runtime.engines.openvino:OpenVinoEngine",
    "onnxruntime": "edge_runtime.engines.onnxruntime:OnnxRuntimeEngine",
}
# name -> names of the package behind it, and the extra that brings it
PACKAGES = {
    "tensorrt": (("tensorrt", "tensorrt_bindings"), "tensorrt"),
    "tensorrt-rtx": (("tensorrt_rtx", "tensorrt_rtx_bindings"), "tensorrt-rtx"),
    "openvino": (("openvino",), "edge"),
    "onnxruntime": (("onnxruntime",), "edge"),
}
AUTO_ORDER = ("tensorrt", "tensorrt-rtx", "openvino", "onnxruntime")
ON_A_CARD = frozenset({"tensorrt", "tensorrt-rtx"})
X86 = frozenset({"x86_64", "AMD64"})


class Together(NamedTuple):
    """How many parts at most go through one inference, and how long that one may take."""

    parts: int = 1
    budget_ms: float = 0.0


ALONE = Together()


class Made(NamedTuple):
    """All that decides how an engine computes: two that are alike in it can serve over one compiled graph."""

    graph_sha256: str
    spec: GraphSpec
    name: str
    threads: int
    together: Together


_OPEN: WeakKeyDictionary[Engine, Made] = WeakKeyDictionary()
_LOOKING = threading.Lock()

log = logging.getLogger(__name__)


def installed(name: str) -> bool:
    """Whether the package behind an engine can be found; does not import it."""
    return any(importlib.util.find_spec(package) is not None for package in PACKAGES[name][0])


def obstacle(name: str) -> str | None:
    """Why an installed engine cannot serve on this machine (no driver, no card, no way to it), or None.

    Asks the driver, and imports none of the engines' packages.
    """
    if name not in ON_A_CARD:
        return None
    from edge_runtime.engines.cuda import serving_adapter
    from edge_runtime.engines.tensorrt import usable_card

    try:
        usable_card(name)
        serving_adapter()
    except EngineError as error:
        return str(error)
    return None


def choose(name: str) -> str:
    """The engine that ``auto`` stands for on this machine, any other name unchanged.

    TensorRT where it and a card that works are; TensorRT-RTX on RTX cards; else OpenVINO on x86-64, which its CPU code
    is written for; else ONNX Runtime. Raises EngineError for an unknown name or a missing package.
    """
    if name == "auto":
        usable = [option for option in AUTO_ORDER if option != "openvino" or platform.machine() in X86]
        found = next((option for option in usable if installed(option) and _serves(option)), None)
        if found is None:
            raise EngineError(f"no engine is installed ({' or '.join(usable)}): pip install 'flawline[edge]'")
        return found
    if name not in ENGINES:
        raise EngineError(f"no engine {name!r}; there are: auto, {', '.join(ENGINES)}")
    if not installed(name):
        raise EngineError(
            f"engine {name!r}: its package is not installed: pip install 'flawline[{PACKAGES[name][1]}]', or use 'auto'"
        )
    return name


def _serves(name: str) -> bool:
    """Whether an installed engine can serve here; the log says why not."""
    why = obstacle(name)
    if why is not None:
        log.info("engine %r is installed and passed over: %s", name, why)
    return why is None


def open_engine(
    name: str, bundle: Bundle, threads: int = 1, precision: Precision = "fp32", together: Together = ALONE
) -> Engine:
    """Load, compile and warm up the bundle's graph of ``precision``; ``name`` is a key of ENGINES or ``auto``.

    Raises EngineError, and BundleError where the bundle has no graph of that precision.
    """
    from edge_runtime.engines.base import graph_spec, read_graph

    kind = kind_for(name, precision)
    if together.parts > 1 and not kind.joins:
        able = [other for other in ENGINES if installed(other) and _kind(other).joins]
        raise EngineError(
            f"engine {kind.name!r} takes one part at a time, and batch = {together.parts} is asked for; "
            f"set batch = 1, or engine to one of {', '.join(able)}"
        )
    graph = read_graph(bundle, precision)
    engine = kind(graph, graph_spec(bundle, precision), threads)
    try:
        engine.warm_up()
        if together.parts > 1:
            engine.join(graph, together.parts, together.budget_ms / 1000)
    except BaseException:
        engine.close()
        raise
    return engine


def open_shared(
    name: str, bundle: Bundle, threads: int = 1, precision: Precision = "fp32", together: Together = ALONE
) -> Engine:
    """As ``open_engine``; where one that was opened so has compiled the same graph alike, it is not loaded again.

    Each call gives an engine of its own, for another thread perhaps, to be closed by whoever asked for it.
    """
    from edge_runtime.engines.base import graph_spec, read_graph

    sha256 = hashlib.sha256(read_graph(bundle, precision)).hexdigest()
    made = Made(sha256, graph_spec(bundle, precision), choose(name), threads, together)
    with _LOOKING:  # one that fails or computes wrongly is no source of another
        alike = [engine for engine, of in _OPEN.items() if of == made and not engine.failing]
    engine = alike[0].beside() if alike else None
    if engine is None:
        engine = open_engine(name, bundle, threads, precision, together)
    else:
        log.info("%s: graph %s is compiled already and serves another recipe as well", engine.name, sha256[:12])
    with _LOOKING:
        _OPEN[engine] = made
    return engine


def compile_graph(name: str, graph: bytes, spec: GraphSpec, threads: int = 1) -> Engine:
    """A graph that stands in no bundle yet, compiled and warm as ``open_engine`` does it. Raises EngineError."""
    engine = kind_for(name, spec.precision)(graph, spec, threads)
    engine.warm_up()
    return engine


def kind_for(name: str, precision: Precision) -> type[Engine]:
    """The class that serves as ``name`` here. Raises EngineError: none, or none that computes in ``precision``."""
    chosen = choose(name)
    kind = _kind(chosen)
    if precision not in kind.precisions:
        able = [other for other in ENGINES if precision in _precisions(other)]
        raise EngineError(
            f"engine {chosen!r} computes in {' or '.join(kind.precisions)}, precision = {precision!r} is asked for; "
            f"use one of {', '.join(able)}, or precision = 'fp32'"
        )
    return kind


def _precisions(name: str) -> tuple[Precision, ...]:
    """Precisions of an engine; none where it is not installed."""
    return _kind(name).precisions if installed(name) else ()


def probe(name: str) -> str:
    """Run a tiny graph on an engine and return its description. Raises EngineError where it does not work."""
    import numpy as np

    from edge_runtime.engines.base import GraphSpec
    from edge_runtime.engines.tiny import GRAPH, SIDE

    engine = _kind(choose(name))(GRAPH, GraphSpec(1, (SIDE, SIDE), 1, (SIDE, SIDE)), 1)
    try:
        score = float(engine.infer(np.full((1, SIDE, SIDE, 1), 7, np.uint8)).scores[0])
    finally:
        engine.close()
    if score != 7.0:
        raise EngineError(f"engine {name!r} computes wrongly: {score} where 7 is right")
    return engine.describe()


def _kind(name: str) -> type[Engine]:
    """The class behind a name of ENGINES, imported now."""
    module, _, attribute = ENGINES[name].partition(":")
    try:
        kind: type[Engine] = getattr(importlib.import_module(module), attribute)
    except ImportError as error:
        raise EngineError(
            f"engine {name!r} is installed but cannot be imported ({error}); reinstall it: "
            f"pip install -U 'flawline[{PACKAGES[name][1]}]'"
        ) from error
    return kind
