"""TensorRT on a graphics card: every model, both precisions, both ways to CUDA. Run wherever a card is at hand.

    pytest -m gpu tests/gpu

Each test is skipped, with the reason, where there is no card, no driver or no library.
"""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

from calibration.qdq import measure_ranges, quantize
from contract.bundle import GRAPHS, Precision
from edge_runtime.engines import ON_A_CARD, installed, obstacle, plan_process
from edge_runtime.engines.base import GraphSpec
from edge_runtime.engines.cuda import ADAPTERS, Cuda, _ask, _driver_library, _found, card, open_cuda
from edge_runtime.engines.onnxruntime import OnnxRuntimeEngine
from edge_runtime.engines.tensorrt import Session, TensorRtEngine, TensorRtRtxEngine
from training.export import export, export_half
from training.graph import Inspector
from training.models import MODELS, model_class

pytestmark = pytest.mark.gpu
SIDE, BATCH = 64, 2
GRAPHED = [name for name, model in MODELS.items() if not model.not_exported]
SPEC = GraphSpec(BATCH, (SIDE, SIDE), 1, (SIDE, SIDE))
KINDS: dict[str, type[TensorRtEngine]] = {"tensorrt": TensorRtEngine, "tensorrt-rtx": TensorRtRtxEngine}


def tiles(count: int) -> torch.Tensor:
    random = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, SIDE, SIDE, 1), dtype=torch.uint8, generator=random)


def parts(count: int) -> list[np.ndarray]:
    return list(tiles(count * BATCH).numpy().reshape(count, BATCH, SIDE, SIDE, 1))


