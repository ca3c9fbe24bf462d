"""The CUDA seam: buffers, one stream, events and graphs through pycuda or cuda-python, whichever is there (hop 4).

Importing this module imports neither of them. What the driver says of itself comes through ctypes, so that a box
without a card, without a driver or without either package gets a sentence instead of a traceback.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib
import importlib.util
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import numpy as np

from contract.images import Pixels
from edge_runtime.errors import EngineError

DRIVER_LIBRARY = "libcuda.so.1"
DRIVER_VERSION = Path("/sys/module/nvidia/version")
MAJOR, MINOR = 75, 76  # CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_*
NON_BLOCKING = 1  # of a stream: it does not wait for the default stream, nor that for it
BLOCKING_SYNC = 1  # of an event: who waits for it sleeps; spinning would take a core from the cameras
THREAD_LOCAL = 1  # of a capture: another thread's allocations do not spoil it

INSTALL = {"pycuda": "pycuda", "cuda-python": "cuda-bindings"}

Event = Any
Graph = Any


class Card(NamedTuple):
    """A graphics card and what drives it, as the key of an engine cache and a report name them."""

    name: str
    capability: tuple[int, int]
    memory_mb: int
    driver: str
    cuda: str

    @property
    def compute(self) -> str:
        """Compute capability as NVIDIA writes it: ``8.6``."""
        return "{}.{}".format(*self.capability)


def card(ordinal: int = 0) -> Card:
    """The graphics card that engines would run on, asked of the driver itself. Raises EngineError with the way out."""
    library = _driver_library()
    _ask(library, "cuInit", 0)
    count, device, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    _ask(library, "cuDeviceGetCount", ctypes.byref(count))
    if count.value <= ordinal:
        raise EngineError(
            f"the NVIDIA driver sees {count.value} graphics card(s), number {ordinal} is asked for; "
            "look at CUDA_VISIBLE_DEVICES and nvidia-smi, or use engine = 'openvino'"
        )
    _ask(library, "cuDeviceGet", ctypes.byref(device), ordinal)
    _ask(library, "cuDriverGetVersion", ctypes.byref(version))
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    _ask(library, "cuDeviceGetName", name, len(name), device)
    _ask(library, "cuDeviceTotalMem_v2", ctypes.byref(memory), device)
    major, minor = (_attribute(library, which, device) for which in (MAJOR, MINOR))
    cuda = f"{version.value // 1000}.{version.value % 1000 // 10}"
    return Card(name.value.decode(errors="replace"), (major, minor), memory.value >> 20, _driver_version(cuda), cuda)


def _driver_library() -> ctypes.CDLL:
    try:
        return ctypes.CDLL(DRIVER_LIBRARY)
    except OSError as error:
        raise EngineError(
            f"no NVIDIA driver: {DRIVER_LIBRARY} cannot be loaded ({error}); install the driver (in a container: start "
            "it with --gpus all), or use engine = 'openvino' or 'onnxruntime'"
        ) from error


def _ask(library: ctypes.CDLL, function: str, *arguments: Any) -> None:
    code = int(getattr(library, function)(*arguments))
    if code:
        text = ctypes.c_char_p()
        library.cuGetErrorString(code, ctypes.byref(text))
        why = text.value.decode(errors="replace") if text.value else "unknown"
        raise EngineError(
            f"the NVIDIA driver does not work: {function} says {code}, {why}; look at nvidia-smi and dmesg, "
            "or use engine = 'openvino' or 'onnxruntime'"
        )


def _attribute(library: ctypes.CDLL, which: int, device: ctypes.c_int) -> int:
    value = ctypes.c_int()
    _ask(library, "cuDeviceGetAttribute", ctypes.byref(value), which, device)
    return value.value


def _driver_version(cuda: str) -> str:
    """The kernel module's version; a Jetson has none, its driver is known by the CUDA version that it brings."""
    try:
        return DRIVER_VERSION.read_text(encoding="ascii").strip()
    except OSError:
        return f"cuda {cuda}"


