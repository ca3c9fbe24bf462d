"""Every fault but kills at named points: what is done to a line while parts pass, and what it needs to be done.

After each of them every trigger has one result, one miss or stands in a declared gap, no part moved the gate twice,
and no PASS was read at the registers that was none.
"""

from __future__ import annotations

import os
import random
import resource
import shutil
import signal
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import pytest

from edge_runtime.engines.cuda import _found
from tests.chaos.clocks import Clock
from tests.chaos.disks import Disk, command
from tests.chaos.scene import Count, Gear, Scene
from tests.chaos.wire import Wire
from tests.paper_box import PaperBox
from tests.processes import children, freeze

SECONDS_A_FAULT = 180
"""Of the line, so that it does not end before the faults do on a machine that is busy."""

PARTS_A_SECOND = 3


class Bend(Gear):
    """A folder of files that make the edge's engine hang, or its camera lie; ``variable`` tells its processes of it."""

    def __init__(self, variable: str, value: str) -> None:
        self._variable, self._value = variable, value

    def lay(self, scene: Scene) -> None:
        self.folder = scene.folder / self._variable.lower()
        self.folder.mkdir()

    def environment(self, side: str) -> dict[str, str]:
        return {self._variable: self._value.format(self.folder)} if side == "edge" else {}


class Plans(Gear):
    """The edge infers by plans that its box keeps in a cache; the card is of paper."""

    def lay(self, scene: Scene) -> None:
        self._patch = pytest.MonkeyPatch()
        self.cache = PaperBox(scene.folder, self._patch).cache / "engines"
        file = scene.folder / "edge.toml"
        file.write_text('engine = "tensorrt"\n' + file.read_text())

    def clear(self) -> None:
        self._patch.undo()


class Stage(NamedTuple):
    """A scene, the gear under it by name, chance, and how much longer than in the short run the faults last."""

    scene: Scene
    gear: dict[str, Gear]
    rng: random.Random
    longer: float

    def disk(self, side: str) -> Disk:
        found = self.gear[f"{side} disk"]
        assert isinstance(found, Disk)
        return found

    @property
    def wire(self) -> Wire:
        found = self.gear["wire"]
        assert isinstance(found, Wire)
        return found

    def bend(self, what: str) -> Path:
        found = self.gear[what]
        assert isinstance(found, Bend)
        return found.folder

    @property
    def plans(self) -> Path:
        found = self.gear["plans"]
        assert isinstance(found, Plans)
        return found.cache

    def step(self, side: str, hours: float) -> None:
        found = self.gear[f"{side} clock"]
        assert isinstance(found, Clock)
        found.step(hours)


def host_away(stage: Stage) -> None:
    """The host's process is gone for a while; the edge keeps what happens meanwhile."""
    stage.scene.kill("host", hold=True)
    stage.scene.pass_time(4 * stage.longer)
    stage.scene.release("host")


def host_frozen(stage: Stage) -> None:
    """The host stands still and goes on as if nothing had been: what lay in its sockets is old by then."""
    host = stage.scene.running["host"].pid
    freeze(host)
    stage.scene.pass_time(2.5 * stage.longer)
    os.kill(host, signal.SIGCONT)


def network_cut(stage: Stage) -> None:
    """No packet passes and nobody is told: both ends of a connection believe in it."""
    stage.wire.loss = 1.0
    stage.scene.pass_time(4 * stage.longer)
    stage.wire.mend()


def network_cut_in_a_message(stage: Stage) -> None:
    """The packets end at a random byte of what the edge sends, in the middle of a message as likely as not."""
    for _ in range(2):
        stage.wire.cut_after = stage.rng.randrange(200, 20_000)
        stage.scene.wait(lambda: stage.wire.cut_after == 0, "the wire is cut")
        stage.scene.pass_time(stage.longer)
        stage.wire.mend()
        stage.scene.flow(1)


