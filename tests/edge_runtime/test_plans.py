"""The engine cache on real files, with real processes: what does not fit is built anew, and nobody is left hanging."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.engines import plan_process, plans
from edge_runtime.engines.plan_process import Request, run
from edge_runtime.engines.plans import PlanKey, obtain
from edge_runtime.engines.tiny import GRAPH, SIDE
from edge_runtime.errors import EngineError
from tests.processes import until

KEY = PlanKey(
    graph_sha256=hashlib.sha256(GRAPH).hexdigest(),
    library="tensorrt-rtx",
    library_version="1.7.1.116",
    card="NVIDIA RTX A2000",
    capability="8.6",
    driver="570.1",
    cuda="12.8",
    input_shape=[1, SIDE, SIDE, 1],
    options={"workspace_mb": 64, "tf32": 0, "builds_for": "8.6"},
)


class Builder:
    """Writes a plan that tells how often it was asked."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, target: Path) -> None:
        self.calls += 1
        target.write_bytes(f"plan {self.calls} ".encode() * 100)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "engines"


@pytest.fixture
def build() -> Builder:
    return Builder()


def files(folder: Path) -> dict[str, Path]:
    return {path.suffix: path for path in folder.iterdir()}


def test_a_plan_is_built_once_and_kept_for_its_owner_alone(folder: Path, build: Builder) -> None:
    first, second = obtain(folder, KEY, build), obtain(folder, KEY, build)
    assert (first.built, second.built, build.calls) == (True, False, 1)
    assert first.data == second.data == b"plan 1 " * 100
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    found = files(folder)
    assert set(found) == {".plan", ".json", ".lock"}
    assert {stat.S_IMODE(path.stat().st_mode) for path in found.values()} == {0o600}
    sidecar = json.loads(found[".json"].read_text())
    assert sidecar["key"] == KEY.model_dump(mode="json")
    assert sidecar["plan_sha256"] == hashlib.sha256(first.data).hexdigest()


OTHERS: dict[str, Any] = {
    "graph_sha256": "0" * 64,
    "library": "tensorrt",
    "library_version": "1.8.0",
    "card": "NVIDIA RTX 4000",
    "capability": "8.9",
    "driver": "580.2",
    "cuda": "13.0",
    "input_shape": [2, SIDE, SIDE, 1],
    "options": {"workspace_mb": 64, "tf32": 1, "builds_for": "8.6"},
}


@pytest.mark.parametrize("field", PlanKey.model_fields)
def test_every_field_of_the_key_counts(field: str, folder: Path, build: Builder) -> None:
    obtain(folder, KEY, build)
    other = KEY.model_copy(update={field: OTHERS[field]})
    assert obtain(folder, other, build).built
    assert build.calls == 2


