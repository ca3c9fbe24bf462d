"""ONNX Runtime on the CPU: the portable reference that every other engine is held against (hop 4)."""

from __future__ import annotations

from typing import ClassVar

import numpy as np
import onnxruntime

from contract.bundle import Precision
from contract.images import Pixels
from edge_runtime.engines.base import INPUT, MAP, RECONSTRUCTION, SCORE
from edge_runtime.engines.worker import Outputs, WorkerEngine

ERRORS_ONLY = 3


class OnnxRuntimeEngine(WorkerEngine):
    """One sequential session with a bounded number of threads that sleep when there is nothing to do."""

    name = "onnxruntime"
    precisions: ClassVar[tuple[Precision, ...]] = ("fp32", "fp16", "int8")  # below FP32 it checks the graph
    shares: ClassVar[bool] = True
    joins: ClassVar[bool] = True

    def _load(self, graph: bytes) -> set[str]:
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        options.log_severity_level = ERRORS_ONLY
        # A waiting pool must not spin on cores that cameras need; the arena would keep its peak for ever.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        options.enable_cpu_mem_arena = False
        self._session = onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])
        return {output.name for output in self._session.get_outputs()}

    def _load_joined(self, graph: bytes, tiles: int) -> None:
        """Nothing: the session takes any number."""

    def _run(self, tiles: Pixels) -> Outputs:
        scores, maps, reconstruction = self._session.run([SCORE, MAP, RECONSTRUCTION], {INPUT: tiles})
        return Outputs(np.asarray(scores), np.asarray(maps), np.asarray(reconstruction))

    def describe(self) -> str:
        """As in the base class."""
        return f"onnxruntime-{'.'.join(onnxruntime.__version__.split('.')[:2])} {self.spec.precision} cpu"