def network_bad(stage: Stage) -> None:
    """Packets are late, out of order, lost and doubled."""
    wire = stage.wire
    wire.loss, wire.twice, wire.delay_s = 0.1, 0.05, (0.01, 0.15)
    stage.scene.pass_time(5 * stage.longer)
    wire.mend()


def network_slow(stage: Stage) -> None:
    """Every packet comes, over the line's deadline late."""
    stage.wire.delay_s = (1.2, 1.3)
    stage.scene.pass_time(5 * stage.longer)
    stage.wire.mend()


def edge_disk_full(stage: Stage) -> None:
    """Not a byte fits where the edge spools."""
    _disk_full(stage, "edge")


def host_disk_full(stage: Stage) -> None:
    """Not a byte fits where the host keeps ledger and store."""
    _disk_full(stage, "host")


def _disk_full(stage: Stage, side: str) -> None:
    stage.disk(side).fill()
    stage.scene.pass_time(4 * stage.longer)
    stage.disk(side).free()


def edge_disk_read_only(stage: Stage) -> None:
    """The edge's file system fails and is read-only until it was repaired."""
    _disk_read_only(stage, "edge")


def host_disk_read_only(stage: Stage) -> None:
    """The host's file system fails and is read-only until it was repaired."""
    _disk_read_only(stage, "host")


def _disk_read_only(stage: Stage, side: str) -> None:
    scene = stage.scene
    stage.disk(side).fail()
    scene.pass_time(3 * stage.longer)
    scene.held.add(side)
    if scene.running[side].running():
        scene.kill(side)
    stage.disk(side).repair()
    scene.release(side)


def edge_power_cut(stage: Stage) -> None:
    """The edge finds its disk as it was at a random moment, the spool's log torn at a random byte, in another boot."""
    _power_cut(stage, "edge", "spool.sqlite-wal")


def host_power_cut(stage: Stage) -> None:
    """The host finds its disk as it was at a random moment, in another boot."""
    _power_cut(stage, "host", None)


def _power_cut(stage: Stage, side: str, log: str | None) -> None:
    synced = 0 if log is None else stage.disk(side).size(log)  # by the time of the cut, whose disk keeps its promises
    stage.scene.pass_time(stage.rng.uniform(0.5, 1.5))
    stage.disk(side).cut_power(stage.scene, log, synced, stage.rng)
    stage.scene.pass_time(2.0)  # a box takes longer: the belt's view is empty of what was in it
    stage.scene.release(side)


def clock_steps(stage: Stage) -> None:
    """Both sides' clocks are set hours forward and back, apart from each other; the edge dies in the middle of it."""
    scene = stage.scene
    stage.step("edge", 5)
    scene.flow(2)
    stage.step("host", -30)
    stage.step("edge", -9)
    scene.flow(1)
    scene.kill("edge")
    stage.step("edge", 14)
    scene.flow(2)
    stage.step("host", 3)
    stage.step("edge", stage.rng.uniform(-40, -20))


def camera_hangs(stage: Stage) -> None:
    """The camera's process stands still in the middle of whatever it did."""
    for camera in children(stage.scene.running["edge"].pid):
        freeze(camera)
    stage.scene.wait(lambda: "camera" in stage.scene.trouble(), "the host says that a camera is silent")
    stage.scene.wait(lambda: not stage.scene.trouble(), "another process reads the camera")


def camera_lies(stage: Stage) -> None:
    """Frames larger and smaller than the camera announced, and larger than any slot."""
    lie = stage.bend("camera") / "lie"
    for times in (1.5, 0.5, 8.0):
        lie.write_text(str(times))
        stage.scene.wait(lambda: "camera" in stage.scene.trouble(), "the host says that the camera has failed")
        lie.unlink()
        stage.scene.wait(lambda: not stage.scene.trouble(), "the camera is believed again")


