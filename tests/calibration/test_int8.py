"""INT8 graphs: the recipe, engines and TensorRT-RTX's builder on each model, admission on drawn parts and refusal."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import onnx
import pytest
from onnx import TensorProto, numpy_helper

from calibration.agreement import Scored, agreement, images_to_show, rank_correlation
from calibration.calibrate import Rates, propose, write
from calibration.errors import CalibrationError
from calibration.int8 import LEAST_CHOOSING, Choice, admit, by_need, make_int8, read_parts, share_out, spread
from calibration.qdq import layers_of, measure_ranges, quantize
from contract.bundle import ROLE_GRAPH, ROLE_GRAPH_INT8, open_bundle
from contract.dataset import load_dataset
from edge_runtime.engines import compile_graph, open_engine
from edge_runtime.engines.base import GraphSpec
from edge_runtime.engines.golden import check_golden
from edge_runtime.engines.tensorrt import BuildOptions, build_plan
from edge_runtime.errors import ParityError
from edge_runtime.recipes import precision_fault
from flawline import main
from tests.bundles import draw_part
from tests.graphs import write_bundle
from training.export import write_graph
from training.graph import Inspector
from training.models import MODELS, model_class
from training.operators import faults

SIDE = 64
ENGINES_HERE = ("openvino", "onnxruntime")
# Of the very layers of ae: what INT8 makes of those is seen there.
OF_ONE_KIND = {"dae", "vae", "aae", "vae_gan", "wgan_gp_l1", "dec", "dcn"}
WALKED = [
    pytest.param(name, marks=pytest.mark.long if name in OF_ONE_KIND else ())
    for name, model in MODELS.items()
    if not model.not_exported
]


class Made(NamedTuple):
    full: onnx.ModelProto
    int8: onnx.ModelProto


def tiles(count: int) -> np.ndarray:
    return np.random.default_rng(count).integers(0, 256, (count, SIDE, SIDE, 1), np.uint8)


@pytest.fixture(scope="module", params=WALKED)
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A model with random weights, exported as training does it, and its INT8 graph with every layer in INT8."""
    import torch

    torch.manual_seed(0)
    kind = model_class(request.param)
    model = kind.build(size=SIDE, channels=1, width=8, latent=16).eval()
    for weights in model.parameters():
        if weights.dim() == 4:  # the models' own first weights are so small that a drawing is all but constant
            torch.nn.init.kaiming_normal_(weights)
    score = str(MODELS[request.param].preset.get("score", "residual"))
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


def test_what_holds_a_quantizer_behind_a_concat_changes_nothing(made: Made) -> None:
    bare = onnx.ModelProto()
    bare.CopyFrom(made.int8)
    holds = {node.output[0]: node for node in bare.graph.node if node.op_type == "Max" and ".hold" in node.name}
    behind = {node.output[0] for node in bare.graph.node if node.op_type == "Concat"}
    for node in bare.graph.node:
        if node.op_type == "QuantizeLinear":
            assert node.input[0] not in behind
            if (hold := holds.get(node.input[0])) is not None:
                node.input[0] = hold.input[0]
    spec = GraphSpec(4, (SIDE, SIDE), 1, (SIDE, SIDE), "int8")
    held, free = (compile_graph("onnxruntime", graph.SerializeToString(), spec) for graph in (made.int8, bare))
    np.testing.assert_array_equal(held.infer(tiles(4)).scores, free.infer(tiles(4)).scores)


