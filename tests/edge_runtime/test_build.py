"""Plans built ahead: by the real command in a real process, on a card of paper; and by TensorRT-RTX's own builder."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import edge_runtime.engines.tensorrt as tensorrt
from edge_runtime.doctor import Finding, Status, Subject, check_plans
from edge_runtime.engines import plan_process
from edge_runtime.engines.cuda import Card
from edge_runtime.engines.plan_process import Request
from edge_runtime.synthetic import PART_LENGTH_PX
from flawline import main
from tests.bundles import draw_part
from tests.graphs import write_bundle
from tests.paper_box import PaperBox
from tests.processes import Process, until

WITH_DRIVER = Path("/proc/driver/nvidia/version").exists()
SPOKEN_S = 60.0
PATIENT_S = 200.0  # what is built at a low priority has to wait for whatever else this machine does


@pytest.fixture
def box(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> PaperBox:
    return PaperBox(tmp_path, monkeypatch)


def config(folder: Path, bundles: list[Path], engine: str) -> Path:
    """An edge whose first bundle is recipe 1 and whose others are 2, 3 and so on."""
    recipes = "".join(
        f'[[recipes]]\nnumber = {number}\nbundle = "{bundle}"\n' for number, bundle in enumerate(bundles[1:], start=2)
    )
    path = folder / "edge.toml"
    path.write_text(
        f'edge_id = "edge-1"\nbundle = "{bundles[0]}"\nengine = "{engine}"\nstate_dir = "edge"\ndeadline_ms = 20000\n'
        f'[host]\nendpoint = "ipc://{folder}/nobody"\n'
        f'[[cameras]]\nid = "top"\nurl = "synthetic://line?seed=2&parts=400&fps=50"\n'
        f"[cameras.presence]\npart_length_px = {PART_LENGTH_PX}\n{recipes}"
    )
    return path


def drawn(folder: Path, *seeds: int) -> list[Path]:
    """Bundles with a graph of their own each; not calibrated, which building does not ask for."""
    made = []
    for seed in seeds:
        parts = [draw_part(number) for number in range(seed, seed + 4)]
        made.append(write_bundle(folder / f"bundle-{seed}", parts).root)
    return made


@pytest.fixture
def flawline(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    started: list[Process] = []

    def start(*words: object) -> Process:
        started.append(Process(tmp_path / f"{len(started)}.log", *map(str, words)))
        return started[-1]

    yield start
    for process in started:
        if process.running():
            process.kill()


def test_every_recipe_is_built_and_tried_once(box: PaperBox, tmp_path: Path, flawline: Callable[..., Process]) -> None:
    path = config(tmp_path, drawn(tmp_path, 1, 20), "tensorrt")
    first = flawline("edge", "build", path)
    assert first.wait(SPOKEN_S) == 0, first.text()
    assert [line.partition(" in ")[0] for line in first.text().splitlines() if line.startswith("recipe ")] == [
        "recipe 1, bundle-1: built and tried",
        "recipe 2, bundle-20: built and tried",
    ]
    assert "2 of 2 recipe(s) ready for tensorrt in fp32" in first.text()
    assert box.plans() == 2 and set(box.builders().values()) == {os.getpriority(os.PRIO_PROCESS, 0)}
    again = flawline("edge", "build", path)
    assert again.wait(SPOKEN_S) == 0
    assert again.text().count("in the cache, ") == 2 and len(box.builders()) == 2


def test_what_cannot_be_built_is_said_and_the_others_are_built(
    box: PaperBox, tmp_path: Path, flawline: Callable[..., Process]
) -> None:
    good, damaged = drawn(tmp_path, 1, 20)
    graph = next(damaged.glob("*.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1])
    path = config(tmp_path, [good, damaged, tmp_path / "nowhere"], "tensorrt")
    done = flawline("edge", "build", path)
    assert done.wait(SPOKEN_S) == 1
    said = done.text()
    assert "recipe 2, bundle-20: FAILED: " in said and "recipe 3, nowhere: FAILED: " in said
    assert "1 of 3 recipe(s) ready for tensorrt in fp32" in said and box.plans() == 1
    box.lose_card()
    (box.cache / "engines").rename(tmp_path / "emptied")
    lost = flawline("edge", "build", config(tmp_path, [good], "tensorrt"))
    assert lost.wait(SPOKEN_S) == 1
    assert "700, an illegal memory access" in lost.text() and box.plans() == 0, "what fails its trial is not kept"


def test_a_processor_needs_no_building(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    bundles = drawn(tmp_path, 1)
    assert main(["edge", "build", str(config(tmp_path, bundles, "onnxruntime"))]) == 0
    assert "engine 'onnxruntime' compiles a graph whenever it is opened" in capfd.readouterr().out
    if not WITH_DRIVER:
        assert main(["edge", "build", str(config(tmp_path, bundles, "auto"))]) == 0
        said = capfd.readouterr().out
        assert "nothing has to be built" in said
        if tensorrt.importlib.util.find_spec("tensorrt_rtx_bindings"):
            assert "engine 'tensorrt-rtx' is installed and passed over: no NVIDIA driver" in said


@pytest.mark.skipif(WITH_DRIVER, reason="there is a driver here")
def test_a_card_that_is_asked_for_and_not_there_is_a_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX's wheels are not installed")
    assert main(["edge", "build", str(config(tmp_path, drawn(tmp_path, 1), "tensorrt-rtx"))]) == 2
    assert "no NVIDIA driver: " in capfd.readouterr().err


def test_tensorrt_rtx_builds_the_recipes_for_real(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Its real builder in the real child; only the trial, which needs a card, is answered here."""
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX's wheels are not installed")
    run, tried = plan_process.run, []

    def without_a_card(request: Request, timeout_s: float) -> dict[str, Any]:
        if request.task == "build":
            return run(request, timeout_s)
        tried.append(request.plan.stat().st_size)
        return {}

    monkeypatch.setattr(plan_process, "run", without_a_card)
    monkeypatch.setattr(tensorrt, "card", lambda: Card("NVIDIA RTX A2000", (8, 6), 8192, "570.1", "12.8"))
    monkeypatch.setenv("CACHE_DIRECTORY", str(tmp_path / "cache"))
    path = config(tmp_path, drawn(tmp_path, 1, 20), "tensorrt-rtx")
    (finding,) = check_plans(Subject(None, path))
    assert finding.status is Status.WARN and finding.found.startswith("none yet for recipe(s) 1, 2: ")
    assert finding.way_out == f"flawline edge build {path}"
    assert main(["edge", "build", str(path)]) == 0
    assert capfd.readouterr().out.count(": built and tried in ") == 2
    assert list(check_plans(Subject(None, path))) == [Finding("plans", Status.OK, "built for 2 recipe(s)")]
    damaged = next((tmp_path / "bundle-20").glob("*.onnx"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    assert [(finding.status, finding.found[:10]) for finding in check_plans(Subject(None, path))] == [
        (Status.FAIL, "recipe 2: "),
        (Status.OK, "built for "),
    ]
    kept = sorted(path.stat().st_size for path in (tmp_path / "cache" / "engines").glob("*.plan"))
    assert kept == sorted(tried) and min(kept) > 1000
    assert sorted(path.suffix for path in (tmp_path / "cache" / "engines").iterdir()) == sorted(
        [".json", ".lock", ".plan"] * 2
    ), "no graph is left beside them"


def test_a_line_does_not_wait_for_plans_that_are_built_beside_it(
    box: PaperBox, tmp_path: Path, bundle: Path, flawline: Callable[..., Process]
) -> None:
    assert flawline("edge", "build", config(tmp_path, [bundle], "tensorrt")).wait(SPOKEN_S) == 0
    both = config(tmp_path, [bundle, *drawn(tmp_path, 20)], "tensorrt")
    before = set(box.builders())

    box.hold_builders()
    edge = flawline("edge", "run", both)
    until(lambda: set(box.builders()) - before, "the second recipe is being built")
    (builder,) = set(box.builders()) - before
    assert "no plan is built yet for recipe(s) 2;" in edge.text()
    until(lambda: box.builders().get(builder) == plan_process.NICE, "the processor is the line's")
    seen = len(_verdicts(edge))
    until(lambda: len(_verdicts(edge)) > seen, "parts get their verdicts meanwhile")
    assert edge.running() and box.plans() == 1
    assert edge.stop() in (0, 3)
    until(lambda: not Path(f"/proc/{builder}").exists(), "the builder ends with the edge")

    box.let_builders_go()
    edge = flawline("edge", "run", both)
    until(lambda: "recipe 2: its plan is there after" in edge.text(), "the plan is there", PATIENT_S)
    assert box.plans() == 2
    assert not list(box.cache.glob("engines/.*")), "what the builder that was ended had left is cleared away"
    edge.stop()


def _verdicts(edge: Process) -> list[str]:
    return [line for line in edge.text().splitlines() if line.startswith("top-") and "NOT_INSPECTED" not in line]
