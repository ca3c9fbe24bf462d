"""Both ways to CUDA against a driver of paper: the real packages, every call of ours, and what is given back.

cuda-python comes as wheels. pycuda is compiled from its own source against NVIDIA's headers (a few minutes: marked
long), as it would be on a box; only the driver that both then load is ours (tests/paper/driver.c), so that nothing here
is said of a card.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

from tests.needs import download, lacking
from tests.paper_box import PAPER, compile_driver

PYCUDA = "pycuda==2026.1"
HEADERS = ("nvidia-cuda-runtime==13.0.96", "nvidia-cuda-profiler-api==13.0.85")
SHORT = """
CUDA_ENABLE_CURAND = False
CUDA_INC_DIR = [{include!r}]
CUDADRV_LIB_DIR = [{libraries!r}]
CXXFLAGS = ["-O0", "-w"]
"""

# Every method of the seam, then the whole engine, then the same after the card is lost.
EXERCISE = """
import ctypes, os, sys
from pathlib import Path

import numpy as np

from edge_runtime.engines.base import GraphSpec
from edge_runtime.engines.cuda import card, open_cuda, serving_adapter
from edge_runtime.engines.onnxruntime import OnnxRuntimeEngine
from edge_runtime.engines.tensorrt import TensorRtEngine
from edge_runtime.engines.tiny import GRAPH, SIDE
from edge_runtime.errors import EngineError

adapter = sys.argv[1]
driver = ctypes.CDLL("libcuda.so.1")


def used():
    free, total, current = ctypes.c_size_t(), ctypes.c_size_t(), ctypes.c_void_p()
    driver.cuCtxGetCurrent(ctypes.byref(current))
    assert not current.value, "a context was left current"
    driver.cuMemGetInfo_v2(ctypes.byref(free), ctypes.byref(total))
    return total.value - free.value


assert card().name == "Paper RTX" and serving_adapter() == adapter
cuda = open_cuda(adapter=adapter)
with cuda.active():
    there, back, address = cuda.pinned(4096), cuda.pinned(4096), cuda.device(4096)
    assert (there.dtype, there.shape) == (np.uint8, (4096,))
    start, end = cuda.event(), cuda.event()
    there[:] = np.arange(4096) % 251
    cuda.record(start)
    cuda.to_device(address, there)
    cuda.to_host(back, address)
    cuda.record(end)
    cuda.wait(end)
    assert (back == there).all() and cuda.elapsed_ms(start, end) == 0.0
    cuda.begin_capture()
    cuda.to_device(address, there)
    cuda.to_host(back, address)
    graph = cuda.end_capture()
    there[:] = 255
    assert not (back == 255).any(), "what is captured is not done yet"
    cuda.launch(graph)
    cuda.synchronize()
    assert (back == 255).all()
try:
    with cuda.active():
        cuda.device(1 << 40)
except EngineError as error:
    assert str(error).startswith("CUDA: cuMemAlloc"), error
else:
    raise AssertionError("more memory than there is")
assert used() == 3 * 4096 and cuda.lost() is None
del there, back, start, end
cuda.close()
cuda.close()
assert used() == 0, "memory was kept"

spec = GraphSpec(2, (SIDE, SIDE), 1, (SIDE, SIDE))
engine, reference = TensorRtEngine(GRAPH, spec), OnnxRuntimeEngine(GRAPH, spec)
assert all(graph is not None for graph in engine._session.graphs)
tiles = np.random.default_rng(0).integers(0, 256, spec.input_shape, np.uint8)
for ours, theirs in zip(engine.infer(tiles)[:2], reference.infer(tiles)[:2]):
    np.testing.assert_array_equal(ours, theirs)
np.testing.assert_array_equal(engine.reconstruction(), reference.reconstruction())
assert len(list(engine.infer_many([tiles] * 5))) == 5
Path(os.environ["PAPER_FAULT"]).touch()
for _ in range(2):
    try:
        engine.infer(tiles)
    except EngineError as error:
        said = str(error)
    assert "does not compute for this process any more" in said and "illegal memory access" in said, said
assert engine.lost == said
engine.close()
print("done", adapter)
"""


def exercise(adapter: str, folder: Path, library: Path, site: list[Path]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", EXERCISE, adapter],
        capture_output=True,
        text=True,
        check=False,
        env={
            **os.environ,
            "LD_LIBRARY_PATH": str(library.parent),
            "PYTHONPATH": os.pathsep.join([*map(str, site), str(PAPER / "site"), os.environ.get("PYTHONPATH", "")]),
            "PAPER_FAULT": str(folder / "fault"),
            "CACHE_DIRECTORY": str(folder / "cache"),
        },
    )


def test_cuda_python_does_what_the_engine_asks(tmp_path: Path) -> None:
    if shutil.which("gcc") is None:
        lacking("gcc is not installed")
    done = exercise("cuda-python", tmp_path, compile_driver(tmp_path / "libraries"), [])
    assert done.stdout == "done cuda-python\n", done.stderr[-3000:]


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_pycuda_does_what_the_engine_asks(tmp_path: Path) -> None:
    site = compile_pycuda(tmp_path)
    library = compile_driver(tmp_path / "full", unresolved(next(site.glob("pycuda/_driver*.so"))))
    done = exercise("pycuda", tmp_path, library, [site])
    assert done.stdout == "done pycuda\n", done.stderr[-3000:]


def compile_pycuda(folder: Path) -> Path:
    """The pinned pycuda, without curand, whose headers no wheel of moderate size brings; returns where it lies."""
    if shutil.which("g++") is None or shutil.which("nm") is None:
        lacking("g++ and nm are not installed")
    download(folder, *HEADERS)
    download(folder, "--no-binary", ":all:", "--no-build-isolation", PYCUDA)
    for wheel in folder.glob("nvidia*.whl"):
        zipfile.ZipFile(wheel).extractall(folder / "nvidia")
    (include,) = (path.parent for path in (folder / "nvidia").rglob("cuda.h"))
    library = compile_driver(folder / "libraries")
    library.with_name("libcuda.so").symlink_to(library)
    with tarfile.open(next(folder.glob("pycuda-*.tar.gz"))) as source:
        source.extractall(folder / "source", filter="data")
    (root,) = (folder / "source").iterdir()
    (root / "siteconf.py").write_text(SHORT.format(include=str(include), libraries=str(library.parent)))
    words = ["wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", str(folder), str(root)]
    done = subprocess.run([sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    zipfile.ZipFile(next(folder.glob("pycuda-*.whl"))).extractall(folder / "site")
    return folder / "site"


def unresolved(extension: Path) -> list[str]:
    """Functions that pycuda wants to find when it is loaded and that the driver of paper does not have."""
    wanted = subprocess.run(["nm", "-D", "--undefined-only", extension], capture_output=True, text=True, check=True)
    names = {word for word in wanted.stdout.split() if word.startswith("cu")}
    return sorted(name for name in names if f" {name}(" not in (PAPER / "driver.c").read_text())