class Cuda(ABC):
    """The primary context of one card and one stream in it; everything allocated lives until ``close``.

    Belongs to one thread, as the engine that it serves. Every method but ``active`` and ``close`` is called inside
    ``active``. Copies and launches only queue work on the stream.
    """

    name: ClassVar[str]
    stream: int  # the handle that TensorRT takes

    @abstractmethod
    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """Make the context current for this thread, and the one before it current again afterwards."""

    @abstractmethod
    def pinned(self, size: int) -> Pixels:
        """Page-locked host memory, uint8 [size]."""

    @abstractmethod
    def device(self, size: int) -> int:
        """Address of ``size`` bytes on the card."""

    @abstractmethod
    def to_device(self, address: int, source: Pixels) -> None:
        """Queue a copy from pinned memory."""

    @abstractmethod
    def to_host(self, target: Pixels, address: int) -> None:
        """Queue a copy to pinned memory."""

    @abstractmethod
    def event(self) -> Event:
        """A mark that the stream can pass; who waits for it sleeps."""

    @abstractmethod
    def record(self, event: Event) -> None:
        """Let the stream pass ``event`` after all that is queued."""

    @abstractmethod
    def wait(self, event: Event) -> None:
        """Sleep until the stream has passed ``event``. Raises EngineError for whatever failed before it."""

    @abstractmethod
    def elapsed_ms(self, start: Event, end: Event) -> float:
        """Milliseconds on the card between two events that were passed."""

    @abstractmethod
    def synchronize(self) -> None:
        """Wait until the stream is empty."""

    @abstractmethod
    def begin_capture(self) -> None:
        """From here to ``end_capture`` what is queued is written down instead of done."""

    @abstractmethod
    def end_capture(self) -> Graph:
        """What was written down, ready to be launched again and again. Raises EngineError."""

    @abstractmethod
    def launch(self, graph: Graph) -> None:
        """Queue a graph."""

    @abstractmethod
    def close(self) -> None:
        """Give back stream, memory and context; twice is no fault."""

    def lost(self) -> str | None:
        """Asked after a failure, outside ``active``: what ended the context, or None where the card still answers.

        The error of one call is told once. What a mere wait for the stream tells again lasts: "the process must be
        terminated and relaunched", in the driver's own words for an illegal address and its like.
        """
        try:
            with self.active():
                self.synchronize()
        except EngineError as error:
            return str(error)
        return None


_CONTEXTS: dict[int, Any] = {}