def test_an_upgrade_says_what_changed_and_removes_what_it_outdates(
    folder: Path, build: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    obtain(folder, KEY, build)
    other_card = KEY.model_copy(update={"card": "NVIDIA RTX 4000"})
    obtain(folder, other_card, build)
    upgraded = KEY.model_copy(update={"driver": "580.2", "library_version": "1.8.0"})
    with caplog.at_level("INFO"):
        obtain(folder, upgraded, build)
    assert "no plan for what has changed: library_version 1.7.1.116 -> 1.8.0, driver 570.1 -> 580.2" in caplog.text
    assert f"{KEY.digest()}.plan is outdated and removed" in caplog.text
    assert {path.stem for path in folder.glob("*.plan")} == {upgraded.digest(), other_card.digest()}


def cut(plan: Path, sidecar: Path) -> None:
    plan.write_bytes(plan.read_bytes()[:-50])


def flip(plan: Path, sidecar: Path) -> None:
    data = bytearray(plan.read_bytes())
    data[len(data) // 2] ^= 1
    plan.write_bytes(data)


def grow(plan: Path, sidecar: Path) -> None:
    plan.write_bytes(plan.read_bytes() + b"x")


def lose_plan(plan: Path, sidecar: Path) -> None:
    plan.unlink()


def lose_sidecar(plan: Path, sidecar: Path) -> None:
    sidecar.unlink()


def garble_sidecar(plan: Path, sidecar: Path) -> None:
    sidecar.write_bytes(b"{")


def nest_sidecar(plan: Path, sidecar: Path) -> None:
    sidecar.write_bytes(b"[" * 60_000)


def bloat_sidecar(plan: Path, sidecar: Path) -> None:
    sidecar.write_bytes(b" " * (1 << 17))


def other_format(plan: Path, sidecar: Path) -> None:
    sidecar.write_text(sidecar.read_text().replace("flawline.plan/1", "flawline.plan/9"))


def foreign_key(plan: Path, sidecar: Path) -> None:
    sidecar.write_text(sidecar.read_text().replace("RTX A2000", "RTX 5090"))


def foreign_plan(plan: Path, sidecar: Path) -> None:
    """A whole entry of somebody else, put under this name."""
    plan.write_bytes(b"another plan")
    content = json.loads(sidecar.read_text())
    content["key"]["driver"] = "1.0"
    content["plan_sha256"], content["size"] = hashlib.sha256(b"another plan").hexdigest(), 12
    sidecar.write_text(json.dumps(content))


def writable_by_others(plan: Path, sidecar: Path) -> None:
    plan.chmod(0o666)


def link(plan: Path, sidecar: Path) -> None:
    elsewhere = plan.parent.parent / "elsewhere.plan"
    plan.rename(elsewhere)
    plan.symlink_to(elsewhere)


def pipe(plan: Path, sidecar: Path) -> None:
    sidecar.unlink()
    sidecar.symlink_to("/dev/zero")


FAULTS: dict[Callable[[Path, Path], None], str] = {
    cut: r"has 650 bytes, 700 were written",
    flip: "its sha256 differs",
    grow: "has 701 bytes",
    lose_plan: "plan is missing",
    lose_sidecar: "no plan of graph",
    garble_sidecar: "not readable as one",
    nest_sidecar: "not readable as one",
    bloat_sidecar: "at most 65536 are plausible",
    other_format: "not readable as one",
    foreign_key: "is of another engine: {'card': 'NVIDIA RTX 5090 -> NVIDIA RTX A2000'}",
    foreign_plan: "is of another engine: {'driver': '1.0 -> 570.1'}",
    writable_by_others: "not a file that this user alone can write to",
    link: "cannot be opened",
    pipe: "cannot be opened",
}


@pytest.mark.parametrize("spoil", FAULTS, ids=lambda spoil: spoil.__name__)
def test_what_does_not_fit_is_built_anew_and_said(
    spoil: Callable[[Path, Path], None], folder: Path, build: Builder, caplog: pytest.LogCaptureFixture
) -> None:
    obtain(folder, KEY, build)
    spoil(folder / f"{KEY.digest()}.plan", folder / f"{KEY.digest()}.json")
    again = obtain(folder, KEY, build)
    assert again.built and again.data == b"plan 2 " * 100
    assert FAULTS[spoil] in caplog.text and "the plan is built" in caplog.text
    assert not obtain(folder, KEY, build).built, "and is kept"


def test_a_builder_that_fails_leaves_nothing(folder: Path, build: Builder) -> None:
    def fail(target: Path) -> None:
        target.write_bytes(b"half a plan")
        raise EngineError("the card is gone")

    with pytest.raises(EngineError, match="the card is gone"):
        obtain(folder, KEY, fail)
    assert set(files(folder)) == {".lock"}
    with pytest.raises(EngineError, match="a plan of 0 bytes"):
        obtain(folder, KEY, lambda target: None)
    assert obtain(folder, KEY, build).built


def test_a_folder_that_others_can_write_to_is_refused(folder: Path, build: Builder) -> None:
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(EngineError, match=r"not a folder that this user alone can write to .* mode 777.* chmod 700"):
        obtain(folder, KEY, build)
    folder.rmdir()
    folder.symlink_to(folder.parent)
    with pytest.raises(EngineError, match="not a folder that this user alone"):
        obtain(folder, KEY, build)
    folder.unlink()
    folder.write_text("a file")
    with pytest.raises(EngineError, match="the engine cache cannot be written"):
        obtain(folder, KEY, build)
    assert build.calls == 0


def test_the_cache_lies_where_the_service_or_the_user_keeps_such(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHE_DIRECTORY", "/var/cache/flawline:/other")
    assert plans.cache_folder() == Path("/var/cache/flawline/engines")
    monkeypatch.delenv("CACHE_DIRECTORY")
    monkeypatch.setenv("XDG_CACHE_HOME", "/home/a/cache")
    assert plans.cache_folder() == Path("/home/a/cache/flawline/engines")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert plans.cache_folder() == Path.home() / ".cache/flawline/engines"


# A process that builds the key slowly: says that it has begun, then waits for leave to go on.
SLOW = """
import sys, time
from pathlib import Path
from edge_runtime.engines.plans import PlanKey, obtain
folder, key = Path(sys.argv[1]), PlanKey.model_validate_json(sys.argv[2])
def build(target):
    with (folder.parent / "builds").open("a") as file:
        file.write("build\\n")
    target.write_bytes(b"begun")
    while not (folder.parent / "leave").exists():
        time.sleep(0.01)
    target.write_bytes(b"slow plan " * 50)
plan = obtain(folder, key, build, 60.0)
print(plan.built, len(plan.data))
"""


def slow(folder: Path) -> subprocess.Popen[str]:
    words = [sys.executable, "-c", SLOW, str(folder), KEY.model_dump_json()]
    return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)


def builds(folder: Path) -> int:
    log = folder.parent / "builds"
    return len(log.read_text().splitlines()) if log.exists() else 0


def test_of_two_processes_one_builds_and_both_have_the_plan(folder: Path) -> None:
    both = [slow(folder), slow(folder)]
    until(lambda: builds(folder) == 1, "one of them builds")
    (folder.parent / "leave").touch()
    said = sorted(process.communicate(timeout=60)[0].strip() for process in both)
    assert said == ["False 500", "True 500"]
    assert builds(folder) == 1


def test_a_killed_builder_leaves_neither_lock_nor_half_a_plan(folder: Path, build: Builder) -> None:
    process = slow(folder)
    until(lambda: list(folder.glob(f".{KEY.digest()}.*")), "it builds")
    with pytest.raises(EngineError, match="another process has been building this engine for 0 s"):
        obtain(folder, KEY, build, wait_s=0.2)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=20)
    assert obtain(folder, KEY, build, wait_s=20).data == b"plan 1 " * 100
    assert set(files(folder)) == {".plan", ".json", ".lock"}


# The real child: TensorRT-RTX's own parser and builder, no graphics card.


@pytest.fixture
def request_(tmp_path: Path) -> Request:
    pytest.importorskip("tensorrt_rtx_bindings", reason="TensorRT-RTX's wheels are not installed")
    graph = tmp_path / "tiny.onnx"
    graph.write_bytes(GRAPH)
    return Request(
        task="build",
        engine="tensorrt-rtx",
        graph=graph,
        plan=tmp_path / "tiny.plan",
        input_shape=(1, SIDE, SIDE, 1),
        workspace_mb=64,
        capability="8.6",
    )


def test_a_child_builds_a_real_plan_for_the_cache(folder: Path, request_: Request) -> None:
    def build(target: Path) -> None:
        run(request_.model_copy(update={"plan": target}), 120)

    first, second = obtain(folder, KEY, build), obtain(folder, KEY, build)
    assert first.built and not second.built and first.data == second.data
    assert len(first.data) > 1000


def test_a_child_that_refuses_says_why(request_: Request) -> None:
    request_.graph.write_bytes(b"no graph at all")
    with pytest.raises(EngineError, match=r"^tensorrt-rtx 1\.\S+ refuses the graph: .*Failed to parse"):
        run(request_, 120)
    request_.graph.write_bytes(GRAPH)
    with pytest.raises(EngineError, match=r"cannot build the graph: .*9"):
        run(request_.model_copy(update={"input_shape": (1, 9, 9, 1)}), 120)
    missing = request_.model_copy(update={"graph": request_.graph.with_name("none.onnx")})
    with pytest.raises(EngineError, match=r"ended with code 1 and no answer: FileNotFoundError.*none\.onnx"):
        run(missing, 120)


def test_trying_a_plan_without_a_driver_is_a_sentence(request_: Request, monkeypatch: pytest.MonkeyPatch) -> None:
    if Path("/proc/driver/nvidia").exists():
        pytest.skip("there is a driver here")
    run(request_, 120)
    with pytest.raises(EngineError, match="no NVIDIA driver"):
        run(request_.model_copy(update={"task": "try"}), 120)


# What becomes of the parent when its child misbehaves: a real child, broken on purpose as it starts.
BROKEN = {
    "crash": ("import ctypes; ctypes.string_at(0)", r"crashed \(SIGSEGV\): "),
    "abort": ("import os; os.abort()", r"crashed \(SIGABRT\)"),
    "silence": ("import os; os._exit(0)", "ended with code 0 and no answer: it said nothing"),
    "hang": ("import threading; threading.Event().wait()", r"took more than 2 s and was ended"),
    "flood": ("import os, sys; os.write(2, b'x' * 3_000_000); os._exit(5)", "ended with code 5 and no answer: xxx"),
}


@pytest.mark.parametrize("kind", BROKEN)
def test_the_parent_survives_its_child(kind: str, request_: Request, tmp_path: Path) -> None:
    script, said = BROKEN[kind]
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "sitecustomize.py").write_text(script)
    path = os.pathsep.join([str(tmp_path / "broken"), *filter(None, [os.environ.get("PYTHONPATH")])])
    with pytest.raises(EngineError, match=said):
        run(request_, 2.0 if kind == "hang" else 60.0, {"PYTHONPATH": path})


