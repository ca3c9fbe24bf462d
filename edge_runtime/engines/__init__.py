"""The table of engines and how one is chosen: one graph, several runtimes (hop 4)."""

from __future__ import annotations

import importlib
import importlib.util
import platform
from typing import TYPE_CHECKING

from edge_runtime.errors import EngineError

if TYPE_CHECKING:
    from contract.bundle import Bundle
    from edge_runtime.engines.base import Engine

ENGINES = {
    "openvino": "edge_runtime.engines.openvino:OpenVinoEngine",
    "onnxruntime": "edge_runtime.engines.onnxruntime:OnnxRuntimeEngine",
}
AUTO_ORDER = ("openvino", "onnxruntime")
X86 = frozenset({"x86_64", "AMD64"})


def installed(name: str) -> bool:
    """Whether the package behind an engine can be found; does not import it."""
    return importlib.util.find_spec(name) is not None


def choose(name: str) -> str:
    """The engine that ``auto`` stands for on this machine, any other name unchanged.

    OpenVINO's CPU code is written for x86-64, where it is the faster one; elsewhere ONNX Runtime serves.
    Raises EngineError for an unknown name or a missing package.
    """
    if name == "auto":
        usable = [option for option in AUTO_ORDER if option != "openvino" or platform.machine() in X86]
        found = next((option for option in usable if installed(option)), None)
        if found is None:
            raise EngineError(f"no engine is installed ({' or '.join(usable)}): pip install 'flawline[edge]'")
        return found
    if name not in ENGINES:
        raise EngineError(f"no engine {name!r}; there are: auto, {', '.join(ENGINES)}")
    if not installed(name):
        raise EngineError(f"engine {name!r}: its package is not installed: pip install 'flawline[edge]', or use 'auto'")
    return name


def open_engine(name: str, bundle: Bundle, threads: int = 1) -> Engine:
    """Load, compile and warm up the bundle's graph; ``name`` is a key of ENGINES or ``auto``. Raises EngineError."""
    from edge_runtime.engines.base import graph_spec, read_graph

    engine = _kind(choose(name))(read_graph(bundle), graph_spec(bundle), threads)
    engine.warm_up()
    return engine


def probe(name: str) -> str:
    """Run a tiny graph on an engine and return its description. Raises EngineError where it does not work."""
    import numpy as np

    from edge_runtime.engines.base import GraphSpec
    from edge_runtime.engines.tiny import GRAPH, SIDE

    engine = _kind(choose(name))(GRAPH, GraphSpec(1, (SIDE, SIDE), 1, (SIDE, SIDE)), 1)
    score = float(engine.infer(np.full((1, SIDE, SIDE, 1), 7, np.uint8)).scores[0])
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
            "pip install -U 'flawline[edge]'"
        ) from error
    return kind