class PyCuda(Cuda):
    """pycuda, compiled on the box. It has no graphs: those go to the driver through ctypes, on the same stream."""

    name = "pycuda"

    def __init__(self, ordinal: int = 0) -> None:
        if TYPE_CHECKING:
            from pycuda import driver as pycuda
        else:
            pycuda = _import("pycuda.driver", "pycuda")
        pycuda.init()
        self._pycuda = pycuda
        # Never pycuda.autoinit: a context of its own beside the primary one, current in one thread for ever.
        # Kept until the process ends: pycuda's own way of dropping it detaches what was never attached.
        if ordinal not in _CONTEXTS:
            _CONTEXTS[ordinal] = pycuda.Device(ordinal).retain_primary_context()
        self._context = _CONTEXTS[ordinal]
        self._driver = _driver_library()
        self._kept: list[object] = []
        self._graphs: list[ctypes.c_void_p] = []
        with self.active():
            self._stream = pycuda.Stream(NON_BLOCKING)
        self.stream = int(self._stream.handle)

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """As in the base class; what pycuda raises meanwhile is an EngineError outside."""
        try:
            self._context.push()
            try:
                yield
            finally:
                self._pycuda.Context.pop()
        except self._pycuda.Error as error:
            raise EngineError(f"CUDA: {error}") from error

    def pinned(self, size: int) -> Pixels:
        """As in the base class."""
        memory: Pixels = self._pycuda.pagelocked_empty(size, np.uint8)
        self._kept.append(memory)
        return memory

    def device(self, size: int) -> int:
        """As in the base class."""
        memory = self._pycuda.mem_alloc(size)
        self._kept.append(memory)
        return int(memory)

    def to_device(self, address: int, source: Pixels) -> None:
        """As in the base class."""
        self._pycuda.memcpy_htod_async(address, source, self._stream)

    def to_host(self, target: Pixels, address: int) -> None:
        """As in the base class."""
        self._pycuda.memcpy_dtoh_async(target, address, self._stream)

    def event(self) -> Event:
        """As in the base class."""
        return self._pycuda.Event(BLOCKING_SYNC)

    def record(self, event: Event) -> None:
        """As in the base class."""
        event.record(self._stream)

    def wait(self, event: Event) -> None:
        """As in the base class."""
        event.synchronize()

    def elapsed_ms(self, start: Event, end: Event) -> float:
        """As in the base class."""
        return float(start.time_till(end))

    def synchronize(self) -> None:
        """As in the base class."""
        self._stream.synchronize()

    def begin_capture(self) -> None:
        """As in the base class."""
        _ask(self._driver, "cuStreamBeginCapture_v2", ctypes.c_void_p(self.stream), THREAD_LOCAL)

    def end_capture(self) -> Graph:
        """As in the base class."""
        written, ready = ctypes.c_void_p(), ctypes.c_void_p()
        _ask(self._driver, "cuStreamEndCapture", ctypes.c_void_p(self.stream), ctypes.byref(written))
        try:
            _ask(self._driver, "cuGraphInstantiateWithFlags", ctypes.byref(ready), written, ctypes.c_ulonglong(0))
        finally:
            _ask(self._driver, "cuGraphDestroy", written)
        self._graphs.append(ready)
        return ready

    def launch(self, graph: Graph) -> None:
        """As in the base class."""
        _ask(self._driver, "cuGraphLaunch", graph, ctypes.c_void_p(self.stream))

    def close(self) -> None:
        """As in the base class."""
        if self._context is None:
            return
        with self.active():
            # After an error of the card every call reports it again; the rest must be given back all the same.
            with contextlib.suppress(self._pycuda.Error):
                self._stream.synchronize()
            for graph in self._graphs:
                with contextlib.suppress(EngineError):
                    _ask(self._driver, "cuGraphExecDestroy", graph)
            self._graphs.clear()
            self._kept.clear()  # pycuda frees what nobody holds
            self._stream = None
        self._context = None