def engine_hangs(stage: Stage) -> None:
    """Inference does not come back; the line is told, and a watchdog ends the process."""
    scene, hang = stage.scene, stage.bend("engine") / "hang"
    hang.touch()
    scene.wait(lambda: "silent" in scene.trouble() and not scene.plc.inspected, "the line is not inspected")
    hang.unlink()
    scene.kill("edge")


def engine_cache_corrupt(stage: Stage) -> None:
    """Every file of the engine cache is garbage, cut short, or of no bytes, when the edge starts."""
    scene, rng = stage.scene, stage.rng
    for spoil in (lambda data: rng.randbytes(len(data)), lambda data: data[: rng.randrange(len(data))], lambda _: b""):
        scene.kill("edge", hold=True)
        files = [file for file in stage.plans.rglob("*") if file.is_file() and file.stat().st_size]
        assert files, f"{stage.plans} holds no plan"
        for file in files:
            file.write_bytes(spoil(file.read_bytes()))
        scene.release("edge")
        scene.flow(1)


def no_memory_for_frames(stage: Stage) -> None:
    """The edge starts where the system gives no memory for frames, ends with that reason, and starts where it does."""
    scene = stage.scene
    scene.kill("edge", hold=True)
    edge = scene.start("edge", prefix=("prlimit", "--fsize=50000000"))  # of a memory file, too
    code = edge.wait(180)
    assert code not in (0, -9), scene.told(f"an edge without memory for frames ended with {code}")
    said = "shared memory for frames" in edge.text()
    assert said, scene.told("it does not say why it ended")
    scene.release("edge")


def no_shared_memory(stage: Stage) -> None:
    """/dev/shm is full to the last byte when the edge starts: nothing of it may need it."""
    scene = stage.scene
    scene.kill("edge", hold=True)
    script = "mount -t tmpfs -o size=64k none /dev/shm && (cat /dev/zero >/dev/shm/full 2>/dev/null || true)"
    scene.start("edge", prefix=("unshare", "--mount", "sh", "-c", f'{script} && exec "$@"', "sh"))
    scene.flow(2)
    scene.release("edge")


def memory_gone(stage: Stage) -> None:
    """The running edge gets no more memory from the system for a while."""
    scene = stage.scene
    edge = scene.running["edge"].pid
    pages = int(Path(f"/proc/{edge}/statm").read_text().split()[0])
    before = resource.prlimit(edge, resource.RLIMIT_AS)
    resource.prlimit(edge, resource.RLIMIT_AS, (pages * resource.getpagesize(), before[1]))
    scene.pass_time(3 * stage.longer)
    if scene.running["edge"].pid == edge:
        resource.prlimit(edge, resource.RLIMIT_AS, before)


class Fault(NamedTuple):
    """What is done, the gear that it needs, and the kills that belong to it."""

    strike: Callable[[Stage], None]
    gear: tuple[str, ...] = ()


FAULTS = {
    "host away": Fault(host_away),
    "host frozen": Fault(host_frozen),
    "network cut, nobody is told": Fault(network_cut, ("wire",)),
    "network cut in a message": Fault(network_cut_in_a_message, ("wire",)),
    "network loses, delays, doubles packets": Fault(network_bad, ("wire",)),
    "network slower than the deadline": Fault(network_slow, ("wire",)),
    "edge: disk full": Fault(edge_disk_full, ("edge disk",)),
    "edge: disk read-only": Fault(edge_disk_read_only, ("edge disk",)),
    "edge: power cut, log torn at a random byte": Fault(edge_power_cut, ("edge disk",)),
    "host: disk full": Fault(host_disk_full, ("host disk",)),
    "host: disk read-only": Fault(host_disk_read_only, ("host disk",)),
    "host: power cut": Fault(host_power_cut, ("host disk",)),
    "clocks set by hours on both sides": Fault(clock_steps, ("edge clock", "host clock")),
    "camera hangs": Fault(camera_hangs),
    "camera lies about its size": Fault(camera_lies, ("camera",)),
    "engine hangs": Fault(engine_hangs, ("engine",)),
    "engine cache corrupt": Fault(engine_cache_corrupt, ("plans",)),
    "no memory for frames": Fault(no_memory_for_frames),
    "no shared memory": Fault(no_shared_memory, ("mounts",)),
    "no more memory while it runs": Fault(memory_gone),
}
"""Every fault that is no kill at a named point."""

