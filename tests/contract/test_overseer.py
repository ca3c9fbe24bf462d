"""Loops that turn, wait long, hang or are stopped as a whole; what systemd is told on a real socket."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from contract.notify import Notifier
from contract.overseer import HUNG, Overseer, Pulse
from tests.processes import until

LONG_S = 1000.0


class Manager:
    """The other end of the notify protocol."""

    def __init__(self, address: str) -> None:
        self.address = address
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind("\0" + address[1:] if address[0] == "@" else address)
        self._socket.setblocking(False)
        self.heard: list[str] = []

    def listen(self) -> list[str]:
        while True:
            try:
                self.heard += self._socket.recv(4096).decode().split("\n")
            except BlockingIOError:
                return self.heard

    def close(self) -> None:
        self._socket.close()


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Manager]:
    os.chdir(tmp_path)  # a path of any length does not fit into an address
    made = Manager(f"@flawline-{os.getpid()}-{tmp_path.name}" if request.param == "abstract" else "notify")
    yield made
    made.close()


class Turning:
    """An overseer whose turns the test makes, so that no clock is in play."""

    def __init__(self, notifier: Notifier | None = None, hang_s: float = 8.0) -> None:
        self.ended: list[int] = []
        self.overseer = Overseer(hang_s, 100.0, notifier, self.ended.append)

    def pass_by(self, seconds: float) -> bool:
        """Whether all is well after so much silence."""
        self.overseer._count(seconds)
        hung = self.overseer._hung()
        if hung is None:
            self.overseer._tell()
        return hung is None


def test_a_loop_has_its_time_and_longer_where_it_says_so() -> None:
    made = Turning()
    one, other = made.overseer.watch("one"), made.overseer.watch("other", 30.0)
    made.overseer.complete()
    assert made.pass_by(99), "the start has a limit of its own"
    one.turn()
    other.turn()
    assert made.pass_by(5)
    assert made.pass_by(8)
    assert not made.pass_by(1), "one is due after 8 s, and 9 have passed"
    one.turn(within_s=60)
    assert made.pass_by(5)
    assert made.pass_by(15)
    other.turn()
    assert made.pass_by(20)
    one.turn()
    assert made.pass_by(1), "what was allowed before is not counted against the shorter time"
    assert made.pass_by(8)
    assert not made.pass_by(1)


def test_the_start_itself_has_a_limit_and_so_has_the_stop() -> None:
    made = Turning()
    assert made.pass_by(100)
    assert not made.pass_by(1)
    made = Turning()
    made.overseer.watch("one").turn()
    made.overseer.complete()
    made.overseer.stopping(50.0)
    assert made.pass_by(50)
    assert not made.pass_by(1)


def test_two_loops_of_one_name_would_hide_each_other() -> None:
    made = Turning()
    made.overseer.watch("connector loop")
    with pytest.raises(ValueError, match="two loops are called 'connector loop'"):
        made.overseer.watch("connector loop")


def test_systemd_hears_ready_when_every_loop_has_turned_and_life_only_while_all_do(manager: Manager) -> None:
    environment = {"NOTIFY_SOCKET": manager.address, "WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}
    if manager.address[0] != "@":
        environment["NOTIFY_SOCKET"] = os.path.abspath(manager.address)
    notifier = Notifier.from_environment(environment)
    assert not environment, "children do not speak for this process"
    assert notifier.watchdog_s == 30.0
    made = Turning(notifier)
    one, other = made.overseer.watch("one"), made.overseer.watch("other")
    assert made.pass_by(1)
    assert "READY=1" not in manager.listen()
    made.overseer.status = lambda: "running: recipe 1"
    made.overseer.complete()
    one.turn()
    assert made.pass_by(1)
    assert "READY=1" not in manager.listen(), "the other has not turned"
    other.turn()
    assert made.pass_by(1)
    one.turn()
    other.turn()
    assert made.pass_by(1)
    heard = manager.listen()
    assert (heard.count("READY=1"), heard.count("STATUS=running: recipe 1"), heard.count("WATCHDOG=1")) == (1, 1, 4)
    one.turn()
    assert not made.pass_by(9), "the other hangs"
    assert manager.listen().count("WATCHDOG=1") == 4
    made.overseer.stopping(5.0)
    assert "STOPPING=1" in manager.listen()
    notifier.close()


@pytest.mark.parametrize("address", ["/nowhere/notify", "@nobody-listens-here", "vsock:2:1", ""])
def test_nobody_who_listens_is_no_fault(address: str) -> None:
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address, "WATCHDOG_USEC": "nonsense"})
    assert notifier.watchdog_s is None
    assert not notifier.tell("READY=1")
    notifier.close()


def test_a_watchdog_that_is_meant_for_another_process_is_not_ours() -> None:
    notifier = Notifier.from_environment({"WATCHDOG_USEC": "1000000", "WATCHDOG_PID": "1"})
    assert notifier.watchdog_s is None


PROGRAM = """
import sys, threading, time
from contract.overseer import Overseer
with Overseer(2.0, 3.0) as overseer:
    pulse = overseer.watch("loop")
    overseer.complete()
    print("turning", flush=True)
    while True:
        pulse.turn()
        {step}
"""


def start(step: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM.format(step=step)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def test_a_loop_that_hangs_ends_the_process_with_the_stack_that_hung() -> None:
    process = start("threading.Event().wait()")
    _, error = process.communicate(timeout=60)
    assert process.returncode == HUNG, error
    assert "loop has not turned for" in error
    assert "threading.py" in error, "where it hung"


def test_code_that_keeps_the_interpreter_s_lock_is_ended_all_the_same() -> None:
    # A regular expression that backtracks for ever never gives the lock back.
    process = start("import re; re.match(r'(a|a)*$', 'a' * 60 + 'b')")
    _, error = process.communicate(timeout=60)
    assert process.returncode == 1, error
    assert "Timeout" in error


def test_a_process_that_was_stopped_as_a_whole_goes_on() -> None:
    process = start("time.sleep(0.05)")
    assert process.stdout is not None
    assert process.stdout.readline() == "turning\n"
    process.send_signal(signal.SIGSTOP)
    until(lambda: Path(f"/proc/{process.pid}/stat").read_text().split()[2] == "T", "it is stopped")
    process.send_signal(signal.SIGCONT)
    assert process.poll() is None
    process.kill()
    process.communicate()


def test_a_pulse_without_an_overseer_harms_nobody() -> None:
    pulse = Pulse("alone")
    pulse.turn()
    assert pulse.mark[0] == 1
