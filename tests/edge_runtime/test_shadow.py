"""A candidate in shadow with its real process: recorded and accounted for, and whatever it does touches no verdict."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zmq

from contract import event
from contract.bundle import Bundle, open_bundle, put_files
from contract.dataset import load_dataset
from contract.errors import ConfigError
from contract.event import HEADER, Attachment, Result, Timing, Trigger, Verdict
from contract.images import decode_image, read_image
from contract.recipe import Recipe
from edge_runtime import shadow as module
from edge_runtime.cutting import CutPart
from edge_runtime.emitter import Emitter
from edge_runtime.engines import open_engine
from edge_runtime.inspector import Inspector
from edge_runtime.settings import CameraSettings, EdgeSettings, HostLink, ShadowSettings, load_settings
from edge_runtime.shadow import Shadow
from edge_runtime.shadow_child import FIRST_TO_END
from edge_runtime.spool import Spool
from edge_runtime.spool_tables import IMAGES, MAPS
from tests.edge_runtime.test_station import Run
from tests.graphs import write_bundle
from tests.processes import until

ROOT = Path(__file__).parents[2]
WAYS = ["raises", "hangs", "crashes", "garbles", "lies"]


@pytest.fixture(scope="module")
def opened(bundle: Path) -> Bundle:
    return open_bundle(bundle)


@pytest.fixture(scope="module")
def pictures(synthetic_data: Path) -> list[np.ndarray]:
    return [read_image(sample.path, 1) for sample in load_dataset(synthetic_data).test[:6]]


class Beside:
    """A candidate in shadow alone, with a spool that nobody empties."""

    def __init__(self, folder: Path, live: Path, candidate: Path, hang_s: float = 2.0, **shadow: object) -> None:
        self.settings = EdgeSettings(
            edge_id="edge",
            bundle=live,
            state_dir=folder,
            hang_s=hang_s,
            host=HostLink(endpoint=f"ipc://{folder}/nobody"),
            cameras=[CameraSettings(id="top", url="synthetic://line")],
            shadow=ShadowSettings(bundle=candidate, share=1.0, **shadow),  # type: ignore[arg-type]
        )
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self.spool = Spool(folder / "spool.sqlite")
        self._emitter = Emitter(self.spool, self.settings.host, self._context)
        self.shadow = Shadow(self.settings, self.spool, self._emitter)
        self._emitter.start()
        self.shadow.start()

    def offer(self, number: int, cut: CutPart | None, recipe_number: int = 1, timing: Timing | None = None) -> None:
        """A part that the bundle judged which is the line's own now."""
        live = open_bundle(self.settings.bundle.resolve()).manifest
        named = {"bundle_id": live.id, "calibration_id": live.calibration_id(), "recipe_number": recipe_number}
        named |= {"timing": timing or Timing()}
        self.shadow.offer(result(number).model_copy(update=named), 2 * number + 2, cut)

    def ended(self) -> int:
        return self.shadow.scored + self.shadow.dropped + self.shadow.unseen

    def stop(self) -> list[event.Shadow]:
        """Every event that was spooled."""
        self.shadow.stop()
        rows = [HEADER.validate_json(row.header) for row in self.spool.pending(MAPS, 0, 1000)]
        return [row for row in rows if isinstance(row, event.Shadow)]

    def close(self) -> None:
        self.shadow.stop()
        self._emitter.stop()
        self.spool.close()
        self._context.term()


@pytest.fixture
def beside(bundle: Path, tmp_path: Path) -> Iterator[Callable[..., Beside]]:
    made: list[Beside] = []

    def make(candidate: Path | None = None, live: Path = bundle, **shadow: Any) -> Beside:
        made.append(Beside(tmp_path, live, candidate or bundle, **shadow))
        return made[-1]

    yield make
    for each in made:
        each.close()


