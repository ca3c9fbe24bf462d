"""Bundles in two slots: whole at any moment, recognised by content, swapped beside a station that goes on."""

from __future__ import annotations

import itertools
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from contract.bundle import open_bundle
from contract.errors import BundleError, ConfigError
from edge_runtime.desk import Desk, ask
from edge_runtime.settings import load_settings
from edge_runtime.slots import LINK, NAMES, Slots, overtaken, settle, slots_of
from flawline import main
from tests.bundles import draw_part
from tests.graphs import write_bundle
from tests.processes import Process, until
from tests.signed import People, write_calibrated

CAMERA = '[[cameras]]\nid = "top"\nurl = "synthetic://line?seed=1&parts=2000&fps=20"\n'


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("bundles")
    return [write_calibrated(folder / f"bundle-{seed}", "part", 100 * seed) for seed in range(3)]


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "edge.toml"
    path.write_text(f'edge_id = "e"\nbundle = "slots/active"\nengine = "openvino"\nstate_dir = "state"\n{CAMERA}')
    return path


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str]:
    capsys.readouterr()
    code = main(["edge", *words])
    said = capsys.readouterr()
    return code, said.out + said.err


def test_a_first_bundle_a_second_and_one_step_back_without_an_edge(
    bundles: list[Path], config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, said = run(capsys, "update", str(bundles[0]), "--config", str(config))
    assert code == 0, said
    assert "slot a is active; no edge runs now" in said
    code, said = run(capsys, "update", str(bundles[1]), "--config", str(config))
    assert code == 0 and "slot b is active" in said, said
    assert load_settings(config).bundle_folders() == {1: tmp_path / "slots" / "b"}
    elsewhere = shutil.copytree(bundles[1], tmp_path / "another" / "path")
    code, said = run(capsys, "update", str(elsewhere), "--config", str(config))
    assert code == 0 and "holds this very bundle: nothing to do" in said, "known by its content"
    code, said = run(capsys, "update", "--rollback", "--config", str(config))
    assert code == 0 and "slot a is active" in said, said
    code, said = run(capsys, "update", str(bundles[1]), "--config", str(config))
    assert code == 0 and "slot b: holds this very bundle already" in said, said
    code, said = run(capsys, "slots", str(config))
    ids = [open_bundle(bundle).manifest.id for bundle in bundles]
    assert re.search(rf"a +part, {ids[0]}, draft", said) and re.search(rf"b  active  part, {ids[1]}, draft", said), said
    assert "no edge runs" in said


def test_what_cannot_serve_changes_nothing_and_says_why(
    bundles: list[Path], config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(capsys, "update", str(bundles[0]), "--config", str(config))[0] == 0
    damaged = shutil.copytree(bundles[1], tmp_path / "damaged")
    graph = next(damaged.glob("*.onnx"))
    graph.write_bytes(graph.read_bytes()[:-1] + b"?")
    liar = write_liar(tmp_path / "liar")
    uncalibrated = tmp_path / "uncalibrated"
    write_bundle(uncalibrated, [draw_part(number) for number in range(3)])
    cases = [
        (["update", str(uncalibrated)], f"flawline calibrate thresholds {uncalibrated}"),
        (["update", str(damaged)], "sha256"),
        (["update", str(tmp_path / "nowhere")], "no such folder"),
        (["update", str(liar)], "disagrees with training"),
        (["update"], "give a bundle's folder, or --rollback"),
        (["update", str(bundles[1]), "--recipe", "9"], "no recipe 9"),
    ]
    for words, reason in cases:
        code, said = run(capsys, *words, "--config", str(config))
        assert code == 2 and reason in said, (words, said)
        assert Slots(tmp_path / "slots").active == "a"
        assert held(tmp_path / "slots") == {"a": digest_of(bundles[0])}
    plain = tmp_path / "plain.toml"
    plain.write_text(config.read_text().replace("slots/active", str(bundles[0])))
    code, said = run(capsys, "update", str(bundles[1]), "--config", str(plain))
    assert code == 2 and 'write bundle = "slots/active"' in said, said


def held(root: Path) -> dict[str, str]:
    """The digest of each whole bundle in the slots; there is no other folder."""
    assert {path.name for path in root.iterdir() if path.is_dir()} <= {*NAMES, LINK, f".{LINK}"}
    return {name: digest_of(root / name) for name in NAMES if (root / name).exists()}


def digest_of(folder: Path) -> str:
    return open_bundle(folder).manifest.digest


def test_what_is_refused_leaves_both_slots_and_the_step_back(
    bundles: list[Path], config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    liar, root = write_liar(tmp_path / "liar"), tmp_path / "slots"
    code, said = run(capsys, "update", str(liar), "--config", str(config))
    assert code == 2 and "disagrees with training" in said, said
    assert held(root) == {} and Slots(root).active is None
    for bundle in bundles[:2]:
        assert run(capsys, "update", str(bundle), "--config", str(config))[0] == 0
    before = {"a": digest_of(bundles[0]), "b": digest_of(bundles[1])}
    for _ in range(2):
        code, said = run(capsys, "update", str(liar), "--config", str(config))
        assert code == 2 and "disagrees with training" in said, said
        assert held(root) == before and Slots(root).active == "b"
    code, said = run(capsys, "update", "--rollback", "--config", str(config))
    assert code == 0 and "slot a is active" in said, said
    assert held(root) == before


def write_liar(folder: Path) -> Path:
    """A calibrated bundle whose golden scores no engine reaches."""
    from contract.bundle import write_manifest

    manifest = open_bundle(write_calibrated(folder, "part", 700)).manifest
    golden = manifest.golden.model_copy(update={"scores": [score + 1 for score in manifest.golden.scores]})
    write_manifest(folder, manifest.model_copy(update={"golden": golden}))
    return folder


def test_in_production_an_unsigned_bundle_is_not_taken(
    bundles: list[Path], config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    people = People(tmp_path)
    config.write_text('mode = "production"\n' + config.read_text() + '[bundles]\ntrusted = "signers"\n')
    draft = shutil.copytree(bundles[0], tmp_path / "draft")
    code, said = run(capsys, "update", str(draft), "--config", str(config))
    assert code == 2 and "draft" in said, said
    assert Slots(tmp_path / "slots").active is None
    people.sign(draft)
    code, said = run(capsys, "update", str(draft), "--config", str(config))
    assert code == 0 and "released) copied" in said, said


def test_a_step_back_needs_a_slot_to_step_to(
    bundles: list[Path], config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for count in range(2):
        code, said = run(capsys, "update", "--rollback", "--config", str(config))
        assert code == 2 and "no step back" in said, said
        if not count:
            assert run(capsys, "update", str(bundles[0]), "--config", str(config))[0] == 0


STEPS = ("fsync", "rename", "replace", "symlink", "mkdir", "unlink", "rmdir")


def cut_short(slots: Slots, bundle: Path, steps: int) -> int:
    """The signal that ended a process which died after so many steps of an update; 0 where it came to its end."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    left = steps

    def deadly(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*words: Any, **named: Any) -> Any:
            nonlocal left
            left -= 1
            if left < 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*words, **named)

        return wrapped

    try:
        for name in STEPS:
            setattr(os, name, deadly(getattr(os, name)))
        with slots.alone():
            idle = slots.idle
            slots.put(bundle)
            slots.activate(idle)
            slots.end_update()
        os._exit(0)
    finally:
        os._exit(1)


def test_killed_at_any_step_the_link_names_a_whole_bundle(bundles: list[Path], tmp_path: Path) -> None:
    slots = Slots(tmp_path / "slots")
    with slots.alone():
        for bundle in bundles[:2]:
            idle = slots.idle
            slots.put(bundle)
            slots.activate(idle)
    digests = [digest_of(bundle) for bundle in bundles]
    found = set()
    for step in range(200):
        cut = Slots(shutil.copytree(slots.root, tmp_path / f"cut-{step}" / "slots", symlinks=True))
        ended = cut_short(cut, bundles[2], step)
        assert cut.active is not None
        serves = digest_of(cut.path(cut.active))
        found.add(serves)
        with cut.alone():  # the next one gets over what was left
            stands = {"a": digests[2] if serves == digests[2] else digests[0], "b": digests[1]}
            assert held(cut.root) == stands, "both as before, or the new one and the step back from it"
            idle = cut.idle
            cut.put(bundles[0])
            cut.activate(idle)
        assert digest_of(cut.root / LINK) == digests[0]
        if ended == 0:
            break
        assert ended == -signal.SIGKILL
    else:
        pytest.fail("it never came to its end")
    assert step > 10
    assert found == {digests[1], digests[2]}, "the old one, or the new one"


def test_a_full_disk_and_a_second_update_are_said(
    bundles: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = Slots(tmp_path / "slots")
    with slots.alone(), pytest.raises(ConfigError, match="another update is at work"), slots.alone():
        pass
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
        with pytest.raises(ConfigError, match="0 MiB are free and 64 MiB needed"):
            slots.put(bundles[0])
    (slots.root / LINK).symlink_to(bundles[0])
    with pytest.raises(ConfigError, match="expected a or b; remove the link"):
        _ = slots.active


class Edge:
    """A real edge process on the configuration; its host is never there."""

    def __init__(self, config: Path) -> None:
        self.config = config
        self.process = Process(config.with_suffix(".log"), "edge", "run", str(config))
        self.state_dir = load_settings(config).state_dir

    def text(self) -> str:
        return self.process.text()

    def wait_parts(self, more: int) -> None:
        """For so many further verdicts."""
        before = self._parts()
        until(lambda: self._parts() >= before + more, f"{more} further verdicts")

    def _parts(self) -> int:
        return len(re.findall(r"^top-\w+-\d+ ", self.text(), re.MULTILINE))

    def wait_inspecting(self) -> None:
        until(lambda: "running: every camera" in self.text() or not self.process.running(), "the edge runs")
        assert self.process.running(), self.text()[-3000:]


@pytest.fixture
def start(config: Path) -> Iterator[Callable[[], Edge]]:
    made: list[Edge] = []

    def begin() -> Edge:
        made.append(Edge(config))
        return made[-1]

    yield begin
    for edge in made:
        if edge.process.running():
            edge.process.kill()


def test_a_running_edge_takes_over_between_two_parts_and_steps_back(
    bundles: list[Path], config: Path, tmp_path: Path, start: Callable[[], Edge], capsys: pytest.CaptureFixture[str]
) -> None:
    from contract.event import HEADER, Result, Trigger
    from edge_runtime.spool import Spool

    assert run(capsys, "update", str(bundles[0]), "--config", str(config))[0] == 0
    edge = start()
    edge.wait_inspecting()
    code, said = run(capsys, "update", str(bundles[1]), "--config", str(config))
    assert code == 0 and "slot b took over between two parts" in said, said + edge.text()[-2000:]
    edge.wait_parts(2)
    code, said = run(capsys, "update", str(write_liar(tmp_path / "liar")), "--config", str(config))
    assert code == 2 and "the edge refuses: " in said and "what it ran with goes on" in said, said
    assert held(tmp_path / "slots") == {"a": digest_of(bundles[0]), "b": digest_of(bundles[1])}
    code, said = run(capsys, "update", str(bundles[0]), "--config", str(config))
    assert code == 0 and "slot a: holds this very bundle already" in said and "slot a took over" in said, said
    edge.wait_parts(2)
    code, said = run(capsys, "update", "--rollback", "--config", str(config))
    assert code == 0 and "slot b took over" in said, said
    edge.wait_parts(2)
    _, said = run(capsys, "slots", str(config))
    assert "the edge is running: recipe 1" in said
    assert run(capsys, "state", "--alive", str(config))[0] == 0
    assert edge.process.stop() == 3
    assert run(capsys, "state", "--alive", str(config))[0] == 3
    spool = Spool(edge.state_dir / "spool.sqlite")
    headers = [HEADER.validate_json(row.header) for row in spool.pending(0, 0, 10_000)]
    spool.close()
    results = [header for header in headers if isinstance(header, Result)]
    ids = [open_bundle(bundle).manifest.id for bundle in bundles]
    changes = [name for name, _ in itertools.groupby(result.bundle_id for result in results)]
    assert changes[-3:] == [ids[1], ids[0], ids[1]], "each took over at one moment"
    assert {each.part_id for each in headers if isinstance(each, Trigger)} == {each.part_id for each in results}
    assert Slots(tmp_path / "slots").active == "b"


def test_a_recipe_that_does_not_serve_is_updated_and_does_not_take_over(
    bundles: list[Path], config: Path, tmp_path: Path, start: Callable[[], Edge], capsys: pytest.CaptureFixture[str]
) -> None:
    config.write_text(config.read_text() + '[[recipes]]\nnumber = 2\nbundle = "slots-2/active"\n')
    for words in ([str(bundles[0])], [str(bundles[1]), "--recipe", "2"]):
        assert run(capsys, "update", *words, "--config", str(config))[0] == 0
    edge = start()
    edge.wait_inspecting()
    code, said = run(capsys, "update", str(bundles[2]), "--recipe", "2", "--config", str(config))
    assert code == 0 and "slot b is active; recipe 1 serves now" in said, said
    assert Slots(tmp_path / "slots-2").active == "b"
    found = ask(edge.state_dir, 5.0, what="status")
    assert found is not None and found.bundle_id == open_bundle(bundles[0]).manifest.id


def test_the_desk_outlives_nonsense_and_refuses_what_is_not_its_own(config: Path, tmp_path: Path) -> None:
    settings = load_settings(config)
    settings.state_dir.mkdir()
    desk = Desk(settings, "run")
    desk.start()
    try:
        mode = (settings.state_dir / "desk.sock").stat().st_mode
        assert mode & 0o077 == 0
        cases: list[tuple[dict[str, Any], str]] = [
            ({"what": "format the disk"}, "not understood"),
            ({"what": "update", "number": 1, "slot": "/somewhere/else"}, "is not the idle slot"),
            ({"what": "update", "number": 7}, "no recipe 7"),
            ({"what": "update", "padding": "x" * 100_000}, "not understood"),
        ]
        for call, reason in cases:
            answer = ask(settings.state_dir, 5.0, **call)
            assert (
                answer is not None
                and answer.outcome != "ok"
                and (reason in (answer.reason or "") or len(str(call)) > 1000)
            )
        answer = ask(settings.state_dir, 5.0, what="status")
        assert answer is not None and (answer.outcome, answer.state) == ("ok", "")
    finally:
        desk.stop()
    assert ask(settings.state_dir, 5.0, what="status") is None


def test_a_slot_that_another_update_reached_at_the_last_moment_does_not_take_over(
    bundles: list[Path], config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = load_settings(config)
    slots = slots_of(settings, 1)
    with slots.alone():
        slots.put(bundles[0])
        slots.activate("a")
        slots.put(bundles[1])
    judge = SimpleNamespace(slot=slots.path("b"), number=1, bundle=open_bundle(slots.path("b")))
    assert overtaken(judge, settings) is None  # type: ignore[arg-type]
    activate = Slots.activate

    def swapped(self: Slots, name: str) -> None:
        monkeypatch.setattr(Slots, "activate", activate)
        self.try_to_end()  # as the next update does, while the link is not moved yet
        shutil.copytree(bundles[0], slots.path("b"), dirs_exist_ok=True)
        activate(self, name)

    monkeypatch.setattr(Slots, "activate", swapped)
    with pytest.raises(BundleError, match="was changed while it was loaded"):
        settle(judge, settings)  # type: ignore[arg-type]
    assert slots.active == "a"
    shutil.rmtree(slots.path("b"))
    with slots.alone():
        slots.put(bundles[1])
    judge.bundle = open_bundle(slots.path("b"))
    settle(judge, settings)  # type: ignore[arg-type]
    assert slots.active == "b"
