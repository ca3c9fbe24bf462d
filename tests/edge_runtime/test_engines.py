"""Engines on a real graph: agreement, checks on both sides, golden parity."""

from __future__ import annotations

import gc
import select
import subprocess
import sys
import threading
from itertools import islice
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest

import edge_runtime.engines as engines
from contract.bundle import ROLE_GRAPH_FP16, Bundle, as_precision, file_entry, open_bundle, write_manifest
from contract.errors import BundleError, ConfigError
from contract.preprocess import prepare
from contract.recipe import Recipe, Thresholds, Tiling, View
from edge_runtime.doctor import Status, Subject, check_engines
from edge_runtime.engines import (
    AUTO_ORDER,
    ENGINES,
    ON_A_CARD,
    PACKAGES,
    Together,
    choose,
    installed,
    obstacle,
    open_engine,
    open_shared,
    probe,
)
from edge_runtime.engines.base import SLOTS, Engine, GraphSpec
from edge_runtime.engines.cuda import Card
from edge_runtime.engines.golden import check_golden, deviations, golden_tiles
from edge_runtime.engines.tensorrt import LIBRARIES
from edge_runtime.engines.worker import Outputs, WorkerEngine
from edge_runtime.errors import EngineError, ParityError
from edge_runtime.recipes import load_judge
from edge_runtime.settings import EdgeSettings
from tests.bundles import draw_part
from tests.graphs import make_graph, reference, write_bundle
from tests.processes import until

GOOD = [draw_part(number) for number in range(12)]
RECIPES = {
    "one tile": Recipe(),
    "two tiles": Recipe(views=[View(tiling=Tiling(rows=1, columns=2, overlap_px=8))]),
}


@pytest.fixture(params=ENGINES)
def name(request: pytest.FixtureRequest) -> str:
    """Each engine that can serve here; any other has to say why it cannot, and is skipped with its own words."""
    name = str(request.param)
    if not installed(name):
        with pytest.raises(EngineError, match=r"its package is not installed: pip install 'flawline\[") as said:
            probe(name)
        pytest.skip(f"{name}: not installed")
    why = obstacle(name)
    if why is not None:
        with pytest.raises(EngineError) as said:
            probe(name)
        assert str(said.value) == why
        pytest.skip(why.partition("; ")[0])
    return name


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return write_bundle(tmp_path_factory.mktemp("bundle"), GOOD)


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
    assert " fp32 " in engine.describe()
    assert name in ON_A_CARD or engine.describe().endswith(" fp32 cpu")


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


def test_tiles_may_be_a_strided_view(name: str, bundle: Bundle) -> None:
    engine = open_engine(name, bundle)
    wide = np.repeat(prepare(GOOD[3], bundle.manifest.recipe).tiles, 2, axis=2)
    np.testing.assert_array_equal(
        engine.infer(wide[:, :, ::2]).maps, engine.infer(np.ascontiguousarray(wide[:, :, ::2])).maps
    )


def test_reconstruction_needs_an_inference(name: str, bundle: Bundle) -> None:
    engine = open_engine(name, bundle)
    with pytest.raises(EngineError, match="nothing was inferred"):
        engine.reconstruction()
    engine.infer(prepare(GOOD[0], bundle.manifest.recipe).tiles)
    with pytest.raises(EngineError):
        engine.infer(np.zeros((3, 64, 64, 1), np.uint8))
    with pytest.raises(EngineError, match="failed"):
        engine.reconstruction()


def test_values_that_are_not_finite_are_no_result(name: str, tmp_path: Path) -> None:
    tiles = np.zeros((2, 64, 64, 1), np.uint8)
    graph = make_graph(tiles.mean(0), np.zeros((64, 64, 1), np.float32))  # 1 / 0 = inf
    engine = _kind(name)(graph, GraphSpec(1, (64, 64), 1, (32, 32)))
    with pytest.raises(EngineError, match="not finite"):
        engine.infer(np.full((1, 64, 64, 1), 9, np.uint8))


def test_garbage_is_no_graph(name: str) -> None:
    with pytest.raises(EngineError, match="cannot be loaded"):
        _kind(name)(b"not onnx at all" * 100, GraphSpec(1, (64, 64), 1, None))


