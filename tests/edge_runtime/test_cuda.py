"""The CUDA seam where there is no graphics card: what is missing is said in a sentence that helps.

Nothing here has computed on a card: tests/gpu does that where one is. The driver that answers below is a library of
our own making, compiled for the test: it proves what is asked and how an answer is read, not that a card does it.
"""

from __future__ import annotations

import builtins
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.engines import cuda
from edge_runtime.engines.cuda import ADAPTERS, INSTALL, card, open_cuda, serving_adapter
from edge_runtime.errors import EngineError
from tests.needs import lacking

WITH_DRIVER = Path("/proc/driver/nvidia/version").exists()

# The functions that card() asks, with answers that a test can choose.
DRIVER = r"""
#include <string.h>
int cuInit(unsigned flags) { return INIT; }
int cuGetErrorString(int code, const char **text) { *text = code == 100 ? "no CUDA-capable device" : 0; return 0; }
int cuDeviceGetCount(int *count) { *count = COUNT; return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return 0; }
int cuDriverGetVersion(int *version) { *version = 12080; return 0; }
int cuDeviceGetName(char *name, int length, int device) { strncpy(name, "NVIDIA RTX A2000", length); return 0; }
int cuDeviceTotalMem_v2(unsigned long *bytes, int device) { *bytes = 8ul << 30; return 0; }
int cuDeviceGetAttribute(int *value, int which, int device) { *value = which == 75 ? 8 : 6; return 0; }
"""


def driver(folder: Path, init: int = 0, count: int = 1) -> str:
    """Compile a driver that answers so; returns the library's path."""
    if shutil.which("gcc") is None:
        lacking("gcc is not installed")
    source, library = folder / "driver.c", folder / "libdriver.so"
    source.write_text(DRIVER)
    subprocess.run(
        ["gcc", "-shared", "-fPIC", f"-DINIT={init}", f"-DCOUNT={count}", str(source), "-o", str(library)], check=True
    )
    return str(library)


@pytest.mark.skipif(WITH_DRIVER, reason="there is a driver here")
def test_a_box_without_a_driver_says_so() -> None:
    said = r"no NVIDIA driver: libcuda\.so\.1 cannot be loaded .*; install the driver .* or use engine = 'openvino'"
    with pytest.raises(EngineError, match=said):
        card()
    with pytest.raises(EngineError, match=said):
        open_cuda()


def test_a_card_is_described_by_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "DRIVER_LIBRARY", driver(tmp_path))
    monkeypatch.setattr(cuda, "DRIVER_VERSION", tmp_path / "version")
    assert card() == ("NVIDIA RTX A2000", (8, 6), 8192, "cuda 12.8", "12.8")
    assert card().compute == "8.6"
    (tmp_path / "version").write_text("570.86.10\n")
    assert card().driver == "570.86.10"


def test_a_driver_without_a_card_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "none").mkdir()
    monkeypatch.setattr(cuda, "DRIVER_LIBRARY", driver(tmp_path, init=100))
    with pytest.raises(EngineError, match=r"cuInit says 100, no CUDA-capable device; look at nvidia-smi"):
        card()
    monkeypatch.setattr(cuda, "DRIVER_LIBRARY", driver(tmp_path / "none", count=0))
    with pytest.raises(EngineError, match=r"sees 0 graphics card\(s\), number 0 is asked for; .*CUDA_VISIBLE_DEVICES"):
        card()


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_missing_adapter_says_what_to_install(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, {"pycuda": "pycuda.driver", "cuda-python": "cuda.bindings.driver"}[name], None)
    with pytest.raises(EngineError, match=rf"{name} cannot be imported .*: pip install {INSTALL[name]}$"):
        ADAPTERS[name][1](0)  # type: ignore[call-arg]


def test_neither_adapter_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cuda, "_found", lambda module: False)
    with pytest.raises(EngineError, match=r"neither pycuda nor cuda-python is installed.*pip install cuda-bindings"):
        serving_adapter()


@pytest.mark.skipif(WITH_DRIVER, reason="there is a driver here")
def test_the_real_cuda_python_without_a_driver_is_a_sentence() -> None:
    pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    with pytest.raises(EngineError, match=r"cuda-python finds no NVIDIA driver .*; install the driver"):
        ADAPTERS["cuda-python"][1](0)  # type: ignore[call-arg]


def test_every_function_that_is_called_is_one_of_cuda_python_s() -> None:
    """The names are strings in our code, so that no type checker sees a misspelt one."""
    api = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    import ast
    import inspect

    tree = ast.parse(inspect.getsource(cuda))
    (adapter,) = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "CudaPython"]
    names = {
        node.value
        for node in ast.walk(adapter)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.startswith("cu") and
        node.value.isalnum()
    } - {"cuda"}  # fmt: skip
    assert len(names) > 20
    assert [name for name in sorted(names) if not callable(getattr(api, name, None))] == []


def test_the_numbers_are_cuda_python_s() -> None:
    api = pytest.importorskip("cuda.bindings.driver", reason="cuda-bindings is not installed")
    attribute = api.CUdevice_attribute
    assert attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR == cuda.MAJOR
    assert attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR == cuda.MINOR
    assert api.CUstream_flags.CU_STREAM_NON_BLOCKING == cuda.NON_BLOCKING
    assert api.CUevent_flags.CU_EVENT_BLOCKING_SYNC == cuda.BLOCKING_SYNC
    assert api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL == cuda.THREAD_LOCAL


def test_both_adapters_have_every_method_of_the_seam() -> None:
    for _, kind in ADAPTERS.values():
        assert not getattr(kind, "__abstractmethods__", None), kind.__name__


def test_the_seam_imports_neither_package(monkeypatch: pytest.MonkeyPatch) -> None:
    imported: list[str] = []
    real = builtins.__import__

    def watch(name: str, *arguments: Any, **options: Any) -> Any:
        imported.append(name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", watch)
    serving_adapter()
    assert not [name for name in imported if name.startswith(("pycuda", "cuda.bindings.driver"))]