def test_the_builder_dies_with_its_parent(request_: Request, tmp_path: Path) -> None:
    """A killed edge must not leave a process behind that keeps the card busy."""
    (tmp_path / "slow").mkdir()
    (tmp_path / "slow" / "slow_builder.py").write_text(
        "import os, sys, threading\n"
        "import edge_runtime.engines.plan_process as child\n"
        "def wait(request):\n"
        f"    open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid()))\n"
        "    threading.Event().wait()\n"
        "child._work = wait\n"
        "child.main()\n"
    )
    script = (
        "import sys, edge_runtime.engines.plan_process as parent\n"
        "request = parent.Request.model_validate_json(sys.argv[1])\n"
        "parent.CHILD = [sys.executable, sys.argv[2]]\n"
        "parent.run(request, 100)\n"
    )
    words = [sys.executable, "-c", script, request_.model_dump_json(), str(tmp_path / "slow" / "slow_builder.py")]
    parent = subprocess.Popen(words)
    until(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text(), "the child works")
    child = int((tmp_path / "pid").read_text())
    parent.kill()
    parent.wait(20)
    until(lambda: not _alive(child), "the child has gone with its parent")


def _alive(pid: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_limits_leave_room_for_a_slow_box() -> None:
    assert plans.WAIT_S > plan_process.BUILD_S + plan_process.TRY_S