def test_map_of_another_size_is_refused(name: str) -> None:
    graph = make_graph(np.zeros((64, 64, 1)), np.ones((64, 64, 1)))
    engine = _kind(name)(graph, GraphSpec(1, (64, 64), 1, (64, 64)))
    with pytest.raises(EngineError, match="the bundle promises"):
        engine.infer(np.zeros((1, 64, 64, 1), np.uint8))


def test_probe_runs_the_engine(name: str) -> None:
    assert probe(name).startswith(f"{name}-")


STOPPED_AFTER_A_SWAP = """
import os, signal, sys, threading
from itertools import islice
from pathlib import Path
from contract.bundle import open_bundle
from edge_runtime.engines import open_engine

bundle = open_bundle(Path(sys.argv[2]))
held = [open_engine(sys.argv[1], bundle)]
swap = threading.Thread(target=lambda: (held.append(open_engine(sys.argv[1], bundle)), held.pop(0).close()))
swap.start()
swap.join()
signal.signal(signal.SIGTERM, lambda *told: (print("stops in order", flush=True), sys.exit(0)))
os.kill(os.getpid(), signal.SIGTERM)
signal.pause()
"""


def test_a_signal_after_an_engine_gave_way_to_another_on_another_thread_stops_in_order(
    name: str, bundle: Bundle
) -> None:
    """OpenVINO's CPU plugin swaps the thread's signal stack, and takes it away on whatever thread it ends."""
    ended = subprocess.run(
        [sys.executable, "-c", STOPPED_AFTER_A_SWAP, name, str(bundle.root)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert (ended.returncode, ended.stdout) == (0, "stops in order\n"), ended.stderr


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
    with pytest.raises(ParityError, match=r"golden image 2, .* expected .* within 0\.0001"):
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
    monkeypatch.setattr(engines, "obstacle", lambda name: "no driver" if name in ON_A_CARD else None)
    monkeypatch.setattr(engines.platform, "machine", lambda: "x86_64")
    assert choose("auto") == "openvino"
    monkeypatch.setattr(engines.platform, "machine", lambda: "aarch64")
    assert choose("auto") == "onnxruntime"
    monkeypatch.setattr(engines.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(engines, "installed", lambda name: name != "openvino")
    assert choose("auto") == "onnxruntime"


CAPABILITIES = {"RTX A2000": (8, 6), "RTX 5090": (12, 0), "Orin": (8, 7), "H200": (9, 0)}


@pytest.mark.parametrize("card_name", CAPABILITIES)
@pytest.mark.parametrize("packages", [{"tensorrt"}, {"tensorrt-rtx"}, {"tensorrt", "tensorrt-rtx"}])
def test_auto_is_tensorrt_where_it_and_a_card_are(
    card_name: str, packages: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    on = Card(card_name, CAPABILITIES[card_name], 8192, "570.1", "12.8")
    monkeypatch.setattr("edge_runtime.engines.tensorrt.card", lambda: on)
    monkeypatch.setattr(engines, "installed", lambda name: name in packages | {"openvino", "onnxruntime"})
    monkeypatch.setattr(engines.platform, "machine", lambda: "x86_64")
    rtx = "tensorrt-rtx" if on.name.startswith("RTX") else "openvino"
    assert choose("auto") == ("tensorrt" if "tensorrt" in packages else rtx)


def test_wheels_without_a_driver_are_passed_over_by_auto_and_doctor_says_why(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("edge_runtime.engines.cuda.DRIVER_LIBRARY", "libcuda-that-is-not-there.so.1")
    monkeypatch.setattr(engines, "installed", lambda name: True)
    with caplog.at_level("INFO"):
        assert choose("auto") in ("openvino", "onnxruntime")
    assert "'tensorrt-rtx' is installed and passed over: no NVIDIA driver" in caplog.text
    found = {finding.name: finding for finding in check_engines(Subject(None, None))}
    for name in ON_A_CARD:
        assert found[f"engine {name}"].status is Status.WARN
        assert found[f"engine {name}"].found.startswith("installed, but no NVIDIA driver: libcuda-that-is-not-there")
        assert found[f"engine {name}"].way_out.startswith("install the driver")
    assert found["engine auto"].status is Status.OK


def test_missing_engines_say_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "installed", lambda name: False)
    for name in ENGINES:
        with pytest.raises(EngineError, match=rf"pip install 'flawline\[{PACKAGES[name][1]}\]'"):
            choose(name)
    with pytest.raises(EngineError, match=r"no engine is installed .* pip install 'flawline\[edge\]'"):
        choose("auto")
    with pytest.raises(EngineError, match="there are: auto, tensorrt, tensorrt-rtx, openvino"):
        choose("tensorflow")


def test_every_engine_has_a_place_in_auto_a_package_and_a_place_in_the_settings() -> None:
    assert set(AUTO_ORDER) == set(ENGINES) == set(PACKAGES)
    (literal,) = [field for name, field in EdgeSettings.model_fields.items() if name == "engine"]
    assert set(get_args(literal.annotation)) == {"auto", *ENGINES}
    assert {name: PACKAGES[name][0] for name in ON_A_CARD} == LIBRARIES


def test_choosing_imports_none_of_the_engines() -> None:
    heavy = ("tensorrt_rtx_bindings", "openvino", "onnxruntime", "cuda.bindings.driver")
    script = (
        "import sys; from edge_runtime.engines import choose; choose('auto');"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_bundle_s_fp16_graph_is_another_file_with_a_tolerance_of_its_own(tmp_path: Path) -> None:
    bundle = _with_half(tmp_path, 1e-2)
    engine = open_engine("onnxruntime", bundle, precision="fp16")
    assert " fp16 cpu" in engine.describe()
    assert 1e-5 < check_golden(engine, bundle) < 1e-2
    with pytest.raises(ParityError, match=r"within 1e-05 relative; try precision = 'fp32'"):
        check_golden(engine, _with_half(tmp_path / "strict", 1e-5))


def test_fp16_may_not_change_the_verdict_of_a_golden_image_that_lies_off_the_limits(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bundle = _with_half(tmp_path, 1e-2)
    golden = bundle.manifest.golden
    engine = open_engine("onnxruntime", bundle, precision="fp16")
    found = [float(engine.infer(tile[None]).scores[0]) for tile in golden_tiles(bundle)]
    off = deviations(found, golden.scores)
    worst = off.index(max(off))
    limit = golden.scores[worst] + 0.9 * (found[worst] - golden.scores[worst])
    bundle.manifest.thresholds = Thresholds(
        reject=limit, map=1, method="test", false_reject_rate=0.1, groups=1, images=1, engine="onnxruntime fp16"
    )
    assert 0 < check_golden(engine, bundle) < 1e-2, "what rounding decides is no fault of the engine"
    assert f"golden image(s) [{worst}] lie within 0.005 of a limit" in caplog.text
    golden.tolerance_fp16 = 1.1 * check_golden(engine, bundle)
    assert golden.tolerance_fp16 * 0.5 < 0.9 * off[worst], "as far off as it may be, and more than rounding is"
    with pytest.raises(
        ParityError, match=rf"decides otherwise than training on golden image {worst}: .* use precision = 'fp32'"
    ):
        check_golden(engine, bundle)


def test_a_precision_that_is_not_there_says_so(bundle: Bundle, tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"the bundle has no fp16 graph: .* use precision = 'fp32'"):
        open_engine("onnxruntime", bundle, precision="fp16")
    with pytest.raises(
        EngineError, match="engine 'openvino' computes in fp32 or int8, precision = 'fp16' is asked for"
    ):
        open_engine("openvino", _with_half(tmp_path, 1e-2), precision="fp16")
    with pytest.raises(ConfigError, match="no such precision; there are: fp32, fp16, int8"):
        as_precision("int4")


def test_many_parts_come_back_in_order(bundle: Bundle) -> None:
    engine = open_engine("onnxruntime", bundle)
    parts = [prepare(part, bundle.manifest.recipe).tiles for part in GOOD[:5]]
    found = [float(output.scores[0]) for output in engine.infer_many(parts)]
    assert found == [float(engine.infer(part).scores[0]) for part in parts]


def test_parts_under_way_get_their_own_results_in_order(name: str, bundle: Bundle) -> None:
    engine, alone = open_engine(name, bundle), open_engine("onnxruntime", bundle)
    first, second, third, fourth = (prepare(part, bundle.manifest.recipe).tiles for part in GOOD[:4])
    tickets = [engine.start(first), engine.start(second), engine.start(third)]
    assert engine.under_way == SLOTS == 3 and not engine.failing, "who waits has not failed"
    for refused in (lambda: engine.start(fourth), lambda: engine.infer(fourth), engine.prove):
        with pytest.raises(EngineError, match="under way"):
            refused()
    assert engine.under_way == 3 and not engine.failing
    for ticket, tiles in zip(tickets, (first, second, third), strict=True):
        assert select.select([engine], [], [], 30)[0], "whoever waits beside it is woken"
        np.testing.assert_allclose(engine.finish(ticket).maps, alone.infer(tiles).maps, rtol=1e-4, atol=1e-5)
        assert engine.reconstruction().shape == tiles.shape
    assert not select.select([engine], [], [], 0)[0]
    engine.finish(engine.start(fourth))
    engine.start(first)
    engine.start(second)
    assert engine.reconstruction().any(), "it is still the fourth's"
    engine.start(third)
    with pytest.raises(EngineError, match="no reconstruction"):
        engine.reconstruction()
    engine.close()


def test_engines_over_one_compiled_graph_serve_apart_and_one_outlives_the_other(name: str, bundle: Bundle) -> None:
    engine = open_engine(name, bundle)
    other = engine.beside()
    if other is None:
        assert name in ON_A_CARD, "on a card each engine has memory of its own"
        return
    first, second, third = (prepare(part, bundle.manifest.recipe).tiles for part in GOOD[:3])
    alone = [engine.infer(part).maps for part in (first, second, third)]
    tickets = [engine.start(first), other.start(second), engine.start(third)]
    assert (engine.under_way, other.under_way) == (2, 1)
    for asked, place in ((other, 1), (engine, 0), (engine, 2)):
        assert select.select([asked], [], [], 30)[0], "each rings its own bell"
        np.testing.assert_array_equal(asked.finish(tickets[place]).maps, alone[place])
    assert not select.select([engine, other], [], [], 0)[0]
    engine.start(first)
    engine.close()
    del engine
    other.prove()
    np.testing.assert_array_equal(other.infer(third).maps, alone[2])
    assert other.reconstruction().shape == third.shape
    other.close()


def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the bundles whose graph is loaded from here on."""
    found: list[str] = []
    load = engines.open_engine

    def counted(name: str, bundle: Bundle, *more: Any) -> Engine:
        found.append(bundle.root.name)
        return load(name, bundle, *more)

    monkeypatch.setattr(engines, "open_engine", counted)
    return found


def test_what_is_compiled_is_shared_by_bundles_of_the_same_graph_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = opened(monkeypatch)
    one, same, two_tiles, another = (
        write_bundle(tmp_path / "one", GOOD),
        write_bundle(tmp_path / "same", GOOD),
        write_bundle(tmp_path / "two-tiles", GOOD, RECIPES["two tiles"]),
        write_bundle(tmp_path / "another", GOOD[:6]),
    )
    held = [open_shared("onnxruntime", each) for each in (one, same, two_tiles, another)]
    assert loaded == ["one", "two-tiles", "another"]
    held += [open_shared("onnxruntime", one, threads=2), open_shared("openvino", same)]
    assert loaded[3:] == ["one", "same"], "with other threads, and by another runtime, it is another engine"
    for engine in held:
        engine.failing = True
    held.append(open_shared("onnxruntime", same))
    assert loaded[5:] == ["same"], "whatever fails lends nothing"
    while held:
        held.pop().close()
    del engine
    open_shared("onnxruntime", one).close()
    assert loaded[6:] == ["one"], "with the last of them it is gone"


def join(engine: Engine, graph: bytes, parts: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a card: several take hardly longer than one."""
    monkeypatch.setattr(engine, "_takes", lambda: 1.0 + 0.01 * engine.joined)
    engine.join(graph, parts, budget_s=2.0)
    assert engine.joined == parts and engine.together(2) == 2


def joining(name: str) -> None:
    if not _kind(name).joins:
        pytest.skip(f"{name}: takes one part at a time")


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_parts_in_one_inference_get_their_own_results(
    name: str, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    joining(name)
    bundle = write_bundle(tmp_path, GOOD, recipe)
    alone = open_engine("onnxruntime", bundle)
    parts = [prepare(draw_part(number, defect=number % 2 == 0), recipe).tiles for number in range(50, 62)]
    maps = [alone.infer(part).maps for part in parts]
    assert len({each.tobytes() for each in maps}) == len(parts)
    engine = open_engine(name, bundle)
    join(engine, engines.base.read_graph(bundle), 4, monkeypatch)
    at = 0
    for sizes in ((1, 4, 1), (4, 1, 4), (2, 3, 2), (1, 1, 1), (4, 3, 1), (1, 2, 3)):  # of what is under way
        here = [(at + place) % len(parts) for place in range(sum(sizes))]
        waiting, tickets = iter(here), []
        for size in sizes:
            assert not engine.full
            tickets += engine.start_together([parts[each] for each in islice(waiting, size)])
        assert engine.full and engine.under_way == len(tickets) == len(set(tickets))
        with pytest.raises(EngineError, match="3 inferences are under way"):
            engine.start(parts[0])
        for ticket, place in zip(tickets, here, strict=True):
            if not engine.ready():
                assert select.select([engine], [], [], 30)[0], "one ring for each inference"
            found = engine.finish(ticket)
            np.testing.assert_allclose(found.maps, maps[place], rtol=1e-4, atol=1e-5)
            assert engine.reconstruction().shape == parts[place].shape
        assert not select.select([engine], [], [], 0)[0]
        at += sum(sizes)
    other = engine.beside()
    assert other is not None
    forgotten = other.start_together(parts[:3])
    np.testing.assert_allclose(other.finish(forgotten[1]).maps, maps[1], rtol=1e-4, atol=1e-5)
    with pytest.raises(EngineError, match="no part with ticket"):
        other.finish(forgotten[0])
    assert other.under_way == 1
    with pytest.raises(EngineError, match="5 parts in one inference; at most 4"):
        other.start_together(parts[:5])
    other.close()
    assert other.under_way == 0
    assert check_golden(engine, bundle) < 1e-5
    engine.prove()
    engine.close()


def test_of_parts_in_one_inference_one_that_has_no_finite_output_takes_no_other_s(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    joining(name)
    graph = make_graph(np.zeros((64, 64, 1)), np.full((64, 64, 1), 1.2e-38))  # black is 0, all else infinite
    engine = _kind(name)(graph, GraphSpec(1, (64, 64), 1, (32, 32)))
    monkeypatch.setattr(engine, "warm_up", lambda: None)  # grey is infinite, too
    join(engine, graph, 4, monkeypatch)
    black, white = np.zeros((1, 64, 64, 1), np.uint8), np.full((1, 64, 64, 1), 255, np.uint8)
    tickets = engine.start_together([black, white, black])
    assert engine.finish(tickets[0]).scores == [0.0]
    with pytest.raises(EngineError, match="not finite"):
        engine.finish(tickets[1])
    assert engine.failing
    assert engine.finish(tickets[2]).scores == [0.0]
    assert not engine.failing


def test_an_inference_that_fails_leaves_each_of_its_parts_without_a_result(
    name: str, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    joining(name)
    engine = open_engine(name, bundle)
    join(engine, engines.base.read_graph(bundle), 3, monkeypatch)
    parts = [prepare(part, bundle.manifest.recipe).tiles for part in GOOD[:4]]
    expected = [float(engine.infer(part).scores[0]) for part in parts]
    with monkeypatch.context() as patch:
        finish, faults = engine._finish, [RuntimeError("no")]

        def fail_once(slot: int) -> Any:
            found = finish(slot)
            if faults:
                raise faults.pop()
            return found

        patch.setattr(engine, "_finish", fail_once)
        tickets = engine.start_together(parts[:3])
        later = engine.start(parts[3])
        for ticket in tickets:
            with pytest.raises(EngineError, match="inference failed: no"):
                engine.finish(ticket)
        assert engine.failing and engine.under_way == 1
        assert float(engine.finish(later).scores[0]) == pytest.approx(expected[3], rel=1e-5)
    found = [engine.finish(ticket).scores[0] for ticket in engine.start_together(parts[:3])]
    assert found == pytest.approx(expected[:3], rel=1e-5)


def test_parts_are_joined_within_the_budget_and_only_where_that_is_faster(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    graph = engines.base.read_graph(bundle)
    engine = open_engine("openvino", bundle)
    monkeypatch.setattr(engine, "_takes", lambda: 0.001 + 0.001 * engine.joined)
    engine.join(graph, 8, budget_s=0.0055)
    assert engine.joined == 4, "8 take 9 ms, 4 take 5"
    assert [engine.together(waiting) for waiting in (0, 1, 2, 3, 4, 9)] == [0, 1, 1, 3, 4, 4], "two take 4 ms alone"
    assert "4 of 8 part(s) take 5.00 ms together, one 2.00 ms: joined from 3 on" in caplog.text
    assert sorted(engine._compiled) == [1, 4]
    monkeypatch.setattr(engine, "_takes", lambda: 0.002 * engine.joined)
    for budget_s, words in ((1.0, "each is inferred alone"), (0.003, "two parts take longer than 3.0 ms")):
        engine.join(graph, 4, budget_s)
        assert (engine.joined, engine.together(9)) == (1, 1) and words in caplog.records[-1].getMessage()
        assert sorted(engine._compiled) == [1], "what nobody uses takes no memory"
    part = prepare(GOOD[0], bundle.manifest.recipe).tiles
    assert engine.infer(part).scores == pytest.approx(open_engine("onnxruntime", bundle).infer(part).scores, rel=1e-5)


def test_how_long_parts_take_is_measured(bundle: Bundle) -> None:
    engine = open_engine("onnxruntime", bundle, together=Together(2, 60_000))
    assert engine.joined in (1, 2) and engine.under_way == 0
    assert 0 < engine._takes() < 60
    assert open_engine("onnxruntime", bundle, together=Together(2, 1e-6)).joined == 1


def test_how_many_parts_are_joined_stands_in_the_settings(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr("edge_runtime.recipes.open_fit", lambda settings, number: bundle)
    monkeypatch.setattr("edge_runtime.recipes.open_shared", lambda *given: asked.append(given) or open_engine(*given))
    camera = {"id": "top", "url": "synthetic://line"}
    values = {"edge_id": "e", "bundle": bundle.root, "engine": "onnxruntime", "cameras": [camera]}
    load_judge(EdgeSettings.model_validate(values), 1)
    load_judge(EdgeSettings.model_validate(values | {"batch": 3, "batch_ms": 20}), 1)
    assert [together for *_, together in asked] == [Together(1, 50), Together(3, 20)]
    with pytest.raises(ValueError, match=r"batch_ms = 2000 is over deadline_ms = 1000"):
        EdgeSettings.model_validate(values | {"batch": 3, "batch_ms": 2000})


def test_an_engine_that_takes_one_part_at_a_time_says_so(bundle: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_kind("onnxruntime"), "joins", False)
    with pytest.raises(EngineError, match=r"one part at a time, and batch = 4 is asked for; set batch = 1, or engine "):
        open_engine("onnxruntime", bundle, together=Together(4, 50))
    assert not any(_kind(each).joins for each in ON_A_CARD if installed(each)), "not tried on a card"


def test_no_part_gets_what_belongs_to_another(bundle: Bundle) -> None:
    engine = open_engine("onnxruntime", bundle)
    forgotten, asked = (prepare(part, bundle.manifest.recipe).tiles for part in GOOD[:2])
    engine.start(forgotten)
    ticket = engine.start(asked)
    found = engine.finish(ticket)
    assert engine.under_way == 0
    np.testing.assert_array_equal(found.maps, engine.infer(asked).maps)
    with pytest.raises(EngineError, match=f"no part with ticket {ticket} is under way"):
        engine.finish(ticket)


def test_a_start_that_fails_leaves_what_is_under_way_as_it_was(bundle: Bundle) -> None:
    engine = open_engine("onnxruntime", bundle)
    parts = [prepare(part, bundle.manifest.recipe).tiles for part in GOOD[:2]]
    ticket = engine.start(parts[0])
    with pytest.raises(EngineError, match="expected uint8"):
        engine.start(np.zeros((3, 64, 64, 1), np.uint8))
    assert engine.failing and engine.under_way == 1
    later = engine.start(parts[1])
    found = [float(engine.finish(each).scores[0]) for each in (ticket, later)]
    assert not engine.failing
    assert found == [float(engine.infer(part).scores[0]) for part in parts]


def _with_half(folder: Path, tolerance: float) -> Bundle:
    """The bundle of ``tests.graphs`` with a second graph, its mean image rounded to FP16, as its FP16 graph."""
    tiles = np.concatenate([prepare(part, Recipe()).tiles for part in GOOD])
    bundle = write_bundle(folder, GOOD)
    mean = tiles.mean(0).astype(np.float16).astype(np.float32)
    (folder / "model.fp16.onnx").write_bytes(make_graph(mean, tiles.astype(np.float32).std(0) + 8.0))
    manifest = bundle.manifest
    files = {**manifest.files, ROLE_GRAPH_FP16: file_entry(folder, "model.fp16.onnx")}
    golden = manifest.golden.model_copy(update={"tolerance_fp16": tolerance})
    write_manifest(folder, manifest.model_copy(update={"files": files, "golden": golden}))
    return open_bundle(folder)


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
    monkeypatch.setattr(engine, "_run", lambda tiles: run(tiles)._replace(scores=run(tiles).scores + np.float32(5.0)))
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


def test_an_engine_that_is_lost_infers_nothing_more_and_says_why(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = open_engine("onnxruntime", bundle)
    tiles = np.full(engine.spec.input_shape, 60, np.uint8)
    run, answers = engine._run, iter([None, "the card is gone"])
    monkeypatch.setattr(engine, "_run", lambda tiles: 1 / 0)
    monkeypatch.setattr(engine, "_lost", lambda: next(answers))
    with pytest.raises(EngineError, match="inference failed"):
        engine.infer(tiles)
    assert engine.lost is None, "one inference failed"
    with pytest.raises(EngineError, match="the card is gone"):
        engine.prove()
    monkeypatch.setattr(engine, "_run", run)
    for call in (lambda: engine.infer(tiles), engine.prove):
        with pytest.raises(EngineError, match=r"^the card is gone$"):
            call()
    assert engine.failing and engine.lost == "the card is gone"


class Forgetful(WorkerEngine):
    """A back-end that computes the first tiles of a batch alone."""

    name = "forgetful"

    def _load(self, graph: bytes) -> set[str]:
        self._real = engines._kind("onnxruntime")(graph, self.spec)
        return {"score", "map", "reconstruction"}

    def _run(self, tiles: np.ndarray) -> Outputs:
        scores, maps, reconstruction = self._real._run(tiles)  # type: ignore[attr-defined]
        scores[1:] = maps[1:] = 0.0
        return Outputs(scores, maps, reconstruction)

    def describe(self) -> str:
        return "forgetful fp32 cpu"


def test_every_place_of_the_batch_is_proven_on_the_golden_images(tmp_path: Path) -> None:
    opened = write_bundle(tmp_path, GOOD, RECIPES["two tiles"])
    engine = Forgetful(engines.base.read_graph(opened), engines.base.graph_spec(opened))
    with pytest.raises(ParityError, match="place 1 of the batch"):
        check_golden(engine, opened)


def test_every_place_of_an_inference_of_several_parts_is_proven(bundle: Bundle) -> None:
    engine = Forgetful(engines.base.read_graph(bundle), engines.base.graph_spec(bundle))
    assert check_golden(engine, bundle) < 1e-5
    engine.joined = 3
    with pytest.raises(ParityError, match="place 1 of the batch"):
        check_golden(engine, bundle)
    engine = Forgetful(engines.base.read_graph(bundle), engines.base.graph_spec(bundle))
    engine.joined = 2
    engine.warm_up()
    engine._run = lambda tiles: engine._real._run(tiles)  # type: ignore[attr-defined,method-assign]
    with pytest.raises(EngineError, match="a grey image scores"):
        engine.prove()


def test_limits_of_one_precision_judge_no_other(bundle: Bundle) -> None:
    from edge_runtime.recipes import precision_fault

    assert precision_fault(bundle, "fp32") is None or bundle.manifest.thresholds is None
    thresholds = bundle.manifest.thresholds
    if thresholds is not None:
        assert "the line would run in fp16" in (precision_fault(bundle, "fp16") or "")


@pytest.mark.parametrize("closed", [True, False], ids=["closed", "forgotten"])
def test_no_thread_stays_behind_an_engine(name: str, closed: bool, bundle: Bundle) -> None:
    before = set(threading.enumerate())
    engine = open_engine(name, bundle)
    engine.infer(np.full(engine.spec.input_shape, 128, np.uint8))
    if closed:
        engine.close()
    del engine
    gc.collect()
    until(lambda: not {thread for thread in threading.enumerate() if thread not in before}, "its threads have ended")
