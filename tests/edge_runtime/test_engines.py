"""Engines on a real graph: agreement, checks on both sides, golden parity."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import edge_runtime.engines as engines
from contract.bundle import Bundle, open_bundle, write_manifest
from contract.errors import BundleError
from contract.preprocess import prepare
from contract.recipe import Recipe, Tiling, View
from edge_runtime.engines import AUTO_ORDER, ENGINES, choose, open_engine, probe
from edge_runtime.engines.base import Engine, GraphSpec
from edge_runtime.engines.golden import check_golden, deviations, golden_tiles
from edge_runtime.errors import EngineError, ParityError
from tests.bundles import draw_part
from tests.graphs import make_graph, reference, write_bundle

GOOD = [draw_part(number) for number in range(12)]
RECIPES = {
    "one tile": Recipe(),
    "two tiles": Recipe(views=[View(tiling=Tiling(rows=1, columns=2, overlap_px=8))]),
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("bundle"), GOOD)


@pytest.mark.parametrize("name", ENGINES)
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_engine_agrees_with_numpy(name: str, recipe: Recipe, tmp_path: Path) -> None:
    opened = write_bundle(tmp_path, GOOD, recipe)
    tiles = np.concatenate([prepare(part, recipe).tiles for part in GOOD])
    mean, scale = tiles.mean(0), tiles.astype(np.float32).std(0) + 8.0
    engine = open_engine(name, opened)
    part = prepare(draw_part(99, defect=True), recipe).tiles
    scores, maps = engine.infer(part)
    expected_scores, expected_maps = reference(part, mean, scale)
    np.testing.assert_allclose(scores, expected_scores, rtol=1e-5)
    np.testing.assert_allclose(maps, expected_maps, rtol=1e-4, atol=1e-5)
    assert np.abs(engine.reconstruction().astype(float) - mean).max() <= 1.0
    assert engine.describe().startswith(f"{name}-")
    assert engine.describe().endswith(" fp32 cpu")


@pytest.mark.parametrize("name", ENGINES)
def test_outputs_belong_to_the_caller(name: str, bundle: Bundle) -> None:
    engine = open_engine(name, bundle)
    first = engine.infer(prepare(GOOD[0], bundle.manifest.recipe).tiles)
    kept = first.scores.copy(), first.maps.copy()
    shown = engine.reconstruction()
    shown[:] = 0
    engine.infer(np.full(engine.spec.input_shape, 255, np.uint8))
    np.testing.assert_array_equal(first.scores, kept[0])
    np.testing.assert_array_equal(first.maps, kept[1])
    assert engine.reconstruction().any()


@pytest.mark.parametrize("name", ENGINES)
def test_wrong_tiles_are_refused(name: str, bundle: Bundle) -> None:
    engine = open_engine(name, bundle)
    for tiles in (
        np.zeros((2, 64, 64, 1), np.uint8),
        np.zeros((1, 64, 64, 3), np.uint8),
        np.zeros((1, 64, 64, 1), np.float32),
        np.zeros((64, 64), np.uint8),
    ):
        with pytest.raises(EngineError, match="expected uint8"):
            engine.infer(tiles)


@pytest.mark.parametrize("name", ENGINES)
def test_tiles_may_be_a_strided_view(name: str, bundle: Bundle) -> None:
    engine = open_engine(name, bundle)
    wide = np.repeat(prepare(GOOD[3], bundle.manifest.recipe).tiles, 2, axis=2)
    np.testing.assert_array_equal(
        engine.infer(wide[:, :, ::2]).maps, engine.infer(np.ascontiguousarray(wide[:, :, ::2])).maps
    )


@pytest.mark.parametrize("name", ENGINES)
def test_reconstruction_needs_an_inference(name: str, bundle: Bundle) -> None:
    engine = open_engine(name, bundle)
    with pytest.raises(EngineError, match="nothing was inferred"):
        engine.reconstruction()
    engine.infer(prepare(GOOD[0], bundle.manifest.recipe).tiles)
    with pytest.raises(EngineError):
        engine.infer(np.zeros((3, 64, 64, 1), np.uint8))
    with pytest.raises(EngineError, match="failed"):
        engine.reconstruction()


@pytest.mark.parametrize("name", ENGINES)
def test_values_that_are_not_finite_are_no_result(name: str, tmp_path: Path) -> None:
    tiles = np.zeros((2, 64, 64, 1), np.uint8)
    graph = make_graph(tiles.mean(0), np.zeros((64, 64, 1), np.float32))  # 1 / 0 = inf
    engine = _kind(name)(graph, GraphSpec(1, (64, 64), 1, (32, 32)))
    with pytest.raises(EngineError, match="not finite"):
        engine.infer(np.full((1, 64, 64, 1), 9, np.uint8))


@pytest.mark.parametrize("name", ENGINES)
def test_garbage_is_no_graph(name: str) -> None:
    with pytest.raises(EngineError, match="cannot be loaded"):
        _kind(name)(b"not onnx at all" * 100, GraphSpec(1, (64, 64), 1, None))


@pytest.mark.parametrize("name", ENGINES)
def test_map_of_another_size_is_refused(name: str) -> None:
    graph = make_graph(np.zeros((64, 64, 1)), np.ones((64, 64, 1)))
    engine = _kind(name)(graph, GraphSpec(1, (64, 64), 1, (64, 64)))
    with pytest.raises(EngineError, match="the bundle promises"):
        engine.infer(np.zeros((1, 64, 64, 1), np.uint8))


@pytest.mark.parametrize("name", ENGINES)
def test_probe_runs_the_engine(name: str) -> None:
    assert probe(name).startswith(f"{name}-")


@pytest.mark.parametrize("name", ENGINES)
def test_golden_images_agree(name: str, bundle: Bundle) -> None:
    assert check_golden(open_engine(name, bundle), bundle) < 1e-5


def test_golden_batches_are_filled_up(tmp_path: Path) -> None:
    recipe = Recipe(views=[View(tiling=Tiling(rows=1, columns=3))])
    bundle = write_bundle(tmp_path, GOOD, recipe)  # four golden tiles, three a batch
    assert check_golden(open_engine("onnxruntime", bundle), bundle) < 1e-5


@pytest.mark.parametrize("field", ["scores", "map_means"])
def test_golden_disagreement_names_image_found_and_expected(field: str, tmp_path: Path) -> None:
    write_bundle(tmp_path, GOOD)
    manifest = open_bundle(tmp_path).manifest
    values = list(getattr(manifest.golden, field))
    values[2] *= 1.001
    write_manifest(tmp_path, manifest.model_copy(update={"golden": manifest.golden.model_copy(update={field: values})}))
    bundle = open_bundle(tmp_path)
    with pytest.raises(ParityError, match=r"golden image 2: .* expected .* within 0\.0001"):
        check_golden(open_engine("onnxruntime", bundle), bundle)


def test_golden_values_that_are_all_but_zero_are_held_to_the_scale_of_the_others() -> None:
    expected = [4e-4, 5e-4, 8.0]
    assert max(deviations([4.002e-4, 5e-4, 8.0], expected)) < 1e-6, "rounding"
    assert max(deviations([4e-4 + 1e-3, 5e-4, 8.0], expected)) > 1e-3, "a thousandth of what the others are"
    assert max(deviations([4e-4, 5e-4, 8.01], expected)) > 1e-3
    assert np.isnan(deviations([float("nan"), 5e-4, 8.0], expected)[0])
    assert deviations([0.0, 0.0], [0.0, 0.0]) == [0.0, 0.0]


def test_golden_counts_must_match(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, GOOD)
    bundle.manifest.golden.scores.pop()
    with pytest.raises(BundleError, match=r"4 golden image\(s\), 3 score\(s\)"):
        golden_tiles(bundle)


def test_graph_swapped_after_opening_is_refused(tmp_path: Path) -> None:
    bundle = write_bundle(tmp_path, GOOD)
    (tmp_path / "model.fp32.onnx").write_bytes(make_graph(np.zeros((64, 64, 1)), np.ones((64, 64, 1))))
    with pytest.raises(BundleError, match="changed after the bundle was opened"):
        open_engine("onnxruntime", bundle)


def test_auto_is_openvino_on_x86_and_onnxruntime_elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines.platform, "machine", lambda: "x86_64")
    assert choose("auto") == "openvino"
    monkeypatch.setattr(engines.platform, "machine", lambda: "aarch64")
    assert choose("auto") == "onnxruntime"
    monkeypatch.setattr(engines.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(engines, "installed", lambda name: name != "openvino")
    assert choose("auto") == "onnxruntime"


def test_missing_engines_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "installed", lambda name: False)
    for name in ("auto", *ENGINES):
        with pytest.raises(EngineError, match=r"pip install 'flawline\[edge\]'"):
            choose(name)
    with pytest.raises(EngineError, match="there are: auto, openvino"):
        choose("tensorflow")


def test_every_engine_has_a_place_in_auto() -> None:
    assert set(AUTO_ORDER) == set(ENGINES)


def _kind(name: str) -> type[Engine]:
    return engines._kind(name)


def test_an_engine_that_no_longer_computes_as_at_the_start_infers_nothing(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine("onnxruntime", bundle)
    tiles = np.full(engine.spec.input_shape, 60, np.uint8)
    engine.infer(tiles)
    engine.prove()
    assert not engine.failing
    run = engine._run
    monkeypatch.setattr(engine, "_run", lambda tiles: (run(tiles)[0] + np.float32(5.0), run(tiles)[1]))
    with pytest.raises(EngineError, match="a grey image scores"):
        engine.prove()
    monkeypatch.setattr(engine, "_run", run)
    assert engine.failing
    with pytest.raises(EngineError, match="computes wrongly"):
        engine.infer(tiles)
    engine.prove()
    assert not engine.failing
    engine.infer(tiles)


def test_an_engine_that_fails_says_so_until_it_works(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = open_engine("onnxruntime", bundle)
    tiles = np.full(engine.spec.input_shape, 60, np.uint8)
    run = engine._run
    monkeypatch.setattr(engine, "_run", lambda tiles: 1 / 0)
    for call in (lambda: engine.infer(tiles), engine.prove):
        with pytest.raises(EngineError, match="inference failed"):
            call()
        assert engine.failing
    monkeypatch.setattr(engine, "_run", run)
    engine.prove()
    assert not engine.failing