@pytest.fixture(scope="module", params=sorted(ON_A_CARD))
def kind(request: pytest.FixtureRequest) -> type[TensorRtEngine]:
    name = str(request.param)
    if not installed(name):
        pytest.skip(f"{name} is not installed")
    why = obstacle(name)
    if why is not None:
        pytest.skip(why)
    return KINDS[name]


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def _own_cache(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_DIRECTORY", str(cache))


@pytest.fixture(scope="module", params=GRAPHED)
def graphs(
    kind: type[TensorRtEngine], request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> dict[Precision, bytes]:
    """A model's graphs, its weights random."""
    folder = tmp_path_factory.mktemp(request.param)
    torch.manual_seed(0)
    model = model_class(request.param).build(size=SIDE, channels=1, width=8, latent=16).eval()
    score = MODELS[request.param].preset.get("score", "residual")
    inspector = Inspector(model.deployed(), SIDE, score, type(model).pooling)
    expected = export(inspector, folder / "fp32.onnx", tiles(3))
    export_half(inspector, folder / "fp16.onnx", tiles(3), expected)
    full = onnx.load(str(folder / "fp32.onnx"))
    onnx.save_model(quantize(full, measure_ranges(full, [tiles(4).numpy()])), str(folder / "int8.onnx"))
    return {precision: (folder / f"{precision}.onnx").read_bytes() for precision in GRAPHS}


@pytest.mark.parametrize("precision", GRAPHS)
def test_agrees_with_onnx_runtime(
    kind: type[TensorRtEngine], graphs: dict[Precision, bytes], precision: Precision
) -> None:
    engine = kind(graphs[precision], SPEC._replace(precision=precision))
    # INT8 is held against INT8: how far it may be from FP32 is for calibration to measure.
    judge: Precision = "int8" if precision == "int8" else "fp32"
    reference = OnnxRuntimeEngine(graphs[judge], SPEC._replace(precision=judge))
    within = {"fp32": 1e-4, "fp16": 0.04, "int8": 0.05}[precision]
    try:
        for part in parts(4):
            ours, theirs = engine.infer(part), reference.infer(part)
            np.testing.assert_allclose(ours.scores, theirs.scores, rtol=within, atol=within * theirs.scores.max())
            np.testing.assert_allclose(ours.maps, theirs.maps, atol=within * theirs.maps.max())
            apart = engine.reconstruction().astype(int) - reference.reconstruction()
            assert np.abs(apart).max() <= (1 if precision == "fp32" else 3)
        assert card().name in engine.describe() and f" {precision} " in engine.describe()
    finally:
        engine.close()


def test_the_second_start_builds_nothing(
    kind: type[TensorRtEngine], graphs: dict[Precision, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    kind(graphs["fp32"], SPEC).close()
    monkeypatch.setattr(plan_process, "run", lambda *given: pytest.fail("a child was started"))
    kind(graphs["fp32"], SPEC).close()


def test_two_in_flight_give_what_one_after_the_other_gives(
    kind: type[TensorRtEngine], graphs: dict[Precision, bytes]
) -> None:
    engine = kind(graphs["fp32"], SPEC)
    try:
        together = [output.maps for output in engine.infer_many(parts(7))]
        for part, maps in zip(parts(7), together, strict=True):
            np.testing.assert_array_equal(engine.infer(part).maps, maps)
    finally:
        engine.close()


def _maps(session: Session, slot: int, part: np.ndarray) -> np.ndarray:
    session.start(slot, part)
    return session.finish(slot)[1].copy()


def _plan(cache: Path) -> bytes:
    return max((cache / "engines").glob("*.plan"), key=os.path.getmtime).read_bytes()


def test_a_cuda_graph_gives_what_plain_queueing_gives(
    kind: type[TensorRtEngine], graphs: dict[Precision, bytes], cache: Path
) -> None:
    kind(graphs["fp32"], SPEC).close()
    found = []
    for with_graphs in (True, False):
        session = Session(kind.name, _plan(cache), SPEC.input_shape, graphs=with_graphs)
        assert [graph is not None for graph in session.graphs] == [with_graphs, with_graphs]
        found.append([_maps(session, slot, part) for slot, part in zip((0, 1, 0, 1), parts(4), strict=True)])
        session.close()
    np.testing.assert_array_equal(*found)


def test_both_ways_to_cuda_give_the_same(
    kind: type[TensorRtEngine], graphs: dict[Precision, bytes], cache: Path
) -> None:
    there = [name for name, (module, _) in ADAPTERS.items() if _found(module)]
    if len(there) < 2:
        pytest.skip(f"only {there} is installed")
    kind(graphs["fp32"], SPEC).close()
    found = []
    for adapter in there:
        session = Session(kind.name, _plan(cache), SPEC.input_shape, adapter=adapter)
        found.append([_maps(session, slot, part) for slot, part in zip((0, 1, 0, 1), parts(4), strict=True)])
        session.close()
    np.testing.assert_array_equal(*found)


def test_nothing_is_allocated_for_a_part(
    kind: type[TensorRtEngine], graphs: dict[Precision, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = kind(graphs["fp32"], SPEC)
    try:
        cuda = type(engine._session.cuda)
        for function in ("device", "pinned", "event"):
            monkeypatch.setattr(cuda, function, lambda *given: pytest.fail("allocated"))
        before = free(engine._session.cuda)
        for part in parts(200):
            engine.infer(part)
        engine.reconstruction()
        assert free(engine._session.cuda) == before
    finally:
        engine.close()


def free(cuda: Cuda) -> int:
    """Bytes free on the card, asked of the driver itself; others that use the card meanwhile count as well."""
    available, total = ctypes.c_size_t(), ctypes.c_size_t()
    with cuda.active():
        _ask(_driver_library(), "cuMemGetInfo_v2", ctypes.byref(available), ctypes.byref(total))
    assert 0 < available.value < total.value
    return available.value


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_what_is_allocated_shows(adapter: str) -> None:
    """Else the test above could not fail."""
    cuda = seam(adapter)
    try:
        before = free(cuda)
        with cuda.active():
            cuda.device(256 << 20)
        assert before - free(cuda) >= 256 << 20
    finally:
        cuda.close()


def seam(adapter: str) -> Cuda:
    if not _found(ADAPTERS[adapter][0]):
        pytest.skip(f"{adapter} is not installed")
    if obstacle("tensorrt") is not None:
        pytest.skip(str(obstacle("tensorrt")))
    return open_cuda(adapter=adapter)


@pytest.mark.parametrize("adapter", ADAPTERS)
def test_the_seam_copies_there_and_back(adapter: str) -> None:
    cuda = seam(adapter)
    try:
        with cuda.active():
            there, back, address = cuda.pinned(4096), cuda.pinned(4096), cuda.device(4096)
            start, end = cuda.event(), cuda.event()
            for value in (1, 2):
                there[:] = value
                cuda.record(start)
                cuda.to_device(address, there)
                cuda.to_host(back, address)
                cuda.record(end)
                cuda.wait(end)
                assert (back == value).all() and cuda.elapsed_ms(start, end) >= 0
            cuda.begin_capture()
            cuda.to_device(address, there)
            cuda.to_host(back, address)
            graph = cuda.end_capture()
            there[:] = 3
            cuda.launch(graph)
            cuda.synchronize()
            assert (back == 3).all()
    finally:
        cuda.close()
        cuda.close()