def result(number: int) -> Result:
    return Result(
        edge_id="edge",
        spool_id="spool",
        seq=1,
        run_id="run",
        t_wall_ns=1,
        part_id=f"part-{number}",
        camera_id="top",
        trigger_id=number,
        frame_no=number,
        verdict=Verdict.PASS,
        recipe="line",
        bundle_id="live",
        model_sha256="0" * 64,
        engine="live",
    )


def cut(pixels: np.ndarray, fault: str | None = None) -> CutPart:
    return CutPart(pixels, None, {}, fault)


def break_candidate(monkeypatch: pytest.MonkeyPatch, how: str) -> None:
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from tests.edge_runtime.bad_candidates import main; "
    monkeypatch.setattr(module, "CODE", f"{code}main(int(sys.argv[1]), {how!r})")
    monkeypatch.setattr(module, "RETRY_S", (0.01,))


def accounted(told: event.Shadow) -> bool:
    return told.offered == told.scored + told.dropped + told.unseen + told.waiting


def test_every_part_is_scored_as_the_line_would_and_accounted_for(
    beside: Callable[..., Beside], opened: Bundle, pictures: list[np.ndarray]
) -> None:
    aside = beside()
    for number, pixels in enumerate(pictures):
        aside.offer(number, cut(pixels))
        until(lambda number=number: aside.ended() > number, "its end")  # type: ignore[misc]
    aside.offer(6, cut(pictures[0], "no mark was found"))
    aside.offer(7, None)
    aside.offer(8, cut(pictures[0]), recipe_number=2)
    told = aside.stop()
    assert all(accounted(each) for each in told)
    last = told[-1]
    assert (last.offered, last.scored, last.unseen, last.dropped, last.waiting) == (8, 6, 2, 0, 0)
    assert (last.bundle_id, last.model_sha256) == (opened.manifest.id, opened.model_sha256)
    scores = [score for each in told for score in each.scores]
    assert [score.part_id for score in scores] == [f"part-{number}" for number in range(6)]
    assert [score.result_seq for score in scores] == [2, 4, 6, 8, 10, 12]
    live = opened.manifest
    assert (last.beside_bundle_id, last.beside_calibration_id) == (live.id, live.calibration_id())
    inspector = Inspector(opened, open_engine("onnxruntime", opened))
    for score, pixels in zip(scores, pictures, strict=True):
        expected = inspector.inspect(pixels)
        assert (score.verdict, score.score, score.reason) == (expected.verdict, expected.score, expected.reason)
        assert score.live is Verdict.PASS


