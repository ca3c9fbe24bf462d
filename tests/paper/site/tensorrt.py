"""TensorRT of paper for whole processes: a plan is the graph itself, and ONNX Runtime computes on the paper card.

Beside ``tests/paper/driver.c`` it lets the edge's own commands, children, cache and error paths run for real where
there is no card. It says nothing about TensorRT.
"""

from __future__ import annotations

import ctypes
import os
import time
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

__version__ = "10.3.0"
TYPES = {"tensor(uint8)": "UINT8", "tensor(float)": "FLOAT"}


class ILogger:
    Severity = Enum("Severity", "INTERNAL_ERROR ERROR WARNING INFO VERBOSE")


class TensorIOMode(Enum):
    INPUT = 0
    OUTPUT = 1


class NetworkDefinitionCreationFlag(IntEnum):
    STRONGLY_TYPED = 1


class MemoryPoolType(Enum):
    WORKSPACE = 0


class BuilderFlag(Enum):
    TF32 = 0


Dims = tuple


class _Profile:
    def set_shape(self, name: str, *shapes: Any) -> None:
        self.shape = shapes[0]


class _Config:
    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None: ...
    def clear_flag(self, flag: BuilderFlag) -> None: ...
    def add_optimization_profile(self, profile: _Profile) -> None: ...


class Builder:
    def __init__(self, logger: ILogger) -> None: ...

    def create_network(self, flags: int) -> dict[str, bytes]:
        return {}

    def create_builder_config(self) -> _Config:
        return _Config()

    def create_optimization_profile(self) -> _Profile:
        return _Profile()

    def build_serialized_network(self, network: dict[str, bytes], config: _Config) -> bytes:
        """Writes its process id to $PAPER_BUILDS/PID, and waits while $PAPER_BUILDS/wait is there."""
        if folder := os.environ.get("PAPER_BUILDS"):
            (Path(folder) / str(os.getpid())).write_text(str(os.getpriority(os.PRIO_PROCESS, 0)))
            while (Path(folder) / "wait").exists():
                time.sleep(0.01)
        return network["graph"]


class OnnxParser:
    def __init__(self, network: dict[str, bytes], logger: ILogger) -> None:
        self._network = network

    def parse(self, graph: bytes) -> bool:
        self._network["graph"] = graph
        return True


class _Context:
    def __init__(self, session: onnxruntime.InferenceSession) -> None:
        self._session = session
        self._addresses: dict[str, int] = {}
        self._shapes: dict[str, tuple[int, ...]] = {}
        self._call = ctypes.CFUNCTYPE(None)(self._compute)
        self._queue = ctypes.CDLL("libcuda.so.1").paper_queue

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        outputs = [output.name for output in self._session.get_outputs()]
        found = self._session.run(outputs, {name: np.zeros(shape, np.uint8)})
        self._shapes = {name: tuple(shape)} | {
            output: value.shape for output, value in zip(outputs, found, strict=True)
        }
        return True

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self._shapes[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        self._addresses[name] = address
        return True

    def execute_async_v3(self, stream: int) -> bool:
        return self._queue(self._call) == 0

    def _compute(self) -> None:
        (given,) = self._session.get_inputs()
        outputs = [output.name for output in self._session.get_outputs()]
        image = self._memory(given.name, np.uint8)
        for name, value in zip(outputs, self._session.run(outputs, {given.name: image}), strict=True):
            np.copyto(self._memory(name, value.dtype), value)

    def _memory(self, name: str, dtype: Any) -> np.ndarray:
        shape = self._shapes[name]
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        raw = (ctypes.c_uint8 * size).from_address(self._addresses[name])
        return np.frombuffer(raw, dtype).reshape(shape)


class _Engine:
    def __init__(self, plan: bytes) -> None:
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self._session = onnxruntime.InferenceSession(plan, options, providers=["CPUExecutionProvider"])
        self._inputs = {tensor.name: tensor.type for tensor in self._session.get_inputs()}
        self._types = self._inputs | {tensor.name: tensor.type for tensor in self._session.get_outputs()}
        self.num_io_tensors = len(self._types)

    def get_tensor_name(self, index: int) -> str:
        return list(self._types)[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name in self._inputs else TensorIOMode.OUTPUT

    def get_tensor_dtype(self, name: str) -> Enum:
        return Enum("DataType", "UINT8 FLOAT")[TYPES[self._types[name]]]

    def create_execution_context(self) -> _Context:
        return _Context(self._session)


class Runtime:
    def __init__(self, logger: ILogger) -> None: ...

    def deserialize_cuda_engine(self, plan: bytes) -> _Engine | None:
        return _Engine(plan)
