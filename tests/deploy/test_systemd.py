"""A real systemd as process 1 of a namespace: installed from the wheelhouse, both units start, hang and come back."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.needs import lacking
from tests.processes import TOUCHING, children, until

SYSTEMD = Path("/lib/systemd/systemd")
TOOLS = ("unshare", "nsenter", "pivot_root", "systemctl", "setpriv", "ip")
WITHIN_S = 600.0
"""For one step on a busy machine; the watchdogs themselves take 45 and 60 s."""

# The box is this machine's root with a layer of memory over it: what is installed there is gone with it. /sys and
# /proc/sys cannot be written, so that this systemd changes nothing outside of its namespaces.
BOOT = """
set -eu
mount --make-rprivate /
mount -t tmpfs tmpfs "$BOX"
mkdir "$BOX/upper" "$BOX/work" "$BOX/root"
mount -t overlay overlay -o "lowerdir=/,upperdir=$BOX/upper,workdir=$BOX/work" "$BOX/root"
cd "$BOX/root"
mount -t proc proc proc
mount --bind proc/sys proc/sys
mount -o remount,ro,bind proc/sys
mount -t sysfs -o ro sysfs sys
mount -t cgroup2 cgroup2 sys/fs/cgroup
mount -t tmpfs -o mode=755 tmpfs dev
for node in null zero full random urandom tty; do touch dev/$node; mount --bind /dev/$node dev/$node; done
mkdir dev/pts dev/shm
mount -t devpts devpts dev/pts -o newinstance,ptmxmode=666
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
mount -t tmpfs tmpfs dev/shm
mount -t tmpfs tmpfs run
mount -t tmpfs tmpfs tmp
mkdir -p media/stick/wheelhouse media/stick/washer old
mount --bind "$WHEELHOUSE" media/stick/wheelhouse
mount --bind "$BUNDLE" media/stick/washer
pivot_root . old
umount -l old
ip link set lo up
cd /etc/systemd/system
printf '[Unit]\\nRequires=basic.target\\nAfter=basic.target\\n' > box.target
ln -sf /dev/null modprobe@.service
export container=flawline
exec /lib/systemd/systemd --system --unit=box.target --log-target=null --show-status=no
"""
EDGE = """edge_id = "edge-1"
bundle = "/var/lib/flawline/slots/active"
state_dir = "/var/lib/flawline/edge"
deadline_ms = 60000
[spool]
max_mb = 64
[[cameras]]
id = "top"
url = "synthetic://line?seed=5&parts=100000&fps=10"
"""
SUMMARY = """
import json, urllib.request
print(json.dumps(json.load(urllib.request.urlopen("http://127.0.0.1:8765/api/summary"))))
"""


class Box:
    """A machine of its own but for the kernel. Whoever makes one closes it."""

    def __init__(self, folder: Path, wheelhouse: Path, bundle: Path, hierarchy: Path) -> None:
        self.log = folder / "box.log"
        self._group = hierarchy / f"flawline-box-{os.getpid()}"
        self._group.mkdir()
        (folder / "box").mkdir()
        words = ["unshare", "--cgroup", "--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--net"]
        places = {"BOX": folder / "box", "WHEELHOUSE": wheelhouse, "BUNDLE": bundle, "GROUP": self._group}
        with self.log.open("wb") as log:
            self._popen = subprocess.Popen(
                ["sh", "-c", 'echo $$ > "$GROUP/cgroup.procs"; exec "$@"', "sh", *words, "sh", "-c", BOOT],
                stdout=log, stderr=log, env=os.environ | {name: str(place) for name, place in places.items()},
            )  # fmt: skip

    def wait_up(self) -> None:
        """Until systemd has done its first job. AssertionError where it cannot be had."""
        until(lambda: self._popen.poll() is not None or self._is_up(), "systemd is up", WITHIN_S)
        assert self._popen.poll() is None, self.log.read_text()

    def _is_up(self) -> bool:
        (first, *_) = children(self._popen.pid) or [0]
        if not first or Path(f"/proc/{first}/comm").read_text() != "systemd\n":
            return False
        return self.run("systemctl", "is-system-running", may_fail=True).strip() in ("running", "degraded")

    def run(self, *words: str, given: str = "", may_fail: bool = False) -> str:
        """The command's output, run in the box as its root."""
        first = children(self._popen.pid)[0]
        enter = ["nsenter", "--target", str(first), "-m", "-p", "-C", "-u", "-i", "-n", "-r", "-w"]
        clean = ["env", "-i", "PATH=/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]
        done = subprocess.run([*enter, *clean, *words], input=given, capture_output=True, text=True, check=False)
        assert may_fail or done.returncode == 0, f"{words}: {done.stdout[-3000:]}{done.stderr[-3000:]}"
        return done.stdout

    def shown(self, side: str, name: str) -> str:
        return self.run("systemctl", "show", "--value", "--property", name, f"flawline-{side}").strip()

    def said(self, side: str) -> str:
        return self.run("journalctl", "--no-pager", "--unit", f"flawline-{side}", may_fail=True)[-3000:]

    def verdicts(self) -> dict[str, Any]:
        said = self.run("/opt/flawline/bin/python", "-c", SUMMARY, may_fail=True)
        found: dict[str, Any] = json.loads(said)["verdicts"] if said else {}
        return found

    def close(self) -> None:
        self._popen.kill()
        self._popen.wait()
        until(lambda: "populated 0" in (self._group / "cgroup.events").read_text(), "all has ended", WITHIN_S)
        for group in sorted((each for each in self._group.rglob("*") if each.is_dir()), reverse=True):
            group.rmdir()
        self._group.rmdir()


@pytest.fixture
def box(wheelhouse: Path, bundle: Path, tmp_path: Path) -> Iterator[Box]:
    if os.geteuid() != 0:
        lacking("only root may start a systemd")
    for tool in TOOLS:
        if shutil.which(tool) is None:
            lacking(f"{tool} is not installed")
    if not SYSTEMD.exists():
        lacking("systemd is not installed (package systemd)")
    python = subprocess.run(["/usr/bin/python3", "--version"], capture_output=True, text=True, check=False).stdout
    if not python.startswith("Python {}.{}.".format(*sys.version_info)):
        lacking(f"/usr/bin/python3 is not the wheelhouse's Python, but {python}")
    mounts = [line.split() for line in Path("/proc/mounts").read_text().splitlines()]
    hierarchy = next((Path(place) for _, place, kind, *_ in mounts if kind == "cgroup2"), None)
    if hierarchy is None or not os.access(hierarchy, os.W_OK):
        lacking("there is no cgroup2 hierarchy that may be written")
    made = Box(tmp_path, wheelhouse, bundle, hierarchy)
    try:
        try:
            made.wait_up()
        except AssertionError as error:
            lacking(f"systemd cannot be process 1 of a namespace here: {error}")
        yield made
    finally:
        made.close()


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_installed_and_started_by_systemd_parts_are_inspected_and_who_hangs_is_started_again(box: Box) -> None:
    box.run("sh", "/media/stick/wheelhouse/install.sh", "--python", "/usr/bin/python3")
    box.run("sh", "-c", "cat > /etc/flawline/edge.toml", given=EDGE + TOUCHING)
    as_flawline = ("setpriv", "--reuid", "flawline", "--regid", "flawline", "--init-groups", "flawline")
    box.run(*as_flawline, "edge", "update", "/media/stick/washer", "--config", "/etc/flawline/edge.toml")
    box.run(*as_flawline, "doctor", "--config", "/etc/flawline/edge.toml")
    box.run("systemctl", "enable", "flawline-host", "flawline-edge")
    for side in ("host", "edge"):
        started = box.run("sh", "-c", f"systemctl start flawline-{side} && echo ready", may_fail=True)
        assert started == "ready\n", box.said(side)
        assert box.shown(side, "Result") == "success" and box.shown(side, "NRestarts") == "0", box.said(side)
        assert box.run("ps", "-o", "user=", "-p", box.shown(side, "MainPID")).strip() == "flawline"
    until(lambda: box.verdicts().get("PASS", 0) >= 3, "three parts have passed", WITHIN_S)
    until(
        lambda: box.shown("edge", "StatusText").startswith("running: recipe 1"), "the edge says that it runs", WITHIN_S
    )
    nices = box.run("ps", "-L", "-o", "ni=", "-p", box.shown("edge", "MainPID")).split()
    assert box.shown("edge", "LimitNICE") == "25"  # in the kernel's words: 20 less the lowest nice value
    granted = box.run("grep", "Max nice priority", f"/proc/{box.shown('edge', 'MainPID')}/limits").split()[3]
    first = {"25": {"-5"}, "0": set[str]()}[granted]  # a container without CAP_SYS_RESOURCE cannot grant it
    assert set(nices) == first | {"0", "5"}, "engine before the others, and pictures behind them"
    for side in ("edge", "host"):
        box.run("kill", "-STOP", box.shown(side, "MainPID"))
        until(lambda: box.shown(side, "NRestarts") == "1", f"the watchdog of the {side}", WITHIN_S)  # noqa: B023
        until(lambda: box.shown(side, "SubState") == "running", f"the {side} is back", WITHIN_S)  # noqa: B023
        until(box.verdicts, "the host answers", WITHIN_S)
        before = box.verdicts()["PASS"]
        until(lambda: box.verdicts().get("PASS", 0) > before, "parts pass again", WITHIN_S)  # noqa: B023

    def counted() -> dict[str, Any]:
        found: dict[str, Any] = json.loads(box.run("/opt/flawline/bin/python", "-c", SUMMARY))
        return found

    # While parts pass, a picture that waits behind verdicts is a hole for a moment.
    until(lambda: counted()["holes"] == 0, "everything that was numbered has come", WITHIN_S)
    assert counted()["duplicates"] == 0, counted()
    for side in ("host", "edge"):  # the edge keeps what it cannot send any more, and that is no failure
        box.run("systemctl", "stop", f"flawline-{side}")
        assert (box.shown(side, "ActiveState"), box.shown(side, "Result")) == ("inactive", "success"), box.said(side)