class CudaPython(Cuda):
    """cuda-python's plain wheels: the driver's own functions, each answering with a code first."""

    name = "cuda-python"

    def __init__(self, ordinal: int = 0) -> None:
        if TYPE_CHECKING:
            from cuda.bindings import driver
        else:
            driver = _import("cuda.bindings.driver", "cuda-python")
        self._api = driver
        self._pinned: list[int] = []
        self._memory: list[int] = []
        self._events: list[Any] = []
        self._graphs: list[Any] = []
        self._stream: Any = None
        try:
            self._do("cuInit", 0)
        except EngineError:
            raise
        except Exception as error:  # what it raises where the driver's library is not there has changed over time
            raise EngineError(f"cuda-python finds no NVIDIA driver ({error}); install the driver") from error
        self._device = self._do("cuDeviceGet", ordinal)
        self._context: Any = self._do("cuDevicePrimaryCtxRetain", self._device)
        with self.active():
            self._stream = self._do("cuStreamCreate", NON_BLOCKING)
        self.stream = int(self._stream)

    def _do(self, function: str, *arguments: Any) -> Any:
        code, *values = getattr(self._api, function)(*arguments)
        if int(code):
            _, text = self._api.cuGetErrorString(code)
            why = text.decode(errors="replace") if isinstance(text, bytes) else "unknown"
            raise EngineError(f"CUDA: {function} says {int(code)}, {why}")
        return values[0] if values else None

    @contextlib.contextmanager
    def active(self) -> Iterator[None]:
        """As in the base class."""
        self._do("cuCtxPushCurrent", self._context)
        try:
            yield
        finally:
            self._do("cuCtxPopCurrent")

    def pinned(self, size: int) -> Pixels:
        """As in the base class."""
        address = int(self._do("cuMemHostAlloc", size, 0))
        self._pinned.append(address)
        return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))

    def device(self, size: int) -> int:
        """As in the base class."""
        address = int(self._do("cuMemAlloc", size))
        self._memory.append(address)
        return address

    def to_device(self, address: int, source: Pixels) -> None:
        """As in the base class."""
        self._do("cuMemcpyHtoDAsync", address, source.ctypes.data, source.nbytes, self._stream)

    def to_host(self, target: Pixels, address: int) -> None:
        """As in the base class."""
        self._do("cuMemcpyDtoHAsync", target.ctypes.data, address, target.nbytes, self._stream)

    def event(self) -> Event:
        """As in the base class."""
        event = self._do("cuEventCreate", BLOCKING_SYNC)
        self._events.append(event)
        return event

    def record(self, event: Event) -> None:
        """As in the base class."""
        self._do("cuEventRecord", event, self._stream)

    def wait(self, event: Event) -> None:
        """As in the base class."""
        self._do("cuEventSynchronize", event)

    def elapsed_ms(self, start: Event, end: Event) -> float:
        """As in the base class."""
        return float(self._do("cuEventElapsedTime", start, end))

    def synchronize(self) -> None:
        """As in the base class."""
        self._do("cuStreamSynchronize", self._stream)

    def begin_capture(self) -> None:
        """As in the base class."""
        mode = self._api.CUstreamCaptureMode(THREAD_LOCAL)
        self._do("cuStreamBeginCapture", self._stream, mode)

    def end_capture(self) -> Graph:
        """As in the base class."""
        written = self._do("cuStreamEndCapture", self._stream)
        try:
            ready = self._do("cuGraphInstantiate", written, 0)
        finally:
            self._do("cuGraphDestroy", written)
        self._graphs.append(ready)
        return ready

    def launch(self, graph: Graph) -> None:
        """As in the base class."""
        self._do("cuGraphLaunch", graph, self._stream)

    def close(self) -> None:
        """As in the base class."""
        if self._context is None:
            return
        with self.active():
            for function, handles in (
                ("cuStreamSynchronize", [self._stream]),
                ("cuGraphExecDestroy", self._graphs),
                ("cuEventDestroy", self._events),
                ("cuMemFreeHost", self._pinned),
                ("cuMemFree", self._memory),
                ("cuStreamDestroy", [self._stream]),
            ):
                for handle in handles:
                    # After an error of the card every call reports it again; the rest must be given back all the same.
                    with contextlib.suppress(EngineError):
                        self._do(function, handle)
                handles.clear()
        # The primary context stays until the process ends: whatever of TensorRT outlives this needs it to be destroyed.
        self._context = None


# name -> module that must be there, class; the first that is installed serves
ADAPTERS: dict[str, tuple[str, type[Cuda]]] = {
    "pycuda": ("pycuda", PyCuda),
    "cuda-python": ("cuda.bindings", CudaPython),
}


def open_cuda(ordinal: int = 0, adapter: str | None = None) -> Cuda:
    """The card's primary context and a stream, through ``adapter`` or the first that is installed.

    Raises EngineError where neither package is installed, the driver is missing, or the card refuses.
    """
    card(ordinal)  # its sentences are better than what the packages say without a driver
    name = adapter or serving_adapter()
    try:
        return ADAPTERS[name][1](ordinal)  # type: ignore[call-arg]  # both take the card's number
    except EngineError:
        raise
    except Exception as error:
        raise EngineError(f"{name} cannot open graphics card {ordinal}: {error}") from error


def serving_adapter() -> str:
    """Name of the first adapter whose package is installed; imports none. Raises EngineError where there is none."""
    found = next((name for name, (module, _) in ADAPTERS.items() if _found(module)), None)
    if found is None:
        raise EngineError(
            "neither pycuda nor cuda-python is installed, and TensorRT needs one of them: pip install cuda-bindings "
            "(wheels), or pip install pycuda (compiled against the box's CUDA toolkit)"
        )
    return found


def _found(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is not there
        return False


def _import(module: str, package: str) -> Any:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise EngineError(f"{package} cannot be imported ({error}): pip install {INSTALL[package]}") from error
