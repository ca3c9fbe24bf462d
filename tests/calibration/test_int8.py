"""INT8 graphs: the recipe, engines and TensorRT-RTX's builder on each model, admission on drawn parts and refusal."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from calibration.calibrate import Rates, calibrate
from calibration.int8 import make_int8
from calibration.qdq import layers_of, measure_ranges, quantize
from contract.bundle import ROLE_GRAPH_INT8, open_bundle
from edge_runtime.engines import compile_graph, open_engine
from edge_runtime.engines.base import GraphSpec
from edge_runtime.engines.golden import check_golden
from edge_runtime.engines.tensorrt import BuildOptions, build_plan
from edge_runtime.errors import ParityError
from edge_runtime.recipes import precision_fault
from training.export import write_graph
from training.graph import Inspector
from training.models import MODELS, model_class
from training.operators import faults
from training.settings import DEFAULT_MODEL

SIDE = 64
ENGINES_HERE = ("openvino", "onnxruntime")


class Made(NamedTuple):
    full: onnx.ModelProto
    int8: onnx.ModelProto


def tiles(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, SIDE, SIDE, 1), np.uint8)


@pytest.fixture(scope="module", params=MODELS)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A model with random weights, exported as training does it, and its INT8 graph with every layer in INT8."""
    import torch

    torch.manual_seed(0)
    kind = model_class(request.param)
    model = kind.build(size=SIDE, channels=1, width=8, latent=16).eval()
    for weights in model.parameters():
        if weights.dim() == 4:  # the models' own first weights are so small that a drawing is all but constant
            torch.nn.init.kaiming_normal_(weights)
    score: Literal["residual", "latent"] = MODELS[request.param].preset.get("score", "residual")
    path = tmp_path_factory.mktemp(request.param) / "model.onnx"
    write_graph(Inspector(model.deployed(), SIDE, score, kind.pooling), path, torch.from_numpy(tiles(2)))
    full = onnx.load(str(path))
    return Made(full, quantize(full, measure_ranges(full, [tiles(4)])))


@pytest.mark.parametrize("engine", ENGINES_HERE)
def test_every_model_runs_in_int8(made: Made, engine: str) -> None:
    spec = GraphSpec(4, (SIDE, SIDE), 1, (SIDE, SIDE), "int8")
    ours = compile_graph(engine, made.int8.SerializeToString(), spec)
    theirs = compile_graph(engine, made.full.SerializeToString(), spec._replace(precision="fp32"))
    assert " int8 cpu" in ours.describe()
    found, expected = ours.infer(tiles(4)), theirs.infer(tiles(4))
    assert not np.array_equal(found.scores, expected.scores)
    np.testing.assert_allclose(found.scores, expected.scores, rtol=0.2)


def test_the_recipe_that_tensorrt_takes(made: Made) -> None:
    """int8, symmetric, zero point 0, float bias, ConvTranspose per tensor, FP32 before and after the networks."""
    assert faults(made.int8) == []
    graph = made.int8.graph
    stored = {value.name: numpy_helper.to_array(value) for value in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    quantized = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    assert all(stored[node.input[2]].dtype == np.int8 and not stored[node.input[2]].any() for node in quantized)
    for nodes in layers_of(made.full).values():
        for before in nodes:
            (after,) = [node for node in graph.node if node.output == before.output]
            assert makers[after.input[0]].op_type == makers[after.input[1]].op_type == "DequantizeLinear"
            weights = makers[after.input[1]]
            assert stored[weights.input[0]].dtype == np.int8
            scales = stored[weights.input[1]]
            assert scales.shape == ((len(stored[weights.input[0]]),) if before.op_type == "Conv" else ())
            assert before.input[2:] == after.input[2:]
            assert all(stored[name].dtype == np.float32 for name in after.input[2:] if name in stored)
    smoothing = [node for node in graph.node if node.op_type == "Conv" and node.input[1] in stored]
    assert len(smoothing) == 2 and all(stored[node.input[1]].dtype == np.float32 for node in smoothing)
    assert [value.name for value in made.full.graph.output] == [value.name for value in graph.output]


def test_a_layer_that_is_left_out_stays_as_it_was(made: Made) -> None:
    ranges = measure_ranges(made.full, [tiles(4)])
    first, *rest = layers_of(made.full)
    partly = quantize(made.full, ranges, [first])
    kinds = {value.name: value.data_type for value in partly.graph.initializer}
    assert kinds[first] == TensorProto.FLOAT and not set(rest) & set(kinds)
    assert quantize(made.full, ranges, [first, *rest]).graph.node == made.full.graph.node


@pytest.mark.parametrize(
    "made",
    [pytest.param(name, marks=() if name == DEFAULT_MODEL else pytest.mark.long) for name in MODELS],
    indirect=True,
)
def test_tensorrt_rtx_builds_int8(made: Made) -> None:
    """NVIDIA's own parser and builder, without a graphics card; nothing is run."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX's wheels are not installed")
    options = BuildOptions((1, SIDE, SIDE, 1), 256, "8.6")
    assert len(build_plan("tensorrt-rtx", made.int8.SerializeToString(), options)) > 100_000


@pytest.fixture
def trained(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def test_an_admitted_graph_serves_with_limits_of_its_own(trained: Path, synthetic_data: Path, tmp_path: Path) -> None:
    tried = make_int8(trained, synthetic_data, engine="onnxruntime")
    opened = open_bundle(trained)
    assert tried.faults == [] and ROLE_GRAPH_INT8 in opened.manifest.files
    assert opened.manifest.metrics["int8"]["admitted"] and opened.manifest.metrics["int8"]["images"] > 50
    assert "the line would run in int8" in (precision_fault(opened, "int8") or "")
    calibrate(trained, synthetic_data, Rates(0.1), "onnxruntime", precision="int8")
    opened = open_bundle(trained)
    assert precision_fault(opened, "int8") is None
    assert "the line would run in fp32" in (precision_fault(opened, "fp32") or "")
    engine = open_engine("onnxruntime", opened, precision="int8")
    assert check_golden(engine, opened) < 1e-6
    with pytest.raises(ParityError, match="admitted with onnxruntime, and openvino rounds otherwise"):
        check_golden(open_engine("openvino", opened, precision="int8"), opened)
    make_int8(trained, synthetic_data, engine="onnxruntime")  # limits of the graph before are not this one's
    assert open_bundle(trained).manifest.thresholds is None
    assert len(list(trained.glob("model.int8-*.onnx"))) == 1