def test_tensorrt_rtx_builds_int8(made: Made) -> None:
    """NVIDIA's own parser and builder, without a graphics card; nothing is run."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX's wheels are not installed")
    options = BuildOptions((1, SIDE, SIDE, 1), 256, "8.6")
    assert len(build_plan("tensorrt-rtx", made.int8.SerializeToString(), options)) > 100_000


@pytest.fixture
def trained(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "bundle"))


def test_an_admitted_graph_serves_with_limits_of_its_own(trained: Path, synthetic_data: Path, tmp_path: Path) -> None:
    looks = tmp_path / "looks.csv"
    tried = make_int8(trained, synthetic_data, engine="onnxruntime", looks=looks)
    (row,) = csv.DictReader(looks.read_text().splitlines())
    tests = len(load_dataset(synthetic_data).test)
    assert (row["calibration"], row["images"]) == ("INT8 admitted by these images", str(tests))
    assert float(row["image_auroc"]) == tried.agreement.auroc and str(tmp_path) not in looks.read_text()
    opened = open_bundle(trained)
    assert opened.manifest.metrics["int8"]["test_images"] == tests > 0
    assert tried.faults == [] and ROLE_GRAPH_INT8 in opened.manifest.files
    assert opened.manifest.metrics["int8"]["admitted"] and opened.manifest.metrics["int8"]["images"] > 50
    assert "the line would run in int8" in (precision_fault(opened, "int8") or "")
    write(propose(trained, synthetic_data, Rates(0.1), "onnxruntime", precision="int8"))
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


def test_a_graph_that_int8_cannot_hold_is_not_admitted(trained: Path, synthetic_data: Path) -> None:
    """One channel that is a thousand times larger than its neighbours takes all the levels; FP32 does not mind."""
    bundle = open_bundle(trained)
    model = onnx.load(str(bundle.path(ROLE_GRAPH)))
    weights = {value.name: value for value in model.graph.initializer}
    first, second, *_ = layers_of(model)
    for name, place, factor in ((first, np.s_[:1], 1000.0), (second, np.s_[:, :1], 0.001)):
        values = numpy_helper.to_array(weights[name]).copy()
        values[place] *= factor
        weights[name].CopyFrom(numpy_helper.from_array(values, name))
    parts = share_out(bundle, load_dataset(synthetic_data), 0.1)
    graph = quantize(model, measure_ranges(model, read_parts(bundle, parts.choosing[:20])), [first])
    tried = admit(bundle, Choice(graph.SerializeToString(), [], 0, 20), parts, 0.1, "onnxruntime")
    assert any("good parts are sorted otherwise" in fault for fault in tried.faults)
    assert tried.fields()["admitted"] is False


def test_the_layer_that_int8_cannot_hold_is_found_and_left_out(trained: Path, synthetic_data: Path) -> None:
    bundle = open_bundle(trained)
    model = onnx.load(str(bundle.path(ROLE_GRAPH)))
    second = list(layers_of(model))[1]
    parts = read_parts(bundle, share_out(bundle, load_dataset(synthetic_data), 0.1).choosing[:16])
    ranges = measure_ranges(model, parts)
    ranges[layers_of(model)[second][0].input[0]] *= 100  # 1 level of 127 is left
    order = by_need(bundle, model, ranges, parts[:4])
    assert order[0].name == second and order[0].error > 3 * order[1].error
    assert [layer.error for layer in order] == sorted((layer.error for layer in order), reverse=True)


def test_a_refusal_leaves_the_bundle_as_it_was(
    trained: Path,
    synthetic_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("calibration.agreement.LEAST_RANK", 1.1)
    before = {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()}
    figures = tmp_path / "int8.json"
    words = ["calibrate", "int8", str(trained), "--data", str(synthetic_data), "--engine", "onnxruntime"]
    looks = tmp_path / "looks.csv"
    assert main([*words, "--json", str(figures), "--looks", str(looks)]) == 2
    said = capsys.readouterr()
    assert f"test images were looked at to decide: on record in {looks}" in said.out
    assert "INT8 refused by these images" in looks.read_text()
    assert "INT8 is refused and the bundle as it was: good parts are sorted otherwise" in said.err
    assert "cannot show that at most 0.1% of verdicts flip: that takes 2995" in said.out
    assert {path: path.read_bytes() for path in trained.rglob("*") if path.is_file()} == before
    found = json.loads(figures.read_text())
    assert "times as fast as FP32 on this machine" in said.out and found["times_fp32"] > 0
    assert found["admitted"] is False and found["engine"].startswith("onnxruntime") and found["layers"] > 5


def test_what_chooses_does_not_admit(fresh: Path, drawn: Path) -> None:
    parts = share_out(open_bundle(fresh), load_dataset(drawn), 0.1)
    assert not {sample.path for sample in parts.choosing} & {sample.path for sample in parts.good}
    assert (len(parts.choosing), parts.limiting, len(parts.good), len(parts.defective)) == (30, 30, 60, 20)


def test_where_training_s_images_are_not_there_a_third_of_the_others_chooses(drawn: Path, tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path / "bundle", [draw_part(1)])
    dataset = load_dataset(drawn)
    parts = share_out(bundle, dataset, 0.1)
    assert (len(parts.choosing), parts.limiting) == (20, 40)
    few = dataset._replace(train=dataset.train[:30])
    with pytest.raises(CalibrationError, match=f"at least {LEAST_CHOOSING} are needed"):
        share_out(bundle, few, 0.1)


def test_a_graph_without_networks_of_ours_is_refused(fresh: Path, drawn: Path) -> None:
    with pytest.raises(CalibrationError, match="no convolution whose weights are named judge"):
        make_int8(fresh, drawn, engine="onnxruntime")


def test_agreement_counts_flips_with_a_limit_for_each() -> None:
    good, bad = np.arange(1.0, 101.0), np.arange(200.0, 220.0)
    reference = Scored(good, bad, 95.0)
    assert agreement(Scored(2 * good, 2 * bad, 190.0), reference).faults() == []
    shifted = agreement(Scored(good, bad, 97.0), reference)
    assert (shifted.flips, shifted.rank) == (2, pytest.approx(1.0))
    assert shifted.faults() == ["2 of 120 verdicts flip at the limit, at most 0.1% may"]
    assert 2 / 120 < shifted.flips_bound < 0.06
    blind = agreement(Scored(good, bad / 3, 95.0), reference)
    assert blind.auroc is not None and blind.auroc < 0.9 and any("AUROC is" in fault for fault in blind.faults())
    alone = agreement(Scored(good[::-1], np.array([]), 95.0), Scored(good, np.array([]), 95.0))
    assert alone.rank == pytest.approx(-1.0) and alone.auroc is None and "AUROC not compared" in alone.text()


def test_what_a_number_of_images_allows_to_say() -> None:
    enough = images_to_show()
    calm = Scored(np.arange(1.0, enough + 1.0), np.array([]), float(enough))
    assert agreement(calm, calm).flips_bound <= 0.001
    fewer = Scored(calm.good[1:], np.array([]), float(enough))
    assert agreement(fewer, fewer).flips_bound > 0.001


def test_rank_correlation_shares_ranks_and_survives_what_is_no_number() -> None:
    from scipy.stats import spearmanr

    random = np.random.default_rng(3)
    first, second = random.integers(0, 9, 60).astype(float), random.integers(0, 9, 60).astype(float)
    assert rank_correlation(first, second) == pytest.approx(spearmanr(first, second)[0])
    assert rank_correlation(first, np.full(60, np.nan)) == rank_correlation(first, np.ones(60)) == 0.0


def test_images_are_taken_evenly(drawn: Path) -> None:
    samples = load_dataset(drawn).train
    assert spread(samples, 100) == samples
    assert [samples.index(sample) for sample in spread(samples, 3)] == [0, 29, 59]