def test_what_it_has_no_time_for_is_dropped_and_never_waited_for(
    beside: Callable[..., Beside], pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    break_candidate(monkeypatch, "never starts")
    aside = beside()
    for number in range(100):
        aside.offer(number, cut(pictures[0]))
    assert aside.shadow.dropped >= 100 - module.MOST - 1
    (last,) = aside.stop()[-1:]
    assert (last.offered, last.scored, last.dropped, last.waiting) == (100, 0, 100, 0)


@pytest.mark.parametrize(("busy", "pause"), [(0.0, 0.04), (0.5, 0.08), (0.9, 0.4), (1.0, 0.4), (1.8, 0.4)])
def test_it_takes_less_the_busier_the_line_is(busy: float, pause: float) -> None:
    assert module.pause_s(0.004, 0.1, busy) == pytest.approx(pause)


def test_how_busy_the_line_is_comes_from_every_part_of_every_recipe(
    beside: Callable[..., Beside], pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[float] = []
    monkeypatch.setattr(module, "pause_s", lambda cpu_s, share, busy: asked.append(busy) or 0.0)
    aside = beside()
    aside.shadow.ready.wait(60)
    hour_ns = 3_600_000_000_000
    for number, recipe, taken, decided in ((0, 2, hour_ns, 2 * hour_ns), (1, 1, hour_ns, 0), (2, 1, 0, 0)):
        timing = Timing(t_taken_ns=taken, t_decided_ns=decided)
        before = aside.ended()
        aside.offer(number, cut(pictures[0]), recipe, timing)
        until(lambda before=before, own=recipe == 1: aside.ended() > before or not own, "its end")  # type: ignore[misc]
    until(lambda: len(asked) == 2, "both pauses")
    assert asked[0] > 1 and asked[1] == 0


def test_where_memory_is_short_it_is_the_first_to_end(beside: Callable[..., Beside]) -> None:
    aside = beside()
    until(aside.shadow.ready.is_set, "the candidate")
    child = aside.shadow._child
    assert child is not None
    assert Path(f"/proc/{child._process.pid}/oom_score_adj").read_text() == f"{FIRST_TO_END}\n"


@pytest.mark.parametrize("how", WAYS)
def test_a_candidate_that_fails_costs_its_own_scores_alone(
    beside: Callable[..., Beside], pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    break_candidate(monkeypatch, how)
    aside = beside()
    for number in range(2):
        aside.offer(number, cut(pictures[number]))
        until(lambda number=number: aside.ended() > number, "its end")  # type: ignore[misc]
    told = aside.stop()
    last = told[-1]
    assert accounted(last) and last.offered == 2
    if how == "raises":  # a part that its engine fails for is told so, as on the line
        scores = [score for each in told for score in each.scores]
        assert {(score.verdict, score.reason) for score in scores} == {(Verdict.NOT_INSPECTED, "the engine is broken")}
    else:
        assert (last.scored, last.dropped) == (0, 2)
        assert last.trouble or aside.shadow.trouble is None


def test_a_candidate_that_gets_no_core_is_waited_for(
    beside: Callable[..., Beside], pictures: list[np.ndarray], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A program that never rests on the only core that the candidate may use, for longer than an answer may take."""
    monkeypatch.setattr(module, "RETRY_S", ())
    aside = beside(hang_s=2.0)
    until(aside.shadow.ready.is_set, "the candidate")
    child = aside.shadow._child
    assert child is not None
    pid, core = child._process.pid, min(os.sched_getaffinity(0))
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {core})
    hog = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    os.sched_setaffinity(hog.pid, {core})
    began = time.monotonic()
    try:
        aside.offer(0, cut(pictures[0]))
        until(lambda: time.monotonic() > began + 5 or aside.ended() == 1, "more than twice the limit", timeout_s=30)
    finally:
        hog.kill()
        hog.wait()
    until(lambda: aside.ended() == 1, "its end")
    assert (aside.shadow.scored, aside.shadow.trouble) == (1, None)


@pytest.mark.parametrize("damage", ["missing", "hash", "colour", "uncalibrated"])
def test_a_bundle_that_cannot_be_a_candidate_is_told_and_nothing_else(
    beside: Callable[..., Beside], bundle: Path, pictures: list[np.ndarray], tmp_path: Path, damage: str
) -> None:
    candidate = tmp_path / "candidate"
    if damage == "colour":
        live = open_bundle(bundle).manifest
        colour = [np.repeat(pictures[0][..., None], 3, axis=2)] * 4
        recipe = Recipe(name="line", channels=3)
        write_bundle(candidate, colour, recipe, thresholds=live.thresholds, quality=live.quality)
    elif damage == "uncalibrated":
        write_bundle(candidate, pictures[:4])
    elif damage == "hash":
        shutil.copytree(bundle, candidate)
        with (candidate / "model.fp32.onnx").open("ab") as file:
            file.write(b"x")
    aside = beside(candidate)
    aside.offer(0, cut(pictures[0]))
    until(lambda: aside.shadow.trouble is not None, "trouble")
    aside.offer(1, cut(pictures[1]))
    last = aside.stop()[-1]
    assert (last.offered, last.scored, last.dropped, last.bundle_id) == (2, 0, 2, None)
    expected = {
        "missing": "candidate",
        "hash": "the manifest says",
        "colour": "channel",
        "uncalibrated": "not calibrated",
    }
    assert last.trouble is not None and expected[damage] in last.trouble


def test_beside_another_bundle_than_before_it_is_opened_anew_or_refused(
    beside: Callable[..., Beside],
    opened: Bundle,
    pictures: list[np.ndarray],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An update of the line's own: first another calibration, then one whose pictures are cut otherwise."""
    monkeypatch.setattr(module, "RETRY_S", (0.01,))
    thresholds, quality = opened.manifest.thresholds, opened.manifest.quality
    assert thresholds is not None
    calibrated = Path(shutil.copytree(opened.root, tmp_path / "calibrated"))
    put_files(open_bundle(calibrated), {}, thresholds=thresholds.model_copy(update={"reject": 2 * thresholds.reject}))
    colour = [np.repeat(pictures[0][..., None], 3, axis=2)] * 4
    write_bundle(tmp_path / "colour", colour, Recipe(name="line", channels=3), thresholds=thresholds, quality=quality)
    live = tmp_path / "live"
    live.symlink_to(opened.root)
    aside = beside(live=live)

    def offer(number: int) -> tuple[int, int]:
        aside.offer(number, cut(pictures[0]))
        until(lambda: aside.ended() > number, "its end")
        return aside.shadow.scored, aside.shadow.dropped

    def update(folder: Path) -> None:
        live.unlink()
        live.symlink_to(folder)

    assert offer(0) == (1, 0)
    update(calibrated)
    assert offer(1) == (1, 1), "what it was opened beside is not what judged this part"
    assert offer(2) == (2, 1) and aside.shadow.trouble is None
    update(tmp_path / "colour")
    assert offer(3) == (2, 2)
    until(lambda: aside.shadow.trouble is not None, "trouble")
    assert "channel" in str(aside.shadow.trouble) and offer(4) == (2, 3)


@pytest.mark.parametrize("how", ["", "hangs", "crashes"])
def test_live_verdicts_are_those_of_a_line_without_a_candidate(
    opened: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Each is what the inspector says of the picture that was sent with it, and every part has one."""
    if how:
        break_candidate(monkeypatch, how)
    engine = open_engine("onnxruntime", opened)
    run = Run(tmp_path, opened, engine, shadow={"bundle": opened.root, "share": 1.0}, hang_s=2)
    headers = run.run()
    sent = {}
    for row in run.spool.pending(IMAGES, 0, 1000):
        header = HEADER.validate_json(row.header)
        assert isinstance(header, Attachment)
        pictures = dict(zip((part.role for part in header.parts), row.parts, strict=True))
        if "image" in pictures:
            sent[header.part_id] = decode_image(pictures["image"], 1, "image")
    run.close()
    inspector = Inspector(opened, open_engine("onnxruntime", opened))
    results = [header for header in headers if isinstance(header, Result)]
    assert results and len(results) == len({header.part_id for header in headers if isinstance(header, Trigger)})
    for result in results:
        expected = inspector.inspect(sent[result.part_id])
        assert (result.verdict, result.score, result.reason) == (expected.verdict, expected.score, expected.reason)
    last = [header for header in headers if isinstance(header, event.Shadow)][-1]
    assert accounted(last) and (last.offered, last.waiting) == (len(results), 0)


def test_settings(tmp_path: Path, bundle: Path) -> None:
    text = f'edge_id = "e"\nbundle = "{bundle}"\n[[cameras]]\nid = "top"\nurl = "synthetic://line"\n[shadow]\n'
    config = tmp_path / "edge.toml"
    config.write_text(text + 'bundle = "next"\n')
    assert load_settings(config).shadow.bundle == tmp_path / "next"
    config.write_text(text + 'bundle = "next"\nrecipe = 7\n')
    with pytest.raises(ConfigError, match="no such recipe"):
        load_settings(config)