GEAR: dict[str, Callable[[int], Gear]] = {
    "wire": Wire,
    "edge disk": lambda seed: Disk("edge"),
    "host disk": lambda seed: Disk("host"),
    "edge clock": lambda seed: Clock("edge"),
    "host clock": lambda seed: Clock("host"),
    "camera": lambda seed: Bend("FLAWLINE_BEND_CAMERA", "{}"),
    "engine": lambda seed: Bend("FLAWLINE_HANG", "edge_runtime.engines.base:Engine.finish:{}/hang"),
    "plans": lambda seed: Plans(),
    "mounts": lambda seed: Gear(),
}
PROGRAMS = {
    "wire": ("ip",), "edge disk": ("mkfs.ext4", "e2fsck"), "host disk": ("mkfs.ext4", "e2fsck"),
    "edge clock": ("gcc",), "plans": ("gcc",), "host clock": ("gcc",),
}  # fmt: skip


def absent(gear: str) -> str | None:
    """The program that this gear needs and this machine has not."""
    if gear == "plans" and not _found("cuda.bindings"):
        return "cuda-bindings"
    return next((name for name in PROGRAMS.get(gear, ()) if shutil.which(name) is None), None)


def forbidden(gear: str, folder: Path) -> str | None:
    """Why this machine does not let us have the gear, tried out in ``folder``; None where it does."""
    tries: dict[str, Callable[[Path], None]] = {
        "wire": _try_wire, "edge disk": _try_disk, "host disk": _try_disk, "mounts": _try_mount,
    }  # fmt: skip
    if gear not in tries:
        return None
    if os.geteuid() != 0:
        return f"{gear}: needs root"
    try:
        tries[gear](folder)
    except (RuntimeError, OSError) as error:
        return f"{gear}: {error}"
    return None


def _try_mount(folder: Path) -> None:
    command("unshare", "--mount", "mount", "-t", "tmpfs", "none", folder)


def _try_wire(_folder: Path) -> None:
    name = f"flawline-try-{os.getpid()}"
    command("ip", "netns", "add", name)
    command("ip", "netns", "delete", name)
    Path("/dev/net/tun").open("r+b", buffering=0).close()


def _try_disk(folder: Path) -> None:
    image, at = folder / "try.img", folder / "try"
    at.mkdir(exist_ok=True)
    with image.open("wb") as file:
        file.truncate(8 << 20)
    command("mkfs.ext4", "-q", image)
    command("mount", "-o", "loop", image, at)
    device = command("findmnt", "--noheadings", "--output", "SOURCE", at).strip().rpartition("/")[2]
    command("umount", at)
    if not Path("/sys/fs/ext4/features").exists():
        raise RuntimeError(f"/sys/fs/ext4 is missing, so that {device} cannot be made to fail")


def strike(folder: Path, bundle: Path, names: Sequence[str], seed: int, longer: float = 1.0) -> tuple[Count, int]:
    """Do the faults one after another to one line while parts pass; the account, and how many processes were killed."""
    gear = {name: GEAR[name](seed) for name in dict.fromkeys(need for each in names for need in FAULTS[each].gear)}
    seconds = SECONDS_A_FAULT * (1 + len(names)) + 5 * longer * len(names)
    parts = int(PARTS_A_SECOND * seconds)
    scene = Scene(folder, bundle, seed, parts, list(gear.values()))
    stage = Stage(scene, gear, random.Random(seed), longer)

    def work(scene: Scene) -> None:
        for number, name in enumerate(names):
            if number:
                scene.flow(2)
            scene.note(name)
            FAULTS[name].strike(stage)

    return scene.run(work), scene.kills
