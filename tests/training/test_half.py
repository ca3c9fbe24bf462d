"""Every model's graph, in FP32 and FP16: agreement in ONNX Runtime, and TensorRT-RTX's real parser and builder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import onnx
import pytest
import torch
from onnx import TensorProto
from torch import Tensor, nn

from contract.bundle import Precision
from edge_runtime.engines.base import GraphSpec
from edge_runtime.engines.onnxruntime import OnnxRuntimeEngine
from edge_runtime.engines.tensorrt import BuildOptions, build_plan
from training.errors import ExportError
from training.export import ADMITTED_FP16, LEAST_FP16, export, export_half, write_graph
from training.graph import Inspector
from training.half import halve
from training.models import MODELS, model_class
from training.models.base import Judgement
from training.operators import faults
from training.settings import DEFAULT_MODEL

SIDE = 64
GRAPHED = [name for name, model in MODELS.items() if not model.not_exported]
EXPORTED: tuple[Precision, ...] = ("fp32", "fp16")  # INT8 is calibration's: tests/calibration/test_int8.py
BATCHES = (1, 6)  # one tile, and a part of 2 x 3 tiles


class Exported(NamedTuple):
    graphs: dict[Precision, Path]
    tolerance_fp16: float


def tiles(count: int) -> Tensor:
    random = torch.Generator().manual_seed(count)
    return torch.randint(0, 256, (count, SIDE, SIDE, 1), dtype=torch.uint8, generator=random)


def inspector_of(name: str, score: str | None = None, channels: int = 1) -> Inspector:
    torch.manual_seed(0)
    kind = model_class(name)
    model = kind.build(size=SIDE, channels=channels, width=8, latent=16).eval()
    return Inspector(model.deployed(), SIDE, score or preset_score(name), kind.pooling)


def preset_score(name: str) -> str:
    return str(MODELS[name].preset.get("score", "residual"))


@pytest.fixture(scope="session", params=GRAPHED)
def exported(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Both graphs of a model with random weights, as training exports them."""
    folder = tmp_path_factory.mktemp(request.param)
    inspector, golden = inspector_of(request.param), tiles(3)
    graphs: dict[Precision, Path] = {"fp32": folder / "model.fp32.onnx", "fp16": folder / "model.fp16.onnx"}
    expected = export(inspector, graphs["fp32"], golden)
    return Exported(graphs, export_half(inspector, graphs["fp16"], golden, expected))


@pytest.mark.parametrize("precision", EXPORTED)
@pytest.mark.parametrize("batch", BATCHES)
def test_tensorrt_rtx_parses_and_builds_every_graph(exported: Exported, precision: Precision, batch: int) -> None:
    """NVIDIA's own parser and builder, without a graphics card; nothing is run."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX's wheels are not installed")
    graph = exported.graphs[precision].read_bytes()
    plan = build_plan("tensorrt-rtx", graph, BuildOptions((batch, SIDE, SIDE, 1), 256, "8.6"))
    assert len(plan) > 100_000


@pytest.mark.parametrize(
    ("name", "score"),
    [
        pytest.param(name, score, marks=() if name == DEFAULT_MODEL else pytest.mark.long)
        for name, model in MODELS.items()
        if not model.not_exported
        for score in model.scores
        if score != preset_score(name)
    ],
)
def test_tensorrt_rtx_builds_the_other_scores_in_colour_as_well(name: str, score: str, tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX's wheels are not installed")
    path = tmp_path / "graph.onnx"
    example = torch.zeros(2, SIDE, SIDE, 3, dtype=torch.uint8)
    write_graph(inspector_of(name, score, channels=3), path, example)  # our own check is part of it
    assert build_plan("tensorrt-rtx", path.read_bytes(), BuildOptions((1, SIDE, SIDE, 3), 256, "8.6"))


@pytest.mark.parametrize("precision", EXPORTED)
def test_our_own_check_takes_every_graph(exported: Exported, precision: Precision) -> None:
    assert faults(onnx.load(str(exported.graphs[precision]))) == []


def test_both_precisions_give_nearly_the_same_scores(exported: Exported) -> None:
    images = tiles(6).numpy()
    engines = {
        precision: OnnxRuntimeEngine(path.read_bytes(), GraphSpec(6, (SIDE, SIDE), 1, (SIDE, SIDE), precision))
        for precision, path in exported.graphs.items()
    }
    full, half = engines["fp32"].infer(images), engines["fp16"].infer(images)
    assert LEAST_FP16 <= exported.tolerance_fp16 <= 4 * ADMITTED_FP16
    assert abs(half.scores - full.scores).max() <= exported.tolerance_fp16 * full.scores.max()
    assert " fp16 cpu" in engines["fp16"].describe()


def test_only_the_networks_are_half(exported: Exported) -> None:
    full, half = (onnx.load(str(path)) for path in exported.graphs.values())
    weights = {value.name: value.data_type for value in half.graph.initializer}
    assert all(weights[name] == TensorProto.FLOAT for name in ("typical", "mask") if name in weights)
    convolutions = [node.input[1] for node in half.graph.node if node.op_type in ("Conv", "ConvTranspose", "Gemm")]
    networks = [name for name in convolutions if name.startswith("judge.")]
    assert networks and all(weights[name] == TensorProto.FLOAT16 for name in networks)
    smoothing = [name for name in convolutions if not name.startswith("judge.")]
    assert len(smoothing) == 2 and all(weights[name] == TensorProto.FLOAT for name in smoothing)
    assert exported.graphs["fp16"].stat().st_size < 0.75 * exported.graphs["fp32"].stat().st_size
    assert [value.name for value in full.graph.output] == [value.name for value in half.graph.output]


class Explosive(nn.Module):
    """Within FP32, beyond FP16."""

    def forward(self, tile: Tensor) -> Tensor:
        return (tile + 2.0) * 1e5 / 1e5


class Undecided(nn.Module):
    """Decides by its values, which no static graph can."""

    def forward(self, tile: Tensor) -> Tensor:
        return tile if float(tile.sum()) > 0 else -tile


class Judge(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, tile: Tensor) -> Judgement:
        drawn = self.network(tile)
        return Judgement(tile, drawn.abs(), {})


def test_a_network_that_fp16_cannot_hold_is_left_out(tmp_path: Path) -> None:
    inspector = Inspector(Judge(Explosive()), SIDE, "residual")
    expected = inspector.inspect(tiles(3))
    with pytest.raises(ExportError, match=r"scores in FP16 are off by inf relative, at most 0\.01"):
        export_half(inspector, tmp_path / "half.onnx", tiles(3), expected)
    assert list(tmp_path.iterdir()) == []


def test_a_graph_that_cannot_be_made_is_left_out(tmp_path: Path) -> None:
    inspector = Inspector(Judge(Undecided()), SIDE, "residual")
    expected = inspector.inspect(tiles(2))
    with pytest.raises(ExportError, match="the FP16 graph cannot be made"):
        export_half(inspector, tmp_path / "half.onnx", tiles(2), expected)
    assert list(tmp_path.iterdir()) == []


def test_the_inspector_itself_stays_as_it_is() -> None:
    inspector = inspector_of("ganomaly")
    halved = halve(inspector)
    assert {weights.dtype for weights in inspector.judge.parameters()} == {torch.float32}
    assert {weights.dtype for weights in halved.judge.parameters()} == {torch.float16}
    assert halved.typical.dtype == halved.kernel.dtype == torch.float32
